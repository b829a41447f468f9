//! ST2: what goes over the wire, counted.

use retrysafe_core::{Begin, Claim, Found, Held, Store as _};
use retrysafe_redis::RedisStore;
use retrysafe_testkit::servers::{RedisServer, Wire};

use crate::{LONG, acquire, claim, operation, patient, prefix};

struct Counted {
    wire: Wire,
    store: RedisStore,
}

impl Counted {
    async fn new() -> Self {
        let server = RedisServer::shared().await;
        let wire = Wire::to(server.addr()).await;
        let store = patient(wire.url_for(&server.url())).key_prefix(prefix());
        Self { store: store.open().await.unwrap(), wire }
    }

    /// How many round trips a call takes.
    async fn trips<T>(&self, call: impl Future<Output = T>) -> (T, u64) {
        let before = self.wire.round_trips();
        let answer = call.await;
        (answer, self.wire.round_trips() - before)
    }
}

#[tokio::test]
async fn st2_a_first_execution_is_two_and_a_replay_one() {
    let counted = Counted::new().await;
    let store = &counted.store;
    let owned = claim(operation());
    let (lease, trips) = counted.trips(acquire(store, &owned)).await;
    assert_eq!(trips, 1, "a claim");
    let (begun, trips) = counted.trips(store.begin(&owned)).await;
    assert!(matches!(begun, Ok(Begin::Acquired(_))) && trips == 1, "ST4: the claim, repeated");
    let (held, trips) = counted.trips(store.renew(&lease, LONG * 2)).await;
    assert!(held.unwrap() == Held::Applied && trips == 1, "a renewal");
    let done = store.complete(&lease, &owned.fingerprint, "done".into(), LONG);
    let (held, trips) = counted.trips(done).await;
    assert!(held.unwrap() == Held::Applied && trips == 1, "an outcome");
    let (begun, trips) = counted.trips(store.begin(&claim(owned.id))).await;
    assert!(matches!(begun, Ok(Begin::Found(Found::Finished { .. }))) && trips == 1, "a replay");
}

#[tokio::test]
async fn st2_what_is_in_flight_released_or_lapsed_is_two() {
    let counted = Counted::new().await;
    let store = &counted.store;
    let owned = claim(operation());
    let lease = acquire(store, &owned).await;
    for take_over in [false, true] {
        let (begun, trips) =
            counted.trips(store.begin(&Claim { take_over, ..claim(owned.id) })).await;
        assert!(matches!(begun, Ok(Begin::Found(Found::InFlight { .. }))));
        assert_eq!(trips, 2, "in flight");
    }
    let (held, trips) = counted.trips(store.release(&lease, LONG)).await;
    assert!(held.unwrap() == Held::Applied && trips == 1, "a release");
    let (lease, trips) = counted.trips(acquire(store, &claim(owned.id))).await;
    assert_eq!(trips, 2, "a claim of a released record");
    let lease = retrysafe_core::Lease { fence: 0, ..lease };
    let given_up = store.renew(&lease, std::time::Duration::ZERO).await.unwrap();
    assert_eq!(given_up, Held::Applied);
    let take_over = Claim { take_over: true, ..claim(owned.id) };
    let (_, trips) = counted.trips(acquire(store, &take_over)).await;
    assert_eq!(trips, 2, "a take-over");
}

/// After a restart the server has forgotten the scripts; the first call of each pays once.
#[tokio::test]
async fn scripts_are_told_again_when_the_server_forgot_them() {
    let server = RedisServer::start().await;
    let store = patient(server.url()).open().await.unwrap();
    let owned = claim(operation());
    let lease = acquire(&store, &owned).await;
    server.command(&["SCRIPT", "FLUSH"]).await;
    assert_eq!(store.renew(&lease, LONG).await.unwrap(), Held::Applied);
    let done = store.complete(&lease, &owned.fingerprint, "done".into(), LONG).await;
    assert_eq!(done.unwrap(), Held::Applied);
}
