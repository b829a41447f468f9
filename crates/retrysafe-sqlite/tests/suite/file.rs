//! What the tests know of SQLite's file formats.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The write-ahead log of a database.
pub(crate) fn log_of(path: &Path) -> PathBuf {
    beside(path, "-wal")
}

/// A file that SQLite keeps beside a database.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// How many transactions the write-ahead log holds: a frame that ends one says how large the
/// database is after it, every other says zero.
pub(crate) fn commits(path: &Path) -> usize {
    let log = fs::read(log_of(path)).unwrap();
    if log.is_empty() {
        return 0;
    }
    let page = u32::from_be_bytes(log[8..12].try_into().unwrap()) as usize;
    let salt = &log[16..24];
    log[32..]
        .chunks_exact(24 + page)
        .filter(|frame| &frame[8..16] == salt && frame[4..8] != [0; 4])
        .count()
}
