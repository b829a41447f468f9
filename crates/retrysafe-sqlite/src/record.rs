//! One record, and what each verb does to it: the life of a record from the store contract, without
//! any SQL.

use std::time::Duration;

use bytes::Bytes;
use retrysafe_core::{
    Acquired, Begin, Claim, Entry, Fingerprint, Found, Held, Lease, Operated, OperationId, Owner,
    Resolution, State,
};

/// A moment in whole milliseconds since 1970, by the host's wall clock (ST7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(pub(crate) u64);

impl Moment {
    /// Rounded up: a lease never ends before the time that its owner was promised.
    fn after(now: Duration, wait: Milliseconds) -> Self {
        Self(Milliseconds::rounded_up(now.saturating_add(wait.to_duration())).0)
    }

    fn is_past(self, now: Duration) -> bool {
        Duration::from_millis(self.0) <= now
    }

    fn left(self, now: Duration) -> Duration {
        Duration::from_millis(self.0).saturating_sub(now)
    }
}

/// A length of time as the file keeps it. SQLite's integers are signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Milliseconds(pub(crate) u64);

impl Milliseconds {
    const MAX: u64 = i64::MAX as u64;

    fn rounded_up(duration: Duration) -> Self {
        let whole = duration.as_nanos().div_ceil(1_000_000);
        Self(u64::try_from(whole).unwrap_or(Self::MAX).min(Self::MAX))
    }

    fn to_duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

/// What the file keeps of an operation.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) id: OperationId,
    /// Who holds or held the newest attempt; nobody after an operator ended it.
    pub(crate) owner: Option<Owner>,
    /// Counts the attempts as well: in this store the fence grows by one with each.
    pub(crate) fence: u64,
    pub(crate) previous_vanished: bool,
    pub(crate) fingerprint: Fingerprint,
    /// When the record stops answering. Never before the end of a live lease (ST8).
    pub(crate) expires: Moment,
    pub(crate) phase: Phase,
}

#[derive(Clone, Debug)]
pub(crate) enum Phase {
    /// `retention` restarts with every renewal, so it is kept (R8).
    InFlight {
        lease_end: Moment,
        retention: Milliseconds,
    },
    GivenUp,
    Finished {
        payload: Bytes,
    },
    Released,
}

/// What a verb answers, and what has to be committed before it may.
pub(crate) struct Step<T> {
    pub(crate) answer: T,
    pub(crate) write: Option<Record>,
}

impl<T> Step<T> {
    fn unchanged(answer: T) -> Self {
        Self { answer, write: None }
    }

    fn changed(record: Record, answer: T) -> Self {
        Self { answer, write: Some(record) }
    }
}

impl Record {
    /// Grants an operation without a record.
    pub(crate) fn first(claim: &Claim, now: Duration) -> Step<Begin> {
        Self::start(claim, now, 0, false)
    }

    pub(crate) fn begin(self, claim: &Claim, now: Duration) -> Step<Begin> {
        let own = self.owner == Some(claim.owner);
        match self.phase {
            // ST4: our own call, repeated. The lease is not extended, even if it has lapsed.
            Phase::InFlight { .. } if own => Step::unchanged(Begin::Acquired(self.acquired())),
            Phase::Released if !own => Self::start(claim, now, self.fence, self.previous_vanished),
            // ST6: only of a lapsed lease, only for the same request, never by the owner that gave
            // it up (ST4).
            Phase::InFlight { .. } | Phase::GivenUp
                if self.lease_left(now).is_none()
                    && !own
                    && claim.take_over
                    && self.fingerprint.agrees_with(&claim.fingerprint) =>
            {
                Self::start(claim, now, self.fence, true)
            }
            _ => Step::unchanged(Begin::Found(self.found(now))),
        }
    }

    pub(crate) fn renew(mut self, lease: &Lease, lease_for: Duration, now: Duration) -> Step<Held> {
        match self.phase {
            Phase::InFlight { retention, .. } if self.is_held(lease) => {
                self.expires = Moment::after(now, retention);
                if lease_for.is_zero() {
                    self.phase = Phase::GivenUp;
                } else {
                    let lease_end = Moment::after(now, Milliseconds::rounded_up(lease_for));
                    self.phase = Phase::InFlight { lease_end, retention };
                    self.expires = self.expires.max(lease_end);
                }
                Step::changed(self, Held::Applied)
            }
            Phase::GivenUp if self.is_held(lease) && lease_for.is_zero() => {
                Step::unchanged(Held::Applied)
            }
            _ => Step::unchanged(Held::Lost(self.found(now))),
        }
    }

    pub(crate) fn complete(
        mut self,
        lease: &Lease,
        fingerprint: &Fingerprint,
        payload: &Bytes,
        retention: Duration,
        now: Duration,
    ) -> Step<Held> {
        match self.phase {
            // A lapsed lease that nobody took over is still the live attempt's (ST3).
            Phase::InFlight { .. } if self.is_held(lease) => {
                self.fingerprint = fingerprint.clone();
                self.finish(payload.clone(), retention, now);
                Step::changed(self, Held::Applied)
            }
            Phase::Finished { .. } if self.is_held(lease) => Step::unchanged(Held::Applied),
            _ => Step::unchanged(Held::Lost(self.found(now))),
        }
    }

    pub(crate) fn release(
        mut self,
        lease: &Lease,
        keep_counters_for: Duration,
        now: Duration,
    ) -> Step<Held> {
        match self.phase {
            Phase::InFlight { .. } if self.is_held(lease) => {
                self.phase = Phase::Released;
                self.expires = Moment::after(now, Milliseconds::rounded_up(keep_counters_for));
                Step::changed(self, Held::Applied)
            }
            Phase::Released if self.is_held(lease) => Step::unchanged(Held::Applied),
            _ => Step::unchanged(Held::Lost(self.found(now))),
        }
    }

    pub(crate) fn forget(mut self, now: Duration) -> Step<Operated> {
        match self.phase {
            Phase::Released => Step::unchanged(Operated::NotFound),
            _ if self.lease_left(now).is_some() => Step::unchanged(Operated::Refused),
            _ => {
                self.free();
                Step::changed(self, Operated::Applied)
            }
        }
    }

    pub(crate) fn resolve(
        mut self,
        seen: u32,
        resolution: &Resolution,
        now: Duration,
    ) -> Step<Operated> {
        let unknown = match self.phase {
            Phase::GivenUp => true,
            Phase::InFlight { .. } => self.lease_left(now).is_none(),
            Phase::Finished { .. } | Phase::Released => false,
        };
        if !unknown || self.attempt() != seen {
            return Step::unchanged(Operated::Refused);
        }
        match resolution {
            Resolution::DidNotHappen => self.free(),
            Resolution::Happened { payload, retention } => {
                self.owner = None;
                self.finish(payload.clone(), *retention, now);
            }
        }
        Step::changed(self, Operated::Applied)
    }

    /// R8, ST8: past its retention a record is as good as absent, counters included.
    pub(crate) fn is_expired(&self, now: Duration) -> bool {
        self.expires.is_past(now)
    }

    pub(crate) fn entry(self, now: Duration) -> Entry {
        Entry {
            id: self.id,
            attempt: self.attempt(),
            fence: self.fence,
            previous_vanished: self.previous_vanished,
            expires_in: self.expires.left(now),
            state: match (self.lease_left(now), self.phase) {
                (Some(lease_left), _) => State::InFlight { lease_left },
                (None, Phase::InFlight { .. } | Phase::GivenUp) => State::Lapsed,
                (None, Phase::Finished { payload }) => State::Finished { payload },
                (None, Phase::Released) => State::Released,
            },
            fingerprint: self.fingerprint,
        }
    }

    pub(crate) fn attempt(&self) -> u32 {
        attempt_of(self.fence)
    }

    /// Starts the attempt after the one with this fence.
    fn start(claim: &Claim, now: Duration, fence: u64, previous_vanished: bool) -> Step<Begin> {
        let retention = Milliseconds::rounded_up(claim.retention);
        let lease_end = Moment::after(now, Milliseconds::rounded_up(claim.lease));
        let record = Self {
            id: claim.id,
            owner: Some(claim.owner),
            fence: fence + 1,
            previous_vanished,
            fingerprint: claim.fingerprint.clone(),
            expires: Moment::after(now, retention).max(lease_end),
            phase: Phase::InFlight { lease_end, retention },
        };
        let acquired = record.acquired();
        Step::changed(record, Begin::Acquired(acquired))
    }

    fn finish(&mut self, payload: Bytes, retention: Duration, now: Duration) {
        self.phase = Phase::Finished { payload };
        self.expires = Moment::after(now, Milliseconds::rounded_up(retention));
        self.previous_vanished = false;
    }

    /// Frees the key in the name of nobody: whatever the last owner still sends is `Lost`. The
    /// counters stay for what is left of the retention.
    fn free(&mut self) {
        self.owner = None;
        self.phase = Phase::Released;
    }

    /// ST3: by the owner alone. Who never got the answer to its claim knows no fence, and must be
    /// able to release it all the same (D5).
    fn is_held(&self, lease: &Lease) -> bool {
        self.owner == Some(lease.owner)
    }

    fn lease_left(&self, now: Duration) -> Option<Duration> {
        match self.phase {
            Phase::InFlight { lease_end, .. } if !lease_end.is_past(now) => {
                Some(lease_end.left(now))
            }
            _ => None,
        }
    }

    fn acquired(&self) -> Acquired {
        Acquired {
            attempt: self.attempt(),
            fence: self.fence,
            previous_vanished: self.previous_vanished,
        }
    }

    fn found(self, now: Duration) -> Found {
        let attempt = self.attempt();
        match (self.lease_left(now), self.phase) {
            (Some(lease_left), _) => {
                Found::InFlight { fingerprint: self.fingerprint, attempt, lease_left }
            }
            (None, Phase::InFlight { .. } | Phase::GivenUp) => {
                Found::Lapsed { fingerprint: self.fingerprint, attempt }
            }
            (None, Phase::Finished { payload }) => {
                Found::Finished { fingerprint: self.fingerprint, payload }
            }
            (None, Phase::Released) => Found::Free,
        }
    }
}

/// The number of the attempt with this fence.
pub(crate) fn attempt_of(fence: u64) -> u32 {
    u32::try_from(fence).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn st7_a_lease_never_ends_early() {
        let now = Duration::from_nanos(5_000_700_000);
        let lease = Milliseconds::rounded_up(Duration::from_micros(1_500));
        let end = Moment::after(now, lease);
        assert!(!end.is_past(now + Duration::from_micros(1_500)));
        assert!(end.is_past(now + Duration::from_millis(4)));
    }

    #[test]
    fn st7_no_duration_overflows() {
        let forever = Milliseconds::rounded_up(Duration::MAX);
        assert_eq!(forever.0, i64::MAX as u64);
        let end = Moment::after(Duration::MAX, forever);
        assert_eq!(end.0, i64::MAX as u64);
    }
}
