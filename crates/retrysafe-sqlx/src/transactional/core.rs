//! How an operation is claimed: by the first of a process, in a transaction.

use std::{sync::Arc, time::Duration};

use retrysafe_core::{
    About, Acquired, Begin, Claim, Found, Held, Lease, OperationId, Store as _, StoreError,
    StoreErrorKind, Swept, Unit, failpoint,
};
use sqlx::Transaction;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};

use super::{
    Looked, Opened, Side,
    builder::Settings,
    flights::{Entered, Flights, in_flight_elsewhere},
    transaction::Slot,
};

/// How often a waiter looks for what another process did.
const POLL: Duration = Duration::from_millis(100);

/// A store whose records commit with the work, on one engine.
pub(crate) struct Core<S: Side> {
    pub(crate) side: S,
    pub(super) settings: Settings,
    pub(super) flights: Flights<S::Database>,
    /// The right to wait on a row.
    waiting: Semaphore,
}

/// A transaction that holds an operation, and what was granted; or what is true of it.
pub(super) type Claimed<DB> = Result<(Transaction<'static, DB>, Acquired), Found>;

impl<S: Side> Core<S> {
    pub(crate) fn new(side: S, settings: Settings, waiting: usize) -> Self {
        let (flights, waiting) = (Flights::default(), Semaphore::new(waiting));
        Self { side, settings, flights, waiting }
    }

    pub(crate) fn about(&self) -> About {
        self.side.records().about()
    }

    pub(crate) async fn begin(&self, claim: &Claim) -> Result<Begin, StoreError> {
        let start = Instant::now();
        let wait_until = start + self.settings.wait;
        let until = start + self.settings.timeout;
        failpoint::reached("before the claim");
        let mut known = false;
        loop {
            let entered = match self.flights.held(claim) {
                Some(held) => held,
                None => {
                    let looked = self.side.look(claim, until).await;
                    let (seen, locked) = match looked {
                        Ok(Looked::Found(found)) => return Ok(Begin::Found(found)),
                        Ok(Looked::Free { seen, locked }) => (seen, locked),
                        // D4: what this process has waited for may have been done.
                        Err(error) if known => return Err(error.after_an_answer()),
                        Err(error) => return Err(error),
                    };
                    match self.flights.enter(claim) {
                        Entered::Place(place) => {
                            let claimed = self.claim(claim, seen, locked, wait_until, until);
                            let claimed = claimed.await.map_err(StoreError::after_an_answer);
                            return Ok(match claimed? {
                                Ok((transaction, acquired)) => {
                                    place.granted(claim, acquired, Slot::new(transaction));
                                    failpoint::reached("after the claim");
                                    Begin::Acquired(acquired)
                                }
                                Err(found) => Begin::Found(found),
                            });
                        }
                        // waiters_eat_pool: what was seen is given back before it waits, with its
                        // connection.
                        other => other,
                    }
                }
            };
            match entered {
                Entered::Taken(seen) => {
                    known = true;
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

    /// Claims an operation that nobody of this process works on.
    pub(super) async fn claim(
        &self,
        claim: &Claim,
        seen: S::Seen,
        mut locked: bool,
        wait_until: Instant,
        until: Instant,
    ) -> Result<Claimed<S::Database>, StoreError> {
        let (mut next, mut right_to_wait) = (Some(seen), None);
        loop {
            if locked {
                // waiters_eat_pool: who waits on a row holds a connection.
                let may_wait = right_to_wait.is_none() && Instant::now() < wait_until;
                right_to_wait = match self.waiting.try_acquire() {
                    Ok(right) if may_wait => Some(right),
                    _ => return Ok(Err(in_flight_elsewhere(claim))),
                };
            }
            let seen = match next.take() {
                Some(seen) => seen,
                None => match self.side.look(claim, until).await? {
                    Looked::Found(found) => return Ok(Err(found)),
                    Looked::Free { seen, .. } => seen,
                },
            };
            let bound = wait_until.saturating_duration_since(Instant::now());
            let bound = right_to_wait.as_ref().map(|_| bound);
            locked = match self.side.claim(claim, seen, bound, until).await? {
                Opened::Granted(transaction, acquired) => return Ok(Ok((transaction, acquired))),
                Opened::Found(found) => return Ok(Err(found)),
                Opened::Locked => true,
                Opened::Again => false,
            };
            // Each time somebody was faster, so this ends; at the latest here.
            if Instant::now() >= until {
                return Err(self.late());
            }
        }
    }

    /// The lease is as good as the transaction: nobody takes over what it holds. That goes for one
    /// that is being committed, too: nobody else can see the claim in it, and the lease that it leaves
    /// began with its last statement.
    pub(crate) async fn renew(
        &self,
        lease: &Lease,
        lease_for: Duration,
    ) -> Result<Held, StoreError> {
        if lease_for.is_zero() {
            return self.undo(lease).await;
        }
        match self.flights.slot(lease) {
            // Between two parts it is a lease like any other.
            Some(slot) if slot.is_between() => {
                let sent = Instant::now();
                let held = self.side.records().renew(lease, lease_for).await?;
                match held {
                    Held::Applied => slot.held_from(sent),
                    Held::Lost(_) => slot.doubt(),
                }
                Ok(held)
            }
            Some(_) => Ok(Held::Applied),
            None => Ok(Held::Lost(Found::Free)),
        }
    }

    pub(crate) async fn changed(&self, id: &OperationId, seen: u32, within: Duration) {
        if !self.flights.over(id, seen, within).await {
            // In another process: nobody can see how far it is. Jitter keeps many from asking at
            // once.
            sleep(POLL.mul_f64(rand::random_range(0.5..1.5)).min(within)).await;
        }
    }

    pub(crate) async fn sweep(&self, limit: usize) -> Result<Swept, StoreError> {
        self.side.records().sweep(limit).await
    }

    pub(crate) fn unit(self: &Arc<Self>, lease: &Lease) -> Option<Arc<dyn Unit>> {
        let (claim, slot) = self.flights.attempt(lease)?;
        slot.know(self.clone(), lease, &claim);
        Some(slot)
    }

    pub(super) fn late(&self) -> StoreError {
        let context = format!("{} did not answer in time", self.side.place());
        StoreError::new(StoreErrorKind::Timeout, context)
    }
}
