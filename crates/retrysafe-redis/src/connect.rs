//! Making a connection, and judging the server at its other end.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ProtocolVersion, PushInfo,
    PushKind, Value, aio::MultiplexedConnection, io::tcp::socket2::TcpKeepalive,
};

use crate::{
    error::{OpenError, OpenErrorKind},
    settings::Settings,
};

/// How many requests may wait to be written to one connection.
const QUEUE: usize = 1024;

/// After how long without any request a host is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// A connection that is known to lead to a primary that fits.
pub(crate) struct Connection {
    pub(crate) driver: MultiplexedConnection,
    /// What the server said of itself when the connection was made.
    pub(crate) server: Arc<ServerInfo>,
    closed: Arc<AtomicBool>,
}

impl Connection {
    /// Whether it has ended. A request that is sent on it then can't arrive.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// What is done with what the server sends without being asked.
pub(crate) type OnPush = Arc<dyn Fn(&PushInfo) + Send + Sync>;

/// Makes connections to one server.
pub(crate) struct Connector {
    pub(crate) address: String,
    client: Client,
    cluster: bool,
    settings: Arc<Settings>,
}

impl Connector {
    pub(crate) fn new(
        info: &ConnectionInfo,
        cluster: bool,
        settings: Arc<Settings>,
    ) -> Result<Self, OpenError> {
        let address = info.addr().to_string();
        // RESP3, because only then is a connection told that it was closed while it was idle.
        let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let redis = redis.set_lib_name("retrysafe", env!("CARGO_PKG_VERSION"));
        let mut tcp = info.tcp_settings().clone().set_nodelay(true);
        if tcp.keepalive().is_none() {
            tcp = tcp.set_keepalive(TcpKeepalive::new().with_time(KEEP_ALIVE));
        }
        // A host that is gone acknowledges nothing, and its connection ends by this. A server that
        // is merely slow is acknowledged for by its host, and the connection stays: what was sent
        // over it keeps its order (ST4).
        #[cfg(target_os = "linux")]
        if tcp.user_timeout().is_none() {
            tcp = tcp.set_user_timeout(2 * settings.response_timeout);
        }
        let info = info.clone().set_redis_settings(redis).set_tcp_settings(tcp);
        let client = Client::open(info).map_err(|error| OpenError::connecting(&address, error))?;
        Ok(Self { address, client, cluster, settings })
    }

    /// Connects, and judges the server anew: there may be another one behind the address.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the connection.
    pub(crate) async fn connect(&self, on_push: Option<OnPush>) -> Result<Connection, OpenError> {
        let closed = Arc::new(AtomicBool::new(false));
        let pushed = {
            let closed = Arc::clone(&closed);
            move |push: PushInfo| {
                if push.kind == PushKind::Disconnection {
                    closed.store(true, Ordering::Release);
                }
                if let Some(on_push) = &on_push {
                    on_push(&push);
                }
                Ok::<_, Infallible>(())
            }
        };
        let mut driver = self.drive(self.config().set_push_sender(pushed)).await?;
        let info: String = redis::cmd("INFO")
            .query_async(&mut driver)
            .await
            .map_err(|error| OpenError::connecting(&self.address, error))?;
        let server = ServerInfo::read(&info);
        server
            .check(self.cluster)
            .map_err(|(kind, problem)| OpenError::new(&self.address, kind, problem))?;
        Ok(Connection { driver, server: Arc::new(server), closed })
    }

    /// What the server knows of the layout of its cluster, asked on a connection for this alone,
    /// because a replica may be asked too.
    pub(crate) async fn layout(&self) -> Result<Value, OpenError> {
        let mut driver = self.drive(self.config()).await?;
        let slots = redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut driver).await;
        slots.map_err(|error| {
            if error.detail().is_some_and(|detail| detail.contains("cluster support disabled")) {
                let problem = "it is not a node of a cluster; name it as redis://host";
                return OpenError::new(&self.address, OpenErrorKind::Topology, problem);
            }
            OpenError::connecting(&self.address, error)
        })
    }

    pub(crate) fn response_timeout(&self) -> Duration {
        self.settings.answering()
    }

    fn config(&self) -> AsyncConnectionConfig {
        AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.settings.connecting()))
            .set_response_timeout(Some(self.settings.answering()))
            .set_pipeline_buffer_size(QUEUE)
    }

    async fn drive(
        &self,
        config: AsyncConnectionConfig,
    ) -> Result<MultiplexedConnection, OpenError> {
        let connected = self.client.get_multiplexed_async_connection_with_config(&config).await;
        connected.map_err(|error| {
            let error = OpenError::connecting(&self.address, error);
            match self.client.get_connection_info().addr() {
                ConnectionAddr::TcpTls { .. } => error.over_tls(),
                _ => error,
            }
        })
    }
}

/// What INFO says that matters to a store.
#[derive(Debug, Default)]
pub(crate) struct ServerInfo {
    version: String,
    policy: String,
    role: String,
    loading: bool,
    cluster: bool,
    pub(crate) append_only: bool,
    pub(crate) replicas: u32,
}

impl ServerInfo {
    fn read(info: &str) -> Self {
        let field = |name: &str| {
            let mut lines = info.lines().filter_map(|line| line.split_once(':'));
            lines.find(|(key, _)| *key == name).map_or("", |(_, value)| value.trim())
        };
        Self {
            version: field("redis_version").into(),
            policy: field("maxmemory_policy").into(),
            role: field("role").into(),
            loading: field("loading") == "1",
            cluster: field("cluster_enabled") == "1",
            append_only: field("aof_enabled") == "1",
            replicas: field("connected_slaves").parse().unwrap_or(0),
        }
    }

    fn check(&self, cluster: bool) -> Result<(), (OpenErrorKind, String)> {
        // Valkey says here which Redis it can stand in for: 7.2 or later.
        let major = self.version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        if major.is_none_or(|major| major < 7) {
            let problem = format!("it is version {:?}; 7.0 or later is needed", self.version);
            return Err((OpenErrorKind::TooOld, problem));
        }
        if self.loading {
            let problem = "it is still loading its data; try again".to_owned();
            return Err((OpenErrorKind::Unreachable, problem));
        }
        if self.role != "master" {
            let problem = "it is a replica, which can't be written; name the primary".to_owned();
            return Err((OpenErrorKind::ReadOnly, problem));
        }
        if self.policy != "noeviction" {
            let problem = format!(
                "its maxmemory-policy is {:?}, so it may remove a live claim and an operation would \
                 run twice; set `maxmemory-policy noeviction`",
                self.policy
            );
            return Err((OpenErrorKind::Evicting, problem));
        }
        if self.cluster != cluster {
            let problem = if self.cluster {
                "it is a node of a cluster; name it as redis-cluster://host"
            } else {
                "it is not a node of a cluster; name it as redis://host"
            };
            return Err((OpenErrorKind::Topology, problem.to_owned()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FITS: &str = "# Server\r\nredis_version:7.0.15\r\nloading:0\r\nmaxmemory_policy:noeviction\
        \r\nrole:master\r\ncluster_enabled:0\r\naof_enabled:1\r\nconnected_slaves:2\r\n";

    #[test]
    fn a_server_is_judged_by_what_it_says() {
        let check = |from: &str, to: &str| {
            ServerInfo::read(&FITS.replace(from, to)).check(false).map_err(|(kind, _)| kind)
        };
        assert_eq!(check("", ""), Ok(()));
        assert_eq!(check("7.0.15", "255.255.255"), Ok(()));
        assert_eq!(check("7.0.15", "6.2.14"), Err(OpenErrorKind::TooOld));
        assert_eq!(check("redis_version", "other_version"), Err(OpenErrorKind::TooOld));
        assert_eq!(check("noeviction", "volatile-ttl"), Err(OpenErrorKind::Evicting));
        assert_eq!(check("maxmemory_policy", "other"), Err(OpenErrorKind::Evicting));
        assert_eq!(check("role:master", "role:slave"), Err(OpenErrorKind::ReadOnly));
        assert_eq!(check("loading:0", "loading:1"), Err(OpenErrorKind::Unreachable));
        assert_eq!(check("enabled:0", "enabled:1"), Err(OpenErrorKind::Topology));
        let info = ServerInfo::read(FITS);
        assert!(info.append_only && info.replicas == 2);
    }
}
