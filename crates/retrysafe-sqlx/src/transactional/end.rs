//! How a transaction ends: with its outcome, or not at all.

use std::{future::Future, time::Duration};

use retrysafe_core::{
    Begin, Claim, Found, Held, Lease, Store as _, StoreError, StoreErrorKind, failpoint,
};
use sqlx::Transaction;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Core, Looked, Outcome, Side, transaction::Taken};

impl<S: Side> Core<S> {
    /// Writes the outcome in the transaction of its attempt, and commits.
    pub(crate) async fn complete(
        &self,
        lease: &Lease,
        outcome: &Outcome<'_>,
    ) -> Result<Held, StoreError> {
        self.side.check_size(&outcome.payload)?;
        let until = Instant::now() + self.settings.timeout;
        // The duplicates of this process wait until this is dropped.
        let Some(attempt) = self.flights.end(lease) else {
            return self.look_up(lease, outcome, until).await;
        };
        let (undone, committed) = (attempt.slot.is_undone(), attempt.slot.is_committed());
        let mut transaction = match attempt.slot.take() {
            // Of an attempt that has committed parts, these stay.
            Taken::Whole(transaction) if undone && committed => {
                let _ = timeout_at(until, transaction.rollback()).await;
                return self.finish(lease, outcome, until).await;
            }
            Taken::Whole(transaction) if undone => {
                self.roll_back(transaction, &attempt.claim, lease, until).await?;
                return self.keep_without_work(&attempt.claim, lease, outcome, until).await;
            }
            Taken::Whole(transaction) => transaction,
            Taken::Between => return self.finish(lease, outcome, until).await,
            Taken::Spoiled if undone && !committed => {
                return self.keep_without_work(&attempt.claim, lease, outcome, until).await;
            }
            Taken::Spoiled => {
                let context = format!("{}: the work was undone", self.side.place());
                return Err(StoreError::new(StoreErrorKind::Unavailable, context));
            }
            Taken::Escaped => {
                self.leave_in_doubt(&attempt.claim, until).await;
                return Err(self.escaped("ended its transaction by itself"));
            }
            Taken::Kept => return Err(self.escaped("kept its transaction")),
        };
        failpoint::reached("before the outcome");
        match self.within(until, self.side.write(&mut transaction, lease, outcome)).await {
            Ok(true) => self.commit(transaction, lease, outcome, until).await,
            Ok(false) => {
                let _ = timeout_at(until, transaction.rollback()).await;
                self.leave_in_doubt(&attempt.claim, until).await;
                Err(self.escaped("ended its transaction by itself"))
            }
            Err(error) => {
                let _ = timeout_at(until, transaction.rollback()).await;
                Err(error)
            }
        }
    }

    /// Rolls the transaction of an attempt back. What can't be rolled back any more is undone with
    /// its connection.
    pub(crate) async fn undo(&self, lease: &Lease) -> Result<Held, StoreError> {
        let until = Instant::now() + self.settings.timeout;
        // A claim that was never answered holds nothing: its transaction went with it.
        let Some(attempt) = self.flights.end(lease) else { return Ok(Held::Applied) };
        let committed = attempt.slot.is_committed();
        match attempt.slot.take() {
            Taken::Whole(transaction) if committed => {
                let _ = timeout_at(until, transaction.rollback()).await;
            }
            Taken::Whole(transaction) => {
                self.roll_back(transaction, &attempt.claim, lease, until).await?;
            }
            // Nobody knows what it did, so the key is not free.
            Taken::Escaped => {
                self.leave_in_doubt(&attempt.claim, until).await;
                return Err(self.escaped("ended its transaction by itself"));
            }
            // One that is kept is rolled back when it is let go.
            Taken::Between | Taken::Spoiled | Taken::Kept => {}
        }
        if !committed {
            return Ok(Held::Applied);
        }
        // What was committed stays, and somebody has to go on with it: the key is not free.
        let records = self.side.records();
        match self.within(until, records.renew(lease, Duration::ZERO)).await? {
            // It was not committed after all.
            Held::Lost(Found::Free) => Ok(Held::Applied),
            held => Ok(held),
        }
    }

    /// Writes the outcome of an attempt whose work is committed already.
    async fn finish(
        &self,
        lease: &Lease,
        outcome: &Outcome<'_>,
        until: Instant,
    ) -> Result<Held, StoreError> {
        let Outcome { fingerprint, payload, retention } = outcome;
        let records = self.side.records();
        let finished = records.complete(lease, fingerprint, payload.clone(), *retention);
        self.within(until, finished).await
    }

    /// The handler refused: what it did is rolled back, and the refusal is kept by a transaction of
    /// its own. Whoever claims in between runs an operation of which nothing has happened, and then
    /// its outcome is the one.
    async fn keep_without_work(
        &self,
        claim: &Claim,
        lease: &Lease,
        outcome: &Outcome<'_>,
        until: Instant,
    ) -> Result<Held, StoreError> {
        failpoint::reached("between rollback and refusal");
        let (seen, locked) = match self.side.look(claim, until).await? {
            Looked::Found(found) => return Ok(Held::Lost(found)),
            Looked::Free { seen, locked } => (seen, locked),
        };
        match self.claim(claim, seen, locked, until, until).await? {
            Ok((mut transaction, _)) => {
                // In a transaction that nobody else has had.
                self.within(until, self.side.write(&mut transaction, lease, outcome)).await?;
                self.commit(transaction, lease, outcome, until).await
            }
            Err(found) => Ok(Held::Lost(found)),
        }
    }

    async fn roll_back(
        &self,
        transaction: Transaction<'static, S::Database>,
        claim: &Claim,
        lease: &Lease,
        until: Instant,
    ) -> Result<(), StoreError> {
        let ended_before = self.side.roll_back(transaction, lease, until);
        if timeout_at(until, ended_before).await != Ok(true) {
            return Ok(());
        }
        self.leave_in_doubt(claim, until).await;
        Err(self.escaped("ended its transaction by itself"))
    }

    async fn commit(
        &self,
        transaction: Transaction<'static, S::Database>,
        lease: &Lease,
        outcome: &Outcome<'_>,
        until: Instant,
    ) -> Result<Held, StoreError> {
        failpoint::reached("before the commit");
        let committed = timeout_at(until, transaction.commit()).await;
        failpoint::reached("after the commit");
        match committed {
            Ok(Ok(())) => Ok(Held::Applied),
            Ok(Err(error)) => match self.side.not_committed(error) {
                Some(error) => Err(error),
                None => self.look_up(lease, outcome, until).await,
            },
            Err(_) => Err(self.late()),
        }
    }

    /// What became of an attempt whose transaction is gone, by another connection.
    async fn look_up(
        &self,
        lease: &Lease,
        outcome: &Outcome<'_>,
        until: Instant,
    ) -> Result<Held, StoreError> {
        // The answer was lost because the connection was: the next may be no better.
        const PAUSE: Duration = Duration::from_millis(20);
        loop {
            match self.within(until, self.side.find(lease, outcome, until)).await {
                Ok(Some(held)) => return Ok(held),
                Ok(None) => {
                    let place = self.side.place();
                    let context = format!("{place}: a commit was not answered, and can't be seen");
                    return Err(StoreError::new(StoreErrorKind::Unavailable, context));
                }
                Err(error) if error.kind() == StoreErrorKind::Unreadable => return Err(error),
                Err(error) if Instant::now() + PAUSE >= until => return Err(error),
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    /// The handler has ended its transaction by itself, so nobody knows what it did: the record says
    /// so, and D3 decides. If that can't be written, a claim that was committed by hand lapses by
    /// itself.
    async fn leave_in_doubt(&self, claim: &Claim, until: Instant) {
        let records = self.side.records();
        let doubt = async {
            if let Begin::Acquired(acquired) = records.begin(claim).await? {
                let lease = Lease {
                    id: claim.id,
                    owner: claim.owner,
                    attempt: acquired.attempt,
                    fence: acquired.fence,
                };
                let _ = records.renew(&lease, Duration::ZERO).await?;
            }
            Ok(())
        };
        if let Err(error) = self.within(until, doubt).await {
            tracing::error!(operation = %claim.id, %error, "an unknown outcome could not be noted");
        }
    }

    pub(super) async fn within<T>(
        &self,
        until: Instant,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        timeout_at(until, call).await.unwrap_or_else(|_| Err(self.late()))
    }

    fn escaped(&self, what: &str) -> StoreError {
        let context = format!("{}: the handler {what}", self.side.place());
        StoreError::new(StoreErrorKind::Escaped, context)
    }
}
