//! Several real processes on one table.

use retrysafe_testkit::processes::Reachable;

use crate::{Table, contract::Database};

impl Reachable for Database {
    fn address(&self) -> String {
        self.table.address()
    }

    async fn at(address: &str) -> Self {
        Self::of(Table::at_address(address), 1).await
    }
}

retrysafe_testkit::process_tests!(Database, Database::new().await);
