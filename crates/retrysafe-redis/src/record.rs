//! One record as its bytes, and what a claim makes of it. `lua/record.lua` has the layout; what needs
//! the server's clock to be judged is judged there.

use std::time::Duration;

use bytes::Bytes;
use retrysafe_core::{
    Acquired, Claim, Entry, Fingerprint, Found, OperationId, Owner, State, StoreError,
    StoreErrorKind,
};

/// The layout that this build writes and reads (ST10).
const VERSION: u8 = 1;

const IN_FLIGHT: u8 = b'P';
const GIVEN_UP: u8 = b'G';
const FINISHED: u8 = b'D';
const RELEASED: u8 = b'R';

const VANISHED: u8 = 1;
const OWNED: u8 = 2;

/// Everything but fingerprint and payload, at most: what [`crate::script::LOOK`] answers.
const HEAD: usize = 27;

/// A length of time as the server counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Milliseconds(pub(crate) u64);

impl Milliseconds {
    /// For ever, for all that it matters: 142,000 years. Lua's numbers and the server's clock added
    /// to it stay exact.
    const MOST: u64 = 1 << 52;

    pub(crate) fn rounded_up(duration: Duration) -> Self {
        let whole = duration.as_nanos().div_ceil(1_000_000);
        Self(u64::try_from(whole).unwrap_or(Self::MOST).min(Self::MOST))
    }
}

/// A record as a script found it, and when its key expires.
pub(crate) struct Seen {
    pub(crate) value: Bytes,
    pub(crate) expiry: Expiry,
}

/// What `PTTL` says of a key that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expiry {
    In(Milliseconds),
    /// Somebody took the expiry from it. Nothing can be said of its lease.
    Never,
}

pub(crate) struct Record {
    /// Who holds or held the newest attempt; nobody after an operator ended it.
    owner: Option<Owner>,
    /// Counts the attempts as well: in this store the fence grows by one with each.
    fence: u64,
    previous_vanished: bool,
    fingerprint: Fingerprint,
    phase: Phase,
}

enum Phase {
    InFlight { lease: Milliseconds, retention: Milliseconds },
    GivenUp,
    Finished { payload: Bytes },
    Released,
}

/// What a claim meets, as far as the record alone can say.
pub(crate) enum Met {
    /// ST4: its own live attempt.
    Own(Acquired),
    /// Nothing that it may claim, whatever the time.
    Final,
    /// A key that is free but for its counters, or an attempt that was given up.
    Over(Next),
    /// An attempt in flight. With what follows it if its lease has lapsed and the claim may take
    /// over.
    InFlight(Option<Next>),
}

/// A record to be written after the one that was met.
pub(crate) struct Next {
    pub(crate) value: Vec<u8>,
    pub(crate) acquired: Acquired,
}

/// The record of the first attempt, and how long its key is to be kept.
pub(crate) fn first(claim: &Claim) -> Next {
    attempt(claim, 1, false)
}

/// ST8: a lease that is longer than the retention keeps its record.
pub(crate) fn kept_for(claim: &Claim) -> Milliseconds {
    Milliseconds::rounded_up(claim.lease.max(claim.retention)).max(Milliseconds(1))
}

/// What `complete` keeps behind the head.
pub(crate) fn outcome(fingerprint: &Fingerprint, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + Fingerprint::MAX_ENCODED + payload.len());
    push_fingerprint(&mut bytes, fingerprint);
    bytes.extend_from_slice(payload);
    bytes
}

fn attempt(claim: &Claim, fence: u64, previous_vanished: bool) -> Next {
    let mut value = Vec::with_capacity(HEAD + 16 + 1 + Fingerprint::MAX_ENCODED);
    value.extend([VERSION, IN_FLIGHT, OWNED | u8::from(previous_vanished)]);
    value.extend(fence.to_be_bytes());
    value.extend(claim.owner.to_bytes());
    value.extend(Milliseconds::rounded_up(claim.lease).0.to_be_bytes());
    value.extend(Milliseconds::rounded_up(claim.retention).0.to_be_bytes());
    push_fingerprint(&mut value, &claim.fingerprint);
    let acquired = Acquired { attempt: attempt_of(fence), fence, previous_vanished };
    Next { value, acquired }
}

fn push_fingerprint(bytes: &mut Vec<u8>, fingerprint: &Fingerprint) {
    let encoded = fingerprint.encode();
    // `Fingerprint::MAX_ENCODED` fits; a test holds it to that.
    bytes.push(encoded.len() as u8);
    bytes.extend(encoded);
}

impl Record {
    /// Reads a value. The payload is not copied.
    pub(crate) fn read(id: &OperationId, value: &Bytes) -> Result<Self, StoreError> {
        Self::decode(value).map_err(|what| unreadable(id, what))
    }

    pub(crate) fn met_by(&self, claim: &Claim) -> Met {
        let own = self.owner == Some(claim.owner);
        // ST6: only for the same request, never by the owner that gave it up (ST4).
        let may_take_over =
            !own && claim.take_over && self.fingerprint.agrees_with(&claim.fingerprint);
        let fence = self.fence + 1;
        let next = |vanished| attempt(claim, fence, vanished);
        match self.phase {
            // The lease is not extended, even if it has lapsed.
            Phase::InFlight { .. } if own => Met::Own(self.acquired()),
            Phase::InFlight { .. } => Met::InFlight(may_take_over.then(|| next(true))),
            Phase::GivenUp if may_take_over => Met::Over(next(true)),
            Phase::Released if !own => Met::Over(next(self.previous_vanished)),
            _ => Met::Final,
        }
    }

    /// What is true for somebody who does not own it.
    pub(crate) fn found(self, lease_left: Option<Duration>) -> Found {
        let attempt = attempt_of(self.fence);
        match self.phase {
            Phase::InFlight { .. } | Phase::GivenUp => match lease_left {
                Some(lease_left) => {
                    Found::InFlight { fingerprint: self.fingerprint, attempt, lease_left }
                }
                None => Found::Lapsed { fingerprint: self.fingerprint, attempt },
            },
            Phase::Finished { payload } => {
                Found::Finished { fingerprint: self.fingerprint, payload }
            }
            Phase::Released => Found::Free,
        }
    }

    pub(crate) fn entry(self, id: &OperationId, expiry: Expiry) -> Result<Entry, StoreError> {
        let lease_left = self.lease_left(id, expiry)?;
        Ok(Entry {
            id: *id,
            attempt: attempt_of(self.fence),
            fence: self.fence,
            previous_vanished: self.previous_vanished,
            expires_in: match expiry {
                Expiry::In(left) => Duration::from_millis(left.0),
                Expiry::Never => Duration::MAX,
            },
            state: match self.phase {
                Phase::InFlight { .. } | Phase::GivenUp => match lease_left {
                    Some(lease_left) => State::InFlight { lease_left },
                    None => State::Lapsed,
                },
                Phase::Finished { payload } => State::Finished { payload },
                Phase::Released => State::Released,
            },
            fingerprint: self.fingerprint,
        })
    }

    /// How long the lease has left, if it is live: its age is how much of the key's time is gone.
    pub(crate) fn lease_left(
        &self,
        id: &OperationId,
        expiry: Expiry,
    ) -> Result<Option<Duration>, StoreError> {
        match self.phase {
            Phase::InFlight { lease, retention } => {
                lease_left(lease, retention, expiry).map_err(|what| unreadable(id, what))
            }
            _ => Ok(None),
        }
    }

    fn acquired(&self) -> Acquired {
        Acquired {
            attempt: attempt_of(self.fence),
            fence: self.fence,
            previous_vanished: self.previous_vanished,
        }
    }

    fn decode(value: &Bytes) -> Result<Self, &'static str> {
        let head = Head::decode(value)?;
        let rest = if matches!(head.phase, HeadPhase::InFlight { .. } | HeadPhase::GivenUp) {
            HEAD + 16
        } else {
            HEAD
        };
        let length = usize::from(*value.get(rest).ok_or("fingerprint")?);
        let end = rest + 1 + length;
        let fingerprint =
            value.get(rest + 1..end).and_then(Fingerprint::decode).ok_or("fingerprint")?;
        let phase = match head.phase {
            HeadPhase::InFlight { lease, retention } => Phase::InFlight { lease, retention },
            HeadPhase::GivenUp => Phase::GivenUp,
            HeadPhase::Finished => Phase::Finished { payload: value.slice(end..) },
            HeadPhase::Released => Phase::Released,
        };
        if value.len() > end && !matches!(phase, Phase::Finished { .. }) {
            return Err("length");
        }
        Ok(Self {
            owner: head.owner,
            fence: head.fence,
            previous_vanished: head.previous_vanished,
            fingerprint,
            phase,
        })
    }
}

/// What [`crate::script::LOOK`] reads: enough to judge a record without its payload.
pub(crate) struct Head {
    owner: Option<Owner>,
    fence: u64,
    previous_vanished: bool,
    phase: HeadPhase,
}

enum HeadPhase {
    InFlight { lease: Milliseconds, retention: Milliseconds },
    GivenUp,
    Finished,
    Released,
}

/// The state of a record without what it holds.
pub(crate) enum Standing {
    InFlight { attempt: u32, lease_left: Duration },
    Lapsed,
    Finished,
    Released,
}

impl Head {
    pub(crate) fn standing(
        id: &OperationId,
        value: &[u8],
        expiry: Expiry,
    ) -> Result<Standing, StoreError> {
        let judge = || {
            let head = Self::decode(value)?;
            Ok(match head.phase {
                HeadPhase::InFlight { lease, retention } => {
                    match lease_left(lease, retention, expiry)? {
                        Some(lease_left) => {
                            Standing::InFlight { attempt: attempt_of(head.fence), lease_left }
                        }
                        None => Standing::Lapsed,
                    }
                }
                HeadPhase::GivenUp => Standing::Lapsed,
                HeadPhase::Finished => Standing::Finished,
                HeadPhase::Released => Standing::Released,
            })
        };
        judge().map_err(|what| unreadable(id, what))
    }

    fn decode(value: &[u8]) -> Result<Self, &'static str> {
        let mut rest = value;
        let [version, state, flags] = take(&mut rest, "version")?;
        if version != VERSION {
            return Err("version");
        }
        if flags > (OWNED | VANISHED) {
            return Err("flags");
        }
        let fence = u64::from_be_bytes(take(&mut rest, "fence")?);
        let owner = Owner::from_bytes(take(&mut rest, "owner")?);
        let mut time =
            || take(&mut rest, "lease").map(|bytes| Milliseconds(u64::from_be_bytes(bytes)));
        Ok(Self {
            owner: (flags & OWNED != 0).then_some(owner),
            fence,
            previous_vanished: flags & VANISHED != 0,
            phase: match state {
                IN_FLIGHT => HeadPhase::InFlight { lease: time()?, retention: time()? },
                GIVEN_UP => HeadPhase::GivenUp,
                FINISHED => HeadPhase::Finished,
                RELEASED => HeadPhase::Released,
                _ => return Err("state"),
            },
        })
    }
}

fn take<const N: usize>(rest: &mut &[u8], what: &'static str) -> Result<[u8; N], &'static str> {
    let (taken, left) = rest.split_first_chunk().ok_or(what)?;
    *rest = left;
    Ok(*taken)
}

fn lease_left(
    lease: Milliseconds,
    retention: Milliseconds,
    expiry: Expiry,
) -> Result<Option<Duration>, &'static str> {
    // missing_deadline: not knowing when a lease ends does not mean that it has.
    let Expiry::In(left) = expiry else { return Err("expiry, which is missing") };
    let age = lease.max(retention).0.saturating_sub(left.0);
    let live = lease.0.checked_sub(age);
    // A lease that ends within this millisecond is live (ST7: never ended early).
    Ok(live.map(|left| Duration::from_millis(left.max(1))))
}

fn attempt_of(fence: u64) -> u32 {
    u32::try_from(fence).unwrap_or(u32::MAX)
}

fn unreadable(id: &OperationId, what: &str) -> StoreError {
    StoreError::new(
        StoreErrorKind::Unreadable,
        format!(
            "record {id} in Redis can't be read: this build does not understand its {what}; a newer \
             build, or somebody else, may have written it"
        ),
    )
}

#[cfg(test)]
mod tests {
    use retrysafe_core::{Algorithm, BodyPart, Extent};

    use super::*;

    fn claim() -> Claim {
        let body = Some(BodyPart { digest: [7; 32], length: 9, extent: Extent::Whole });
        Claim {
            id: OperationId::from_bytes([1; 32]),
            owner: Owner::from_bytes([2; 16]),
            fingerprint: Fingerprint { algorithm: Algorithm::from_u32(1), head: [3; 32], body },
            lease: Duration::from_secs(30),
            retention: Duration::from_secs(60),
            take_over: false,
        }
    }

    #[test]
    fn p9_a_record_is_small() {
        assert!(Fingerprint::MAX_ENCODED <= usize::from(u8::MAX));
        assert!(first(&claim()).value.len() <= 128);
        assert!(HEAD + outcome(&claim().fingerprint, b"").len() <= 128);
    }

    #[test]
    fn st7_no_duration_overflows() {
        let ever = Milliseconds::rounded_up(Duration::MAX);
        assert_eq!(ever, Milliseconds(1 << 52));
        assert_eq!(Milliseconds::rounded_up(Duration::from_nanos(1)), Milliseconds(1));
    }

    #[test]
    fn st7_a_lease_ends_after_its_time_and_not_before() {
        let left = |expires_in| {
            let expiry = Expiry::In(Milliseconds(expires_in));
            lease_left(Milliseconds(10), Milliseconds(100), expiry).unwrap()
        };
        assert_eq!(left(100), Some(Duration::from_millis(10)));
        assert_eq!(left(91), Some(Duration::from_millis(1)));
        assert_eq!(left(90), Some(Duration::from_millis(1)));
        assert_eq!(left(89), None);
        assert!(lease_left(Milliseconds(10), Milliseconds(100), Expiry::Never).is_err());
    }

    #[test]
    fn st10_nothing_else_is_read_as_a_record() {
        let value = first(&claim()).value;
        let id = claim().id;
        let read = |value: &[u8]| Record::read(&id, &Bytes::copy_from_slice(value));
        assert!(read(&value).is_ok());
        for cut in 0..value.len() {
            let error = read(&value[..cut]).err();
            assert_eq!(error.map(|error| error.kind()), Some(StoreErrorKind::Unreadable), "{cut}");
        }
        for (at, byte) in [(0, 2), (1, b'X'), (2, 4)] {
            let mut other = value.clone();
            other[at] = byte;
            assert!(read(&other).is_err());
        }
        assert!(read(&[value, vec![0]].concat()).is_err());
    }
}
