//! The decision: one pure function from what the store says to what happens (PROTOCOL 3).

use std::{fmt, time::Duration};

use bytes::Bytes;

use crate::{Acquired, Begin, Found};

/// How a claim's fingerprint relates to the record's, as far as both are known.
///
/// [`Fingerprint::compare`](crate::Fingerprint::compare) gives it; a body that had to be read first
/// has been read by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Likeness {
    /// The same request.
    Same,
    /// Another request.
    Differs,
}

/// What is kept of a finished operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The whole response.
    Response,
    /// That it finished, but not the response (R4).
    OutcomeOnly,
}

/// What happens to a request that has claimed an operation. `Debug` shows no payload.
#[derive(Clone, PartialEq, Eq)]
pub enum Decision {
    /// The handler runs.
    Execute(Acquired),
    /// The key was used with a different request: 422, and the record is untouched.
    Mismatch,
    /// Another attempt holds a live lease: 409, or wait (D2).
    InFlight {
        /// Its number.
        attempt: u32,
        /// How long its lease has left.
        lease_left: Duration,
    },
    /// Nobody knows what the newest attempt did: by policy (D3).
    OutcomeUnknown {
        /// Its number.
        attempt: u32,
    },
    /// The kept response is the answer.
    Replay(Bytes),
    /// The operation is done but its response was not kept: 409, and never run again.
    Unavailable(Bytes),
    /// The claim is a late duplicate of one that was already released. Nothing runs for it.
    Superseded,
}

// S3: what was kept is not shown.
impl fmt::Debug for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Execute(acquired) => f.debug_tuple("Execute").field(acquired).finish(),
            Self::Mismatch => f.write_str("Mismatch"),
            Self::InFlight { attempt, lease_left } => f
                .debug_struct("InFlight")
                .field("attempt", attempt)
                .field("lease_left", lease_left)
                .finish(),
            Self::OutcomeUnknown { attempt } => {
                f.debug_struct("OutcomeUnknown").field("attempt", attempt).finish()
            }
            Self::Replay(_) => f.write_str("Replay(..)"),
            Self::Unavailable(_) => f.write_str("Unavailable(..)"),
            Self::Superseded => f.write_str("Superseded"),
        }
    }
}

/// Decides. `likeness` compares with the fingerprint that was found, `kept` says what the payload
/// that was found holds; neither matters to a claim that was granted.
pub fn decide(begun: Begin, likeness: Likeness, kept: Kept) -> Decision {
    let found = match begun {
        Begin::Acquired(acquired) => return Decision::Execute(acquired),
        Begin::Found(found) => found,
    };
    match (found, likeness) {
        (Found::Free, _) => Decision::Superseded,
        // Outranks everything below: never tell a stranger what is stored.
        (_, Likeness::Differs) => Decision::Mismatch,
        (Found::InFlight { attempt, lease_left, .. }, _) => {
            Decision::InFlight { attempt, lease_left }
        }
        (Found::Lapsed { attempt, .. }, _) => Decision::OutcomeUnknown { attempt },
        (Found::Finished { payload, .. }, _) => match kept {
            Kept::Response => Decision::Replay(payload),
            Kept::OutcomeOnly => Decision::Unavailable(payload),
        },
    }
}
