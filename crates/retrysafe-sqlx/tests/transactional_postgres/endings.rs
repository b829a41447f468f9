//! What becomes of the work, by how the handler ended.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use futures_util::{StreamExt as _, stream};
use retrysafe_axum::Transaction;
use sqlx::Connection as _;

use crate::{Answer, App, Bank, Tx, credit};

/// A handler that does its work and then ends like this, the first time; 201 from then on.
async fn first_ends(
    bank: &Bank,
    end: impl Fn() -> Response + Clone + Send + Sync + 'static,
) -> App {
    let runs = Arc::new(AtomicU32::new(0));
    bank.app(move |Transaction(mut transaction): Tx| {
        let (end, runs) = (end.clone(), runs.clone());
        async move {
            credit(&mut transaction).await.unwrap();
            match runs.fetch_add(1, Ordering::SeqCst) {
                0 => end(),
                _ => StatusCode::CREATED.into_response(),
            }
        }
    })
}

async fn leaves_nothing(bank: &Bank, app: &App, first: Answer, status: u16) {
    assert_eq!(first.status, status, "{first:?}");
    assert_eq!((bank.balance().await, bank.records().await), (0, (0, 0)));
    let retry = app.post("one").await;
    assert_eq!((retry.status, retry.is_replay()), (StatusCode::CREATED, false));
    assert_eq!((bank.balance().await, bank.records().await), (1, (1, 1)));
}

#[tokio::test]
async fn a_refusal_that_is_kept_undoes_the_work() {
    for status in [StatusCode::UNPROCESSABLE_ENTITY, StatusCode::NOT_FOUND] {
        let bank = Bank::new().await;
        let app = first_ends(&bank, move || (status, "no").into_response()).await;
        let first = app.post("one").await;
        assert_eq!((first.status, first.is_replay()), (status, false));
        assert_eq!((bank.balance().await, bank.records().await), (0, (1, 1)));
        let retry = app.post("one").await;
        assert_eq!((retry.status, retry.is_replay()), (status, true));
        assert_eq!(retry.body, first.body);
        assert_eq!(bank.balance().await, 0);
    }
}

#[tokio::test]
async fn a_redirect_that_is_kept_keeps_the_work() {
    let bank = Bank::new().await;
    let app = first_ends(&bank, || StatusCode::SEE_OTHER.into_response()).await;
    app.post("one").await;
    assert!(app.post("one").await.is_replay());
    assert_eq!((bank.balance().await, bank.records().await), (1, (1, 1)));
}

#[tokio::test]
async fn what_is_released_or_fails_leaves_nothing() {
    for status in [429, 409, 500, 503, 408] {
        let bank = Bank::new().await;
        let status = StatusCode::from_u16(status).unwrap();
        let app = first_ends(&bank, move || status.into_response()).await;
        let first = app.post("one").await;
        leaves_nothing(&bank, &app, first, status.as_u16()).await;
    }
}

#[tokio::test]
async fn a_panic_leaves_nothing() {
    let bank = Bank::new().await;
    let app = first_ends(&bank, || panic!("as the test wants it")).await;
    let first = app.post("one").await;
    assert_eq!(first.code(), "handler_failed");
    leaves_nothing(&bank, &app, first, 500).await;
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
                credit(&mut transaction).await.unwrap();
                if runs.fetch_add(1, Ordering::SeqCst) == 0 {
                    // In the middle of a statement.
                    let long = sqlx::query("SELECT pg_sleep(60)").execute(&mut *transaction);
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
    let first = app.post("one").await;
    assert_eq!(first.status, StatusCode::REQUEST_TIMEOUT);
    // The server is still asleep over the statement; ended, it undoes the transaction.
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE query = 'SELECT pg_sleep(60)' AND pid <> pg_backend_pid()";
    bank.run(end).await;
    let retry = app.retry("one").await;
    assert_eq!((retry.status, retry.is_replay()), (StatusCode::CREATED, false));
    assert_eq!((bank.balance().await, bank.records().await), (1, (1, 1)));
}

#[tokio::test]
async fn a_transaction_that_is_dropped_early_commits_with_the_record() {
    let bank = Bank::new().await;
    let app = bank.app(|Transaction(mut transaction): Tx| async move {
        credit(&mut transaction).await.unwrap();
        drop(transaction);
        StatusCode::CREATED
    });
    app.post("one").await;
    assert!(app.post("one").await.is_replay());
    assert_eq!((bank.balance().await, bank.records().await), (1, (1, 1)));
}

#[tokio::test]
async fn a_handler_that_wants_no_transaction_is_recorded_all_the_same() {
    let bank = Bank::new().await;
    let app = bank.app(|| async { StatusCode::CREATED });
    app.post("one").await;
    assert!(app.post("one").await.is_replay());
    assert_eq!(bank.records().await, (1, 1));
}

#[tokio::test]
async fn the_handler_waits_for_locks_as_its_pool_does() {
    for expected in ["0", "7s"] {
        let unset = Bank::new().await;
        let set = format!(
            "DO $$ BEGIN EXECUTE
                format('ALTER DATABASE %I SET lock_timeout = %L', current_database(), '{expected}');
            END $$"
        );
        unset.run(&set).await;
        let bank = Bank::at(&unset.url, 10, |store| store).await;
        let app = bank.app(|Transaction(mut transaction): Tx| async move {
            let bound = sqlx::query_scalar("SHOW lock_timeout").fetch_one(&mut *transaction);
            bound.await.unwrap_or_else(|_: sqlx::Error| String::new())
        });
        assert_eq!(app.post("one").await.body.unwrap(), expected);
        // Of a key that was released before, too.
        let release = bank.app(|| async { StatusCode::TOO_MANY_REQUESTS });
        release.post("two").await;
        assert_eq!(app.post("two").await.body.unwrap(), expected);
    }
}

#[tokio::test]
async fn savepoints_are_the_handlers_own() {
    let bank = Bank::new().await;
    let app = bank.app(|Transaction(mut transaction): Tx| async move {
        credit(&mut transaction).await.unwrap();
        let mut inner = transaction.begin().await.unwrap();
        credit(&mut inner).await.unwrap();
        inner.rollback().await.unwrap();
        let mut inner = transaction.begin().await.unwrap();
        credit(&mut inner).await.unwrap();
        inner.commit().await.unwrap();
        StatusCode::CREATED
    });
    assert_eq!(app.post("one").await.status, StatusCode::CREATED);
    assert!(app.post("one").await.is_replay());
    assert_eq!((bank.balance().await, bank.records().await), (2, (1, 1)));
}

#[tokio::test]
async fn r5_a_stream_commits_at_its_clean_end() {
    for breaks in [true, false] {
        let bank = Bank::new().await;
        let app = bank.app(move |Transaction(mut transaction): Tx| async move {
            let work = stream::once(async move {
                credit(&mut transaction).await.unwrap();
                Ok(Bytes::from("done\n"))
            });
            let broken = || stream::iter(breaks.then(|| Err(std::io::Error::other("broken"))));
            let body = Body::from_stream(work.chain(broken()));
            ([(header::CONTENT_TYPE, "application/x-ndjson")], body)
        });
        let first = app.post("one").await;
        assert_eq!(first.body.is_none(), breaks);
        if breaks {
            assert_eq!((bank.balance().await, bank.records().await), (0, (0, 0)));
        } else {
            assert!(app.post("one").await.is_replay());
            assert_eq!((bank.balance().await, bank.records().await), (1, (1, 1)));
        }
    }
}

#[tokio::test]
async fn r4_a_response_that_is_too_long_commits_without_its_body() {
    let bank = Bank::new().await;
    let app = bank.app(|Transaction(mut transaction): Tx| async move {
        credit(&mut transaction).await.unwrap();
        vec![b'x'; 5 << 20]
    });
    let first = app.post("one").await;
    assert_eq!(first.body.unwrap().len(), 5 << 20);
    assert_eq!(app.post("one").await.code(), "response_unavailable");
    assert_eq!((bank.balance().await, bank.records().await), (1, (1, 1)));
}

#[tokio::test]
async fn a_client_that_hangs_up_changes_nothing() {
    let bank = Bank::new().await;
    let (started, mut has_started) = tokio::sync::mpsc::channel(9);
    let go_on = Arc::new(tokio::sync::Semaphore::new(0));
    let app = bank.app({
        let go_on = go_on.clone();
        move |Transaction(mut transaction): Tx| {
            let (started, go_on) = (started.clone(), go_on.clone());
            async move {
                credit(&mut transaction).await.unwrap();
                started.send(()).await.unwrap();
                let _ = go_on.acquire().await.unwrap();
                StatusCode::CREATED
            }
        }
    });
    let client = tokio::spawn({
        let app = app.clone();
        async move { app.post("one").await }
    });
    has_started.recv().await.unwrap();
    client.abort();
    go_on.add_permits(1);
    assert!(app.retry("one").await.is_replay());
    assert_eq!((bank.balance().await, bank.records().await), (1, (1, 1)));
}
