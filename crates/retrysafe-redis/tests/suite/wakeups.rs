//! `changed`: who waits is told by the server, and asks again in case it was not.

use std::time::Duration;

use retrysafe_core::{Claim, Held, Store as _};
use retrysafe_redis::RedisStore;
use retrysafe_testkit::servers::{RedisCluster, RedisServer};
use tokio::{task::JoinHandle, time::timeout};

use crate::{LONG, SOON, acquire, claim, operation, patient, prefix};

/// A handle that never asks again by itself.
async fn deaf_but_for_wakeups(url: &str, prefix: &str) -> RedisStore {
    let store = patient(url).key_prefix(prefix).poll_interval(LONG);
    store.open().await.unwrap()
}

fn wait(store: &RedisStore, claim: &Claim, seen: u32) -> JoinHandle<()> {
    let (store, id) = (store.clone(), claim.id);
    tokio::spawn(async move { store.changed(&id, seen, LONG).await.unwrap() })
}

async fn woken(waits: JoinHandle<()>) {
    timeout(SOON, waits).await.expect("woken").unwrap();
}

async fn subscribed(server: &RedisServer, channels: usize) {
    let so_many = async {
        loop {
            let list = server.command(&["PUBSUB", "SHARDCHANNELS"]).await;
            if list.lines().count() == channels {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, so_many).await.expect("so many subscriptions");
}

#[tokio::test]
async fn whoever_waits_is_told_by_every_end() {
    let server = RedisServer::start().await;
    let prefix = prefix();
    let waiter = deaf_but_for_wakeups(&server.url(), &prefix).await;
    let other = patient(server.url()).key_prefix(&prefix).open().await.unwrap();
    for end in 0..4 {
        let owned = claim(operation());
        let lease = acquire(&other, &owned).await;
        let waits = wait(&waiter, &owned, 1);
        subscribed(&server, 1).await;
        let held = match end {
            0 => other.complete(&lease, &owned.fingerprint, "done".into(), LONG).await,
            1 => other.release(&lease, LONG).await,
            2 => other.renew(&lease, Duration::ZERO).await,
            _ => waiter.release(&lease, LONG).await,
        };
        assert_eq!(held.unwrap(), Held::Applied);
        woken(waits).await;
        subscribed(&server, 0).await;
    }
}

/// ST11: a wait that is dropped leaves no subscription.
#[tokio::test]
async fn a_dropped_wait_is_no_longer_told() {
    let server = RedisServer::start().await;
    let store = deaf_but_for_wakeups(&server.url(), &prefix()).await;
    let owned = claim(operation());
    acquire(&store, &owned).await;
    let waits = [wait(&store, &owned, 1), wait(&store, &owned, 1)];
    subscribed(&server, 1).await;
    for waits in waits {
        waits.abort();
    }
    subscribed(&server, 0).await;
}

#[tokio::test]
async fn a_lost_wakeup_connection_is_made_again() {
    let server = RedisServer::start().await;
    let prefix = prefix();
    let waiter = deaf_but_for_wakeups(&server.url(), &prefix).await;
    let other = patient(server.url()).key_prefix(&prefix).open().await.unwrap();
    let owned = claim(operation());
    let lease = acquire(&other, &owned).await;
    let waits = wait(&waiter, &owned, 1);
    for _ in 0..3 {
        subscribed(&server, 1).await;
        let killed = server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        assert_eq!(killed, "1");
    }
    subscribed(&server, 1).await;
    assert_eq!(other.release(&lease, LONG).await.unwrap(), Held::Applied);
    woken(waits).await;
}

/// A user who may not publish: nobody is told, and what was done is done.
#[tokio::test]
async fn without_the_right_to_publish_everybody_asks_again() {
    let server = RedisServer::start().await;
    let rights = ["ACL", "SETUSER", "quiet", "on", ">secret", "~*", "+@all", "resetchannels"];
    server.command(&rights).await;
    let url = server.url().replace("redis://", "redis://quiet:secret@");
    let poll = Duration::from_millis(50);
    let store = patient(url).poll_interval(poll).open().await.unwrap();
    let other = store.clone();
    let owned = claim(operation());
    let lease = acquire(&other, &owned).await;
    let waiter = patient(server.url()).poll_interval(poll).open().await.unwrap();
    let waits = wait(&waiter, &owned, 1);
    let done = store.complete(&lease, &owned.fingerprint, "done".into(), LONG).await;
    assert_eq!(done.unwrap(), Held::Applied);
    woken(waits).await;
}

#[tokio::test]
async fn in_a_cluster_every_node_tells_of_its_own() {
    let cluster = RedisCluster::shared().await;
    let prefix = prefix();
    let waiter = deaf_but_for_wakeups(&cluster.url(), &prefix).await;
    let other = patient(cluster.url()).key_prefix(&prefix).open().await.unwrap();
    // Enough of them to have some on every node.
    let mut waits = Vec::new();
    for _ in 0..24 {
        let owned = claim(operation());
        waits.push((acquire(&other, &owned).await, wait(&waiter, &owned, 1)));
    }
    for (lease, waits) in waits {
        assert_eq!(other.release(&lease, LONG).await.unwrap(), Held::Applied);
        woken(waits).await;
    }
}
