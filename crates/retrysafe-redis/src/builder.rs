//! How a store is set up.

use std::{fmt, sync::Arc, time::Duration};

use redis::{Client, ConnectionInfo};
use retrysafe_core::ConfigError;

use crate::{
    Durability, OpenError, RedisStore, open,
    settings::{Settings, Target},
};

/// Sets up a [`RedisStore`].
#[must_use]
pub struct RedisStoreBuilder {
    target: Result<Target, ConfigError>,
    settings: Settings,
}

impl RedisStoreBuilder {
    pub(crate) fn from_url(url: String) -> Self {
        Self { target: Target::from_url(&url), settings: Settings::default() }
    }

    pub(crate) fn from_client(client: &Client) -> Self {
        let target = Target::Single(Box::new(client.get_connection_info().clone()));
        Self { target: Ok(target), settings: Settings::default() }
    }

    pub(crate) fn from_cluster(nodes: Vec<ConnectionInfo>) -> Self {
        let target = match nodes.is_empty() {
            true => Err(ConfigError::new("nodes", "name at least one node of the cluster")),
            false => Ok(Target::Cluster(nodes)),
        };
        Self { target, settings: Settings::default() }
    }

    /// What every key begins with; `retrysafe:` by default. Stores with different prefixes share
    /// nothing. The rest of a key is the operation's id in hex digits, of which the logs show the
    /// first 16.
    pub fn key_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.settings.prefix = prefix.into();
        self
    }

    /// Whether claims, renewals and outcomes wait for replicas; [`Durability::Fast`] by default.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.settings.durability = durability;
        self
    }

    /// How long a connection may take; 750 ms by default. With the response time-out it is below the
    /// engine's deadline for a store call (D5). Opening gives it ten seconds at least.
    pub fn connection_timeout(mut self, timeout: Duration) -> Self {
        self.settings.connection_timeout = timeout;
        self
    }

    /// How long a request may take; 1 s by default. One that takes longer may have had its effect,
    /// and is answered with [`Timeout`](retrysafe_core::StoreErrorKind::Timeout). Opening gives each of
    /// its requests ten seconds at least.
    pub fn response_timeout(mut self, timeout: Duration) -> Self {
        self.settings.response_timeout = timeout;
        self
    }

    /// How many requests at a time may wait for replicas, each on a connection of its own; 32 for
    /// each server by default. They are made when they are needed.
    pub fn replica_connections(mut self, connections: usize) -> Self {
        self.settings.replica_connections = connections;
        self
    }

    /// How often [`changed`](retrysafe_core::Store::changed) asks again, on average; 500 ms by
    /// default. Only a wake-up that was lost is noticed so late.
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.settings.poll_interval = interval;
        self
    }

    /// The largest payload in bytes; 16 MiB by default, at most 500 MiB. While a large value is on
    /// its way to or from Redis, everybody else waits.
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.settings.max_payload = bytes;
        self
    }

    /// Connects, judges the server and tries on a record of its own whether the user may do what a
    /// store needs.
    ///
    /// # Errors
    ///
    /// [`OpenError`], which names the server and says what to do.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes what was opened.
    pub async fn open(self) -> Result<RedisStore, OpenError> {
        let target = self.target.map_err(|error| OpenError::setting("its URL", error))?;
        let address = target.address();
        self.settings.check().map_err(|error| OpenError::setting(&address, error))?;
        open::open(&target, Arc::new(self.settings)).await
    }
}

impl fmt::Debug for RedisStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStoreBuilder")
            .field("address", &self.target.as_ref().ok().map(Target::address))
            .field("key_prefix", &self.settings.prefix)
            .field("durability", &self.settings.durability)
            .field("connection_timeout", &self.settings.connection_timeout)
            .field("response_timeout", &self.settings.response_timeout)
            .field("replica_connections", &self.settings.replica_connections)
            .field("poll_interval", &self.settings.poll_interval)
            .field("max_payload", &self.settings.max_payload)
            .finish_non_exhaustive()
    }
}
