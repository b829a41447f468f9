//! What becomes of the work, by how the handler ended.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::http::StatusCode;
use retrysafe_axum::Transaction;
use retrysafe_sqlx::MySqlTransaction;
use retrysafe_testkit::servers::{MariadbServer, Wire};
use sqlx::Connection as _;
use tokio::sync::{mpsc, watch};

use crate::{App, Bank, Tx, add, work};

async fn nothing_is_left(bank: &Bank, app: &App) {
    assert_eq!((bank.balance().await, bank.records().await), (0, (0, 0)));
    let retry = app.retry("one").await;
    assert_eq!((retry.status, retry.is_replay()), (StatusCode::CREATED, false));
    assert_eq!((bank.balance().await, bank.records().await), (1, (1, 1)));
}

#[tokio::test]
async fn a_panic_leaves_nothing() {
    let bank = Bank::new().await;
    let runs = Arc::new(AtomicU32::new(0));
    let app = bank.app(move |Transaction(mut transaction): Tx| {
        let runs = runs.clone();
        async move {
            add(&mut transaction, 1).await.unwrap();
            assert!(runs.fetch_add(1, Ordering::SeqCst) > 0, "as the test wants it");
            StatusCode::CREATED
        }
    });
    let first = app.post("one").await;
    assert_eq!((first.status.as_u16(), &*first.code()), (500, "handler_failed"));
    nothing_is_left(&bank, &app).await;
}

#[tokio::test]
async fn a_handler_that_is_dropped_half_done_leaves_nothing() {
    // It waits no longer than this for a server that is still at it.
    let bound = Duration::from_secs(1);
    let bank = Bank::with(|store| store.timeout(bound).wait(bound)).await;
    let runs = Arc::new(AtomicU32::new(0));
    let app = bank.app(move |Transaction(mut transaction): Tx| {
        let runs = runs.clone();
        async move {
            let half_done = async {
                add(&mut transaction, 1).await.unwrap();
                if runs.fetch_add(1, Ordering::SeqCst) == 0 {
                    // In the middle of a statement.
                    let long = sqlx::query("SELECT SLEEP(60)").execute(&mut *transaction);
                    long.await.unwrap();
                }
            };
            // As a time-out layer inside does it.
            match tokio::time::timeout(Duration::from_millis(500), half_done).await {
                Ok(()) => StatusCode::CREATED,
                Err(_) => StatusCode::REQUEST_TIMEOUT,
            }
        }
    });
    assert_eq!(app.post("one").await.status, StatusCode::REQUEST_TIMEOUT);
    // The server is still asleep over the statement; ended, it undoes the transaction.
    let asleep = "SELECT CAST(ID AS SIGNED) FROM information_schema.PROCESSLIST
        WHERE INFO = 'SELECT SLEEP(60)'";
    let asleep = bank.number(asleep).await;
    bank.run(&format!("KILL {asleep}")).await;
    let retry = app.retry("one").await;
    assert_eq!((retry.status, retry.is_replay()), (StatusCode::CREATED, false));
    assert_eq!((bank.balance().await, bank.records().await), (1, (1, 1)));
}

#[tokio::test]
async fn a_transaction_that_is_dropped_early_commits_with_the_record() {
    let bank = Bank::new().await;
    let app = bank.app(|Transaction(mut transaction): Tx| async move {
        add(&mut transaction, 1).await.unwrap();
        drop(transaction);
        StatusCode::CREATED
    });
    app.post("one").await;
    assert!(app.post("one").await.is_replay());
    assert_eq!((bank.balance().await, bank.records().await), (1, (1, 1)));
}

#[tokio::test]
async fn a_transaction_that_is_kept_is_rolled_back_when_it_is_let_go() {
    let bank = Bank::with(|store| store.wait(Duration::from_millis(50))).await;
    let kept: Arc<Mutex<Vec<MySqlTransaction>>> = Arc::default();
    let keep = kept.clone();
    let app = bank.app(move |Transaction(mut transaction): Tx| {
        let keep = keep.clone();
        async move {
            add(&mut transaction, 1).await.unwrap();
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
async fn savepoints_are_the_handlers_own() {
    let bank = Bank::new().await;
    let app = bank.app(|Transaction(mut transaction): Tx| async move {
        add(&mut transaction, 1).await.unwrap();
        let mut tried = transaction.begin().await.unwrap();
        add(&mut tried, 1).await.unwrap();
        tried.rollback().await.unwrap();
        StatusCode::CREATED
    });
    assert_eq!(app.post("one").await.status, StatusCode::CREATED);
    assert_eq!((bank.balance().await, bank.records().await), (1, (1, 1)));
}

#[tokio::test]
async fn a_commit_that_never_arrived_is_not_answered_for() {
    let bank = Bank::new().await;
    let wire = Wire::to(MariadbServer::shared().await.addr()).await;
    let bound = Duration::from_secs(5);
    let far = Bank::at(&wire.url_for(&bank.url), 4, |store| store.timeout(bound).wait(bound)).await;
    let app = far.app(work);
    wire.cut_before_one_with(b"COMMIT");
    let first = app.post("one").await;
    assert!(!wire.awaits_cut());
    assert_eq!((first.status.as_u16(), &*first.code()), (503, "store_unavailable"));
    let retry = app.retry("one").await;
    assert_eq!((retry.status, retry.is_replay()), (StatusCode::CREATED, false));
    assert_eq!((bank.balance().await, bank.records().await), (1, (1, 1)));
}

#[tokio::test]
async fn a_server_that_dies_under_the_handler_leaves_nothing() {
    let mut server = MariadbServer::start().await;
    server.query("CREATE TABLE retrysafe.account (id INT PRIMARY KEY, balance INT NOT NULL)").await;
    server.query("INSERT INTO retrysafe.account VALUES (1, 0)").await;
    let bound = Duration::from_secs(2);
    let bank = Bank::at(&server.url(), 4, |store| store.timeout(bound).wait(bound)).await;
    let (started, mut has_started) = mpsc::channel(9);
    let (go_on, goes_on) = watch::channel(false);
    let app = bank.app(move |Transaction(mut transaction): Tx| {
        let (started, mut goes_on) = (started.clone(), goes_on.clone());
        async move {
            if add(&mut transaction, 1).await.is_err() {
                return StatusCode::INTERNAL_SERVER_ERROR;
            }
            started.send(()).await.unwrap();
            goes_on.wait_for(|go_on| *go_on).await.unwrap();
            StatusCode::CREATED
        }
    });
    let first = tokio::spawn({
        let app = app.clone();
        async move { app.post("one").await }
    });
    has_started.recv().await.unwrap();
    server.kill().await;
    go_on.send(true).unwrap();
    let first = first.await.unwrap();
    assert_eq!((first.status.as_u16(), &*first.code()), (503, "store_unavailable"));
    server.restart().await;
    let retry = app.retry("one").await;
    assert_eq!((retry.status, retry.is_replay()), (StatusCode::CREATED, false));
    assert_eq!((bank.balance().await, bank.records().await), (1, (1, 1)));
}
