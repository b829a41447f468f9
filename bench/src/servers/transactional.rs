//! EXACT: a handler whose record commits with its work, beside the same handler with a transaction of
//! its own and no record at all; and with the least that a record can be, written by hand.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, Request, StatusCode},
    routing::post,
};
use futures_util::future::join_all;
use retrysafe_axum::{IdempotencyLayer, IdempotentRouter as _, Scope, Transaction};
use retrysafe_sqlx::{PostgresTransaction, TransactionalPostgres};
use retrysafe_testkit::servers::PostgresServer;
use sha2::{Digest as _, Sha256};
use sqlx::{AssertSqlSafe, PgConnection, PgPool, postgres::PgPoolOptions};
use tower::ServiceExt as _;

use super::{CONNECTIONS, PATIENCE, runtime};
use crate::{
    Outcome,
    measure::{Effort, in_turn},
    report::{Number, Row},
};

/// So many that transfers hardly ever wait for each other.
const ACCOUNTS: u64 = 10_000;

pub(crate) fn measure(effort: Effort) -> Outcome<Vec<Row>> {
    const LAYER: usize = 0;
    const BY_HAND: usize = 1;
    const REPLAY: usize = 2;
    const LEAST: usize = 3;
    const TURNS: usize = 100;

    let runtime = runtime()?;
    let server = runtime.block_on(PostgresServer::start());
    let Services { layer, by_hand, least } = runtime.block_on(Services::start(&server))?;
    // Once before it counts: the statements are prepared.
    for service in [&layer, &by_hand, &least] {
        runtime.block_on(round(service, TURNS, true))?;
    }
    let rounds = in_turn::<4>(effort.rounds(15), |variant| match variant {
        LAYER => runtime.block_on(round(&layer, TURNS, true)),
        BY_HAND => runtime.block_on(round(&by_hand, TURNS, true)),
        LEAST => runtime.block_on(round(&least, TURNS, true)),
        _ => runtime.block_on(round(&layer, TURNS, false)),
    })?;
    let rate = |variant: usize| Number::of(rounds.median(|it| it[variant]), 0, "/s").to_string();
    Ok(vec![
        Row::at_least(
            "EXACT",
            "PostgreSQL, 16 callers: first executions against the handler's own transaction",
            Number::ratio(rounds.ratio(LAYER, BY_HAND)),
            0.85,
        ),
        Row::shown(
            "EXACT",
            "PostgreSQL, 16 callers: the least that a record can be, by hand, against the same",
            Number::ratio(rounds.ratio(LEAST, BY_HAND)),
        ),
        Row::shown(
            "EXACT",
            "PostgreSQL, 16 callers: first executions against the least by hand",
            Number::ratio(rounds.ratio(LAYER, LEAST)),
        ),
        Row::shown(
            "EXACT",
            "PostgreSQL, 16 callers: replays against the handler's own transaction",
            Number::ratio(rounds.ratio(REPLAY, BY_HAND)),
        ),
        Row::shown(
            "EXACT",
            "PostgreSQL, 16 callers: with the record / by hand / replays / the least",
            [LAYER, BY_HAND, REPLAY, LEAST].map(rate).join(" / "),
        ),
    ])
}

struct Services {
    layer: Router,
    /// Without a record.
    by_hand: Router,
    /// With a record by hand: see [`recorded`].
    least: Router,
}

impl Services {
    async fn start(server: &PostgresServer) -> Outcome<Self> {
        let pool =
            || PgPoolOptions::new().max_connections(CONNECTIONS as u32).connect_lazy(&server.url());
        let with_layer = pool()?;
        let ledger = format!(
            "CREATE TABLE account (id bigint PRIMARY KEY, balance bigint NOT NULL);
            INSERT INTO account SELECT id, 1000000 FROM generate_series(0, {}) AS id;
            CREATE TABLE transfer (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                payer bigint NOT NULL, payee bigint NOT NULL, amount bigint NOT NULL)",
            ACCOUNTS - 1
        );
        sqlx::raw_sql(AssertSqlSafe(ledger)).execute(&with_layer).await?;
        let store = TransactionalPostgres::builder(with_layer.clone()).migrate().timeout(PATIENCE);
        let layer = IdempotencyLayer::builder(store.open().await?, Scope::shared())
            .settings(|settings| settings.store_deadline = PATIENCE * 2)
            .build()?;
        let same = "CREATE TABLE least (LIKE retrysafe_record INCLUDING ALL)";
        sqlx::raw_sql(same).execute(&with_layer).await?;
        Ok(Self {
            layer: Router::new().route("/", post(with_record)).idempotent(layer),
            by_hand: Router::new().route("/", post(alone)).with_state(pool()?),
            least: Router::new().route("/", post(recorded)).with_state(pool()?),
        })
    }
}

async fn with_record(
    Transaction(mut transaction): Transaction<PostgresTransaction>,
    body: String,
) -> Result<(StatusCode, String), StatusCode> {
    let number = transfer(&mut transaction, &body).await.map_err(failed)?;
    Ok((StatusCode::CREATED, number.to_string()))
}

async fn alone(
    State(pool): State<PgPool>,
    body: String,
) -> Result<(StatusCode, String), StatusCode> {
    let mut transaction = pool.begin().await.map_err(failed)?;
    let number = transfer(&mut transaction, &body).await.map_err(failed)?;
    transaction.commit().await.map_err(failed)?;
    Ok((StatusCode::CREATED, number.to_string()))
}

/// The least that a record which commits with the work can be: a claim that another process's claim
/// would meet, and the outcome. There is no look for a replay, no bound for who waits, no fingerprint to
/// compare, and nothing that finds out what became of a commit without an answer.
async fn recorded(
    State(pool): State<PgPool>,
    headers: HeaderMap,
    body: String,
) -> Result<(StatusCode, String), StatusCode> {
    const CLAIM: &str = "INSERT INTO least (id, owner, fence, layout, state, previous_vanished, fingerprint,
            lease_until, retention, expires_at)
        SELECT $1, $2, 1, 1, 0, false, $3, now + interval '30 s', interval '1 d', now + interval '1 d'
        FROM clock_timestamp() AS now ON CONFLICT (id) DO NOTHING RETURNING 1";
    const FINISH: &str =
        "UPDATE least SET state = 1, lease_until = NULL, retention = NULL, payload = $2,
            expires_at = clock_timestamp() + interval '1 d'
        WHERE id = $1 RETURNING 1";
    let id = Sha256::digest(headers.get("idempotency-key").map_or(&b""[..], |key| key.as_bytes()));
    let mut transaction = pool.begin().await.map_err(failed)?;
    let claim = sqlx::query(CLAIM).bind(&id[..]).bind(&id[..16]).bind([&id[..], &id[..]].concat());
    claim.fetch_one(&mut *transaction).await.map_err(failed)?;
    let number = transfer(&mut transaction, &body).await.map_err(failed)?;
    let outcome = [&id[..], &id[..], number.to_string().as_bytes()].concat();
    let finish = sqlx::query(FINISH).bind(&id[..]).bind(outcome);
    finish.fetch_one(&mut *transaction).await.map_err(failed)?;
    transaction.commit().await.map_err(failed)?;
    Ok((StatusCode::CREATED, number.to_string()))
}

fn failed(_: sqlx::Error) -> StatusCode {
    StatusCode::INTERNAL_SERVER_ERROR
}

/// Four statements.
async fn transfer(connection: &mut PgConnection, body: &str) -> sqlx::Result<i64> {
    let seed: u64 = body.parse().unwrap_or(0);
    let (from, to) = (seed % ACCOUNTS, (seed + ACCOUNTS / 2) % ACCOUNTS);
    let (from, to) = (from.min(to).cast_signed(), from.max(to).cast_signed());
    let change = "UPDATE account SET balance = balance + $2 WHERE id = $1";
    sqlx::query(change).bind(from).bind(-1_i64).execute(&mut *connection).await?;
    sqlx::query(change).bind(to).bind(1_i64).execute(&mut *connection).await?;
    let balance = "SELECT balance FROM account WHERE id = $1";
    let _: i64 = sqlx::query_scalar(balance).bind(from).fetch_one(&mut *connection).await?;
    let slip = "INSERT INTO transfer (payer, payee, amount) VALUES ($1, $2, 1) RETURNING number";
    sqlx::query_scalar(slip).bind(from).bind(to).fetch_one(connection).await
}

/// Transfers per second: new ones, or the last ones once more.
async fn round(service: &Router, turns: usize, new: bool) -> Outcome<f64> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let all = (CONNECTIONS * turns) as u64;
    let first = match new {
        true => NEXT.fetch_add(all, Ordering::Relaxed),
        // What the other service was asked for has no record, and would be new.
        false => 0,
    };
    let started = Instant::now();
    let callers = (0..CONNECTIONS).map(|caller| {
        let service = service.clone();
        tokio::spawn(async move {
            for turn in 0..turns {
                let number = first + (caller * turns + turn) as u64;
                let request = Request::post("/").header("idempotency-key", format!("key-{number}"));
                // Scattered over the accounts.
                let body = number.wrapping_mul(7_919).to_string();
                let response = service.clone().oneshot(request.body(Body::from(body))?).await?;
                let replayed = response.headers().contains_key("idempotent-replayed");
                if response.status() != StatusCode::CREATED || replayed == new {
                    return Err(format!("a transfer was answered {}", response.status()).into());
                }
            }
            Outcome::Ok(())
        })
    });
    for caller in join_all(callers).await {
        caller??;
    }
    Ok(all as f64 / started.elapsed().as_secs_f64())
}
