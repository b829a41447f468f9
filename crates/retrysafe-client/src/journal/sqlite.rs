//! The journal as a table.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, Method, StatusCode};
use retrysafe_core::{IdempotencyKey, OperationId};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, Row, params};

use super::{
    Before, Begun, Entry, Journal, JournalError, Known, REMEMBERED, Settled,
    file::{milliseconds, owners_alone, text_of, value_of},
    writer::{Change, Pages, Writer},
};

/// A journal in a table of an SQLite file.
///
/// Many calls at once share one transaction, with `synchronous=FULL`. **Bodies are in the file as they
/// were sent**; credentials are not. Operations that were settled more than 400 days ago are dropped when
/// it is opened. On Unix a new file is its owner's alone (0600).
#[derive(Debug)]
pub struct SqliteJournal {
    writer: Writer,
}

impl SqliteJournal {
    /// Opens a journal, or makes one.
    ///
    /// # Errors
    ///
    /// If the file can't be used or is in use by another process.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, JournalError> {
        let path = path.as_ref();
        // SQLite takes over the permissions of a file that is there. One that is there already is not
        // opened: closing it would give up the locks that SQLite has on it in this process.
        match owners_alone().create_new(true).open(path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(JournalError::not_opened(path, error));
            }
            _ => {}
        }
        let table = Table::open(path).map_err(|error| failed(path, "opened", error))?;
        Ok(Self { writer: Writer::start(table)? })
    }
}

impl Journal for SqliteJournal {
    fn begin(&self, entry: Arc<Entry>) -> BoxFuture<'_, Result<Begun, JournalError>> {
        self.writer.begin(entry)
    }

    fn settle(&self, operation: OperationId, settled: Settled) {
        self.writer.settle(operation, settled);
    }

    fn find(&self, operation: OperationId) -> BoxFuture<'_, Result<Option<Known>, JournalError>> {
        self.writer.find(operation)
    }

    fn unknown(&self) -> BoxFuture<'_, Result<Vec<Arc<Entry>>, JournalError>> {
        self.writer.unknown()
    }
}

struct Table {
    path: PathBuf,
    connection: Connection,
}

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS retrysafe_journal (
        operation BLOB NOT NULL PRIMARY KEY,
        key TEXT NOT NULL,
        method TEXT NOT NULL,
        url TEXT NOT NULL,
        headers TEXT NOT NULL,
        body BLOB NOT NULL,
        first_sent INTEGER NOT NULL,
        status INTEGER,
        settled_at INTEGER
    ) STRICT;
    CREATE INDEX IF NOT EXISTS retrysafe_journal_unknown
        ON retrysafe_journal (first_sent) WHERE status IS NULL;
";

/// A request that is begun again is unknown again, and keeps its first time.
const BEGIN: &str = "
    INSERT INTO retrysafe_journal (operation, key, method, url, headers, body, first_sent)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
    ON CONFLICT (operation) DO UPDATE SET
        method = excluded.method, url = excluded.url, headers = excluded.headers, body = excluded.body,
        first_sent = min(first_sent, excluded.first_sent), status = NULL, settled_at = NULL
    RETURNING first_sent
";

/// The body is no longer needed.
const ANSWERED: &str = "
    UPDATE retrysafe_journal SET status = ?2, settled_at = ?3, body = x'', headers = '[]'
    WHERE operation = ?1
";

/// What is known of it before it is begun: a row of an operation whose outcome is unknown has no status.
const BEFORE: &str = "SELECT status FROM retrysafe_journal WHERE operation = ?1";

const ENTRY: &str = "operation, key, method, url, headers, body, first_sent, status";

impl Table {
    fn open(path: &Path) -> rusqlite::Result<Self> {
        // A path is a path, whatever it looks like.
        let flags = OpenFlags::default() & !OpenFlags::SQLITE_OPEN_URI;
        let connection = Connection::open_with_flags(path, flags)?;
        // Who has the file keeps it: waiting is of no use.
        connection.busy_timeout(Duration::ZERO)?;
        // One process: another would resume what this one is in the middle of.
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.execute_batch(SCHEMA)?;
        // Takes the lock now, and not at the first request.
        let newest: Option<i64> =
            connection
                .query_row("SELECT max(settled_at) FROM retrysafe_journal", [], |row| row.get(0))?;
        let limit = newest.unwrap_or_default().saturating_sub(stored(REMEMBERED));
        connection.execute(
            "DELETE FROM retrysafe_journal WHERE status IS NOT NULL AND settled_at < ?1",
            [limit],
        )?;
        Ok(Self { path: path.to_owned(), connection })
    }

    fn apply(&mut self, changes: &[Change]) -> rusqlite::Result<Vec<Option<Begun>>> {
        let transaction = self.connection.transaction()?;
        let mut begun = Vec::with_capacity(changes.len());
        for change in changes {
            begun.push(match change {
                Change::Begin(entry) => {
                    let headers: Vec<_> = entry
                        .headers
                        .iter()
                        .map(|(name, value)| (name.as_str(), text_of(value)))
                        .collect();
                    let before = transaction
                        .prepare_cached(BEFORE)?
                        .query_row([entry.operation.as_bytes()], |row| row.get(0).map(before_of))
                        .optional()?;
                    let first_sent: i64 = transaction.prepare_cached(BEGIN)?.query_row(
                        params![
                            entry.operation.as_bytes(),
                            entry.key.as_str(),
                            entry.method.as_str(),
                            entry.url,
                            serde_json::to_string(&headers).unwrap_or_default(),
                            &entry.body[..],
                            stored(entry.first_sent),
                        ],
                        |row| row.get(0),
                    )?;
                    Some(Begun { first_sent: loaded(first_sent), before })
                }
                Change::Settle(operation, Settled::Answered { status, at }) => {
                    transaction.prepare_cached(ANSWERED)?.execute(params![
                        operation.as_bytes(),
                        status.as_u16(),
                        stored(*at)
                    ])?;
                    None
                }
                Change::Settle(operation, Settled::NotDone) => {
                    transaction
                        .prepare_cached("DELETE FROM retrysafe_journal WHERE operation = ?1")?
                        .execute([operation.as_bytes()])?;
                    None
                }
            });
        }
        transaction.commit()?;
        Ok(begun)
    }

    fn entries(&self) -> rusqlite::Result<Vec<Arc<Entry>>> {
        let query = format!(
            "SELECT {ENTRY} FROM retrysafe_journal WHERE status IS NULL \
             ORDER BY first_sent, operation"
        );
        let mut statement = self.connection.prepare_cached(&query)?;
        let rows = statement.query_map([], entry)?;
        rows.map(|row| row.map(Arc::new)).collect()
    }
}

/// What SQLite says, in the words that both journals have.
fn failed(path: &Path, what: &str, error: rusqlite::Error) -> JournalError {
    let kind = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            return JournalError::in_use(path);
        }
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            return JournalError::damaged(path, error);
        }
        // SQLite has one word for it.
        Some(ErrorCode::CannotOpen) if path.is_dir() => ErrorKind::IsADirectory,
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => {
            ErrorKind::PermissionDenied
        }
        Some(ErrorCode::DiskFull) => ErrorKind::StorageFull,
        None if matches!(error, rusqlite::Error::InvalidColumnType(..)) => {
            return JournalError::damaged(path, error);
        }
        _ => ErrorKind::Other,
    };
    JournalError::failed(path, what, kind, error)
}

fn before_of(status: Option<u16>) -> Before {
    match status.and_then(|it| StatusCode::from_u16(it).ok()) {
        Some(status) => Before::Answered(status),
        None => Before::Unknown,
    }
}

fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let damaged = |column| {
        rusqlite::Error::InvalidColumnType(
            column,
            "damaged".to_owned(),
            rusqlite::types::Type::Text,
        )
    };
    let headers: String = row.get(4)?;
    let list: Vec<(String, String)> = serde_json::from_str(&headers).map_err(|_| damaged(4))?;
    let mut headers = HeaderMap::new();
    for (name, value) in list {
        let name = HeaderName::try_from(name).map_err(|_| damaged(4))?;
        headers.append(name, value_of(&value).ok_or_else(|| damaged(4))?);
    }
    let (key, method): (String, String) = (row.get(1)?, row.get(2)?);
    Ok(Entry {
        operation: OperationId::from_bytes(row.get(0)?),
        key: IdempotencyKey::new(&key).map_err(|_| damaged(1))?,
        method: Method::from_bytes(method.as_bytes()).map_err(|_| damaged(2))?,
        url: row.get(3)?,
        headers,
        body: Bytes::from(row.get::<_, Vec<u8>>(5)?),
        first_sent: loaded(row.get(6)?),
    })
}

impl Pages for Table {
    fn write(&mut self, changes: &[Change]) -> Result<Vec<Option<Begun>>, JournalError> {
        self.apply(changes).map_err(|error| failed(&self.path, "written", error))
    }

    fn find(&mut self, operation: OperationId) -> Result<Option<Known>, JournalError> {
        let query = format!("SELECT {ENTRY} FROM retrysafe_journal WHERE operation = ?1");
        let found = self.connection.prepare_cached(&query).and_then(|mut statement| {
            let known = |row: &Row<'_>| {
                let status: Option<u16> = row.get(7)?;
                Ok(match status.and_then(|it| StatusCode::from_u16(it).ok()) {
                    Some(status) => Known::Answered(status),
                    None => Known::Unknown(Arc::new(entry(row)?)),
                })
            };
            statement.query_row([operation.as_bytes()], known).optional()
        });
        found.map_err(|error| failed(&self.path, "read", error))
    }

    fn unknown(&mut self) -> Result<Vec<Arc<Entry>>, JournalError> {
        self.entries().map_err(|error| failed(&self.path, "read", error))
    }
}

/// Milliseconds, as SQLite keeps numbers.
fn stored(time: Duration) -> i64 {
    i64::try_from(milliseconds(time)).unwrap_or(i64::MAX)
}

fn loaded(milliseconds: i64) -> Duration {
    Duration::from_millis(u64::try_from(milliseconds).unwrap_or_default())
}
