//! What the server undoes because of others: nothing of it stays, and the retry runs.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use axum::{extract::Request, http::StatusCode};
use retrysafe_axum::Transaction;
use retrysafe_sqlx::{Isolation, is_conflict};
use sqlx::PgConnection;
use tokio::sync::Barrier;

use crate::{Answer, App, Bank, Tx, credit, pair};

/// Of the first two handlers each waits for the other, in the middle of its work; later ones don't.
#[derive(Clone)]
struct Meeting {
    pair: Arc<Barrier>,
    runs: Arc<AtomicU32>,
}

impl Meeting {
    fn new() -> Self {
        Self { pair: pair(), runs: Arc::default() }
    }

    fn run(&self) -> u32 {
        self.runs.fetch_add(1, Ordering::SeqCst)
    }

    async fn meet(&self, run: u32) {
        if run < 2 {
            self.pair.wait().await;
        }
    }
}

fn failed(error: &sqlx::Error) -> StatusCode {
    if is_conflict(error) { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::IM_A_TEAPOT }
}

/// Two requests at once, and then retries of the one that was undone.
async fn two_at_once(app: &App) -> (Vec<StatusCode>, Vec<Answer>) {
    let (one, two) = tokio::join!(app.post("one"), app.post("two"));
    let mut statuses = vec![one.status, two.status];
    statuses.sort();
    (statuses, vec![app.retry("one").await, app.retry("two").await])
}

async fn add(transaction: &mut PgConnection, id: i32) -> sqlx::Result<()> {
    let add = "UPDATE account SET balance = balance + 1 WHERE id = $1";
    sqlx::query(add).bind(id).execute(transaction).await.map(drop)
}

#[tokio::test]
async fn a_deadlock_undoes_one_and_its_retry_runs() {
    let bank = Bank::new().await;
    let meeting = Meeting::new();
    let app = bank.app(move |Transaction(mut transaction): Tx| {
        let meeting = meeting.clone();
        async move {
            let run = meeting.run();
            let (first, second) = if run == 0 { (1, 2) } else { (2, 1) };
            let work = async {
                add(&mut transaction, first).await?;
                meeting.meet(run).await;
                add(&mut transaction, second).await
            };
            work.await.map_or_else(|error| failed(&error), |()| StatusCode::CREATED)
        }
    });
    let (statuses, retries) = two_at_once(&app).await;
    assert_eq!(statuses, [StatusCode::CREATED, StatusCode::SERVICE_UNAVAILABLE]);
    assert!(retries.iter().all(|retry| retry.status == StatusCode::CREATED));
    assert_eq!((bank.balance().await, bank.records().await), (2, (2, 2)));
}

/// Write skew: each reads what the other writes.
fn skew(bank: &Bank) -> App {
    let meeting = Meeting::new();
    bank.app(move |Transaction(mut transaction): Tx, request: Request| {
        let meeting = meeting.clone();
        async move {
            let one = request.headers()["idempotency-key"] == "one";
            let run = meeting.run();
            let work = async {
                let sum = "SELECT sum(balance) FROM account WHERE id < 3";
                sqlx::query(sum).execute(&mut *transaction).await?;
                meeting.meet(run).await;
                add(&mut transaction, if one { 1 } else { 2 }).await
            };
            work.await.map_or_else(|error| failed(&error), |()| StatusCode::CREATED)
        }
    })
}

#[tokio::test]
async fn a_serialization_failure_at_the_end_is_503_and_its_retry_runs() {
    let bank = Bank::with(|store| store.isolation(Isolation::Serializable)).await;
    let (statuses, retries) = two_at_once(&skew(&bank)).await;
    assert_eq!(statuses, [StatusCode::CREATED, StatusCode::SERVICE_UNAVAILABLE]);
    assert!(retries.iter().all(|retry| retry.status == StatusCode::CREATED));
    let sum = "SELECT sum(balance)::bigint FROM account";
    assert_eq!((bank.number(sum).await, bank.records().await), (2, (2, 2)));
}

#[tokio::test]
async fn a_level_below_lets_the_same_two_pass() {
    for level in [Isolation::ReadCommitted, Isolation::RepeatableRead] {
        let bank = Bank::with(|store| store.isolation(level)).await;
        let (statuses, _) = two_at_once(&skew(&bank)).await;
        assert_eq!(statuses, [StatusCode::CREATED; 2], "{level:?}");
    }
}

#[tokio::test]
async fn a_lost_update_under_repeatable_read_is_undone_and_its_retry_runs() {
    let bank = Bank::with(|store| store.isolation(Isolation::RepeatableRead)).await;
    let meeting = Meeting::new();
    let app = bank.app(move |Transaction(mut transaction): Tx| {
        let meeting = meeting.clone();
        async move {
            let run = meeting.run();
            let work = async {
                sqlx::query("SELECT 1 FROM account").execute(&mut *transaction).await?;
                meeting.meet(run).await;
                credit(&mut transaction).await
            };
            work.await.map_or_else(|error| failed(&error), |()| StatusCode::CREATED)
        }
    });
    let (statuses, retries) = two_at_once(&app).await;
    assert_eq!(statuses, [StatusCode::CREATED, StatusCode::SERVICE_UNAVAILABLE]);
    assert!(retries.iter().all(|retry| retry.status == StatusCode::CREATED));
    assert_eq!((bank.balance().await, bank.records().await), (2, (2, 2)));
}

#[tokio::test]
async fn duplicates_under_every_level_run_once() {
    for level in [Isolation::ReadCommitted, Isolation::RepeatableRead, Isolation::Serializable] {
        let bank = Bank::with(|store| store.isolation(level)).await;
        let other = Bank::at(&bank.url, 4, |store| store.isolation(level)).await;
        let apps = [bank.app(crate::work), other.app(crate::work)];
        for key in ["one", "two", "three", "four"] {
            let (one, two) = tokio::join!(apps[0].retry(key), apps[1].retry(key));
            assert_eq!([one.status, two.status], [StatusCode::CREATED; 2], "{level:?}");
            assert!(one.is_replay() != two.is_replay(), "{level:?}");
        }
        assert_eq!((bank.balance().await, bank.records().await), (4, (4, 4)), "{level:?}");
    }
}

#[tokio::test]
async fn an_error_that_the_handler_did_not_mind_is_503() {
    let bank = Bank::new().await;
    let app = bank.app(|Transaction(mut transaction): Tx| async move {
        credit(&mut transaction).await.unwrap();
        let wrong = sqlx::query("SELECT 1 / 0").execute(&mut *transaction).await;
        assert!(wrong.is_err());
        StatusCode::CREATED
    });
    let answer = app.post("one").await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (503, "store_unavailable"));
    assert_eq!((bank.balance().await, bank.records().await), (0, (0, 0)));
}

#[tokio::test]
async fn an_error_that_the_handler_refuses_with_is_kept_and_undone() {
    let bank = Bank::new().await;
    let app = bank.app(|Transaction(mut transaction): Tx| async move {
        credit(&mut transaction).await.unwrap();
        let taken = "INSERT INTO account VALUES (1, 0)";
        let taken = sqlx::query(taken).execute(&mut *transaction).await;
        assert!(taken.is_err());
        StatusCode::UNPROCESSABLE_ENTITY
    });
    assert_eq!(app.post("one").await.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(app.post("one").await.is_replay());
    assert_eq!((bank.balance().await, bank.records().await), (0, (1, 1)));
}

#[tokio::test]
async fn a_constraint_that_fails_at_the_commit_is_503() {
    let bank = Bank::new().await;
    bank.run("CREATE TABLE slip (account int REFERENCES account DEFERRABLE INITIALLY DEFERRED)")
        .await;
    let app = bank.app(|Transaction(mut transaction): Tx| async move {
        credit(&mut transaction).await.unwrap();
        let slip = "INSERT INTO slip VALUES (77)";
        sqlx::query(slip).execute(&mut *transaction).await.unwrap();
        StatusCode::CREATED
    });
    let answer = app.post("one").await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (503, "store_unavailable"));
    assert_eq!((bank.balance().await, bank.records().await), (0, (0, 0)));
}
