//! The whole contract, on handles that each have connections of their own. Time is the server's, and
//! nobody can set its clock, so what is kept is moved into the past instead.

use std::time::Duration;

use retrysafe_core::OperationId;
use retrysafe_sqlx::MySqlStore;
use retrysafe_testkit::Fixture;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{Table, literal};

pub(crate) struct Database {
    pub(crate) table: Table,
    rounds: usize,
    /// No more rules at once however many processors there are: each takes up to twenty connections.
    _turn: SemaphorePermit<'static>,
}

impl Database {
    pub(crate) async fn new() -> Self {
        Self::of(Table::new().await, 50).await
    }

    pub(crate) async fn of(table: Table, rounds: usize) -> Self {
        static TURNS: Semaphore = Semaphore::const_new(4);
        Self { table, rounds, _turn: TURNS.acquire().await.unwrap() }
    }
}

impl Fixture for Database {
    type Store = MySqlStore;

    async fn handle(&self) -> MySqlStore {
        self.table.open().await
    }

    async fn pass(&self, time: Duration) {
        let pass = format!(
            "UPDATE {{table}} SET lease_until = lease_until - INTERVAL {time} MICROSECOND,
                expires_at = expires_at - INTERVAL {time} MICROSECOND",
            time = time.as_micros()
        );
        self.table.run(&pass).await;
    }

    /// Longer than a busy machine stands still: the clock goes on meanwhile.
    fn tick(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn rounds(&self) -> usize {
        self.rounds
    }

    /// The database has no limit of its own, but for the disk; `open` has its test.
    async fn small(&self, _records: usize) -> Option<MySqlStore> {
        None
    }

    async fn spoil(&self, id: &OperationId) -> bool {
        let spoil = format!("UPDATE {{table}} SET layout = 2 WHERE id = {}", literal(id));
        self.table.run(&spoil).await;
        let spoilt = format!("SELECT 1 FROM {{table}} WHERE layout = 2 AND id = {}", literal(id));
        assert_eq!(self.table.run(&spoilt).await.len(), 1);
        true
    }
}

retrysafe_testkit::contract_tests!(crate::contract::Database::new().await);
