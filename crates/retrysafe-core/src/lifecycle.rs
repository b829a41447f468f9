//! The life of a record as a pure state machine: what each verb does to what a store keeps.
//!
//! This is for authors of stores. A store that reads a record, lets one verb act on it and writes
//! the result back, atomically, keeps the [contract](crate::store): in a transaction, or by a
//! compare-and-set against the exact state that was read. What is left to the store is how a record
//! is found, encoded and written, and what the time is.
//!
//! ```
//! # use std::time::Duration;
//! # use retrysafe_core::{Algorithm, Begin, Claim, Fingerprint, OperationId, Owner, SystemEntropy};
//! use retrysafe_core::lifecycle::{Record, Step};
//!
//! /// One atomic step of a store: `kept` was read in it, and what it returns is written in it.
//! fn begin(kept: Option<Record>, claim: &Claim, now: Duration) -> Step<Begin> {
//!     match kept.filter(|record| !record.is_expired(now)) {
//!         Some(record) => record.begin(claim, now),
//!         None => Record::first(claim, now),
//!     }
//! }
//! # let claim = Claim {
//! #     id: OperationId::from_bytes([1; 32]),
//! #     owner: Owner::new(&SystemEntropy),
//! #     fingerprint: Fingerprint { algorithm: Algorithm::from_u32(1), head: [1; 32], body: None },
//! #     lease: Duration::from_secs(30),
//! #     retention: Duration::from_secs(24 * 3600),
//! #     take_over: false,
//! # };
//! let step = begin(None, &claim, Duration::ZERO);
//! assert!(matches!(step.answer, Begin::Acquired(acquired) if acquired.attempt == 1));
//! assert!(step.write.is_some());
//!
//! // ST4: the same claim once more is granted once more, and there is nothing to write.
//! let step = begin(step.write, &claim, Duration::from_secs(1));
//! assert!(matches!(step.answer, Begin::Acquired(_)) && step.write.is_none());
//! ```
//!
//! # Time
//!
//! Every time is a [`Duration`] since an epoch of the store's own clock (ST7): 1970 where records
//! keep moments, the time of a record's last write where they keep lengths. `now` and the times of
//! one record have the same epoch; nothing else is asked of it. Additions saturate, so a time
//! beyond what can be written means *for ever*.
//!
//! A store that keeps times more coarsely than it reads its clock rounds them *up*, as
//! [`whole_milliseconds`] does: a lease never ends before the time that its owner was promised.
//!
//! # What a store still has to do
//!
//! - Judge [`is_expired`](Record::is_expired) before anything else: an expired record is as good as
//!   absent (ST8), and a verb that needs the lease answers `Lost` with [`Found::Free`] there.
//! - Refuse what it can't read before it judges expiry, so that nothing unreadable is overwritten
//!   (ST10).
//! - Give [`Step::answer`] only once [`Step::write`] is durable (ST9).

use std::time::Duration;

use bytes::Bytes;

use crate::{
    Acquired, Begin, Claim, Entry, Fingerprint, Found, Held, Lease, Operated, OperationId, Owner,
    Resolution, State,
};

/// What a store keeps of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The operation.
    pub id: OperationId,
    /// Who holds or held the newest attempt; nobody after an operator ended it.
    pub owner: Option<Owner>,
    /// Grows by one with every attempt, so it counts them as well.
    pub fence: u64,
    /// Whether an earlier attempt was taken over, and none has completed since.
    pub previous_vanished: bool,
    /// What the client asked for.
    pub fingerprint: Fingerprint,
    /// When the record stops answering. Never before the end of a live lease (ST8).
    pub expires: Duration,
    /// Where in its life the record is.
    pub phase: Phase,
}

/// Where in its life a record is. `Debug` shows no payload.
#[derive(Clone, PartialEq, Eq)]
pub enum Phase {
    /// An attempt was claimed. Whether its lease still lives is a question of time.
    InFlight {
        /// When the lease ends.
        lease_end: Duration,
        /// How long the record answers if the attempt never completes. It restarts with every
        /// renewal, so it is kept (R8).
        retention: Duration,
    },
    /// The owner gave its lease up: the outcome is unknown.
    GivenUp,
    /// The outcome is kept.
    Finished {
        /// What answers retries.
        payload: Bytes,
    },
    /// The key is free; only the counters are left.
    Released,
}

/// What a verb answers, and what has to be durable before it may.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Step<T> {
    /// The answer.
    pub answer: T,
    /// What replaces the record; `None` if nothing changes.
    pub write: Option<Record>,
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
    /// [`Store::begin`](crate::Store::begin) of an operation without a record.
    pub fn first(claim: &Claim, now: Duration) -> Step<Begin> {
        Self::start(claim, now, 0, false)
    }

    /// [`Store::begin`](crate::Store::begin).
    pub fn begin(self, claim: &Claim, now: Duration) -> Step<Begin> {
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

    /// [`Store::renew`](crate::Store::renew); zero gives the lease up.
    pub fn renew(mut self, lease: &Lease, lease_for: Duration, now: Duration) -> Step<Held> {
        match self.phase {
            Phase::InFlight { retention, .. } if self.is_held(lease) => {
                self.expires = now.saturating_add(retention);
                if lease_for.is_zero() {
                    self.phase = Phase::GivenUp;
                } else {
                    let lease_end = now.saturating_add(lease_for);
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

    /// [`Store::complete`](crate::Store::complete).
    pub fn complete(
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

    /// [`Store::release`](crate::Store::release).
    pub fn release(
        mut self,
        lease: &Lease,
        keep_counters_for: Duration,
        now: Duration,
    ) -> Step<Held> {
        match self.phase {
            Phase::InFlight { .. } if self.is_held(lease) => {
                self.phase = Phase::Released;
                self.expires = now.saturating_add(keep_counters_for);
                Step::changed(self, Held::Applied)
            }
            Phase::Released if self.is_held(lease) => Step::unchanged(Held::Applied),
            _ => Step::unchanged(Held::Lost(self.found(now))),
        }
    }

    /// [`Inspect::forget`](crate::Inspect::forget).
    pub fn forget(mut self, now: Duration) -> Step<Operated> {
        match self.phase {
            Phase::Released => Step::unchanged(Operated::NotFound),
            _ if self.lease_left(now).is_some() => Step::unchanged(Operated::Refused),
            _ => {
                self.free();
                Step::changed(self, Operated::Applied)
            }
        }
    }

    /// [`Inspect::resolve`](crate::Inspect::resolve).
    pub fn resolve(mut self, seen: u32, resolution: &Resolution, now: Duration) -> Step<Operated> {
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
    pub fn is_expired(&self, now: Duration) -> bool {
        self.expires <= now
    }

    /// How long the lease has left, never zero; `None` if no attempt holds a live one.
    pub fn lease_left(&self, now: Duration) -> Option<Duration> {
        match self.phase {
            Phase::InFlight { lease_end, .. } if lease_end > now => Some(lease_end - now),
            _ => None,
        }
    }

    /// The number of the newest attempt.
    pub fn attempt(&self) -> u32 {
        attempt_of(self.fence)
    }

    /// The record as an operator sees it.
    pub fn entry(self, now: Duration) -> Entry {
        Entry {
            id: self.id,
            attempt: self.attempt(),
            fence: self.fence,
            previous_vanished: self.previous_vanished,
            expires_in: self.expires.saturating_sub(now),
            state: match (self.lease_left(now), self.phase) {
                (Some(lease_left), _) => State::InFlight { lease_left },
                (None, Phase::InFlight { .. } | Phase::GivenUp) => State::Lapsed,
                (None, Phase::Finished { payload }) => State::Finished { payload },
                (None, Phase::Released) => State::Released,
            },
            fingerprint: self.fingerprint,
        }
    }

    /// Starts the attempt after the one with this fence.
    fn start(claim: &Claim, now: Duration, fence: u64, previous_vanished: bool) -> Step<Begin> {
        let lease_end = now.saturating_add(claim.lease);
        let record = Self {
            id: claim.id,
            owner: Some(claim.owner),
            fence: fence + 1,
            previous_vanished,
            fingerprint: claim.fingerprint.clone(),
            expires: now.saturating_add(claim.retention).max(lease_end),
            phase: Phase::InFlight { lease_end, retention: claim.retention },
        };
        let acquired = record.acquired();
        Step::changed(record, Begin::Acquired(acquired))
    }

    fn finish(&mut self, payload: Bytes, retention: Duration, now: Duration) {
        self.phase = Phase::Finished { payload };
        self.expires = now.saturating_add(retention);
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
pub fn attempt_of(fence: u64) -> u32 {
    u32::try_from(fence).unwrap_or(u32::MAX)
}

/// A time in whole milliseconds, rounded up, for stores that keep it so; at most `i64::MAX`, because
/// many keep signed integers.
pub fn whole_milliseconds(time: Duration) -> u64 {
    const MOST: u64 = i64::MAX as u64;
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).map_or(MOST, |whole| whole.min(MOST))
}

// S3: what was kept is not shown.
impl std::fmt::Debug for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::InFlight { lease_end, retention } => f
                .debug_struct("InFlight")
                .field("lease_end", lease_end)
                .field("retention", retention)
                .finish(),
            Self::GivenUp => f.write_str("GivenUp"),
            Self::Finished { payload } => {
                f.debug_struct("Finished").field("bytes", &payload.len()).finish_non_exhaustive()
            }
            Self::Released => f.write_str("Released"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Algorithm, Owner, SystemEntropy};

    fn claim() -> Claim {
        Claim {
            id: OperationId::from_bytes([1; 32]),
            owner: Owner::new(&SystemEntropy),
            fingerprint: Fingerprint {
                algorithm: Algorithm::from_u32(1),
                head: [1; 32],
                body: None,
            },
            lease: Duration::from_secs(30),
            retention: Duration::from_secs(3600),
            take_over: true,
        }
    }

    #[test]
    fn st7_a_lease_never_ends_early() {
        assert_eq!(whole_milliseconds(Duration::ZERO), 0);
        assert_eq!(whole_milliseconds(Duration::from_millis(7)), 7);
        assert_eq!(whole_milliseconds(Duration::from_nanos(7_000_001)), 8);
        let now = Duration::from_nanos(5_000_700_000);
        let record = Record::first(&Claim { lease: Duration::from_micros(1_500), ..claim() }, now);
        let record = record.write.unwrap();
        assert!(record.lease_left(now + Duration::from_nanos(1_499_999)).is_some());
        assert!(record.lease_left(now + Duration::from_micros(1_500)).is_none());
    }

    #[test]
    fn st7_no_duration_overflows() {
        assert_eq!(whole_milliseconds(Duration::MAX), i64::MAX as u64);
        let ever = Claim { lease: Duration::MAX, retention: Duration::MAX, ..claim() };
        let record = Record::first(&ever, Duration::from_secs(1_700_000_000)).write.unwrap();
        assert!(!record.is_expired(Duration::from_secs(u64::MAX)));
        assert!(record.lease_left(Duration::from_secs(u64::MAX)).is_some());
    }

    #[test]
    fn st6_what_finished_meanwhile_is_never_taken_over() {
        let (first, now) = (claim(), Duration::from_secs(7));
        let record = Record::first(&first, now).write.unwrap();
        let lease = Lease { id: first.id, owner: first.owner, attempt: 1, fence: 1 };
        let later = now + first.lease;
        let payload = Bytes::from_static(b"done");
        let done = record.clone().complete(&lease, &first.fingerprint, &payload, later, later);
        assert_eq!(done.answer, Held::Applied);
        let found = done.write.unwrap().begin(&claim(), later);
        assert!(matches!(found.answer, Begin::Found(Found::Finished { .. })));
        assert_eq!(found.write, None);
        // The very same moment, had it not finished: a take-over.
        let taken = record.begin(&claim(), later);
        assert!(
            matches!(taken.answer, Begin::Acquired(next) if next.fence == 2 && next.previous_vanished)
        );
    }

    #[test]
    fn s3_debug_shows_no_payload() {
        let shown = format!("{:?}", Phase::Finished { payload: Bytes::from_static(b"secret") });
        assert!(!shown.contains("secret") && shown.contains('6'), "{shown}");
    }
}
