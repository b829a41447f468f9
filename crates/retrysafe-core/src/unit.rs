//! Work that commits with its record, or not at all.
//!
//! Most stores keep records for themselves. One that keeps them beside the user's own data can do
//! more: it opens a transaction with the claim, lends it to the handler, and writes the outcome in
//! the same transaction. What it lends is a [`Unit`] of work.

use std::{any::Any, fmt, pin::Pin, sync::Arc};

use bytes::Bytes;

use crate::{Attempt, OperationId, StoreError};

/// The work of an attempt that commits with its record: see
/// [`Store::unit`](crate::Store::unit).
///
/// As long as [`complete`](crate::Store::complete) has not been applied, nothing of it has happened.
pub trait Unit: Any + Send + Sync {
    /// Says to the `complete` that follows that the record is kept and the work is not: the handler
    /// refused. Sends nothing.
    fn undo(&self);

    /// Where parts of the work can be committed before the outcome; `None` if it is all or nothing.
    fn points(self: Arc<Self>) -> Option<Arc<dyn Points>> {
        None
    }
}

/// What a verb of [`Points`] answers, in time.
pub type PointFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Recovery points: a unit of work that can be committed in parts, between calls to other services.
///
/// The parts are committed together with the claim, and with what the phases have come to so far,
/// which the store keeps as it is given, until the operation is finished or free. An attempt that has
/// kept something is not undone any more when it ends without an outcome: it is given up, and the next
/// attempt of the same request goes on from what was kept.
///
/// This is for authors of stores, and of what is above them; handlers use `Phases` of `retrysafe`.
///
/// Each call looks whether this is still the live attempt, in the transaction that it commits, and
/// answers `false` if it is not: then nothing has changed. Dropping a future leaves nothing half done.
pub trait Points: Send + Sync {
    /// Takes them, once: an attempt has one row of phases, two would not know what the other one keeps.
    ///
    /// # Errors
    ///
    /// [`NotLent::InUse`] if somebody has them, and [`NotLent::Unread`] if the claim did not say what is
    /// in the request's body: then a retry can't be told from another request, and what is kept is for
    /// retries alone.
    fn take(&self) -> Result<(), NotLent>;

    /// What attempts of this operation have kept last. It can't change under the live attempt.
    fn kept(&self) -> PointFuture<'_, Option<Bytes>>;

    /// Makes sure that a transaction is open, for work that will be committed.
    fn open(&self) -> PointFuture<'_, bool>;

    /// Commits the claim and what was written so far, and what is kept from now on, if that is new.
    /// Then nothing is open: no lock is held while another service is called. With nothing new, and
    /// nothing open, it only looks whether this is the live attempt; what was heard less than a lease
    /// ago, counted from when it was asked, will do.
    fn commit(&self, points: Option<Bytes>) -> PointFuture<'_, bool>;

    /// Undoes what was not committed. Asks nobody, so that it can be done where something is dropped.
    fn roll_back(&self);
}

/// A store that can say what was abandoned. Another side trait, like [`Inspect`](crate::Inspect): front
/// doors never see it.
pub trait FindAbandoned: Send + Sync + 'static {
    /// At most `limit` operations with an id greater than `after`, in the order of their ids, whose
    /// outcome is unknown, and of which [`Points`] are kept. It may be that somebody goes on with one
    /// of them in the next moment: only a claim decides.
    ///
    /// # Errors
    ///
    /// If the store can't be asked.
    fn abandoned(
        &self,
        after: Option<&OperationId>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<Abandoned>, StoreError>> + Send;
}

/// An operation that nobody works on. `Debug` does not show what is kept of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Abandoned {
    /// The operation.
    pub id: OperationId,
    /// The number of the newest attempt.
    pub attempt: u32,
    /// What is kept.
    pub points: Bytes,
}

// S3: what is kept is not shown.
impl fmt::Debug for Abandoned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Abandoned")
            .field("id", &self.id)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

/// What a handler can ask of its attempt besides what every attempt knows: a transaction, where the
/// store lends one.
pub trait FromAttempt: Sized {
    /// Takes it for as long as the value lives.
    ///
    /// # Errors
    ///
    /// [`NotLent`] says why there is none.
    fn from_attempt(attempt: &Attempt) -> Result<Self, NotLent>;
}

/// Why an attempt lends nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotLent {
    /// The layer's store keeps records only, or lends something else.
    #[error("the store of this attempt lends no such thing")]
    Absent,
    /// It is lent out already, and was not given back.
    #[error("it is in use: somebody who works for this attempt has not given it back")]
    InUse,
    /// The attempt has ended.
    #[error("the attempt is over")]
    Over,
    /// It is between two phases, where nothing is open.
    #[error("no transaction is open between two phases: take one from the phases")]
    Between,
    /// Phases are for requests that a retry can be told from: those that are read as a whole before
    /// they are claimed.
    #[error("the request is longer than what is read before the claim (`inline_body`)")]
    Unread,
}
