//! Handlers that do not leave their transaction to the store are found out.

use std::sync::{Arc, Mutex};

use axum::http::StatusCode;
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use retrysafe_axum::{CurrentAttempt, FromAttempt as _, NotLent, Transaction};
use retrysafe_sqlx::PostgresTransaction;

use crate::{Bank, Tx, credit, work};

/// Does the work, runs a statement by hand, and answers.
async fn by_hand(sql: &'static str, status: StatusCode) -> Bank {
    let bank = Bank::new().await;
    let app = bank.app(move |Transaction(mut transaction): Tx| async move {
        credit(&mut transaction).await.unwrap();
        sqlx::raw_sql(sql).execute(&mut *transaction).await.unwrap();
        status
    });
    let first = app.post("one").await;
    assert_eq!((first.status.as_u16(), &*first.code()), (500, "handler_failed"), "{sql}");
    // Nobody knows what it did: a layer that refuses does not run it again.
    let retry = app.post("one").await;
    assert_eq!((retry.status.as_u16(), &*retry.code()), (409, "outcome_unknown"), "{sql}");
    assert_eq!(bank.records().await, (1, 0));
    bank
}

#[tokio::test]
async fn a_commit_by_hand_is_found_out() {
    for sql in ["COMMIT", "COMMIT; BEGIN", "COMMIT AND CHAIN", "END; BEGIN"] {
        let bank = by_hand(sql, StatusCode::CREATED).await;
        assert_eq!(bank.balance().await, 1, "{sql}");
    }
}

#[tokio::test]
async fn what_is_found_out_is_counted() {
    let recorder = DebuggingRecorder::new();
    let snapshots = recorder.snapshotter();
    let recording = metrics::set_default_local_recorder(&recorder);
    by_hand("COMMIT", StatusCode::CREATED).await;
    drop(recording);
    let counted = snapshots.snapshot().into_vec().into_iter().find_map(|(key, _, _, value)| {
        (key.key().name() == "retrysafe_escaped_units_total").then_some(value)
    });
    assert!(matches!(counted, Some(DebugValue::Counter(1))), "{counted:?}");
}

#[tokio::test]
async fn a_rollback_by_hand_is_found_out() {
    for sql in ["ROLLBACK", "ROLLBACK; BEGIN", "ABORT; UPDATE account SET balance = 7"] {
        by_hand(sql, StatusCode::CREATED).await;
    }
}

#[tokio::test]
async fn a_commit_by_hand_is_found_out_whatever_is_answered() {
    for status in [404, 429, 500] {
        let bank = by_hand("COMMIT", StatusCode::from_u16(status).unwrap()).await;
        assert_eq!(bank.balance().await, 1);
    }
}

#[tokio::test]
async fn a_transaction_that_is_kept_is_rolled_back_when_it_is_let_go() {
    let bank = Bank::with(|store| store.wait(std::time::Duration::from_millis(50))).await;
    let kept: Arc<Mutex<Vec<PostgresTransaction>>> = Arc::default();
    let keep = kept.clone();
    let app = bank.app(move |Transaction(mut transaction): Tx| {
        let keep = keep.clone();
        async move {
            credit(&mut transaction).await.unwrap();
            keep.lock().unwrap().push(transaction);
            StatusCode::CREATED
        }
    });
    let first = app.post("one").await;
    assert_eq!((first.status.as_u16(), &*first.code()), (500, "handler_failed"));
    // For as long as it is open the key is in progress.
    assert_eq!(app.post("one").await.code(), "in_progress");
    let let_go = kept.lock().unwrap().pop();
    drop(let_go);
    let retry = bank.app(work).retry("one").await;
    assert_eq!((retry.status, retry.is_replay()), (StatusCode::CREATED, false));
    assert_eq!((bank.balance().await, bank.records().await), (1, (1, 1)));
}

#[tokio::test]
async fn there_is_one_transaction_and_one_at_a_time_has_it() {
    let bank = Bank::new().await;
    let app = bank.app(|CurrentAttempt(attempt): CurrentAttempt| async move {
        let mut one = PostgresTransaction::from_attempt(&attempt).unwrap();
        assert_eq!(PostgresTransaction::from_attempt(&attempt).unwrap_err(), NotLent::InUse);
        credit(&mut one).await.unwrap();
        drop(one);
        let mut again = PostgresTransaction::from_attempt(&attempt).unwrap();
        credit(&mut again).await.unwrap();
        StatusCode::CREATED
    });
    assert_eq!(app.post("one").await.status, StatusCode::CREATED);
    assert_eq!((bank.balance().await, bank.records().await), (2, (1, 1)));

    let twice = bank.app(|_: Tx, _: Tx| async { StatusCode::CREATED });
    let refused = twice.post("two").await;
    assert_eq!((refused.status.as_u16(), &*refused.code()), (500, "handler_failed"));
    assert_eq!(bank.records().await, (1, 1));
}
