//! How a store is set up.

use std::{fmt, time::Duration};

use retrysafe_core::ConfigError;
use sqlx::{PgPool, postgres::PgConnectOptions};

use super::{PostgresStore, connections::Connections, failure::Place};
use crate::{
    OpenError, OpenErrorKind,
    table::{self, TableName},
};

/// Sets up a [`PostgresStore`].
#[must_use]
pub struct PostgresStoreBuilder {
    server: Server,
    settings: Settings,
}

enum Server {
    Url(String),
    Pool(PgPool),
}

pub(crate) struct Settings {
    pub(crate) table: String,
    pub(crate) migrate: bool,
    pub(crate) max_connections: u32,
    pub(crate) timeout: Duration,
    pub(crate) poll_interval: Duration,
    pub(crate) max_payload: usize,
}

impl PostgresStoreBuilder {
    pub(crate) fn url(url: String) -> Self {
        Self { server: Server::Url(url), settings: Settings::default() }
    }

    pub(crate) fn pool(pool: PgPool) -> Self {
        Self { server: Server::Pool(pool), settings: Settings::default() }
    }

    /// The table: lower-case letters, digits and underscores, with or without a schema before a
    /// dot; `retrysafe_record` by default.
    pub fn table(mut self, name: impl Into<String>) -> Self {
        self.settings.table = name.into();
        self
    }

    /// Creates the table when the store is opened, if it does not exist. Any number of processes
    /// may do so at once. Where migrations are run by something else, give it what
    /// [`PostgresStore::schema`] prints instead.
    pub fn migrate(mut self) -> Self {
        self.settings.migrate = true;
        self
    }

    /// How many connections the store opens at most; 16 by default. They are opened when they are
    /// needed. A pool of one's own has its own limit.
    pub fn max_connections(mut self, connections: u32) -> Self {
        self.settings.max_connections = connections;
        self
    }

    /// How long a verb may take, 1.5 s by default, which is below the engine's deadline for a store
    /// call (D5). Half of it may pass in waiting for a connection, after which nothing was sent and
    /// the error is [`Unreachable`](retrysafe_core::StoreErrorKind::Unreachable). What was sent and
    /// not answered in time is a [`Timeout`](retrysafe_core::StoreErrorKind::Timeout), and so is
    /// waiting for a connection to a server to which there are others (D4). On
    /// connections of the store's own, the server gives up waiting for a row after two thirds of it: a
    /// transaction that has not committed holds it then, and the operation is in flight.
    ///
    /// Sweeps, pages and counts may take a minute.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeout = timeout;
        self
    }

    /// How often [`changed`](retrysafe_core::Store::changed) looks for what another process did, on
    /// average; 100 ms by default. What this process does is seen at once.
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.settings.poll_interval = interval;
        self
    }

    /// The largest payload in bytes; 64 MiB by default, at most 256 MiB.
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.settings.max_payload = bytes;
        self
    }

    /// Connects, and makes sure that the server and the table are fit to be a store.
    ///
    /// # Errors
    ///
    /// [`OpenError`], which names the server and says what to do. It comes within ten seconds, or within
    /// [`timeout`](Self::timeout) if that is longer.
    pub async fn open(self) -> Result<PostgresStore, OpenError> {
        let store = self.open_later()?;
        store.prepare().await?;
        Ok(store)
    }

    /// The same without connecting: what [`open`](Self::open) would have done is done by the first
    /// verb that gets a connection, and what it would have refused is that verb's error. For one of
    /// [several primaries](crate::Primaries), which may be down while the others are not.
    ///
    /// # Errors
    ///
    /// [`OpenError`] of kind [`Setting`](OpenErrorKind::Setting).
    pub fn open_later(self) -> Result<PostgresStore, OpenError> {
        let Self { server, settings } = self;
        let nowhere = Place::unknown();
        let setting = |error| OpenError::setting(nowhere.as_str(), error);
        settings.check().map_err(setting)?;
        let table = TableName::parse(&settings.table).map_err(setting)?;
        let (connections, place) = match server {
            Server::Pool(pool) => {
                let place = Place::of(&pool.connect_options());
                (Connections::Pool(pool), place)
            }
            Server::Url(url) => {
                // What the parser says may quote the URL, password included.
                let options: PgConnectOptions = url.parse().map_err(|_| {
                    let problem = "url: it can't be read; it should be \
                                   postgres://USER:PASSWORD@HOST:PORT/DATABASE, with special \
                                   characters percent-encoded";
                    OpenError::new(nowhere.as_str(), OpenErrorKind::Setting, problem)
                })?;
                let place = Place::of(&options);
                (Connections::own(options, place.clone(), &settings), place)
            }
        };
        Ok(PostgresStore::new(connections, place, table, settings))
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            table: table::DEFAULT.to_owned(),
            migrate: false,
            max_connections: 16,
            timeout: Duration::from_millis(1_500),
            poll_interval: Duration::from_millis(100),
            max_payload: 64 * 1024 * 1024,
        }
    }
}

impl Settings {
    /// A value takes several times its size in the server's memory, and 1 GiB is the most that it
    /// gives one.
    const MOST_PAYLOAD: usize = 256 * 1024 * 1024;

    /// How long a call may take that is about many records.
    pub(crate) fn long_timeout(&self) -> Duration {
        self.timeout.max(Duration::from_secs(60))
    }

    fn check(&self) -> Result<(), ConfigError> {
        let hour = Duration::from_secs(3600);
        if !(Duration::from_millis(10)..=hour).contains(&self.timeout) {
            return Err(ConfigError::new("timeout", "from 10 ms to an hour"));
        }
        if self.poll_interval < Duration::from_millis(1) {
            return Err(ConfigError::new("poll_interval", "a millisecond is the least"));
        }
        if !(1..=10_000).contains(&self.max_connections) {
            return Err(ConfigError::new("max_connections", "from 1 to 10,000"));
        }
        if self.max_payload > Self::MOST_PAYLOAD {
            return Err(ConfigError::new("max_payload", "256 MiB is the most"));
        }
        Ok(())
    }
}

// The URL holds a password.
impl fmt::Debug for PostgresStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStoreBuilder")
            .field("table", &self.settings.table)
            .field("migrate", &self.settings.migrate)
            .field("max_connections", &self.settings.max_connections)
            .field("timeout", &self.settings.timeout)
            .field("poll_interval", &self.settings.poll_interval)
            .field("max_payload", &self.settings.max_payload)
            .finish_non_exhaustive()
    }
}
