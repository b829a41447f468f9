//! The whole contract, on handles that each connect anew: on one server, and on a cluster.
//!
//! A record's times are its key's expiry and nothing else, so time passes here by taking it from
//! every key. `times` has what must happen in real time.

use std::time::Duration;

use retrysafe_core::OperationId;
use retrysafe_redis::RedisStore;
use retrysafe_testkit::{
    Fixture,
    servers::{RedisCluster, RedisServer},
};

use crate::{key, patient, prefix};

const PASS: &str = "
    for _, key in ipairs(redis.call('KEYS', ARGV[1] .. '*')) do
        local left = redis.call('PTTL', key)
        if left >= 0 then redis.call('PEXPIRE', key, left - tonumber(ARGV[2])) end
    end
    return 'OK'";

/// In a cluster, what is asked by name has to be there; what is found is.
const SPOIL: &str = "
    for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
        redis.call('SETRANGE', key, 0, 'z')
        return 1
    end
    return 0";

pub(crate) struct InRedis {
    pub(crate) url: String,
    pub(crate) nodes: Vec<&'static RedisServer>,
    pub(crate) prefix: String,
}

impl InRedis {
    pub(crate) async fn single() -> Self {
        let server = RedisServer::shared().await;
        Self { url: server.url(), nodes: vec![server], prefix: prefix() }
    }

    async fn cluster() -> Self {
        let cluster = RedisCluster::shared().await;
        let mut nodes = Vec::new();
        for node in &cluster.nodes {
            if node.command(&["ROLE"]).await.starts_with("master") {
                nodes.push(node);
            }
        }
        Self { url: cluster.url(), nodes, prefix: prefix() }
    }
}

impl Fixture for InRedis {
    type Store = RedisStore;

    async fn handle(&self) -> RedisStore {
        patient(&self.url).key_prefix(&self.prefix).open().await.unwrap()
    }

    async fn pass(&self, time: Duration) {
        for node in &self.nodes {
            let milliseconds = time.as_millis().to_string();
            node.command(&["EVAL", PASS, "0", &self.prefix, &milliseconds]).await;
        }
    }

    fn tick(&self) -> Duration {
        Duration::from_secs(8)
    }

    fn rounds(&self) -> usize {
        20
    }

    /// The server's limit is one of bytes; `full` has its tests.
    async fn small(&self, _records: usize) -> Option<RedisStore> {
        None
    }

    async fn spoil(&self, id: &OperationId) -> bool {
        let key = key(&self.prefix, id);
        for node in &self.nodes {
            if node.command(&["EVAL", SPOIL, "0", &key]).await == "1" {
                return true;
            }
        }
        panic!("the record is nowhere");
    }
}

mod single {
    retrysafe_testkit::contract_tests!(super::InRedis::single().await);
}

mod cluster {
    retrysafe_testkit::contract_tests!(super::InRedis::cluster().await);
}
