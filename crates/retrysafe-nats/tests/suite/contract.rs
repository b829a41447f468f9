//! The whole contract, on handles that each have a connection of their own.
//!
//! A record's times are in its message, counted from its writing, so time passes here by writing
//! every message anew with that much less. `expiry` has what must happen in real time.

use std::time::Duration;

use retrysafe_core::OperationId;
use retrysafe_nats::NatsStore;
use retrysafe_testkit::Fixture;

use crate::{patient, raw};

/// A stream of its own.
pub(crate) struct OfStream {
    pub(crate) url: String,
    pub(crate) stream: String,
    pub(crate) replicas: usize,
    pub(crate) rounds: usize,
}

impl OfStream {
    pub(crate) fn new(url: String, replicas: usize, rounds: usize) -> Self {
        Self { url, stream: crate::stream(), replicas, rounds }
    }
}

impl Fixture for OfStream {
    type Store = NatsStore;

    async fn handle(&self) -> NatsStore {
        let builder = patient(&self.url).stream(&self.stream).replicas(self.replicas);
        builder.open().await.unwrap()
    }

    async fn pass(&self, time: Duration) {
        let client = raw::connect(&self.url).await;
        raw::age(&client, &self.stream, time).await;
    }

    /// Longer than a busy machine stands still: the clock goes on meanwhile.
    fn tick(&self) -> Duration {
        Duration::from_secs(5)
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
        OfStream::new(NatsServer::shared().await.url(), 1, 10)
    }

    retrysafe_testkit::contract_tests!(fixture().await);
}

/// Handles are on any of the nodes, so most are not on the stream's leader.
mod three_replicas {
    use retrysafe_testkit::servers::NatsCluster;

    use super::OfStream;

    async fn fixture() -> OfStream {
        OfStream::new(NatsCluster::shared().await.url(), 3, 3)
    }

    retrysafe_testkit::contract_tests!(fixture().await);
}
