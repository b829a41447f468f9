//! How a transactional store is set up.

use std::{fmt, future::Future, time::Duration};

use retrysafe_core::ConfigError;
use sqlx::{Database, Pool};

use super::Isolation;
use crate::{
    OpenError,
    table::{self, TableName},
};

/// An engine that a transactional store can be on: PostgreSQL, and MySQL or MariaDB. Nobody else can
/// name this trait, so there are no others.
pub trait Engine: Database {
    /// The store on this engine.
    type Store;
    /// What sets up the same table's ordinary store.
    type Records: fmt::Debug + Send;

    #[doc(hidden)]
    fn migrate(records: Self::Records) -> Self::Records;

    #[doc(hidden)]
    fn max_payload(records: Self::Records, bytes: usize) -> Self::Records;

    #[doc(hidden)]
    fn open(
        builder: TransactionalBuilder<Self>,
    ) -> impl Future<Output = Result<Self::Store, OpenError>> + Send
    where
        Self: Sized;
}

/// Sets up a store whose records commit with the work.
#[must_use]
pub struct TransactionalBuilder<E: Engine> {
    pub(crate) pool: Pool<E>,
    pub(crate) records: E::Records,
    pub(crate) table: String,
    pub(crate) isolation: Option<Isolation>,
    pub(crate) settings: Settings,
}

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// How long a verb may take.
    pub(crate) timeout: Duration,
    /// How long a duplicate waits for the transaction that holds its key.
    pub(crate) wait: Duration,
    /// How many may wait on rows at once; half of the pool unless said otherwise.
    max_waiting: Option<usize>,
}

impl<E: Engine> TransactionalBuilder<E> {
    pub(crate) fn new(pool: Pool<E>, records: E::Records) -> Self {
        let (timeout, wait) = (Duration::from_millis(1_500), Duration::from_secs(1));
        Self {
            pool,
            records,
            table: table::DEFAULT.to_owned(),
            isolation: None,
            settings: Settings { timeout, wait, max_waiting: None },
        }
    }

    /// The table: see `table` of the builder of the ordinary store,
    /// [`PostgresStore`](crate::PostgresStore) or [`MySqlStore`](crate::MySqlStore).
    pub fn table(mut self, name: impl Into<String>) -> Self {
        self.table = name.into();
        self
    }

    /// Creates the table when the store is opened, if it does not exist.
    pub fn migrate(mut self) -> Self {
        self.records = E::migrate(self.records);
        self
    }

    /// How long a verb may take, 1.5 s by default, which is below the engine's deadline for a store
    /// call (D5). The handler may take longer: no verb is under way meanwhile.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeout = timeout;
        self
    }

    /// How long a duplicate waits for the transaction that holds its key before it is in progress
    /// (409); a second by default, and no longer than [`timeout`](Self::timeout).
    pub fn wait(mut self, wait: Duration) -> Self {
        self.settings.wait = wait;
        self
    }

    /// How many duplicates may wait on rows of *other processes* at once, each with a connection of
    /// the pool; fewer than the pool has, half of them by default. The next one is in progress at
    /// once.
    pub fn max_waiting(mut self, duplicates: usize) -> Self {
        self.settings.max_waiting = Some(duplicates);
        self
    }

    /// The isolation level of the transactions; the pool's own by default.
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = Some(isolation);
        self
    }

    /// The largest payload in bytes: see `max_payload` of the builder of the ordinary store.
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.records = E::max_payload(self.records, bytes);
        self
    }

    /// Makes sure that the server and the table are fit to be a store.
    ///
    /// # Errors
    ///
    /// [`OpenError`], which names the server and says what to do. It comes within ten seconds.
    pub async fn open(self) -> Result<E::Store, OpenError> {
        E::open(self).await
    }

    /// The table, and how many may wait on its rows.
    pub(crate) fn checked(&self) -> Result<(TableName, usize), ConfigError> {
        let Settings { timeout, wait, max_waiting } = self.settings;
        if wait < Duration::from_millis(1) || wait > timeout {
            return Err(ConfigError::new("wait", "from 1 ms to the timeout"));
        }
        let connections = self.pool.options().get_max_connections() as usize;
        let waiting = max_waiting.unwrap_or(connections / 2);
        if waiting >= connections {
            let problem = "fewer than the pool has connections, or nothing else gets one";
            return Err(ConfigError::new("max_waiting", problem));
        }
        Ok((TableName::parse(&self.table)?, waiting))
    }
}

impl<E: Engine> fmt::Debug for TransactionalBuilder<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionalBuilder")
            .field("records", &self.records)
            .field("table", &self.table)
            .field("isolation", &self.isolation)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
