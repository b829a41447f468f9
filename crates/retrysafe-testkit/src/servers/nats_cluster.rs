//! NATS: three nodes with JetStream.

use tokio::sync::OnceCell;

use super::{
    address::free_port,
    nats::{Nats, NatsServer},
    process::{NotStarted, until},
    server::{Engine as _, Server},
};

/// A NATS cluster of three nodes, for streams of three replicas.
///
/// ```no_run
/// use retrysafe_testkit::servers::NatsCluster;
///
/// # async fn test() {
/// let mut cluster = NatsCluster::start().await;
/// // ... a store makes its stream ...
/// let killed = cluster.kill_leader_of("retrysafe").await;
/// cluster.nodes[killed].restart().await;
/// # }
/// ```
#[derive(Debug)]
pub struct NatsCluster {
    /// The nodes.
    pub nodes: Vec<NatsServer>,
}

const NODES: usize = 3;

impl NatsCluster {
    /// Starts a cluster; returns when it can make streams of three replicas.
    ///
    /// # Panics
    ///
    /// As [`NatsServer::start`].
    pub async fn start() -> Self {
        Self::launch(true).await
    }

    /// The cluster that all tests of this process share. It does not flush to disk.
    ///
    /// # Panics
    ///
    /// As [`NatsServer::start`].
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<NatsCluster> = OnceCell::const_new();
        SHARED.get_or_init(|| Self::launch(false)).await
    }

    /// The URLs of all nodes, with commas between them.
    pub fn url(&self) -> String {
        let urls: Vec<_> = self.nodes.iter().map(Server::url).collect();
        urls.join(",")
    }

    /// Which node leads a stream; none while there is no leader, or no such stream.
    pub async fn leader_of(&self, stream: &str) -> Option<usize> {
        let subject = format!("$JS.API.STREAM.INFO.{stream}");
        for node in &self.nodes {
            let Some(info) = node.request(&subject, "").await else { continue };
            let Some((_, leader)) = info.split_once("\"leader\":\"") else { continue };
            let name = leader.split('"').next();
            return (0..self.nodes.len()).find(|&it| name == Some(&name_of(it)));
        }
        None
    }

    /// Kills the node that leads a stream and waits until another one does. Says which was killed.
    ///
    /// # Panics
    ///
    /// If none comes to lead before, or none after.
    pub async fn kill_leader_of(&mut self, stream: &str) -> usize {
        let mut leader = None;
        until("a node leads", async || {
            leader = self.leader_of(stream).await;
            leader.is_some()
        })
        .await;
        let killed = leader.expect("a node leads");
        self.nodes[killed].kill().await;
        until("another node leads", async || {
            self.leader_of(stream).await.is_some_and(|leader| leader != killed)
        })
        .await;
        killed
    }

    async fn launch(durable: bool) -> Self {
        for _ in 0..20 {
            let ports = [(); NODES].map(|()| free_port());
            let Some(nodes) = start(&ports, durable).await else { continue };
            let cluster = Self { nodes };
            cluster.can_make_streams().await;
            return cluster;
        }
        panic!("no free ports after twenty tries");
    }

    /// The proof is in making one. Before all nodes have met there is no room for its replicas.
    async fn can_make_streams(&self) {
        let stream = r#"{"name":"ready","subjects":["ready"],"num_replicas":3,"storage":"memory"}"#;
        for node in &self.nodes {
            until("streams of three replicas", async || {
                let made = node.request("$JS.API.STREAM.CREATE.ready", stream).await;
                made.is_some_and(|answer| answer.contains("\"config\""))
            })
            .await;
        }
        until("the stream is removed", async || {
            let gone = self.nodes[0].request("$JS.API.STREAM.DELETE.ready", "").await;
            gone.is_some_and(|answer| answer.contains("\"success\":true") || answer.contains("404"))
        })
        .await;
    }
}

/// None if one of the ports, on which the nodes hear each other, is taken.
async fn start(ports: &[u16], durable: bool) -> Option<Vec<NatsServer>> {
    let routes: Vec<_> = ports.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
    let routes = routes.join(", ");
    let mut nodes = Vec::new();
    for (number, port) in ports.iter().enumerate() {
        let name = format!("server_name: {}", name_of(number));
        // Clients keep to the addresses that they were given: one of them may be a wire.
        let cluster = format!(
            "cluster {{ name: retrysafe, listen: \"127.0.0.1:{port}\", \
             routes: [{routes}], no_advertise: true }}"
        );
        let mut node = Server::prepared(Nats::new(&[&name, &cluster], durable)).await;
        match node.try_start(free_port()).await {
            Ok(()) => nodes.push(node),
            Err(NotStarted::PortTaken) => return None,
            Err(NotStarted::Failed(why)) => panic!("{why}"),
        }
    }
    Some(nodes)
}

fn name_of(number: usize) -> String {
    format!("node-{number}")
}
