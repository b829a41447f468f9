//! What NATS says, in the words of the store contract.

use std::fmt;

use async_nats::{ConnectError, ConnectErrorKind, RequestError, RequestErrorKind};
use retrysafe_core::{ConfigError, StoreError, StoreErrorKind};
use serde::Deserialize;

/// Why a store could not be opened. One line that names the servers, without any password, and says
/// what to do.
#[derive(Debug)]
pub struct OpenError {
    servers: String,
    kind: OpenErrorKind,
    problem: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The kinds of [`OpenError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OpenErrorKind {
    /// A setting of the builder, or a URL, can't be used.
    Setting,
    /// No server could be connected to.
    Unreachable,
    /// The servers refuse these credentials, or this user may not do what the store has to do.
    Denied,
    /// The server is older than 2.11, which brought a TTL for each message.
    TooOld,
    /// JetStream is not enabled, for the server or for the account.
    NoJetStream,
    /// The stream exists and is set up in a way that could lose records, or can't be created.
    Stream,
    /// The servers did not answer, or have no leader.
    Unavailable,
}

impl OpenError {
    pub(crate) fn new(servers: &str, kind: OpenErrorKind, problem: impl Into<String>) -> Self {
        Self { servers: servers.to_owned(), kind, problem: problem.into(), source: None }
    }

    pub(crate) fn setting(servers: &str, error: ConfigError) -> Self {
        Self::new(servers, OpenErrorKind::Setting, error.to_string()).caused_by(error)
    }

    pub(crate) fn connecting(servers: &str, error: ConnectError) -> Self {
        let (kind, problem) = match error.kind() {
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => (
                OpenErrorKind::Denied,
                "the server refuses these credentials; check user and password, or the token"
                    .to_owned(),
            ),
            ConnectErrorKind::ServerParse => {
                (OpenErrorKind::Setting, "a URL looks like `nats://user:password@host:4222`".into())
            }
            ConnectErrorKind::Tls => (OpenErrorKind::Denied, format!("TLS failed: {error}")),
            _ => (OpenErrorKind::Unreachable, format!("no server could be connected to: {error}")),
        };
        Self::new(servers, kind, problem).caused_by(error)
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
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot open NATS at {} as a store: {}", self.servers, self.problem)
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
            OpenErrorKind::Unreachable => StoreErrorKind::Unreachable,
            OpenErrorKind::Unavailable => StoreErrorKind::Unavailable,
            _ => StoreErrorKind::Misconfigured,
        };
        Self::with_source(kind, error.to_string(), error)
    }
}

/// JetStream's own words for an error.
#[derive(Debug, Deserialize)]
pub(crate) struct Refusal {
    pub(crate) err_code: u32,
    #[serde(default)]
    pub(crate) description: String,
}

/// The codes that mean something of their own. The rest is unavailability.
pub(crate) mod code {
    pub(crate) const ACCOUNT_RESOURCES_EXCEEDED: u32 = 10002;
    pub(crate) const CLUSTER_NOT_AVAILABLE: u32 = 10008;
    pub(crate) const INSUFFICIENT_RESOURCES: u32 = 10023;
    pub(crate) const MEMORY_RESOURCES_EXCEEDED: u32 = 10028;
    pub(crate) const NO_MESSAGE_FOUND: u32 = 10037;
    pub(crate) const NOT_ENABLED_FOR_ACCOUNT: u32 = 10039;
    pub(crate) const STORAGE_RESOURCES_EXCEEDED: u32 = 10047;
    pub(crate) const MESSAGE_EXCEEDS_MAXIMUM: u32 = 10054;
    pub(crate) const STREAM_NAME_EXISTS: u32 = 10058;
    pub(crate) const STREAM_NOT_FOUND: u32 = 10059;
    pub(crate) const WRONG_LAST_SEQUENCE: u32 = 10071;
    pub(crate) const NOT_ENABLED: u32 = 10076;
    pub(crate) const STORE_FAILED: u32 = 10077;
    pub(crate) const STREAM_SEALED: u32 = 10109;
    /// The same as [`WRONG_LAST_SEQUENCE`]: another write is on its way through the cluster.
    pub(crate) const ANOTHER_WRITE_UNDER_WAY: u32 = 10164;
    pub(crate) const TTL_INVALID: u32 = 10165;
    pub(crate) const TTL_DISABLED: u32 = 10166;
}

impl Refusal {
    pub(crate) fn into_error(self, stream: &str) -> StoreError {
        let kind = match self.err_code {
            // Refused before it was stored: nothing changed.
            code::ACCOUNT_RESOURCES_EXCEEDED
            | code::INSUFFICIENT_RESOURCES
            | code::MEMORY_RESOURCES_EXCEEDED
            | code::STORAGE_RESOURCES_EXCEEDED => StoreErrorKind::Full,
            code::STORE_FAILED if self.description.contains("maximum bytes exceeded") => {
                StoreErrorKind::Full
            }
            code::STORE_FAILED if self.description.contains("maximum messages exceeded") => {
                StoreErrorKind::Full
            }
            code::STORE_FAILED if self.description.contains("message size") => {
                StoreErrorKind::TooLarge
            }
            code::MESSAGE_EXCEEDS_MAXIMUM => StoreErrorKind::TooLarge,
            code::NOT_ENABLED_FOR_ACCOUNT
            | code::NOT_ENABLED
            | code::STREAM_NOT_FOUND
            | code::STREAM_NAME_EXISTS
            | code::STREAM_SEALED
            | code::TTL_INVALID
            | code::TTL_DISABLED => StoreErrorKind::Misconfigured,
            _ => StoreErrorKind::Unavailable,
        };
        let Self { err_code, description } = self;
        StoreError::new(kind, format!("NATS stream `{stream}`: {description} ({err_code})"))
    }
}

/// Why a request has no answer.
pub(crate) fn request_failed(stream: &str, error: RequestError) -> StoreError {
    let (kind, problem) = match error.kind() {
        RequestErrorKind::TimedOut => (StoreErrorKind::Timeout, "no answer in time"),
        // Nobody was there to hear it.
        RequestErrorKind::NoResponders => (
            StoreErrorKind::Unreachable,
            "nobody answers: the stream has no leader, or does not exist, or JetStream is off",
        ),
        RequestErrorKind::MaxPayloadExceeded => {
            (StoreErrorKind::TooLarge, "over the server's max_payload")
        }
        RequestErrorKind::InvalidSubject => (StoreErrorKind::Misconfigured, "a bad stream name"),
        RequestErrorKind::Other => (StoreErrorKind::Unavailable, "the connection broke off"),
    };
    StoreError::with_source(kind, format!("NATS stream `{stream}`: {problem}"), error)
}

pub(crate) fn no_answer(stream: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Timeout, format!("NATS stream `{stream}`: no answer in time"))
}

pub(crate) fn not_connected(stream: &str) -> StoreError {
    StoreError::new(
        StoreErrorKind::Unreachable,
        format!("NATS stream `{stream}`: no server is connected; nothing was sent"),
    )
}

pub(crate) fn unexpected(stream: &str, error: serde_json::Error) -> StoreError {
    StoreError::with_source(
        StoreErrorKind::Unavailable,
        format!("NATS stream `{stream}`: an answer that JetStream does not give"),
        error,
    )
}
