//! The store in MySQL or MariaDB: each verb is one statement, and a second one reads why it did not
//! apply.

mod builder;
mod call;
mod connections;
mod error;
mod records;
mod schema;
mod server;
mod transactional;

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use retrysafe_core::{
    About, Begin, Claim, ConfigError, Counts, Entry, Fingerprint, Found, Held, Inspect, Lease,
    Operated, OperationId, Resolution, Store, StoreError, StoreErrorKind, Swept,
    lifecycle::{Record, Step},
};
use sqlx::MySqlPool;
use tokio::time::{Instant, timeout};

pub use self::{
    builder::MySqlStoreBuilder,
    transactional::{MySqlTransaction, TransactionalMySql, TransactionalMySqlBuilder},
};
use self::{
    call::{Call, Inserted},
    connections::Connections,
    records::{Change, NOW, Records, SWEEP_BATCH, Shown},
};
use crate::{
    pause,
    table::{self, TableName},
    transactional::in_flight_elsewhere,
    watch::Watches,
};

/// How long an operator's question may take: it may be about millions of records.
const OPERATOR_TIMEOUT: Duration = Duration::from_secs(60);

/// A store in a table of MySQL 8.0, MariaDB 10.6, or later ones of either, for any number of processes
/// and machines.
///
/// Handles are cheap to clone and share their connections.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use retrysafe_core::{SharedStore, Store as _};
/// use retrysafe_sqlx::MySqlStore;
///
/// let url = "mysql://orders:secret@db.internal/orders";
/// let store = MySqlStore::builder(url).migrate().open().await?;
/// assert_eq!(store.about().engine, "mysql");
/// let store = SharedStore::new(store); // what a layer takes
/// # Ok(())
/// # }
/// ```
///
/// # One operation, one row
///
/// The operation's id is the primary key, and there is no other unique index. A claim is a plain
/// `INSERT`: of any number at once, one is granted and the others get error 1062, read the row, and
/// are answered by it. Whatever else changes a row is one `UPDATE` that says in its `WHERE` clause
/// what has to be true for it (the owner, the state, the clock), and that is judged by the number of
/// rows that matched. Every statement is a transaction of its own. There is no `INSERT IGNORE`, which
/// hides other errors, no `REPLACE`, which deletes, and no `ON DUPLICATE KEY UPDATE`, which does not
/// say which of the two it did.
///
/// | call | requests to the server |
/// |---|---|
/// | `begin` of a free key, `renew`, `complete`, `release` | 1 |
/// | `begin` that finds an attempt in flight | 2 |
/// | `begin` that replays | 2, or 3 without a synchronous binary log |
/// | `begin` of a released, lapsed or expired record | 3 |
///
/// The first use of a statement on a connection is one more, to prepare it. What a verb answers that
/// does not apply is read by one more.
///
/// InnoDB shows a commit to others before it is on the disk, unless it goes through a binary log with
/// `sync_binlog = 1` first. Where there is none (MariaDB's default), a replay, and a repeated call that
/// finds what its first try did, therefore change one byte of the record, and answer when that is
/// acknowledged: what was shown before is on the disk then.
///
/// # What the server has to be
///
/// Checked when the store is opened, which refuses with one line that says what to do: the version,
/// that it may be written (never a replica), that the table is there, is of InnoDB, has the columns
/// and the one unique index that [`schema`](Self::schema) describes, and may be used by this user. A
/// Galera cluster, or a replication group with several primaries, is refused: there a row that one
/// node shows may be old.
///
/// A proxy in between must not send reads to replicas. The store's user should not have `SUPER` (or
/// `READ ONLY ADMIN`): with it, it could go on writing to a primary that was demoted.
///
/// It does not depend on the server's default isolation level, `autocommit`, `sql_mode` or time zone:
/// every session is set. Leases and retention are judged by the server's clock, in UTC (ST7).
///
/// `max_allowed_packet` limits the payload ([`About::max_payload`]): MariaDB's default is 16 MiB,
/// MySQL's 64 MiB.
///
/// # What it survives
///
/// With `innodb_flush_log_at_trx_commit = 1` (the default) and, if there is a binary log,
/// `sync_binlog = 1`, whatever was acknowledged survives the crash of any process and the loss of
/// power. Weaker settings are reported in the log when the store is opened. What a *failover*
/// survives depends on the replication: an asynchronous replica may lack the last claims, and an
/// operation may then run again.
///
/// # When the server is away
///
/// A call answers [`Unreachable`](StoreErrorKind::Unreachable) if no connection came about, so that
/// nothing was sent; [`Unavailable`](StoreErrorKind::Unavailable) or
/// [`Timeout`](StoreErrorKind::Timeout) if the connection broke, or nothing was answered within
/// [`timeout`](MySqlStoreBuilder::timeout), after something was sent. A call whose connection
/// broke is repeated on another one first, because every verb may be (ST4). A connection on which an
/// answer is missing is never used again, and a server that hangs has no more than
/// [`max_connections`](MySqlStoreBuilder::max_connections) statements of a store to work on at a time.
/// When the server is back, so is the store.
#[derive(Clone)]
pub struct MySqlStore {
    shared: Arc<Shared>,
}

struct Shared {
    connections: Connections,
    records: Records,
    watches: Watches,
    timeout: Duration,
    poll_interval: Duration,
    max_payload: usize,
    /// Whether what the server shows may be lost again.
    confirms: bool,
}

impl MySqlStore {
    /// Sets up a store. The URL is sqlx's: `mysql://USER:PASSWORD@HOST:PORT/DATABASE`, with `ssl-mode`
    /// and others as parameters. TLS is used if the server offers it (`ssl-mode=VERIFY_IDENTITY`
    /// insists, and checks whose it is); without it MySQL's usual way to check a password,
    /// `caching_sha2_password`, needs sqlx's feature `mysql-rsa`.
    pub fn builder(url: impl AsRef<str>) -> MySqlStoreBuilder {
        MySqlStoreBuilder::from_url(url.as_ref())
    }

    /// Sets up a store that connects as an application's pool does: the same server, user, TLS and
    /// database, also when the pool's options are set anew while it runs.
    ///
    /// The connections are the store's own, at most
    /// [`max_connections`](MySqlStoreBuilder::max_connections). A session of the application may be
    /// set to anything; and if a lease could only be renewed while the application leaves a
    /// connection of its pool unused, a busy application would lose its leases, and operations would
    /// run twice.
    ///
    /// ```no_run
    /// # async fn example(pool: sqlx::MySqlPool) -> Result<(), Box<dyn std::error::Error>> {
    /// use retrysafe_sqlx::MySqlStore;
    ///
    /// let store = MySqlStore::from_pool(pool).table("orders.idempotency").open().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn from_pool(pool: MySqlPool) -> MySqlStoreBuilder {
        MySqlStoreBuilder::from_pool(pool)
    }

    /// The name of the table, unless another is set.
    pub const DEFAULT_TABLE: &'static str = table::DEFAULT;

    /// The statement that creates the table, for migrations that are run by something else.
    ///
    /// ```
    /// use retrysafe_sqlx::MySqlStore;
    ///
    /// let schema = MySqlStore::schema("orders.idempotency")?;
    /// assert!(schema.contains("CREATE TABLE IF NOT EXISTS `orders`.`idempotency`"));
    /// # Ok::<(), retrysafe_core::ConfigError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If that is no name for a table: see [`MySqlStoreBuilder::table`].
    pub fn schema(table: &str) -> Result<String, ConfigError> {
        TableName::parse(table).map(|table| schema::schema(&table))
    }

    fn from_shared(shared: Shared) -> Self {
        Self { shared: Arc::new(shared) }
    }

    fn records(&self) -> &Records {
        &self.shared.records
    }

    fn call(&self) -> Call<'_> {
        Call::new(&self.shared.connections, self.shared.timeout)
    }

    fn operators_call(&self) -> Call<'_> {
        Call::new(&self.shared.connections, self.shared.timeout.max(OPERATOR_TIMEOUT))
    }

    /// A verb that needs the lease: `change`, or what `judge` says of the record that it missed.
    async fn held(
        &self,
        lease: &Lease,
        change: Change<'_>,
        judge: impl Fn(Record) -> Step<Held>,
    ) -> Result<Held, StoreError> {
        let call = self.call();
        let held = loop {
            if self.records().change(&call, lease, &change).await? {
                break Held::Applied;
            }
            let Some(record) = self.records().find(&call, &lease.id).await? else {
                break Held::Lost(Found::Free);
            };
            if record.is_expired(NOW) {
                break Held::Lost(Found::Free);
            }
            let shown = Shown::from(&record);
            let Step { answer, write } = judge(record);
            // With something to write it would apply now: its attempt began in between, by a copy of
            // its claim.
            let is_outcome = matches!(answer, Held::Applied | Held::Lost(Found::Finished { .. }));
            if write.is_none() && (!is_outcome || self.is_kept(&call, &shown).await?) {
                break answer;
            }
        };
        self.shared.watches.wake(&lease.id);
        Ok(held)
    }

    /// ST9: whether the record is still as it was shown, and will be after a crash. Asked before
    /// somebody is told that an earlier try did it, or what the outcome is.
    async fn is_kept(&self, call: &Call<'_>, shown: &Shown) -> Result<bool, StoreError> {
        Ok(!self.shared.confirms || self.records().confirm(call, shown).await?)
    }

    /// An operator's change, if `judge` has one.
    async fn operate(
        &self,
        id: &OperationId,
        judge: impl Fn(Record) -> Step<Operated>,
    ) -> Result<Operated, StoreError> {
        // Repeated, it would not be the same change any more: the record belongs to nobody.
        let call = self.operators_call().once();
        loop {
            let record = self.records().find(&call, id).await?;
            let Some(record) = record.filter(|record| !record.is_expired(NOW)) else {
                return Ok(Operated::NotFound);
            };
            let shown = Shown::from(&record);
            let Step { answer, write } = judge(record);
            let Some(record) = write else { return Ok(answer) };
            if self.records().replace(&call, &shown, &record).await? {
                self.shared.watches.wake(id);
                return Ok(answer);
            }
        }
    }

    /// How long attempt `seen` still holds a live lease; `None` if it does not.
    async fn lease_left(
        &self,
        id: &OperationId,
        seen: u32,
    ) -> Result<Option<Duration>, StoreError> {
        let live = self.records().live(&self.call(), id).await?;
        Ok(live.and_then(|(attempt, lease_left)| (attempt == seen).then_some(lease_left)))
    }

    fn check_size(&self, payload: &Bytes) -> Result<(), StoreError> {
        let (is, most) = (payload.len(), self.shared.max_payload);
        if is <= most {
            return Ok(());
        }
        Err(StoreError::new(
            StoreErrorKind::TooLarge,
            format!("a payload of {is} bytes is over the MySQL store's {most}"),
        ))
    }
}

impl fmt::Debug for MySqlStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let server = self.shared.connections.place();
        f.debug_struct("MySqlStore").field("server", &server).finish_non_exhaustive()
    }
}

impl Store for MySqlStore {
    fn about(&self) -> About {
        About { engine: "mysql", max_payload: self.shared.max_payload }
    }

    async fn begin(&self, claim: &Claim) -> Result<Begin, StoreError> {
        let call = self.call();
        let Step { answer: granted, write } = Record::first(claim, NOW);
        let mut may_be_free = true;
        loop {
            if may_be_free && let Some(first) = &write {
                match self.records().insert(&call, first).await? {
                    Inserted::Yes => return Ok(granted),
                    Inserted::No => {}
                    // It claims, and nobody can see what.
                    Inserted::Locked => return Ok(Begin::Found(in_flight_elsewhere(claim))),
                }
            }
            let Some(record) = self.records().find(&call, &claim.id).await? else {
                // Swept, between the two.
                may_be_free = true;
                continue;
            };
            may_be_free = false;
            let shown = Shown::from(&record);
            let Step { answer, write } = if record.is_expired(NOW) {
                Record::first(claim, NOW)
            } else {
                record.begin(claim, NOW)
            };
            let Some(record) = write else {
                let is_outcome =
                    matches!(answer, Begin::Acquired(_) | Begin::Found(Found::Finished { .. }));
                if !is_outcome || self.is_kept(&call, &shown).await? {
                    return Ok(answer);
                }
                continue;
            };
            if self.records().replace(&call, &shown, &record).await? {
                self.shared.watches.wake(&claim.id);
                return Ok(answer);
            }
        }
    }

    async fn renew(&self, lease: &Lease, lease_for: Duration) -> Result<Held, StoreError> {
        let change = if lease_for.is_zero() { Change::GiveUp } else { Change::Renew(lease_for) };
        self.held(lease, change, |record| record.renew(lease, lease_for, NOW)).await
    }

    async fn complete(
        &self,
        lease: &Lease,
        fingerprint: &Fingerprint,
        payload: Bytes,
        retention: Duration,
    ) -> Result<Held, StoreError> {
        self.check_size(&payload)?;
        let change = Change::Complete(fingerprint, &payload, retention);
        let judge = |record: Record| record.complete(lease, fingerprint, &payload, retention, NOW);
        self.held(lease, change, judge).await
    }

    async fn release(
        &self,
        lease: &Lease,
        keep_counters_for: Duration,
    ) -> Result<Held, StoreError> {
        let change = Change::Release(keep_counters_for);
        self.held(lease, change, |record| record.release(lease, keep_counters_for, NOW)).await
    }

    async fn changed(
        &self,
        id: &OperationId,
        seen: u32,
        within: Duration,
    ) -> Result<(), StoreError> {
        let watch = self.shared.watches.watch(id);
        let changed = async {
            loop {
                // Listening before looking: what is written in between is heard.
                let mut stirred = std::pin::pin!(watch.notify.notified());
                stirred.as_mut().enable();
                let Some(lease_left) = self.lease_left(id, seen).await? else {
                    return Ok(());
                };
                // Other processes can't wake us. Jitter keeps many from asking all at once. No
                // connection is held in between.
                let poll = self.shared.poll_interval.mul_f64(rand::random_range(0.5..1.5));
                // Woken or not: what is true is asked again.
                let _ = timeout(poll.min(lease_left), stirred).await;
            }
        };
        timeout(within, changed).await.unwrap_or(Ok(()))
    }

    async fn sweep(&self, limit: usize) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        let mut left = limit;
        loop {
            let batch = SWEEP_BATCH.min(left);
            let begun = Instant::now();
            let call = self.call();
            let mut expired = self.records().expired(&call, batch + 1).await?;
            swept.more = expired.len() > batch;
            expired.truncate(batch);
            if !expired.is_empty() {
                swept.removed += self.records().remove(&call, &expired).await?;
            }
            // By what was looked at: another sweep may have removed it.
            left -= expired.len();
            if !swept.more {
                return Ok(swept);
            }
            pause::after_batch(begun).await;
            if left == 0 {
                return Ok(swept);
            }
        }
    }
}

impl Inspect for MySqlStore {
    async fn get(&self, id: &OperationId) -> Result<Option<Entry>, StoreError> {
        let record = self.records().find(&self.operators_call(), id).await?;
        Ok(record.filter(|record| !record.is_expired(NOW)).map(|record| record.entry(NOW)))
    }

    async fn page(
        &self,
        after: Option<&OperationId>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let page = self.records().page(&self.operators_call(), after, limit).await?;
        Ok(page.into_iter().map(|record| record.entry(NOW)).collect())
    }

    async fn count(&self) -> Result<Counts, StoreError> {
        self.records().count(&self.operators_call()).await
    }

    async fn forget(&self, id: &OperationId) -> Result<Operated, StoreError> {
        self.operate(id, |record| record.forget(NOW)).await
    }

    async fn resolve(
        &self,
        id: &OperationId,
        seen: u32,
        resolution: Resolution,
    ) -> Result<Operated, StoreError> {
        if let Resolution::Happened { payload, .. } = &resolution {
            self.check_size(payload)?;
        }
        self.operate(id, |record| record.resolve(seen, &resolution, NOW)).await
    }
}
