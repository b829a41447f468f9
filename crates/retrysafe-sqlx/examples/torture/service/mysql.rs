//! The service on MariaDB.

use std::net::SocketAddr;

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use retrysafe_axum::{IdempotencyLayer, IdempotentRouter as _, Scope, Transaction};
use retrysafe_core::failpoint;
use retrysafe_sqlx::{MySqlStore, MySqlTransaction, TransactionalMySql};
use sqlx::{MySqlConnection, MySqlPool, mysql::MySqlPoolOptions};

use super::{
    Answered, CONNECTIONS, LEASE, Order, answered,
    phases::{self, Accounts, Failed},
};
use crate::Mode;

pub(super) async fn router(mode: Mode, url: &str, processor: SocketAddr) -> Router {
    let pool = MySqlPoolOptions::new().max_connections(CONNECTIONS).connect(url).await.unwrap();
    match mode {
        Mode::Transactional => {
            let store = TransactionalMySql::builder(pool).open().await.unwrap();
            let layer = IdempotencyLayer::builder(store, Scope::shared()).build().unwrap();
            Router::new().route("/transfers", post(transactional)).idempotent(layer)
        }
        Mode::Phases => {
            let store = TransactionalMySql::builder(pool).open().await.unwrap();
            let layer = IdempotencyLayer::builder(store, Scope::shared()).lease(LEASE);
            let layer = layer.build().unwrap();
            let transfer = post(phases::transfer::<MySqlTransaction>);
            Router::new().route("/transfers", transfer).with_state(processor).idempotent(layer)
        }
        Mode::Layer => {
            let store = MySqlStore::builder(url).open().await.unwrap();
            let layer = IdempotencyLayer::builder(store, Scope::shared()).lease(LEASE);
            let layer = layer.build().unwrap();
            Router::new().route("/transfers", post(beside)).with_state(pool).idempotent(layer)
        }
    }
}

/// The transfer and its record are one transaction.
async fn transactional(
    Transaction(mut transaction): Transaction<MySqlTransaction>,
    headers: HeaderMap,
    body: String,
) -> Answered {
    answered(transfer(&mut transaction, &Order::read(&headers, &body)?).await)
}

/// The transfer is a transaction of its own, as a handler has it that knows of no other.
async fn beside(State(pool): State<MySqlPool>, headers: HeaderMap, body: String) -> Answered {
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

async fn transfer(connection: &mut MySqlConnection, order: &Order) -> sqlx::Result<Option<i64>> {
    let number = write_slip(connection, order).await?;
    for (account, amount) in order.changes() {
        change(connection, account, amount).await?;
    }
    let left = balance(connection, order.from).await?;
    failpoint::reached("after the work");
    Ok((left >= 0).then_some(number))
}

impl Accounts for MySqlTransaction {
    async fn reserve(mut self, order: Order) -> Result<Option<i64>, Failed> {
        let number = write_slip(&mut self, &order).await?;
        change(&mut self, order.from, -order.amount).await?;
        let left = balance(&mut self, order.from).await?;
        Ok((left >= 0).then_some(number))
    }

    async fn give_back(mut self, order: Order, number: i64) -> Result<(), Failed> {
        let slip = sqlx::query("DELETE FROM transfer WHERE number = ?").bind(number);
        slip.execute(&mut *self).await?;
        Ok(change(&mut self, order.from, order.amount).await?)
    }

    async fn book(mut self, order: Order, number: i64, charge: i64) -> Result<(), Failed> {
        let note = sqlx::query("UPDATE transfer SET charge = ? WHERE number = ?");
        note.bind(charge).bind(number).execute(&mut *self).await?;
        Ok(change(&mut self, order.to, order.amount).await?)
    }
}

/// The slip comes first: a refusal has something to undo.
async fn write_slip(connection: &mut MySqlConnection, order: &Order) -> sqlx::Result<i64> {
    let slip = "INSERT INTO transfer (request, payer, payee, amount) VALUES (?, ?, ?, ?)";
    let slip =
        sqlx::query(slip).bind(&order.request).bind(order.from).bind(order.to).bind(order.amount);
    Ok(slip.execute(connection).await?.last_insert_id().cast_signed())
}

async fn change(connection: &mut MySqlConnection, account: i64, amount: i64) -> sqlx::Result<()> {
    let change = sqlx::query("UPDATE account SET balance = balance + ? WHERE id = ?");
    change.bind(amount).bind(account).execute(connection).await?;
    failpoint::reached("during the work");
    Ok(())
}

async fn balance(connection: &mut MySqlConnection, account: i64) -> sqlx::Result<i64> {
    let balance = sqlx::query_scalar("SELECT balance FROM account WHERE id = ?").bind(account);
    balance.fetch_one(connection).await
}
