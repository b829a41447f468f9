//! What sqlx and PostgreSQL say, in the words of the store contract.

use std::{error::Error as _, fmt, sync::Arc};

use retrysafe_core::{StoreError, StoreErrorKind};
use sqlx::postgres::PgConnectOptions;

use crate::{OpenError, OpenErrorKind};

/// The server, as messages name it: `PostgreSQL at host:port/database`. Never a password.
#[derive(Clone, Debug)]
pub(crate) struct Place(Arc<str>);

impl Place {
    pub(crate) fn of(options: &PgConnectOptions) -> Self {
        let host = match options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => options.get_host().to_owned(),
        };
        let database = options.get_database().unwrap_or_else(|| options.get_username());
        Self(format!("PostgreSQL at {host}:{}/{database}", options.get_port()).into())
    }

    pub(crate) fn unknown() -> Self {
        Self("PostgreSQL".into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a statement has no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server undid it because of what others did at that moment: run it again.
    Conflict,
    Store(StoreError),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// What went wrong, in the server's own words: sqlx adds a line of the server's sources to them.
fn said(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(reported) => reported.message().to_owned(),
        other => other.to_string(),
    }
}

/// What a statement that was sent failed with.
pub(crate) fn statement(place: &Place, table: &str, error: sqlx::Error) -> Failure {
    let code = match &error {
        sqlx::Error::Database(error) => error.code().map(|code| code.into_owned()),
        _ => None,
    };
    let (kind, advice) = match code.as_deref() {
        // Serialization failure, deadlock.
        Some("40001" | "40P01") => return Failure::Conflict,
        // Cancelled (by its time-out, as far as we know), lock not available.
        Some("57014" | "55P03") => (StoreErrorKind::Timeout, String::new()),
        Some("53100") => {
            (StoreErrorKind::Full, "; its disk is full: make room, or sweep".to_owned())
        }
        // Program limit exceeded: a value that is too large.
        Some("54000") => (StoreErrorKind::TooLarge, String::new()),
        // Damaged data or index.
        Some("XX001" | "XX002") => (StoreErrorKind::Unreadable, String::new()),
        Some(code) => match advice(code, table) {
            Some((_, advice)) => (StoreErrorKind::Misconfigured, format!("; {advice}")),
            None => (StoreErrorKind::Unavailable, String::new()),
        },
        None => (StoreErrorKind::Unavailable, String::new()),
    };
    let context = format!("{place}: {}{advice}", said(&error));
    Failure::Store(StoreError::with_source(kind, context, error))
}

/// Whether it is that another transaction has held the row for as long as somebody would wait.
pub(crate) fn is_locked(error: &StoreError) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref::<sqlx::Error>());
    let code = source.and_then(|error| error.as_database_error()?.code());
    code.as_deref() == Some("55P03")
}

/// What went wrong before any verb was sent.
pub(crate) fn open(place: &Place, error: sqlx::Error) -> OpenError {
    open_with(place, "", error)
}

/// The same, when it may have been about the table.
pub(crate) fn open_with(place: &Place, table: &str, error: sqlx::Error) -> OpenError {
    use sqlx::Error;
    let problem = said(&error);
    let (kind, problem) = match &error {
        Error::Database(reported) => {
            let code = reported.code().unwrap_or_default();
            match advice(&code, table) {
                Some((kind, advice)) => (kind, format!("{problem}; {advice}")),
                // Too many connections: others have them.
                None if code.starts_with("53") => (OpenErrorKind::Busy, problem),
                // Starting up, shutting down.
                None if code.starts_with("57") => (OpenErrorKind::Unreachable, problem),
                None => (OpenErrorKind::Failed, problem),
            }
        }
        Error::Configuration(_) | Error::InvalidArgument(_) => (OpenErrorKind::Setting, problem),
        Error::Tls(_) => (
            OpenErrorKind::Unsuitable,
            format!("{problem}; check `sslmode` and `sslrootcert` of the URL"),
        ),
        Error::PoolTimedOut => {
            (OpenErrorKind::Busy, "the pool had no connection to give in time".to_owned())
        }
        _ => (OpenErrorKind::Unreachable, problem),
    };
    OpenError::new(place.as_str(), kind, problem).caused_by(error)
}

pub(crate) fn standby(place: &Place) -> OpenError {
    let problem = "it is a standby, which may lag and can't be written; name the primary, or wait \
                   until this one is promoted";
    OpenError::new(place.as_str(), OpenErrorKind::Unsuitable, problem)
}

pub(crate) fn no_right(place: &Place, table: &str) -> OpenError {
    OpenError::new(place.as_str(), OpenErrorKind::Denied, grant(table))
}

fn grant(table: &str) -> String {
    let table = if table.is_empty() { "the table" } else { table };
    format!(
        "grant this user SELECT, INSERT, UPDATE and DELETE on {table}; to create it takes CREATE \
         on its schema"
    )
}

/// What to do about an error that stays until somebody changes the set-up.
fn advice(code: &str, table: &str) -> Option<(OpenErrorKind, String)> {
    use OpenErrorKind::{Denied, Missing, Unsuitable};
    let advice = match code {
        "28P01" | "28000" => (
            Denied,
            "check user and password of the URL, and that `pg_hba.conf` lets this user in"
                .to_owned(),
        ),
        "3D000" => (Missing, "create the database, or name another one in the URL".to_owned()),
        "42P01" | "3F000" => (Missing, missing(table)),
        "42501" => (Denied, grant(table)),
        "25006" => {
            (Unsuitable, "it is a standby or was set read-only; name the primary".to_owned())
        }
        // Undefined column, no unique index for ON CONFLICT, other types than ours.
        _ if code.starts_with("42") => (
            Unsuitable,
            "the table is not as `PostgresStore::schema` prints it; use another name, or mend it"
                .to_owned(),
        ),
        _ => return None,
    };
    Some(advice)
}

pub(crate) fn missing(table: &str) -> String {
    format!(
        "the table {table} does not exist; open the store with `migrate()`, or run what \
         `PostgresStore::schema` or `retrysafe schema` prints"
    )
}
