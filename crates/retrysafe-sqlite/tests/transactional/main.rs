//! The store whose records commit with the work, through its front door: a bank on Axum.

#![expect(clippy::unwrap_used, reason = "a test says what failed by where it panics")]

mod completer;
mod crashes;
mod endings;
mod phases;
mod writer;

use std::{path::PathBuf, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    handler::Handler,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use http_body_util::BodyExt as _;
use retrysafe_axum::{
    Attempt, Begin, Claim, Fingerprint, IdempotencyKey, IdempotencyLayer, IdempotencyLayerBuilder,
    IdempotentRouter as _, Lease, OnUnknownOutcome, OperationId, Owner, Scope, Store as _,
    SystemEntropy, Transaction,
};
use retrysafe_sqlite::{
    SqliteTransaction, TransactionalSqlite, TransactionalSqliteBuilder, Undone,
};
use rusqlite::Connection;
use tempfile::TempDir;
use tower::ServiceExt as _;

/// Longer than a machine that is busy with other things stands still.
const PATIENCE: Duration = Duration::from_secs(60);

type Tx = Transaction<SqliteTransaction>;

const ACCOUNTS: &str = "CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
    INSERT INTO account VALUES (1, 0), (2, 0), (3, 0)";

/// A database of its own with accounts, and a store in it.
struct Bank {
    path: PathBuf,
    store: TransactionalSqlite,
    _directory: Option<TempDir>,
}

impl Bank {
    fn new() -> Self {
        Self::with(|store| store)
    }

    fn with(set: impl FnOnce(TransactionalSqliteBuilder) -> TransactionalSqliteBuilder) -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("bank.db");
        Connection::open(&path).unwrap().execute_batch(ACCOUNTS).unwrap();
        Self { _directory: Some(directory), ..Self::at(path, set) }
    }

    /// Another process of it.
    fn at(
        path: impl Into<PathBuf>,
        set: impl FnOnce(TransactionalSqliteBuilder) -> TransactionalSqliteBuilder,
    ) -> Self {
        let path = path.into();
        let store = TransactionalSqlite::builder(&path).busy_timeout(PATIENCE).hold(PATIENCE);
        Self { store: set(store).open().unwrap(), path, _directory: None }
    }

    fn layer(
        &self,
    ) -> IdempotencyLayerBuilder<TransactionalSqlite, IdempotencyLayer<TransactionalSqlite>> {
        IdempotencyLayer::builder(self.store.clone(), Scope::shared())
            .settings(|settings| settings.store_deadline = PATIENCE * 2)
    }

    /// What is unknown stays so, for tests to see it.
    fn app<H: Handler<T, ()>, T: 'static>(&self, handler: H) -> App {
        let layer = self.layer().on_unknown_outcome(OnUnknownOutcome::Refuse);
        App(Router::new().route("/", post(handler)).idempotent(layer.build().unwrap()))
    }

    fn number(&self, sql: &str) -> i64 {
        let connection = Connection::open(&self.path).unwrap();
        connection.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    fn balance(&self) -> i64 {
        self.number("SELECT balance FROM account WHERE id = 1")
    }

    /// How many operations are finished.
    fn finished(&self) -> i64 {
        self.number("SELECT count(*) FROM retrysafe_record WHERE state = 1")
    }

    /// An attempt, without an engine.
    async fn begin(&self, claim: &Claim) -> Option<(Lease, Attempt)> {
        let Begin::Acquired(acquired) = self.store.begin(claim).await.unwrap() else {
            return None;
        };
        let (attempt, fence) = (acquired.attempt, acquired.fence);
        let lease = Lease { id: claim.id, owner: claim.owner, attempt, fence };
        let key = IdempotencyKey::new("one").unwrap();
        let attempt = Attempt::new(claim.id, key, Scope::shared(), acquired);
        Some((lease.clone(), attempt.with_unit(self.store.unit(&lease))))
    }
}

fn claim(lease: Duration) -> Claim {
    let key = IdempotencyKey::new("one").unwrap();
    Claim {
        id: OperationId::new("default", &Scope::shared(), &key),
        owner: Owner::new(&SystemEntropy),
        fingerprint: Fingerprint {
            algorithm: retrysafe_axum::Algorithm::from_u32(1),
            head: [1; 32],
            body: Some(retrysafe_axum::BodyPart::IGNORED),
        },
        lease,
        retention: lease * 100,
        take_over: false,
    }
}

/// The work: one more on the account.
async fn credit(transaction: &SqliteTransaction, account: u32) -> Result<(), Undone> {
    let credit = "UPDATE account SET balance = balance + 1 WHERE id = ?1";
    let credited = transaction.run(move |tx| tx.execute(credit, [account])).await?;
    assert_eq!(credited.unwrap(), 1);
    Ok(())
}

async fn work(Transaction(transaction): Tx) -> StatusCode {
    credit(&transaction, 1).await.unwrap();
    StatusCode::CREATED
}

#[derive(Clone)]
struct App(Router);

impl App {
    async fn post(&self, key: &str) -> Answer {
        self.post_with(key, "").await
    }

    async fn post_with(&self, key: &str, body: &str) -> Answer {
        let request = Request::post("/").header("idempotency-key", key);
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let response = self.0.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: head.status, headers: head.headers, body }
    }

    /// As clients do: for as long as the answer says *try again*.
    async fn retry(&self, key: &str) -> Answer {
        let answered = async {
            loop {
                let answer = self.post(key).await;
                let again = answer.status == 503
                    || (answer.status == 409 && answer.code() == "in_progress");
                if !again {
                    return answer;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, answered).await.expect("an answer")
    }
}

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn is_replay(&self) -> bool {
        self.headers.contains_key("idempotent-replayed")
    }

    /// The code of a problem.
    fn code(&self) -> String {
        let text = String::from_utf8(self.body.to_vec()).unwrap();
        let rest = text.split_once(r#""code":""#).map_or("", |(_, rest)| rest);
        rest.split('"').next().unwrap().to_owned()
    }
}
