//! Redis: six nodes, three primaries with a replica each.

use tokio::sync::OnceCell;

use super::{
    process::until,
    redis::{Redis, RedisServer},
    server::{Engine as _, Server},
};

/// A Redis cluster of three primaries, each with a replica.
///
/// ```no_run
/// use retrysafe_testkit::servers::RedisCluster;
///
/// # async fn test() {
/// let mut cluster = RedisCluster::start().await;
/// let killed = cluster.fail_over("key").await; // its replica serves the key now
/// cluster.nodes[killed].restart().await; // and comes back as a replica
/// # }
/// ```
#[derive(Debug)]
pub struct RedisCluster {
    /// The nodes, in no order that lasts.
    pub nodes: Vec<RedisServer>,
}

/// All of them.
const SLOTS: usize = 16384;
const PRIMARIES: usize = 3;

impl RedisCluster {
    /// Starts a cluster that holds a node for dead after three seconds of silence; returns when
    /// every slot is served and every replica has its copy.
    ///
    /// # Panics
    ///
    /// As [`RedisServer::start`].
    pub async fn start() -> Self {
        Self::launch("3000", true).await
    }

    /// The cluster that all tests of this process share. It does not flush to disk, and is patient
    /// with nodes that get no processor.
    ///
    /// # Panics
    ///
    /// As [`RedisServer::start`].
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<RedisCluster> = OnceCell::const_new();
        SHARED.get_or_init(|| Self::launch("30000", false)).await
    }

    /// `redis-cluster://` and the addresses of all nodes.
    pub fn url(&self) -> String {
        let nodes: Vec<_> = self.nodes.iter().map(|node| node.addr().to_string()).collect();
        format!("redis-cluster://{}", nodes.join(","))
    }

    /// The URL of each node.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Server::url).collect()
    }

    /// Which node serves a key, as the living ones see it.
    ///
    /// # Panics
    ///
    /// If none does.
    pub async fn primary_of(&self, key: &str) -> usize {
        let asked = &self.nodes[self.living().await[0]];
        let slot = asked.command(&["CLUSTER", "KEYSLOT", key]).await;
        let slot = slot.parse().expect("a slot");
        let view = asked.command(&["CLUSTER", "NODES"]).await;
        let mut nodes = view.lines().filter_map(Node::read);
        let node = nodes.find(|it| !it.has("fail") && it.serves(slot)).expect("a primary");
        self.at(node.port)
    }

    /// Kills the node that serves a key and waits until its replica has taken over, in the eyes of
    /// every living node. Says which was killed.
    ///
    /// # Panics
    ///
    /// If the replica doesn't take over: when there is none any more, say.
    pub async fn fail_over(&mut self, key: &str) -> usize {
        let killed = self.primary_of(key).await;
        self.nodes[killed].kill().await;
        let living = self.living().await;
        let port = self.nodes[killed].addr().port();
        until("a replica takes over", async || {
            for &it in &living {
                let view = self.nodes[it].command(&["CLUSTER", "NODES"]).await;
                if view.lines().filter_map(Node::read).any(|it| it.port == port && it.serves_any())
                {
                    return false;
                }
            }
            self.is_ok(&living).await
        })
        .await;
        killed
    }

    async fn launch(node_timeout: &str, durable: bool) -> Self {
        let settings = ["--cluster-enabled", "yes", "--cluster-node-timeout", node_timeout];
        let mut nodes: Vec<RedisServer> = Vec::new();
        while nodes.len() < 2 * PRIMARIES {
            nodes.push(Server::launch(Redis::new(&settings, durable)).await);
        }
        let cluster = Self { nodes };
        cluster.join().await;
        cluster
    }

    /// Makes a cluster of the nodes.
    async fn join(&self) {
        let (primaries, replicas) = self.nodes.split_at(PRIMARIES);
        for (number, node) in primaries.iter().enumerate() {
            let first = (SLOTS * number / PRIMARIES).to_string();
            let last = (SLOTS * (number + 1) / PRIMARIES - 1).to_string();
            node.command(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]).await;
        }
        for (number, node) in self.nodes.iter().enumerate() {
            let epoch = (number + 1).to_string();
            node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]).await;
        }
        for node in &self.nodes[1..] {
            let port = node.addr().port().to_string();
            self.nodes[0].command(&["CLUSTER", "MEET", "127.0.0.1", &port]).await;
        }
        let everybody: Vec<_> = (0..self.nodes.len()).collect();
        until("the nodes know each other", async || {
            self.each_sees(|nodes| nodes.iter().filter(|it| it.is_known()).count()).await
        })
        .await;
        for (replica, primary) in replicas.iter().zip(primaries) {
            let primary = primary.command(&["CLUSTER", "MYID"]).await;
            replica.command(&["CLUSTER", "REPLICATE", &primary]).await;
        }
        for replica in replicas {
            replica.hears_its_primary().await;
        }
        until("every slot is served", async || {
            let replicas = |nodes: &[Node]| 2 * nodes.iter().filter(|it| it.has("slave")).count();
            self.each_sees(replicas).await && self.is_ok(&everybody).await
        })
        .await;
    }

    /// Whether this comes to the number of nodes in the eyes of each.
    async fn each_sees(&self, count: impl Fn(&[Node]) -> usize) -> bool {
        for node in &self.nodes {
            let view = node.command(&["CLUSTER", "NODES"]).await;
            let nodes: Vec<_> = view.lines().filter_map(Node::read).collect();
            if count(&nodes) != self.nodes.len() {
                return false;
            }
        }
        true
    }

    async fn is_ok(&self, nodes: &[usize]) -> bool {
        for &it in nodes {
            let info = self.nodes[it].command(&["CLUSTER", "INFO"]).await;
            if !info.contains("cluster_state:ok") {
                return false;
            }
        }
        true
    }

    /// Those that run, told by their port.
    async fn living(&self) -> Vec<usize> {
        let mut living = Vec::new();
        for (number, node) in self.nodes.iter().enumerate() {
            if tokio::net::TcpStream::connect(node.addr()).await.is_ok() {
                living.push(number);
            }
        }
        living
    }

    fn at(&self, port: u16) -> usize {
        let mut nodes = self.nodes.iter();
        nodes.position(|it| it.addr().port() == port).expect("a node of this cluster")
    }
}

/// A line of CLUSTER NODES.
struct Node {
    port: u16,
    flags: Vec<String>,
    /// First and last, inclusive.
    slots: Vec<(usize, usize)>,
}

impl Node {
    /// `id ip:port@bus,name flags primary ping pong epoch link slot-slot ...`
    fn read(line: &str) -> Option<Self> {
        let words: Vec<_> = line.split_whitespace().collect();
        let (_, port) = words.get(1)?.split_once('@')?.0.rsplit_once(':')?;
        let flags = words.get(2)?.split(',').map(str::to_owned).collect();
        let slots = words.get(8..)?.iter().filter_map(|slots| {
            let (first, last) = slots.split_once('-').unwrap_or((slots, slots));
            Some((first.parse().ok()?, last.parse().ok()?))
        });
        Some(Self { port: port.parse().ok()?, flags, slots: slots.collect() })
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|it| it == flag)
    }

    fn is_known(&self) -> bool {
        !self.has("handshake") && !self.has("noaddr")
    }

    fn serves(&self, slot: usize) -> bool {
        self.slots.iter().any(|&(first, last)| (first..=last).contains(&slot))
    }

    fn serves_any(&self) -> bool {
        !self.slots.is_empty()
    }
}
