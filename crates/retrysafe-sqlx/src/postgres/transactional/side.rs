//! The transactions of PostgreSQL.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use retrysafe_core::{
    Abandoned, Acquired, Begin, Claim, Found, Held, Lease, OperationId, StoreError, StoreErrorKind,
    failpoint,
    lifecycle::{Phase, Record, Step, attempt_of},
};
use sqlx::{
    AssertSqlSafe, PgConnection, PgPool, Postgres, SqlSafeStr as _, SqlStr, Transaction,
    pool::PoolConnection,
    postgres::{PgDatabaseError, PgRow, PgSeverity},
};
use tokio::time::{Instant, timeout_at};

use crate::{
    postgres::{
        PostgresStore, acquired,
        call::{Shared, Statement, statement},
        failure::{self, Failure},
        is_done, observed, of_owner,
        record::{self, NOW, interval},
        statements,
    },
    table::TableName,
    transactional::{Isolation, Looked, Opened, Outcome, Side, in_flight_elsewhere, open},
};

/// How long a claim waits on a row without the right to wait: as long as somebody's commit takes.
const GLANCE: Duration = Duration::from_millis(20);

pub(crate) struct PostgresSide {
    pool: PgPool,
    records: PostgresStore,
    begin: String,
    /// As the ordinary ones, and they give the handler its own `lock_timeout` back.
    claim_first: SqlStr,
    claim: SqlStr,
    claim_again: SqlStr,
    /// `$1` id, `$2` owner, `$3` fingerprint, `$4` payload, `$5` retention. No row: the transaction
    /// is not the one that claimed.
    finish: SqlStr,
    /// `$1` id, `$2` owner.
    is_own: SqlStr,
    /// `$1` id, `$2` owner, `$3` lease. No row: it is not the live attempt.
    reopen: SqlStr,
    /// `$1` id, `$2` owner, `$3` lease, `$4` what phases have come to, if that is new. No row: as for
    /// `finish`.
    keep: SqlStr,
    /// `$1` id, `$2` owner.
    kept: SqlStr,
    /// `$1` id, `$2` limit.
    abandoned: SqlStr,
}

/// What a look leaves for the claim: its connection, and whether there was any row.
pub(crate) struct Seen {
    connection: PoolConnection<Postgres>,
    any: bool,
}

/// What a claim came to within its transaction.
enum Claimed {
    Granted(Acquired),
    Found(Found),
    Again,
}

impl PostgresSide {
    pub(super) fn new(
        pool: PgPool,
        records: PostgresStore,
        table: &TableName,
        isolation: Option<Isolation>,
    ) -> Self {
        let level = isolation.map(|level| format!(" ISOLATION LEVEL {}", level.as_str()));
        let sql = |text: String| AssertSqlSafe(Arc::<str>::from(text)).into_sql_str();
        let table = table.quoted('"');
        // A row that this very transaction has written. Who commits by hand is in another one.
        let own = "r.id = $1 AND r.owner = $2 AND r.layout = 1 AND r.state = 0 \
            AND r.xmin::text::bigint = txid_current() & 4294967295";
        Self {
            begin: format!("BEGIN{}", level.unwrap_or_default()),
            claim_first: sql(statements::claim_first(&table)),
            claim: sql(statements::claim(&table)),
            claim_again: sql(statements::claim_again(&table)),
            finish: sql(format!(
                "UPDATE {table} r SET state = 1, lease_until = NULL, retention = NULL,
                    previous_vanished = false, fingerprint = $3, payload = $4,
                    expires_at = clock_timestamp() + $5
                WHERE {own} RETURNING 1"
            )),
            is_own: sql(format!("SELECT 1 FROM {table} r WHERE {own}")),
            reopen: sql(statements::reopen(&table)),
            keep: sql(format!(
                "UPDATE {table} r SET lease_until = clock.now + $3,
                    expires_at = clock.now + greatest(r.retention, $3),
                    payload = coalesce($4, r.payload)
                FROM (SELECT clock_timestamp() AS now) clock WHERE {own} RETURNING 1"
            )),
            abandoned: sql(statements::abandoned(&table)),
            kept: sql(format!(
                "SELECT payload FROM {table} WHERE id = $1 AND owner = $2 AND state = 0"
            )),
            pool,
            records,
        }
    }

    fn shared(&self) -> &Shared {
        &self.records.shared
    }

    /// One request: the bound goes on until the claim is granted.
    fn begin(&self, lock_timeout: Duration) -> SqlStr {
        let milliseconds = lock_timeout.as_millis().max(1);
        AssertSqlSafe(format!(
            "{}; SELECT set_config('retrysafe.lock_timeout', current_setting('lock_timeout'), true), \
             set_config('lock_timeout', '{milliseconds}ms', true)",
            self.begin
        ))
        .into_sql_str()
    }

    /// A connection of the pool. Nothing was sent before there is one.
    async fn connection(&self, until: Instant) -> Result<PoolConnection<Postgres>, StoreError> {
        let lend_until = Instant::now() + self.shared().settings.timeout / 2;
        match timeout_at(lend_until.min(until), self.pool.acquire()).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(failure::open(&self.shared().place, error).into()),
            Err(_) => {
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

    /// The record, expired or not.
    async fn read(
        &self,
        connection: &mut PgConnection,
        id: &OperationId,
    ) -> Result<Option<Record>, Failure> {
        let get = statement(&self.shared().statements.get).bind(&id.as_bytes()[..]);
        let row = get.fetch_optional(connection).await.map_err(|error| self.failed(error))?;
        Ok(row.as_ref().map(record::read).transpose()?)
    }

    async fn try_claim(
        &self,
        Seen { connection, any }: Seen,
        claim: &Claim,
        lock_timeout: Duration,
    ) -> Result<Opened<Postgres>, Failure> {
        let opened = open(connection, self.begin(lock_timeout)).await;
        let mut transaction = opened.map_err(|error| self.failed(error))?;
        failpoint::reached("after BEGIN");
        let claimed = self.claim_in(&mut transaction, claim, any).await;
        if let Ok(Claimed::Granted(acquired)) = claimed {
            return Ok(Opened::Granted(transaction, acquired));
        }
        // Waited for, so that the connection is soon good for another.
        let _ = transaction.rollback().await;
        match claimed {
            Ok(Claimed::Found(found)) => Ok(Opened::Found(found)),
            Ok(_) => Ok(Opened::Again),
            Err(Failure::Store(error)) if failure::is_locked(&error) => Ok(Opened::Locked),
            Err(failure) => Err(failure),
        }
    }

    /// Claims as the first statement of a transaction.
    async fn claim_in(
        &self,
        transaction: &mut PgConnection,
        claim: &Claim,
        any: bool,
    ) -> Result<Claimed, Failure> {
        let bound = |statement: Statement| {
            statement
                .bind(claim.owner.to_bytes().to_vec())
                .bind(claim.fingerprint.encode())
                .bind(interval(claim.lease))
                .bind(interval(claim.retention))
        };
        let first = Acquired { attempt: 1, fence: 1, previous_vanished: false };
        if !any {
            let row = bound(statement(&self.claim_first).bind(&claim.id.as_bytes()[..]))
                .fetch_optional(&mut *transaction)
                .await
                .map_err(|error| self.failed(error))?;
            return Ok(row.map_or(Claimed::Again, |_| Claimed::Granted(first)));
        }
        let row = bound(statement(&self.claim).bind(&claim.id.as_bytes()[..]))
            .fetch_optional(&mut *transaction)
            .await
            .map_err(|error| self.failed(error))?;
        let Some(row) = row else { return Ok(Claimed::Again) };
        if is_done(&row) {
            return Ok(Claimed::Granted(first));
        }
        let record = record::read(&row)?;
        if let Some(found) = stands_against(record.clone(), claim) {
            return Ok(Claimed::Found(found));
        }
        let row = bound(observed(&self.claim_again, &record))
            .fetch_optional(transaction)
            .await
            .map_err(|error| self.failed(error))?;
        Ok(row.as_ref().and_then(acquired).map_or(Claimed::Again, Claimed::Granted))
    }

    async fn is_own(
        &self,
        transaction: &mut PgConnection,
        lease: &Lease,
    ) -> Result<bool, sqlx::Error> {
        Ok(of_owner(&self.is_own, lease).fetch_optional(transaction).await?.is_some())
    }

    fn failed(&self, error: sqlx::Error) -> Failure {
        failure::statement(&self.shared().place, &self.shared().table_name(), error)
    }

    /// What was undone, or never done.
    fn undone(&self, failure: Failure) -> StoreError {
        match failure {
            Failure::Store(error) => error,
            Failure::Conflict => {
                let context = format!("{}: undone, because of what others did", self.place());
                StoreError::new(StoreErrorKind::Unavailable, context)
            }
        }
    }

    async fn within<T>(
        &self,
        until: Instant,
        call: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        timeout_at(until, call).await.unwrap_or_else(|_| {
            let context = format!("{} did not answer in time", self.place());
            Err(StoreError::new(StoreErrorKind::Timeout, context).into())
        })
    }
}

impl Side for PostgresSide {
    type Database = Postgres;
    type Records = PostgresStore;
    type Seen = Seen;

    fn records(&self) -> &PostgresStore {
        &self.records
    }

    fn place(&self) -> String {
        self.shared().place.to_string()
    }

    fn check_size(&self, payload: &Bytes) -> Result<(), StoreError> {
        self.shared().check_size(payload)
    }

    async fn look(&self, claim: &Claim, until: Instant) -> Result<Looked<Seen>, StoreError> {
        let mut connection = self.connection(until).await?;
        let record = match self.within(until, self.read(&mut connection, &claim.id)).await {
            Ok(record) => record,
            // A plain read is undone by nobody but a level that is very strict. The claim finds out.
            Err(Failure::Conflict) => None,
            Err(Failure::Store(error)) => return Err(error),
        };
        let any = record.is_some();
        let standing = record.filter(|record| !record.is_expired(NOW));
        Ok(match standing.and_then(|record| stands_against(record, claim)) {
            Some(found) => Looked::Found(found),
            None => Looked::Free { seen: Seen { connection, any }, locked: false },
        })
    }

    async fn claim(
        &self,
        claim: &Claim,
        seen: Seen,
        bound: Option<Duration>,
        until: Instant,
    ) -> Result<Opened<Postgres>, StoreError> {
        let claimed = self.try_claim(seen, claim, bound.unwrap_or(GLANCE));
        match self.within(until, claimed).await {
            Ok(opened) => Ok(opened),
            Err(Failure::Conflict) => Ok(Opened::Again),
            Err(Failure::Store(error)) => Err(error),
        }
    }

    async fn write(
        &self,
        transaction: &mut Transaction<'static, Postgres>,
        lease: &Lease,
        outcome: &Outcome<'_>,
    ) -> Result<bool, StoreError> {
        let finish = of_owner(&self.finish, lease)
            .bind(outcome.fingerprint.encode())
            .bind(&outcome.payload[..])
            .bind(interval(outcome.retention));
        // A statement that fails takes its transaction along, also if the handler did not mind.
        match finish.fetch_optional(&mut **transaction).await {
            Ok(row) => Ok(row.is_some()),
            Err(error) => Err(self.undone(self.failed(error))),
        }
    }

    async fn roll_back(
        &self,
        mut transaction: Transaction<'static, Postgres>,
        lease: &Lease,
        _: Instant,
    ) -> bool {
        // A transaction that has failed says nothing any more, and has done nothing.
        let own = self.is_own(&mut transaction, lease).await;
        let _ = transaction.rollback().await;
        matches!(own, Ok(false))
    }

    fn not_committed(&self, error: sqlx::Error) -> Option<StoreError> {
        // A constraint that was deferred, a serialization failure. Anything that ends the session
        // leaves open which of the two it was.
        let said =
            error.as_database_error().and_then(|it| it.try_downcast_ref::<PgDatabaseError>());
        let refused = said.is_some_and(|said| matches!(said.severity(), PgSeverity::Error));
        refused.then(|| self.undone(self.failed(error)))
    }

    async fn reopen(
        &self,
        lease: &Lease,
        lease_for: Duration,
        until: Instant,
    ) -> Result<Option<Transaction<'static, Postgres>>, StoreError> {
        loop {
            let connection = self.connection(until).await?;
            // Half of it, so that who holds the row is told from a server that is gone.
            let bound = until.saturating_duration_since(Instant::now()) / 2;
            let opened = open(connection, self.begin(bound)).await;
            let mut transaction = opened.map_err(|error| self.undone(self.failed(error)))?;
            let reopen = of_owner(&self.reopen, lease).bind(interval(lease_for));
            match reopen.fetch_optional(&mut *transaction).await {
                Ok(row) => return Ok(row.map(|_| transaction)),
                Err(error) => match self.failed(error) {
                    // A renewal came in between.
                    Failure::Conflict if Instant::now() < until => {}
                    failure => return Err(self.undone(failure)),
                },
            }
        }
    }

    async fn keep(
        &self,
        transaction: &mut Transaction<'static, Postgres>,
        lease: &Lease,
        lease_for: Duration,
        points: Option<&Bytes>,
    ) -> Result<bool, StoreError> {
        let keep = of_owner(&self.keep, lease).bind(interval(lease_for));
        let keep = keep.bind(points.map(|points| points.to_vec()));
        match keep.fetch_optional(&mut **transaction).await {
            Ok(row) => Ok(row.is_some()),
            Err(error) => Err(self.undone(self.failed(error))),
        }
    }

    async fn kept(
        &self,
        transaction: &mut Transaction<'static, Postgres>,
        lease: &Lease,
    ) -> Result<Option<Bytes>, StoreError> {
        let row = of_owner(&self.kept, lease).fetch_optional(&mut **transaction).await;
        let row = row.map_err(|error| self.undone(self.failed(error)))?;
        let kept = row.and_then(|row| record::column::<Option<Vec<u8>>>(&row, "payload"));
        Ok(kept.flatten().map(Bytes::from))
    }

    async fn abandoned(
        &self,
        after: Option<&OperationId>,
        limit: usize,
    ) -> Result<Vec<Abandoned>, StoreError> {
        let after = after.map_or(&[][..], |id| id.as_bytes());
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let page = || statement(&self.abandoned).bind(after).bind(limit);
        let rows = self.shared().long_call().ask(page).await?;
        let read = |row: &PgRow| {
            let id = record::column::<Vec<u8>>(row, "id")?.try_into().ok()?;
            let fence = record::column::<i64>(row, "fence")?;
            Some(Abandoned {
                id: OperationId::from_bytes(id),
                attempt: attempt_of(fence.unsigned_abs()),
                points: record::column::<Vec<u8>>(row, "payload")?.into(),
            })
        };
        let unreadable = || record::unreadable("a record", "payload");
        rows.iter().map(|row| read(row).ok_or_else(unreadable)).collect()
    }

    async fn find(
        &self,
        lease: &Lease,
        outcome: &Outcome<'_>,
        until: Instant,
    ) -> Result<Option<Held>, StoreError> {
        let mut connection = self.connection(until).await?;
        let read = self.read(&mut connection, &lease.id).await;
        let record = read.map_err(|failure| self.undone(failure))?;
        let is_outcome =
            |it: &Record| matches!(it.phase, Phase::Finished { .. }) && !it.is_expired(NOW);
        let Some(record) = record.filter(is_outcome) else { return Ok(None) };
        let Outcome { fingerprint, payload, retention } = outcome;
        let judged = record.clone().complete(lease, fingerprint, payload, *retention, NOW);
        let Step { answer: Held::Applied, .. } = judged else { return Ok(Some(judged.answer)) };
        // ST9: what can be seen may not have reached the standby yet. A write waits for it.
        let confirm = statement(&self.shared().statements.confirm)
            .bind(&lease.id.as_bytes()[..])
            .bind(record::owner(&record))
            .bind(record.fence.cast_signed())
            .bind(record::state(&record))
            .fetch_optional(&mut *connection)
            .await;
        let confirmed = confirm.map_err(|error| self.undone(self.failed(error)))?;
        Ok(confirmed.map(|_| Held::Applied))
    }
}

/// What stands against a claim; nothing if the record can be claimed.
fn stands_against(record: Record, claim: &Claim) -> Option<Found> {
    match record.begin(claim, NOW) {
        Step { write: Some(_), .. } => None,
        Step { answer: Begin::Found(found), .. } => Some(found),
        // Its own claim is to be seen by others: somebody has committed it by hand.
        Step { answer: Begin::Acquired(_), .. } => Some(in_flight_elsewhere(claim)),
    }
}
