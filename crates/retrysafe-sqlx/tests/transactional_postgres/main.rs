//! The store whose records commit with the work, through its front door: a bank on Axum. On real
//! servers.

#![expect(clippy::unwrap_used, reason = "a test says what failed by where it panics")]

mod commits;
mod conflicts;
mod duplicates;
mod endings;
mod escapes;
mod functions;

use std::{sync::Arc, time::Duration};

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
    IdempotencyLayer, IdempotencyLayerBuilder, IdempotentRouter as _, OnUnknownOutcome, Scope,
    Transaction,
};
use retrysafe_sqlx::{PostgresTransaction, TransactionalPostgres, TransactionalPostgresBuilder};
use retrysafe_testkit::servers::PostgresServer;
use sqlx::{
    AssertSqlSafe, Connection as _, PgConnection,
    postgres::{PgPoolOptions, PgRow},
};
use tower::ServiceExt as _;

/// Longer than a machine that is busy with other things stands still.
const PATIENCE: Duration = Duration::from_secs(60);

type Tx = Transaction<PostgresTransaction>;

/// A database of its own with an account, and a store in it.
struct Bank {
    url: String,
    store: TransactionalPostgres,
}

impl Bank {
    async fn new() -> Self {
        Self::with(|store| store).await
    }

    async fn with(
        set: impl FnOnce(TransactionalPostgresBuilder) -> TransactionalPostgresBuilder,
    ) -> Self {
        let url = PostgresServer::shared().await.fresh_database().await;
        let accounts = "CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL);
            INSERT INTO account SELECT id, 0 FROM generate_series(1, 9) AS id";
        let mut connection = PgConnection::connect(&url).await.unwrap();
        sqlx::raw_sql(accounts).execute(&mut connection).await.unwrap();
        Self::at(&url, 10, set).await
    }

    /// Another process of it.
    async fn at(
        url: &str,
        connections: u32,
        set: impl FnOnce(TransactionalPostgresBuilder) -> TransactionalPostgresBuilder,
    ) -> Self {
        let pool = PgPoolOptions::new().max_connections(connections).connect(url).await.unwrap();
        let store = TransactionalPostgres::builder(pool).migrate().timeout(PATIENCE);
        let store = set(store.wait(PATIENCE)).open().await.unwrap();
        Self { url: url.to_owned(), store }
    }

    fn layer(
        &self,
    ) -> IdempotencyLayerBuilder<TransactionalPostgres, IdempotencyLayer<TransactionalPostgres>>
    {
        IdempotencyLayer::builder(self.store.clone(), Scope::shared())
            .settings(|settings| settings.store_deadline = PATIENCE * 2)
            // What is unknown stays so, for tests to see it.
            .on_unknown_outcome(OnUnknownOutcome::Refuse)
    }

    fn app<H: Handler<T, ()>, T: 'static>(&self, handler: H) -> App {
        App(Router::new().route("/", post(handler)).idempotent(self.layer().build().unwrap()))
    }

    /// Runs a statement beside the store's pool.
    async fn run(&self, sql: &str) -> Vec<PgRow> {
        let mut connection = PgConnection::connect(&self.url).await.unwrap();
        sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut connection).await.unwrap()
    }

    async fn number(&self, sql: &str) -> i64 {
        use sqlx::Row as _;
        self.run(sql).await[0].get(0)
    }

    async fn balance(&self) -> i64 {
        self.number("SELECT balance::bigint FROM account WHERE id = 1").await
    }

    /// How many records there are, and of those that finished.
    async fn records(&self) -> (i64, i64) {
        (
            self.number("SELECT count(*) FROM retrysafe_record").await,
            self.number("SELECT count(*) FROM retrysafe_record WHERE state = 1").await,
        )
    }
}

/// The work: one more on the account.
async fn credit(transaction: &mut PgConnection) -> sqlx::Result<()> {
    let credit = "UPDATE account SET balance = balance + 1 WHERE id = 1";
    sqlx::query(credit).execute(transaction).await.map(drop)
}

async fn work(Transaction(mut transaction): Tx) -> StatusCode {
    credit(&mut transaction).await.unwrap();
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
        // A body that breaks off is nobody's answer.
        let body = body.collect().await.map(|body| body.to_bytes()).ok();
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
            }
        };
        tokio::time::timeout(PATIENCE, answered).await.expect("an answer")
    }
}

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Option<Bytes>,
}

impl Answer {
    fn is_replay(&self) -> bool {
        self.headers.contains_key("idempotent-replayed")
    }

    /// The code of a problem.
    fn code(&self) -> String {
        let text = String::from_utf8(self.body.clone().unwrap().to_vec()).unwrap();
        let rest = text.split_once(r#""code":""#).map_or("", |(_, rest)| rest);
        rest.split('"').next().unwrap().to_owned()
    }
}

/// Two that wait for each other.
fn pair() -> Arc<tokio::sync::Barrier> {
    Arc::new(tokio::sync::Barrier::new(2))
}
