//! How callers share transactions.

use std::{
    pin::Pin,
    task::{Context, Waker},
};

use retrysafe_core::{Begin, Found, Held, Inspect as _, Store as _, StoreErrorKind};
use retrysafe_sqlite::SqliteStore;
use rusqlite::Connection;
use tempfile::TempDir;

use crate::{LONG, acquire, claim, file, numbered, operation};

/// Keeps the store from beginning its next turn, as another process would.
struct Blocked(Connection);

impl Blocked {
    fn new(store: &SqliteStore) -> Self {
        let connection = Connection::open(store.path()).unwrap();
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        Self(connection)
    }

    fn let_go(self) {
        self.0.execute_batch("ROLLBACK").unwrap();
    }
}

/// A call that waits for its answer: it has been sent, in this order.
pub(crate) fn sent<F: Future>(call: F) -> Pin<Box<F>> {
    let mut call = Box::pin(call);
    let answer = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(answer.is_pending());
    call
}

fn open(directory: &TempDir) -> SqliteStore {
    SqliteStore::builder(directory.path().join("retrysafe.db"))
        .busy_timeout(LONG)
        .max_file_size(256 * 1024)
        .open()
        .unwrap()
}

#[tokio::test]
async fn sixty_four_claims_share_a_flush() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    let before = file::commits(store.path());

    let blocked = Blocked::new(&store);
    let claims: Vec<_> = (0..64).map(|number| claim(numbered(number))).collect();
    let calls: Vec<_> = claims.iter().map(|claim| sent(store.begin(claim))).collect();
    blocked.let_go();
    for call in calls {
        assert!(matches!(call.await, Ok(Begin::Acquired(_))));
    }

    let commits = file::commits(store.path()) - before;
    assert!((1..=3).contains(&commits), "{commits} commits");
    assert_eq!(store.count().await.unwrap().in_flight, 64);
}

#[tokio::test]
async fn one_alone_is_committed_at_once() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    let before = file::commits(store.path());
    for number in 0..10 {
        let _ = acquire(&store, &claim(numbered(number))).await;
        assert_eq!(file::commits(store.path()) - before, number as usize + 1);
    }
}

#[tokio::test]
async fn replays_write_nothing() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    let first = claim(operation());
    let lease = acquire(&store, &first).await;
    let _ = store.complete(&lease, &first.fingerprint, "done".into(), LONG).await.unwrap();

    let log = file::log_of(store.path());
    let before = std::fs::read(&log).unwrap();
    for _ in 0..100 {
        let retry = store.begin(&claim(first.id)).await.unwrap();
        assert!(
            matches!(retry, Begin::Found(Found::Finished { payload, .. }) if payload == "done")
        );
    }
    assert!(std::fs::read(&log).unwrap() == before, "a replay wrote to the log");
}

#[tokio::test]
async fn st8_who_finds_no_room_does_not_fail_the_others() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    let large = claim(operation());
    let lease = acquire(&store, &large).await;

    let blocked = Blocked::new(&store);
    let payload = vec![1; 1024 * 1024].into();
    let complete = sent(store.complete(&lease, &large.fingerprint, payload, LONG));
    let claims: Vec<_> = (0..8).map(|number| claim(numbered(number))).collect();
    let calls: Vec<_> = claims.iter().map(|claim| sent(store.begin(claim))).collect();
    blocked.let_go();

    let refused = complete.await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Full, "{refused}");
    for call in calls {
        assert!(matches!(call.await, Ok(Begin::Acquired(_))));
    }
    // Nothing changed: the attempt is still live, and what fits is kept.
    let kept = store.complete(&lease, &large.fingerprint, "small".into(), LONG).await.unwrap();
    assert_eq!(kept, Held::Applied);
}

#[tokio::test]
async fn st11_who_leaves_does_not_matter_to_the_others() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    let owned = claim(operation());
    let lease = acquire(&store, &owned).await;

    let blocked = Blocked::new(&store);
    let claims: Vec<_> = (0..64).map(|number| claim(numbered(number))).collect();
    let calls: Vec<_> = claims.iter().map(|claim| sent(store.begin(claim))).collect();
    drop(sent(store.complete(&lease, &owned.fingerprint, "kept".into(), LONG)));
    let stayed = calls.into_iter().enumerate().filter(|(number, _)| number % 2 == 0);
    // Those that leave do so here, before the turn begins.
    let stayed: Vec<_> = stayed.map(|(_, call)| call).collect();
    blocked.let_go();

    for call in stayed {
        assert!(matches!(call.await, Ok(Begin::Acquired(_))));
    }
    // Nobody was there to hear of the outcome, but it was sent, so it is kept.
    let retry = store.begin(&claim(owned.id)).await.unwrap();
    assert!(matches!(retry, Begin::Found(Found::Finished { payload, .. }) if payload == "kept"));
    // Nobody would complete what the others claim, so they did not claim it.
    assert_eq!(store.count().await.unwrap().in_flight, 32);
}

/// Nobody may run unprotected beside whoever writes to it: least of all what has finished.
#[tokio::test]
async fn d4_a_file_that_stays_locked_is_busy_and_not_unreachable() {
    let directory = TempDir::new().unwrap();
    let store = SqliteStore::builder(directory.path().join("retrysafe.db"))
        .busy_timeout(std::time::Duration::from_millis(20))
        .open()
        .unwrap();
    let finished = claim(operation());
    let lease = acquire(&store, &finished).await;
    let done = store.complete(&lease, &finished.fingerprint, "done".into(), LONG).await;
    assert_eq!(done.unwrap(), Held::Applied);

    let blocked = Blocked::new(&store);
    for id in [operation(), finished.id] {
        let error = store.begin(&claim(id)).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Timeout, "{error}");
    }
    blocked.let_go();
    let retry = store.begin(&claim(finished.id)).await.unwrap();
    assert!(matches!(retry, Begin::Found(Found::Finished { .. })), "{retry:?}");
    let _ = acquire(&store, &claim(operation())).await;
}
