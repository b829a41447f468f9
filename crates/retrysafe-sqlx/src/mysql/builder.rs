//! How a store is set up.

use std::{fmt, time::Duration};

use retrysafe_core::ConfigError;
use sqlx::{AssertSqlSafe, MySqlPool, mysql::MySqlConnectOptions};
use tokio::time::timeout;

use super::{
    MySqlStore, Shared,
    connections::{Connections, Origin},
    error::open_error,
    records::Records,
    schema,
    server::{self, Server},
};
use crate::{
    OpenError, OpenErrorKind,
    table::{self, TableName},
    watch::Watches,
};

/// How long opening may take, unless a verb may take longer: a connection, and a dozen questions.
const OPENING: Duration = Duration::from_secs(10);

/// Sets up a [`MySqlStore`].
#[must_use]
pub struct MySqlStoreBuilder {
    origin: Result<Origin, ConfigError>,
    table: String,
    migrate: bool,
    max_connections: u32,
    timeout: Duration,
    poll_interval: Duration,
    max_payload: usize,
}

impl MySqlStoreBuilder {
    pub(super) fn from_url(url: &str) -> Self {
        let is_ours = url.starts_with("mysql://") || url.starts_with("mariadb://");
        // What the parser says may quote the URL, password included.
        let origin = match url.parse::<MySqlConnectOptions>() {
            Ok(options) if is_ours && options.get_database().is_some() => {
                Ok(Origin::Options(Box::new(options)))
            }
            _ => Err(ConfigError::new(
                "url",
                "it should be mysql://USER:PASSWORD@HOST:PORT/DATABASE, with special characters \
                 percent-encoded",
            )),
        };
        Self::new(origin)
    }

    pub(super) fn from_pool(pool: MySqlPool) -> Self {
        let has_database = pool.connect_options().get_database().is_some();
        Self::new(if has_database {
            Ok(Origin::Pool(pool))
        } else {
            Err(ConfigError::new("pool", "its options should name a database"))
        })
    }

    fn new(origin: Result<Origin, ConfigError>) -> Self {
        Self {
            origin,
            table: table::DEFAULT.to_owned(),
            migrate: false,
            max_connections: 16,
            timeout: Duration::from_millis(1_500),
            poll_interval: Duration::from_millis(100),
            max_payload: 64 * 1024 * 1024,
        }
    }

    /// The table: lower-case letters, digits and underscores, with or without a database before a
    /// dot; `retrysafe_record` by default.
    pub fn table(mut self, name: impl Into<String>) -> Self {
        self.table = name.into();
        self
    }

    /// Creates the table when the store is opened, if it does not exist. Any number of processes
    /// may do so at once. Where migrations are run by something else, give it what
    /// [`MySqlStore::schema`] prints instead.
    pub fn migrate(mut self) -> Self {
        self.migrate = true;
        self
    }

    /// How many connections the store opens at most; 16 by default. They are opened when they are
    /// needed, and closed when they were not for five minutes.
    pub fn max_connections(mut self, connections: u32) -> Self {
        self.max_connections = connections;
        self
    }

    /// How long a verb may take, waiting for a connection included; 1.5 s by default, which is below
    /// the engine's deadline for a store call (D5). If nothing was sent by then the error is
    /// [`Unreachable`](retrysafe_core::StoreErrorKind::Unreachable). What was sent and not answered
    /// in time is a [`Timeout`](retrysafe_core::StoreErrorKind::Timeout), and so is waiting for a
    /// connection to a server to which there are others (D4). An operator's question may take a minute.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How often [`changed`](retrysafe_core::Store::changed) looks for what another process did, on
    /// average; 100 ms by default. What this store did is seen at once.
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = interval;
        self
    }

    /// The largest payload in bytes; 64 MiB by default, and never more than what fits into the
    /// server's `max_allowed_packet`, which is read when the store is opened.
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.max_payload = bytes;
        self
    }

    /// Connects, and makes sure that the server and the table are fit to be a store.
    ///
    /// # Errors
    ///
    /// [`OpenError`], which names the server and says what to do. It comes within ten seconds, or within
    /// [`timeout`](Self::timeout) if that is longer.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing behind but, after [`migrate`](Self::migrate), an empty
    /// table.
    pub async fn open(self) -> Result<MySqlStore, OpenError> {
        let (origin, table) = self.check()?;
        let place = origin.place();
        let records = Records::new(&table);
        let open = async {
            let failed = |error| open_error(&place, error);
            let mut connection = origin.connect().await.map_err(failed)?;
            let server = Server::ask(&place, &mut connection).await?;
            server.check()?;
            if self.migrate {
                let create = AssertSqlSafe(schema::schema(&table));
                sqlx::raw_sql(create).execute(&mut connection).await.map_err(failed)?;
            }
            server::check_table(&place, &table, &records, &mut connection).await?;
            Ok((connection, server.max_payload(), server.shows_what_may_be_lost()))
        };
        let patience = self.timeout.max(OPENING);
        let (connection, fits, confirms) = timeout(patience, open).await.unwrap_or_else(|_| {
            let problem = format!("it did not answer within {} s", patience.as_secs());
            Err(OpenError::new(&place, OpenErrorKind::Unreachable, problem))
        })?;
        let connections = Connections::new(origin, self.max_connections);
        connections.keep(connection);
        Ok(MySqlStore::from_shared(Shared {
            connections,
            records,
            watches: Watches::default(),
            timeout: self.timeout,
            poll_interval: self.poll_interval,
            max_payload: self.max_payload.min(fits),
            confirms,
        }))
    }

    fn check(&self) -> Result<(Origin, TableName), OpenError> {
        let setting = |error| OpenError::setting("a MySQL server", error);
        let origin = self.origin.clone().map_err(setting)?;
        let table = TableName::parse(&self.table).map_err(setting)?;
        let hour = Duration::from_secs(3600);
        if !(Duration::from_millis(10)..=hour).contains(&self.timeout) {
            return Err(setting(ConfigError::new("timeout", "from 10 ms to an hour")));
        }
        if self.poll_interval < Duration::from_millis(1) {
            return Err(setting(ConfigError::new("poll_interval", "a millisecond is the least")));
        }
        if !(1..=10_000).contains(&self.max_connections) {
            return Err(setting(ConfigError::new("max_connections", "from 1 to 10,000")));
        }
        Ok((origin, table))
    }
}

// S3: neither user nor password is shown.
impl fmt::Debug for MySqlStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MySqlStoreBuilder")
            .field("server", &self.origin.as_ref().map(Origin::place))
            .field("table", &self.table)
            .field("migrate", &self.migrate)
            .field("max_connections", &self.max_connections)
            .field("timeout", &self.timeout)
            .field("poll_interval", &self.poll_interval)
            .field("max_payload", &self.max_payload)
            .finish()
    }
}
