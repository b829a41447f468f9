//! A file of JSON lines that survives a kill: what was appended is there, and a line that was cut is
//! not.

use std::{
    fs::{File, OpenOptions},
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
    /// Opens a journal, or makes one, and reads what is in it.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Vec<Value>)> {
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("{} can't be used: {error}", path.display()))
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(named)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(named)?;
        let (mut lines, mut end) = (Vec::new(), 0);
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            match line.strip_suffix(b"\n").map(serde_json::from_slice) {
                Some(Ok(value)) => lines.push(value),
                // Cut by a kill: it was never acknowledged.
                _ => break,
            }
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
