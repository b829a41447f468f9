//! Several real processes on one stream.

use retrysafe_testkit::{processes::Reachable, servers::NatsServer};

use crate::contract::OfStream;

impl Reachable for OfStream {
    fn address(&self) -> String {
        format!("{} {}", self.url, self.stream)
    }

    async fn at(address: &str) -> Self {
        let (url, stream) = address.split_once(' ').unwrap();
        Self { url: url.to_owned(), stream: stream.to_owned(), replicas: 1, rounds: 1 }
    }
}

retrysafe_testkit::process_tests!(OfStream, OfStream::new(NatsServer::shared().await.url(), 1, 1));
