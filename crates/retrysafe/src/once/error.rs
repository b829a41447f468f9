//! Why a call gave no value.

use std::{error::Error, fmt};

use http::StatusCode;
use retrysafe_core::{Code, Disposition, Problem, ProblemStyle};

use super::rules::KEPT_ERROR;

/// Why a call gave no value. The handler's own error is in it, if there was one.
#[derive(Debug)]
#[non_exhaustive]
pub enum OnceError<E> {
    /// The handler answered with an error, now or, if it was kept, in an earlier call.
    #[non_exhaustive]
    Failed {
        /// The handler's error.
        error: E,
        /// What becomes of the operation: kept, released, or given up, which is *ambiguous*.
        disposition: Disposition,
        /// Whether it was answered from the record.
        replayed: bool,
        /// Whether a retry gets the same: the error was kept, and could be written (R7).
        recorded: bool,
    },
    /// There is no answer of the handler's to give. [`Problem::code`] says why, and
    /// [`Problem::retry_after`] when to try again. A handler that panicked is
    /// [`Code::HandlerFailed`].
    Problem(Problem),
    /// O3: the operation is done, and its value was kept, but is not what this build can read. It
    /// is never run again for that; a build that knows the older form gets it. What is in here may
    /// quote a part of the value.
    Undecodable(serde_json::Error),
    /// The input can't be serialised, so nobody could tell a retry from another call. Nothing ran.
    Input(serde_json::Error),
}

impl<E> OnceError<E> {
    /// Whether it is known what became of the operation, so that there is nothing left to find out:
    ///
    /// - the handler failed, and its error was kept or had no effect;
    /// - nothing ran for this input, nor will: no key, a bad one, or the key of another input;
    /// - it was done, but its value was not kept or can't be read.
    ///
    /// Anything else (in progress, unknown, a store that is down, a handler that panicked or failed
    /// in the middle) is settled by a retry *with the same key*, or by an operator.
    pub fn is_definite(&self) -> bool {
        match self {
            Self::Failed { disposition, .. } => {
                matches!(disposition, Disposition::Keep | Disposition::Release)
            }
            Self::Problem(problem) => matches!(
                problem.code,
                Code::MissingKey | Code::InvalidKey | Code::KeyReused | Code::ResponseUnavailable
            ),
            Self::Undecodable(_) | Self::Input(_) => true,
        }
    }

    /// The code of the catalogue, if this is one of its problems.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Problem(problem) => Some(problem.code),
            _ => None,
        }
    }

    /// What a client may be told instead of a value; nothing of the handler's error is in it.
    pub fn to_problem(&self) -> Problem {
        match self {
            Self::Problem(problem) => problem.clone(),
            Self::Failed { .. } => Problem::new(
                Code::HandlerFailed,
                "The operation failed. A retry with the same key finds out more.",
            ),
            Self::Undecodable(_) => Problem::new(
                Code::ResponseUnavailable,
                "The operation was done. Its result can't be read; it will not run again.",
            ),
            Self::Input(_) => Problem::new(
                Code::HandlerFailed,
                "What was asked for can't be compared with a retry. Nothing was done.",
            ),
        }
    }

    /// The status of an HTTP answer that stands for this: 422 for a handler's error that was kept,
    /// else what the style says of [the problem](Self::to_problem).
    pub fn status(&self, style: &ProblemStyle) -> StatusCode {
        match self {
            Self::Failed { disposition: Disposition::Keep, .. } => KEPT_ERROR,
            other => style.status(other.to_problem().code),
        }
    }

    /// The handler's error.
    pub fn into_handler_error(self) -> Option<E> {
        match self {
            Self::Failed { error, .. } => Some(error),
            _ => None,
        }
    }
}

impl<E> fmt::Display for OnceError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed { disposition: Disposition::Keep, .. } => {
                f.write_str("the operation failed")
            }
            Self::Failed { disposition: Disposition::Release, .. } => {
                f.write_str("the operation failed without an effect")
            }
            Self::Failed { .. } => f.write_str("the operation failed, and its outcome is unknown"),
            Self::Problem(problem) => write!(f, "{}: {}", problem.code, problem.detail),
            Self::Undecodable(_) => {
                f.write_str("the operation was done, and its kept result can't be read")
            }
            Self::Input(_) => f.write_str("the operation's input can't be serialised"),
        }
    }
}

impl<E: Error + 'static> Error for OnceError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Failed { error, .. } => Some(error),
            Self::Problem(_) => None,
            Self::Undecodable(error) | Self::Input(error) => Some(error),
        }
    }
}
