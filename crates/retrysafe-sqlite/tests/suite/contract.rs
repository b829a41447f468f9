//! The whole contract, on handles that each open the file anew, with a clock that stands still.

use std::{path::PathBuf, sync::Arc, time::Duration};

use retrysafe_core::OperationId;
use retrysafe_sqlite::SqliteStore;
use retrysafe_testkit::{Fixture, ManualClock};
use tempfile::TempDir;

pub(crate) struct File {
    pub(crate) path: PathBuf,
    /// Gone with this, but for another process.
    pub(crate) _directory: Option<TempDir>,
    pub(crate) clock: ManualClock,
}

impl File {
    pub(crate) fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("retrysafe.db");
        Self { path, _directory: Some(directory), clock: ManualClock::new() }
    }
}

impl Fixture for File {
    type Store = SqliteStore;

    async fn handle(&self) -> SqliteStore {
        SqliteStore::builder(&self.path).clock(Arc::new(self.clock.clone())).open().unwrap()
    }

    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }

    fn tick(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn rounds(&self) -> usize {
        20
    }

    /// The file's limit is one of bytes; `durability` has its tests.
    async fn small(&self, _records: usize) -> Option<SqliteStore> {
        None
    }

    async fn spoil(&self, id: &OperationId) -> bool {
        let connection = rusqlite::Connection::open(&self.path).unwrap();
        let spoiled = connection
            .execute("UPDATE record SET state = 99 WHERE id = ?1", [id.as_bytes().as_slice()])
            .unwrap();
        assert_eq!(spoiled, 1);
        true
    }
}

retrysafe_testkit::contract_tests!(crate::contract::File::new());
