//! What SQLite says, in the words of the store contract.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use retrysafe_core::{ConfigError, StoreError, StoreErrorKind};
use rusqlite::ErrorCode;

/// Why a file could not be opened as a store. One line that names the file and says what to do.
///
/// Whatever the reason, a file that is not ours was not altered.
#[derive(Debug)]
pub struct OpenError {
    path: PathBuf,
    kind: OpenErrorKind,
    problem: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The kinds of [`OpenError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OpenErrorKind {
    /// A setting of the builder can't be used.
    Setting,
    /// The path names no place for a file: its directory is missing, or it is a directory itself.
    Path,
    /// The file or its directory may not be written.
    Denied,
    /// The file holds something else.
    Foreign,
    /// A newer version of retrysafe wrote the file.
    Newer,
    /// The file is damaged.
    Corrupt,
    /// Another process held the file locked for longer than the busy timeout.
    Busy,
    /// The operating system failed.
    Unavailable,
}

impl OpenError {
    pub(crate) fn new(path: &Path, kind: OpenErrorKind, problem: impl Into<String>) -> Self {
        Self { path: path.to_owned(), kind, problem: problem.into(), source: None }
    }

    pub(crate) fn setting(path: &Path, error: ConfigError) -> Self {
        Self::new(path, OpenErrorKind::Setting, error.to_string()).caused_by(error)
    }

    pub(crate) fn io(path: &Path, error: std::io::Error) -> Self {
        use std::io::ErrorKind;
        let (kind, problem) = match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => (
                OpenErrorKind::Path,
                "its directory does not exist; create it or choose another path".into(),
            ),
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => (
                OpenErrorKind::Denied,
                "it may not be written; give this user write access to the file and its directory"
                    .into(),
            ),
            _ => (OpenErrorKind::Unavailable, error.to_string()),
        };
        Self::new(path, kind, problem).caused_by(error)
    }

    pub(crate) fn sqlite(path: &Path, error: rusqlite::Error) -> Self {
        let (kind, problem) = match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => (
                OpenErrorKind::Foreign,
                "it is not an SQLite database; choose another path, or restore it if it was one"
                    .into(),
            ),
            Some(ErrorCode::DatabaseCorrupt) => (
                OpenErrorKind::Corrupt,
                format!(
                    "the file is damaged ({error}); restore it from a backup, or move it away to start empty"
                ),
            ),
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => (
                OpenErrorKind::Denied,
                "it may not be written; give this user write access to the file and its directory"
                    .into(),
            ),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => (
                OpenErrorKind::Busy,
                "another process keeps it locked; stop that one or try again".into(),
            ),
            _ => (OpenErrorKind::Unavailable, error.to_string()),
        };
        Self::new(path, kind, problem).caused_by(error)
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

    /// The file, as it was named.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot open {:?} as a store: {}", self.path, self.problem)
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
            OpenErrorKind::Newer | OpenErrorKind::Corrupt => StoreErrorKind::Unreadable,
            OpenErrorKind::Busy => StoreErrorKind::Timeout,
            OpenErrorKind::Unavailable => StoreErrorKind::Unavailable,
            _ => StoreErrorKind::Misconfigured,
        };
        Self::with_source(kind, error.to_string(), error)
    }
}

/// What a running store answers when SQLite fails.
pub(crate) fn store_error(path: &Path, error: &Arc<rusqlite::Error>) -> StoreError {
    let kind = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreErrorKind::Full,
        Some(ErrorCode::TooBig) => StoreErrorKind::TooLarge,
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreErrorKind::Timeout,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreErrorKind::Unreadable,
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => StoreErrorKind::Misconfigured,
        _ => StoreErrorKind::Unavailable,
    };
    StoreError::with_source(kind, format!("SQLite file {path:?}: {error}"), Arc::clone(error))
}

/// The same, when it is known that nothing changed: the transaction never began, or was undone.
pub(crate) fn nothing_changed(path: &Path, error: &Arc<rusqlite::Error>) -> StoreError {
    let failed = store_error(path, error);
    match failed.kind() {
        StoreErrorKind::Unavailable => {
            let context = failed.to_string();
            StoreError::with_source(StoreErrorKind::Unreachable, context, Arc::clone(error))
        }
        // D4: a file that others keep busy is there.
        _ => failed,
    }
}

/// Whether there was no room, which means that nothing was written.
pub(crate) fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
}

/// Whether another process holds a lock that was asked for.
pub(crate) fn is_busy(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
}
