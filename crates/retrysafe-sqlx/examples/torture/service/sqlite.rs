//! The service on SQLite: every process has the same file open.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use retrysafe_axum::{IdempotencyLayer, IdempotentRouter as _, Scope, Transaction};
use retrysafe_core::failpoint;
use retrysafe_sqlite::{SqliteStore, SqliteTransaction, TransactionalSqlite};
use rusqlite::{Connection, TransactionBehavior};

use super::{
    Answered, LEASE, Order, answered,
    phases::{self, Accounts, Failed},
};
use crate::Mode;

/// How long a connection of the handler's own waits for others that write.
const BUSY: Duration = Duration::from_secs(1);

pub(super) fn router(mode: Mode, file: &str, processor: SocketAddr) -> Router {
    let file = PathBuf::from(file);
    // The claim is committed before the work, with a lease.
    let layer = |store| IdempotencyLayer::builder(store, Scope::shared()).lease(LEASE);
    match mode {
        Mode::Transactional => {
            let layer = layer(TransactionalSqlite::open(file).unwrap()).build().unwrap();
            Router::new().route("/transfers", post(transactional)).idempotent(layer)
        }
        Mode::Phases => {
            let layer = layer(TransactionalSqlite::open(file).unwrap()).build().unwrap();
            let transfer = post(phases::transfer::<SqliteTransaction>);
            Router::new().route("/transfers", transfer).with_state(processor).idempotent(layer)
        }
        Mode::Layer => {
            let store = SqliteStore::open(file.with_file_name("records.db")).unwrap();
            let layer = IdempotencyLayer::builder(store, Scope::shared()).lease(LEASE);
            let layer = layer.build().unwrap();
            let file = Arc::<Path>::from(file);
            Router::new().route("/transfers", post(beside)).with_state(file).idempotent(layer)
        }
    }
}

/// The transfer and its record are one transaction.
async fn transactional(
    Transaction(transaction): Transaction<SqliteTransaction>,
    headers: HeaderMap,
    body: String,
) -> Answered {
    let order = Order::read(&headers, &body)?;
    answered(in_transaction(transaction, order).await)
}

/// In two runs, so that somebody may die between them.
async fn in_transaction(
    transaction: SqliteTransaction,
    order: Order,
) -> Result<Option<i64>, Failed> {
    let payer = order.from;
    let work = move |connection: &mut rusqlite::Transaction<'_>| -> rusqlite::Result<_> {
        let number = write_slip(connection, &order)?;
        for (account, amount) in order.changes() {
            change(connection, account, amount)?;
        }
        Ok(number)
    };
    let number = transaction.run(work).await??;
    let left = transaction.run(move |connection| balance(connection, payer)).await??;
    failpoint::reached("after the work");
    Ok((left >= 0).then_some(number))
}

/// The transfer is a transaction of its own, as a handler has it that knows of no other.
async fn beside(State(file): State<Arc<Path>>, headers: HeaderMap, body: String) -> Answered {
    let order = Order::read(&headers, &body)?;
    let transferred = tokio::task::spawn_blocking(move || transfer(&file, &order)).await;
    answered(transferred.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?)
}

fn transfer(file: &Path, order: &Order) -> rusqlite::Result<Option<i64>> {
    let mut connection = Connection::open(file)?;
    connection.busy_timeout(BUSY)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let number = write_slip(&transaction, order)?;
    for (account, amount) in order.changes() {
        change(&transaction, account, amount)?;
    }
    let left = balance(&transaction, order.from)?;
    failpoint::reached("after the work");
    if left < 0 {
        return Ok(None);
    }
    transaction.commit()?;
    failpoint::reached("between the commits");
    Ok(Some(number))
}

impl Accounts for SqliteTransaction {
    async fn reserve(self, order: Order) -> Result<Option<i64>, Failed> {
        let payer = order.from;
        let work = move |connection: &mut rusqlite::Transaction<'_>| -> rusqlite::Result<_> {
            let number = write_slip(connection, &order)?;
            change(connection, order.from, -order.amount)?;
            Ok(number)
        };
        let number = self.run(work).await??;
        let left = self.run(move |connection| balance(connection, payer)).await??;
        Ok((left >= 0).then_some(number))
    }

    async fn give_back(self, order: Order, number: i64) -> Result<(), Failed> {
        let work = move |connection: &mut rusqlite::Transaction<'_>| -> rusqlite::Result<_> {
            connection.execute("DELETE FROM transfer WHERE number = ?1", [number])?;
            change(connection, order.from, order.amount)
        };
        Ok(self.run(work).await??)
    }

    async fn book(self, order: Order, number: i64, charge: i64) -> Result<(), Failed> {
        let work = move |connection: &mut rusqlite::Transaction<'_>| -> rusqlite::Result<_> {
            let note = "UPDATE transfer SET charge = ?1 WHERE number = ?2";
            connection.execute(note, [charge, number])?;
            change(connection, order.to, order.amount)
        };
        Ok(self.run(work).await??)
    }
}

/// The slip comes first: a refusal has something to undo.
fn write_slip(connection: &Connection, order: &Order) -> rusqlite::Result<i64> {
    let slip = "INSERT INTO transfer (request, payer, payee, amount) VALUES (?1, ?2, ?3, ?4)";
    connection.execute(slip, (&order.request, order.from, order.to, order.amount))?;
    Ok(connection.last_insert_rowid())
}

fn change(connection: &Connection, account: i64, amount: i64) -> rusqlite::Result<()> {
    connection
        .execute("UPDATE account SET balance = balance + ?1 WHERE id = ?2", [amount, account])?;
    failpoint::reached("during the work");
    Ok(())
}

fn balance(connection: &Connection, account: i64) -> rusqlite::Result<i64> {
    let balance = "SELECT balance FROM account WHERE id = ?1";
    connection.query_row(balance, [account], |row| row.get(0))
}
