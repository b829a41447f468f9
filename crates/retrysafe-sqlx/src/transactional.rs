//! What the transactional stores of both engines share. A [`Side`] knows one engine's statements; a
//! [`Core`] knows what to do with them.

mod builder;
mod core;
mod end;
mod flights;
mod points;
mod transaction;

use std::{future::Future, time::Duration};

use bytes::Bytes;
use retrysafe_core::{
    Abandoned, Acquired, Claim, Fingerprint, Found, Held, Lease, OperationId, Store, StoreError,
};
use sqlx::{Database, SqlStr, Transaction, pool::PoolConnection};
use tokio::time::Instant;

pub(crate) use self::{builder::Engine, core::Core, flights::in_flight_elsewhere};
pub use self::{builder::TransactionalBuilder, transaction::SharedTransaction};

/// The isolation level of the transactions that a store opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isolation {
    /// Each statement sees what is committed when it begins.
    ReadCommitted,
    /// All statements see what was committed when the transaction began.
    RepeatableRead,
    /// As if transactions ran one after another.
    Serializable,
}

impl Isolation {
    /// As SQL names it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::ReadCommitted => "READ COMMITTED",
            Self::RepeatableRead => "REPEATABLE READ",
            Self::Serializable => "SERIALIZABLE",
        }
    }
}

/// Whether the server undid the transaction because of what others did at that moment (a
/// serialization failure, a deadlock), so that the same request may well succeed when it is sent
/// again. A handler answers such an error with a 5xx: the key is free then, and the retry runs.
///
/// ```
/// # fn status(error: &sqlx::Error) -> u16 {
/// if retrysafe_sqlx::is_conflict(error) { 503 } else { 500 }
/// # }
/// ```
pub fn is_conflict(error: &sqlx::Error) -> bool {
    let Some(error) = error.as_database_error() else { return false };
    // A row that has changed under a snapshot has no SQLSTATE of its own in MariaDB.
    #[cfg(feature = "mysql")]
    if let Some(error) = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>()
        && error.number() == 1020
    {
        return true;
    }
    // MySQL says 40001 for a deadlock, too.
    matches!(error.code().as_deref(), Some("40001" | "40P01"))
}

/// One engine: how its transactions are opened, and what is written in them.
pub(crate) trait Side: Send + Sync + 'static {
    type Database: Database;
    /// The same table by ordinary verbs, for whatever is not part of a transaction.
    type Records: Store;
    /// What a look at a record leaves for the claim.
    type Seen: Send;

    fn records(&self) -> &Self::Records;

    /// The server, as messages name it.
    fn place(&self) -> String;

    fn check_size(&self, payload: &Bytes) -> Result<(), StoreError>;

    /// Looks at a record without a transaction: a replay takes none.
    fn look(
        &self,
        claim: &Claim,
        until: Instant,
    ) -> impl Future<Output = Result<Looked<Self::Seen>, StoreError>> + Send;

    /// Opens a transaction that claims as its first statement. Without a `bound` it hardly waits for
    /// another transaction that holds the row.
    fn claim(
        &self,
        claim: &Claim,
        seen: Self::Seen,
        bound: Option<Duration>,
        until: Instant,
    ) -> impl Future<Output = Result<Opened<Self::Database>, StoreError>> + Send;

    /// Writes the outcome; `false` if the transaction is not the one that claimed. After an error
    /// nothing of it can be committed.
    fn write(
        &self,
        transaction: &mut Transaction<'static, Self::Database>,
        lease: &Lease,
        outcome: &Outcome<'_>,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Rolls a transaction back, and says whether the handler had ended it before.
    fn roll_back(
        &self,
        transaction: Transaction<'static, Self::Database>,
        lease: &Lease,
        until: Instant,
    ) -> impl Future<Output = bool> + Send;

    /// What it means that a commit failed; `None` if nobody can tell.
    fn not_committed(&self, error: sqlx::Error) -> Option<StoreError>;

    /// Opens another transaction for an attempt whose claim is committed, which makes sure that it is
    /// the live one and extends its lease; `None` if it is not.
    fn reopen(
        &self,
        lease: &Lease,
        lease_for: Duration,
        until: Instant,
    ) -> impl Future<Output = Result<Option<Transaction<'static, Self::Database>>, StoreError>> + Send;

    /// Writes what phases have come to, if that is new; `false` if the transaction is not the one
    /// that claimed or was reopened.
    fn keep(
        &self,
        transaction: &mut Transaction<'static, Self::Database>,
        lease: &Lease,
        lease_for: Duration,
        points: Option<&Bytes>,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// What phases have come to before.
    fn kept(
        &self,
        transaction: &mut Transaction<'static, Self::Database>,
        lease: &Lease,
    ) -> impl Future<Output = Result<Option<Bytes>, StoreError>> + Send;

    /// Operations of which phases have kept something, and that nobody works on.
    fn abandoned(
        &self,
        after: Option<&OperationId>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<Abandoned>, StoreError>> + Send;

    /// What became of an attempt whose transaction is gone: `Applied` only if that is durable, and
    /// nothing if there is no outcome to be seen.
    fn find(
        &self,
        lease: &Lease,
        outcome: &Outcome<'_>,
        until: Instant,
    ) -> impl Future<Output = Result<Option<Held>, StoreError>> + Send;
}

/// What a look at a record came to.
pub(crate) enum Looked<S> {
    Found(Found),
    /// It may be granted, unless another transaction is at it.
    Free {
        seen: S,
        /// One is known to be.
        locked: bool,
    },
}

/// What a transaction that was opened for a claim came to.
pub(crate) enum Opened<DB: Database> {
    Granted(Transaction<'static, DB>, Acquired),
    Found(Found),
    /// Others were faster: look again.
    Again,
    /// Another transaction holds the row.
    Locked,
}

/// What is written of an attempt.
pub(crate) struct Outcome<'a> {
    pub(crate) fingerprint: &'a Fingerprint,
    pub(crate) payload: Bytes,
    pub(crate) retention: Duration,
}

/// Opens a transaction, to its end whoever waits for it. A `BEGIN` that is dropped would leave its
/// transaction open on a connection of the pool, and whoever has that next would work in it.
pub(crate) async fn open<DB: Database>(
    connection: PoolConnection<DB>,
    begin: SqlStr,
) -> sqlx::Result<Transaction<'static, DB>> {
    let opened = tokio::spawn(Transaction::begin(connection, Some(begin))).await;
    opened.unwrap_or(Err(sqlx::Error::WorkerCrashed))
}

/// A store that is a [`Core`].
macro_rules! store_of_core {
    ($store:ty) => {
        impl retrysafe_core::Store for $store {
            fn about(&self) -> retrysafe_core::About {
                self.core.about()
            }

            async fn begin(
                &self,
                claim: &retrysafe_core::Claim,
            ) -> Result<retrysafe_core::Begin, retrysafe_core::StoreError> {
                self.core.begin(claim).await
            }

            async fn renew(
                &self,
                lease: &retrysafe_core::Lease,
                lease_for: std::time::Duration,
            ) -> Result<retrysafe_core::Held, retrysafe_core::StoreError> {
                self.core.renew(lease, lease_for).await
            }

            async fn complete(
                &self,
                lease: &retrysafe_core::Lease,
                fingerprint: &retrysafe_core::Fingerprint,
                payload: bytes::Bytes,
                retention: std::time::Duration,
            ) -> Result<retrysafe_core::Held, retrysafe_core::StoreError> {
                let outcome = crate::transactional::Outcome { fingerprint, payload, retention };
                self.core.complete(lease, &outcome).await
            }

            async fn release(
                &self,
                lease: &retrysafe_core::Lease,
                _keep_counters_for: std::time::Duration,
            ) -> Result<retrysafe_core::Held, retrysafe_core::StoreError> {
                self.core.undo(lease).await
            }

            async fn changed(
                &self,
                id: &retrysafe_core::OperationId,
                seen: u32,
                within: std::time::Duration,
            ) -> Result<(), retrysafe_core::StoreError> {
                self.core.changed(id, seen, within).await;
                Ok(())
            }

            async fn sweep(
                &self,
                limit: usize,
            ) -> Result<retrysafe_core::Swept, retrysafe_core::StoreError> {
                self.core.sweep(limit).await
            }

            fn unit(
                &self,
                lease: &retrysafe_core::Lease,
            ) -> Option<std::sync::Arc<dyn retrysafe_core::Unit>> {
                self.core.unit(lease)
            }
        }

        impl retrysafe_core::FindAbandoned for $store {
            async fn abandoned(
                &self,
                after: Option<&retrysafe_core::OperationId>,
                limit: usize,
            ) -> Result<Vec<retrysafe_core::Abandoned>, retrysafe_core::StoreError> {
                self.core.side.abandoned(after, limit).await
            }
        }
    };
}

pub(crate) use store_of_core;
