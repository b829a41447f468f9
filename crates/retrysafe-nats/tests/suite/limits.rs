//! A stream that is nearly full: new claims are refused, and what is under way is finished.

use std::time::Duration;

use retrysafe_core::{Begin, Claim, Found, Held, Inspect as _, Store as _, StoreErrorKind};
use retrysafe_testkit::servers::{NatsCluster, NatsServer};

use crate::{LONG, acquire, claim, complete, operation, patient, raw, stream};

const ROOM: u64 = 1024 * 1024;

async fn nearly_full(url: String, replicas: usize) {
    let name = stream();
    let builder = patient(&url).stream(&name).replicas(replicas).max_bytes(ROOM);
    let store = builder.open().await.unwrap();
    let client = raw::connect(&url).await;

    let kept = claim(operation());
    let lease = acquire(&store, &kept).await;
    complete(&store, &kept, &lease, "kept").await;
    let running = [claim(operation()), claim(operation()), claim(operation())];
    let mut leases = Vec::new();
    for owned in &running {
        leases.push(acquire(&store, owned).await);
    }
    // Nearly to the brim, behind the store's back.
    for _ in 0..31 {
        raw::put(&client, &name, &operation(), vec![0; 32 * 1024]).await;
    }
    // The store looks once a second.
    tokio::time::sleep(Duration::from_millis(1_100)).await;

    let refused = store.begin(&claim(operation())).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Full, "ST8: {refused}");
    // What is there goes on.
    for (owned, lease) in running.iter().zip(&leases) {
        assert_eq!(acquire(&store, owned).await.fence, lease.fence, "ST4");
        assert_eq!(store.renew(lease, LONG).await.unwrap(), Held::Applied);
    }
    let found = store.begin(&claim(kept.id)).await.unwrap();
    assert!(matches!(found, Begin::Found(Found::Finished { payload, .. }) if payload == "kept"));

    // A large outcome does not fit. That changes nothing, and without its response it does.
    let [owned, released, given_up] = &running;
    let large = vec![7; 16 * 1024].into();
    let full = store.complete(&leases[0], &owned.fingerprint, large, LONG).await.unwrap_err();
    assert_eq!(full.kind(), StoreErrorKind::Full, "{full}");
    complete(&store, owned, &leases[0], "201, without its body").await;
    assert_eq!(store.release(&leases[1], LONG).await.unwrap(), Held::Applied);
    acquire(&store, &claim(released.id)).await;
    assert_eq!(store.renew(&leases[2], Duration::ZERO).await.unwrap(), Held::Applied);
    acquire(&store, &Claim { take_over: true, ..claim(given_up.id) }).await;
    assert!(store.get(&kept.id).await.unwrap().is_some(), "ST8: nothing was dropped");
}

#[tokio::test]
async fn st8_a_full_stream_finishes_what_is_under_way() {
    nearly_full(NatsServer::shared().await.url(), 1).await;
}

#[tokio::test]
async fn st8_a_full_stream_of_three_replicas_finishes_what_is_under_way() {
    nearly_full(NatsCluster::shared().await.url(), 3).await;
}
