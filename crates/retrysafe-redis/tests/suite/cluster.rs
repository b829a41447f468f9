//! What only happens in a cluster: slots move, and nodes take over from each other.

use std::time::Duration;

use retrysafe_core::{Begin, Claim, Found, Held, Inspect as _, Store as _};
use retrysafe_redis::{Durability, RedisStore, RedisStoreBuilder};
use retrysafe_testkit::servers::{RedisCluster, RedisServer};
use tokio::time::timeout;

use crate::{LONG, SOON, acquire, claim, key, numbered, operation, patient, until_answered};

const PREFIX: &str = "retrysafe:";

/// What it acknowledges is on a replica; a test must not guess when.
fn replicated(cluster: &RedisCluster) -> RedisStoreBuilder {
    let durability = Durability::Replicas { count: 1, within: Duration::from_secs(60) };
    patient(cluster.url()).durability(durability)
}

async fn store(cluster: &RedisCluster) -> RedisStore {
    patient(cluster.url()).open().await.unwrap()
}

#[tokio::test]
async fn a_replica_takes_over_and_the_store_goes_on_without_a_restart() {
    let mut cluster = RedisCluster::start().await;
    let store = store(&cluster).await;
    let careful = replicated(&cluster).open().await.unwrap();
    let owned = claim(operation());
    let key = key(PREFIX, &owned.id);
    let lease = acquire(&careful, &owned).await;
    let finished = claim(operation());
    let finished_lease = acquire(&careful, &finished).await;
    let done = careful.complete(&finished_lease, &finished.fingerprint, "kept".into(), LONG).await;
    assert_eq!(done.unwrap(), Held::Applied);
    assert_eq!(store.renew(&lease, LONG).await.unwrap(), Held::Applied);

    cluster.fail_over(&key).await;
    assert_eq!(until_answered(|| store.renew(&lease, LONG)).await, Held::Applied);
    let begun = store.begin(&claim(finished.id)).await.unwrap();
    assert!(matches!(begun, Begin::Found(Found::Finished { payload, .. }) if payload == "kept"));
    // Every slot is served again, and counted over the primaries of now.
    for number in 0..50 {
        acquire(&store, &claim(numbered(number))).await;
    }
    assert_eq!(store.count().await.unwrap().in_flight, 51);
}

/// A primary that stands still keeps its connections and acknowledges what it is sent; another node
/// takes over all the same, and the store finds it.
#[tokio::test]
async fn a_primary_that_falls_silent_is_left_for_the_one_that_took_over() {
    let cluster = RedisCluster::start().await;
    // A node that stands still answers no new connection either.
    let store = patient(cluster.url()).connection_timeout(Duration::from_secs(1));
    let store = store.response_timeout(Duration::from_millis(300)).open().await.unwrap();
    let owned = claim(operation());
    let lease = acquire(&replicated(&cluster).open().await.unwrap(), &owned).await;
    let silent = cluster.primary_of(&key(PREFIX, &owned.id)).await;
    cluster.nodes[silent].pause();
    let held = until_answered(|| store.renew(&lease, LONG)).await;
    cluster.nodes[silent].resume();
    assert_eq!(held, Held::Applied);
    // It is back, as a replica, with what was sent to it while it stood still.
    let rival = claim(owned.id);
    let begun = until_answered(|| store.begin(&rival)).await;
    assert!(matches!(begun, Begin::Found(Found::InFlight { attempt: 1, .. })), "{begun:?}");
    assert_eq!(until_answered(|| store.renew(&lease, LONG)).await, Held::Applied);
}

/// Moves the slot of a key step by step, as a resharding does.
struct Move<'a> {
    cluster: &'a RedisCluster,
    slot: String,
    from: usize,
    to: usize,
}

impl<'a> Move<'a> {
    async fn begin(cluster: &'a RedisCluster, key: &str) -> Self {
        let from = cluster.primary_of(key).await;
        let mut to = from;
        for (at, node) in cluster.nodes.iter().enumerate() {
            if at != from && node.command(&["ROLE"]).await.starts_with("master") {
                to = at;
            }
        }
        let slot = cluster.nodes[from].command(&["CLUSTER", "KEYSLOT", key]).await;
        let moving = Self { cluster, slot, from, to };
        let (source, target) = (moving.id(from).await, moving.id(to).await);
        let setslot = ["CLUSTER", "SETSLOT", &moving.slot];
        moving.to().command(&[&setslot[..], &["IMPORTING", &source]].concat()).await;
        moving.from().command(&[&setslot[..], &["MIGRATING", &target]].concat()).await;
        moving
    }

    async fn carry(&self, key: &str) {
        let port = self.to().addr().port().to_string();
        let said = self.from().command(&["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]).await;
        assert_eq!(said, "OK");
    }

    async fn end(&self) {
        let target = self.id(self.to).await;
        for node in [self.to(), self.from()] {
            node.command(&["CLUSTER", "SETSLOT", &self.slot, "NODE", &target]).await;
        }
    }

    async fn id(&self, at: usize) -> String {
        self.cluster.nodes[at].command(&["CLUSTER", "MYID"]).await
    }

    fn from(&self) -> &RedisServer {
        &self.cluster.nodes[self.from]
    }

    fn to(&self) -> &RedisServer {
        &self.cluster.nodes[self.to]
    }
}

#[tokio::test]
async fn st1_a_key_whose_slot_moves_has_one_owner_throughout() {
    let cluster = RedisCluster::start().await;
    let store = store(&cluster).await;
    let owned = claim(operation());
    let key = key(PREFIX, &owned.id);
    let fresh = claim(owned.id);

    // Not there yet: the old node says ASK, and the claim is made on the new one.
    let moving = Move::begin(&cluster, &key).await;
    let lease = acquire(&store, &owned).await;
    for _ in 0..3 {
        let begun = store.begin(&fresh).await.unwrap();
        assert!(matches!(begun, Begin::Found(Found::InFlight { attempt: 1, .. })), "{begun:?}");
    }
    assert_eq!(store.renew(&lease, LONG).await.unwrap(), Held::Applied);
    moving.end().await;
    // The old node says MOVED, and the layout is asked for.
    let begun = store.begin(&fresh).await.unwrap();
    assert!(matches!(begun, Begin::Found(Found::InFlight { attempt: 1, .. })), "{begun:?}");

    // And on: now there is something to carry.
    let moving = Move::begin(&cluster, &key).await;
    assert_eq!(store.renew(&lease, LONG * 2).await.unwrap(), Held::Applied);
    moving.carry(&key).await;
    let begun = store.begin(&fresh).await.unwrap();
    assert!(matches!(begun, Begin::Found(Found::InFlight { attempt: 1, .. })), "{begun:?}");
    let done = store.complete(&lease, &owned.fingerprint, "done".into(), LONG).await.unwrap();
    assert_eq!(done, Held::Applied);
    moving.end().await;
    let begun = store.begin(&fresh).await.unwrap();
    assert!(matches!(begun, Begin::Found(Found::Finished { payload, .. }) if payload == "done"));
    let elsewhere = patient(cluster.url()).open().await.unwrap();
    let begun = elsewhere.begin(&Claim { take_over: true, ..claim(owned.id) }).await.unwrap();
    assert!(matches!(begun, Begin::Found(Found::Finished { .. })), "{begun:?}");
    assert_eq!(elsewhere.page(None, 10).await.unwrap().len(), 1);
}

/// Who waits on a node that no longer has the slot is told by the new one.
#[tokio::test]
async fn a_wait_follows_its_slot() {
    let cluster = RedisCluster::start().await;
    let waiter = patient(cluster.url()).poll_interval(LONG).open().await.unwrap();
    let other = store(&cluster).await;
    let owned = claim(operation());
    let key = key(PREFIX, &owned.id);
    let lease = acquire(&other, &owned).await;
    let waits = tokio::spawn({
        let (waiter, id) = (waiter.clone(), owned.id);
        async move { waiter.changed(&id, 1, LONG).await }
    });
    let told = async |at: usize| {
        let told = async {
            while cluster.nodes[at].command(&["PUBSUB", "SHARDCHANNELS"]).await != key {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, told).await.expect("a subscription");
    };
    let moving = Move::begin(&cluster, &key).await;
    told(moving.from).await;
    moving.carry(&key).await;
    moving.end().await;
    told(moving.to).await;
    assert_eq!(other.release(&lease, LONG).await.unwrap(), Held::Applied);
    timeout(SOON, waits).await.expect("woken").unwrap().unwrap();
}
