//! What the server and the driver say, in the words of the store contract.

use retrysafe_core::{StoreError, StoreErrorKind};
use sqlx::{Error, mysql::MySqlDatabaseError};

use crate::{OpenError, OpenErrorKind};

/// A duplicate of the primary key: somebody has been here.
pub(super) const DUPLICATE: u16 = 1062;

/// No connection is left, for anybody or for this user.
const TOO_MANY_CONNECTIONS: u16 = 1040;
const TOO_MANY_OF_THE_USER: u16 = 1203;

/// What went wrong; of what the server says, its number, its state and its words.
fn said(error: &Error) -> String {
    error.as_database_error().map_or_else(|| error.to_string(), ToString::to_string)
}

/// What became of a statement that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The server undid it because of others, and asks for it to be sent again.
    Again,
    /// The server refused it: nothing changed.
    Refused(StoreErrorKind),
    /// The server refuses every change; another one may be the primary now. Nothing changed.
    ReadOnly,
    /// The connection, or the server, went away over it. It may have had its effect.
    Broken,
}

/// The server's number for an error, if it is the server's.
pub(super) fn number(error: &Error) -> Option<u16> {
    let error = error.as_database_error()?.try_downcast_ref::<MySqlDatabaseError>()?;
    Some(error.number())
}

/// Whether another transaction held the row for as long as the statement waits, or, as MySQL and
/// MariaDB say to `NOWAIT`, at all.
pub(super) fn is_locked(error: &Error) -> bool {
    matches!(number(error), Some(1205 | 3572))
}

pub(super) fn fate(error: &Error) -> Fate {
    use StoreErrorKind::{Full, Misconfigured, Timeout, TooLarge};
    // What the driver says is about the connection, or about an answer that it can't read.
    let Some(number) = number(error) else { return Fate::Broken };
    match number {
        // Deadlock, lock wait, a row that changed under a snapshot.
        1213 | 1205 | 1020 => Fate::Again,
        // ST8: the table, the disk, the tablespace or the transaction log is full.
        1021 | 1114 | 1713 => Fate::Refused(Full),
        1030 | 1026 | 3 if no_space_left(error) => Fate::Refused(Full),
        1118 | 1153 | 1301 => Fate::Refused(TooLarge),
        // The statement ran for longer than the server allows (MariaDB, MySQL).
        1969 | 3024 => Fate::Refused(Timeout),
        1290 | 1792 | 1836 => Fate::ReadOnly,
        _ if advice(number).is_some() => Fate::Refused(Misconfigured),
        // What isn't known to have changed nothing may have: the server shuts down (1053), the
        // statement or its connection was killed (1317, 1927), the commit failed (1180), ...
        _ => Fate::Broken,
    }
}

/// `errno` 28 of the server's operating system, in the words of the storage engine.
fn no_space_left(error: &Error) -> bool {
    let text = error.to_string();
    text.contains("error 28") || text.contains("errno: 28") || text.contains("No space left")
}

/// What to do about the errors that a person has to do something about.
fn advice(number: u16) -> Option<&'static str> {
    Some(match number {
        1045 | 1698 => "check the user and the password in the URL",
        1044 => "grant this user rights on the database: SELECT, INSERT, UPDATE, DELETE",
        1049 | 1046 => "name a database that exists at the end of the URL",
        1130 => "let this host connect: create the user for it on the server",
        1820 | 1862 | 3118 | 4151 => "unlock the account, or set it a new password, on the server",
        1142 | 1143 | 1227 | 1370 => {
            "grant this user SELECT, INSERT, UPDATE and DELETE on the table; to create it by \
             migrate(), CREATE as well"
        }
        1146 => {
            "create the table: open the store with migrate(), or run what MySqlStore::schema() \
             or `retrysafe schema` prints"
        }
        1054 | 1136 | 1176 | 1264 | 1364 | 1366 | 1406 | 1048 => {
            "the table is not as MySqlStore::schema() describes it: choose another table, or let \
             migrate() create one"
        }
        1290 | 1792 | 1836 => "it may not be written: name the primary in the URL, not a replica",
        1665 => "set its binlog_format to ROW or MIXED",
        _ => return None,
    })
}

/// What a verb answers when no connection came about. Nothing was sent.
pub(super) fn not_sent(place: &str, error: Error) -> StoreError {
    match number(&error).and_then(advice) {
        Some(advice) => StoreError::with_source(
            StoreErrorKind::Misconfigured,
            format!("{place} refuses the connection ({}): {advice}", said(&error)),
            error,
        ),
        // D4: what has too many connections has them with others, and is there.
        None if matches!(number(&error), Some(TOO_MANY_CONNECTIONS | TOO_MANY_OF_THE_USER)) => {
            let context = format!("{place} has no connection for us: {}", said(&error));
            StoreError::with_source(StoreErrorKind::Timeout, context, error)
        }
        None => StoreError::with_source(
            StoreErrorKind::Unreachable,
            format!("{place} could not be reached: {error}"),
            error,
        ),
    }
}

/// What a verb answers when the server refused its statement.
pub(super) fn refused(place: &str, kind: StoreErrorKind, error: Error) -> StoreError {
    let advice = number(&error).and_then(advice).map(|advice| format!(": {advice}"));
    let advice = advice.unwrap_or_default();
    StoreError::with_source(kind, format!("{place} refuses ({}){advice}", said(&error)), error)
}

/// What a verb answers when it may have had its effect.
pub(super) fn broken(place: &str, error: Error) -> StoreError {
    let context = format!("the connection to {place} broke, or the server did: {}", said(&error));
    StoreError::with_source(StoreErrorKind::Unavailable, context, error)
}

/// Whatever failed in the end, an earlier try of the same call may have had its effect.
pub(super) fn after_a_broken_try(error: StoreError) -> StoreError {
    if error.is_ambiguous() {
        return error;
    }
    let context = format!("an earlier try broke off, and then: {error}");
    StoreError::with_source(StoreErrorKind::Unavailable, context, error)
}

/// Why a server could not be opened.
pub(super) fn open_error(place: &str, error: Error) -> OpenError {
    let kind = match number(&error) {
        Some(1044 | 1045 | 1130 | 1142 | 1143 | 1227 | 1370 | 1698 | 1820 | 1862 | 3118 | 4151) => {
            OpenErrorKind::Denied
        }
        Some(1046 | 1049 | 1146) => OpenErrorKind::Missing,
        Some(TOO_MANY_CONNECTIONS | TOO_MANY_OF_THE_USER) => OpenErrorKind::Busy,
        Some(number) if advice(number).is_some() => OpenErrorKind::Unsuitable,
        Some(_) => OpenErrorKind::Failed,
        None => match error {
            Error::Io(_) | Error::Tls(_) => OpenErrorKind::Unreachable,
            Error::Configuration(_) => OpenErrorKind::Setting,
            _ => OpenErrorKind::Failed,
        },
    };
    let problem = match number(&error).and_then(advice) {
        Some(advice) => format!("{}; {advice}", said(&error)),
        None => said(&error),
    };
    OpenError::new(place, kind, problem).caused_by(error)
}
