//! What becomes of the work, by how its handler ends.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::http::StatusCode;
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use retrysafe_axum::{NotLent, Once, OnceError, Scope, Transaction};
use retrysafe_sqlite::{SqliteTransaction, TransactionalSqlite};
use rusqlite::{Connection, DropBehavior};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::{Bank, PATIENCE, Tx, credit, work};

#[tokio::test]
async fn sqlite_commits_the_work_with_its_record() {
    let bank = Bank::new();
    let app = bank.app(work);
    let first = app.post("one").await;
    assert_eq!((first.status, first.is_replay()), (StatusCode::CREATED, false));
    assert!(app.post("one").await.is_replay());
    assert!(Bank::at(&bank.path, |store| store).app(work).post("one").await.is_replay());
    assert_eq!((bank.balance(), bank.finished()), (1, 1));
}

#[tokio::test]
async fn sqlite_undoes_what_is_refused_released_or_fails() {
    for (status, kept) in [(422, true), (429, false), (500, false), (408, false)] {
        let bank = Bank::new();
        let status = StatusCode::from_u16(status).unwrap();
        let runs = Arc::new(AtomicU32::new(0));
        let app = bank.app(move |Transaction(transaction): Tx| {
            let runs = runs.clone();
            async move {
                credit(&transaction, 1).await.unwrap();
                let first = runs.fetch_add(1, Ordering::SeqCst) == 0;
                if first { status } else { StatusCode::CREATED }
            }
        });
        assert_eq!(app.post("one").await.status, status);
        assert_eq!((bank.balance(), bank.finished()), (0, i64::from(kept)));
        let retry = app.post("one").await;
        assert_eq!(retry.is_replay(), kept);
        assert_eq!(retry.status, if kept { status } else { StatusCode::CREATED });
        assert_eq!((bank.balance(), bank.finished()), (i64::from(!kept), 1));
    }
}

#[tokio::test]
async fn a_panic_leaves_nothing_in_sqlite() {
    for in_the_transaction in [false, true] {
        let bank = Bank::new();
        let runs = Arc::new(AtomicU32::new(0));
        let app = bank.app(move |Transaction(transaction): Tx| {
            let first = runs.fetch_add(1, Ordering::SeqCst) == 0;
            async move {
                credit(&transaction, 1).await.unwrap();
                if first && in_the_transaction {
                    transaction.run(|_| panic!("as the test wants it")).await.unwrap()
                }
                assert!(!first, "as the test wants it");
                StatusCode::CREATED
            }
        });
        assert_eq!(app.post("one").await.code(), "handler_failed");
        assert_eq!((bank.balance(), bank.finished()), (0, 0));
        assert_eq!(app.post("one").await.status, StatusCode::CREATED);
        assert_eq!((bank.balance(), bank.finished()), (1, 1));
    }
}

#[tokio::test]
async fn a_panic_that_the_handler_did_not_mind_is_503() {
    let bank = Bank::new();
    let app = bank.app(|Transaction(transaction): Tx| async move {
        credit(&transaction, 1).await.unwrap();
        let panics = transaction.clone();
        let panicked =
            tokio::spawn(
                async move { panics.run(|_| panic!("as the test wants it")).await.unwrap() },
            );
        assert!(panicked.await.unwrap_err().is_panic());
        StatusCode::CREATED
    });
    assert_eq!(app.post("one").await.code(), "store_unavailable");
    assert_eq!((bank.balance(), bank.finished()), (0, 0));
}

#[tokio::test]
async fn a_handler_that_is_dropped_half_done_leaves_nothing_in_sqlite() {
    let bank = Bank::new();
    let runs = Arc::new(AtomicU32::new(0));
    let app = bank.app(move |Transaction(transaction): Tx| {
        let first = runs.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            let half_done = async {
                credit(&transaction, 1).await.unwrap();
                if first {
                    pending::<()>().await;
                }
                credit(&transaction, 1).await.unwrap();
            };
            match timeout(if first { Duration::from_millis(50) } else { PATIENCE }, half_done).await
            {
                Ok(()) => StatusCode::CREATED,
                Err(_) => StatusCode::REQUEST_TIMEOUT,
            }
        }
    });
    assert_eq!(app.post("one").await.status, StatusCode::REQUEST_TIMEOUT);
    assert_eq!((bank.balance(), bank.finished()), (0, 0));
    assert_eq!(app.post("one").await.status, StatusCode::CREATED);
    assert_eq!((bank.balance(), bank.finished()), (2, 1));
}

#[tokio::test]
async fn sqlite_lets_nobody_commit_by_hand() {
    for sql in ["COMMIT", "COMMIT; BEGIN", "END", "ROLLBACK", "ROLLBACK; BEGIN IMMEDIATE"] {
        for status in [StatusCode::CREATED, StatusCode::INTERNAL_SERVER_ERROR] {
            let bank = Bank::new();
            let runs = Arc::new(AtomicU32::new(0));
            let app = bank.app(move |Transaction(transaction): Tx| {
                let first = runs.fetch_add(1, Ordering::SeqCst) == 0;
                async move {
                    credit(&transaction, 1).await.unwrap();
                    if !first {
                        return StatusCode::CREATED;
                    }
                    let ended = transaction.run(move |tx| {
                        let _ = tx.execute_batch(sql);
                        // Written after it, to no avail either.
                        let _ = tx.execute("UPDATE account SET balance = 7 WHERE id = 1", []);
                    });
                    ended.await.unwrap();
                    status
                }
            });
            let recorder = DebuggingRecorder::new();
            let snapshotter = recorder.snapshotter();
            let recording = metrics::set_default_local_recorder(&recorder);
            assert_eq!(app.post("one").await.status, StatusCode::INTERNAL_SERVER_ERROR, "{sql}");
            drop(recording);
            if status == StatusCode::CREATED {
                let counted = snapshotter.snapshot().into_vec().into_iter();
                let counted: Vec<_> = counted
                    .filter(|(key, ..)| key.key().name().contains("escaped"))
                    .map(|(.., value)| value)
                    .collect();
                assert_eq!(counted, [DebugValue::Counter(1)], "{sql}");
            }
            assert_eq!((bank.balance(), bank.finished()), (0, 0), "{sql}");
            // Nothing has happened, and that is known.
            assert_eq!(app.post("one").await.status, StatusCode::CREATED, "{sql}");
            assert_eq!((bank.balance(), bank.finished()), (1, 1), "{sql}");
        }
    }
}

#[tokio::test]
async fn what_a_transaction_is_told_to_do_when_it_is_dropped_does_not_matter() {
    let bank = Bank::new();
    let app = bank.app(|Transaction(transaction): Tx| async move {
        credit(&transaction, 1).await.unwrap();
        transaction.run(|tx| tx.set_drop_behavior(DropBehavior::Commit)).await.unwrap();
        StatusCode::UNPROCESSABLE_ENTITY
    });
    assert_eq!(app.post("one").await.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!((bank.balance(), bank.finished()), (0, 1));
}

#[tokio::test]
async fn a_transaction_that_is_kept_is_of_no_use_in_sqlite() {
    let bank = Bank::new();
    let (keeps, mut kept) = tokio::sync::mpsc::channel(1);
    let app = bank.app(move |Transaction(transaction): Tx| {
        let keeps = keeps.clone();
        async move {
            credit(&transaction, 1).await.unwrap();
            keeps.send(transaction).await.unwrap();
            StatusCode::CREATED
        }
    });
    assert_eq!(app.post("one").await.status, StatusCode::CREATED);
    let transaction = kept.recv().await.unwrap();
    assert!(credit(&transaction, 1).await.is_err());
    assert_eq!((bank.balance(), bank.finished()), (1, 1));
}

#[tokio::test]
async fn a_constraint_that_fails_at_the_commit_is_503_in_sqlite() {
    let bank = Bank::new();
    let table = "CREATE TABLE entry (account INTEGER NOT NULL
        REFERENCES account DEFERRABLE INITIALLY DEFERRED)";
    Connection::open(&bank.path).unwrap().execute_batch(table).unwrap();
    let app = bank.app(|Transaction(transaction): Tx| async move {
        credit(&transaction, 1).await.unwrap();
        let enter = transaction.run(|tx| tx.execute("INSERT INTO entry VALUES (99)", []));
        assert_eq!(enter.await.unwrap().unwrap(), 1);
        StatusCode::CREATED
    });
    for _ in 0..2 {
        assert_eq!(app.post("one").await.code(), "store_unavailable");
        assert_eq!((bank.balance(), bank.finished()), (0, 0));
    }
}

#[tokio::test]
async fn a_disk_without_room_for_the_answer_keeps_nothing_of_the_work() {
    for status in [StatusCode::CREATED, StatusCode::UNPROCESSABLE_ENTITY] {
        let bank = Bank::with(|store| {
            store.prepare(|connection| connection.pragma_update(None, "max_page_count", 32))
        });
        let runs = Arc::new(AtomicU32::new(0));
        let app = bank.app(move |Transaction(transaction): Tx| {
            let first = runs.fetch_add(1, Ordering::SeqCst) == 0;
            async move {
                credit(&transaction, 1).await.unwrap();
                match first {
                    true => (status, "large".repeat(100_000)),
                    false => (StatusCode::CREATED, "small".to_owned()),
                }
            }
        });
        let refused = app.post("one").await;
        assert_eq!(refused.code(), "store_unavailable");
        assert!(!refused.headers.contains_key("idempotency-status"));
        assert_eq!((bank.balance(), bank.finished()), (0, 0));
        // Its key is free, whoever it belonged to.
        assert_eq!(app.post("one").await.body, "small");
        assert_eq!((bank.balance(), bank.finished()), (1, 1));
    }
}

#[tokio::test]
async fn the_connection_is_set_up_once_and_the_file_stays_the_users() {
    let bank = Bank::new();
    let connection = Connection::open(&bank.path).unwrap();
    connection.pragma_update(None, "user_version", 7).unwrap();
    connection.pragma_update(None, "application_id", 8).unwrap();
    let bank = Bank::at(&bank.path, |store| {
        store.prepare(|connection| connection.execute_batch("CREATE TEMP TABLE seen (id)"))
    });
    let app = bank.app(|Transaction(transaction): Tx| async move {
        let see = transaction.run(|tx| tx.execute("INSERT INTO seen VALUES (1)", []));
        see.await.unwrap().unwrap();
        StatusCode::CREATED
    });
    assert_eq!(app.post("one").await.status, StatusCode::CREATED);
    assert_eq!(bank.number("SELECT user_version FROM pragma_user_version"), 7);
    assert_eq!(bank.number("SELECT application_id FROM pragma_application_id"), 8);
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Refusal {
    NotEnough,
    Busy,
    Unclear,
}

fn once(bank: &Bank) -> Once<TransactionalSqlite> {
    Once::builder(bank.store.clone())
        .settings(|settings| settings.store_deadline = PATIENCE * 2)
        .build()
        .unwrap()
}

#[tokio::test]
async fn o2_a_value_commits_with_the_work_in_sqlite() {
    let bank = Bank::new();
    let once = once(&bank);
    let run = || {
        once.run("credit", &Scope::shared(), "one", &5, |context| async move {
            let transaction: SqliteTransaction = context.lent().unwrap();
            credit(&transaction, 1).await.unwrap();
            Ok::<_, Refusal>(7_u32)
        })
    };
    let first = run().await.unwrap();
    assert_eq!((first.value, first.replayed, first.recorded), (7, false, true));
    let retry = run().await.unwrap();
    assert_eq!((retry.value, retry.replayed), (7, true));
    assert_eq!((bank.balance(), bank.finished()), (1, 1));
}

#[tokio::test]
async fn o2_an_error_undoes_the_work_in_sqlite() {
    let bank = Bank::new();
    let once = once(&bank);
    let refusals =
        [("one", Refusal::NotEnough, 1), ("two", Refusal::Busy, 1), ("three", Refusal::Unclear, 1)];
    for (key, refusal, kept) in refusals {
        let failed = once
            .run("credit", &Scope::shared(), key, &5, |context| async move {
                let transaction: SqliteTransaction = context.lent().unwrap();
                credit(&transaction, 1).await.unwrap();
                Err::<u32, _>(refusal)
            })
            .keep_if(|refusal| *refusal == Refusal::NotEnough)
            .release_if(|refusal| *refusal == Refusal::Busy)
            .await;
        assert!(matches!(failed, Err(OnceError::Failed { .. })), "{failed:?}");
        assert_eq!((bank.balance(), bank.finished()), (0, kept));
    }
}

#[tokio::test]
async fn an_ordinary_store_lends_no_transaction() {
    let once = Once::builder(retrysafe_axum::MemoryStore::new()).build().unwrap();
    let run = once.run("credit", &Scope::shared(), "one", &5, |context| async move {
        Ok::<_, Refusal>(context.lent::<SqliteTransaction>().unwrap_err() == NotLent::Absent)
    });
    assert!(run.await.unwrap().value);
}
