//! One record, and what each verb does to it.

use std::{mem, time::Duration};

use bytes::Bytes;

use crate::{
    Acquired, Begin, Claim, Entry, Fingerprint, Found, Held, Lease, Operated, OperationId,
    Resolution, State,
};

/// A moment of the store's clock, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(u64);

impl Moment {
    pub(super) fn new(since_origin: Duration) -> Self {
        Self(nanoseconds(since_origin))
    }

    fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(nanoseconds(wait)))
    }

    fn until(self, later: Self) -> Duration {
        Duration::from_nanos(later.0.saturating_sub(self.0))
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What is kept of an operation. The order and the types of the fields are chosen for P9.
pub(super) struct Record {
    pub(super) id: OperationId,
    /// Who holds or held the newest attempt; nobody after an operator ended it. Bytes, because an
    /// [`Owner`](crate::Owner) would align the whole record to 16.
    owner: Option<[u8; 16]>,
    previous_vanished: bool,
    /// Counts the attempts as well: in this store the fence grows by one with each.
    fence: u64,
    /// When the record stops answering, if no lease is live then.
    expires: Moment,
    /// When the expiry index looks at this record next. Never later than it expires.
    pub(super) indexed: Moment,
    fingerprint: Fingerprint,
    phase: Phase,
}

enum Phase {
    /// `retention` restarts with every renewal, so it is kept (R8).
    InFlight {
        lease_end: Moment,
        retention: Duration,
    },
    GivenUp,
    Finished {
        payload: Bytes,
    },
    Released,
}

/// Tells whether those who wait for an attempt have something new to see.
#[derive(PartialEq, Eq)]
pub(super) struct Stage(u64, mem::Discriminant<Phase>);

impl Record {
    /// The first attempt of an operation.
    pub(super) fn new(claim: &Claim, now: Moment) -> Self {
        let mut record = Self {
            id: claim.id,
            owner: None,
            previous_vanished: false,
            fence: 0,
            expires: now,
            indexed: now,
            fingerprint: claim.fingerprint.clone(),
            phase: Phase::Released,
        };
        record.start(claim, now);
        record.indexed = record.next_look(now);
        record
    }

    pub(super) fn stage(&self) -> Stage {
        Stage(self.fence, mem::discriminant(&self.phase))
    }

    /// When the record stops answering: never while its lease is live (ST8).
    pub(super) fn expires(&self) -> Moment {
        match self.phase {
            Phase::InFlight { lease_end, .. } => self.expires.max(lease_end),
            _ => self.expires,
        }
    }

    pub(super) fn is_expired(&self, now: Moment) -> bool {
        self.expires() <= now
    }

    /// When a record that is not expired is to be looked at next. For a live attempt that is its
    /// lease's end: until then it can't have expired, whatever becomes of it, so that a key that
    /// is claimed and released over and over leaves nothing behind in the index.
    pub(super) fn next_look(&self, now: Moment) -> Moment {
        match self.phase {
            Phase::InFlight { lease_end, .. } if lease_end > now => lease_end,
            _ => self.expires(),
        }
    }

    /// The attempt in flight and how long its lease is live from now; `None` if none is.
    pub(super) fn live(&self, now: Moment) -> Option<(u32, Duration)> {
        match self.phase {
            Phase::InFlight { lease_end, .. } if lease_end > now => {
                Some((self.attempt(), now.until(lease_end)))
            }
            _ => None,
        }
    }

    pub(super) fn begin(&mut self, claim: &Claim, now: Moment) -> Begin {
        if self.is_expired(now) {
            // ST8: past its retention is the same as absent, counters included.
            self.fence = 0;
            self.previous_vanished = false;
            return self.start(claim, now);
        }
        let own = self.owner == Some(claim.owner.to_bytes());
        match self.phase {
            // ST4: our own call, repeated. The lease is not extended, even if it has lapsed.
            Phase::InFlight { .. } if own => Begin::Acquired(self.acquired()),
            Phase::Released if !own => self.start(claim, now),
            // ST6: only of a lapsed lease, only for the same request, never by the owner that gave
            // it up (ST4).
            Phase::InFlight { .. } | Phase::GivenUp
                if self.live(now).is_none()
                    && !own
                    && claim.take_over
                    && self.fingerprint.agrees_with(&claim.fingerprint) =>
            {
                self.previous_vanished = true;
                self.start(claim, now)
            }
            _ => Begin::Found(self.found(now)),
        }
    }

    pub(super) fn renew(&mut self, lease: &Lease, lease_for: Duration, now: Moment) -> Held {
        match self.phase {
            Phase::InFlight { retention, .. } if self.is_held(lease) => {
                self.expires = now.after(retention);
                self.phase = if lease_for.is_zero() {
                    Phase::GivenUp
                } else {
                    Phase::InFlight { lease_end: now.after(lease_for), retention }
                };
                Held::Applied
            }
            Phase::GivenUp if self.is_held(lease) && lease_for.is_zero() => Held::Applied,
            _ => Held::Lost(self.found(now)),
        }
    }

    pub(super) fn complete(
        &mut self,
        lease: &Lease,
        fingerprint: &Fingerprint,
        payload: Bytes,
        retention: Duration,
        now: Moment,
    ) -> Held {
        match self.phase {
            // A lapsed lease that nobody took over is still the live attempt's (ST3).
            Phase::InFlight { .. } if self.is_held(lease) => {
                self.fingerprint = fingerprint.clone();
                self.finish(payload, retention, now);
                Held::Applied
            }
            Phase::Finished { .. } if self.is_held(lease) => Held::Applied,
            _ => Held::Lost(self.found(now)),
        }
    }

    pub(super) fn release(&mut self, lease: &Lease, keep_counters: Duration, now: Moment) -> Held {
        match self.phase {
            Phase::InFlight { .. } if self.is_held(lease) => {
                self.phase = Phase::Released;
                self.expires = now.after(keep_counters);
                Held::Applied
            }
            Phase::Released if self.is_held(lease) => Held::Applied,
            _ => Held::Lost(self.found(now)),
        }
    }

    pub(super) fn forget(&mut self, now: Moment) -> Operated {
        match self.phase {
            Phase::Released => Operated::NotFound,
            _ if self.live(now).is_some() => Operated::Refused,
            _ => {
                self.free();
                Operated::Applied
            }
        }
    }

    pub(super) fn resolve(&mut self, seen: u32, resolution: Resolution, now: Moment) -> Operated {
        let unknown = match self.phase {
            Phase::GivenUp => true,
            Phase::InFlight { .. } => self.live(now).is_none(),
            Phase::Finished { .. } | Phase::Released => false,
        };
        if !unknown || self.attempt() != seen {
            return Operated::Refused;
        }
        match resolution {
            Resolution::DidNotHappen => self.free(),
            Resolution::Happened { payload, retention } => {
                self.owner = None;
                self.finish(payload, retention, now);
            }
        }
        Operated::Applied
    }

    pub(super) fn found(&self, now: Moment) -> Found {
        let fingerprint = || self.fingerprint.clone();
        match &self.phase {
            _ if self.is_expired(now) => Found::Free,
            Phase::Released => Found::Free,
            Phase::Finished { payload } => {
                Found::Finished { fingerprint: fingerprint(), payload: payload.clone() }
            }
            Phase::InFlight { .. } | Phase::GivenUp => match self.live(now) {
                Some((attempt, lease_left)) => {
                    Found::InFlight { fingerprint: fingerprint(), attempt, lease_left }
                }
                None => Found::Lapsed { fingerprint: fingerprint(), attempt: self.attempt() },
            },
        }
    }

    pub(super) fn entry(&self, now: Moment) -> Entry {
        Entry {
            id: self.id,
            state: match &self.phase {
                Phase::Released => State::Released,
                Phase::Finished { payload } => State::Finished { payload: payload.clone() },
                Phase::InFlight { .. } | Phase::GivenUp => match self.live(now) {
                    Some((_, lease_left)) => State::InFlight { lease_left },
                    None => State::Lapsed,
                },
            },
            attempt: self.attempt(),
            fence: self.fence,
            previous_vanished: self.previous_vanished,
            fingerprint: self.fingerprint.clone(),
            expires_in: now.until(self.expires()),
        }
    }

    /// Starts the next attempt.
    fn start(&mut self, claim: &Claim, now: Moment) -> Begin {
        self.owner = Some(claim.owner.to_bytes());
        self.fence += 1;
        self.fingerprint = claim.fingerprint.clone();
        self.expires = now.after(claim.retention);
        self.phase =
            Phase::InFlight { lease_end: now.after(claim.lease), retention: claim.retention };
        Begin::Acquired(self.acquired())
    }

    fn finish(&mut self, payload: Bytes, retention: Duration, now: Moment) {
        self.phase = Phase::Finished { payload };
        self.expires = now.after(retention);
        self.previous_vanished = false;
    }

    /// Frees the key in the name of nobody: whatever the last owner still sends is `Lost`. The
    /// counters stay for what is left of the retention.
    fn free(&mut self) {
        self.expires = self.expires();
        self.owner = None;
        self.phase = Phase::Released;
    }

    /// ST3: by the owner alone. Who never got the answer to its claim knows no fence, and must be
    /// able to release it all the same (D5).
    fn is_held(&self, lease: &Lease) -> bool {
        self.owner == Some(lease.owner.to_bytes())
    }

    fn acquired(&self) -> Acquired {
        Acquired {
            attempt: self.attempt(),
            fence: self.fence,
            previous_vanished: self.previous_vanished,
        }
    }

    fn attempt(&self) -> u32 {
        u32::try_from(self.fence).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p9_a_record_is_small() {
        assert!(size_of::<Record>() <= 208, "{}", size_of::<Record>());
    }
}
