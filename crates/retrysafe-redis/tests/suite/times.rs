//! Real time, by the server's clock.

use std::time::Duration;

use retrysafe_core::{Acquired, Begin, Claim, Found, Held, Inspect as _, Store as _, Swept};
use retrysafe_redis::RedisStore;
use retrysafe_testkit::servers::RedisServer;
use tokio::time::timeout;

use crate::{LONG, SOON, acquire, claim, operation, patient, prefix};

async fn store() -> RedisStore {
    let url = RedisServer::shared().await.url();
    patient(url).key_prefix(prefix()).open().await.unwrap()
}

/// Asks until a claim is answered otherwise.
async fn until(store: &RedisStore, claim: &Claim, is: impl Fn(&Begin) -> bool) -> Begin {
    let asking = async {
        loop {
            let begun = store.begin(claim).await.unwrap();
            if is(&begun) {
                return begun;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, asking).await.unwrap()
}

#[tokio::test]
async fn st7_a_lease_lapses_and_its_owner_may_still_renew() {
    let store = store().await;
    let owned = Claim { lease: Duration::from_millis(300), ..claim(operation()) };
    let lease = acquire(&store, &owned).await;
    until(&store, &claim(owned.id), |begun| {
        matches!(begun, Begin::Found(Found::Lapsed { attempt: 1, .. }))
    })
    .await;
    assert_eq!(store.renew(&lease, LONG).await.unwrap(), Held::Applied);
    let rival = Claim { take_over: true, ..claim(owned.id) };
    let begun = store.begin(&rival).await.unwrap();
    assert!(matches!(begun, Begin::Found(Found::InFlight { attempt: 1, .. })), "{begun:?}");

    assert_eq!(store.renew(&lease, Duration::from_millis(300)).await.unwrap(), Held::Applied);
    let begun = until(&store, &rival, |begun| matches!(begun, Begin::Acquired(_))).await;
    let expected = Acquired { attempt: 2, fence: 2, previous_vanished: true };
    assert_eq!(begun, Begin::Acquired(expected));
    let late = store.complete(&lease, &owned.fingerprint, "late".into(), LONG).await.unwrap();
    assert!(matches!(late, Held::Lost(Found::InFlight { attempt: 2, .. })), "{late:?}");
}

/// Redis removes what is past its retention, so there is nothing to sweep.
#[tokio::test]
async fn st8_what_has_expired_is_gone_by_itself() {
    let store = store().await;
    let owned = claim(operation());
    let lease = acquire(&store, &owned).await;
    let brief = Duration::from_millis(300);
    let done = store.complete(&lease, &owned.fingerprint, "done".into(), brief).await.unwrap();
    assert_eq!(done, Held::Applied);
    let begun = until(&store, &claim(owned.id), |begun| matches!(begun, Begin::Acquired(_))).await;
    let expected = Acquired { attempt: 1, fence: 1, previous_vanished: false };
    assert_eq!(begun, Begin::Acquired(expected));
    assert_eq!(store.sweep(1000).await.unwrap(), Swept::default());
    assert_eq!(store.count().await.unwrap().in_flight, 1);
}

/// An hour passes for the application and not for the server. Of the wall clock the store asks
/// nothing: a lint forbids it.
#[tokio::test]
async fn st7_the_clock_of_the_application_decides_nothing() {
    let store = store().await;
    let owned = Claim { lease: Duration::from_secs(60), ..claim(operation()) };
    let lease = acquire(&store, &owned).await;
    tokio::time::pause();
    tokio::time::advance(LONG).await;
    tokio::time::resume();
    let rival = Claim { take_over: true, ..claim(owned.id) };
    let begun = store.begin(&rival).await.unwrap();
    let Begin::Found(Found::InFlight { attempt: 1, lease_left, .. }) = begun else {
        panic!("ST7: {begun:?}")
    };
    assert!(lease_left > Duration::from_secs(20), "{lease_left:?}");
    let done = store.complete(&lease, &owned.fingerprint, "done".into(), LONG).await.unwrap();
    assert_eq!(done, Held::Applied);
}

/// missing_deadline: somebody took the expiry from a key.
#[tokio::test]
async fn a_claim_without_an_end_is_not_a_lapsed_one() {
    let server = RedisServer::shared().await;
    let prefix = prefix();
    let store = patient(server.url()).key_prefix(&prefix).open().await.unwrap();
    let owned = claim(operation());
    let lease = acquire(&store, &owned).await;
    server.command(&["PERSIST", &crate::key(&prefix, &owned.id)]).await;
    for take_over in [false, true] {
        let rival = Claim { take_over, ..claim(owned.id) };
        let error = store.begin(&rival).await.unwrap_err();
        assert_eq!(error.kind(), retrysafe_core::StoreErrorKind::Unreadable, "{error}");
    }
    // Its owner mends it.
    assert_eq!(store.renew(&lease, LONG).await.unwrap(), Held::Applied);
    let begun = store.begin(&claim(owned.id)).await.unwrap();
    assert!(matches!(begun, Begin::Found(Found::InFlight { .. })), "{begun:?}");
}
