//! Imports the lines of a CSV file, each once, however often it is killed and started again.
//!
//! Importing a line means to append it to `--out`, which stands for whatever a real import writes to.

use std::{
    collections::HashSet,
    fmt::{self, Display},
    fs::{File, TryLockError},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use retrysafe_axum::{OnInFlight, Once, Reconciled, Scope, Unknown};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

/// Imports the lines of a CSV file (id,customer,cents), each once.
#[derive(Parser)]
struct Arguments {
    /// The lines to import.
    file: PathBuf,

    /// Where records are kept: sqlite:PATH, redis://HOST, redis-cluster://HOST,HOST,
    /// postgres://HOST/DATABASE, mysql://HOST/DATABASE or nats://HOST,HOST.
    #[arg(long)]
    store: String,

    /// What the lines are appended to. It belongs to the store: neither is of use without the other.
    #[arg(long)]
    out: PathBuf,

    /// How many lines are under way at once.
    #[arg(long, default_value_t = 64)]
    concurrency: usize,
}

/// How long the lines that were under way in a process that was killed stay claimed by it.
const LEASE: Duration = Duration::from_secs(5);
/// How many of the lines that are gone are named.
const SHOWN: usize = 10;
/// For how long an import may be started again without importing anything twice.
const RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, line)) => {
            eprintln!("batch-import: {line}");
            ExitCode::from(code)
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), (u8, String)> {
    let failed = |what: &str, error: &dyn Display| (1, format!("{what}: {error}"));
    let file = |path: &Path, error: &dyn Display| failed(&path.display().to_string(), error);

    if arguments.store.starts_with("memory:") {
        let line =
            "--store: memory: forgets what was imported, and the next run would import it again";
        return Err((2, line.to_owned()));
    }
    if arguments.concurrency == 0 {
        return Err((2, "--concurrency: must be 1 or more".to_owned()));
    }

    // All of them before the first is imported: a file that can't be read imports nothing.
    let lines = read_lines(&arguments.file).map_err(|error| file(&arguments.file, &error))?;
    let out = Out::open(&arguments.out, &lines).map_err(|error| file(&arguments.out, &error))?;
    let target = arguments.out.canonicalize().map_err(|error| file(&arguments.out, &error))?;

    let opened = match retrysafe_stores::open(&arguments.store).await {
        Ok(opened) => opened,
        Err(error) if error.is_config() => return Err((2, format!("--store: {error}"))),
        Err(error) => return Err(failed("the store can't be opened", &error)),
    };
    let once = Once::builder(opened.store)
        .namespace("batch-import")
        .lease(LEASE)
        .retention(RETENTION)
        // What a killed import had under way is still claimed by it for a moment.
        .on_in_flight(OnInFlight::wait(6 * LEASE))
        .build()
        .map_err(|error| (2, error.to_string()))?;

    let bar = progress_bar(lines.len());
    let (shown, append, look) = (bar.clone(), out.clone(), out.clone());
    let already = Arc::new(AtomicUsize::new(0));
    let found = already.clone();
    let ids: Vec<_> = lines.iter().map(|line| line.id.clone()).collect();
    let report = once
        .run_each(
            "import",
            // The same lines in another file are another import.
            &Scope::from_bytes(target.as_os_str().as_encoded_bytes()),
            lines,
            |line| line.id.clone(),
            move |line, _| {
                let (out, found) = (append.clone(), found.clone());
                async move {
                    // With a new store, or under another name, --out is all that knows of it.
                    if out.has(&line.id) {
                        found.fetch_add(1, Ordering::Relaxed);
                        return Ok(());
                    }
                    out.append(&line).await
                }
            },
        )
        .concurrency(arguments.concurrency)
        // A process may die between appending a line and recording it. Only --out knows then, so it
        // is asked before the line is appended again.
        .reconcile(move |unknown: Unknown| {
            let out = look.clone();
            async move {
                match out.has(unknown.context.key().as_str()) {
                    true => Reconciled::Happened(()),
                    false => Reconciled::DidNotHappen,
                }
            }
        })
        .on_progress(move |progress| shown.set_position(progress.finished() as u64))
        .await;
    bar.finish_and_clear();

    // The record of a line that is gone says that it was imported, so it is not imported again:
    // somebody has to know.
    let of = || ids.iter().zip(&report.items);
    let gone: Vec<_> = of().filter(|(id, it)| it.is_ok() && !out.has(id)).collect();
    for (id, _) in gone.iter().take(SHOWN) {
        eprintln!("batch-import: {id}: was imported, and is gone");
    }
    if let Some(more @ 1..) = gone.len().checked_sub(SHOWN) {
        eprintln!("batch-import: {more} more were imported, and are gone");
    }
    for (id, error) in of().filter_map(|(id, it)| Some((id, it.as_ref().err()?))) {
        eprintln!("batch-import: {id}: {error}");
    }
    let missing = report.failed + gone.len();
    let already = already.load(Ordering::Relaxed);
    println!(
        "{} lines: {} imported, {} imported before, {} failed",
        report.items.len(),
        report.executed - already,
        report.replayed + already - gone.len(),
        missing
    );
    match missing {
        0 => Ok(()),
        some => Err((1, format!("{some} lines are not in {}", arguments.out.display()))),
    }
}

/// A line of the file: what is imported, and what a line is compared by.
#[derive(Serialize, Deserialize)]
struct Line {
    id: String,
    customer: String,
    cents: i64,
}

const COLUMNS: [&str; 3] = ["id", "customer", "cents"];

fn read_lines(path: &Path) -> Result<Vec<Line>, csv::Error> {
    let mut reader = csv::Reader::from_path(path)?;
    // A file whose first line can't be read, or is a line to import, would pass for one without lines.
    let names = reader.headers()?;
    if let Some(missing) = COLUMNS.iter().find(|column| !names.iter().any(|name| name == **column))
    {
        let columns = COLUMNS.join(",");
        let problem = format!("its first line has no `{missing}`: it has to be {columns}");
        return Err(io::Error::other(problem).into());
    }
    reader.into_deserialize().collect()
}

/// As it is appended to `--out`.
fn text_of(line: &Line) -> Result<Vec<u8>, csv::Error> {
    let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    writer.serialize(line)?;
    Ok(writer.into_inner().map_err(|error| error.into_error())?)
}

fn progress_bar(lines: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} lines, {eta} left");
    let bar = ProgressBar::new(lines as u64);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// The file that lines are appended to, and the ids of those that are in it.
#[derive(Clone)]
struct Out {
    appends: mpsc::Sender<Append>,
    ids: Arc<Mutex<HashSet<String>>>,
}

struct Append {
    id: String,
    text: Vec<u8>,
    written: oneshot::Sender<Result<(), NotWritten>>,
}

#[derive(Clone, Debug)]
struct NotWritten(String);

impl Display for NotWritten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotWritten {}

impl Out {
    /// What is appended to for `lines`. Changed only if all of it was written by an import.
    fn open(path: &Path, lines: &[Line]) -> Result<Self, csv::Error> {
        let mut file = File::options().read(true).append(true).create(true).open(path)?;
        // Two imports at once would not see each other's lines.
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::other("another import is writing to it").into());
            }
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        let (ids, whole) = imported(&text);
        // A process that was killed, or a disk that was full, may have left a part of a line.
        let part = &text[whole..];
        if !part.is_empty() {
            let texts = lines.iter().map(text_of).collect::<Result<Vec<_>, _>>()?;
            if !texts.iter().any(|text| text.starts_with(part)) {
                let place = text[..whole].iter().filter(|byte| **byte == b'\n').count() + 1;
                let problem = format!("what begins in line {place} is no line of the import");
                return Err(io::Error::other(problem).into());
            }
            file.set_len(whole as u64)?;
        }
        let (appends, queue) = mpsc::channel(256);
        let ids = Arc::new(Mutex::new(ids));
        let known = ids.clone();
        thread::spawn(move || write_appends(file, whole as u64, queue, &known));
        Ok(Self { appends, ids })
    }

    /// Appends a line. It is on the disk when this is over.
    async fn append(&self, line: &Line) -> Result<(), NotWritten> {
        let text = text_of(line).map_err(|error| NotWritten(error.to_string()))?;
        let (written, told) = oneshot::channel();
        let stopped = || NotWritten("the file is no longer written to".to_owned());
        let append = Append { id: line.id.clone(), text, written };
        self.appends.send(append).await.map_err(|_| stopped())?;
        told.await.map_err(|_| stopped())?
    }

    fn has(&self, id: &str) -> bool {
        locked(&self.ids).contains(id)
    }
}

/// The ids of the whole lines at the beginning of a text, and where these end.
fn imported(text: &[u8]) -> (HashSet<String>, usize) {
    let (mut ids, mut whole) = (HashSet::new(), 0);
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(text);
    let mut record = csv::StringRecord::new();
    while let Ok(true) = reader.read_record(&mut record) {
        // Only the last can lack its end, and a quoted field that lacks it ends with the text.
        let end = reader.position().byte() as usize;
        let Ok(line) = record.deserialize::<Line>(None) else { break };
        if !text[..end].ends_with(b"\n") {
            break;
        }
        ids.insert(line.id);
        whole = end;
    }
    (ids, whole)
}

/// Writes what is waiting in one go, so that many lines share one wait for the disk.
fn write_appends(
    mut file: File,
    mut length: u64,
    mut appends: mpsc::Receiver<Append>,
    ids: &Mutex<HashSet<String>>,
) {
    let mut waiting = Vec::new();
    while appends.blocking_recv_many(&mut waiting, 256) > 0 {
        let text: Vec<_> = waiting.iter().flat_map(|append| &append.text).copied().collect();
        let written = file.write_all(&text).and_then(|()| file.sync_data());
        match &written {
            Ok(()) => {
                length += text.len() as u64;
                locked(ids).extend(waiting.iter().map(|append| append.id.clone()));
            }
            // Nothing of it may stay, or nobody would know of it.
            Err(_) if file.set_len(length).is_ok() => {}
            Err(_) => return,
        }
        let told = written.map_err(|error| NotWritten(error.to_string()));
        for append in waiting.drain(..) {
            let _ = append.written.send(told.clone());
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
