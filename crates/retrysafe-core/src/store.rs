//! The store contract: what every engine behind retrysafe must do.
//!
//! A store keeps records. It decides nothing about HTTP: it sees an [operation id](OperationId), a
//! [fingerprint](Fingerprint), times and an opaque payload. There are six verbs and no `get`,
//! `exists` or `insert`, so that check-then-act can't be written.
//!
//! # The life of a record
//!
//! ```text
//!            begin                 complete
//!   (free) ---------> in flight ---------------> finished --(retention)--> (free)
//!     ^                |  ^  |  renew(0), or the lease's end
//!     | release        |  |  +--------------> lapsed
//!     +----------------+  +--------------------+   begin with take_over: a new attempt
//! ```
//!
//! The *live attempt* is the newest attempt of an operation for as long as it has not completed,
//! released, given up or been resolved. A lapsed lease alone does not end it: until somebody takes
//! over, its owner may still renew and complete.
//!
//! # Contract
//!
//! `retrysafe-testkit` holds these rules as functions that any implementation can be run against.
//!
//! - **ST1 Atomic** `begin` is linearizable per id: of any number of concurrent claims for a free
//!   id, exactly one gets [`Begin::Acquired`].
//! - **ST2 One round trip** to the server for each of `begin` that acquires or replays, `renew`,
//!   `complete` and `release`, but for what STORES lists.
//! - **ST3 Owner** `renew`, `complete` and `release` apply only for the owner of the live attempt,
//!   else they answer [`Held::Lost`] and nothing changes.
//! - **ST4 Same owner, same call** any verb repeated with the same owner gives the answer that the
//!   first try earned, unless a later attempt has begun since. A repeated `begin` of the live
//!   attempt is `Acquired` again and does *not* extend the lease. A late duplicate `begin` or
//!   `renew` of an owner that has released, given up or completed changes nothing.
//! - **ST5 Fence** strictly grows with every `Acquired` of an id until its retention is over.
//! - **ST6 Take-over** only with [`Claim::take_over`], only of a lapsed lease, only if the stored
//!   fingerprint [agrees](Fingerprint::agrees_with) with the claim's, and only against the exact
//!   state observed. A live lease and a finished record are never taken over.
//! - **ST7 One clock** per store judges leases and retention.
//! - **ST8 Not found is not expired** a record past its retention counts as free before it is
//!   swept; a live claim is never removed to make room. A store that is full refuses.
//! - **ST9 Durable** `Applied` from `complete` survives what the store's page says it survives.
//! - **ST10 Exact bytes** payloads come back as they went in; an unreadable record is an error,
//!   never "absent".
//! - **ST11 Cancel-safe** dropping any future leaves a state that this contract already names.
//! - **ST12 Bounded** `sweep` takes a limit and never blocks claims.

mod erased;

use std::{fmt, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;

pub use self::erased::{DynInspect, DynStore, SharedStore};
use crate::{Fingerprint, OperationId, Owner, Unit};

/// A request for the right to run an operation.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The operation.
    pub id: OperationId,
    /// Who claims. A call repeated with the same owner is the same call (ST4).
    pub owner: Owner,
    /// What the client asked for. The body part may not be known yet (F4).
    pub fingerprint: Fingerprint,
    /// How long the claim holds without being renewed, by the store's clock.
    pub lease: Duration,
    /// How long the record answers if the attempt never completes, counted from this claim or the
    /// last renewal (R8).
    pub retention: Duration,
    /// Whether a lapsed attempt may be taken over (ST6).
    pub take_over: bool,
}

/// What names an attempt towards the store: the operation, its owner, and what `begin` answered.
///
/// A store judges by the owner alone. Whoever releases a claim whose answer was lost (D5) does not
/// know attempt and fence, and says 0.
#[derive(Clone, Debug)]
pub struct Lease {
    /// The operation.
    pub id: OperationId,
    /// Who holds the lease.
    pub owner: Owner,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// Grows with every attempt of the operation.
    pub fence: u64,
}

/// The answer to [`Store::begin`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    /// The caller owns the operation now.
    Acquired(Acquired),
    /// The caller does not own it, nothing was changed, and this is what is true.
    Found(Found),
}

/// A claim that was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acquired {
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// Strictly greater than that of every earlier attempt (ST5).
    pub fence: u64,
    /// Whether an earlier attempt was taken over, so that its effects are unknown. Once true it
    /// stays true for the operation's later attempts, across releases, until one completes.
    pub previous_vanished: bool,
}

/// What a store knows about an operation that the caller does not own. `Debug` shows no payload.
#[derive(Clone, PartialEq, Eq)]
pub enum Found {
    /// There is no record, or it is past its retention, or it was released. `begin` answers this
    /// only to a late duplicate of an owner that has already released (ST4).
    Free,
    /// An attempt holds a live lease.
    InFlight {
        /// The fingerprint it was claimed with.
        fingerprint: Fingerprint,
        /// Its number.
        attempt: u32,
        /// How long the lease has left, by the store's clock. Never zero.
        lease_left: Duration,
    },
    /// The newest attempt's lease has run out or was given up: its outcome is unknown.
    Lapsed {
        /// The fingerprint it was claimed with.
        fingerprint: Fingerprint,
        /// Its number.
        attempt: u32,
    },
    /// An attempt completed.
    Finished {
        /// The fingerprint that was written with the outcome.
        fingerprint: Fingerprint,
        /// The payload that was written with the outcome, byte for byte (ST10).
        payload: Bytes,
    },
}

/// The answer to a verb that needs the lease.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Held {
    /// Done. Repeating the call changes nothing and is `Applied` again (ST4).
    Applied,
    /// The caller's attempt is not the live one: nothing changed, and this is what is true now.
    Lost(Found),
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// How many expired records were removed.
    pub removed: usize,
    /// Whether the limit was reached while more expired records were left.
    pub more: bool,
}

/// What a store says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About {
    /// The engine's short name in metrics and logs: `memory`, `sqlite`, ...
    pub engine: &'static str,
    /// The largest payload that a record can hold, in bytes (R4).
    pub max_payload: usize,
}

/// The contract. See the [module](self) for the rules that every verb keeps.
///
/// No verb has a default: an implementation that forgets one does not compile.
pub trait Store: Send + Sync + 'static {
    /// What the store says of itself. Cheap, and the same at every call.
    fn about(&self) -> About;

    /// Claims an operation, or says what is known of it. Atomic (ST1).
    ///
    /// # Errors
    ///
    /// After an error of [`StoreErrorKind::Unavailable`] or [`StoreErrorKind::Timeout`] the claim
    /// may or may not have been granted: repeat it with the same owner, or release it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the claim granted or not granted, never half.
    fn begin(&self, claim: &Claim) -> impl Future<Output = Result<Begin, StoreError>> + Send;

    /// Restarts the lease so that it ends `lease_for` from now, and the retention of an unfinished
    /// record with it. Zero gives the lease up: the outcome of the attempt is unknown from now on.
    ///
    /// # Errors
    ///
    /// After an error the renewal may or may not have happened.
    fn renew(
        &self,
        lease: &Lease,
        lease_for: Duration,
    ) -> impl Future<Output = Result<Held, StoreError>> + Send;

    /// Finishes the attempt: `payload` answers retries for `retention` from now.
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::TooLarge`] if the payload is over [`About::max_payload`]: nothing changed.
    /// After any other error the completion may or may not have happened: repeat it.
    fn complete(
        &self,
        lease: &Lease,
        fingerprint: &Fingerprint,
        payload: Bytes,
        retention: Duration,
    ) -> impl Future<Output = Result<Held, StoreError>> + Send;

    /// Frees the key for the next try. The counters of attempts and fences stay for
    /// `keep_counters_for`, so that a fence never repeats while an older attempt may be alive.
    ///
    /// # Errors
    ///
    /// After an error the release may or may not have happened: repeat it.
    fn release(
        &self,
        lease: &Lease,
        keep_counters_for: Duration,
    ) -> impl Future<Output = Result<Held, StoreError>> + Send;

    /// Waits until attempt `seen` may no longer be in flight: returns at once if it is not, else
    /// when it may have changed, and at the latest after `within` or at the lease's end, whichever
    /// is first. May return early for no reason; ask `begin` what is true.
    ///
    /// # Errors
    ///
    /// If the store can't be asked.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops waiting.
    fn changed(
        &self,
        id: &OperationId,
        seen: u32,
        within: Duration,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Removes at most `limit` records that are past their retention. Only frees space: expiry is
    /// judged when a record is read (R8).
    ///
    /// # Errors
    ///
    /// If the store can't be asked; what was removed stays removed.
    fn sweep(&self, limit: usize) -> impl Future<Output = Result<Swept, StoreError>> + Send;

    /// What this store lends to the handler of an attempt that it has granted: a transaction in
    /// which the record is written too. Not a verb: it asks nobody. Most stores keep records only,
    /// and lend nothing; a store around another one lends what that lends.
    ///
    /// A store that lends promises more, and may forget: until `complete` is applied nothing that
    /// was done in the unit has happened, a `release` or a lease that is given up undoes it, and so
    /// does the end of this process.
    fn unit(&self, _lease: &Lease) -> Option<Arc<dyn Unit>> {
        None
    }
}

/// What operators need when an outcome is unknown. Front doors never see it.
pub trait Inspect: Send + Sync + 'static {
    /// One record, whatever its state; `None` if there is none or it is past its retention.
    ///
    /// # Errors
    ///
    /// If the store can't be asked or the record can't be read.
    fn get(
        &self,
        id: &OperationId,
    ) -> impl Future<Output = Result<Option<Entry>, StoreError>> + Send;

    /// At most `limit` records with an id greater than `after`, in the order of their ids.
    ///
    /// # Errors
    ///
    /// If the store can't be asked or a record can't be read.
    fn page(
        &self,
        after: Option<&OperationId>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<Entry>, StoreError>> + Send;

    /// How many records there are, by state. Expired ones are not counted.
    ///
    /// # Errors
    ///
    /// If the store can't be asked.
    fn count(&self) -> impl Future<Output = Result<Counts, StoreError>> + Send;

    /// Whether the store answers, found out by looking for a record. Of several primaries one that
    /// answers is enough: the operations of the others are refused one by one, and those of this one
    /// are served.
    ///
    /// # Errors
    ///
    /// If the store can't be asked.
    fn answers(&self) -> impl Future<Output = Result<(), StoreError>> + Send {
        let any = OperationId::from_bytes([0; 32]);
        async move { self.get(&any).await.map(drop) }
    }

    /// Forgets a finished or unknown outcome: the key is free, as if released. The counters stay
    /// for what is left of the record's retention. A live lease is not touched.
    ///
    /// # Errors
    ///
    /// If the store can't be asked.
    fn forget(&self, id: &OperationId)
    -> impl Future<Output = Result<Operated, StoreError>> + Send;

    /// Writes what an operator found out about attempt `seen`, whose outcome is unknown. The
    /// attempt is over from then on: its late completion is [`Held::Lost`].
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::TooLarge`] if the payload is over [`About::max_payload`], or if the store
    /// can't be asked.
    fn resolve(
        &self,
        id: &OperationId,
        seen: u32,
        resolution: Resolution,
    ) -> impl Future<Output = Result<Operated, StoreError>> + Send;
}

/// A record as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The operation.
    pub id: OperationId,
    /// Where in its life the record is.
    pub state: State,
    /// The number of the newest attempt.
    pub attempt: u32,
    /// The fence of the newest attempt.
    pub fence: u64,
    /// Whether an earlier attempt vanished.
    pub previous_vanished: bool,
    /// What the client asked for.
    pub fingerprint: Fingerprint,
    /// When the record stops answering, from now, by the store's clock.
    pub expires_in: Duration,
}

/// The state of a record. `Debug` shows no payload.
#[derive(Clone, PartialEq, Eq)]
pub enum State {
    /// An attempt holds a live lease.
    InFlight {
        /// How long the lease has left.
        lease_left: Duration,
    },
    /// The lease ran out or was given up: the outcome is unknown.
    Lapsed,
    /// The outcome is kept.
    Finished {
        /// What was kept.
        payload: Bytes,
    },
    /// Free; only the counters are left.
    Released,
}

/// How many records a store holds, by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Attempts with a live lease.
    pub in_flight: u64,
    /// Attempts whose outcome is unknown.
    pub lapsed: u64,
    /// Outcomes that answer retries.
    pub finished: u64,
    /// Counters of released operations.
    pub released: u64,
}

/// What an operator found out about an attempt whose outcome is unknown. `Debug` shows no payload.
#[derive(Clone, PartialEq, Eq)]
pub enum Resolution {
    /// It did not happen: the key is free, and the counters stay for what is left of the record's
    /// retention.
    DidNotHappen,
    /// It happened, and this answers retries from now on.
    Happened {
        /// The payload to keep.
        payload: Bytes,
        /// How long it answers retries, from now.
        retention: Duration,
    },
}

/// The answer to an operator's change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Operated {
    /// Done.
    Applied,
    /// There is no such record, or nothing in it to change.
    NotFound,
    /// The record is not in a state in which this may be done: an attempt holds a live lease, or
    /// the outcome is known, or another attempt than the one seen is the newest.
    Refused,
}

// S3: what was kept is not shown.
impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Free => f.write_str("Free"),
            Self::InFlight { attempt, lease_left, .. } => f
                .debug_struct("InFlight")
                .field("attempt", attempt)
                .field("lease_left", lease_left)
                .finish_non_exhaustive(),
            Self::Lapsed { attempt, .. } => {
                f.debug_struct("Lapsed").field("attempt", attempt).finish_non_exhaustive()
            }
            Self::Finished { payload, .. } => {
                f.debug_struct("Finished").field("bytes", &payload.len()).finish_non_exhaustive()
            }
        }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InFlight { lease_left } => {
                f.debug_struct("InFlight").field("lease_left", lease_left).finish()
            }
            Self::Lapsed => f.write_str("Lapsed"),
            Self::Finished { payload } => {
                f.debug_struct("Finished").field("bytes", &payload.len()).finish_non_exhaustive()
            }
            Self::Released => f.write_str("Released"),
        }
    }
}

impl fmt::Debug for Resolution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DidNotHappen => f.write_str("DidNotHappen"),
            Self::Happened { payload, retention } => f
                .debug_struct("Happened")
                .field("bytes", &payload.len())
                .field("retention", retention)
                .finish_non_exhaustive(),
        }
    }
}

/// Why a store could not answer. Never says anything about the record itself.
#[derive(Debug, thiserror::Error)]
#[error("{context}")]
pub struct StoreError {
    kind: StoreErrorKind,
    context: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The kinds of [`StoreError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// The store could not be reached, and nothing was sent. Nothing changed. Never said of a store
    /// that is there and busy, nor by a call that it has answered before
    /// ([`StoreError::after_an_answer`]).
    Unreachable,
    /// The store broke off or refused to answer. The call may have had its effect.
    Unavailable,
    /// The store did not answer in time. The call may have had its effect.
    Timeout,
    /// The store has no room for another record (ST8). Nothing changed.
    Full,
    /// The payload is larger than the store can hold. Nothing changed.
    TooLarge,
    /// A record can't be read, or was written by a newer version (ST10). Nothing changed.
    Unreadable,
    /// The store is not usable as it is set up: a foreign file, missing rights, a wrong setting.
    Misconfigured,
    /// The handler did not leave its [`Unit`] to the store: it committed, rolled back, or kept it.
    /// What it did is known to nobody, and not kept.
    Escaped,
}

impl StoreErrorKind {
    /// The kind's name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Full => "full",
            Self::TooLarge => "too_large",
            Self::Unreadable => "unreadable",
            Self::Misconfigured => "misconfigured",
            Self::Escaped => "escaped",
        }
    }
}

impl StoreError {
    /// An error with a message that names the thing and what to do.
    pub fn new(kind: StoreErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    /// The same, keeping what caused it.
    pub fn with_source(
        kind: StoreErrorKind,
        context: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, context: context.into(), source: Some(source.into()) }
    }

    /// What kind of failure it was.
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }

    /// The same, of a call to which the store has given an answer before this one failed.
    ///
    /// D4: a store that has answered is there, and what it said may have been that the operation is
    /// known. Nothing may run unprotected beside it, so [`Unreachable`](StoreErrorKind::Unreachable)
    /// becomes [`Unavailable`](StoreErrorKind::Unavailable), and keeps the first as its source. Every
    /// other error stays what it is.
    pub fn after_an_answer(self) -> Self {
        if self.kind != StoreErrorKind::Unreachable {
            return self;
        }
        let context = format!("it broke off in the middle of a call: {self}");
        Self::with_source(StoreErrorKind::Unavailable, context, self)
    }

    /// Whether the call may have had its effect although it failed.
    pub fn is_ambiguous(&self) -> bool {
        matches!(self.kind, StoreErrorKind::Unavailable | StoreErrorKind::Timeout)
    }
}
