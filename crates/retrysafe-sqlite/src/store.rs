//! The store: each verb is a job for the writer's or the reader's thread.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use retrysafe_core::{
    About, Begin, Claim, Counts, Entry, Fingerprint, Held, Inspect, Lease, Operated, OperationId,
    Resolution, Store, StoreError, StoreErrorKind, Swept,
};
use tokio::time::timeout;

use crate::{
    OpenError, SqliteStoreBuilder,
    builder::Settings,
    open::{self, Connections},
    records::Records,
    table::{OWN_FILE, Table},
    watch::Watches,
    worker::{Abandoned, On, Worker},
};

/// How many expired records one turn removes. Claims go in between (ST12).
const SWEEP_BATCH: usize = 128;

/// A store in an SQLite file, for every process of one machine.
///
/// Handles are cheap to clone and share two threads: one writes, one reads. Any number of processes
/// may open the same file. Dropping the last handle of a process waits until what was sent has been
/// committed, and folds the write-ahead log back into the file.
///
/// What was acknowledged survives the process and, at [`Synchronous::Full`](crate::Synchronous),
/// the loss of power (ST9).
///
/// [`Store::changed`] sleeps on tokio's timer; the other verbs need no runtime of their own.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("retrysafe.db");
/// use retrysafe_core::Store;
/// use retrysafe_sqlite::SqliteStore;
///
/// let store = SqliteStore::open(&path)?;
/// assert_eq!(store.about().engine, "sqlite");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct SqliteStore {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    // In the order of their end: the writer is the last to close the file.
    pub(crate) reader: Worker,
    pub(crate) writer: Worker,
    watches: Arc<Watches>,
    pub(crate) path: Arc<Path>,
    poll_interval: Duration,
    max_payload: usize,
}

impl SqliteStore {
    /// Opens a file with the default settings, or creates it.
    ///
    /// # Errors
    ///
    /// See [`SqliteStoreBuilder::open`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, OpenError> {
        Self::builder(path).open()
    }

    /// Sets up a store.
    ///
    /// ```
    /// # let directory = tempfile::tempdir()?;
    /// # let path = directory.path().join("retrysafe.db");
    /// use retrysafe_sqlite::{SqliteStore, Synchronous};
    ///
    /// let store = SqliteStore::builder(&path)
    ///     .synchronous(Synchronous::Normal)
    ///     .max_file_size(10 * 1024 * 1024 * 1024)
    ///     .open()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn builder(path: impl Into<PathBuf>) -> SqliteStoreBuilder {
        SqliteStoreBuilder::new(path.into())
    }

    pub(crate) fn from_settings(path: PathBuf, settings: Settings) -> Result<Self, OpenError> {
        let connections = open::open(&path, &settings, &OWN_FILE)?;
        Self::start(path, settings, connections, &OWN_FILE)
    }

    pub(crate) fn start(
        path: PathBuf,
        settings: Settings,
        Connections { writer, reader }: Connections,
        table: &'static Table,
    ) -> Result<Self, OpenError> {
        let thread = |error| OpenError::io(&path, error);
        let watches = Arc::new(Watches::default());
        let (poll_interval, max_payload) = (settings.poll_interval, settings.max_payload);
        let on = On { table, clock: settings.clock, path: path.as_path().into() };
        Ok(Self {
            shared: Arc::new(Shared {
                reader: Worker::reader(reader, on.clone()).map_err(thread)?,
                writer: Worker::writer(
                    writer,
                    on.clone(),
                    Arc::clone(&watches),
                    settings.busy_timeout,
                )
                .map_err(thread)?,
                watches,
                path: on.path,
                poll_interval,
                max_payload,
            }),
        })
    }

    /// The file, as it was named.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// How long attempt `seen` still holds a live lease; `None` if it does not.
    async fn lease_left(
        &self,
        id: &OperationId,
        seen: u32,
    ) -> Result<Option<Duration>, StoreError> {
        let id = *id;
        let live = move |records: &Records<'_>| records.live(&id);
        let live = self.shared.reader.ask(Abandoned::Skipped, live).await?;
        Ok(live.and_then(|(attempt, lease_left)| (attempt == seen).then_some(lease_left)))
    }

    pub(crate) fn check_size(&self, payload: &Bytes) -> Result<(), StoreError> {
        let (is, most) = (payload.len(), self.shared.max_payload);
        if is <= most {
            return Ok(());
        }
        Err(StoreError::new(
            StoreErrorKind::TooLarge,
            format!("a payload of {is} bytes is over the SQLite store's {most}"),
        ))
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

impl Store for SqliteStore {
    fn about(&self) -> About {
        About { engine: "sqlite", max_payload: self.shared.max_payload }
    }

    async fn begin(&self, claim: &Claim) -> Result<Begin, StoreError> {
        let claim = claim.clone();
        let begin = move |records: &Records<'_>| records.begin(&claim);
        self.shared.writer.ask(Abandoned::Skipped, begin).await
    }

    async fn renew(&self, lease: &Lease, lease_for: Duration) -> Result<Held, StoreError> {
        let lease = lease.clone();
        let renew = move |records: &Records<'_>| records.renew(&lease, lease_for);
        self.shared.writer.ask(Abandoned::Runs, renew).await
    }

    async fn complete(
        &self,
        lease: &Lease,
        fingerprint: &Fingerprint,
        payload: Bytes,
        retention: Duration,
    ) -> Result<Held, StoreError> {
        self.check_size(&payload)?;
        let (lease, fingerprint) = (lease.clone(), fingerprint.clone());
        let complete = move |records: &Records<'_>| {
            records.complete(&lease, &fingerprint, &payload, retention)
        };
        self.shared.writer.ask(Abandoned::Runs, complete).await
    }

    async fn release(
        &self,
        lease: &Lease,
        keep_counters_for: Duration,
    ) -> Result<Held, StoreError> {
        let lease = lease.clone();
        let release = move |records: &Records<'_>| records.release(&lease, keep_counters_for);
        self.shared.writer.ask(Abandoned::Runs, release).await
    }

    async fn changed(
        &self,
        id: &OperationId,
        seen: u32,
        within: Duration,
    ) -> Result<(), StoreError> {
        let watch = self.shared.watches.watch(id);
        let changed = async {
            let Some(lease_left) = self.lease_left(id, seen).await? else {
                return Ok(());
            };
            let watched = async {
                loop {
                    // Listening before looking: a commit in between is heard.
                    let mut stirred = std::pin::pin!(watch.notify.notified());
                    stirred.as_mut().enable();
                    if self.lease_left(id, seen).await?.is_none() {
                        return Ok(());
                    }
                    // Other processes can't wake us. Jitter keeps many from asking all at once.
                    let poll = self.shared.poll_interval.mul_f64(rand::random_range(0.5..1.5));
                    // Woken or not: what is true is asked again.
                    let _ = timeout(poll, stirred).await;
                }
            };
            timeout(lease_left, watched).await.unwrap_or(Ok(()))
        };
        timeout(within, changed).await.unwrap_or(Ok(()))
    }

    async fn sweep(&self, limit: usize) -> Result<Swept, StoreError> {
        let mut removed = 0;
        loop {
            let batch = SWEEP_BATCH.min(limit - removed);
            let sweep = move |records: &Records<'_>| records.sweep(batch);
            let swept = self.shared.writer.ask(Abandoned::Skipped, sweep).await?;
            removed += swept.removed;
            if !swept.more || removed >= limit {
                return Ok(Swept { removed, more: swept.more });
            }
        }
    }
}

impl Inspect for SqliteStore {
    async fn get(&self, id: &OperationId) -> Result<Option<Entry>, StoreError> {
        let id = *id;
        self.shared.reader.ask(Abandoned::Skipped, move |records| records.get(&id)).await
    }

    async fn page(
        &self,
        after: Option<&OperationId>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let after = after.copied();
        let page = move |records: &Records<'_>| records.page(after.as_ref(), limit);
        self.shared.reader.ask(Abandoned::Skipped, page).await
    }

    async fn count(&self) -> Result<Counts, StoreError> {
        self.shared.reader.ask(Abandoned::Skipped, |records| records.count()).await
    }

    async fn forget(&self, id: &OperationId) -> Result<Operated, StoreError> {
        let id = *id;
        self.shared.writer.ask(Abandoned::Runs, move |records| records.forget(&id)).await
    }

    async fn resolve(
        &self,
        id: &OperationId,
        seen: u32,
        resolution: Resolution,
    ) -> Result<Operated, StoreError> {
        if let Resolution::Happened { payload, .. } = &resolution {
            self.check_size(payload)?;
        }
        let id = *id;
        let resolve = move |records: &Records<'_>| records.resolve(&id, seen, &resolution);
        self.shared.writer.ask(Abandoned::Runs, resolve).await
    }
}
