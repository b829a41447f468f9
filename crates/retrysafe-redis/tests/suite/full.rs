//! ST8: a server without room refuses claims, and nothing else.

use retrysafe_core::{
    Begin, Claim, Found, Held, Inspect as _, Operated, Store as _, StoreErrorKind,
};
use retrysafe_testkit::servers::RedisServer;

use crate::{LONG, acquire, claim, numbered, operation, patient};

#[tokio::test]
async fn capacity_evicts() {
    let server = RedisServer::with(&["--appendonly", "no"]).await;
    let store = patient(server.url()).open().await.unwrap();
    let finished = claim(operation());
    let lease = acquire(&store, &finished).await;
    let large = vec![7; 256 * 1024];
    let done = store.complete(&lease, &finished.fingerprint, large.clone().into(), LONG).await;
    assert_eq!(done.unwrap(), Held::Applied);
    let released = claim(operation());
    let lease = acquire(&store, &released).await;
    assert_eq!(store.release(&lease, LONG).await.unwrap(), Held::Applied);
    let [own, renewed, completed, given_up] = std::array::from_fn(|_| claim(operation()));
    let _ = acquire(&store, &own).await;
    let renewed = acquire(&store, &renewed).await;
    let completed_lease = acquire(&store, &completed).await;
    let given_up = acquire(&store, &given_up).await;

    server.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    for number in 0..20 {
        let error = store.begin(&claim(numbered(number))).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Full, "{error}");
    }
    let error = store.begin(&claim(released.id)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Full, "a released key: {error}");

    // What is there answers.
    assert!(matches!(store.begin(&own).await.unwrap(), Begin::Acquired(_)));
    for take_over in [false, true] {
        let rival = Claim { take_over, ..claim(own.id) };
        let begun = store.begin(&rival).await.unwrap();
        assert!(matches!(begun, Begin::Found(Found::InFlight { .. })), "{begun:?}");
    }
    let replay = store.begin(&claim(finished.id)).await.unwrap();
    assert!(matches!(replay, Begin::Found(Found::Finished { payload, .. }) if payload == large));
    // What is under way ends: an outcome is not lost for want of room.
    assert_eq!(store.renew(&renewed, LONG * 2).await.unwrap(), Held::Applied);
    assert_eq!(store.release(&renewed, LONG).await.unwrap(), Held::Applied);
    let zero = std::time::Duration::ZERO;
    assert_eq!(store.renew(&given_up, zero).await.unwrap(), Held::Applied);
    let done = store.complete(&completed_lease, &completed.fingerprint, "x".into(), LONG).await;
    assert_eq!(done.unwrap(), Held::Applied);
    assert_eq!(store.forget(&finished.id).await.unwrap(), Operated::Applied);

    // A service that restarts meanwhile finds what there is.
    let another = patient(server.url()).open().await.unwrap();
    let replay = another.begin(&claim(completed.id)).await.unwrap();
    assert!(matches!(replay, Begin::Found(Found::Finished { .. })));

    server.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    acquire(&store, &claim(numbered(0))).await;
}
