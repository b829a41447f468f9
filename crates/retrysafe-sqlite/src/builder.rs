//! How a store is set up.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use retrysafe_core::{Clock, ConfigError, SystemClock};

use crate::{OpenError, SqliteStore};

/// How a commit reaches the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Synchronous {
    /// Flushed before it is answered: what was acknowledged survives the loss of power.
    #[default]
    Full,
    /// Flushed now and then: what was acknowledged survives the death of every process, but the
    /// last moments before a loss of power or a crash of the machine may be gone, claims included.
    Normal,
}

/// Sets up a [`SqliteStore`].
#[must_use]
pub struct SqliteStoreBuilder {
    path: PathBuf,
    settings: Settings,
}

pub(crate) struct Settings {
    /// How long a handler may hold the writer.
    pub(crate) hold: Duration,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) synchronous: Synchronous,
    pub(crate) busy_timeout: Duration,
    pub(crate) poll_interval: Duration,
    pub(crate) max_payload: usize,
    pub(crate) max_file_size: Option<u64>,
}

impl SqliteStoreBuilder {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, settings: Settings::default() }
    }

    /// What tells the time; [`SystemClock`] by default. Its [wall](Clock::wall) time judges leases
    /// and retention, because every process that shares the file must read the same.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.settings.clock = clock;
        self
    }

    /// How a commit reaches the disk; [`Synchronous::Full`] by default.
    pub fn synchronous(mut self, synchronous: Synchronous) -> Self {
        self.settings.synchronous = synchronous;
        self
    }

    /// How long to wait for another process that writes to the file; 1.5 s by default, which is
    /// below the engine's deadline for a store call (D5). After that the file is there and busy, which
    /// is a [`Timeout`](retrysafe_core::StoreErrorKind::Timeout).
    pub fn busy_timeout(mut self, timeout: Duration) -> Self {
        self.settings.busy_timeout = timeout;
        self
    }

    /// How often [`changed`](retrysafe_core::Store::changed) looks for what another process did, on
    /// average; 100 ms by default. What this process does is seen at once.
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.settings.poll_interval = interval;
        self
    }

    /// The largest payload in bytes; 64 MiB by default, at most 900 MiB.
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.settings.max_payload = bytes;
        self
    }

    /// The size that the file may grow to, in bytes; unlimited by default. Past it the store
    /// refuses with [`Full`](retrysafe_core::StoreErrorKind::Full) and drops nothing (ST8). The
    /// write-ahead log beside the file comes on top.
    pub fn max_file_size(mut self, bytes: u64) -> Self {
        self.settings.max_file_size = Some(bytes);
        self
    }

    /// Opens the file, or creates it. Blocks for as long as the file system takes, and while
    /// another process creates the same file.
    ///
    /// # Errors
    ///
    /// [`OpenError`], which names the file and says what to do. A file that is not ours is never
    /// altered.
    pub fn open(self) -> Result<SqliteStore, OpenError> {
        self.settings.check().map_err(|error| OpenError::setting(&self.path, error))?;
        SqliteStore::from_settings(self.path, self.settings)
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            hold: Duration::from_secs(1),
            clock: Arc::new(SystemClock::new()),
            synchronous: Synchronous::default(),
            busy_timeout: Duration::from_millis(1_500),
            poll_interval: Duration::from_millis(100),
            max_payload: 64 * 1024 * 1024,
            max_file_size: None,
        }
    }
}

impl Settings {
    /// SQLite refuses rows of more than 1,000,000,000 bytes.
    const MOST_PAYLOAD: usize = 900 * 1024 * 1024;
    const LEAST_FILE: u64 = 64 * 1024;

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if self.busy_timeout > Duration::from_secs(3600) {
            return Err(ConfigError::new("busy_timeout", "an hour is the most"));
        }
        if self.poll_interval < Duration::from_millis(1) {
            return Err(ConfigError::new("poll_interval", "a millisecond is the least"));
        }
        if self.max_payload > Self::MOST_PAYLOAD {
            return Err(ConfigError::new("max_payload", "SQLite holds at most 900 MiB"));
        }
        if self.max_file_size.is_some_and(|bytes| bytes < Self::LEAST_FILE) {
            return Err(ConfigError::new("max_file_size", "64 KiB is the least"));
        }
        Ok(())
    }
}

impl fmt::Debug for SqliteStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStoreBuilder")
            .field("path", &self.path)
            .field("synchronous", &self.settings.synchronous)
            .field("busy_timeout", &self.settings.busy_timeout)
            .field("poll_interval", &self.settings.poll_interval)
            .field("max_payload", &self.settings.max_payload)
            .field("max_file_size", &self.settings.max_file_size)
            .finish_non_exhaustive()
    }
}
