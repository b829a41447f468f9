//! How a transactional store is set up.

use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use retrysafe_core::{Clock, ConfigError};
use rusqlite::Connection;

use super::{Attempts, TransactionalSqlite};
use crate::{OpenError, SqliteStore, Synchronous, builder::Settings, open, table::USERS_FILE};

type Prepare = Box<dyn FnOnce(&Connection) -> rusqlite::Result<()>>;

/// Sets up a [`TransactionalSqlite`].
#[must_use]
pub struct TransactionalSqliteBuilder {
    path: PathBuf,
    settings: Settings,
    prepare: Option<Prepare>,
}

impl TransactionalSqliteBuilder {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, settings: Settings::default(), prepare: None }
    }

    /// How long a handler may hold the only writer, from its first statement to its answer; a second
    /// by default, and no longer than [`busy_timeout`](Self::busy_timeout). Then its transaction is
    /// rolled back: a statement that runs is interrupted, and the answer is 503. Code between two
    /// statements of one [`run`](crate::SqliteTransaction::run) can't be interrupted.
    pub fn hold(mut self, longest: Duration) -> Self {
        self.settings.hold = longest;
        self
    }

    /// Sets up the connection that handlers work on, once: functions, collations, pragmas.
    pub fn prepare(
        mut self,
        prepare: impl FnOnce(&Connection) -> rusqlite::Result<()> + 'static,
    ) -> Self {
        self.prepare = Some(Box::new(prepare));
        self
    }

    /// How a commit reaches the disk; [`Synchronous::Full`] by default. It is the work's, too.
    pub fn synchronous(mut self, synchronous: Synchronous) -> Self {
        self.settings.synchronous = synchronous;
        self
    }

    /// How long to wait for another connection that writes to the file; 1.5 s by default, which is
    /// below the engine's deadline for a store call (D5).
    pub fn busy_timeout(mut self, timeout: Duration) -> Self {
        self.settings.busy_timeout = timeout;
        self
    }

    /// See [`SqliteStoreBuilder::poll_interval`](crate::SqliteStoreBuilder::poll_interval).
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.settings.poll_interval = interval;
        self
    }

    /// See [`SqliteStoreBuilder::max_payload`](crate::SqliteStoreBuilder::max_payload).
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.settings.max_payload = bytes;
        self
    }

    /// See [`SqliteStoreBuilder::clock`](crate::SqliteStoreBuilder::clock). Its
    /// [monotonic](Clock::monotonic) time judges how long the writer is held.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.settings.clock = clock;
        self
    }

    /// Opens the file, or creates it; and its table of records, too. Blocks as
    /// [`SqliteStoreBuilder::open`](crate::SqliteStoreBuilder::open) does.
    ///
    /// # Errors
    ///
    /// [`OpenError`], which names the file and says what to do.
    pub fn open(self) -> Result<TransactionalSqlite, OpenError> {
        let Self { path, settings, prepare } = self;
        let check = || {
            settings.check()?;
            if settings.hold < Duration::from_millis(1) || settings.hold > settings.busy_timeout {
                return Err(ConfigError::new("hold", "from 1 ms to the busy timeout"));
            }
            Ok(())
        };
        check().map_err(|error| OpenError::setting(&path, error))?;
        let hold = settings.hold;
        let connections = open::open(&path, &settings, &USERS_FILE)?;
        if let Some(prepare) = prepare {
            prepare(&connections.writer).map_err(|error| OpenError::sqlite(&path, error))?;
        }
        let records = SqliteStore::start(path, settings, connections, &USERS_FILE)?;
        let attempts = Attempts { works: Mutex::new(HashMap::new()), hold };
        Ok(TransactionalSqlite { records, attempts: Arc::new(attempts) })
    }
}

impl fmt::Debug for TransactionalSqliteBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionalSqliteBuilder")
            .field("path", &self.path)
            .field("hold", &self.settings.hold)
            .field("synchronous", &self.settings.synchronous)
            .field("busy_timeout", &self.settings.busy_timeout)
            .finish_non_exhaustive()
    }
}
