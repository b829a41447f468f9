//! How a transaction is opened, and what it claims.

use std::{sync::Arc, time::Duration};

use retrysafe_core::{
    Acquired, Begin, Claim, Found, StoreError, StoreErrorKind,
    lifecycle::{Record, Step},
};
use sqlx::{
    AssertSqlSafe, PgConnection, Postgres, SqlSafeStr as _, SqlStr, Transaction,
    pool::PoolConnection,
};
use tokio::time::{Instant, timeout_at};

use super::{TransactionalPostgres, builder::Settings};
use crate::{
    failpoint,
    postgres::{
        acquired,
        call::statement,
        failure::{self, Failure},
        is_done, observed,
        record::{self, NOW, interval},
        statements,
    },
    table::TableName,
    transactional::in_flight_elsewhere,
};

/// How long a claim waits on a row without the right to wait: as long as somebody's commit takes.
const GLANCE: Duration = Duration::from_millis(20);

pub(super) struct Statements {
    begin: String,
    /// As the ordinary ones, and they give the handler its own `lock_timeout` back.
    claim: SqlStr,
    claim_again: SqlStr,
    /// `$1` id, `$2` owner, `$3` fingerprint, `$4` payload, `$5` retention. No row: the transaction
    /// is not the one that claimed.
    pub(super) finish: SqlStr,
    /// `$1` id, `$2` owner.
    pub(super) is_own: SqlStr,
}

impl Statements {
    pub(super) fn new(table: &TableName, settings: &Settings) -> Self {
        let level = settings.isolation.map(|level| format!(" ISOLATION LEVEL {}", level.as_str()));
        let sql = |text: String| AssertSqlSafe(Arc::<str>::from(text)).into_sql_str();
        let table_name = table.quoted('"');
        // A row that this very transaction has written. Who commits by hand is in another one.
        let own = "r.id = $1 AND r.owner = $2 AND r.layout = 1 AND r.state = 0 \
            AND r.xmin::text::bigint = txid_current() & 4294967295";
        Self {
            begin: format!("BEGIN{}", level.unwrap_or_default()),
            claim: sql(statements::claim(&table_name)),
            claim_again: sql(statements::claim_again(&table_name)),
            finish: sql(format!(
                "UPDATE {table_name} r SET state = 1, lease_until = NULL, retention = NULL,
                    previous_vanished = false, fingerprint = $3, payload = $4,
                    expires_at = clock_timestamp() + $5
                WHERE {own} RETURNING 1"
            )),
            is_own: sql(format!("SELECT 1 FROM {table_name} r WHERE {own}")),
        }
    }

    /// One request: the bound goes on until the claim is granted.
    fn begin(&self, lock_timeout: Duration) -> SqlStr {
        let milliseconds = lock_timeout.as_millis().max(1);
        AssertSqlSafe(format!(
            "{}; SELECT set_config('retrysafe.lock_timeout', current_setting('lock_timeout'), true); \
             SELECT set_config('lock_timeout', '{milliseconds}ms', true)",
            self.begin
        ))
        .into_sql_str()
    }
}

/// A transaction that holds an operation, and what was granted.
pub(super) type Held = (Transaction<'static, Postgres>, Acquired);

/// What a transaction that was opened for a claim came to.
pub(super) enum Opened {
    Granted(Transaction<'static, Postgres>, Acquired),
    Found(Found),
    /// Others were faster: look again.
    Again,
    /// Another transaction holds the row.
    Locked,
}

impl TransactionalPostgres {
    /// What stands against a claim, by a plain read; `None` if it may be granted.
    pub(super) async fn standing(
        &self,
        connection: &mut PgConnection,
        claim: &Claim,
        until: Instant,
    ) -> Result<Option<Found>, StoreError> {
        let get = &self.shared.records.shared.statements.get;
        let read = async {
            let get = statement(get).bind(&claim.id.as_bytes()[..]);
            get.fetch_optional(connection).await.map_err(|error| self.failed(error))
        };
        let row = match self.within(until, read).await {
            Ok(row) => row,
            Err(Failure::Store(error)) => return Err(error),
            // A plain read is undone by nobody but a level that is too strict; the claim finds out.
            Err(Failure::Conflict) => None,
        };
        let Some(row) = row else { return Ok(None) };
        let record = record::read(&row)?;
        if record.is_expired(NOW) { Ok(None) } else { Ok(stands_against(record, claim).err()) }
    }

    /// A transaction that holds the operation, or what is true of it.
    pub(super) async fn open(
        &self,
        claim: &Claim,
        connection: PoolConnection<Postgres>,
        wait_until: Instant,
        until: Instant,
    ) -> Result<Result<Held, Found>, StoreError> {
        let (mut given, mut right_to_wait) = (Some(connection), None);
        loop {
            let connection = match given.take() {
                Some(connection) => connection,
                None => self.connection(until).await?,
            };
            let lock_timeout = match &right_to_wait {
                None => GLANCE.min(self.shared.settings.wait),
                Some(_) => wait_until.saturating_duration_since(Instant::now()),
            };
            let claimed = self.try_claim(connection, claim, lock_timeout);
            match self.within(until, claimed).await {
                Ok(Opened::Granted(transaction, acquired)) => {
                    return Ok(Ok((transaction, acquired)));
                }
                Ok(Opened::Found(found)) => return Ok(Err(found)),
                Ok(Opened::Locked) => {
                    // waiters_eat_pool: who waits on a row holds a connection.
                    let may_wait = right_to_wait.is_none() && Instant::now() < wait_until;
                    right_to_wait = match self.shared.waiting.try_acquire() {
                        Ok(right) if may_wait => Some(right),
                        _ => return Ok(Err(in_flight_elsewhere(claim))),
                    };
                }
                Ok(Opened::Again) => self.again(until)?,
                Err(Failure::Conflict) => self.again(until)?,
                Err(Failure::Store(error)) => return Err(error),
            }
        }
    }

    async fn try_claim(
        &self,
        connection: PoolConnection<Postgres>,
        claim: &Claim,
        lock_timeout: Duration,
    ) -> Result<Opened, Failure> {
        let begin = Some(self.shared.statements.begin(lock_timeout));
        let mut transaction =
            Transaction::begin(connection, begin).await.map_err(|error| self.failed(error))?;
        failpoint::reached("after BEGIN");
        let claimed = self.claim_in(&mut transaction, claim).await;
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
    ) -> Result<Claimed, Failure> {
        let row = statement(&self.shared.statements.claim)
            .bind(&claim.id.as_bytes()[..])
            .bind(claim.owner.to_bytes().to_vec())
            .bind(claim.fingerprint.encode())
            .bind(interval(claim.lease))
            .bind(interval(claim.retention))
            .fetch_optional(&mut *transaction)
            .await
            .map_err(|error| self.failed(error))?;
        let Some(row) = row else { return Ok(Claimed::Again) };
        if is_done(&row) {
            let first = Acquired { attempt: 1, fence: 1, previous_vanished: false };
            return Ok(Claimed::Granted(first));
        }
        let record = record::read(&row)?;
        if let Err(found) = stands_against(record.clone(), claim) {
            return Ok(Claimed::Found(found));
        }
        let row = observed(&self.shared.statements.claim_again, &record)
            .bind(claim.owner.to_bytes().to_vec())
            .bind(claim.fingerprint.encode())
            .bind(interval(claim.lease))
            .bind(interval(claim.retention))
            .fetch_optional(transaction)
            .await
            .map_err(|error| self.failed(error))?;
        Ok(row.as_ref().and_then(acquired).map_or(Claimed::Again, Claimed::Granted))
    }

    /// A connection of the pool. Nothing was sent before there is one.
    pub(super) async fn connection(
        &self,
        until: Instant,
    ) -> Result<PoolConnection<Postgres>, StoreError> {
        let lend_until = (Instant::now() + self.shared.settings.timeout / 2).min(until);
        match timeout_at(lend_until, self.shared.pool.acquire()).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(failure::open(self.place(), error).into()),
            Err(_) => {
                let context = format!("{}: the pool had no connection in time", self.place());
                Err(StoreError::new(StoreErrorKind::Unreachable, context))
            }
        }
    }

    pub(super) async fn within<T>(
        &self,
        until: Instant,
        call: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        timeout_at(until, call).await.unwrap_or_else(|_| Err(self.late().into()))
    }

    /// Before it is tried again because others were faster. At the latest the deadline ends it.
    fn again(&self, until: Instant) -> Result<(), StoreError> {
        if Instant::now() < until { Ok(()) } else { Err(self.late()) }
    }

    fn late(&self) -> StoreError {
        let context = format!("{} did not answer in time", self.place());
        StoreError::new(StoreErrorKind::Timeout, context)
    }

    pub(super) fn failed(&self, error: sqlx::Error) -> Failure {
        failure::statement(self.place(), &self.shared.records.shared.table_name(), error)
    }
}

/// What a claim came to within its transaction.
enum Claimed {
    Granted(Acquired),
    Found(Found),
    Again,
}

/// Whether a record can be claimed; what is true of it if not.
fn stands_against(record: Record, claim: &Claim) -> Result<(), Found> {
    match record.begin(claim, NOW) {
        Step { write: Some(_), .. } => Ok(()),
        Step { answer: Begin::Found(found), .. } => Err(found),
        // Its own claim is to be seen by others: somebody has committed it by hand.
        Step { answer: Begin::Acquired(_), .. } => Err(in_flight_elsewhere(claim)),
    }
}
