//! An operation on its way from one primary to another, for one retention.
//!
//! Processes with the list of before look in the old place only, processes with the final list in
//! the new place only, and either may run beside this one. So an attempt is held in both places or
//! not at all, and it is finished when it is finished in both. Three rules follow (decision 14):
//!
//! - **Old first to claim and to finish, new first to release.** Two processes that both know of the
//!   move meet in the old place; what stands in either place is in the way of a claim.
//! - **An outcome in the old place is copied to the new** before it is given out, so that the final
//!   list finds it. Where the two disagree, which takes a lapsed lease, the new place is right.
//! - **The fence is the higher of the two**, and the lower one is raised before a claim is granted.

use std::time::Duration;

use bytes::Bytes;
use retrysafe_core::{
    Acquired, Begin, Claim, Entry, Fingerprint, Found, Held, Inspect, Lease, Operated, OperationId,
    Owner, Resolution, State, Store, StoreError, StoreErrorKind, SystemEntropy,
};

use tokio::time::timeout;

use super::Member;

pub(super) struct Moving<'a, S> {
    pub(super) from: &'a Member<S>,
    pub(super) to: &'a Member<S>,
}

impl<S: Store + Inspect> Moving<'_, S> {
    pub(super) async fn begin(&self, claim: &Claim) -> Result<Begin, StoreError> {
        match self.from.begin(claim).await? {
            Begin::Acquired(old) => self.begin_in_new(claim, old).await,
            Begin::Found(found @ Found::Lapsed { .. }) => {
                self.or_in_new(found, &claim.id).await.map_err(StoreError::after_an_answer)
            }
            Begin::Found(Found::Finished { fingerprint, payload }) => {
                let copied = self.copy(claim, fingerprint, payload).await;
                copied.map_err(StoreError::after_an_answer)
            }
            found @ Begin::Found(Found::InFlight { .. } | Found::Free) => Ok(found),
        }
    }

    /// With the claim granted in the old place.
    async fn begin_in_new(&self, claim: &Claim, old: Acquired) -> Result<Begin, StoreError> {
        let begun = async {
            self.raise_fence(claim, old.fence).await?;
            self.to.begin(claim).await
        };
        let found = match begun.await {
            Ok(Begin::Acquired(new)) => {
                return Ok(Begin::Acquired(Acquired {
                    attempt: old.attempt.max(new.attempt),
                    fence: old.fence.max(new.fence),
                    previous_vanished: old.previous_vanished || new.previous_vanished,
                }));
            }
            Ok(Begin::Found(found)) => found,
            // The claim may stand in both places: the caller repeats it, or releases it.
            Err(error) if error.is_ambiguous() => return Err(error),
            Err(error) => return Err(self.after_giving_back(claim, error).await),
        };
        // Somebody with the final list was first. What is true is true even if the old place keeps
        // our claim until it lapses.
        let _ = self.give_back(claim).await;
        Ok(Begin::Found(found))
    }

    /// An error that says *nothing changed* has to be true of both places.
    async fn after_giving_back(&self, claim: &Claim, error: StoreError) -> StoreError {
        match self.give_back(claim).await {
            Ok(_) => error,
            Err(_) => {
                let context = format!("{error}, and its claim in the old place may still stand");
                StoreError::with_source(StoreErrorKind::Unavailable, context, error)
            }
        }
    }

    async fn give_back(&self, claim: &Claim) -> Result<Held, StoreError> {
        let lease = Lease { id: claim.id, owner: claim.owner, attempt: 0, fence: 0 };
        self.from.release(&lease, claim.retention).await
    }

    /// ST5: brings the fence of the new place to where the next claim's is not below the old place's,
    /// by claims that are released at once. There are some only if an operation was tried more than
    /// once before it began to move.
    async fn raise_fence(&self, claim: &Claim, fence: u64) -> Result<(), StoreError> {
        if fence == 1 {
            return Ok(());
        }
        let mut reached = self.to.get(&claim.id).await?.map_or(0, |entry| entry.fence);
        while reached + 1 < fence {
            let raise = Claim { owner: Owner::new(&SystemEntropy), ..claim.clone() };
            let Begin::Acquired(acquired) = self.to.begin(&raise).await? else { break };
            let lease = Lease {
                id: raise.id,
                owner: raise.owner,
                attempt: acquired.attempt,
                fence: acquired.fence,
            };
            if self.to.release(&lease, claim.retention).await? != Held::Applied {
                break;
            }
            reached = acquired.fence;
        }
        Ok(())
    }

    /// The outcome is unknown in the old place. It may be known in the new, or about to be.
    async fn or_in_new(&self, old: Found, id: &OperationId) -> Result<Begin, StoreError> {
        let Some(Entry { state, fingerprint, attempt, .. }) = self.to.get(id).await? else {
            return Ok(Begin::Found(old));
        };
        Ok(Begin::Found(match state {
            State::Finished { payload } => Found::Finished { fingerprint, payload },
            State::InFlight { lease_left } => Found::InFlight { fingerprint, attempt, lease_left },
            State::Lapsed | State::Released => old,
        }))
    }

    /// Sees to it that an outcome of the old place is in the new.
    async fn copy(
        &self,
        claim: &Claim,
        fingerprint: Fingerprint,
        payload: Bytes,
    ) -> Result<Begin, StoreError> {
        let copy = Claim {
            owner: Owner::new(&SystemEntropy),
            fingerprint: fingerprint.clone(),
            take_over: true,
            ..claim.clone()
        };
        match self.to.begin(&copy).await? {
            Begin::Acquired(acquired) => {
                let lease = Lease {
                    id: copy.id,
                    owner: copy.owner,
                    attempt: acquired.attempt,
                    fence: acquired.fence,
                };
                // Not shorter than what is left of it in the old place.
                let kept = self.to.complete(&lease, &fingerprint, payload.clone(), claim.retention);
                match kept.await? {
                    Held::Applied => Ok(Begin::Found(Found::Finished { fingerprint, payload })),
                    Held::Lost(now) => Ok(Begin::Found(now)),
                }
            }
            // Of another request, and unknown: what is known is better.
            Begin::Found(Found::Lapsed { .. } | Found::Free) => {
                Ok(Begin::Found(Found::Finished { fingerprint, payload }))
            }
            // In flight: its owner has finished in the old place, and is about to in the new.
            found @ Begin::Found(Found::Finished { .. } | Found::InFlight { .. }) => Ok(found),
        }
    }

    pub(super) async fn renew(
        &self,
        lease: &Lease,
        lease_for: Duration,
    ) -> Result<Held, StoreError> {
        match self.from.renew(lease, lease_for).await? {
            Held::Applied => self.to.renew(lease, lease_for).await,
            lost => Ok(lost),
        }
    }

    pub(super) async fn complete(
        &self,
        lease: &Lease,
        fingerprint: &Fingerprint,
        payload: Bytes,
        retention: Duration,
    ) -> Result<Held, StoreError> {
        match self.from.complete(lease, fingerprint, payload.clone(), retention).await? {
            Held::Applied => self.to.complete(lease, fingerprint, payload, retention).await,
            lost => Ok(lost),
        }
    }

    pub(super) async fn release(
        &self,
        lease: &Lease,
        keep_counters_for: Duration,
    ) -> Result<Held, StoreError> {
        let new = self.to.release(lease, keep_counters_for).await?;
        let old = self.from.release(lease, keep_counters_for).await?;
        match new {
            // A claim whose answer was lost may stand in the old place alone (D5).
            Held::Applied | Held::Lost(Found::Free) => Ok(old),
            Held::Lost(_) => Ok(new),
        }
    }

    /// Until neither place holds the attempt: what holds it in one alone is in flight all the same.
    pub(super) async fn changed(
        &self,
        id: &OperationId,
        seen: u32,
        within: Duration,
    ) -> Result<(), StoreError> {
        let neither = async {
            self.from.changed(id, seen, within).await?;
            self.to.changed(id, seen, within).await
        };
        timeout(within, neither).await.unwrap_or(Ok(()))
    }

    pub(super) async fn get(&self, id: &OperationId) -> Result<Option<Entry>, StoreError> {
        let old = self.from.get(id).await?;
        let new = self.to.get(id).await?;
        let (Some(old), Some(new)) = (&old, &new) else {
            return Ok(old.or(new));
        };
        let (attempt, fence) = (old.attempt.max(new.attempt), old.fence.max(new.fence));
        let previous_vanished = old.previous_vanished || new.previous_vanished;
        // As `begin` would judge it: in flight if either is, else what is known, the new first.
        let rank = |entry: &Entry| match entry.state {
            State::InFlight { .. } => 3,
            State::Finished { .. } => 2,
            State::Lapsed => 1,
            State::Released => 0,
        };
        let told = if rank(old) > rank(new) { old } else { new };
        Ok(Some(Entry { attempt, fence, previous_vanished, ..told.clone() }))
    }

    pub(super) async fn forget(&self, id: &OperationId) -> Result<Operated, StoreError> {
        match self.from.forget(id).await? {
            Operated::Refused => Ok(Operated::Refused),
            old => Ok(both(old, self.to.forget(id).await?)),
        }
    }

    pub(super) async fn resolve(
        &self,
        id: &OperationId,
        seen: u32,
        resolution: Resolution,
    ) -> Result<Operated, StoreError> {
        match self.from.resolve(id, seen, resolution.clone()).await? {
            Operated::Refused => Ok(Operated::Refused),
            old => Ok(both(old, self.to.resolve(id, seen, resolution).await?)),
        }
    }
}

/// Refused by one is refused; done in one is done.
fn both(old: Operated, new: Operated) -> Operated {
    match (old, new) {
        (Operated::Refused, _) | (_, Operated::Refused) => Operated::Refused,
        (Operated::Applied, _) | (_, Operated::Applied) => Operated::Applied,
        (Operated::NotFound, Operated::NotFound) => Operated::NotFound,
    }
}
