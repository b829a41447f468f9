//! The service on PostgreSQL.

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use retrysafe_axum::{IdempotencyLayer, IdempotentRouter as _, Scope, Transaction};
use retrysafe_sqlx::{PostgresStore, PostgresTransaction, TransactionalPostgres, failpoint};
use sqlx::{PgConnection, PgPool, postgres::PgPoolOptions};

use super::{Answered, CONNECTIONS, LEASE, Order, Transferred, answered};
use crate::Mode;

pub(super) async fn router(mode: Mode, url: &str) -> Router {
    let pool = PgPoolOptions::new().max_connections(CONNECTIONS).connect(url).await.unwrap();
    match mode {
        Mode::Transactional => {
            let store = TransactionalPostgres::builder(pool).open().await.unwrap();
            let layer = IdempotencyLayer::builder(store, Scope::shared()).build().unwrap();
            Router::new().route("/transfers", post(transactional)).idempotent(layer)
        }
        Mode::Layer => {
            let store = PostgresStore::builder(url).open().await.unwrap();
            let layer = IdempotencyLayer::builder(store, Scope::shared()).lease(LEASE);
            let layer = layer.build().unwrap();
            Router::new().route("/transfers", post(beside)).with_state(pool).idempotent(layer)
        }
    }
}

/// The transfer and its record are one transaction.
async fn transactional(
    Transaction(mut transaction): Transaction<PostgresTransaction>,
    headers: HeaderMap,
    body: String,
) -> Answered {
    answered(transfer(&mut transaction, &Order::read(&headers, &body)?).await)
}

/// The transfer is a transaction of its own, as a handler has it that knows of no other.
async fn beside(State(pool): State<PgPool>, headers: HeaderMap, body: String) -> Answered {
    let failed = |_| StatusCode::INTERNAL_SERVER_ERROR;
    let order = Order::read(&headers, &body)?;
    let mut transaction = pool.begin().await.map_err(failed)?;
    let transferred = transfer(&mut transaction, &order).await;
    if let Ok(Some(_)) = transferred {
        transaction.commit().await.map_err(failed)?;
        failpoint::reached("between the commits");
    }
    answered(transferred)
}

async fn transfer(transaction: &mut PgConnection, order: &Order) -> Transferred {
    // The slip comes first: the refusal below has something to undo.
    let slip = sqlx::query_scalar(
        "INSERT INTO transfer (request, payer, payee, amount) VALUES ($1, $2, $3, $4)
        RETURNING number",
    );
    let slip = slip.bind(&order.request).bind(order.from).bind(order.to).bind(order.amount);
    let number: i64 = slip.fetch_one(&mut *transaction).await?;
    for (account, change) in order.changes() {
        let change = sqlx::query("UPDATE account SET balance = balance + $2 WHERE id = $1")
            .bind(account)
            .bind(change);
        change.execute(&mut *transaction).await?;
        failpoint::reached("during the work");
    }
    let left = sqlx::query_scalar("SELECT balance FROM account WHERE id = $1").bind(order.from);
    let left: i64 = left.fetch_one(&mut *transaction).await?;
    failpoint::reached("after the work");
    Ok((left >= 0).then_some(number))
}
