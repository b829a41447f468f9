//! Several real processes on one server.

use retrysafe_testkit::processes::Reachable;

use crate::contract::InRedis;

impl Reachable for InRedis {
    fn address(&self) -> String {
        format!("{} {}", self.url, self.prefix)
    }

    async fn at(address: &str) -> Self {
        let (url, prefix) = address.split_once(' ').unwrap();
        Self { url: url.to_owned(), nodes: Vec::new(), prefix: prefix.to_owned() }
    }
}

retrysafe_testkit::process_tests!(InRedis, InRedis::single().await);
