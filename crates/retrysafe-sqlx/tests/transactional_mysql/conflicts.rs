//! What the server undoes because of others: nothing of it stays, and the retry runs.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use axum::http::{HeaderMap, StatusCode};
use retrysafe_axum::{Phases, Transaction};
use retrysafe_sqlx::{Isolation, MySqlTransaction, is_conflict};
use sqlx::{Executor as _, MySqlConnection, mysql::MySqlPoolOptions};
use tokio::{sync::Barrier, time::timeout};

use crate::{App, Bank, PATIENCE, Tx, add};

/// How two transactions come to be in each other's way.
#[derive(Clone, Copy)]
enum Conflict {
    /// Each holds what the other one needs.
    Deadlock,
    /// Each has read what the other one writes.
    Skew,
    /// Both have read what both write.
    LostUpdate,
}

impl Conflict {
    async fn first(self, transaction: &mut MySqlConnection, one: bool) -> sqlx::Result<()> {
        match self {
            Self::Deadlock => add(transaction, if one { 1 } else { 2 }).await,
            Self::Skew | Self::LostUpdate => {
                let read = sqlx::query("SELECT balance FROM account WHERE id < 3");
                read.fetch_all(transaction).await.map(drop)
            }
        }
    }

    async fn second(self, transaction: &mut MySqlConnection, one: bool) -> sqlx::Result<()> {
        match self {
            Self::Deadlock => add(transaction, if one { 2 } else { 1 }).await,
            Self::Skew => add(transaction, if one { 1 } else { 2 }).await,
            Self::LostUpdate => add(transaction, 1).await,
        }
    }
}

/// Of the first two handlers each waits for the other in the middle of its work; later ones don't.
fn app(bank: &Bank, conflict: Conflict) -> App {
    let (pair, runs) = (Arc::new(Barrier::new(2)), Arc::new(AtomicU32::new(0)));
    bank.app(move |Transaction(mut transaction): Tx, headers: HeaderMap| {
        let (pair, runs) = (pair.clone(), runs.clone());
        async move {
            let one = headers["idempotency-key"] == "one";
            let run = runs.fetch_add(1, Ordering::SeqCst);
            let work = async {
                conflict.first(&mut transaction, one).await?;
                if run < 2 {
                    pair.wait().await;
                }
                conflict.second(&mut transaction, one).await
            };
            match work.await {
                Ok(()) => StatusCode::CREATED,
                Err(error) if is_conflict(&error) => StatusCode::SERVICE_UNAVAILABLE,
                Err(_) => StatusCode::IM_A_TEAPOT,
            }
        }
    })
}

/// Two at once, of which one is undone; then retries of both.
async fn undoes_one_and_its_retry_runs(bank: &Bank, conflict: Conflict) {
    let app = app(bank, conflict);
    let (one, two) = tokio::join!(app.post("one"), app.post("two"));
    let mut statuses = [one.status.as_u16(), two.status.as_u16()];
    statuses.sort();
    assert_eq!(statuses, [201, 503]);
    for key in ["one", "two"] {
        assert_eq!(app.retry(key).await.status, StatusCode::CREATED);
    }
    let changes = if let Conflict::Deadlock = conflict { 4 } else { 2 };
    let sum = bank.number("SELECT CAST(SUM(balance) AS SIGNED) FROM account").await;
    assert_eq!((sum, bank.records().await), (changes, (2, 2)));
}

#[tokio::test]
async fn a_deadlock_undoes_one_and_its_retry_runs() {
    undoes_one_and_its_retry_runs(&Bank::new().await, Conflict::Deadlock).await;
}

/// The server has ended the transaction, with its claim, and what is sent then is committed at once.
#[tokio::test]
async fn a_first_step_that_goes_on_after_a_deadlock_is_in_doubt() {
    let (bank, pair) = (Bank::new().await, Arc::new(Barrier::new(2)));
    let handler = move |Transaction(mut phases): Transaction<Phases<MySqlTransaction>>,
                        headers: HeaderMap| {
        let pair = pair.clone();
        async move {
            let (own, others) = if headers["idempotency-key"] == "one" { (1, 2) } else { (2, 1) };
            let reserved = phases.step("reserve", |mut transaction| async move {
                add(&mut transaction, own).await?;
                pair.wait().await;
                match add(&mut transaction, others).await {
                    Err(error) if is_conflict(&error) => add(&mut transaction, 3).await,
                    added => added,
                }
            });
            match reserved.await {
                Ok(()) => StatusCode::CREATED,
                Err(_) => StatusCode::SERVICE_UNAVAILABLE,
            }
        }
    };
    let app = bank.app(handler);
    let (one, two) = tokio::join!(app.post("one"), app.post("two"));
    let mut statuses = [one.status.as_u16(), two.status.as_u16()];
    statuses.sort();
    assert_eq!(statuses, [201, 500]);
    let undone = if one.status == StatusCode::CREATED { "two" } else { "one" };
    let retry = timeout(PATIENCE, app.post(undone)).await.expect("it does not run");
    assert_eq!((retry.status.as_u16(), &*retry.code()), (409, "outcome_unknown"));
    let balances = bank.number("SELECT CAST(SUM(balance) AS SIGNED) FROM account").await;
    assert_eq!(balances, 3, "two of the one that was kept, and what was sent after the deadlock");
}

/// A serialization failure is a deadlock here: what is read is locked.
#[tokio::test]
async fn write_skew_under_serializable_undoes_one_and_its_retry_runs() {
    let bank = Bank::with(|store| store.isolation(Isolation::Serializable)).await;
    undoes_one_and_its_retry_runs(&bank, Conflict::Skew).await;
}

#[tokio::test]
async fn a_level_below_lets_the_same_two_pass() {
    for level in [Isolation::ReadCommitted, Isolation::RepeatableRead] {
        let bank = Bank::with(|store| store.isolation(level)).await;
        let app = app(&bank, Conflict::Skew);
        let (one, two) = tokio::join!(app.post("one"), app.post("two"));
        assert_eq!([one.status, two.status], [StatusCode::CREATED; 2], "{level:?}");
    }
}

/// MariaDB with `innodb_snapshot_isolation`, which is its default from 11.6 on.
#[tokio::test]
async fn a_lost_update_under_snapshot_isolation_is_undone_and_its_retry_runs() {
    let bank = Bank::new().await;
    let pool = MySqlPoolOptions::new().after_connect(|connection, _| {
        Box::pin(async move {
            connection.execute("SET SESSION innodb_snapshot_isolation = ON").await.map(drop)
        })
    });
    let level = Isolation::RepeatableRead;
    let bank = Bank::on(&bank.url, pool, |store| store.isolation(level)).await;
    undoes_one_and_its_retry_runs(&bank, Conflict::LostUpdate).await;
}
