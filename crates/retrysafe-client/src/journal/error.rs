//! What can go wrong with a journal, and what to do about it.

use std::{
    error::Error as StdError,
    fmt,
    io::{self, ErrorKind},
    path::Path,
    sync::Arc,
};

use crate::BoxError;

/// A journal that can't be used. Printed alone it names the file and says what to do; why is in its
/// [`source`](StdError::source), and is not repeated.
#[derive(Clone, Debug)]
pub struct JournalError {
    what: String,
    // Shared, because one failed write is the error of many calls.
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl JournalError {
    /// What failed, and why.
    pub fn new(what: impl Into<String>, source: impl Into<BoxError>) -> Self {
        Self { what: what.into(), source: Some(source.into().into()) }
    }

    pub(super) fn because(what: impl Into<String>) -> Self {
        Self { what: what.into(), source: None }
    }

    pub(super) fn in_use(path: &Path) -> Self {
        Self::because(format!(
            "the journal {} is in use by another client: give each a journal of its own, or stop that one",
            path.display()
        ))
    }

    pub(super) fn no_journal(path: &Path) -> Self {
        Self::because(format!(
            "{} is not a journal that this release reads: name another file, or move this one away",
            path.display()
        ))
    }

    pub(super) fn damaged_line(path: &Path, line: usize) -> Self {
        Self::because(format!(
            "the journal {}, line {line}: this is not a line that this release reads. Keep a copy, and \
             delete the line or move the file away. {FORGOTTEN}",
            path.display()
        ))
    }

    #[cfg(feature = "sqlite")]
    pub(super) fn damaged(path: &Path, source: impl Into<BoxError>) -> Self {
        let what = format!(
            "the journal {} is damaged, or no SQLite file: move it away. {FORGOTTEN}",
            path.display()
        );
        Self::new(what, source)
    }

    pub(super) fn not_opened(path: &Path, error: io::Error) -> Self {
        Self::failed(path, "opened", error.kind(), error)
    }

    pub(super) fn not_written(path: &Path, error: io::Error) -> Self {
        Self::failed(path, "written", error.kind(), error)
    }

    pub(super) fn failed(
        path: &Path,
        what: &str,
        kind: ErrorKind,
        source: impl Into<BoxError>,
    ) -> Self {
        let advice = match kind {
            ErrorKind::NotFound | ErrorKind::NotADirectory => {
                ": its folder is not there; make it, or name another file"
            }
            ErrorKind::IsADirectory => ": it is a folder; name a file",
            ErrorKind::PermissionDenied => {
                ": this process may not read and write it; change its permissions, or name another file"
            }
            ErrorKind::ReadOnlyFilesystem => ": its file system is read-only; name another file",
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                ": the disk is full; free some of it"
            }
            _ => "",
        };
        Self::new(format!("the journal {} can't be {what}{advice}", path.display()), source)
    }
}

/// What it means that something is no longer in the journal.
const FORGOTTEN: &str = "A call that goes with it is forgotten: if it had no answer, it may have been \
                         executed, and made again with a new key it may be executed twice";

impl fmt::Display for JournalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl StdError for JournalError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|it| &**it as _)
    }
}
