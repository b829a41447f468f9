//! Which server has a record: the only one, or the primary of its slot in a cluster.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use redis::{ConnectionAddr, ConnectionInfo, ServerErrorKind, Value};
use tokio::time::{Instant, sleep};

use crate::{
    connect::OnPush,
    error::{Failure, OpenError, OpenErrorKind},
    node::{How, Node, Reply, Request},
    settings::{Settings, Target},
    slot::{SLOTS, slot_of},
};

/// How long to wait before a cluster that says *try again* is asked again.
const PAUSE: Duration = Duration::from_millis(20);

/// How often a request is sent on without waiting in between.
const AT_ONCE: u32 = 3;

/// A layout that was asked for so lately is not asked for again: while a node is down, every call for
/// its slots would.
const LATELY: Duration = Duration::from_millis(100);

pub(crate) enum Servers {
    Single(Arc<Node>),
    Cluster(Cluster),
}

impl Servers {
    pub(crate) async fn open(
        target: &Target,
        settings: &Arc<Settings>,
        on_push: OnPush,
    ) -> Result<Self, OpenError> {
        match target {
            Target::Single(info) => {
                let node = Node::new(info, false, settings, on_push)?;
                node.server().await?;
                Ok(Self::Single(Arc::new(node)))
            }
            Target::Cluster(seeds) => {
                let cluster = Cluster::open(seeds, settings, on_push).await?;
                for node in cluster.map().primaries() {
                    node.server().await?;
                }
                Ok(Self::Cluster(cluster))
            }
        }
    }

    /// Sends a request to the server that has the key. It is sent again only when it is certain that
    /// it did nothing: to the server that a cluster names instead.
    pub(crate) async fn send(
        &self,
        key: &str,
        request: Request<'_>,
        how: How,
    ) -> Result<Reply, Failure> {
        match self {
            Self::Single(node) => node.send(request, how).await,
            // Boxed: a single server's requests need no room for it.
            Self::Cluster(cluster) => {
                Box::pin(cluster.send(slot_of(key.as_bytes()), request, how)).await
            }
        }
    }

    /// Every primary, as the cluster says it now.
    pub(crate) async fn primaries(&self) -> Result<Vec<Arc<Node>>, OpenError> {
        match self {
            Self::Single(node) => Ok(vec![Arc::clone(node)]),
            Self::Cluster(cluster) => Ok(cluster.refresh(&cluster.map(), None).await?.primaries()),
        }
    }
}

/// The primaries of a cluster. Kept by us and not by the driver, whose cluster connection repeats
/// requests by itself and does not say whether one that failed may have been done.
pub(crate) struct Cluster {
    seeds: Vec<ConnectionInfo>,
    settings: Arc<Settings>,
    on_push: OnPush,
    map: Mutex<Arc<Map>>,
    /// When the layout was last asked for; held while it is.
    refreshed: tokio::sync::Mutex<Option<Instant>>,
    nodes: Mutex<HashMap<String, Arc<Node>>>,
}

/// Which primary serves which slots. Replaced as a whole.
#[derive(Default)]
pub(crate) struct Map {
    /// Sorted by their last slot.
    ranges: Vec<Range>,
}

struct Range {
    first: u16,
    last: u16,
    node: Arc<Node>,
}

impl Map {
    fn node(&self, slot: u16) -> Result<Arc<Node>, OpenError> {
        let at = self.ranges.partition_point(|range| range.last < slot);
        match self.ranges.get(at) {
            Some(range) if range.first <= slot => Ok(Arc::clone(&range.node)),
            _ => Err(OpenError::new(
                "the cluster",
                OpenErrorKind::Unreachable,
                format!("no primary serves slot {slot}"),
            )),
        }
    }

    fn primaries(&self) -> Vec<Arc<Node>> {
        let mut nodes: Vec<Arc<Node>> = Vec::new();
        for range in &self.ranges {
            if !nodes.iter().any(|node| Arc::ptr_eq(node, &range.node)) {
                nodes.push(Arc::clone(&range.node));
            }
        }
        nodes
    }
}

impl Cluster {
    async fn open(
        seeds: &[ConnectionInfo],
        settings: &Arc<Settings>,
        on_push: OnPush,
    ) -> Result<Self, OpenError> {
        let cluster = Self {
            seeds: seeds.to_vec(),
            settings: Arc::clone(settings),
            on_push,
            map: Mutex::default(),
            refreshed: tokio::sync::Mutex::default(),
            nodes: Mutex::default(),
        };
        cluster.refresh(&cluster.map(), None).await?;
        Ok(cluster)
    }

    fn map(&self) -> Arc<Map> {
        Arc::clone(&self.map.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn send(&self, slot: u16, request: Request<'_>, how: How) -> Result<Reply, Failure> {
        let patience = self.settings.connecting() + self.settings.answering();
        let deadline = Instant::now() + patience;
        let mut map = self.map();
        let mut redirected: Option<(Arc<Node>, bool)> = None;
        let mut redirections = 0;
        loop {
            let (node, asking) = match redirected.take() {
                Some(to) => to,
                None => match map.node(slot) {
                    Ok(node) => (node, false),
                    Err(_) => {
                        // Perhaps somebody does by now.
                        map = self.refresh(&map, None).await.map_err(Failure::NotSent)?;
                        (map.node(slot).map_err(Failure::NotSent)?, false)
                    }
                },
            };
            let failure = match node.send(request, How { asking, ..how }).await {
                Ok(reply) => return Ok(reply),
                Err(failure) => failure,
            };
            // From here on: only what certainly did nothing is sent again.
            let again = Instant::now() < deadline;
            let kind = match &failure {
                Failure::NotSent(_) => None,
                Failure::Sent { error, .. } => match error.kind() {
                    redis::ErrorKind::Server(kind) => Some((kind, error)),
                    _ => return Err(failure),
                },
                Failure::Unconfirmed { .. } => return Err(failure),
            };
            // Even if there is no time left to try again, the next call is to know better.
            match kind {
                // Perhaps another node has taken its place.
                None | Some((ServerErrorKind::ClusterDown | ServerErrorKind::ReadOnly, _)) => {
                    match self.refresh(&map, Some(&node)).await {
                        Ok(refreshed) => map = refreshed,
                        Err(_) => return Err(failure),
                    }
                    if !again || !map.node(slot).is_ok_and(|now| !Arc::ptr_eq(&now, &node)) {
                        return Err(failure);
                    }
                }
                Some((kind @ (ServerErrorKind::Moved | ServerErrorKind::Ask), error)) => {
                    let to = error.redirect_node().and_then(|(to, _)| to.rsplit_once(':'));
                    let Some((host, Ok(port))) = to.map(|(host, port)| (host, port.parse())) else {
                        return Err(failure);
                    };
                    // An empty host is that of the node that answered.
                    let host = if host.is_empty() { node.host() } else { host };
                    let to = self.node(host, port).map_err(Failure::NotSent)?;
                    redirected = Some((to, kind == ServerErrorKind::Ask));
                    redirections += 1;
                    if redirections > AT_ONCE {
                        // Nodes that send us to and fro do not agree yet.
                        sleep(PAUSE).await;
                    }
                    if kind == ServerErrorKind::Moved
                        && let Ok(refreshed) = self.refresh(&map, Some(&node)).await
                    {
                        map = refreshed;
                    }
                    if !again {
                        return Err(failure);
                    }
                }
                Some((ServerErrorKind::TryAgain, _)) if again => sleep(PAUSE).await,
                Some(_) => return Err(failure),
            }
        }
    }

    /// Asks the cluster for its layout, unless somebody has since `stale` was looked up. A node that
    /// is in doubt is asked last: it may be cut off from the others and know only what was.
    async fn refresh(
        &self,
        stale: &Arc<Map>,
        doubted: Option<&Arc<Node>>,
    ) -> Result<Arc<Map>, OpenError> {
        let mut refreshed = self.refreshed.lock().await;
        let current = self.map();
        let just_now = refreshed.is_some_and(|at| at.elapsed() < LATELY);
        if just_now || !Arc::ptr_eq(&current, stale) {
            return Ok(current);
        }
        let mut failed = None;
        let mut asked: Vec<Arc<Node>> = current.primaries();
        for seed in &self.seeds {
            asked.push(self.node_at(seed.addr().clone())?);
        }
        asked.sort_by_key(|node| doubted.is_some_and(|doubted| Arc::ptr_eq(doubted, node)));
        for node in asked {
            match self.layout(&node).await {
                Ok(map) => {
                    *refreshed = Some(Instant::now());
                    let map = Arc::new(map);
                    *self.map.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&map);
                    self.forget_all_but(&map);
                    return Ok(map);
                }
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| {
            OpenError::new("the cluster", OpenErrorKind::Setting, "it has no node to begin with")
        }))
    }

    /// What one node knows of the layout.
    async fn layout(&self, asked: &Node) -> Result<Map, OpenError> {
        let unknown = |problem: &str| {
            OpenError::new(&asked.address, OpenErrorKind::Unreachable, problem.to_owned())
        };
        let slots = asked.layout().await?;
        let Value::Array(rows) = slots else { return Err(unknown("its layout is no list")) };
        let mut ranges = Vec::with_capacity(rows.len());
        for row in rows {
            let range = self.range(row, asked.host()).map_err(|problem| unknown(&problem))?;
            ranges.push(range);
        }
        if ranges.is_empty() {
            return Err(unknown("it knows no primary; is it part of the cluster?"));
        }
        ranges.sort_unstable_by_key(|range| range.last);
        Ok(Map { ranges })
    }

    /// `[first, last, [host, port, ...], replicas...]`
    fn range(&self, row: Value, like: &str) -> Result<Range, String> {
        let bad = || "its layout can't be read".to_owned();
        let Value::Array(row) = row else { return Err(bad()) };
        let [Value::Int(first), Value::Int(last), Value::Array(primary), ..] = &row[..] else {
            return Err(bad());
        };
        let [host, Value::Int(port), ..] = &primary[..] else { return Err(bad()) };
        let host = match host {
            Value::BulkString(host) => std::str::from_utf8(host).map_err(|_| bad())?,
            Value::SimpleString(host) => host,
            // The node does not know its own address.
            Value::Nil => "",
            _ => return Err(bad()),
        };
        let host = if host.is_empty() || host == "?" { like } else { host };
        let slot = |slot: i64| u16::try_from(slot).ok().filter(|slot| *slot < SLOTS);
        Ok(Range {
            first: slot(*first).ok_or_else(bad)?,
            last: slot(*last).ok_or_else(bad)?,
            node: self
                .node(host, u16::try_from(*port).map_err(|_| bad())?)
                .map_err(|error| error.to_string())?,
        })
    }

    fn node(&self, host: &str, port: u16) -> Result<Arc<Node>, OpenError> {
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let addr = match self.seeds.first().map(ConnectionInfo::addr) {
            Some(ConnectionAddr::TcpTls { insecure, tls_params, .. }) => ConnectionAddr::TcpTls {
                host,
                port,
                insecure: *insecure,
                tls_params: tls_params.clone(),
            },
            _ => ConnectionAddr::Tcp(host, port),
        };
        self.node_at(addr)
    }

    fn node_at(&self, addr: ConnectionAddr) -> Result<Arc<Node>, OpenError> {
        let address = addr.to_string();
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = nodes.get(&address) {
            return Ok(Arc::clone(node));
        }
        let Some(seed) = self.seeds.first() else {
            let problem = "it has no node to begin with";
            return Err(OpenError::new("the cluster", OpenErrorKind::Setting, problem));
        };
        let info = seed.clone().set_addr(addr);
        let node = Node::new(&info, true, &self.settings, Arc::clone(&self.on_push))?;
        let node = Arc::new(node);
        nodes.insert(address, Arc::clone(&node));
        Ok(node)
    }

    /// Closes the connections to nodes that are no longer primaries, once nobody uses them.
    fn forget_all_but(&self, map: &Map) {
        let primaries = map.primaries();
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.retain(|_, node| primaries.iter().any(|primary| Arc::ptr_eq(primary, node)));
    }
}
