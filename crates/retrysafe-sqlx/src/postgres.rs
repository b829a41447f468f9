//! The store in PostgreSQL: each verb is one statement.

mod builder;
mod call;
mod connections;
mod failure;
mod inspect;
mod record;
mod server;
mod statements;
mod transactional;

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use retrysafe_core::{
    About, Acquired, Begin, Claim, ConfigError, Fingerprint, Found, Held, Lease, OperationId,
    Store, StoreError, Swept,
    lifecycle::{Record, Step, attempt_of},
};
use sqlx::{PgPool, SqlStr, postgres::PgRow};
use tokio::time::{Instant, timeout};

pub use self::{
    builder::PostgresStoreBuilder,
    transactional::{PostgresTransaction, TransactionalPostgres, TransactionalPostgresBuilder},
};
use self::{
    builder::Settings,
    call::{Call, Shared, Statement, statement},
    connections::Connections,
    failure::Place,
    record::{NOW, column, interval},
};
use crate::{
    OpenError, pause,
    table::{self, TableName},
    transactional::in_flight_elsewhere,
};

/// How many expired records one statement removes. A claim of one of them waits that long at most
/// (ST12).
const SWEEP_BATCH: usize = 500;

/// A store in a table of a PostgreSQL database, for any number of processes and machines.
///
/// Handles are cheap to clone and share their connections. What was acknowledged survives a crash of
/// the server, and with a synchronous standby also its loss (ST9).
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use retrysafe_core::Store;
/// use retrysafe_sqlx::PostgresStore;
///
/// let url = "postgres://orders:secret@db.internal/orders";
/// let store = PostgresStore::builder(url).migrate().open().await?;
/// assert_eq!(store.about().engine, "postgres");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct PostgresStore {
    shared: Arc<Shared>,
}

impl PostgresStore {
    /// Sets up a store with connections of its own.
    ///
    /// The URL is sqlx's: `postgres://USER:PASSWORD@HOST:PORT/DATABASE`, with `sslmode` and others
    /// as parameters.
    pub fn builder(url: impl Into<String>) -> PostgresStoreBuilder {
        PostgresStoreBuilder::url(url.into())
    }

    /// Sets up a store that takes its connections from a pool, and gives each back after one
    /// statement.
    ///
    /// The pool stays as it is set up, which has a price. sqlx sends a second message for each
    /// statement, when its connection comes back. Time-outs and isolation are the pool's: set
    /// `statement_timeout`, `lock_timeout`, `test_before_acquire(false)` and an `acquire_timeout` below
    /// a second. And when a primary was killed while it waited for its standby, the store's own
    /// connections wait until the standby has caught up, where a pool's show what could yet be lost.
    ///
    /// ```no_run
    /// # async fn example(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
    /// use retrysafe_sqlx::PostgresStore;
    ///
    /// let store = PostgresStore::from_pool(pool).table("orders.idempotency").open().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn from_pool(pool: PgPool) -> PostgresStoreBuilder {
        PostgresStoreBuilder::pool(pool)
    }

    /// The name of the table, unless another is set.
    pub const DEFAULT_TABLE: &'static str = table::DEFAULT;

    /// The statements that create the table, for migrations that are run by something else.
    ///
    /// ```
    /// use retrysafe_sqlx::PostgresStore;
    ///
    /// let schema = PostgresStore::schema("orders.idempotency")?;
    /// assert!(schema.contains(r#"CREATE TABLE IF NOT EXISTS "orders"."idempotency""#));
    /// # Ok::<(), retrysafe_core::ConfigError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If that is no name for a table: see [`PostgresStoreBuilder::table`].
    pub fn schema(table: &str) -> Result<String, ConfigError> {
        TableName::parse(table).map(|table| server::schema(&table))
    }

    fn new(connections: Connections, place: Place, table: TableName, settings: Settings) -> Self {
        Self { shared: Arc::new(Shared::new(connections, place, table, settings)) }
    }

    async fn prepare(&self) -> Result<(), OpenError> {
        self.shared.prepare().await
    }

    /// Runs a verb that needs the lease. `judge` says what the verb comes to on a record that it was
    /// not applied to.
    async fn held(
        &self,
        lease: &Lease,
        statement: impl Fn() -> Statement,
        judge: impl Fn(Record) -> Step<Held>,
    ) -> Result<Held, StoreError> {
        let mut call = self.shared.call();
        loop {
            let rows = call.ask(&statement).await?;
            let Some(row) = rows.first() else {
                return Ok(Held::Lost(Found::Free));
            };
            if is_done(row) {
                self.shared.watches.wake(&lease.id);
                return Ok(Held::Applied);
            }
            let record = record::read(row)?;
            if record.is_expired(NOW) {
                return Ok(Held::Lost(Found::Free));
            }
            match judge(record.clone()) {
                // What was read is older than what the write met, and would have been written.
                Step { write: Some(_), .. } => {}
                // Said by the first try's own record.
                Step { answer: Held::Applied, .. } => {
                    if self.confirm(&mut call, &record).await?.is_some() {
                        return Ok(Held::Applied);
                    }
                }
                Step { answer: lost, .. } => return Ok(lost),
            }
            call.again().await?;
        }
    }

    /// ST4, ST9: a call that is repeated because its first answer was lost. What it reads is in the
    /// server's log, but the standby may not have it yet: a wait for the standby that was broken off
    /// leaves its record for all to see. Writing anything waits for all that came before.
    async fn confirm(
        &self,
        call: &mut Call<'_>,
        record: &Record,
    ) -> Result<Option<Acquired>, StoreError> {
        let rows = call
            .ask(|| {
                statement(&self.shared.statements.confirm)
                    .bind(&record.id.as_bytes()[..])
                    .bind(record::owner(record))
                    .bind(record.fence.cast_signed())
                    .bind(record::state(record))
            })
            .await?;
        Ok(rows.first().and_then(acquired))
    }

    /// ST6: by compare-and-set on the record that was seen.
    async fn begin_again(
        &self,
        call: &mut Call<'_>,
        claim: &Claim,
        seen: &Record,
    ) -> Result<Option<Acquired>, StoreError> {
        let rows = call
            .ask(|| {
                observed(&self.shared.statements.begin_again, seen)
                    .bind(claim.owner.to_bytes().to_vec())
                    .bind(claim.fingerprint.encode())
                    .bind(interval(claim.lease))
                    .bind(interval(claim.retention))
            })
            .await?;
        Ok(rows.first().and_then(acquired))
    }

    /// How long attempt `seen` still holds a live lease; `None` if it does not.
    async fn lease_left(
        &self,
        id: &OperationId,
        seen: u32,
    ) -> Result<Option<Duration>, StoreError> {
        let rows = self
            .shared
            .call()
            .ask(|| {
                statement(&self.shared.statements.live)
                    .bind(&id.as_bytes()[..])
                    .bind(i64::from(seen))
            })
            .await?;
        Ok(rows.first().and_then(record::lease_left))
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore")
            .field("server", &self.shared.place.as_str())
            .finish_non_exhaustive()
    }
}

impl Store for PostgresStore {
    fn about(&self) -> About {
        About { engine: "postgres", max_payload: self.shared.settings.max_payload }
    }

    async fn begin(&self, claim: &Claim) -> Result<Begin, StoreError> {
        let mut call = self.shared.call();
        loop {
            let rows = call
                .ask(|| {
                    statement(&self.shared.statements.begin)
                        .bind(&claim.id.as_bytes()[..])
                        .bind(claim.owner.to_bytes().to_vec())
                        .bind(claim.fingerprint.encode())
                        .bind(interval(claim.lease))
                        .bind(interval(claim.retention))
                })
                .await;
            let rows = match rows {
                // A transaction that has not committed holds the row: it claims, and nobody can see
                // what.
                Err(error) if failure::is_locked(&error) => {
                    return Ok(Begin::Found(in_flight_elsewhere(claim)));
                }
                rows => rows?,
            };
            let granted = match rows.first() {
                None => None,
                Some(row) if is_done(row) => {
                    Some(Acquired { attempt: 1, fence: 1, previous_vanished: false })
                }
                Some(row) => {
                    let record = record::read(row)?;
                    match record.clone().begin(claim, NOW) {
                        Step { write: Some(_), .. } => {
                            self.begin_again(&mut call, claim, &record).await?
                        }
                        Step { answer: Begin::Acquired(_), .. } => {
                            self.confirm(&mut call, &record).await?
                        }
                        Step { answer: found, .. } => return Ok(found),
                    }
                }
            };
            if let Some(acquired) = granted {
                return Ok(Begin::Acquired(acquired));
            }
            call.again().await?;
        }
    }

    async fn renew(&self, lease: &Lease, lease_for: Duration) -> Result<Held, StoreError> {
        let statements = &self.shared.statements;
        let renew = || match lease_for.is_zero() {
            true => of_owner(&statements.give_up, lease),
            false => of_owner(&statements.renew, lease).bind(interval(lease_for)),
        };
        self.held(lease, renew, |record| record.renew(lease, lease_for, NOW)).await
    }

    async fn complete(
        &self,
        lease: &Lease,
        fingerprint: &Fingerprint,
        payload: Bytes,
        retention: Duration,
    ) -> Result<Held, StoreError> {
        self.shared.check_size(&payload)?;
        let complete = || {
            of_owner(&self.shared.statements.complete, lease)
                .bind(fingerprint.encode())
                .bind(&payload[..])
                .bind(interval(retention))
        };
        let judge = |record: Record| record.complete(lease, fingerprint, &payload, retention, NOW);
        self.held(lease, complete, judge).await
    }

    async fn release(
        &self,
        lease: &Lease,
        keep_counters_for: Duration,
    ) -> Result<Held, StoreError> {
        let release =
            || of_owner(&self.shared.statements.release, lease).bind(interval(keep_counters_for));
        self.held(lease, release, |record| record.release(lease, keep_counters_for, NOW)).await
    }

    async fn changed(
        &self,
        id: &OperationId,
        seen: u32,
        within: Duration,
    ) -> Result<(), StoreError> {
        let watch = self.shared.watches.watch(id);
        let changed = async {
            let Some(lease_left) = self.lease_left(id, seen).await? else {
                return Ok(());
            };
            let watched = async {
                loop {
                    // Listening before looking: a change in between is heard.
                    let mut stirred = std::pin::pin!(watch.notify.notified());
                    stirred.as_mut().enable();
                    if self.lease_left(id, seen).await?.is_none() {
                        return Ok(());
                    }
                    // Other processes can't wake us: a NOTIFY would make every completion wait for
                    // every other. Jitter keeps many from asking all at once. No connection is
                    // held meanwhile (waiters_eat_pool).
                    let interval = self.shared.settings.poll_interval;
                    let poll = interval.mul_f64(rand::random_range(0.5..1.5));
                    // Woken or not: what is true is asked again.
                    let _ = timeout(poll, stirred).await;
                }
            };
            timeout(lease_left, watched).await.unwrap_or(Ok(()))
        };
        timeout(within, changed).await.unwrap_or(Ok(()))
    }

    async fn sweep(&self, limit: usize) -> Result<Swept, StoreError> {
        let mut removed = 0;
        while removed < limit {
            let begun = Instant::now();
            let batch = SWEEP_BATCH.min(limit - removed);
            let most = i64::try_from(batch).unwrap_or(i64::MAX);
            let sweep = || statement(&self.shared.statements.sweep).bind(most);
            let swept = self.shared.long_call().ask(sweep).await?.len();
            removed += swept;
            if swept < batch {
                return Ok(Swept { removed, more: false });
            }
            pause::after_batch(begun).await;
        }
        let rows = self.shared.long_call().ask(|| statement(&self.shared.statements.left)).await?;
        let more = rows.first().and_then(|row| column(row, "more")).unwrap_or(false);
        Ok(Swept { removed, more })
    }
}

fn is_done(row: &PgRow) -> bool {
    column(row, "done").unwrap_or(false)
}

/// The attempt that a statement began or found again.
fn acquired(row: &PgRow) -> Option<Acquired> {
    let fence = column::<i64>(row, "fence")?.unsigned_abs();
    Some(Acquired {
        attempt: attempt_of(fence),
        fence,
        previous_vanished: column(row, "previous_vanished")?,
    })
}

fn of_owner(sql: &SqlStr, lease: &Lease) -> Statement {
    statement(sql).bind(&lease.id.as_bytes()[..]).bind(lease.owner.to_bytes().to_vec())
}

/// A statement that applies to exactly this record.
fn observed(sql: &SqlStr, seen: &Record) -> Statement {
    statement(sql)
        .bind(&seen.id.as_bytes()[..])
        .bind(seen.fence.cast_signed())
        .bind(record::state(seen))
        .bind(record::owner(seen))
}
