//! What the transactional stores of both engines share: the transaction that goes from the store to
//! the handler and back, and who works on which operation in this process.

mod flights;
mod transaction;

pub(crate) use self::flights::{Entered, Flights, in_flight_elsewhere};
pub use self::transaction::SharedTransaction;
pub(crate) use self::transaction::{Slot, Taken};

/// The isolation level of the transactions that a store opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isolation {
    /// Each statement sees what is committed when it begins.
    ReadCommitted,
    /// All statements see what was committed when the transaction began.
    RepeatableRead,
    /// As if transactions ran one after another.
    Serializable,
}

impl Isolation {
    /// As SQL names it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::ReadCommitted => "READ COMMITTED",
            Self::RepeatableRead => "REPEATABLE READ",
            Self::Serializable => "SERIALIZABLE",
        }
    }
}

/// Whether the server undid the transaction because of what others did at that moment (a
/// serialization failure, a deadlock), so that the same request may well succeed when it is sent
/// again. A handler answers such an error with a 5xx: the key is free then, and the retry runs.
///
/// ```
/// # fn status(error: &sqlx::Error) -> u16 {
/// if retrysafe_sqlx::is_conflict(error) { 503 } else { 500 }
/// # }
/// ```
pub fn is_conflict(error: &sqlx::Error) -> bool {
    let Some(code) = error.as_database_error().and_then(|error| error.code()) else {
        return false;
    };
    // MySQL says 40001 for a deadlock, too.
    matches!(&*code, "40001" | "40P01")
}
