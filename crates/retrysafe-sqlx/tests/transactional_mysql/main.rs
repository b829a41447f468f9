//! The store whose records commit with the work, in MariaDB: what is the engine's own. What the engines
//! share is shown in PostgreSQL.

#![expect(clippy::unwrap_used, reason = "a test says what failed by where it panics")]

mod conflicts;
mod connections;
mod endings;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::Context,
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    handler::Handler,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use futures_util::{FutureExt as _, task::noop_waker_ref};
use http_body_util::BodyExt as _;
use retrysafe_axum::{
    Claim, Held, IdempotencyKey, IdempotencyLayer, IdempotentRouter as _, OnUnknownOutcome,
    OperationId, Owner, Scope, Store as _, SystemEntropy, Transaction,
};
use retrysafe_sqlx::{
    Isolation, MySqlStore, MySqlTransaction, TransactionalMySql, TransactionalMySqlBuilder,
};
use retrysafe_testkit::servers::{MariadbServer, Wire};
use sqlx::{
    AssertSqlSafe, Connection as _, MySqlConnection, Row as _,
    mysql::{MySqlPoolOptions, MySqlRow},
};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::timeout,
};
use tower::ServiceExt as _;

/// Longer than a machine that is busy with other things stands still.
const PATIENCE: Duration = Duration::from_secs(60);

type Tx = Transaction<MySqlTransaction>;

struct Bank {
    url: String,
    store: TransactionalMySql,
}

impl Bank {
    async fn new() -> Self {
        Self::with(|store| store).await
    }

    async fn with(
        set: impl FnOnce(TransactionalMySqlBuilder) -> TransactionalMySqlBuilder,
    ) -> Self {
        let url = MariadbServer::shared().await.fresh_database().await;
        let accounts = "CREATE TABLE account (id INT PRIMARY KEY, balance INT NOT NULL);
            INSERT INTO account VALUES (1, 0), (2, 0), (3, 0)";
        let mut connection = MySqlConnection::connect(&url).await.unwrap();
        sqlx::raw_sql(accounts).execute(&mut connection).await.unwrap();
        Self::at(&url, 10, set).await
    }

    /// Another process of it.
    async fn at(
        url: &str,
        connections: u32,
        set: impl FnOnce(TransactionalMySqlBuilder) -> TransactionalMySqlBuilder,
    ) -> Self {
        Self::on(url, MySqlPoolOptions::new().max_connections(connections), set).await
    }

    async fn on(
        url: &str,
        pool: MySqlPoolOptions,
        set: impl FnOnce(TransactionalMySqlBuilder) -> TransactionalMySqlBuilder,
    ) -> Self {
        let pool = pool.connect(url).await.unwrap();
        let store = TransactionalMySql::builder(pool).migrate().timeout(PATIENCE).wait(PATIENCE);
        Self { url: url.to_owned(), store: set(store).open().await.unwrap() }
    }

    fn app<H: Handler<T, ()>, T: 'static>(&self, handler: H) -> App {
        let layer = IdempotencyLayer::builder(self.store.clone(), Scope::shared())
            .settings(|settings| settings.store_deadline = PATIENCE * 2)
            .on_unknown_outcome(OnUnknownOutcome::Refuse);
        App(Router::new().route("/", post(handler)).idempotent(layer.build().unwrap()))
    }

    async fn run(&self, sql: &str) -> Vec<MySqlRow> {
        let mut connection = MySqlConnection::connect(&self.url).await.unwrap();
        sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut connection).await.unwrap()
    }

    async fn number(&self, sql: &str) -> i64 {
        self.run(sql).await[0].get(0)
    }

    async fn balance(&self) -> i64 {
        self.number("SELECT CAST(balance AS SIGNED) FROM account WHERE id = 1").await
    }

    /// How many records there are, and of those that finished.
    async fn records(&self) -> (i64, i64) {
        (
            self.number("SELECT COUNT(*) FROM retrysafe_record").await,
            self.number("SELECT COUNT(*) FROM retrysafe_record WHERE state = 1").await,
        )
    }
}

async fn add(transaction: &mut MySqlConnection, id: i32) -> sqlx::Result<()> {
    let add = "UPDATE account SET balance = balance + 1 WHERE id = ?";
    sqlx::query(add).bind(id).execute(transaction).await.map(drop)
}

async fn work(Transaction(mut transaction): Tx) -> StatusCode {
    add(&mut transaction, 1).await.unwrap();
    StatusCode::CREATED
}

#[derive(Clone)]
struct App(Router);

impl App {
    async fn post(&self, key: &str) -> Answer {
        let request = Request::post("/").header("idempotency-key", key);
        let response = self.0.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: head.status, headers: head.headers, body }
    }

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
        timeout(PATIENCE, answered).await.expect("an answer")
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

    fn code(&self) -> String {
        let text = String::from_utf8(self.body.to_vec()).unwrap();
        let rest = text.split_once(r#""code":""#).map_or("", |(_, rest)| rest);
        rest.split('"').next().unwrap().to_owned()
    }
}

#[tokio::test]
async fn the_work_and_its_record_commit_together() {
    let bank = Bank::new().await;
    let app = bank.app(work);
    let first = app.post("one").await;
    assert_eq!((first.status, first.is_replay()), (StatusCode::CREATED, false));
    assert!(app.post("one").await.is_replay());
    assert!(Bank::at(&bank.url, 2, |store| store).await.app(work).post("one").await.is_replay());
    assert_eq!((bank.balance().await, bank.records().await), (1, (1, 1)));
}

#[tokio::test]
async fn a_session_is_given_back_as_it_was() {
    let bank = Bank::new().await;
    let app = bank.app(|Transaction(mut transaction): Tx| async move {
        let wait = sqlx::query_scalar("SELECT CAST(@@innodb_lock_wait_timeout AS SIGNED)");
        let wait: i64 = wait.fetch_one(&mut *transaction).await.unwrap();
        wait.to_string()
    });
    let servers = bank.number("SELECT CAST(@@innodb_lock_wait_timeout AS SIGNED)").await;
    assert!(servers > 1);
    assert_eq!(app.post("one").await.body, servers.to_string());
}

#[tokio::test]
async fn what_is_refused_released_or_fails_is_undone() {
    for (status, kept) in [(422, true), (429, false), (500, false)] {
        let bank = Bank::new().await;
        let status = StatusCode::from_u16(status).unwrap();
        let runs = Arc::new(AtomicU32::new(0));
        let app = bank.app(move |Transaction(mut transaction): Tx| {
            let runs = runs.clone();
            async move {
                add(&mut transaction, 1).await.unwrap();
                let first = runs.fetch_add(1, Ordering::SeqCst) == 0;
                if first { status } else { StatusCode::CREATED }
            }
        });
        assert_eq!(app.post("one").await.status, status);
        assert_eq!(bank.balance().await, 0);
        assert_eq!(bank.records().await, (i64::from(kept), i64::from(kept)));
        let retry = app.post("one").await;
        assert_eq!(retry.is_replay(), kept);
        assert_eq!(retry.status, if kept { status } else { StatusCode::CREATED });
        assert_eq!(bank.balance().await, i64::from(!kept));
    }
}

#[tokio::test]
async fn who_ends_the_transaction_is_found_out() {
    for sql in [
        "COMMIT",
        "COMMIT; START TRANSACTION",
        "CREATE TABLE other (id INT)",
        "ROLLBACK",
        "ROLLBACK; START TRANSACTION",
    ] {
        let bank = Bank::new().await;
        let app = bank.app(move |Transaction(mut transaction): Tx| async move {
            add(&mut transaction, 1).await.unwrap();
            sqlx::raw_sql(sql).execute(&mut *transaction).await.unwrap();
            StatusCode::CREATED
        });
        let first = app.post("one").await;
        assert_eq!((first.status.as_u16(), &*first.code()), (500, "handler_failed"), "{sql}");
        let retry = app.post("one").await;
        assert_eq!((retry.status.as_u16(), &*retry.code()), (409, "outcome_unknown"), "{sql}");
        assert_eq!(bank.balance().await, i64::from(!sql.starts_with("ROLLBACK")), "{sql}");
    }
}

#[tokio::test]
async fn a_commit_by_hand_is_found_out_whatever_is_answered() {
    for status in [404, 500] {
        let bank = Bank::new().await;
        let app = bank.app(move |Transaction(mut transaction): Tx| async move {
            sqlx::raw_sql("COMMIT").execute(&mut *transaction).await.unwrap();
            StatusCode::from_u16(status).unwrap()
        });
        assert_eq!(app.post("one").await.code(), "handler_failed");
        assert_eq!(app.post("one").await.code(), "outcome_unknown");
    }
}

#[tokio::test]
async fn duplicates_under_every_level_run_once() {
    for level in [Isolation::ReadCommitted, Isolation::RepeatableRead, Isolation::Serializable] {
        let bank = Bank::with(|store| store.isolation(level)).await;
        let other = Bank::at(&bank.url, 4, |store| store.isolation(level)).await;
        let apps = [bank.app(work), other.app(work)];
        for key in ["one", "two", "three", "four"] {
            let (one, two) = tokio::join!(apps[0].retry(key), apps[1].retry(key));
            assert_eq!([one.status, two.status], [StatusCode::CREATED; 2], "{level:?}");
            assert!(one.is_replay() != two.is_replay(), "{level:?}");
        }
        assert_eq!((bank.balance().await, bank.records().await), (4, (4, 4)), "{level:?}");
    }
}

#[tokio::test]
async fn fifty_that_wait_for_another_process_do_not_exhaust_a_pool_of_two() {
    let bank = Bank::new().await;
    let keys: Vec<String> = (0..50).map(|number| format!("key-{number}")).collect();
    let mut elsewhere = MySqlConnection::connect(&bank.url).await.unwrap();
    let mut held = elsewhere.begin().await.unwrap();
    for key in &keys {
        let claim = "INSERT INTO retrysafe_record (id, fence, layout, state, previous_vanished,
                fingerprint, expires_at)
            VALUES (?, 1, 1, 2, 0, '', UTC_TIMESTAMP() + INTERVAL 1 DAY)";
        sqlx::query(claim).bind(&id(key).as_bytes()[..]).execute(&mut *held).await.unwrap();
    }
    let small = Bank::at(&bank.url, 2, |store| store).await;
    let app = small.app(work);
    let mut duplicates = JoinSet::new();
    for key in keys {
        let app = app.clone();
        duplicates.spawn(async move { app.post(&key).await });
    }
    let other = timeout(PATIENCE / 2, app.retry("other")).await.expect("a connection is left");
    assert_eq!(other.status, StatusCode::CREATED);
    for _ in 0..49 {
        let duplicate = duplicates.join_next().await.unwrap().unwrap();
        assert_eq!(duplicate.code(), "in_progress");
    }
    held.rollback().await.unwrap();
    let last = duplicates.join_next().await.unwrap().unwrap();
    assert_eq!(last.status, StatusCode::CREATED, "the one that was let wait goes on: {last:?}");
    assert_eq!((bank.balance().await, bank.records().await), (2, (2, 2)));
}

#[tokio::test]
async fn a_row_that_a_transaction_holds_is_in_flight() {
    let bank = Bank::with(|store| store.wait(Duration::from_millis(100))).await;
    let (starts, mut started) = mpsc::channel(9);
    let go_on = Arc::new(Semaphore::new(0));
    let goes_on = go_on.clone();
    let app = bank.app(move |Transaction(mut transaction): Tx| {
        let (starts, goes_on) = (starts.clone(), goes_on.clone());
        async move {
            add(&mut transaction, 1).await.unwrap();
            starts.send(()).await.unwrap();
            goes_on.acquire().await.unwrap().forget();
            StatusCode::CREATED
        }
    });
    let first = tokio::spawn({
        let app = app.clone();
        async move { app.post("one").await }
    });
    started.recv().await.unwrap();
    let wait = |store: TransactionalMySqlBuilder| store.wait(Duration::from_millis(100));
    let other = Bank::at(&bank.url, 4, wait).await;
    let ordinary = MySqlStore::builder(&bank.url).timeout(PATIENCE).open().await.unwrap();
    let ordinary = IdempotencyLayer::builder(ordinary, Scope::shared())
        .settings(|settings| settings.store_deadline = PATIENCE)
        .build()
        .unwrap();
    let ordinary = App(Router::new().route("/", post(|| async { "ran" })).idempotent(ordinary));
    for app in [&app, &other.app(work), &ordinary] {
        assert_eq!(app.post("one").await.code(), "in_progress");
    }
    go_on.add_permits(1);
    assert_eq!(first.await.unwrap().status, StatusCode::CREATED);
    assert!(ordinary.post("one").await.is_replay());
    assert_eq!((bank.balance().await, bank.records().await), (1, (1, 1)));
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_looked_up() {
    for arrives in [true, false] {
        let bank = Bank::new().await;
        let wire = Wire::to(MariadbServer::shared().await.addr()).await;
        let bound = Duration::from_secs(10);
        let far = wire.url_for(&bank.url);
        let far = Bank::at(&far, 4, |store| store.timeout(bound).wait(bound)).await;
        let app = far.app(work);
        match arrives {
            true => wire.cut_after_one_with(b"COMMIT"),
            false => wire.cut_before_one_with(b"COMMIT"),
        }
        let first = app.post("one").await;
        assert!(!wire.awaits_cut());
        assert!(!first.headers.contains_key("idempotency-status"));
        assert_eq!(first.status.as_u16(), if arrives { 201 } else { 503 });
        let retry = app.retry("one").await;
        assert_eq!((retry.status, retry.is_replay()), (StatusCode::CREATED, arrives));
        assert_eq!((bank.balance().await, bank.records().await), (1, (1, 1)));
    }
}

fn id(key: &str) -> OperationId {
    OperationId::new("default", &Scope::shared(), &IdempotencyKey::new(key).unwrap())
}

#[tokio::test]
async fn st11_a_claim_that_is_dropped_anywhere_leaves_no_transaction_behind() {
    let bank = Bank::new().await;
    let small = Bank::at(&bank.url, 1, |store| store).await;
    for polls in 0..40 {
        let claim = Claim {
            id: id(&format!("key-{polls}")),
            owner: Owner::new(&SystemEntropy),
            fingerprint: retrysafe_axum::Fingerprint {
                algorithm: retrysafe_axum::Algorithm::from_u32(1),
                head: [1; 32],
                body: None,
            },
            lease: PATIENCE,
            retention: PATIENCE,
            take_over: false,
        };
        {
            let mut begin = Box::pin(small.store.begin(&claim));
            for _ in 0..polls {
                if begin.poll_unpin(&mut Context::from_waker(noop_waker_ref())).is_ready() {
                    break;
                }
                tokio::time::sleep(Duration::from_micros(300)).await;
            }
        }
        let lease =
            retrysafe_axum::Lease { id: claim.id, owner: claim.owner, attempt: 0, fence: 0 };
        assert_eq!(small.store.release(&lease, PATIENCE).await.unwrap(), Held::Applied);
    }
    // The one connection of the pool is in nobody's transaction: what is done with it stays done.
    let app = small.app(work);
    assert_eq!(app.post("one").await.status, StatusCode::CREATED);
    assert_eq!((bank.balance().await, bank.records().await), (1, (1, 1)));
}
