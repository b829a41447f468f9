//! How a transactional store is set up.

use std::{sync::Arc, time::Duration};

use sqlx::MySqlPool;

use super::{MySqlSide, TransactionalMySql};
use crate::{
    MySqlStoreBuilder, OpenError,
    mysql::MySqlStore,
    table::{self, TableName},
    transactional::{Core, Isolation, Settings},
};

/// How many connections of its own it has at most.
const LOOKS: u32 = 8;

/// Sets up a [`TransactionalMySql`].
#[derive(Debug)]
#[must_use]
pub struct TransactionalMySqlBuilder {
    pool: MySqlPool,
    records: MySqlStoreBuilder,
    table: String,
    isolation: Option<Isolation>,
    settings: Settings,
}

impl TransactionalMySqlBuilder {
    pub(super) fn new(pool: MySqlPool) -> Self {
        Self {
            records: MySqlStore::from_pool(pool.clone()).max_connections(LOOKS),
            pool,
            table: table::DEFAULT.to_owned(),
            isolation: None,
            settings: Settings::default(),
        }
    }

    /// The table: see [`MySqlStoreBuilder::table`].
    pub fn table(mut self, name: impl Into<String>) -> Self {
        self.table = name.into();
        self
    }

    /// Creates the table when the store is opened, if it does not exist.
    pub fn migrate(mut self) -> Self {
        self.records = self.records.migrate();
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

    /// The largest payload in bytes: see [`MySqlStoreBuilder::max_payload`].
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.records = self.records.max_payload(bytes);
        self
    }

    /// Makes sure that the server and the table are fit to be a store.
    ///
    /// # Errors
    ///
    /// [`OpenError`], which names the server and says what to do. It comes within ten seconds.
    pub async fn open(self) -> Result<TransactionalMySql, OpenError> {
        let Self { pool, records, table, isolation, settings } = self;
        let setting = |error| OpenError::setting("a MySQL server", error);
        let waiting = settings.waiting(pool.options().get_max_connections()).map_err(setting)?;
        let name = TableName::parse(&table).map_err(setting)?;
        let records = records.table(table).timeout(settings.timeout).open().await?;
        let side = MySqlSide::new(pool, records, &name, isolation, settings.timeout);
        Ok(TransactionalMySql { core: Arc::new(Core::new(side, settings, waiting)) })
    }
}
