//! Who waits for an operation (`changed`).

use std::sync::Arc;

use retrysafe_core::{Held, Store as _};
use tokio::task::JoinSet;

use crate::{LONG, PATIENCE, Table, acquire, claim, operation};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_this_store_did_is_seen_without_asking() {
    let table = Table::new().await;
    let store = Arc::new(table.builder().poll_interval(LONG).open().await.unwrap());
    for round in 0..20 {
        let owned = claim(operation());
        let lease = acquire(&*store, &owned).await;
        let wait = tokio::spawn({
            let store = store.clone();
            async move { store.changed(&lease.id, 1, LONG).await }
        });
        if round % 2 == 0 {
            tokio::task::yield_now().await;
        }
        let lease =
            retrysafe_core::Lease { id: owned.id, owner: owned.owner, attempt: 1, fence: 1 };
        let done = store.complete(&lease, &owned.fingerprint, "done".into(), LONG).await;
        assert_eq!(done.unwrap(), Held::Applied);
        tokio::time::timeout(PATIENCE, wait).await.expect("it is woken").unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn waiters_eat_pool() {
    let table = Table::new().await;
    let store = Arc::new(table.builder().max_connections(1).open().await.unwrap());
    let owned = claim(operation());
    let lease = acquire(&*store, &owned).await;
    let mut waiting = JoinSet::new();
    for _ in 0..50 {
        let (store, id) = (store.clone(), owned.id);
        waiting.spawn(async move { store.changed(&id, 1, LONG).await.unwrap() });
    }
    for _ in 0..20 {
        assert_eq!(store.renew(&lease, LONG).await.unwrap(), Held::Applied, "none is in the way");
    }
    assert!(waiting.try_join_next().is_none(), "they all wait");
    let done = store.complete(&lease, &owned.fingerprint, "done".into(), LONG).await;
    assert_eq!(done.unwrap(), Held::Applied);
    waiting.join_all().await;
}
