//! What has expired and is still there.

use std::time::Duration;

use retrysafe_core::{Begin, Claim, Found, Held, Inspect as _, State, Store as _};
use retrysafe_testkit::servers::NatsServer;
use tokio::time::Instant;

use crate::{LONG, acquire, claim, operation, patient, raw, stream, until};

const BRIEF: Duration = Duration::from_millis(100);

/// What is left of a time that began to run at the earliest when `begun` was taken: less only by
/// what the test itself took. A second less would be the mistake.
fn is_whole(left: Duration, whole: Duration, begun: Instant) -> bool {
    left > whole - begun.elapsed() - Duration::from_secs(1)
}

/// The message of an expired record stays for seconds. A claim replaces it, and was once counted
/// from *its* time: a lease ended as much too early as the old record was old.
#[tokio::test]
async fn st8_a_claim_of_what_expired_has_its_whole_lease() {
    let server = NatsServer::shared().await;
    let name = stream();
    let open = || patient(server.url()).stream(&name).open();
    let (one, other) = (open().await.unwrap(), open().await.unwrap());
    let owned = claim(operation());
    let lease = acquire(&one, &owned).await;
    let done = one.complete(&lease, &owned.fingerprint, "old".into(), BRIEF).await;
    assert_eq!(done.unwrap(), Held::Applied);
    tokio::time::sleep(Duration::from_secs(2)).await;

    let anew = claim(owned.id);
    let begun = Instant::now();
    assert_eq!(acquire(&one, &anew).await.attempt, 1);
    for store in [&one, &other] {
        let found = store.begin(&claim(owned.id)).await.unwrap();
        let Begin::Found(Found::InFlight { lease_left, .. }) = found else { panic!("{found:?}") };
        assert!(is_whole(lease_left, LONG, begun), "{lease_left:?}");
    }
    let entry = other.get(&owned.id).await.unwrap().unwrap();
    assert!(is_whole(entry.expires_in, LONG * 24, begun), "{:?}", entry.expires_in);
}

/// The lease that is judged by the time of the leader, and taken over, begins anew as well.
#[tokio::test]
async fn st6_a_take_over_has_its_whole_lease() {
    let store = crate::store().await;
    let owned = Claim { lease: BRIEF, ..claim(operation()) };
    acquire(&store, &owned).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let begun = Instant::now();
    acquire(&store, &Claim { take_over: true, ..claim(owned.id) }).await;
    let Some(State::InFlight { lease_left }) =
        store.get(&owned.id).await.unwrap().map(|entry| entry.state)
    else {
        panic!("it was taken over")
    };
    assert!(is_whole(lease_left, LONG, begun), "{lease_left:?}");
}

/// R8: nothing sweeps, and nothing is left.
#[tokio::test]
async fn r8_the_server_removes_what_expired() {
    let server = NatsServer::shared().await;
    let name = stream();
    let store = patient(server.url()).stream(&name).open().await.unwrap();
    let client = raw::connect(&server.url()).await;
    let (expiring, staying) = (claim(operation()), claim(operation()));
    for (owned, retention) in [(&expiring, BRIEF), (&staying, LONG)] {
        let lease = acquire(&store, owned).await;
        let done = store.complete(&lease, &owned.fingerprint, "done".into(), retention).await;
        assert_eq!(done.unwrap(), Held::Applied);
    }
    assert_eq!(raw::messages(&client, &name).await, 2);
    until("the server has removed it", || async {
        (raw::messages(&client, &name).await == 1).then_some(())
    })
    .await;
    assert!(store.get(&staying.id).await.unwrap().is_some());
}
