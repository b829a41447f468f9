//! A file of JSON lines that survives a kill: what was appended is there, and a line that was cut is
//! not.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::Path,
};

use serde_json::Value;

/// A journal.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
}

impl Journal {
    /// Opens a journal, or makes one, and reads what is in it. It is one process's: each would write
    /// over what the other appends, and charge what the other has charged.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Vec<Value>)> {
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("{} can't be used: {error}", path.display()))
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        // Its owner's alone, like the store beside it.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path).map_err(named)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!("another demo writes to {}", path.display()),
            ),
            TryLockError::Error(error) => named(error),
        })?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(named)?;
        let (mut lines, mut end) = (Vec::new(), 0);
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            let Some(whole) = line.strip_suffix(b"\n") else {
                // Cut by a kill: it was never acknowledged.
                if line.starts_with(b"{") {
                    break;
                }
                return Err(named(foreign()));
            };
            lines.push(serde_json::from_slice(whole).map_err(|_| named(foreign()))?);
            end += line.len();
        }
        file.set_len(end as u64).map_err(named)?;
        file.seek(SeekFrom::End(0)).map_err(named)?;
        Ok((Self { file }, lines))
    }

    /// Appends a line. When this returns, it is on disk.
    pub(super) fn append(&mut self, line: &Value) -> io::Result<()> {
        self.file.write_all(format!("{line}\n").as_bytes())?;
        self.file.sync_data()
    }
}

/// Somebody else's, or damaged: it stays as it is.
fn foreign() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is no journal of a demo; choose another store")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_cut_line_was_never_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.append(&json!({ "n": 1 })).unwrap();
        journal.file.write_all(b"{\"n\": 2").unwrap();
        drop(journal);
        let (mut journal, lines) = Journal::open(&path).unwrap();
        assert_eq!(lines, [json!({ "n": 1 })]);
        journal.append(&json!({ "n": 3 })).unwrap();
        drop(journal);
        assert_eq!(Journal::open(&path).unwrap().1, [json!({ "n": 1 }), json!({ "n": 3 })]);
    }
}
