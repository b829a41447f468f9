//! The service that is killed: `POST /transfers` with `FROM TO AMOUNT`.

use std::{env, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode},
    middleware::{self, Next},
    response::Response,
    routing::post,
};
use futures_util::stream;
use retrysafe_axum::{IdempotencyLayer, IdempotentRouter as _, Scope, Transaction};
use retrysafe_sqlx::{PostgresStore, PostgresTransaction, TransactionalPostgres, failpoint};
use sqlx::{PgConnection, PgPool, postgres::PgPoolOptions};
use tokio::net::TcpListener;

use crate::Mode;

pub(crate) const MODE: &str = "RETRYSAFE_TORTURE_MODE";
pub(crate) const URL: &str = "RETRYSAFE_TORTURE_URL";
/// What it says first; the test harness talks on the same pipe.
pub(crate) const LISTENS: &str = "torture listens on ";

/// The points of each mode, in the order of a request.
pub(crate) fn points(mode: Mode) -> &'static [&'static str] {
    match mode {
        Mode::Transactional => &[
            "before the claim",
            "after BEGIN",
            "after the claim",
            "during the work",
            "after the work",
            "before the outcome",
            "before the commit",
            "after the commit",
            "between rollback and refusal",
            "before the answer",
            "during the answer",
            "after the answer",
        ],
        Mode::Layer => &[
            "between the commits",
            "during the work",
            "between the commits",
            "after the work",
            "between the commits",
            "before the answer",
            "during the answer",
            "after the answer",
        ],
    }
}

pub(crate) fn is_wanted() -> bool {
    env::var(MODE).is_ok()
}

pub(crate) async fn serve() {
    let mode = Mode::parse(&env::var(MODE).unwrap()).unwrap();
    let url = env::var(URL).unwrap();
    let pool = PgPoolOptions::new().max_connections(6).connect(&url).await.unwrap();
    let router = match mode {
        Mode::Transactional => {
            let store = TransactionalPostgres::builder(pool).open().await.unwrap();
            let layer = IdempotencyLayer::builder(store, Scope::shared()).build().unwrap();
            Router::new().route("/transfers", post(transactional)).idempotent(layer)
        }
        Mode::Layer => {
            let store = PostgresStore::builder(&url).open().await.unwrap();
            let layer = IdempotencyLayer::builder(store, Scope::shared())
                // What was killed is taken over soon.
                .lease(Duration::from_millis(500))
                .build()
                .unwrap();
            Router::new().route("/transfers", post(beside)).with_state(pool).idempotent(layer)
        }
    };
    let router = router.layer(middleware::from_fn(answer));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("\n{LISTENS}{}", listener.local_addr().unwrap());
    axum::serve(listener, router).await.unwrap();
}

/// The transfer and its record are one transaction.
async fn transactional(
    Transaction(mut transaction): Transaction<PostgresTransaction>,
    headers: HeaderMap,
    body: String,
) -> Result<(StatusCode, String), StatusCode> {
    transfer(&mut transaction, &headers, &body).await
}

/// The transfer is a transaction of its own, as a handler has it that knows of no other.
async fn beside(
    State(pool): State<PgPool>,
    headers: HeaderMap,
    body: String,
) -> Result<(StatusCode, String), StatusCode> {
    let failed = |_| StatusCode::INTERNAL_SERVER_ERROR;
    let mut transaction = pool.begin().await.map_err(failed)?;
    let answer = transfer(&mut transaction, &headers, &body).await?;
    if answer.0 == StatusCode::CREATED {
        transaction.commit().await.map_err(failed)?;
        failpoint::reached("between the commits");
    }
    Ok(answer)
}

async fn transfer(
    transaction: &mut PgConnection,
    headers: &HeaderMap,
    body: &str,
) -> Result<(StatusCode, String), StatusCode> {
    let failed = |_: sqlx::Error| StatusCode::INTERNAL_SERVER_ERROR;
    let numbers: Vec<i64> = body.split(' ').filter_map(|it| it.parse().ok()).collect();
    let [from, to, amount] = numbers[..] else { return Err(StatusCode::BAD_REQUEST) };
    let key = headers["idempotency-key"].to_str().unwrap();
    // The slip comes first: the refusal below has something to undo.
    let slip = "INSERT INTO transfer (key, payer, payee, amount) VALUES ($1, $2, $3, $4)
        RETURNING number";
    let slip = sqlx::query_scalar(slip).bind(key).bind(from).bind(to).bind(amount);
    let number: i64 = slip.fetch_one(&mut *transaction).await.map_err(failed)?;
    // In the order of the accounts, so that no two transfers wait for each other.
    let mut changes = [(from, -amount), (to, amount)];
    changes.sort();
    for (account, change) in changes {
        let change = sqlx::query("UPDATE account SET balance = balance + $2 WHERE id = $1")
            .bind(account)
            .bind(change);
        change.execute(&mut *transaction).await.map_err(failed)?;
        failpoint::reached("during the work");
    }
    let left = sqlx::query_scalar("SELECT balance FROM account WHERE id = $1").bind(from);
    let left: i64 = left.fetch_one(&mut *transaction).await.map_err(failed)?;
    failpoint::reached("after the work");
    if left < 0 {
        return Ok((StatusCode::UNPROCESSABLE_ENTITY, "not enough".to_owned()));
    }
    Ok((StatusCode::CREATED, format!("transfer {number}")))
}

/// Outside of the layer: what it answers goes out in two pieces.
async fn answer(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    failpoint::reached("before the answer");
    let (mut head, body) = response.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let middle = body.len() / 2;
    let pieces = [body.slice(..middle), body.slice(middle..)];
    let pieces = stream::unfold((pieces, 0), |(pieces, next)| async move {
        match next {
            1 => {
                // The first has left by now, as far as it will.
                tokio::task::yield_now().await;
                failpoint::reached("during the answer");
            }
            2 => {
                tokio::task::yield_now().await;
                failpoint::reached("after the answer");
                return None;
            }
            _ => {}
        }
        let piece: Bytes = pieces[next].clone();
        Some((Ok::<_, std::io::Error>(piece), (pieces, next + 1)))
    });
    // Its length is said, so that half an answer is not taken for one.
    head.headers.insert("content-length", body.len().into());
    Response::from_parts(head, Body::from_stream(pieces))
}
