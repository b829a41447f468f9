//! What every part of a store is told.

use std::{sync::OnceLock, time::Duration};

use redis::{ConnectionAddr, ConnectionInfo};
use retrysafe_core::ConfigError;

/// What is known about an outcome, or a claim, when it is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// The primary has it. It survives what the primary's append-only file does; a failover may lose
    /// it, whatever was acknowledged.
    #[default]
    Fast,
    /// So many replicas have it as well: each claim, renewal and outcome waits for them, on a
    /// connection of its own. A claim that too few confirm is released again and answered with an
    /// error. A claim that finds a record is answered behind the same wait. This makes it unlikely that a failover loses what was acknowledged. It does not rule
    /// it out, because a failover may promote a replica that has not confirmed.
    Replicas {
        /// How many replicas have to confirm.
        count: u32,
        /// How long they are given. On top of the response time-out.
        within: Duration,
    },
}

/// How long opening waits at least for a connection, and for each answer. It is once in the life of a
/// service, often on a machine that is starting everything at once, and no request waits for it.
const OPENING: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub(crate) struct Settings {
    /// In front of every key.
    pub(crate) prefix: String,
    pub(crate) durability: Durability,
    /// As it was set: see [`connecting`](Self::connecting) for what holds now.
    pub(crate) connection_timeout: Duration,
    pub(crate) response_timeout: Duration,
    pub(crate) replica_connections: usize,
    pub(crate) poll_interval: Duration,
    pub(crate) max_payload: usize,
    /// Set once the store is open.
    pub(crate) opened: OnceLock<()>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            prefix: "retrysafe:".into(),
            durability: Durability::default(),
            connection_timeout: Duration::from_millis(750),
            response_timeout: Duration::from_secs(1),
            replica_connections: 32,
            poll_interval: Duration::from_millis(500),
            max_payload: 16 * 1024 * 1024,
            opened: OnceLock::new(),
        }
    }
}

impl Settings {
    /// Redis refuses values of more than 512 MiB.
    const MOST_PAYLOAD: usize = 500 * 1024 * 1024;

    /// How long a connection may take now.
    pub(crate) fn connecting(&self) -> Duration {
        self.now(self.connection_timeout)
    }

    /// How long a request may take now.
    pub(crate) fn answering(&self) -> Duration {
        self.now(self.response_timeout)
    }

    fn now(&self, timeout: Duration) -> Duration {
        match self.opened.get() {
            Some(()) => timeout,
            None => timeout.max(OPENING),
        }
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let millisecond = Duration::from_millis(1);
        let hour = Duration::from_secs(3600);
        if self.prefix.contains(['{', '}']) {
            return Err(ConfigError::new(
                "key_prefix",
                "braces would put all records of a cluster on one node",
            ));
        }
        for (name, timeout) in [
            ("connection_timeout", self.connection_timeout),
            ("response_timeout", self.response_timeout),
        ] {
            if timeout < millisecond || timeout > hour {
                return Err(ConfigError::new(name, "from a millisecond to an hour"));
            }
        }
        if self.poll_interval < millisecond {
            return Err(ConfigError::new("poll_interval", "a millisecond is the least"));
        }
        if self.replica_connections == 0 {
            return Err(ConfigError::new("replica_connections", "one is the least"));
        }
        if self.max_payload > Self::MOST_PAYLOAD {
            return Err(ConfigError::new("max_payload", "Redis holds at most 500 MiB"));
        }
        if let Durability::Replicas { count, within } = self.durability {
            if count == 0 {
                return Err(ConfigError::new("durability", "with no replica it is `Fast`"));
            }
            if within < millisecond || within > hour {
                return Err(ConfigError::new(
                    "durability",
                    "replicas are given a millisecond at least and an hour at most",
                ));
            }
        }
        Ok(())
    }
}

/// Where the records are.
#[derive(Clone)]
pub(crate) enum Target {
    Single(Box<ConnectionInfo>),
    /// Any of the cluster's nodes; the others are asked for.
    Cluster(Vec<ConnectionInfo>),
}

impl Target {
    /// Reads a URL: the driver's, or a list of hosts with the scheme `redis-cluster` or
    /// `rediss-cluster`.
    pub(crate) fn from_url(url: &str) -> Result<Self, ConfigError> {
        let bad = |problem: String| ConfigError::new("url", problem);
        let read = |url: String| {
            redis::IntoConnectionInfo::into_connection_info(url)
                .map_err(|error| bad(error.to_string()))
        };
        let cluster = [("redis-cluster://", "redis"), ("rediss-cluster://", "rediss")]
            .into_iter()
            .find_map(|(prefix, scheme)| url.strip_prefix(prefix).map(|rest| (scheme, rest)));
        let Some((scheme, rest)) = cluster else {
            return Ok(Self::Single(Box::new(read(url.to_owned())?)));
        };
        let (user, hosts) = match rest.rsplit_once('@') {
            Some((user, hosts)) => (format!("{user}@"), hosts),
            None => (String::new(), rest),
        };
        let hosts = hosts.strip_suffix('/').unwrap_or(hosts);
        if hosts.is_empty() || hosts.contains(['/', '?', '#']) {
            return Err(
                bad("a cluster is named by hosts alone: redis-cluster://h1:6379,h2".into()),
            );
        }
        let nodes = hosts.split(',').map(|host| read(format!("{scheme}://{user}{host}")));
        Ok(Self::Cluster(nodes.collect::<Result<_, _>>()?))
    }

    /// The address or addresses, without user and password.
    pub(crate) fn address(&self) -> String {
        match self {
            Self::Single(node) => node.addr().to_string(),
            Self::Cluster(nodes) => {
                let nodes: Vec<_> = nodes.iter().map(|node| node.addr().to_string()).collect();
                nodes.join(",")
            }
        }
    }

    pub(crate) fn is_secure(&self) -> bool {
        let secure = |node: &ConnectionInfo| matches!(node.addr(), ConnectionAddr::TcpTls { .. });
        match self {
            Self::Single(node) => secure(node),
            Self::Cluster(nodes) => nodes.iter().any(secure),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_a_list_of_hosts() {
        let address = |url| Target::from_url(url).map(|target| target.address());
        assert_eq!(address("redis-cluster://a:1,b").unwrap(), "a:1,b:6379");
        assert_eq!(address("redis-cluster://user:p@ss@a:1,b/").unwrap(), "a:1,b:6379");
        assert_eq!(address("redis://:secret@a").unwrap(), "a:6379");
        for bad in
            ["redis-cluster://", "redis-cluster://a/1", "http://a", "a", "redis-cluster://a,"]
        {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
