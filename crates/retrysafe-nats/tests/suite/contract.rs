//! The whole contract, in real time, on handles that each have a connection of their own.

use std::time::Duration;

use retrysafe_core::OperationId;
use retrysafe_nats::NatsStore;
use retrysafe_testkit::Fixture;

use crate::raw;

/// A stream of its own.
struct OfStream {
    url: String,
    stream: String,
    replicas: usize,
    rounds: usize,
}

impl OfStream {
    fn new(url: String, replicas: usize, rounds: usize) -> Self {
        Self { url, stream: crate::stream(), replicas, rounds }
    }
}

impl Fixture for OfStream {
    type Store = NatsStore;

    async fn handle(&self) -> NatsStore {
        let builder = NatsStore::builder(&self.url).stream(&self.stream).replicas(self.replicas);
        builder.timeout(Duration::from_secs(20)).open().await.unwrap()
    }

    async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// Long enough for the calls of a walk between two moments at which time passes.
    fn tick(&self) -> Duration {
        Duration::from_millis(1_500)
    }

    fn rounds(&self) -> usize {
        self.rounds
    }

    /// The stream's limit is one of bytes; `limits` has its tests.
    async fn small(&self, _records: usize) -> Option<NatsStore> {
        None
    }

    async fn spoil(&self, id: &OperationId) -> bool {
        let client = raw::connect(&self.url).await;
        raw::spoil(&client, &self.stream, id).await;
        true
    }
}

mod one_server {
    use retrysafe_testkit::servers::NatsServer;

    use super::OfStream;

    async fn fixture() -> OfStream {
        OfStream::new(NatsServer::shared().await.url(), 1, 3)
    }

    retrysafe_testkit::contract_tests!(fixture().await);
}

/// Handles are on any of the nodes, so most are not on the stream's leader.
mod three_replicas {
    use retrysafe_testkit::servers::NatsCluster;

    use super::OfStream;

    async fn fixture() -> OfStream {
        OfStream::new(NatsCluster::shared().await.url(), 3, 2)
    }

    retrysafe_testkit::contract_tests!(fixture().await);
}
