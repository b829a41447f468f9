//! The store whose records commit with the work.

mod builder;
mod claim;
mod end;

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use retrysafe_core::{
    About, Begin, Claim, Fingerprint, Found, Held, Lease, OperationId, Store, StoreError, Swept,
    Unit,
};
use sqlx::{PgPool, Postgres};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};

pub use self::builder::TransactionalPostgresBuilder;
use self::{builder::Settings, claim::Statements};
use super::{PostgresStore, failure::Place};
use crate::{
    failpoint,
    transactional::{Entered, Flights, SharedTransaction, Slot},
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
/// Beside the handler's own transaction: a plain read before it, the claim, the outcome. Each
/// operation in flight holds a connection of the pool, so bound them
/// (`EngineBuilder::max_in_flight`) by what the pool has, and don't let a handler wait for a second
/// connection while it holds this one.
///
/// # What the server should be set to
///
/// A process that is killed leaves a transaction that the server ends at once. A *machine* that
/// vanishes leaves one that lives until TCP notices: set `tcp_keepalives_idle` and
/// `idle_in_transaction_session_timeout`, because the key is in progress for so long. Nothing is
/// held in memory only: any number of processes may share the table, and an ordinary
/// [`PostgresStore`] may use it too.
#[derive(Clone)]
pub struct TransactionalPostgres {
    shared: Arc<Shared>,
}

struct Shared {
    pool: PgPool,
    /// The same table by ordinary verbs, for whatever is not part of a transaction.
    records: PostgresStore,
    statements: Statements,
    settings: Settings,
    flights: Flights<Postgres>,
    /// The right to wait on a row.
    waiting: Semaphore,
}

impl TransactionalPostgres {
    /// Sets up a store on the pool that the service uses itself.
    pub fn builder(pool: PgPool) -> TransactionalPostgresBuilder {
        TransactionalPostgresBuilder::new(pool)
    }

    fn place(&self) -> &Place {
        &self.shared.records.shared.place
    }
}

impl fmt::Debug for TransactionalPostgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionalPostgres")
            .field("server", &self.place().as_str())
            .finish_non_exhaustive()
    }
}

impl Store for TransactionalPostgres {
    fn about(&self) -> About {
        self.shared.records.about()
    }

    async fn begin(&self, claim: &Claim) -> Result<Begin, StoreError> {
        let start = Instant::now();
        let wait_until = start + self.shared.settings.wait;
        let until = start + self.shared.settings.timeout;
        let flights = &self.shared.flights;
        failpoint::reached("before the claim");
        loop {
            let entered = match flights.held(claim) {
                Some(held) => held,
                None => {
                    let mut connection = self.connection(until).await?;
                    // A replay takes no transaction.
                    if let Some(found) = self.standing(&mut connection, claim, until).await? {
                        return Ok(Begin::Found(found));
                    }
                    match flights.enter(claim) {
                        Entered::Place(place) => {
                            let opened = self.open(claim, connection, wait_until, until).await?;
                            return Ok(match opened {
                                Ok((transaction, acquired)) => {
                                    place.granted(acquired, Slot::new(transaction));
                                    failpoint::reached("after the claim");
                                    Begin::Acquired(acquired)
                                }
                                Err(found) => Begin::Found(found),
                            });
                        }
                        // waiters_eat_pool: the connection is given back before it waits.
                        other => other,
                    }
                }
            };
            match entered {
                Entered::Taken(seen) => {
                    let within = wait_until.saturating_duration_since(Instant::now());
                    if let Err(in_flight) = seen.over(within).await {
                        return Ok(in_flight);
                    }
                }
                Entered::Ours(acquired) => return Ok(Begin::Acquired(acquired)),
                Entered::Place(_) => unreachable!("a place was used above"),
            }
        }
    }

    /// The lease is as good as the transaction: nobody takes over what it holds.
    async fn renew(&self, lease: &Lease, lease_for: Duration) -> Result<Held, StoreError> {
        match lease_for.is_zero() {
            true => self.undo(lease).await,
            false if self.shared.flights.slot(lease).is_some() => Ok(Held::Applied),
            false => Ok(Held::Lost(Found::Free)),
        }
    }

    async fn complete(
        &self,
        lease: &Lease,
        fingerprint: &Fingerprint,
        payload: Bytes,
        retention: Duration,
    ) -> Result<Held, StoreError> {
        self.finish(lease, &end::Outcome { fingerprint, payload, retention }).await
    }

    async fn release(&self, lease: &Lease, _: Duration) -> Result<Held, StoreError> {
        self.undo(lease).await
    }

    async fn changed(
        &self,
        id: &OperationId,
        seen: u32,
        within: Duration,
    ) -> Result<(), StoreError> {
        if !self.shared.flights.over(id, seen, within).await {
            // In another process: nobody can see how far it is. Jitter keeps many from asking at
            // once.
            let poll = self.shared.records.shared.settings.poll_interval;
            sleep(poll.mul_f64(rand::random_range(0.5..1.5)).min(within)).await;
        }
        Ok(())
    }

    async fn sweep(&self, limit: usize) -> Result<Swept, StoreError> {
        self.shared.records.sweep(limit).await
    }

    fn unit(&self, lease: &Lease) -> Option<Arc<dyn Unit>> {
        self.shared.flights.slot(lease).map(|slot| slot as Arc<dyn Unit>)
    }
}
