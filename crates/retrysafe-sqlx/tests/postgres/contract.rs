//! The whole contract: on handles that each have connections of their own, on a pool, and on a
//! server whose transactions are serializable unless told otherwise. Time is the server's, so instead
//! of the clock it is the records that are moved.

use std::time::Duration;

use retrysafe_core::OperationId;
use retrysafe_sqlx::PostgresStore;
use retrysafe_testkit::Fixture;
use sqlx::{Executor as _, postgres::PgPoolOptions};

use crate::Table;

pub(crate) struct Database {
    pub(crate) table: Table,
    pooled: bool,
}

impl Database {
    pub(crate) async fn own() -> Self {
        Self::with_own_connections(Table::new().await)
    }

    pub(crate) fn with_own_connections(table: Table) -> Self {
        Self { table, pooled: false }
    }

    /// A pool of the user's, whose transactions are serializable.
    pub(crate) async fn pooled() -> Self {
        Self { table: Table::new().await, pooled: true }
    }
}

impl Fixture for Database {
    type Store = PostgresStore;

    async fn handle(&self) -> PostgresStore {
        if !self.pooled {
            return self.table.open().await;
        }
        let pool = PgPoolOptions::new()
            .max_connections(12)
            .test_before_acquire(false)
            .after_connect(|connection, _| {
                Box::pin(async move {
                    let serializable = "SET default_transaction_isolation = 'serializable'";
                    connection.execute(serializable).await.map(drop)
                })
            })
            .connect(&self.table.url)
            .await
            .unwrap();
        let store = PostgresStore::from_pool(pool).table(&self.table.name);
        store.migrate().timeout(crate::PATIENCE).open().await.unwrap()
    }

    /// Every record grows older.
    async fn pass(&self, time: Duration) {
        let time = format!("interval '{} ms'", time.as_millis());
        let age =
            "UPDATE {table} SET expires_at = expires_at - TIME, lease_until = lease_until - TIME";
        self.table.run(&age.replace("TIME", &time)).await;
    }

    /// Long: records are made to age, and a slow machine must not age them as well.
    fn tick(&self) -> Duration {
        Duration::from_secs(10)
    }

    fn rounds(&self) -> usize {
        if self.pooled { 4 } else { 10 }
    }

    /// The database has no limit of its own, but for the disk.
    async fn small(&self, _records: usize) -> Option<PostgresStore> {
        None
    }

    async fn spoil(&self, id: &OperationId) -> bool {
        let digits: String = id.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let spoil = format!("UPDATE {{table}} SET layout = 2 WHERE id = '\\x{digits}' RETURNING 1");
        assert_eq!(self.table.run(&spoil).await.len(), 1);
        true
    }
}

mod own_connections {
    retrysafe_testkit::contract_tests!(crate::contract::Database::own().await);
}

mod pool_of_the_user {
    retrysafe_testkit::contract_tests!(crate::contract::Database::pooled().await);
}
