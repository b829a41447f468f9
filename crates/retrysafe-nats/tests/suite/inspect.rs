//! Looking at more records than fit into one question.

use retrysafe_core::{Inspect as _, OperationId};
use tokio::task::JoinSet;

use crate::{acquire, claim, numbered, store};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inspect_pages_through_thousands_in_order() {
    const RECORDS: u64 = 4_200;
    let store = store().await;
    let mut workers = JoinSet::new();
    for worker in 0..8 {
        let store = store.clone();
        workers.spawn(async move {
            for number in (worker..RECORDS).step_by(8) {
                acquire(&store, &claim(numbered(number))).await;
            }
        });
    }
    workers.join_all().await;
    let mut expected: Vec<OperationId> = (0..RECORDS).map(numbered).collect();
    expected.sort_unstable();

    let mut seen: Vec<OperationId> = Vec::new();
    loop {
        let page = store.page(seen.last(), 1_000).await.unwrap();
        if page.is_empty() {
            break;
        }
        assert!(page.len() <= 1_000);
        seen.extend(page.into_iter().map(|entry| entry.id));
    }
    assert_eq!(seen, expected);
    assert_eq!(store.count().await.unwrap().in_flight, RECORDS);
}
