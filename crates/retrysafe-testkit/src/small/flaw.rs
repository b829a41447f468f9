//! The ways to get a store wrong.

use std::time::Duration;

use retrysafe_core::{Begin, Claim, Held};

use crate::model::{Answer, Call, Model, Phase, Record};

/// A mistake that a store can make. The suite catches every one of them; that is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// `begin` looks, and later writes what it decided then.
    CheckThenSet,
    /// A take-over writes over what has been written since it looked.
    StaleTakeOver,
    /// A lease whose end was reached is taken over although the record is finished.
    TakesOverFinished,
    /// A live lease is taken over.
    TakesOverLive,
    /// A take-over does not look at the fingerprint.
    TakesOverAnyRequest,
    /// `release` does not look at the owner.
    LoserFreesOwner,
    /// `complete` does not look at the owner.
    UnfencedComplete,
    /// A lease that is too long to be written is read as one that has ended.
    MissingDeadline,
    /// `release` removes the record with its counters.
    ReleaseForgetsCounters,
    /// The fence begins anew after a release; attempts are counted on.
    FenceRestarts,
    /// The lease of a claim over an expired record is counted from that record's end.
    LeaseFromExpired,
    /// A repeated `begin` of the owner finds its own claim in its way.
    RepeatedBeginLosesClaim,
    /// A repeated `begin` of the owner extends the lease.
    RepeatedBeginExtendsLease,
    /// A late `begin` of an owner that has released acquires again.
    LateBeginReacquires,
    /// A repeated `complete` writes again.
    RepeatedCompleteOverwrites,
    /// A repeated `complete` is told that it lost.
    RepeatedCompleteLoses,
    /// The owner of an attempt that gave up completes it.
    GivenUpCompletes,
    /// That an attempt vanished is forgotten by a release.
    ForgetsVanished,
    /// Records answer until they are swept.
    ExpiredAnswers,
    /// A lapsed record is kept for ever.
    LapsedForEver,
    /// The retention of an unfinished record counts from its claim, whatever is renewed.
    RetentionFromClaim,
    /// A live claim is removed with its retention.
    SweepsLive,
    /// `sweep` does not keep its limit.
    SweepsAll,
    /// A full store removes a record that still answers.
    EvictsLive,
    /// Payloads go through a string.
    LossyPayload,
    /// The fingerprint of the outcome is not written.
    KeepsClaimsFingerprint,
    /// An unreadable record is read as none.
    UnreadableIsAbsent,
    /// Nobody is told of a change.
    NobodyIsWoken,
    /// `forget` removes a live claim.
    ForgetsLive,
    /// `resolve` does not look at the attempt that was seen.
    ResolvesAnyAttempt,
    /// What an operator resolved is still its last owner's.
    ResolvedIsStillOwned,
}

/// A lease that a careless store can't write.
const UNWRITABLE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl Flaw {
    /// What the model answers, and makes of the record, but for this flaw.
    pub(super) fn apply(self, model: &mut Model, call: &Call, now: Duration) -> Answer {
        let before = model.clone();
        if self == Self::SweepsLive
            && model.record.as_ref().is_some_and(|record| record.expires <= now)
        {
            model.record = None;
        }
        if let Some(record) = &mut model.record {
            self.tamper_before(record, call, now);
        }
        let answer = match (self, call) {
            (Self::LossyPayload, Call::Complete(lease, print, payload, retention)) => {
                let text = String::from_utf8_lossy(payload).into_owned();
                let call = Call::Complete(lease.clone(), print.clone(), text.into(), *retention);
                model.apply(&call, now)
            }
            (Self::MissingDeadline, Call::Begin(claim)) if claim.lease > UNWRITABLE => {
                let claim = Claim { lease: Duration::ZERO, ..claim.clone() };
                model.apply(&Call::Begin(claim), now)
            }
            _ => model.apply(call, now),
        };
        if matches!(answer, Answer::Begin(Begin::Found(_))) {
            // D1: whatever the flaw made of the record to find it so is not written.
            *model = before;
        } else {
            self.tamper_after(model, before.record, call, &answer, now);
        }
        answer
    }

    /// What the flaw makes of the record before the call sees it.
    fn tamper_before(self, record: &mut Record, call: &Call, now: Duration) {
        let own = owner(call).is_some() && record.owner == owner(call);
        let in_flight = matches!(record.phase, Phase::InFlight { .. });
        let finished = matches!(record.phase, Phase::Finished { .. });
        let unknown = record.phase == Phase::GivenUp || in_flight;
        match (self, call) {
            (Self::ExpiredAnswers, _) => record.expires = Duration::MAX,
            (Self::LapsedForEver, _) if unknown => record.expires = Duration::MAX,
            (Self::TakesOverFinished, Call::Begin(claim))
                if claim.take_over && !own && finished =>
            {
                record.phase = Phase::GivenUp;
            }
            (Self::TakesOverLive, Call::Begin(claim)) if claim.take_over && !own && in_flight => {
                record.phase = Phase::GivenUp;
            }
            (Self::TakesOverAnyRequest, Call::Begin(claim))
                if claim.take_over && !own && record.lease_left(now).is_none() =>
            {
                record.fingerprint = claim.fingerprint.encode();
            }
            (Self::LoserFreesOwner, Call::Release(lease, _))
            | (Self::UnfencedComplete, Call::Complete(lease, ..)) => {
                record.owner = Some(lease.owner.to_bytes());
            }
            (Self::RepeatedBeginLosesClaim, Call::Begin(_)) if own && in_flight => {
                record.owner = None;
            }
            (Self::LateBeginReacquires, Call::Begin(_))
                if own && record.phase == Phase::Released =>
            {
                record.owner = None;
            }
            (Self::GivenUpCompletes, Call::Complete(..))
                if own && record.phase == Phase::GivenUp =>
            {
                record.phase = Phase::InFlight { lease_end: now };
            }
            (Self::RepeatedCompleteOverwrites, Call::Complete(..)) if own && finished => {
                record.phase = Phase::InFlight { lease_end: now };
            }
            (Self::RepeatedCompleteLoses, Call::Complete(..)) if own && finished => {
                record.owner = None;
            }
            (Self::ForgetsLive, Call::Forget(_)) if in_flight => record.phase = Phase::GivenUp,
            (Self::ResolvesAnyAttempt, Call::Resolve(_, seen, _)) => record.attempt = *seen,
            _ => {}
        }
    }

    /// What the flaw makes of the record after the call has changed it.
    fn tamper_after(
        self,
        model: &mut Model,
        before: Option<Record>,
        call: &Call,
        answer: &Answer,
        now: Duration,
    ) {
        let applied = *answer == Answer::Held(Held::Applied);
        let (Some(record), Some(before)) = (&mut model.record, before) else { return };
        match (self, call) {
            (Self::ReleaseForgetsCounters, Call::Release(..)) if applied => model.record = None,
            (Self::FenceRestarts, Call::Release(..)) if applied => record.fence = 0,
            (Self::ForgetsVanished, Call::Release(..)) if applied => record.vanished = false,
            (Self::RepeatedBeginExtendsLease, Call::Begin(claim)) => {
                record.phase = Phase::InFlight { lease_end: now.saturating_add(claim.lease) };
            }
            (Self::LeaseFromExpired, Call::Begin(claim)) if before.expires_at() <= now => {
                let lease_end = before.expires_at().saturating_add(claim.lease);
                record.phase = Phase::InFlight { lease_end };
            }
            (Self::RetentionFromClaim, Call::Renew(..)) if applied => {
                record.expires = before.expires;
            }
            (Self::KeepsClaimsFingerprint, Call::Complete(..)) => {
                record.fingerprint = before.fingerprint;
            }
            (Self::ResolvedIsStillOwned, Call::Resolve(..)) => record.owner = before.owner,
            _ => {}
        }
    }
}

fn owner(call: &Call) -> Option<[u8; 16]> {
    match call {
        Call::Begin(claim) => Some(claim.owner.to_bytes()),
        Call::Renew(lease, _) | Call::Complete(lease, ..) | Call::Release(lease, _) => {
            Some(lease.owner.to_bytes())
        }
        Call::Get(_) | Call::Forget(_) | Call::Resolve(..) => None,
    }
}
