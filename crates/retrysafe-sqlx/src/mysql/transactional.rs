//! The store whose records commit with the work.

mod builder;
mod side;

use std::{fmt, sync::Arc};

use sqlx::{MySql, MySqlPool};

pub use self::builder::TransactionalMySqlBuilder;
use self::side::MySqlSide;
use crate::{
    MySqlStore,
    transactional::{Core, SharedTransaction, Side as _, TransactionalBuilder, store_of_core},
};

/// How many connections of its own it has at most.
const LOOKS: u32 = 8;

/// The transaction that a [`TransactionalMySql`] lends to a handler.
pub type MySqlTransaction = SharedTransaction<MySql>;

/// A store in the service's own MySQL or MariaDB database, whose records commit with the work: the
/// claim, what the handler writes, and the kept response are one transaction. It happens once, or not
/// at all.
///
/// It is what `TransactionalPostgres` is in PostgreSQL: a layer on this store opens the transaction on the service's pool and claims the key as its first statement;
/// the handler runs its own statements on it; then the outcome is written and the transaction commits.
///
/// ```no_run
/// # async fn example(pool: sqlx::MySqlPool, attempt: retrysafe_core::Attempt)
/// # -> Result<(), Box<dyn std::error::Error>> {
/// use retrysafe_core::FromAttempt as _;
/// use retrysafe_sqlx::{MySqlTransaction, TransactionalMySql};
///
/// let store = TransactionalMySql::builder(pool).migrate().open().await?;
///
/// // In a handler, which has the attempt among the extensions of its request:
/// let mut transaction = MySqlTransaction::from_attempt(&attempt)?;
/// sqlx::query("UPDATE account SET balance = balance - 5 WHERE id = 1")
///     .execute(&mut *transaction)
///     .await?;
/// # Ok(())
/// # }
/// ```
///
/// # What becomes of the work
///
/// | the handler | the work | the record |
/// |---|---|---|
/// | answers 2xx or 3xx, which is kept | committed | committed with it |
/// | answers 4xx or 5xx, which is kept | undone | written |
/// | answers what is released, or a 5xx that is not kept; panics | undone | none: the key is free |
/// | dies with its process, or the server does | undone | none: the key is free |
/// | commits by hand, also by DDL; or rolls back and answers 2xx; or keeps the transaction | unknown | 500, counted; its outcome is unknown (D3) |
///
/// Two things are MySQL's own. The tables of the work must be transactional (InnoDB). And a deadlock
/// (1213) rolls the whole transaction back *and ends it*: what a handler does after that error is
/// committed statement by statement. So a handler that gets an error gives up, with a 5xx; one that
/// goes on and answers 2xx is found out, as is one that rolls back by hand.
///
/// A commit whose answer is lost is looked up. If it can't be found the answer is 503, never
/// `not-recorded`, and the retry finds out.
///
/// # Calls to other services
///
/// No transaction should be open while somebody else is called. `Phases` of `retrysafe` cut a handler
/// at its calls, and commit what is known between them, with the claim. From the first of these commits
/// on the attempt holds its operation by the layer's lease; an attempt that dies then, or fails, is
/// taken over by the next, which goes on after the last commit, with a higher fence.
///
/// # Duplicates
///
/// A duplicate waits up to [`wait`](TransactionalMySqlBuilder::wait), in whole seconds where it is
/// another process that it waits for, and is then in progress (409). Within this process it waits
/// without a connection; for another process it waits on the row, with one of the pool, and no more of
/// these than [`max_waiting`](TransactionalMySqlBuilder::max_waiting) do so at once.
///
/// # Costs
///
/// Beside the handler's own transaction six requests: a look at the record, what the session is set to
/// and back, the claim, the outcome and the check before it. Looks and replays go by a few
/// connections of the store's own, because sessions of the pool may be set to anything. Each
/// operation in flight holds a connection of the pool, so bound them (`EngineBuilder::max_in_flight`)
/// by what the pool has, and don't let a handler wait for a second one while it holds the first.
#[derive(Clone)]
pub struct TransactionalMySql {
    core: Arc<Core<MySqlSide>>,
}

impl TransactionalMySql {
    /// Sets up a store on the pool that the service uses itself.
    pub fn builder(pool: MySqlPool) -> TransactionalMySqlBuilder {
        TransactionalBuilder::new(pool.clone(), MySqlStore::from_pool(pool).max_connections(LOOKS))
    }
}

store_of_core!(TransactionalMySql);

impl fmt::Debug for TransactionalMySql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionalMySql")
            .field("server", &self.core.side.place())
            .finish_non_exhaustive()
    }
}
