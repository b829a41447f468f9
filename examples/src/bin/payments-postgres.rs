//! A ledger in PostgreSQL whose clients may retry: each transfer and the record of its key are one
//! transaction, so money is neither made nor lost, whatever is killed.
//!
//! ```text
//! payments-postgres processor     a pretended card processor, a service of somebody else's
//! payments-postgres serve         the ledger
//!
//! POST /transfers   {"from":"alice","to":"bob","amount":1250}      moves money
//! POST /deposits    {"account":"alice","amount":1250,"card":"..."}  charges a card, and credits it, in
//!                                                                  phases
//! GET  /accounts    every balance
//! ```

use std::{
    collections::HashMap,
    fmt::Display,
    net::SocketAddr,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use clap::{Parser, Subcommand};
use reqwest::Client;
use retrysafe_axum::{
    IdempotencyLayer, IdempotentRouter as _, Key, MemoryStore, PhaseError, Phases, Problem,
    ProblemStyle, Scope, Transaction,
};
use retrysafe_sqlx::{PostgresTransaction, TransactionalPostgres, is_conflict};
use serde::{Deserialize, Serialize};
use sqlx::{
    Connection as _, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::{net::TcpListener, time};
use uuid::Uuid;

/// A ledger whose clients may retry.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// The ledger.
    Serve {
        /// Where to listen; port 0 takes a free one.
        #[arg(long, default_value = "127.0.0.1:3000")]
        listen: SocketAddr,
        /// The database: postgres://USER:PASSWORD@HOST/DATABASE.
        #[arg(long)]
        database: String,
        /// The card processor.
        #[arg(long, default_value = "http://127.0.0.1:4000")]
        processor: String,
    },
    /// The pretended card processor, which charges once per key.
    Processor {
        /// Where to listen; port 0 takes a free one.
        #[arg(long, default_value = "127.0.0.1:4000")]
        listen: SocketAddr,
    },
}

/// How many transfers may be under way at once: each has a connection of the pool.
const CONNECTIONS: u32 = 16;

#[tokio::main]
async fn main() -> ExitCode {
    let served = match Arguments::parse().role {
        Role::Serve { listen, database, processor } => {
            let known =
                database.starts_with("postgres://") || database.starts_with("postgresql://");
            let Some(database) = known.then(|| database.parse().ok()).flatten() else {
                eprintln!(
                    "payments-postgres: --database is postgres://USER:PASSWORD@HOST/DATABASE"
                );
                return ExitCode::from(2);
            };
            serve(listen, database, processor).await
        }
        Role::Processor { listen } => run_processor(listen).await,
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => {
            eprintln!("payments-postgres: {line}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(
    listen: SocketAddr,
    database: PgConnectOptions,
    processor: String,
) -> Result<(), String> {
    // A pool would try for half a minute before it says that nobody is there.
    let first = PgConnection::connect_with(&database).await.map_err(|error| {
        let why =
            error.as_database_error().map_or_else(|| error.to_string(), |it| it.message().into());
        failed(&format!("{}:{}", database.get_host(), database.get_port()), &why)
    })?;
    let _ = first.close().await;
    let pool = PgPoolOptions::new().max_connections(CONNECTIONS).connect_lazy_with(database);
    sqlx::raw_sql(LEDGER)
        .execute(&pool)
        .await
        .map_err(|error| failed("the ledger can't be made", &error))?;

    // The records are in the ledger's own database.
    let store = TransactionalPostgres::builder(pool.clone())
        .migrate()
        .open()
        .await
        .map_err(|error| error.to_string())?;
    // One trusted client; a real service takes the scope from its authentication.
    let idempotency = IdempotencyLayer::builder(store, Scope::shared())
        .namespace("payments")
        .require_key()
        // A deposit whose process dies between two phases holds its key for so long.
        .lease(Duration::from_secs(3))
        .build()
        .map_err(|error| error.to_string())?;

    let bank = Bank { pool, client: Client::new(), processor };
    let app = Router::new()
        .route("/transfers", post(transfer))
        .route("/deposits", post(deposit))
        .idempotent(idempotency.clone())
        .route("/accounts", get(accounts))
        .with_state(bank);
    answer(listen, app).await?;
    idempotency.engine().drain().await;
    Ok(())
}

/// Alice begins with 100.00, and there is a check that nobody owes anything.
const LEDGER: &str = "
    CREATE TABLE IF NOT EXISTS account (
        name text PRIMARY KEY,
        balance bigint NOT NULL CHECK (balance >= 0)
    );
    INSERT INTO account VALUES ('alice', 10000), ('bob', 0) ON CONFLICT DO NOTHING;
    CREATE TABLE IF NOT EXISTS entry (
        id text PRIMARY KEY,
        account text NOT NULL REFERENCES account,
        amount bigint NOT NULL,
        reference text NOT NULL
    )";

#[derive(Clone)]
struct Bank {
    pool: PgPool,
    client: Client,
    processor: String,
}

#[derive(Deserialize)]
struct NewTransfer {
    from: String,
    to: String,
    /// In cents.
    amount: u32,
}

#[derive(Serialize)]
struct Posted {
    reference: String,
}

/// All of this is in one transaction with the record of its key. If the process dies in the middle
/// nothing has happened; a refusal undoes what was done before it.
async fn transfer(
    Transaction(mut transaction): Transaction<PostgresTransaction>,
    Json(new): Json<NewTransfer>,
) -> Result<impl IntoResponse, Refused> {
    let reference = format!("tr_{}", Uuid::new_v4().simple());
    let amount = i64::from(new.amount);
    // In the order of their names, so that two transfers never wait for each other.
    let mut entries = [(&new.from, -amount), (&new.to, amount)];
    entries.sort();
    for (account, amount) in entries {
        post_entry(&mut transaction, account, amount, &reference).await?;
    }
    Ok((StatusCode::CREATED, Json(Posted { reference })))
}

#[derive(Deserialize)]
struct NewDeposit {
    account: String,
    /// In cents.
    amount: u32,
    card: String,
}

/// The card is charged elsewhere, which no transaction here can undo, and no transaction should stay
/// open for. So this is in phases: each is done once and kept, and a try that dies is followed by one
/// that goes on after the last. The processor gets the same key in every try.
async fn deposit(
    State(bank): State<Bank>,
    Transaction(mut phases): Transaction<Phases<PostgresTransaction>>,
    Json(new): Json<NewDeposit>,
) -> Result<impl IntoResponse, Refused> {
    // What can be refused without a charge is refused before it.
    let account = new.account.clone();
    let is_known = phases.step("look", |mut transaction| async move {
        let known = "SELECT FROM account WHERE name = $1";
        let known = sqlx::query(known).bind(account).fetch_optional(&mut *transaction).await?;
        Ok::<bool, Refused>(known.is_some())
    });
    if !is_known.await? {
        return Err(Refused::NoSuchAccount);
    }
    let charge = Charge { card: new.card, amount: new.amount };
    let charged: Charged = phases.phase("charge", |key| bank.charge(key, charge)).await?;

    // This commits with the answer.
    let transaction = phases.transaction().await.map_err(PhaseError::or_failed::<Refused>);
    let (mut transaction, reference) = (transaction?, charged.charge_id);
    post_entry(&mut transaction, &new.account, i64::from(new.amount), &reference).await?;
    Ok((StatusCode::CREATED, Json(Posted { reference })))
}

impl Bank {
    /// Charges a card, once for each key.
    async fn charge(&self, key: String, charge: Charge) -> Result<Charged, Refused> {
        let answer = self
            .client
            .post(format!("{}/charges", self.processor))
            .header("idempotency-key", key)
            .json(&charge)
            .timeout(Duration::from_secs(10))
            .send()
            .await
            .map_err(|_| Refused::ProcessorFailed)?;
        match answer.status() {
            StatusCode::CREATED => answer.json().await.map_err(|_| Refused::ProcessorFailed),
            StatusCode::PAYMENT_REQUIRED => Err(Refused::CardDeclined),
            _ => Err(Refused::ProcessorFailed),
        }
    }
}

async fn post_entry(
    transaction: &mut PgConnection,
    account: &str,
    amount: i64,
    reference: &str,
) -> Result<(), Refused> {
    let change = "UPDATE account SET balance = balance + $2 WHERE name = $1 AND balance + $2 >= 0";
    let changed = sqlx::query(change).bind(account).bind(amount).execute(&mut *transaction).await?;
    if changed.rows_affected() == 0 {
        let known = sqlx::query("SELECT FROM account WHERE name = $1").bind(account);
        let known = known.fetch_optional(transaction).await?.is_some();
        return Err(if known { Refused::NotEnough } else { Refused::NoSuchAccount });
    }
    let entry = "INSERT INTO entry (id, account, amount, reference) VALUES ($1, $2, $3, $4)";
    sqlx::query(entry)
        .bind(Uuid::new_v4().simple().to_string())
        .bind(account)
        .bind(amount)
        .bind(reference)
        .execute(transaction)
        .await?;
    Ok(())
}

async fn accounts(State(bank): State<Bank>) -> Result<Json<HashMap<String, i64>>, Refused> {
    let balances = sqlx::query_as("SELECT name, balance FROM account");
    let balances: Vec<(String, i64)> = balances.fetch_all(&bank.pool).await?;
    Ok(Json(balances.into_iter().collect()))
}

/// Why nothing was posted. A 4xx is kept, and every retry gets it; after a 5xx the retry runs.
enum Refused {
    NoSuchAccount,
    NotEnough,
    CardDeclined,
    ProcessorFailed,
    /// The next try goes on with it.
    Unfinished(Box<Problem>),
    Database(sqlx::Error),
}

impl From<PhaseError<Refused>> for Refused {
    fn from(error: PhaseError<Refused>) -> Self {
        match error {
            PhaseError::Failed(refused) => refused,
            other => Self::Unfinished(Box::new(other.to_problem())),
        }
    }
}

impl From<sqlx::Error> for Refused {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Self::NoSuchAccount => (StatusCode::NOT_FOUND, "no such account"),
            Self::NotEnough => (StatusCode::UNPROCESSABLE_ENTITY, "not enough money"),
            Self::CardDeclined => (StatusCode::PAYMENT_REQUIRED, "the card was declined"),
            Self::ProcessorFailed => (StatusCode::BAD_GATEWAY, "the processor did not answer"),
            Self::Unfinished(problem) => {
                return ProblemStyle::default().render(&problem).map(Body::from);
            }
            Self::Database(error) if is_conflict(&error) => {
                (StatusCode::SERVICE_UNAVAILABLE, "somebody was faster; try again")
            }
            Self::Database(error) => {
                eprintln!("payments-postgres: {error}");
                (StatusCode::INTERNAL_SERVER_ERROR, "the database failed")
            }
        };
        (status, text).into_response()
    }
}

/// What the processor is asked for.
#[derive(Clone, Deserialize, Serialize)]
struct Charge {
    card: String,
    amount: u32,
}

#[derive(Clone, Deserialize, Serialize)]
struct Charged {
    charge_id: String,
}

/// The processor's own books, by its own keys.
type Charges = Arc<Mutex<HashMap<String, u32>>>;

/// A service of somebody else's, with an idempotency of its own: here it is ours again, in memory.
async fn run_processor(listen: SocketAddr) -> Result<(), String> {
    let idempotency = IdempotencyLayer::builder(MemoryStore::new(), Scope::shared())
        .require_key()
        .build()
        .map_err(|error| error.to_string())?;
    let app = Router::new()
        .route("/charges", post(charge))
        .idempotent(idempotency)
        .route("/charges", get(charges))
        .with_state(Charges::default());
    answer(listen, app).await
}

async fn charge(
    State(charges): State<Charges>,
    Key(key): Key,
    Json(new): Json<Charge>,
) -> Response {
    if new.card == "declined" {
        return StatusCode::PAYMENT_REQUIRED.into_response();
    }
    // The money is taken, and then the answer takes its time.
    {
        let mut book = charges.lock().unwrap_or_else(PoisonError::into_inner);
        book.insert(key.as_str().to_owned(), new.amount);
    }
    time::sleep(Duration::from_millis(200)).await;
    let charge_id = format!("ch_{}", Uuid::new_v4().simple());
    (StatusCode::CREATED, Json(Charged { charge_id })).into_response()
}

#[derive(Serialize)]
struct Total {
    charges: usize,
    amount: u32,
}

async fn charges(State(charges): State<Charges>) -> Json<Total> {
    let book = charges.lock().unwrap_or_else(PoisonError::into_inner);
    Json(Total { charges: book.len(), amount: book.values().sum() })
}

async fn answer(listen: SocketAddr, app: Router) -> Result<(), String> {
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|error| failed(&format!("can't listen on {listen}"), &error))?;
    let address = listener.local_addr().map_err(|error| failed("no address", &error))?;
    let stop = stop_signal();
    println!("listening on http://{address}");
    let served = axum::serve(listener, app).with_graceful_shutdown(stop).await;
    served.map_err(|error| failed("the server failed", &error))
}

/// Ends with the first SIGINT, or the first SIGTERM from this call on.
fn stop_signal() -> impl Future<Output = ()> {
    #[cfg(unix)]
    let terminated = {
        use tokio::signal::unix::{SignalKind, signal};
        let signal = signal(SignalKind::terminate());
        async move {
            match signal {
                Ok(mut signal) => signal.recv().await,
                Err(_) => std::future::pending().await,
            }
        }
    };
    #[cfg(not(unix))]
    let terminated = std::future::pending::<Option<()>>();

    async move {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminated => {}
        }
    }
}

fn failed(what: &str, error: &dyn Display) -> String {
    format!("{what}: {error}")
}
