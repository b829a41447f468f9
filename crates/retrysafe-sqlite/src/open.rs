//! From a path to two connections, or to one clear line about what is wrong with it.
//!
//! Files are opened by SQLite alone: closing any other descriptor of a file drops the locks that
//! this process holds on it (POSIX), and another process would then think it is the last one.

use std::{
    fs,
    io::ErrorKind,
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::{
    builder::{Settings, Synchronous},
    error::{OpenError, OpenErrorKind},
    records::{APPLICATION_ID, Records, SCHEMA_VERSION},
    table::Table,
};

/// The first version in which resetting the write-ahead log can't lose a commit.
const WAL_RESET_FIXED: i32 = 3_051_003;

/// How long to sleep before asking again for a file that another process has locked. SQLite's own
/// pauses grow to 100 ms, over which a busy neighbour wins every time.
pub(crate) const BUSY_PAUSE: Duration = Duration::from_millis(1);

pub(crate) struct Connections {
    pub(crate) writer: Connection,
    pub(crate) reader: Connection,
}

pub(crate) fn open(
    path: &Path,
    settings: &Settings,
    table: &'static Table,
) -> Result<Connections, OpenError> {
    // Two threads that create one file: the second must not see what the first has begun.
    static OPENING: Mutex<()> = Mutex::new(());
    let _opening = OPENING.lock().unwrap_or_else(PoisonError::into_inner);

    refuse_memory(path)?;
    if !create(path)? && !table.with_work {
        refuse_foreign(path)?;
    }
    warn_of_old_library(rusqlite::version_number());
    crate::mount::warn_of_network(path);

    let sqlite = |error| OpenError::sqlite(path, error);
    let mut writer = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(sqlite)?;
    if writer.is_readonly("main").map_err(sqlite)? {
        // SQLite falls back to reading when it may not write.
        let denied = std::io::Error::from(ErrorKind::PermissionDenied);
        return Err(OpenError::io(path, denied));
    }
    writer.busy_timeout(settings.busy_timeout).map_err(sqlite)?;
    match table.with_work {
        true => writer.execute_batch(table.schema).map_err(sqlite)?,
        false => lay_out(path, &mut writer, table)?,
    }
    log_ahead(path, &writer, settings.busy_timeout)?;
    tune(&writer, settings).map_err(sqlite)?;
    Records::check_tables(&writer, table).map_err(|error| damaged(path, error))?;
    // From here on the writer waits by itself.
    writer.busy_timeout(Duration::ZERO).map_err(sqlite)?;

    let reader = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(sqlite)?;
    reader.busy_timeout(settings.busy_timeout).map_err(sqlite)?;
    reader.pragma_update(None, "query_only", true).map_err(sqlite)?;
    Ok(Connections { writer, reader })
}

/// SQLite's names for databases that end with the connection.
fn refuse_memory(path: &Path) -> Result<(), OpenError> {
    if path.as_os_str().is_empty() || path.as_os_str() == ":memory:" {
        let problem = "that would be gone with the connection; name a file, or use `MemoryStore`";
        return Err(OpenError::new(path, OpenErrorKind::Path, problem));
    }
    Ok(())
}

/// Makes sure that there is a file; says whether it was created. Its records hold responses, so a
/// new file is its user's alone; SQLite gives the files beside it the same rights.
fn create(path: &Path) -> Result<bool, OpenError> {
    match fs::metadata(path) {
        Ok(found) if found.is_file() => return Ok(false),
        Ok(found) => {
            let is = if found.is_dir() { "a directory" } else { "not a regular file" };
            let problem = format!("it is {is}; name a file");
            return Err(OpenError::new(path, OpenErrorKind::Path, problem));
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(OpenError::io(path, error)),
    }
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Ok(_) => Ok(true),
        // Another process was faster.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(OpenError::io(path, error)),
    }
}

/// Looks at a file without the right to write, so that what is not ours stays as it is.
fn refuse_foreign(path: &Path) -> Result<(), OpenError> {
    let looked = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY).and_then(|connection| {
        connection.busy_timeout(Duration::from_secs(1))?;
        layout(&connection)
    });
    match looked {
        Ok(layout) => layout.check(path),
        // What was interrupted can't be judged before it is rolled back, which needs the right to
        // write. It is judged again then, before we change anything.
        Err(error) if needs_recovery(&error) => Ok(()),
        Err(error) => Err(OpenError::sqlite(path, error)),
    }
}

fn needs_recovery(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen))
}

fn connect(path: &Path, mode: OpenFlags) -> rusqlite::Result<Connection> {
    // Not SQLITE_OPEN_URI: a path is a path.
    let connection = Connection::open_with_flags(path, mode | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

/// What a database says it is.
struct Layout {
    application: i64,
    version: i64,
    tables: i64,
}

fn layout(connection: &Connection) -> rusqlite::Result<Layout> {
    // One statement sees one moment: another process may be laying the file out.
    let query = "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_schema)
        FROM pragma_application_id, pragma_user_version";
    connection.query_row(query, [], |row| {
        Ok(Layout { application: row.get(0)?, version: row.get(1)?, tables: row.get(2)? })
    })
}

impl Layout {
    fn is_empty(&self) -> bool {
        self.application == 0 && self.version == 0 && self.tables == 0
    }

    fn check(&self, path: &Path) -> Result<(), OpenError> {
        if self.is_empty() {
            return Ok(());
        }
        if self.application != APPLICATION_ID {
            let problem = "it is a database of another program; choose another path";
            return Err(OpenError::new(path, OpenErrorKind::Foreign, problem));
        }
        if self.version > SCHEMA_VERSION {
            let version = self.version;
            let problem = format!(
                "it was written by a newer retrysafe (version {version}, this build reads up to \
                 {SCHEMA_VERSION}); use the newer build"
            );
            return Err(OpenError::new(path, OpenErrorKind::Newer, problem));
        }
        Ok(())
    }
}

/// Lays out an empty database; leaves one of ours as it is.
fn lay_out(
    path: &Path,
    connection: &mut Connection,
    table: &'static Table,
) -> Result<(), OpenError> {
    let sqlite = |error| OpenError::sqlite(path, error);
    let found = layout(connection).map_err(sqlite)?;
    found.check(path)?;
    if !found.is_empty() {
        return Ok(());
    }
    let transaction = connection
        .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
        .map_err(sqlite)?;
    // Another process may have been faster.
    let found = layout(&transaction).map_err(sqlite)?;
    found.check(path)?;
    if found.is_empty() {
        transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(sqlite)?;
        transaction.execute_batch(table.schema).map_err(sqlite)?;
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION).map_err(sqlite)?;
    }
    transaction.commit().map_err(sqlite)
}

/// Switches to the write-ahead log. The first switch needs the file for itself, and SQLite does not
/// wait for that.
fn log_ahead(path: &Path, connection: &Connection, timeout: Duration) -> Result<(), OpenError> {
    let mut tries = busy_tries(timeout);
    loop {
        let switched =
            connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0));
        match switched {
            Ok(mode) if mode == "wal" => return Ok(()),
            Ok(_) => {
                let problem = "its file system has no shared memory, which the write-ahead log \
                               needs; put it on a local disk";
                return Err(OpenError::new(path, OpenErrorKind::Denied, problem));
            }
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && tries > 0 =>
            {
                tries -= 1;
                thread::sleep(BUSY_PAUSE);
            }
            Err(error) => return Err(OpenError::sqlite(path, error)),
        }
    }
}

/// How often to ask within a time. Counted and not timed: the store's clock may be a test's.
pub(crate) fn busy_tries(timeout: Duration) -> u128 {
    timeout.as_millis() / BUSY_PAUSE.as_millis()
}

fn tune(connection: &Connection, settings: &Settings) -> rusqlite::Result<()> {
    // ST9: at `Full` a commit is on the disk before it is answered, also where a plain flush
    // stops at the drive's cache (macOS).
    let full = settings.synchronous == Synchronous::Full;
    connection.pragma_update(None, "synchronous", if full { "FULL" } else { "NORMAL" })?;
    connection.pragma_update(None, "fullfsync", full)?;
    connection.pragma_update(None, "checkpoint_fullfsync", full)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    // In KiB when negative: the index on ids of a million records fits.
    connection.pragma_update(None, "cache_size", -64 * 1024)?;
    // A burst of large payloads must not leave a large log behind for ever.
    connection.pragma_update(None, "journal_size_limit", 64 * 1024 * 1024)?;
    if let Some(bytes) = settings.max_file_size {
        let page: i64 = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
        let pages = i64::try_from(bytes).unwrap_or(i64::MAX) / page.max(1);
        connection.pragma_update(None, "max_page_count", pages)?;
    }
    Ok(())
}

fn damaged(path: &Path, error: rusqlite::Error) -> OpenError {
    let problem = format!(
        "it has our mark but not our tables ({error}); restore it from a backup, or move it away \
         to start empty"
    );
    OpenError::new(path, OpenErrorKind::Corrupt, problem).caused_by(error)
}

fn warn_of_old_library(version: i32) {
    if version < WAL_RESET_FIXED {
        tracing::warn!(
            version = rusqlite::version(),
            "the linked SQLite can lose a commit when the write-ahead log is reset while another \
             process writes; link 3.51.3 or later"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::OWN_FILE;

    /// Who looks while another process lays the file out sees nothing yet, or one of ours. It was
    /// once seen half laid out, and refused as another program's.
    #[test]
    fn a_file_is_laid_out_in_one_moment() {
        for _ in 0..50 {
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path().join("retrysafe.db");
            create(&path).expect("a file");
            thread::scope(|scope| {
                scope.spawn(|| {
                    loop {
                        let connection = connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY);
                        let connection = connection.expect("it can be read");
                        connection.busy_timeout(Duration::from_secs(60)).expect("a setting");
                        let found = layout(&connection).expect("a layout");
                        found.check(&path).expect("nobody else's");
                        if !found.is_empty() {
                            return;
                        }
                    }
                });
                let mut connection =
                    connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE).expect("it can be written");
                connection.busy_timeout(Duration::from_secs(60)).expect("a setting");
                lay_out(&path, &mut connection, &OWN_FILE).expect("it is laid out");
            });
        }
    }
}
