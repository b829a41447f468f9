//! The store whose records commit with the work.

mod builder;
mod work;

use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use retrysafe_core::{
    Abandoned, About, Begin, Claim, Counts, Entry, FindAbandoned, Fingerprint, Held, Inspect,
    Lease, Operated, OperationId, Resolution, Store, StoreError, Swept, Unit, failpoint,
};

use self::work::{Ended, Work};
pub use self::{
    builder::TransactionalSqliteBuilder,
    work::{SqliteTransaction, Undone},
};
use crate::{OpenError, SqliteStore, records::Records, worker::Abandoned as WhenAbandoned};

/// A store in the service's own SQLite file, whose records commit with the work: what the handler
/// writes and the response that is kept are one transaction. It happens once, or not at all.
///
/// The records are a table, `retrysafe_record`, among the service's own. A layer on this store claims
/// the key, and the handler asks for a [`SqliteTransaction`] by
/// [`FromAttempt`](retrysafe_core::FromAttempt) or Axum's extractor. What it runs there, on the thread
/// that writes, is one transaction with its outcome:
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("shop.db");
/// # rusqlite::Connection::open(&path)?.execute_batch("CREATE TABLE orders (item TEXT)")?;
/// use std::io::Error;
///
/// use retrysafe_axum::{Once, Scope};
/// use retrysafe_sqlite::{SqliteTransaction, TransactionalSqlite};
///
/// let once = Once::builder(TransactionalSqlite::open(&path)?).build()?;
/// let place = |item: &'static str| {
///     once.run("place", &Scope::shared(), "order-1", item, move |context| async move {
///         let transaction: SqliteTransaction = context.lent().map_err(Error::other)?;
///         let placed = transaction
///             .run(move |tx| tx.execute("INSERT INTO orders VALUES (?1)", [item]))
///             .await
///             .map_err(Error::other)?;
///         placed.map_err(Error::other)
///     })
/// };
/// assert_eq!(place("book").await?.value, 1);
/// assert!(place("book").await?.replayed);
/// # let orders = rusqlite::Connection::open(&path)?;
/// # let placed: u32 = orders.query_row("SELECT count(*) FROM orders", [], |row| row.get(0))?;
/// # assert_eq!(placed, 1);
/// # Ok(())
/// # }
/// ```
///
/// # One writer
///
/// SQLite lets one transaction write at a time, so nothing else is written from the handler's first
/// [`run`](SqliteTransaction::run) until it has answered; not even another operation is claimed.
/// Replays and duplicates only read, and don't wait. So the transaction begins with the first `run`
/// and not with the request: compute, call and read bodies before it, and answer soon after it. One
/// that takes longer than [`hold`](TransactionalSqliteBuilder::hold), a second by default, is rolled
/// back, and answered with 503.
///
/// Everything that the handler writes goes through `run`. A connection of its own would wait for the
/// writer that the handler itself holds.
///
/// # What becomes of the work
///
/// | the handler | the work | the record |
/// |---|---|---|
/// | answers 2xx or 3xx, which is kept | committed | committed with it |
/// | answers 4xx or 5xx, which is kept | undone | written |
/// | answers what is released, or a 5xx that is not kept; panics | undone | the key is free |
/// | holds the writer for too long | undone | 503; the key is free |
/// | commits or rolls back by hand | undone: SQLite refuses it | 500, counted; the key is free |
/// | dies with its process | undone | the key is in progress until the lease is over, then free |
///
/// The claim is a transaction of its own, before. A process that dies leaves it behind, and it holds
/// the key until its lease is over; but all that was done in its name is undone, so then it is free,
/// whatever the layer is told to do about unknown outcomes. An attempt that is late writes nothing
/// any more: each transaction begins by looking whether it is still the live one. The exception are
/// [recovery points](retrysafe_core::Points): what they have kept stays, and the next attempt goes on
/// from there.
///
/// # The file
///
/// It is switched to the write-ahead log, which stays so. Any number of processes may share it, and
/// the service may write to it by other connections, which wait for each other. Databases that are
/// attached have commits of their own: they are not part of what is promised.
#[derive(Clone)]
pub struct TransactionalSqlite {
    records: SqliteStore,
    attempts: Arc<Attempts>,
}

/// What this process works on.
pub(crate) struct Attempts {
    works: Mutex<HashMap<OperationId, Arc<Work>>>,
    hold: Duration,
}

impl TransactionalSqlite {
    /// Opens a file with the default settings, or creates it; and its table of records, too.
    ///
    /// # Errors
    ///
    /// See [`TransactionalSqliteBuilder::open`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, OpenError> {
        Self::builder(path).open()
    }

    /// Sets up a store in the file that the service uses itself.
    pub fn builder(path: impl Into<PathBuf>) -> TransactionalSqliteBuilder {
        TransactionalSqliteBuilder::new(path.into())
    }

    /// The file, as it was named.
    pub fn path(&self) -> &Path {
        self.records.path()
    }

    fn works(&self) -> MutexGuard<'_, HashMap<OperationId, Arc<Work>>> {
        self.attempts.works.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The work of an attempt, which ends.
    fn take(&self, lease: &Lease) -> Option<Arc<Work>> {
        let mut works = self.works();
        works.get(&lease.id).filter(|work| work.is_of(lease))?;
        works.remove(&lease.id)
    }

    /// What was done is undone, and what phases have kept stays.
    async fn give_back(
        &self,
        lease: &Lease,
        keep_counters_for: Duration,
    ) -> Result<Held, StoreError> {
        if let Some(work) = self.take(lease) {
            // Whatever it was.
            let _ = work.end();
        }
        self.free(lease, keep_counters_for).await
    }

    async fn free(&self, lease: &Lease, keep_counters_for: Duration) -> Result<Held, StoreError> {
        let lease = lease.clone();
        let give_back = move |records: &Records<'_>| records.give_back(&lease, keep_counters_for);
        self.records.shared.writer.ask(WhenAbandoned::Runs, give_back).await
    }
}

impl Store for TransactionalSqlite {
    fn about(&self) -> About {
        self.records.about()
    }

    async fn begin(&self, claim: &Claim) -> Result<Begin, StoreError> {
        failpoint::reached("before the claim");
        let looked = claim.clone();
        let look = move |records: &Records<'_>| records.look(&looked);
        // What is answered from what is there does not wait for who writes.
        let begun = match self.records.shared.reader.ask(WhenAbandoned::Skipped, look).await? {
            Some(begun) => begun,
            None => self.records.begin(claim).await?,
        };
        if let Begin::Acquired(acquired) = begun {
            let mut works = self.works();
            let lease = Lease {
                id: claim.id,
                owner: claim.owner,
                attempt: acquired.attempt,
                fence: acquired.fence,
            };
            if works.get(&claim.id).is_none_or(|work| !work.is_of(&lease)) {
                let work = Work::new(self.records.clone(), lease, claim, self.attempts.hold);
                works.insert(claim.id, Arc::new(work));
            }
            drop(works);
            failpoint::reached("after the claim");
        }
        Ok(begun)
    }

    async fn renew(&self, lease: &Lease, lease_for: Duration) -> Result<Held, StoreError> {
        if lease_for.is_zero() {
            let keep = self.works().get(&lease.id).map_or(lease_for, |work| work.retention());
            return self.give_back(lease, keep).await;
        }
        self.records.renew(lease, lease_for).await
    }

    async fn complete(
        &self,
        lease: &Lease,
        fingerprint: &Fingerprint,
        payload: Bytes,
        retention: Duration,
    ) -> Result<Held, StoreError> {
        self.records.check_size(&payload)?;
        let Some(work) = self.take(lease) else {
            let lease = lease.clone();
            let outcome_of = move |records: &Records<'_>| records.outcome_of(&lease);
            return self.records.shared.reader.ask(WhenAbandoned::Skipped, outcome_of).await;
        };
        let failed = match work.end() {
            Ended::Without => {
                failpoint::reached("between rollback and refusal");
                match self.records.complete(lease, fingerprint, payload, retention).await {
                    Ok(held) => return Ok(held),
                    Err(error) => Undone::Store(Arc::new(error)).into_store_error(self.path()),
                }
            }
            Ended::With(open) => {
                match open.complete(fingerprint.clone(), payload, retention).await {
                    Ok(held) => return Ok(held),
                    Err(why) => why.into_store_error(self.path()),
                }
            }
            Ended::Undone(why) => why.into_store_error(self.path()),
        };
        // The key is free before the answer says that nothing has happened; and if it has after all,
        // this changes nothing.
        if let Err(error) = self.free(lease, work.retention()).await {
            tracing::error!(operation = %lease.id, %error, "a key is free when its lease is over");
        }
        Err(failed)
    }

    async fn release(
        &self,
        lease: &Lease,
        keep_counters_for: Duration,
    ) -> Result<Held, StoreError> {
        self.give_back(lease, keep_counters_for).await
    }

    async fn changed(
        &self,
        id: &OperationId,
        seen: u32,
        within: Duration,
    ) -> Result<(), StoreError> {
        self.records.changed(id, seen, within).await
    }

    async fn sweep(&self, limit: usize) -> Result<Swept, StoreError> {
        self.records.sweep(limit).await
    }

    fn unit(&self, lease: &Lease) -> Option<Arc<dyn Unit>> {
        let works = self.works();
        let work = works.get(&lease.id).filter(|work| work.is_of(lease))?;
        Some(work.clone())
    }
}

impl FindAbandoned for TransactionalSqlite {
    async fn abandoned(
        &self,
        after: Option<&OperationId>,
        limit: usize,
    ) -> Result<Vec<Abandoned>, StoreError> {
        let after = after.copied();
        let abandoned = move |records: &Records<'_>| records.abandoned(after.as_ref(), limit);
        self.records.shared.reader.ask(WhenAbandoned::Skipped, abandoned).await
    }
}

impl Inspect for TransactionalSqlite {
    async fn get(&self, id: &OperationId) -> Result<Option<Entry>, StoreError> {
        self.records.get(id).await
    }

    async fn page(
        &self,
        after: Option<&OperationId>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        self.records.page(after, limit).await
    }

    async fn count(&self) -> Result<Counts, StoreError> {
        self.records.count().await
    }

    async fn forget(&self, id: &OperationId) -> Result<Operated, StoreError> {
        self.records.forget(id).await
    }

    async fn resolve(
        &self,
        id: &OperationId,
        seen: u32,
        resolution: Resolution,
    ) -> Result<Operated, StoreError> {
        self.records.resolve(id, seen, resolution).await
    }
}

impl fmt::Debug for TransactionalSqlite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionalSqlite").field("path", &self.path()).finish_non_exhaustive()
    }
}
