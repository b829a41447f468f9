//! The embedded durable store of retrysafe: an SQLite file, shared by every process of one machine.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path().join("retrysafe.db");
//! use retrysafe_core::{Inspect, SharedStore};
//! use retrysafe_sqlite::SqliteStore;
//!
//! let store = SqliteStore::open(&path)?;
//! assert_eq!(store.count().await?.finished, 0);
//! let store = SharedStore::new(store); // what a layer takes
//! # Ok(())
//! # }
//! ```
//!
//! # What survives what
//!
//! | | the process dies | the machine loses power |
//! |---|---|---|
//! | [`Synchronous::Full`] (default) | every acknowledged claim and outcome is kept | the same |
//! | [`Synchronous::Normal`] | every acknowledged claim and outcome is kept | the last moments may be gone: an operation may run again |
//!
//! A record that was acknowledged is in the write-ahead log (`-wal`, beside the file) before the
//! answer is given. Back the file up with SQLite's own means (`VACUUM INTO`, `.backup`); a plain copy
//! of the file alone misses what is still in the log. Never delete or replace the file, the log or
//! `-shm` while a process has them open: such a store refuses everything.
//!
//! # How it works
//!
//! One thread owns the connection that writes. Callers send it jobs; it takes turns. A turn is one
//! transaction (`BEGIN IMMEDIATE`): every job that is waiting, up to 256, then one `COMMIT`, then
//! all answers. There is no timer in it: a lone caller is committed at once, and callers that arrive
//! while the disk is busy share the next flush. A turn in which every job is a replay writes nothing
//! and flushes nothing. A second thread reads: it answers operators, and it looks for those who wait
//! in [`changed`](retrysafe_core::Store::changed), so that neither holds up a claim.
//!
//! Several processes take turns by SQLite's lock on the file. Each re-reads every record inside its
//! transaction, so there is nothing to go stale. Waiting for an operation that another process runs
//! is a poll (every 100 ms with jitter); within the process it is a wake-up after the commit.
//!
//! # Limits, and what they look like
//!
//! - **One machine.** SQLite's locks can't be trusted on network file systems: there an operation
//!   may run twice. The store says so in the log when it opens such a file (on Linux).
//! - **One clock.** Leases and retention are judged by the host's wall clock, which every process
//!   reads alike. A clock that is set forward ends leases early: a slow attempt may be taken over,
//!   and is fenced; one that is set back holds them longer.
//! - **A full disk** refuses new claims with [`Full`](retrysafe_core::StoreErrorKind::Full), and so
//!   does [`SqliteStoreBuilder::max_file_size`]. Nothing that is kept is dropped for it (ST8).
//! - **A record that this version can't read** is an error, never "absent", and no sweep removes it
//!   (ST10). The same goes for a file that a newer version has changed.
//! - The file does not shrink; the space of swept records is used again.
//!
//! A new file may be read by its user alone, because it holds responses. Create an empty file with
//! other rights beforehand if several users share it.
//!
//! # Among the service's own tables
//!
//! [`TransactionalSqlite`] keeps its records in the service's own file, and commits them with what the
//! handler writes there, through the same thread: exactly once.
//!
//! # Beside sqlx
//!
//! The requirement on rusqlite is a range, so that one lock file can hold this crate and sqlx 0.9
//! with its SQLite driver; both then link the same library. It should be 3.51.3 or later, which
//! bundles a fix for a lost commit; an older one is reported in the log at open.

mod builder;
mod error;
mod hold;
mod identity;
mod mount;
mod open;
mod records;
mod store;
mod table;
mod transactional;
mod watch;
mod worker;

pub use self::{
    builder::{SqliteStoreBuilder, Synchronous},
    error::{OpenError, OpenErrorKind},
    store::SqliteStore,
    transactional::{SqliteTransaction, TransactionalSqlite, TransactionalSqliteBuilder, Undone},
};

/// The guide's Rust code compiles.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/guides/exactly-once.md")]
struct Guide;
