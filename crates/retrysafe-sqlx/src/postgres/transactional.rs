//! The store whose records commit with the work.

mod builder;
mod side;

use std::{fmt, sync::Arc};

use sqlx::{PgPool, Postgres};

pub use self::builder::TransactionalPostgresBuilder;
use self::side::PostgresSide;
use crate::{
    PostgresStore,
    transactional::{Core, SharedTransaction, Side as _, TransactionalBuilder, store_of_core},
};

/// The transaction that a [`TransactionalPostgres`] lends to a handler.
pub type PostgresTransaction = SharedTransaction<Postgres>;

/// A store in the service's own database, whose records commit with the work: the claim, what the
/// handler writes, and the kept response are one transaction. It happens once, or not at all.
///
/// A layer on this store opens the transaction on the service's pool and claims the key as its first
/// statement. The handler asks for it, by [`FromAttempt`](retrysafe_core::FromAttempt) or Axum's
/// extractor, and runs its own statements on it. When it has answered, the outcome is written and the
/// transaction commits. Nothing else changes: keys, scopes, fingerprints and replays are the layer's.
///
/// ```no_run
/// # async fn example(pool: sqlx::PgPool, attempt: retrysafe_core::Attempt)
/// # -> Result<(), Box<dyn std::error::Error>> {
/// use retrysafe_core::FromAttempt as _;
/// use retrysafe_sqlx::{PostgresTransaction, TransactionalPostgres};
///
/// let store = TransactionalPostgres::builder(pool).migrate().open().await?;
///
/// // In a handler, which has the attempt among the extensions of its request:
/// let mut transaction = PostgresTransaction::from_attempt(&attempt)?;
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
/// | commits or rolls back by hand, or keeps the transaction | unknown | 500, counted; its outcome is unknown (D3) |
///
/// So an outcome is never unknown but by the handler's own doing, and what the layer is told to do
/// about unknown outcomes (`on_unknown_outcome`) hardly matters. It does for work *elsewhere*: a
/// handler that charges a card and then dies charges it again on the next try. Give the processor
/// [`Attempt::derive_key`](retrysafe_core::Attempt::derive_key), which is the same in every try. The
/// fence is no help here: an attempt that was undone has not been counted.
///
/// A commit whose answer is lost is looked up. If it can't be found the answer is 503, never
/// `not-recorded`, and the retry finds out: it waits for the row if the transaction is still under
/// way.
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
/// A duplicate waits up to [`wait`](TransactionalPostgresBuilder::wait), and is then in progress
/// (409). Within this process it waits without a connection; for another process it waits on the row,
/// with one, and no more of these than
/// [`max_waiting`](TransactionalPostgresBuilder::max_waiting) do so at once. A replay is one plain
/// read.
///
/// # Costs
///
/// Beside the handler's own transaction three requests: a look before it, which is all that a replay
/// is, the claim and the outcome. Each operation in flight holds a connection of the pool, so bound
/// them (`EngineBuilder::max_in_flight`) by what the pool has, and don't let a handler wait for a
/// second connection while it holds this one.
///
/// # What the server should be set to
///
/// A process that is killed leaves a transaction that the server ends at once. A *machine* that
/// vanishes leaves one that lives until TCP notices: set `tcp_keepalives_idle` and
/// `idle_in_transaction_session_timeout`, because the key is in progress for so long. Nothing is
/// held in memory only: any number of processes may share the table, and an ordinary
/// [`PostgresStore`](crate::PostgresStore) may use it too.
#[derive(Clone)]
pub struct TransactionalPostgres {
    core: Arc<Core<PostgresSide>>,
}

impl TransactionalPostgres {
    /// Sets up a store on the pool that the service uses itself.
    pub fn builder(pool: PgPool) -> TransactionalPostgresBuilder {
        TransactionalBuilder::new(pool.clone(), PostgresStore::from_pool(pool))
    }
}

store_of_core!(TransactionalPostgres);

impl fmt::Debug for TransactionalPostgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionalPostgres")
            .field("server", &self.core.side.place())
            .finish_non_exhaustive()
    }
}
