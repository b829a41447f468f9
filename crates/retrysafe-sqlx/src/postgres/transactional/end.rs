//! How a transaction ends: with its outcome, or not at all.

use std::time::Duration;

use bytes::Bytes;
use retrysafe_core::{
    Begin, Claim, Fingerprint, Held, Lease, Store as _, StoreError, StoreErrorKind,
    lifecycle::{Phase, Step},
};
use sqlx::{PgConnection, Postgres, Transaction};
use tokio::time::{Instant, timeout_at};

use super::TransactionalPostgres;
use crate::{
    failpoint,
    postgres::{
        call::statement,
        failure::Failure,
        record::{self, NOW, interval},
    },
    transactional::Taken,
};

/// What is written of an attempt.
pub(super) struct Outcome<'a> {
    pub(super) fingerprint: &'a Fingerprint,
    pub(super) payload: Bytes,
    pub(super) retention: Duration,
}

/// How a commit went.
enum Committed {
    Yes,
    /// The server said so.
    No(StoreError),
    /// Its answer was lost.
    Unknown,
}

impl TransactionalPostgres {
    /// Writes the outcome in the transaction of its attempt, and commits.
    pub(super) async fn finish(
        &self,
        lease: &Lease,
        outcome: &Outcome<'_>,
    ) -> Result<Held, StoreError> {
        self.shared.records.shared.check_size(&outcome.payload)?;
        let until = Instant::now() + self.shared.settings.timeout;
        // The duplicates of this process wait until this is dropped.
        let Some(attempt) = self.shared.flights.end(lease) else {
            return self.look_up(lease, outcome, until).await;
        };
        let transaction = match attempt.slot.take() {
            Taken::Whole(transaction) => transaction,
            Taken::Kept => return Err(self.escaped("kept its transaction")),
        };
        if attempt.slot.is_undone() {
            return self
                .keep_without_work(transaction, &attempt.claim, lease, outcome, until)
                .await;
        }
        self.keep(transaction, &attempt.claim, lease, outcome, until).await
    }

    /// Rolls the transaction of an attempt back. What can't be rolled back any more is undone with
    /// its connection.
    pub(super) async fn undo(&self, lease: &Lease) -> Result<Held, StoreError> {
        let until = Instant::now() + self.shared.settings.timeout;
        // A claim that was never answered holds nothing: its transaction went with it.
        let Some(attempt) = self.shared.flights.end(lease) else { return Ok(Held::Applied) };
        // One that is kept is rolled back when it is let go.
        let Taken::Whole(mut transaction) = attempt.slot.take() else { return Ok(Held::Applied) };
        let rolled_back = async {
            let own = self.is_own(&mut transaction, lease).await;
            let _ = transaction.rollback().await;
            own
        };
        // A transaction that has failed says nothing any more, and has done nothing.
        let Ok(Ok(false)) = timeout_at(until, rolled_back).await else { return Ok(Held::Applied) };
        self.leave_in_doubt(&attempt.claim, until).await;
        Err(self.escaped("ended its transaction by itself"))
    }

    async fn keep(
        &self,
        mut transaction: Transaction<'static, Postgres>,
        claim: &Claim,
        lease: &Lease,
        outcome: &Outcome<'_>,
        until: Instant,
    ) -> Result<Held, StoreError> {
        failpoint::reached("before the outcome");
        let written = self.write(&mut transaction, lease, outcome);
        match self.within(until, written).await {
            Ok(true) => {}
            Ok(false) => {
                let _ = timeout_at(until, transaction.rollback()).await;
                self.leave_in_doubt(claim, until).await;
                return Err(self.escaped("ended its transaction by itself"));
            }
            Err(failure) => {
                // Nothing was committed, whatever is the matter. In PostgreSQL a statement that
                // fails takes its transaction along, also if the handler did not mind.
                let _ = timeout_at(until, transaction.rollback()).await;
                return Err(self.undone(failure));
            }
        }
        match self.commit(transaction, until).await {
            Committed::Yes => Ok(Held::Applied),
            Committed::No(error) => Err(error),
            Committed::Unknown => self.look_up(lease, outcome, until).await,
        }
    }

    /// The handler refused: what it did is rolled back, and the refusal is kept by a transaction of
    /// its own. Whoever claims in between runs an operation of which nothing has happened, and then
    /// its outcome is the one.
    async fn keep_without_work(
        &self,
        mut transaction: Transaction<'static, Postgres>,
        claim: &Claim,
        lease: &Lease,
        outcome: &Outcome<'_>,
        until: Instant,
    ) -> Result<Held, StoreError> {
        let rolled_back = async {
            let own = self.is_own(&mut transaction, lease).await;
            (own, transaction.rollback().await)
        };
        if let Ok((Ok(false), _)) = timeout_at(until, rolled_back).await {
            self.leave_in_doubt(claim, until).await;
            return Err(self.escaped("ended its transaction by itself"));
        }
        let connection = self.connection(until).await?;
        failpoint::reached("between rollback and refusal");
        match self.open(claim, connection, until, until).await? {
            Ok((mut transaction, _)) => {
                match self.within(until, self.write(&mut transaction, lease, outcome)).await {
                    Ok(_) => {}
                    Err(failure) => return Err(self.undone(failure)),
                }
                match self.commit(transaction, until).await {
                    Committed::Yes => Ok(Held::Applied),
                    Committed::No(error) => Err(error),
                    Committed::Unknown => self.look_up(lease, outcome, until).await,
                }
            }
            Err(found) => Ok(Held::Lost(found)),
        }
    }

    /// Writes the outcome; `false` if the transaction is not the one that claimed.
    async fn write(
        &self,
        transaction: &mut PgConnection,
        lease: &Lease,
        outcome: &Outcome<'_>,
    ) -> Result<bool, Failure> {
        let rows = statement(&self.shared.statements.finish)
            .bind(&lease.id.as_bytes()[..])
            .bind(lease.owner.to_bytes().to_vec())
            .bind(outcome.fingerprint.encode())
            .bind(&outcome.payload[..])
            .bind(interval(outcome.retention))
            .fetch_optional(transaction)
            .await
            .map_err(|error| self.failed(error))?;
        Ok(rows.is_some())
    }

    async fn is_own(
        &self,
        transaction: &mut PgConnection,
        lease: &Lease,
    ) -> Result<bool, sqlx::Error> {
        let row = statement(&self.shared.statements.is_own)
            .bind(&lease.id.as_bytes()[..])
            .bind(lease.owner.to_bytes().to_vec())
            .fetch_optional(transaction)
            .await?;
        Ok(row.is_some())
    }

    async fn commit(
        &self,
        transaction: Transaction<'static, Postgres>,
        until: Instant,
    ) -> Committed {
        failpoint::reached("before the commit");
        let committed = timeout_at(until, transaction.commit()).await;
        failpoint::reached("after the commit");
        match committed {
            Ok(Ok(())) => Committed::Yes,
            // A constraint that was deferred, a serialization failure: the transaction has failed.
            // Anything that ends the session leaves open which of the two it was.
            Ok(Err(error)) if is_plain(&error) => Committed::No(self.undone(self.failed(error))),
            Ok(Err(_)) | Err(_) => Committed::Unknown,
        }
    }

    /// What became of an attempt whose transaction is gone, on another connection.
    async fn look_up(
        &self,
        lease: &Lease,
        outcome: &Outcome<'_>,
        until: Instant,
    ) -> Result<Held, StoreError> {
        // The answer was lost because the connection was: the next may be no better.
        const PAUSE: Duration = Duration::from_millis(20);
        loop {
            let answer = self.look(lease, outcome, until).await;
            match answer {
                Err(error) if Instant::now() + PAUSE >= until => return Err(error),
                Err(error) if error.kind() == StoreErrorKind::Unreadable => return Err(error),
                Err(_) => tokio::time::sleep(PAUSE).await,
                Ok(Some(held)) => return Ok(held),
                Ok(None) => return Err(self.not_found()),
            }
        }
    }

    async fn look(
        &self,
        lease: &Lease,
        outcome: &Outcome<'_>,
        until: Instant,
    ) -> Result<Option<Held>, StoreError> {
        let statements = &self.shared.records.shared.statements;
        let looked = async {
            let mut connection = self.connection(until).await?;
            let row = statement(&statements.get)
                .bind(&lease.id.as_bytes()[..])
                .fetch_optional(&mut *connection)
                .await
                .map_err(|error| self.failed(error))?;
            let Some(row) = row else { return Ok(None) };
            let record = record::read(&row)?;
            let is_kept = matches!(record.phase, Phase::Finished { .. });
            if !is_kept || record.is_expired(NOW) {
                return Ok(None);
            }
            let Outcome { fingerprint, payload, retention } = outcome;
            let judged = record.clone().complete(lease, fingerprint, payload, *retention, NOW);
            let Step { answer: Held::Applied, .. } = judged else { return Ok(Some(judged.answer)) };
            // ST9: what can be seen may not have reached the standby yet. A write waits for it.
            let confirmed = statement(&statements.confirm)
                .bind(&lease.id.as_bytes()[..])
                .bind(record::owner(&record))
                .bind(record.fence.cast_signed())
                .bind(record::state(&record))
                .fetch_optional(&mut *connection)
                .await
                .map_err(|error| self.failed(error))?;
            Ok(confirmed.is_some().then_some(Held::Applied))
        };
        match self.within(until, looked).await {
            Ok(held) => Ok(held),
            Err(Failure::Store(error)) => Err(error),
            Err(Failure::Conflict) => Err(self.not_found()),
        }
    }

    /// The handler has ended its transaction by itself, so nobody knows what it did: the record says
    /// so, and D3 decides. If that can't be written, a claim that was committed by hand lapses by
    /// itself.
    async fn leave_in_doubt(&self, claim: &Claim, until: Instant) {
        let records = &self.shared.records;
        let doubt = async {
            let begun = records.begin(claim).await?;
            if let Begin::Acquired(acquired) = begun {
                let lease = Lease {
                    id: claim.id,
                    owner: claim.owner,
                    attempt: acquired.attempt,
                    fence: acquired.fence,
                };
                let _ = records.renew(&lease, Duration::ZERO).await?;
            }
            Ok::<_, StoreError>(())
        };
        if let Ok(Err(error)) = timeout_at(until, doubt).await {
            tracing::error!(operation = %claim.id, %error, "an unknown outcome could not be noted");
        }
    }

    fn escaped(&self, what: &str) -> StoreError {
        let context = format!("{}: the handler {what}", self.place());
        StoreError::new(StoreErrorKind::Escaped, context)
    }

    fn not_found(&self) -> StoreError {
        let context = format!("{}: a commit was not answered, and can't be seen", self.place());
        StoreError::new(StoreErrorKind::Unavailable, context)
    }

    /// Nothing has happened.
    fn undone(&self, failure: Failure) -> StoreError {
        match failure {
            Failure::Store(error) => error,
            Failure::Conflict => {
                let context = format!("{}: undone, because of what others did", self.place());
                StoreError::new(StoreErrorKind::Unavailable, context)
            }
        }
    }
}

/// Whether the server refused a statement and the session goes on.
fn is_plain(error: &sqlx::Error) -> bool {
    use sqlx::postgres::{PgDatabaseError, PgSeverity};
    let error = error.as_database_error().and_then(|it| it.try_downcast_ref::<PgDatabaseError>());
    error.is_some_and(|error| matches!(error.severity(), PgSeverity::Error))
}
