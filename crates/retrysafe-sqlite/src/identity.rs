//! Whether a path still names the file that was opened, and those that SQLite keeps beside it.
//!
//! Who has a deleted or replaced file open goes on writing to it, and nobody will ever find what is
//! written there: the next process makes a new file and runs everything again. The same goes for the
//! log (`-wal`), which holds what was acknowledged last, and for the memory that processes share to
//! find their way in it, and to lock each other out (`-shm`). So every turn looks (ST9), and a store
//! whose files are gone refuses until the process is started anew.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use retrysafe_core::{StoreError, StoreErrorKind};

/// The files that a path named when it was opened.
pub(crate) struct Identity(Vec<(PathBuf, File)>);

#[cfg(unix)]
type File = (u64, u64);
/// Where an open file can't be deleted or replaced it is enough that there is one.
#[cfg(not(unix))]
type File = ();

impl Identity {
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        // Absolute: a process may change its directory.
        let path = fs::canonicalize(path)?;
        let beside = |suffix| {
            let mut name = path.clone().into_os_string();
            name.push(suffix);
            PathBuf::from(name)
        };
        let (log, shared) = (beside("-wal"), beside("-shm"));
        let files = [path, log, shared].into_iter().map(|path| {
            let file = identify(&path)?;
            Ok((path, file))
        });
        files.collect::<io::Result<_>>().map(Self)
    }

    /// # Errors
    ///
    /// If a path names another file now, or none. Nothing has been changed then.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        self.0.iter().try_for_each(|(path, file)| check(path, *file))
    }
}

fn check(path: &Path, file: File) -> Result<(), StoreError> {
    let what = match identify(path) {
        Ok(now) if now == file => return Ok(()),
        Ok(_) => "was replaced".to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => "was deleted".to_owned(),
        Err(error) => format!("can't be found ({error})"),
    };
    // Not "unreachable": a request that is let through then (D4) would be let through for ever.
    Err(StoreError::new(
        StoreErrorKind::Misconfigured,
        format!(
            "SQLite file {path:?} {what} while it was open: put it back, or restart to begin anew"
        ),
    ))
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
