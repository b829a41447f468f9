//! Why a server can't be used as a store.

use std::fmt;

use retrysafe_core::{ConfigError, StoreError, StoreErrorKind};

/// Why a server could not be opened as a store. One line that names the server and says what to do;
/// it never shows a password.
///
/// No record was touched, whatever the reason.
#[derive(Debug)]
pub struct OpenError {
    place: String,
    kind: OpenErrorKind,
    problem: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The kinds of [`OpenError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OpenErrorKind {
    /// A setting of the builder can't be used; the URL is one.
    Setting,
    /// No connection to the server came about in time.
    Unreachable,
    /// The server is there, and had no connection to give in time, or we none that was not in use.
    Busy,
    /// The server refuses the user or the password, or the user lacks a right.
    Denied,
    /// The database or the table does not exist.
    Missing,
    /// The server can't keep the contract: it is too old, or it may not be written.
    Unsuitable,
    /// The server failed while it was asked what it is.
    Failed,
}

impl OpenError {
    pub(crate) fn new(place: &str, kind: OpenErrorKind, problem: impl Into<String>) -> Self {
        Self { place: place.to_owned(), kind, problem: problem.into(), source: None }
    }

    pub(crate) fn setting(place: &str, error: ConfigError) -> Self {
        Self::new(place, OpenErrorKind::Setting, error.to_string()).caused_by(error)
    }

    pub(crate) fn caused_by(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What kind of failure it was.
    pub fn kind(&self) -> OpenErrorKind {
        self.kind
    }

    /// The server, as `host:port/database`.
    pub fn place(&self) -> &str {
        &self.place
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot open {} as a store: {}", self.place, self.problem)
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl From<OpenError> for StoreError {
    fn from(error: OpenError) -> Self {
        let kind = match error.kind {
            // Whatever went wrong, no verb had been sent.
            OpenErrorKind::Unreachable | OpenErrorKind::Failed => StoreErrorKind::Unreachable,
            // D4: what has no time for us is not away, and others are served meanwhile.
            OpenErrorKind::Busy => StoreErrorKind::Timeout,
            _ => StoreErrorKind::Misconfigured,
        };
        Self::with_source(kind, error.to_string(), error)
    }
}
