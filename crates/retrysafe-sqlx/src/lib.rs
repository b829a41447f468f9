//! Keeps the records of retrysafe in PostgreSQL, MySQL or MariaDB: for services that outgrow one
//! machine.
//!
//! No driver comes with the crate by itself. Ask for the feature `postgres` or `mysql`; your lock file
//! then holds that one alone.
//!
//! ```no_run
//! # #[cfg(feature = "postgres")]
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use retrysafe_core::SharedStore;
//! use retrysafe_sqlx::PostgresStore;
//!
//! let url = "postgres://orders:secret@db.internal/orders";
//! let store = PostgresStore::builder(url).migrate().open().await?;
//! let store = SharedStore::new(store); // what a layer takes
//! # Ok(())
//! # }
//! ```
//!
//! Where the service's own data is in such a database, too, [`TransactionalPostgres`] and
//! [`TransactionalMySql`] commit the record with the work: it happens once, or not at all.
//!
//! [`PostgresStore`] with a synchronous standby is the recommended way out of one machine. What
//! follows is about it; [`MySqlStore`] says of itself what differs.
//!
//! # What survives what
//!
//! | | the service dies | the server crashes | the primary is lost | power is lost |
//! |---|---|---|---|---|
//! | `synchronous_commit = on` and a synchronous standby, promoted | kept | kept | kept | kept |
//! | no synchronous standby | kept | kept | the last moments may be gone | kept |
//! | `synchronous_commit = off` | kept | the last moments may be gone | may be gone | may be gone |
//! | `fsync = off` | kept | kept | may be gone | everything may be gone |
//!
//! *Gone* means that an operation may run again. When the store opens it says in the log which of
//! these settings it has found. Three things are not for a store to see:
//!
//! - Promote the synchronous standby and no other, and make sure that the old primary is off before:
//!   two primaries run operations twice.
//! - While its standby is away a primary acknowledges nothing, and the store answers with time-outs.
//!   That is what the standby is for. Two standbys and `ANY 1 (a, b)` keep one of them optional.
//! - Don't cancel or terminate sessions that wait for the standby (`SyncRep` in `pg_stat_activity`):
//!   PostgreSQL then reports a success that a failover can undo.
//!
//! # How it works
//!
//! The table has one row for each operation, and every verb is one statement and one transaction. A
//! claim reads the row, inserts one if there is none, and says which it was. Replays, and claims
//! that find another attempt in flight, lock no row and write nothing. The rare second statement
//! (the claim of a released key, a take-over) is a compare-and-set on the row that the first one saw.
//! Time is the server's `clock_timestamp()`, so the clocks of your hosts don't matter.
//!
//! Waiting for an operation that another process runs is a poll (every 100 ms with jitter), during
//! which no connection is held; within the process it is a wake-up. `NOTIFY` would be shorter and is
//! not used: it takes a lock for which all completions of the database queue.
//!
//! A server that is down is [`Unreachable`](retrysafe_core::StoreErrorKind::Unreachable) at once. One
//! that hangs is a [`Timeout`](retrysafe_core::StoreErrorKind::Timeout), and gets no more than
//! [`max_connections`](PostgresStoreBuilder::max_connections) sessions from a process while it does.
//! The store goes on by itself when the server is back.
//!
//! # The server
//!
//! - PostgreSQL 12 or later, the primary itself. A standby is refused; nothing is ever read from one.
//! - Rights: `SELECT`, `INSERT`, `UPDATE` and `DELETE` on the table, and `CREATE` on its schema where
//!   the store is to create it.
//! - PgBouncer in session mode. In transaction mode what the store sets for its session would end up
//!   in other sessions.
//! - Vacuum is yours. A busy table does well with `autovacuum_vacuum_scale_factor = 0.01`. A
//!   transaction that stays open for hours, anywhere in the database, keeps it from working.
//! - Don't partition the table by expiry, as the id would no longer be unique; by hash of the id works.
//!
//! # More than one primary
//!
//! Operations need no transaction in common, so several primaries, each with its standby, serve as
//! one store: see [`Primaries`]. A primary that is lost is never replaced by another one; its keys
//! are refused until it is back.

#[cfg(any(feature = "mysql", feature = "postgres"))]
mod error;
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod pause;
mod rendezvous;
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod table;
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod transactional;
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod watch;

#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;

#[cfg(any(feature = "mysql", feature = "postgres"))]
pub use self::error::{OpenError, OpenErrorKind};
#[cfg(feature = "mysql")]
pub use self::mysql::{
    MySqlStore, MySqlStoreBuilder, MySqlTransaction, TransactionalMySql, TransactionalMySqlBuilder,
};
#[cfg(feature = "postgres")]
pub use self::postgres::{
    PostgresStore, PostgresStoreBuilder, PostgresTransaction, TransactionalPostgres,
    TransactionalPostgresBuilder,
};
pub use self::rendezvous::{Host, Primaries, PrimariesBuilder, Role, hosts};
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub use self::transactional::{Isolation, SharedTransaction, TransactionalBuilder, is_conflict};
