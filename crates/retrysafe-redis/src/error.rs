//! What Redis and the driver say, in the words of the store contract.

use std::fmt;

use redis::{ErrorKind, RedisError};
use retrysafe_core::{ConfigError, StoreError, StoreErrorKind};

/// Why a server could not be opened as a store, or a new connection to it not be used. One line that
/// names the server and says what to do.
#[derive(Clone, Debug)]
pub struct OpenError {
    server: String,
    kind: OpenErrorKind,
    problem: String,
    source: Option<Source>,
}

#[derive(Clone, Debug)]
enum Source {
    Redis(RedisError),
    Setting(ConfigError),
}

/// The kinds of [`OpenError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OpenErrorKind {
    /// A setting of the builder, or the URL, can't be used.
    Setting,
    /// The server could not be reached, or is not ready yet.
    Unreachable,
    /// The server is there, and every connection to it was in use for too long.
    Busy,
    /// The user or password is wrong, or the user may not do what a store needs.
    Denied,
    /// There is no such database.
    Database,
    /// The server removes keys to make room: a claim that it removes is a double execution.
    Evicting,
    /// The server is older than 7.0.
    TooOld,
    /// The server is a replica: it can't be written.
    ReadOnly,
    /// A node of a cluster was opened as a single server, or the other way round.
    Topology,
    /// There is no secure connection: a certificate that is not trusted, or no TLS at all.
    Tls,
}

impl OpenError {
    pub(crate) fn new(server: &str, kind: OpenErrorKind, problem: impl Into<String>) -> Self {
        Self { server: server.to_owned(), kind, problem: problem.into(), source: None }
    }

    pub(crate) fn setting(server: &str, error: ConfigError) -> Self {
        let problem = error.to_string();
        let source = Some(Source::Setting(error));
        Self { source, ..Self::new(server, OpenErrorKind::Setting, problem) }
    }

    /// A connection that could not be set up: nothing of ours was sent over it.
    pub(crate) fn connecting(server: &str, error: RedisError) -> Self {
        let said = error.to_string();
        let kind = match (error.kind(), error.code()) {
            (ErrorKind::AuthenticationFailed, _)
            | (_, Some("NOAUTH" | "WRONGPASS" | "NOPERM" | "DENIED")) => OpenErrorKind::Denied,
            (ErrorKind::InvalidClientConfig, _) => OpenErrorKind::Setting,
            (ErrorKind::RESP3NotSupported, _) | (_, Some("NOPROTO")) => OpenErrorKind::TooOld,
            _ if said.contains("refused to switch database") => OpenErrorKind::Database,
            _ if is_tls(&error) => OpenErrorKind::Tls,
            _ => OpenErrorKind::Unreachable,
        };
        let problem = match kind {
            OpenErrorKind::Denied => {
                format!("it refuses the user or password, or what the user does ({said})")
            }
            OpenErrorKind::TooOld => {
                "it does not speak RESP3; Redis 7.0 or Valkey is needed".into()
            }
            OpenErrorKind::Database => {
                format!("there is no such database ({said}); name another at the URL's end")
            }
            OpenErrorKind::Tls => format!(
                "TLS fails ({said}); a server that speaks no TLS there is redis://, and a certificate \
                 has to be one that this machine trusts"
            ),
            OpenErrorKind::Setting => said,
            _ => format!("it can't be reached ({said}); check the address and that it is running"),
        };
        Self { source: Some(Source::Redis(error)), ..Self::new(server, kind, problem) }
    }

    /// Over TLS, where a server that speaks none may just be silent.
    pub(crate) fn over_tls(mut self) -> Self {
        if self.kind == OpenErrorKind::Unreachable {
            self.problem += ", and that it speaks TLS there: one that does not is redis://";
        }
        self
    }

    /// What a store needs was tried, and refused.
    pub(crate) fn trying(server: &str, failure: Failure) -> Self {
        let error = match failure {
            Failure::NotSent(error) => return error,
            Failure::Sent { error, .. } | Failure::Unconfirmed { error, .. } => error,
        };
        match sent_kind(&error).0 {
            StoreErrorKind::Misconfigured => {
                let problem =
                    format!("it refuses what a store does ({error}); check the user's rights");
                Self::new(server, OpenErrorKind::Denied, problem)
            }
            _ => Self::connecting(server, error),
        }
    }

    /// What kind of failure it was.
    pub fn kind(&self) -> OpenErrorKind {
        self.kind
    }

    /// The server's address, without user and password.
    pub fn server(&self) -> &str {
        &self.server
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot use Redis at {} as a store: {}", self.server, self.problem)
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self.source.as_ref()? {
            Source::Redis(error) => Some(error),
            Source::Setting(error) => Some(error),
        }
    }
}

impl From<OpenError> for StoreError {
    fn from(error: OpenError) -> Self {
        let kind = match error.kind {
            OpenErrorKind::Unreachable => StoreErrorKind::Unreachable,
            // D4: what has no time for us is not away, and others are served meanwhile.
            OpenErrorKind::Busy => StoreErrorKind::Timeout,
            _ => StoreErrorKind::Misconfigured,
        };
        Self::with_source(kind, error.to_string(), error)
    }
}

/// What a request was answered with if not with what it asked for, or why there is no answer.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// There was no connection to send it on: nothing happened.
    NotSent(OpenError),
    /// It was sent, or may have been.
    Sent { server: String, error: RedisError },
    /// It was done, and nobody knows how many replicas have it.
    Unconfirmed { server: String, error: RedisError },
}

impl Failure {
    /// The server has no room for what would be written.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self, Self::Sent { error, .. } if error.code() == Some("OOM"))
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotSent(error) => error.into(),
            Failure::Sent { server, error } => {
                let (kind, advice) = sent_kind(&error);
                let context = format!("Redis at {server}: {error}{advice}");
                Self::with_source(kind, context, error)
            }
            Failure::Unconfirmed { server, error } => {
                let context =
                    format!("Redis at {server} does not say what its replicas have: {error}");
                Self::with_source(StoreErrorKind::Unavailable, context, error)
            }
        }
    }
}

/// What the error of a request that was sent says about its effect. A reply that begins with a code
/// is the server's refusal: every script checks before it writes, so nothing changed.
fn sent_kind(error: &RedisError) -> (StoreErrorKind, &'static str) {
    let code = match error.kind() {
        ErrorKind::Server(_) | ErrorKind::Extension => error.code().unwrap_or(""),
        ErrorKind::AuthenticationFailed => "NOAUTH",
        ErrorKind::Io if error.is_timeout() => return (StoreErrorKind::Timeout, ""),
        // The connection broke off, or what came over it was no reply.
        _ => return (StoreErrorKind::Unavailable, ""),
    };
    match code {
        "OOM" => (StoreErrorKind::Full, "; raise maxmemory"),
        "WRONGTYPE" => (StoreErrorKind::Unreadable, "; something else keeps data under our keys"),
        "NOAUTH" | "WRONGPASS" | "NOPERM" | "DENIED" => {
            (StoreErrorKind::Misconfigured, "; check the user's password and rights")
        }
        "READONLY" => (StoreErrorKind::Misconfigured, "; connect to the primary"),
        "MISCONF" => (StoreErrorKind::Misconfigured, ""),
        // It refused before it did anything, and may do it later.
        "LOADING" | "CLUSTERDOWN" | "MASTERDOWN" | "TRYAGAIN" | "NOREPLICAS" | "BUSY" | "MOVED"
        | "ASK" | "NOSCRIPT" => (StoreErrorKind::Unreachable, ""),
        _ => (StoreErrorKind::Unavailable, ""),
    }
}

type Shared = std::sync::Arc<dyn std::error::Error + Send + Sync>;

/// Whether a handshake failed for a reason that trying again does not change.
fn is_tls(error: &RedisError) -> bool {
    use std::error::Error as _;
    let mut cause: Option<&(dyn std::error::Error + 'static)> = error.source();
    while let Some(error) = cause {
        if error.is::<tokio_rustls::rustls::Error>() {
            return true;
        }
        // The driver keeps what it shares in an `Arc`, and its causes in an I/O error.
        if let Some(shared) = error.downcast_ref::<Shared>() {
            cause = Some(&**shared);
            continue;
        }
        cause = match error.downcast_ref::<std::io::Error>().and_then(|io| io.get_ref()) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn kind(error: RedisError) -> StoreErrorKind {
        StoreError::from(Failure::Sent { server: "here:1".into(), error }).kind()
    }

    #[test]
    fn what_the_server_refused_is_told_from_what_may_have_happened() {
        use StoreErrorKind::{Full, Misconfigured, Unavailable, Unreachable, Unreadable};
        for (said, expected) in [
            ("OOM command not allowed when used memory > 'maxmemory'.", Full),
            ("WRONGTYPE Operation against a key holding the wrong kind of value", Unreadable),
            ("NOAUTH Authentication required.", Misconfigured),
            ("NOPERM this user has no permissions to run the 'set' command", Misconfigured),
            ("READONLY You can't write against a read only replica.", Misconfigured),
            ("MISCONF Redis is configured to save RDB snapshots", Misconfigured),
            ("LOADING Redis is loading the dataset in memory", Unreachable),
            ("CLUSTERDOWN The cluster is down", Unreachable),
            ("MASTERDOWN Link with MASTER is down", Unreachable),
            ("TRYAGAIN Multiple keys request during rehashing of slot", Unreachable),
            ("NOREPLICAS Not enough good replicas to write.", Unreachable),
            ("BUSY Redis is busy running a script.", Unreachable),
            ("ERR Error compiling script", Unavailable),
            ("SOMETHING else", Unavailable),
        ] {
            let reply = redis::parse_redis_value(format!("-{said}\r\n").as_bytes()).unwrap();
            assert_eq!(kind(reply.extract_error().unwrap_err()), expected, "{said}");
        }
    }

    #[test]
    fn a_connection_that_ends_leaves_the_answer_open() {
        assert_eq!(kind(io::Error::from(io::ErrorKind::TimedOut).into()), StoreErrorKind::Timeout);
        for broken in [
            io::ErrorKind::BrokenPipe,
            io::ErrorKind::ConnectionReset,
            io::ErrorKind::UnexpectedEof,
            // Even so: it was sent on a connection that there was.
            io::ErrorKind::ConnectionRefused,
        ] {
            assert_eq!(kind(io::Error::from(broken).into()), StoreErrorKind::Unavailable);
        }
        let garbage = redis::parse_redis_value(b"HTTP/1.1 400\r\n").unwrap_err();
        assert_eq!(kind(garbage), StoreErrorKind::Unavailable);
    }

    #[test]
    fn only_a_server_that_was_not_reached_is_unreachable() {
        let kind = |error| {
            let error = OpenError::connecting("here:1", error);
            (error.kind(), StoreError::from(error).kind())
        };
        for refused in [io::ErrorKind::ConnectionRefused, io::ErrorKind::TimedOut] {
            let expected = (OpenErrorKind::Unreachable, StoreErrorKind::Unreachable);
            assert_eq!(kind(io::Error::from(refused).into()), expected);
        }
        let wrong = (ErrorKind::AuthenticationFailed, "Password authentication failed");
        let expected = (OpenErrorKind::Denied, StoreErrorKind::Misconfigured);
        assert_eq!(kind(wrong.into()), expected);
    }
}
