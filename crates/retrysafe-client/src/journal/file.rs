//! The journal as a file of JSON lines.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use retrysafe_core::{IdempotencyKey, OperationId};
use serde::{Deserialize, Serialize};

use super::{
    Before, Begun, Entry, Journal, JournalError, Known, REMEMBERED, Settled,
    writer::{Change, Pages, Writer},
};

/// A journal in a file: a line of JSON for each request, and one for what became of it.
///
/// Many calls at once share one flush. A line that a crash cut off is dropped when the file is opened:
/// its request was never sent. Operations that were settled more than 400 days ago are dropped then too.
/// **Bodies are in the file as they were sent**; credentials are not. On Unix a new file is its owner's
/// alone (0600), and one whose permissions were changed keeps them.
#[derive(Debug)]
pub struct FileJournal(Writer);

impl FileJournal {
    /// Opens a journal, or makes one.
    ///
    /// # Errors
    ///
    /// If the file can't be used, is no journal, or is in use by another process (or another value of
    /// this one).
    pub fn open(path: impl AsRef<Path>) -> Result<Self, JournalError> {
        Ok(Self(Writer::start(Lines::open(path.as_ref())?)?))
    }
}

impl Journal for FileJournal {
    fn begin(&self, entry: Arc<Entry>) -> BoxFuture<'_, Result<Begun, JournalError>> {
        self.0.begin(entry)
    }

    fn settle(&self, operation: OperationId, settled: Settled) {
        self.0.settle(operation, settled);
    }

    fn find(&self, operation: OperationId) -> BoxFuture<'_, Result<Option<Known>, JournalError>> {
        self.0.find(operation)
    }

    fn unknown(&self) -> BoxFuture<'_, Result<Vec<Arc<Entry>>, JournalError>> {
        self.0.unknown()
    }
}

/// What a journal begins with.
const FIRST_LINE: &[u8] = br#"{"retrysafe_journal":1}"#;

/// After how many lines it is looked whether there are some that nobody needs.
const TIDY_EVERY: usize = 100_000;

struct Lines {
    path: PathBuf,
    file: File,
    /// How much of the file is whole lines.
    length: u64,
    lines: usize,
    tidy_at: usize,
    index: HashMap<OperationId, Kept>,
    /// It was written anew, and its name may not be on the disk.
    renamed: bool,
}

struct Kept {
    first_sent: Duration,
    state: State,
}

enum State {
    Unknown(Arc<Entry>),
    Answered { status: StatusCode, at: Duration },
}

impl Kept {
    fn before(&self) -> Before {
        match self.state {
            State::Unknown(_) => Before::Unknown,
            State::Answered { status, .. } => Before::Answered(status),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// The first line.
    RetrysafeJournal(u32),
    Begin(BeginLine),
    Answered {
        id: Id,
        status: u16,
        /// Milliseconds since 1970.
        at: u64,
        /// Where the line that began it has been dropped.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        first_sent: Option<u64>,
    },
    NotDone {
        id: Id,
    },
}

#[derive(Serialize, Deserialize)]
struct BeginLine {
    id: Id,
    key: String,
    method: String,
    url: String,
    headers: Vec<(String, String)>,
    body: String,
    first_sent: u64,
}

/// An operation id, as base64.
#[derive(Serialize, Deserialize)]
struct Id(String);

impl From<OperationId> for Id {
    fn from(id: OperationId) -> Self {
        Self(BASE64_STANDARD.encode(id.as_bytes()))
    }
}

impl Id {
    fn id(&self) -> Option<OperationId> {
        let bytes = BASE64_STANDARD.decode(&self.0).ok()?;
        Some(OperationId::from_bytes(bytes.try_into().ok()?))
    }
}

impl Lines {
    fn open(path: &Path) -> Result<Self, JournalError> {
        let failed = |error| JournalError::not_opened(path, error);
        let mut file = owners_alone().open(path).map_err(failed)?;
        // Where the file is, and not a link to it, or what the path means in another directory: it is
        // written anew beside itself.
        let path = &fs::canonicalize(path).map_err(failed)?;
        lock(&file, path)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(failed)?;
        let mut lines = Self {
            path: path.to_owned(),
            file,
            length: 0,
            lines: 0,
            tidy_at: TIDY_EVERY,
            index: HashMap::new(),
            renamed: false,
        };
        let read = lines.read(&text)?;
        // A part of a line was never acknowledged.
        lines.file.set_len(lines.length).map_err(failed)?;
        lines.file.seek(SeekFrom::End(0)).map_err(failed)?;
        if read == 0 {
            lines.append(&[Line::RetrysafeJournal(1)]).map_err(failed)?;
            sync_directory(path).map_err(failed)?;
        }
        lines.tidy().map_err(failed)?;
        Ok(lines)
    }

    /// Reads what is there, and says how many lines.
    fn read(&mut self, text: &[u8]) -> Result<usize, JournalError> {
        let mut read = 0;
        let mut rest = text;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line = serde_json::from_slice(&rest[..end]).ok();
            let understood = match (read, line) {
                (0, Some(Line::RetrysafeJournal(1))) => Some(()),
                (0, _) => None,
                (_, Some(line)) => self.learn_line(line),
                (_, None) => None,
            };
            match (read, understood) {
                (_, Some(())) => {}
                (0, None) => return Err(JournalError::no_journal(&self.path)),
                (_, None) => return Err(JournalError::damaged_line(&self.path, read + 1)),
            }
            read += 1;
            self.lines += 1;
            self.length += end as u64 + 1;
            rest = &rest[end + 1..];
        }
        // A part of the first line is a journal that a crash cut off when it was made.
        if read == 0 && !FIRST_LINE.starts_with(rest) {
            return Err(JournalError::no_journal(&self.path));
        }
        Ok(read)
    }

    fn learn_line(&mut self, line: Line) -> Option<()> {
        match line {
            Line::RetrysafeJournal(_) => return None,
            Line::Begin(line) => {
                let entry = Arc::new(line.entry()?);
                self.learn(&Change::Begin(entry));
            }
            Line::Answered { id, status, at, first_sent } => {
                let (status, at) = (StatusCode::from_u16(status).ok()?, Duration::from_millis(at));
                let id = id.id()?;
                if let Some(first_sent) = first_sent.map(Duration::from_millis) {
                    let state = State::Answered { status, at };
                    self.index.insert(id, Kept { first_sent, state });
                }
                self.learn(&Change::Settle(id, Settled::Answered { status, at }));
            }
            Line::NotDone { id } => self.learn(&Change::Settle(id.id()?, Settled::NotDone)),
        }
        Some(())
    }

    fn learn(&mut self, change: &Change) {
        match change {
            Change::Begin(entry) => {
                let before = self.index.get(&entry.operation).map(|it| it.first_sent);
                let first_sent = before.unwrap_or(entry.first_sent).min(entry.first_sent);
                let mut entry = entry.clone();
                if entry.first_sent != first_sent {
                    Arc::make_mut(&mut entry).first_sent = first_sent;
                }
                let state = State::Unknown(entry.clone());
                self.index.insert(entry.operation, Kept { first_sent, state });
            }
            Change::Settle(operation, Settled::NotDone) => _ = self.index.remove(operation),
            Change::Settle(operation, Settled::Answered { status, at }) => {
                let first_sent = self.index.get(operation).map_or(*at, |it| it.first_sent);
                let state = State::Answered { status: *status, at: *at };
                self.index.insert(*operation, Kept { first_sent, state });
            }
        }
    }

    fn line(change: &Change) -> Line {
        match change {
            Change::Begin(entry) => Line::Begin(BeginLine::of(entry, entry.first_sent)),
            Change::Settle(operation, Settled::NotDone) => {
                Line::NotDone { id: (*operation).into() }
            }
            Change::Settle(operation, Settled::Answered { status, at }) => Line::Answered {
                id: (*operation).into(),
                status: status.as_u16(),
                at: milliseconds(*at),
                first_sent: None,
            },
        }
    }

    fn append(&mut self, lines: &[Line]) -> io::Result<()> {
        let mut text = Vec::new();
        for line in lines {
            serde_json::to_writer(&mut text, line)?;
            text.push(b'\n');
        }
        self.sync_name()?;
        let written = self.file.write_all(&text).and_then(|()| self.file.sync_data());
        match written {
            Ok(()) => {
                self.length += text.len() as u64;
                self.lines += lines.len();
            }
            // What is half written must not be in the way of what comes next.
            Err(_) => {
                let _ = self.file.set_len(self.length);
                let _ = self.file.seek(SeekFrom::End(0));
            }
        }
        written
    }

    /// Drops what was settled long ago, and writes the file anew where that makes it much shorter.
    fn tidy(&mut self) -> io::Result<()> {
        let at = |it: &Kept| match it.state {
            State::Answered { at, .. } => at,
            State::Unknown(_) => it.first_sent,
        };
        let newest = self.index.values().map(at).max().unwrap_or_default();
        self.index
            .retain(|_, it| matches!(it.state, State::Unknown(_)) || at(it) + REMEMBERED >= newest);
        if self.lines > 2 * self.index.len() + 1_000 { self.rewrite() } else { Ok(()) }
    }

    /// Writes the file anew, without what is no longer needed.
    fn rewrite(&mut self) -> io::Result<()> {
        let mut name = self.path.clone().into_os_string();
        name.push(".new");
        let mut text = Vec::new();
        let lines = self.index.iter().map(|(id, kept)| match &kept.state {
            State::Unknown(entry) => Line::Begin(BeginLine::of(entry, kept.first_sent)),
            State::Answered { status, at } => Line::Answered {
                id: (*id).into(),
                status: status.as_u16(),
                at: milliseconds(*at),
                first_sent: Some(milliseconds(kept.first_sent)),
            },
        });
        for line in std::iter::once(Line::RetrysafeJournal(1)).chain(lines) {
            serde_json::to_writer(&mut text, &line)?;
            text.push(b'\n');
        }
        let mut file = owners_alone().truncate(true).open(&name)?;
        file.try_lock().map_err(io::Error::other)?;
        // As the operator has set them.
        file.set_permissions(self.file.metadata()?.permissions())?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&name, &self.path)?;
        // From here on this is the journal, whatever fails.
        (self.file, self.length) = (file, text.len() as u64);
        self.lines = self.index.len() + 1;
        self.renamed = true;
        self.sync_name()
    }

    /// Nothing is durable in a file whose name is not.
    fn sync_name(&mut self) -> io::Result<()> {
        if self.renamed {
            sync_directory(&self.path)?;
            self.renamed = false;
        }
        Ok(())
    }
}

impl Pages for Lines {
    fn write(&mut self, changes: &[Change]) -> Result<Vec<Option<Begun>>, JournalError> {
        let lines: Vec<_> = changes.iter().map(Self::line).collect();
        self.append(&lines).map_err(|error| JournalError::not_written(&self.path, error))?;
        let begun = changes.iter().map(|change| {
            let Change::Begin(entry) = change else {
                self.learn(change);
                return None;
            };
            let before = self.index.get(&entry.operation).map(Kept::before);
            self.learn(change);
            let first_sent = self.index.get(&entry.operation)?.first_sent;
            Some(Begun { first_sent, before })
        });
        let begun = begun.collect();
        if self.lines >= self.tidy_at {
            self.tidy_at = self.lines + TIDY_EVERY;
            // What can't be shortened is only longer.
            if let Err(error) = self.tidy() {
                tracing::warn!(%error, "the journal can't be tidied");
            }
        }
        Ok(begun)
    }

    fn find(&mut self, operation: OperationId) -> Result<Option<Known>, JournalError> {
        Ok(self.index.get(&operation).map(|it| match &it.state {
            State::Unknown(entry) => Known::Unknown(entry.clone()),
            State::Answered { status, .. } => Known::Answered(*status),
        }))
    }

    fn unknown(&mut self) -> Result<Vec<Arc<Entry>>, JournalError> {
        let mut entries: Vec<_> = self
            .index
            .values()
            .filter_map(|it| match &it.state {
                State::Unknown(entry) => Some(entry.clone()),
                State::Answered { .. } => None,
            })
            .collect();
        entries.sort_by_key(|it| (it.first_sent, it.operation));
        Ok(entries)
    }
}

impl BeginLine {
    fn of(entry: &Entry, first_sent: Duration) -> Self {
        let headers = entry.headers.iter();
        Self {
            id: entry.operation.into(),
            key: entry.key.as_str().to_owned(),
            method: entry.method.to_string(),
            url: entry.url.clone(),
            headers: headers.map(|(name, value)| (name.to_string(), text_of(value))).collect(),
            body: BASE64_STANDARD.encode(&entry.body),
            first_sent: milliseconds(first_sent),
        }
    }

    fn entry(&self) -> Option<Entry> {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            headers.append(HeaderName::try_from(name).ok()?, value_of(value)?);
        }
        Some(Entry {
            operation: self.id.id()?,
            key: IdempotencyKey::new(&self.key).ok()?,
            method: Method::from_bytes(self.method.as_bytes()).ok()?,
            url: self.url.clone(),
            headers,
            body: Bytes::from(BASE64_STANDARD.decode(&self.body).ok()?),
            first_sent: Duration::from_millis(self.first_sent),
        })
    }
}

/// A header's value as text; what is none, as base64 behind a character that no text has.
pub(super) fn text_of(value: &HeaderValue) -> String {
    match value.to_str() {
        Ok(text) => text.to_owned(),
        Err(_) => format!("\u{1}{}", BASE64_STANDARD.encode(value)),
    }
}

pub(super) fn value_of(text: &str) -> Option<HeaderValue> {
    match text.strip_prefix('\u{1}') {
        None => HeaderValue::from_str(text).ok(),
        Some(bytes) => HeaderValue::from_bytes(&BASE64_STANDARD.decode(bytes).ok()?).ok(),
    }
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Opens a file to read and write; a new one can be read by nobody else, for there are bodies in it.
pub(super) fn owners_alone() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Makes sure that nobody else has the journal.
fn lock(file: &File, path: &Path) -> Result<(), JournalError> {
    let failed = |error| JournalError::not_opened(path, error);
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(JournalError::in_use(path)),
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    // Another process may have written it anew since it was opened here. That one has the journal, and
    // what is written to this file nobody would ever find.
    match is_at(file, path).map_err(failed)? {
        true => Ok(()),
        false => Err(JournalError::in_use(path)),
    }
}

/// Whether the path names this very file.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let is = |it: fs::Metadata| (it.dev(), it.ino());
        match fs::metadata(path) {
            Ok(there) => Ok(is(there) == is(file.metadata()?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
    // Where an open file can't be replaced it is enough that there is one.
    #[cfg(not(unix))]
    {
        let _ = file;
        path.try_exists()
    }
}

/// The name of a new file is on the disk only when its directory is.
fn sync_directory(path: &Path) -> io::Result<()> {
    if cfg!(unix) {
        let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_journal_that_was_written_anew_is_not_had_by_two() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let mut first = Lines::open(&path).unwrap();
        // One process has opened the file, and comes to lock it when the other has written it anew.
        let late = owners_alone().open(&path).unwrap();
        assert!(lock(&late, &path).is_err(), "the other has it");
        first.rewrite().unwrap();
        assert!(lock(&late, &path).is_err(), "the other has it still");
    }
}
