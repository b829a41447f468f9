//! Work that commits with its record, or not at all.
//!
//! Most stores keep records for themselves. One that keeps them beside the user's own data can do
//! more: it opens a transaction with the claim, lends it to the handler, and writes the outcome in
//! the same transaction. What it lends is a [`Unit`] of work.

use std::any::Any;

use crate::Attempt;

/// The work of an attempt that commits with its record: see
/// [`Store::unit`](crate::Store::unit).
///
/// As long as [`complete`](crate::Store::complete) has not been applied, nothing of it has happened.
pub trait Unit: Any + Send + Sync {
    /// Says to the `complete` that follows that the record is kept and the work is not: the handler
    /// refused. Sends nothing.
    fn undo(&self);
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
}
