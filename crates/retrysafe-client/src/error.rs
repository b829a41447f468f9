//! What can go wrong while a call is made.

use std::{error::Error as StdError, fmt};

use http::StatusCode;
use retrysafe_core::{
    IdempotencyKey, OperationId,
    client::{NoKey, Unknown},
};

use crate::journal::JournalError;

/// An error of any kind.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// Why a call has no answer, where that is not for the HTTP client to say.
#[derive(Debug)]
pub struct Error(Kind);

#[derive(Debug)]
enum Kind {
    NoKey(NoKey),
    Journal(JournalError),
    Unknown(Box<OutcomeUnknown>),
    TimedOut,
    NotShared,
    KeyReused,
    NoTls(BoxError),
    Inner(BoxError),
}

/// The kinds of [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operation got no key, and nothing was sent: the caller's own can't be used, or none can be
    /// made from what the request says.
    NoKey,
    /// The journal could not keep the request, and nothing was sent.
    Journal,
    /// Nobody knows what became of the operation: see [`OutcomeUnknown`].
    OutcomeUnknown,
    /// The last attempt took too long. Only requests without a key end so: nothing has to be found out
    /// of them, or nothing can be.
    TimedOut,
    /// Another call of this process was answered with a stream, which can't be shared.
    NotShared,
    /// Another call of this process used the key for another request, and answers are shared. Nothing
    /// was sent.
    KeyReused,
    /// The URL is `https:`, and reqwest was built without TLS. Nothing was sent.
    NoTls,
    /// The inner service failed.
    Inner,
}

impl Error {
    /// What kind of error it is.
    pub fn kind(&self) -> ErrorKind {
        match &self.0 {
            Kind::NoKey(_) => ErrorKind::NoKey,
            Kind::Journal(_) => ErrorKind::Journal,
            Kind::Unknown(_) => ErrorKind::OutcomeUnknown,
            Kind::TimedOut => ErrorKind::TimedOut,
            Kind::NotShared => ErrorKind::NotShared,
            Kind::KeyReused => ErrorKind::KeyReused,
            Kind::NoTls(_) => ErrorKind::NoTls,
            Kind::Inner(_) => ErrorKind::Inner,
        }
    }

    /// The error of the inner service, if it is one.
    ///
    /// # Errors
    ///
    /// This error, if it is of another kind.
    pub fn into_inner(self) -> Result<BoxError, Self> {
        match self.0 {
            Kind::Inner(error) => Ok(error),
            kind => Err(Self(kind)),
        }
    }

    /// What is unknown, if that is the error.
    ///
    /// # Errors
    ///
    /// This error, if it is of another kind.
    pub fn into_outcome_unknown(self) -> Result<OutcomeUnknown, Self> {
        match self.0 {
            Kind::Unknown(unknown) => Ok(*unknown),
            kind => Err(Self(kind)),
        }
    }

    pub(crate) fn timed_out() -> Self {
        Self(Kind::TimedOut)
    }

    pub(crate) fn not_shared() -> Self {
        Self(Kind::NotShared)
    }

    pub(crate) fn key_reused() -> Self {
        Self(Kind::KeyReused)
    }

    pub(crate) fn no_tls(error: impl Into<BoxError>) -> Self {
        Self(Kind::NoTls(error.into()))
    }

    pub(crate) fn inner(error: impl Into<BoxError>) -> Self {
        Self(Kind::Inner(error.into()))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            // Whole, so that printed alone it names the file and says what to do.
            Kind::Journal(error) => return write!(f, "nothing was sent: {error}"),
            Kind::NoKey(_) => "the operation has no key, so nothing was sent",
            Kind::Unknown(_) => "the call ended without an answer",
            Kind::TimedOut => "the server did not answer in time",
            Kind::NotShared => "another call of this process was answered with a stream",
            Kind::KeyReused => "nothing was sent: the key was used for another request",
            Kind::NoTls(_) => {
                "nothing was sent: https needs TLS, and this reqwest is built without; turn on its \
                 feature `rustls` or `native-tls`"
            }
            Kind::Inner(_) => "the request failed",
        })
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.0 {
            Kind::NoKey(error) => Some(error),
            Kind::Journal(error) => error.source(),
            Kind::Unknown(error) => Some(&**error),
            Kind::NoTls(error) | Kind::Inner(error) => Some(&**error),
            Kind::TimedOut | Kind::NotShared | Kind::KeyReused => None,
        }
    }
}

impl From<NoKey> for Error {
    fn from(error: NoKey) -> Self {
        Self(Kind::NoKey(error))
    }
}

impl From<JournalError> for Error {
    fn from(error: JournalError) -> Self {
        Self(Kind::Journal(error))
    }
}

impl From<OutcomeUnknown> for Error {
    fn from(error: OutcomeUnknown) -> Self {
        Self(Kind::Unknown(Box::new(error)))
    }
}

/// The operation may have been executed, and this call does not know (C5).
///
/// Send the same request with the same [key](Self::key) later, or keep both and let
/// [`Client::resume`](crate::Client::resume) do it. A new key would be a new operation.
///
/// ```
/// use retrysafe_client::OutcomeUnknown;
///
/// fn note(error: &reqwest_middleware::Error) {
///     if let Some(unknown) = OutcomeUnknown::of(error) {
///         // The digest is for logs, the key for whoever asks again.
///         eprintln!("{} is unknown: {}", unknown.operation(), unknown.why());
///         let _key = unknown.key();
///     }
/// }
/// ```
pub struct OutcomeUnknown {
    pub(crate) key: IdempotencyKey,
    pub(crate) operation: OperationId,
    pub(crate) attempts: u32,
    pub(crate) why: Unknown,
    pub(crate) status: Option<StatusCode>,
    pub(crate) source: Option<BoxError>,
}

impl OutcomeUnknown {
    /// The key of the operation.
    pub fn key(&self) -> &IdempotencyKey {
        &self.key
    }

    /// The digest of the origin and the key: what logs, traces and the journal call this operation.
    pub fn operation(&self) -> &OperationId {
        &self.operation
    }

    /// How many requests were sent.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Why nothing more was tried.
    pub fn why(&self) -> Unknown {
        self.why
    }

    /// The status of the last answer, if the last attempt had one.
    pub fn status(&self) -> Option<StatusCode> {
        self.status
    }

    /// Takes it out of an error of reqwest-middleware.
    ///
    /// # Errors
    ///
    /// The error, if it is another.
    pub fn from_error(error: reqwest_middleware::Error) -> Result<Self, reqwest_middleware::Error> {
        match error {
            reqwest_middleware::Error::Middleware(error) => {
                let ours = error.downcast::<Error>()?;
                ours.into_outcome_unknown().map_err(reqwest_middleware::Error::middleware)
            }
            error => Err(error),
        }
    }

    /// Finds it in an error of any client, wherever it is among the causes.
    pub fn of<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(unknown) = error.downcast_ref() {
                return Some(unknown);
            }
            cause = error.source();
        }
        None
    }
}

impl fmt::Display for OutcomeUnknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operation, attempts, why, .. } = self;
        write!(f, "the outcome of {operation} is unknown after {attempts} attempts: {why}")?;
        self.status.map_or(Ok(()), |status| write!(f, " (the last answer was {status})"))
    }
}

// S3: the key is not shown.
impl fmt::Debug for OutcomeUnknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutcomeUnknown")
            .field("operation", &self.operation)
            .field("attempts", &self.attempts)
            .field("why", &self.why)
            .field("status", &self.status)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl StdError for OutcomeUnknown {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|it| &**it as _)
    }
}
