//! The contract as a sequential machine: what one record does when one call follows another.
//!
//! It is written from the contract and shares no code with any store. Times are the caller's:
//! every call says when it happens.

use std::time::Duration;

use bytes::Bytes;
use retrysafe_core::{
    Acquired, Begin, Claim, Counts, Entry, Fingerprint, Found, Held, Inspect, Lease, Operated,
    OperationId, Resolution, State, Store, StoreError,
};

/// A call that names one operation.
#[derive(Clone, Debug)]
pub enum Call {
    /// [`Store::begin`](retrysafe_core::Store::begin)
    Begin(Claim),
    /// [`Store::renew`](retrysafe_core::Store::renew)
    Renew(Lease, Duration),
    /// [`Store::complete`](retrysafe_core::Store::complete)
    Complete(Lease, Fingerprint, Bytes, Duration),
    /// [`Store::release`](retrysafe_core::Store::release)
    Release(Lease, Duration),
    /// [`Inspect::get`](retrysafe_core::Inspect::get)
    Get(OperationId),
    /// [`Inspect::forget`](retrysafe_core::Inspect::forget)
    Forget(OperationId),
    /// [`Inspect::resolve`](retrysafe_core::Inspect::resolve)
    Resolve(OperationId, u32, Resolution),
}

/// What a call was answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Call::Begin`].
    Begin(Begin),
    /// To [`Call::Renew`], [`Call::Complete`] and [`Call::Release`].
    Held(Held),
    /// To [`Call::Get`].
    Entry(Option<Entry>),
    /// To [`Call::Forget`] and [`Call::Resolve`].
    Operated(Operated),
}

impl Call {
    /// The operation that is named.
    pub fn id(&self) -> OperationId {
        match self {
            Self::Begin(claim) => claim.id,
            Self::Renew(lease, _) | Self::Complete(lease, ..) | Self::Release(lease, _) => lease.id,
            Self::Get(id) | Self::Forget(id) | Self::Resolve(id, ..) => *id,
        }
    }

    /// Makes the call.
    ///
    /// # Errors
    ///
    /// Those of the store.
    ///
    /// # Cancel safety
    ///
    /// That of the store's verb.
    pub async fn send<S: Store + Inspect>(&self, store: &S) -> Result<Answer, StoreError> {
        Ok(match self {
            Self::Begin(claim) => Answer::Begin(store.begin(claim).await?),
            Self::Renew(lease, lease_for) => Answer::Held(store.renew(lease, *lease_for).await?),
            Self::Complete(lease, fingerprint, payload, retention) => {
                Answer::Held(store.complete(lease, fingerprint, payload.clone(), *retention).await?)
            }
            Self::Release(lease, keep) => Answer::Held(store.release(lease, *keep).await?),
            Self::Get(id) => Answer::Entry(store.get(id).await?),
            Self::Forget(id) => Answer::Operated(store.forget(id).await?),
            Self::Resolve(id, seen, resolution) => {
                Answer::Operated(store.resolve(id, *seen, resolution.clone()).await?)
            }
        })
    }
}

impl Answer {
    /// The answer without what two stores that keep the contract may tell differently: times that
    /// are left, and the value of a fence, of which only the order is promised (ST5).
    pub fn comparable(mut self) -> Self {
        match &mut self {
            Self::Begin(Begin::Acquired(acquired)) => acquired.fence = 0,
            Self::Begin(Begin::Found(found)) | Self::Held(Held::Lost(found)) => {
                if let Found::InFlight { lease_left, .. } = found {
                    *lease_left = Duration::ZERO;
                }
            }
            Self::Entry(Some(entry)) => {
                entry.fence = 0;
                entry.expires_in = Duration::ZERO;
                if let State::InFlight { lease_left } = &mut entry.state {
                    *lease_left = Duration::ZERO;
                }
                // Says something of attempts to come, and there are none after an outcome.
                if let State::Finished { .. } = entry.state {
                    entry.previous_vanished = false;
                }
            }
            Self::Held(Held::Applied) | Self::Entry(None) | Self::Operated(_) => {}
        }
        self
    }
}

/// What is kept of one operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Model {
    pub(crate) record: Option<Record>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Record {
    pub(crate) owner: Option<[u8; 16]>,
    pub(crate) attempt: u32,
    pub(crate) fence: u64,
    pub(crate) vanished: bool,
    pub(crate) fingerprint: Vec<u8>,
    pub(crate) retention: Duration,
    pub(crate) expires: Duration,
    pub(crate) phase: Phase,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    InFlight { lease_end: Duration },
    GivenUp,
    Finished { payload: Bytes },
    Released,
}

impl Model {
    /// Applies a call that happens at `now` and says what it is answered with.
    pub fn apply(&mut self, call: &Call, now: Duration) -> Answer {
        if self.record.as_ref().is_some_and(|record| record.expires_at() <= now) {
            self.record = None;
        }
        match call {
            Call::Begin(claim) => Answer::Begin(self.begin(claim, now)),
            Call::Renew(lease, lease_for) => Answer::Held(self.held(lease, now, |record| {
                match &mut record.phase {
                    Phase::GivenUp => return lease_for.is_zero(),
                    Phase::InFlight { .. } if lease_for.is_zero() => record.phase = Phase::GivenUp,
                    Phase::InFlight { lease_end } => *lease_end = now.saturating_add(*lease_for),
                    _ => return false,
                }
                record.expires = now.saturating_add(record.retention);
                true
            })),
            Call::Complete(lease, fingerprint, payload, retention) => {
                Answer::Held(self.held(lease, now, |record| {
                    match record.phase {
                        Phase::InFlight { .. } => {
                            record.fingerprint = fingerprint.encode();
                            record.finish(payload.clone(), now.saturating_add(*retention));
                        }
                        Phase::Finished { .. } => {}
                        _ => return false,
                    }
                    true
                }))
            }
            Call::Release(lease, keep) => Answer::Held(self.held(lease, now, |record| {
                match record.phase {
                    Phase::InFlight { .. } => {
                        record.phase = Phase::Released;
                        record.expires = now.saturating_add(*keep);
                    }
                    Phase::Released => {}
                    _ => return false,
                }
                true
            })),
            Call::Get(id) => {
                Answer::Entry(self.record.as_ref().map(|record| record.entry(*id, now)))
            }
            Call::Forget(_) => Answer::Operated(match &mut self.record {
                None | Some(Record { phase: Phase::Released, .. }) => Operated::NotFound,
                Some(record) if record.lease_left(now).is_some() => Operated::Refused,
                Some(record) => record.free(),
            }),
            Call::Resolve(_, seen, resolution) => Answer::Operated(match &mut self.record {
                None => Operated::NotFound,
                Some(record) if !record.is_unknown(now) || record.attempt != *seen => {
                    Operated::Refused
                }
                Some(record) => match resolution {
                    Resolution::DidNotHappen => record.free(),
                    Resolution::Happened { payload, retention } => {
                        record.owner = None;
                        record.finish(payload.clone(), now.saturating_add(*retention));
                        Operated::Applied
                    }
                },
            }),
        }
    }

    /// Whether attempt `seen` holds a live lease at `now`.
    pub fn is_in_flight(&self, seen: u32, now: Duration) -> bool {
        self.record
            .as_ref()
            .is_some_and(|record| record.attempt == seen && record.lease_left(now).is_some())
    }

    /// Whether there is a record at all, and it is past its retention.
    pub fn is_expired(&self, now: Duration) -> bool {
        self.record.as_ref().is_some_and(|record| record.expires_at() <= now)
    }

    /// Adds the record to what is counted.
    pub fn count(&self, counts: &mut Counts, now: Duration) {
        match &self.record {
            Some(record) if record.expires_at() > now => match record.phase {
                Phase::Finished { .. } => counts.finished += 1,
                Phase::Released => counts.released += 1,
                _ if record.lease_left(now).is_some() => counts.in_flight += 1,
                _ => counts.lapsed += 1,
            },
            _ => {}
        }
    }

    fn begin(&mut self, claim: &Claim, now: Duration) -> Begin {
        let (attempt, fence, vanished) = match &self.record {
            None => (1, 1, false),
            Some(record) => {
                let own = record.owner == Some(claim.owner.to_bytes());
                let next = (record.attempt + 1, record.fence + 1);
                let alike = Fingerprint::decode(&record.fingerprint)
                    .is_some_and(|kept| kept.agrees_with(&claim.fingerprint));
                match &record.phase {
                    Phase::InFlight { .. } if own => return Begin::Acquired(record.acquired()),
                    Phase::Released if !own => (next.0, next.1, record.vanished),
                    _ if record.is_unknown(now) && !own && claim.take_over && alike => {
                        (next.0, next.1, true)
                    }
                    _ => return Begin::Found(record.found(now)),
                }
            }
        };
        let record = self.record.insert(Record {
            owner: Some(claim.owner.to_bytes()),
            attempt,
            fence,
            vanished,
            fingerprint: claim.fingerprint.encode(),
            retention: claim.retention,
            expires: now.saturating_add(claim.retention),
            phase: Phase::InFlight { lease_end: now.saturating_add(claim.lease) },
        });
        Begin::Acquired(record.acquired())
    }

    /// ST3: applies what only the owner may do; `false` if the record's state does not allow it.
    fn held(
        &mut self,
        lease: &Lease,
        now: Duration,
        verb: impl FnOnce(&mut Record) -> bool,
    ) -> Held {
        match &mut self.record {
            None => Held::Lost(Found::Free),
            Some(record) => {
                let own = record.owner == Some(lease.owner.to_bytes());
                if own && verb(record) { Held::Applied } else { Held::Lost(record.found(now)) }
            }
        }
    }
}

impl Record {
    pub(crate) fn expires_at(&self) -> Duration {
        match self.phase {
            Phase::InFlight { lease_end } => self.expires.max(lease_end),
            _ => self.expires,
        }
    }

    pub(crate) fn lease_left(&self, now: Duration) -> Option<Duration> {
        match self.phase {
            Phase::InFlight { lease_end } if lease_end > now => Some(lease_end - now),
            _ => None,
        }
    }

    fn is_unknown(&self, now: Duration) -> bool {
        match self.phase {
            Phase::InFlight { .. } => self.lease_left(now).is_none(),
            Phase::GivenUp => true,
            Phase::Finished { .. } | Phase::Released => false,
        }
    }

    fn finish(&mut self, payload: Bytes, expires: Duration) {
        self.phase = Phase::Finished { payload };
        self.expires = expires;
        self.vanished = false;
    }

    fn free(&mut self) -> Operated {
        self.expires = self.expires_at();
        self.phase = Phase::Released;
        self.owner = None;
        Operated::Applied
    }

    fn acquired(&self) -> Acquired {
        Acquired { attempt: self.attempt, fence: self.fence, previous_vanished: self.vanished }
    }

    fn kept_fingerprint(&self) -> Fingerprint {
        Fingerprint::decode(&self.fingerprint).expect("encoded by the model itself")
    }

    pub(crate) fn found(&self, now: Duration) -> Found {
        let fingerprint = self.kept_fingerprint();
        let attempt = self.attempt;
        match (&self.phase, self.lease_left(now)) {
            (Phase::Released, _) => Found::Free,
            (Phase::Finished { payload }, _) => {
                Found::Finished { fingerprint, payload: payload.clone() }
            }
            (_, Some(lease_left)) => Found::InFlight { fingerprint, attempt, lease_left },
            (_, None) => Found::Lapsed { fingerprint, attempt },
        }
    }

    pub(crate) fn entry(&self, id: OperationId, now: Duration) -> Entry {
        Entry {
            id,
            state: match (&self.phase, self.lease_left(now)) {
                (Phase::Released, _) => State::Released,
                (Phase::Finished { payload }, _) => State::Finished { payload: payload.clone() },
                (_, Some(lease_left)) => State::InFlight { lease_left },
                (_, None) => State::Lapsed,
            },
            attempt: self.attempt,
            fence: self.fence,
            previous_vanished: self.vanished,
            fingerprint: self.kept_fingerprint(),
            expires_in: self.expires_at().saturating_sub(now),
        }
    }
}
