//! The work and its record are one transaction, whatever becomes of its commit.

use std::time::Duration;

use axum::http::StatusCode;
use retrysafe_axum::{IdempotencyLayer, IdempotentRouter as _, Scope, Transaction};
use retrysafe_sqlx::TransactionalPostgresBuilder;
use retrysafe_testkit::servers::{PostgresServer, Wire};
use sqlx::{Connection as _, PgConnection};

use crate::{App, Bank, PATIENCE, Tx, credit, work};

#[tokio::test]
async fn the_work_and_its_record_are_one_transaction() {
    let bank = Bank::new().await;
    let app = bank.app(work);
    let first = app.post("one").await;
    assert_eq!((first.status, first.is_replay()), (StatusCode::CREATED, false));
    let retry = app.post("one").await;
    assert_eq!((retry.status, retry.is_replay()), (StatusCode::CREATED, true));
    assert_eq!((bank.balance().await, bank.records().await), (1, (1, 1)));
    let same = "SELECT count(*) FROM retrysafe_record r, account a
        WHERE a.id = 1 AND r.xmin = a.xmin";
    assert_eq!(bank.number(same).await, 1, "one transaction wrote both");
    // Another process replays it, too.
    let other = Bank::at(&bank.url, 2, |store| store).await.app(work);
    assert!(other.post("one").await.is_replay());
    assert_eq!(other.post_with("one", "something else").await.code(), "key_reused");
}

#[tokio::test]
async fn one_transaction_and_three_requests_more_than_the_handler_by_itself() {
    let server = PostgresServer::start().await;
    let wire = Wire::to(server.addr()).await;
    let mut connection = PgConnection::connect(&server.url()).await.unwrap();
    let accounts = "CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL);
        INSERT INTO account VALUES (1, 0)";
    sqlx::raw_sql(accounts).execute(&mut connection).await.unwrap();
    // One connection, that is not asked whether it is alive.
    let pool = sqlx::postgres::PgPoolOptions::new()
        .max_connections(1)
        .test_before_acquire(false)
        .connect(&wire.url_for(&server.url()))
        .await
        .unwrap();
    let store = retrysafe_sqlx::TransactionalPostgres::builder(pool.clone()).migrate();
    let store = store.timeout(PATIENCE).open().await.unwrap();
    let layer = IdempotencyLayer::builder(store, Scope::shared()).build().unwrap();
    let router = axum::Router::new().route("/", axum::routing::post(work));
    let app = App(router.idempotent(layer));
    // By itself, and so that every statement is prepared.
    app.post("warm").await;
    let settled = async |before: u64| {
        // The pool looks at a connection that comes back, after the answer.
        while wire.round_trips() == before || pool.num_idle() == 0 {
            tokio::task::yield_now().await;
        }
        wire.round_trips()
    };
    let transactions = async || server.query("SELECT txid_snapshot_xmax(txid_current_snapshot())");
    let start = settled(0).await;
    let mut transaction = pool.begin().await.unwrap();
    credit(&mut transaction).await.unwrap();
    transaction.commit().await.unwrap();
    let by_itself = settled(start).await - start;

    let numbered = transactions().await.await.parse::<u64>().unwrap();
    let start = settled(0).await;
    assert_eq!(app.post("one").await.status, StatusCode::CREATED);
    let first = settled(start).await - start;
    assert_eq!(transactions().await.await.parse::<u64>().unwrap(), numbered + 1, "one transaction");
    assert_eq!(first, by_itself + 3, "a read, the claim and the outcome");

    let start = settled(0).await;
    assert!(app.post("one").await.is_replay());
    assert!(settled(start).await - start <= 2, "a read, and the pool's look at its connection");
    assert_eq!(transactions().await.await.parse::<u64>().unwrap(), numbered + 1);
}

fn patient(store: TransactionalPostgresBuilder, seconds: u64) -> TransactionalPostgresBuilder {
    let bound = Duration::from_secs(seconds);
    store.timeout(bound).wait(bound)
}

/// A bank at the end of a wire.
async fn line() -> (Wire, Bank) {
    let bank = Bank::new().await;
    let wire = Wire::to(PostgresServer::shared().await.addr()).await;
    let url = wire.url_for(&bank.url);
    let far = Bank::at(&url, 4, |store| patient(store, 5)).await;
    (wire, Bank { url: bank.url, ..far })
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_looked_up() {
    let (wire, bank) = line().await;
    let app = bank.app(work);
    wire.cut_after_one_with(b"COMMIT");
    let first = app.post("one").await;
    assert!(!wire.awaits_cut());
    assert_eq!((first.status, first.is_replay()), (StatusCode::CREATED, false));
    assert!(!first.headers.contains_key("idempotency-status"));
    assert!(app.post("one").await.is_replay());
    assert_eq!((bank.balance().await, bank.records().await), (1, (1, 1)));
}

#[tokio::test]
async fn a_commit_that_never_arrived_is_not_answered_for() {
    let (wire, bank) = line().await;
    let app = bank.app(work);
    wire.cut_before_one_with(b"COMMIT");
    let first = app.post("one").await;
    assert!(!wire.awaits_cut());
    assert_eq!(
        (first.status, &*first.code()),
        (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable")
    );
    assert!(!first.headers.contains_key("idempotency-status"));
    let retry = app.retry("one").await;
    assert_eq!((retry.status, retry.is_replay()), (StatusCode::CREATED, false));
    assert_eq!((bank.balance().await, bank.records().await), (1, (1, 1)));
}

#[tokio::test]
async fn a_commit_that_nobody_can_look_up_is_found_by_the_retry() {
    let (wire, bank) = line().await;
    let wire = std::sync::Arc::new(wire);
    let app = bank.app(work);
    app.post("warm").await;
    wire.cut_after_one_with(b"COMMIT");
    let unplugged = tokio::spawn({
        let wire = wire.clone();
        async move {
            while wire.awaits_cut() {
                tokio::task::yield_now().await;
            }
            wire.refuse().await;
        }
    });
    let first = app.post("one").await;
    unplugged.await.unwrap();
    wire.accept().await;
    // It was quick enough to look, or it says that it does not know.
    assert!(matches!(first.status.as_u16(), 201 | 503), "{first:?}");
    let retry = app.retry("one").await;
    assert_eq!((retry.status, retry.is_replay()), (StatusCode::CREATED, true));
    assert_eq!((bank.balance().await, bank.records().await), (2, (2, 2)));
}

#[tokio::test]
async fn a_server_that_dies_under_the_handler_leaves_nothing() {
    let mut server = PostgresServer::start().await;
    let accounts = "CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL)";
    server.query(accounts).await;
    server.query("INSERT INTO account VALUES (1, 0)").await;
    let bank = Bank::at(&server.url(), 4, |store| patient(store, 2)).await;
    let (started, mut has_started) = tokio::sync::mpsc::channel(9);
    let (go_on, mut goes_on) = tokio::sync::watch::channel(false);
    goes_on.mark_unchanged();
    let app = bank.app(move |Transaction(mut transaction): Tx| {
        let (started, mut goes_on) = (started.clone(), goes_on.clone());
        async move {
            if credit(&mut transaction).await.is_err() {
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
    assert_eq!(
        (first.status, &*first.code()),
        (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable")
    );
    server.restart().await;
    let retry = app.retry("one").await;
    assert_eq!((retry.status, retry.is_replay()), (StatusCode::CREATED, false));
    assert_eq!((bank.balance().await, bank.records().await), (1, (1, 1)));
}
