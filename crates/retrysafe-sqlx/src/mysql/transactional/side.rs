//! The transactions of MySQL and MariaDB.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use retrysafe_core::{
    Abandoned, Begin, Claim, Found, Held, Lease, OperationId, StoreError, StoreErrorKind,
    failpoint,
    lifecycle::{Phase, Record, Step},
};
use sqlx::{
    AssertSqlSafe, MySql, MySqlPool, SqlSafeStr as _, SqlStr, Transaction, pool::PoolConnection,
};
use tokio::time::{Instant, timeout_at};

use crate::{
    mysql::{
        MySqlStore,
        error::{self, Fate},
        records::{NOW, Shown},
    },
    table::TableName,
    transactional::{Isolation, Looked, Opened, Outcome, Side, in_flight_elsewhere, open},
};

/// The shortest that a statement can wait for a row, in MySQL.
const GLANCE: Duration = Duration::from_secs(1);

/// Marks the transaction. Whatever ends it, `COMMIT` or `ROLLBACK`, DDL or a deadlock, takes the
/// mark away.
const MARK: &str = "SAVEPOINT retrysafe_unit";
const UNMARK: &str = "RELEASE SAVEPOINT retrysafe_unit";
/// There is no such savepoint.
const NO_MARK: u16 = 1305;

/// Gives the session back what it was set to.
const UNBOUND: &str = "SET innodb_lock_wait_timeout = @retrysafe_lock_wait";

pub(crate) struct MySqlSide {
    pool: MySqlPool,
    records: MySqlStore,
    isolation: Option<Isolation>,
    timeout: Duration,
    /// Whether another transaction is at the row: one parameter, the id.
    probe: SqlStr,
}

impl MySqlSide {
    pub(super) fn new(
        pool: MySqlPool,
        records: MySqlStore,
        table: &TableName,
        isolation: Option<Isolation>,
        timeout: Duration,
    ) -> Self {
        let probe = format!("SELECT 1 FROM {} WHERE id = ? FOR UPDATE NOWAIT", table.quoted('`'));
        let probe = AssertSqlSafe(Arc::<str>::from(probe)).into_sql_str();
        Self { pool, records, isolation, timeout, probe }
    }

    fn begin(&self, bound: Duration) -> SqlStr {
        let level = self.isolation.map_or(String::new(), |level| {
            format!("SET TRANSACTION ISOLATION LEVEL {}; ", level.as_str())
        });
        let seconds = bound.as_secs() + u64::from(bound.subsec_nanos() > 0);
        AssertSqlSafe(format!(
            "SET @retrysafe_lock_wait = @@innodb_lock_wait_timeout, \
             innodb_lock_wait_timeout = {}; {level}START TRANSACTION; {MARK}",
            seconds.max(1)
        ))
        .into_sql_str()
    }

    /// A connection of the pool. Nothing was sent before there is one.
    async fn connection(&self, until: Instant) -> Result<PoolConnection<MySql>, StoreError> {
        let lend_until = (Instant::now() + self.timeout / 2).min(until);
        match timeout_at(lend_until, self.pool.acquire()).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) if !matches!(error, sqlx::Error::PoolTimedOut) => {
                Err(error::not_sent(&self.place(), error))
            }
            // Ours, or the pool's own.
            _ => {
                // D4: what has connections is there.
                let kind = match self.pool.size() {
                    0 => StoreErrorKind::Unreachable,
                    _ => StoreErrorKind::Timeout,
                };
                let context = format!("{}: the pool had no connection in time", self.place());
                Err(StoreError::new(kind, context))
            }
        }
    }

    fn failed(&self, error: sqlx::Error) -> StoreError {
        let place = self.place();
        match error::fate(&error) {
            Fate::Again => error::broken(&place, error),
            Fate::Refused(kind) => error::refused(&place, kind, error),
            Fate::ReadOnly => error::refused(&place, StoreErrorKind::Misconfigured, error),
            Fate::Broken => error::broken(&place, error),
        }
    }
}

/// Claims in a transaction of its own: a record that can be claimed, or that there is none.
async fn claim_in(
    connection: PoolConnection<MySql>,
    begin: SqlStr,
    store: MySqlStore,
    claim: Claim,
    seen: Option<Record>,
) -> sqlx::Result<Opened<MySql>> {
    let mut transaction = open(connection, begin).await?;
    failpoint::reached("after BEGIN");
    let (shown, step) = match seen {
        Some(record) if !record.is_expired(NOW) => {
            (Some(Shown::from(&record)), record.begin(&claim, NOW))
        }
        expired => (expired.as_ref().map(Shown::from), Record::first(&claim, NOW)),
    };
    let Step { answer: Begin::Acquired(acquired), write: Some(record) } = step else {
        return Ok(Opened::Again);
    };
    let written = match &shown {
        Some(shown) => store.records().replace_in(&mut transaction, shown, &record).await,
        None => store.records().insert_in(&mut transaction, &record).await,
    };
    // Of the session, so it outlives the transaction.
    let unbound = sqlx::raw_sql(UNBOUND).execute(&mut *transaction).await;
    match written {
        Ok(true) => {
            unbound?;
            Ok(Opened::Granted(transaction, acquired))
        }
        Ok(false) => {
            transaction.rollback().await?;
            Ok(Opened::Again)
        }
        Err(error) => {
            let _ = transaction.rollback().await;
            match error::fate(&error) {
                _ if error::is_locked(&error) => Ok(Opened::Locked),
                Fate::Again => Ok(Opened::Again),
                _ => Err(error),
            }
        }
    }
}

/// Opens a transaction that renews first.
async fn reopen_in(
    connection: PoolConnection<MySql>,
    begin: SqlStr,
    store: MySqlStore,
    lease: Lease,
    lease_for: Duration,
) -> sqlx::Result<Option<Transaction<'static, MySql>>> {
    let mut transaction = open(connection, begin).await?;
    let renewed = store.records().renew_in(&mut transaction, &lease, lease_for).await;
    let unbound = sqlx::raw_sql(UNBOUND).execute(&mut *transaction).await;
    if renewed? {
        unbound?;
        return Ok(Some(transaction));
    }
    transaction.rollback().await?;
    Ok(None)
}

impl Side for MySqlSide {
    type Database = MySql;
    type Records = MySqlStore;
    type Seen = Option<Record>;

    fn records(&self) -> &MySqlStore {
        &self.records
    }

    fn place(&self) -> String {
        self.records.shared.connections.place().to_owned()
    }

    fn check_size(&self, payload: &Bytes) -> Result<(), StoreError> {
        self.records.check_size(payload)
    }

    async fn look(&self, claim: &Claim, _: Instant) -> Result<Looked<Option<Record>>, StoreError> {
        let (store, call) = (&self.records, self.records.call());
        loop {
            let record = store.records().find(&call, &claim.id).await?;
            if let Some(record) = record.clone().filter(|record| !record.is_expired(NOW)) {
                let shown = Shown::from(&record);
                let found = match record.begin(claim, NOW) {
                    Step { write: Some(_), .. } => None,
                    Step { answer: Begin::Found(found), .. } => Some(found),
                    // Its own claim is to be seen by others: somebody has committed it by hand.
                    Step { answer: Begin::Acquired(_), .. } => Some(in_flight_elsewhere(claim)),
                };
                match found {
                    None => {}
                    Some(found) => {
                        let is_outcome = matches!(found, Found::Finished { .. });
                        if !is_outcome || store.is_kept(&call, &shown).await? {
                            return Ok(Looked::Found(found));
                        }
                        continue;
                    }
                }
            }
            // A row that nobody can see yet is locked all the same.
            let locked = store.records().is_locked(&call, &self.probe, &claim.id).await?;
            return Ok(Looked::Free { seen: record, locked });
        }
    }

    async fn claim(
        &self,
        claim: &Claim,
        seen: Option<Record>,
        bound: Option<Duration>,
        until: Instant,
    ) -> Result<Opened<MySql>, StoreError> {
        let connection = self.connection(until).await?;
        let begin = self.begin(bound.unwrap_or(GLANCE));
        let claimed = claim_in(connection, begin, self.records.clone(), claim.clone(), seen);
        // To its end whoever waits for it: what the session is set to is set back.
        match timeout_at(until, tokio::spawn(claimed)).await {
            Ok(Ok(Ok(opened))) => Ok(opened),
            Ok(Ok(Err(error))) => Err(self.failed(error)),
            Ok(Err(_)) => Err(error::broken(&self.place(), sqlx::Error::WorkerCrashed)),
            Err(_) => {
                let context = format!("{} did not answer in time", self.place());
                Err(StoreError::new(StoreErrorKind::Timeout, context))
            }
        }
    }

    async fn write(
        &self,
        transaction: &mut Transaction<'static, MySql>,
        lease: &Lease,
        outcome: &Outcome<'_>,
    ) -> Result<bool, StoreError> {
        // Before anything is written: without its transaction it would be committed at once.
        match sqlx::raw_sql(UNMARK).execute(&mut **transaction).await {
            Ok(_) => {}
            Err(error) if error::number(&error) == Some(NO_MARK) => return Ok(false),
            Err(error) => return Err(self.failed(error)),
        }
        let Outcome { fingerprint, payload, retention } = outcome;
        let records = self.records.records();
        let written =
            records.complete_in(transaction, lease, fingerprint, payload, *retention).await;
        written.map_err(|error| self.failed(error))
    }

    async fn roll_back(
        &self,
        transaction: Transaction<'static, MySql>,
        lease: &Lease,
        _: Instant,
    ) -> bool {
        let _ = transaction.rollback().await;
        // A mark that is missing may be a deadlock's doing. A claim that others can see is not.
        let record = self.records.records().find(&self.records.call(), &lease.id).await;
        let record = record.ok().flatten();
        record.is_some_and(|record| {
            record.owner == Some(lease.owner) && matches!(record.phase, Phase::InFlight { .. })
        })
    }

    fn not_committed(&self, error: sqlx::Error) -> Option<StoreError> {
        match error::fate(&error) {
            Fate::Broken => None,
            _ => Some(self.failed(error)),
        }
    }

    async fn reopen(
        &self,
        lease: &Lease,
        lease_for: Duration,
        until: Instant,
    ) -> Result<Option<Transaction<'static, MySql>>, StoreError> {
        loop {
            let connection = self.connection(until).await?;
            let begin = self.begin(until.saturating_duration_since(Instant::now()) / 2);
            let (store, lease) = (self.records.clone(), lease.clone());
            // To its end whoever waits for it: what the session is set to is set back.
            let reopened = tokio::spawn(reopen_in(connection, begin, store, lease, lease_for));
            match reopened.await.unwrap_or(Err(sqlx::Error::WorkerCrashed)) {
                Ok(reopened) => return Ok(reopened),
                // A renewal came in between.
                Err(error)
                    if matches!(error::fate(&error), Fate::Again) && Instant::now() < until => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
    }

    async fn keep(
        &self,
        transaction: &mut Transaction<'static, MySql>,
        lease: &Lease,
        lease_for: Duration,
        points: Option<&Bytes>,
    ) -> Result<bool, StoreError> {
        // As for the outcome.
        match sqlx::raw_sql(UNMARK).execute(&mut **transaction).await {
            Ok(_) => {}
            Err(error) if error::number(&error) == Some(NO_MARK) => return Ok(false),
            Err(error) => return Err(self.failed(error)),
        }
        let kept = self.records.records().keep_in(transaction, lease, lease_for, points).await;
        kept.map_err(|error| self.failed(error))
    }

    async fn kept(
        &self,
        transaction: &mut Transaction<'static, MySql>,
        lease: &Lease,
    ) -> Result<Option<Bytes>, StoreError> {
        let kept = self.records.records().kept(transaction, lease).await;
        kept.map_err(|error| self.failed(error))
    }

    async fn abandoned(
        &self,
        after: Option<&OperationId>,
        limit: usize,
    ) -> Result<Vec<Abandoned>, StoreError> {
        let (store, call) = (&self.records, self.records.operators_call());
        store.records().abandoned(&call, after, limit).await
    }

    async fn find(
        &self,
        lease: &Lease,
        outcome: &Outcome<'_>,
        _: Instant,
    ) -> Result<Option<Held>, StoreError> {
        let (store, call) = (&self.records, self.records.call());
        loop {
            let record = store.records().find(&call, &lease.id).await?;
            let is_outcome =
                |it: &Record| matches!(it.phase, Phase::Finished { .. }) && !it.is_expired(NOW);
            let Some(record) = record.filter(is_outcome) else { return Ok(None) };
            let shown = Shown::from(&record);
            let Outcome { fingerprint, payload, retention } = outcome;
            let Step { answer, .. } = record.complete(lease, fingerprint, payload, *retention, NOW);
            // What can be seen may not be on the disk yet.
            if store.is_kept(&call, &shown).await? {
                return Ok(Some(answer));
            }
        }
    }
}
