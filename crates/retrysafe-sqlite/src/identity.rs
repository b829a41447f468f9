//! Whether a path still names the file that was opened.
//!
//! Who has a deleted or replaced file open goes on writing to it, and nobody will ever find what is
//! written there: the next process makes a new file and runs everything again. So every turn looks
//! (ST9), and a store whose file is gone refuses until the process is started anew.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use retrysafe_core::{StoreError, StoreErrorKind};

/// The file that a path named when it was opened.
pub(crate) struct Identity {
    /// Absolute: a process may change its directory.
    path: PathBuf,
    file: File,
}

#[cfg(unix)]
type File = (u64, u64);
/// Where an open file can't be deleted or replaced it is enough that there is one.
#[cfg(not(unix))]
type File = ();

impl Identity {
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let path = fs::canonicalize(path)?;
        let file = identify(&path)?;
        Ok(Self { path, file })
    }

    /// # Errors
    ///
    /// If the path names another file now, or none. Nothing has been changed then.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        let what = match identify(&self.path) {
            Ok(now) if now == self.file => return Ok(()),
            Ok(_) => "was replaced".to_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => "was deleted".to_owned(),
            Err(error) => format!("can't be found ({error})"),
        };
        // Not "unreachable": a request that is let through then (D4) would be let through for ever.
        Err(StoreError::new(
            StoreErrorKind::Misconfigured,
            format!(
                "SQLite file {:?} {what} while it was open: put it back, or restart to begin anew",
                self.path
            ),
        ))
    }
}

#[cfg(unix)]
fn identify(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

#[cfg(not(unix))]
fn identify(path: &Path) -> io::Result<File> {
    fs::metadata(path).map(drop)
}
