//! Recovery points: a transaction that is committed in parts.
//!
//! The first part commits the claim. From then on the attempt holds its operation by its lease, like
//! any other, and every further transaction begins by making sure of that.

use std::{future::Future, pin::Pin, time::Duration};

use bytes::Bytes;
use retrysafe_core::{Lease, NotLent, PointFuture, Points, StoreError, StoreErrorKind, failpoint};
use sqlx::{Database, Transaction};
use tokio::time::Instant;

use super::{
    Core, Side,
    transaction::{Given, Slot},
};

type Opening<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// A core, as a slot knows it: the transactions after the first.
pub(crate) trait Parts<DB: Database>: Send + Sync {
    /// `None` if this is not the live attempt.
    fn reopen<'a>(
        &'a self,
        lease: &'a Lease,
        lease_for: Duration,
    ) -> Opening<'a, Option<Transaction<'static, DB>>>;

    /// Commits, with what is kept; `false` if the handler has ended the transaction by itself.
    fn commit<'a>(
        &'a self,
        transaction: Transaction<'static, DB>,
        lease: &'a Lease,
        lease_for: Duration,
        points: Option<Bytes>,
    ) -> Opening<'a, bool>;

    /// Whether what is kept is small enough.
    fn check_size(&self, points: &Bytes) -> Result<(), StoreError>;

    /// What was kept before.
    fn kept<'a>(
        &'a self,
        transaction: &'a mut Transaction<'static, DB>,
        lease: &'a Lease,
    ) -> Opening<'a, Option<Bytes>>;
}

impl<S: Side> Parts<S::Database> for Core<S> {
    fn reopen<'a>(
        &'a self,
        lease: &'a Lease,
        lease_for: Duration,
    ) -> Opening<'a, Option<Transaction<'static, S::Database>>> {
        Box::pin(async move {
            let until = Instant::now() + self.settings.timeout;
            self.within(until, self.side.reopen(lease, lease_for, until)).await
        })
    }

    fn commit<'a>(
        &'a self,
        mut transaction: Transaction<'static, S::Database>,
        lease: &'a Lease,
        lease_for: Duration,
        points: Option<Bytes>,
    ) -> Opening<'a, bool> {
        Box::pin(async move {
            let until = Instant::now() + self.settings.timeout;
            failpoint::reached("before the point");
            let kept = self.side.keep(&mut transaction, lease, lease_for, points.as_ref());
            if !self.within(until, kept).await? {
                return Ok(false);
            }
            let failed = |error| match self.side.not_committed(error) {
                Some(error) => error,
                None => {
                    let context = format!("{}: a commit was not answered", self.side.place());
                    StoreError::new(StoreErrorKind::Unavailable, context)
                }
            };
            let committed = async { transaction.commit().await.map_err(failed) };
            self.within(until, committed).await?;
            failpoint::reached("after the point");
            Ok(true)
        })
    }

    fn check_size(&self, points: &Bytes) -> Result<(), StoreError> {
        self.side.check_size(points)
    }

    fn kept<'a>(
        &'a self,
        transaction: &'a mut Transaction<'static, S::Database>,
        lease: &'a Lease,
    ) -> Opening<'a, Option<Bytes>> {
        Box::pin(async move {
            let until = Instant::now() + self.settings.timeout;
            self.within(until, self.side.kept(transaction, lease)).await
        })
    }
}

impl<DB: Database> Slot<DB> {
    /// A transaction, out of the slot; `None` if this is not the live attempt any more.
    async fn any(&self) -> Result<Option<Transaction<'static, DB>>, StoreError> {
        match self.give() {
            Given::Open(transaction) => Ok(Some(transaction)),
            Given::Between => {
                let (parts, lease, lease_for) = self.parts()?;
                let reopened = parts.reopen(lease, lease_for).await?;
                if reopened.is_none() {
                    self.doubt();
                }
                Ok(reopened)
            }
            Given::Lent => Err(over("somebody has not let go of the transaction")),
            Given::Over => Err(over("the attempt is over, or its work was undone")),
        }
    }
}

impl<DB: Database> Points for Slot<DB> {
    fn take(&self) -> Result<(), NotLent> {
        self.take_parts()
    }

    fn kept(&self) -> PointFuture<'_, Option<Bytes>> {
        Box::pin(async {
            let (parts, lease, _) = self.parts()?;
            let Some(mut transaction) = self.any().await? else { return Ok(None) };
            let mut undone = LetGo(Some(self));
            let kept = parts.kept(&mut transaction, lease).await;
            undone.0 = None;
            self.put(transaction);
            kept
        })
    }

    fn open(&self) -> PointFuture<'_, bool> {
        Box::pin(async {
            let Some(transaction) = self.any().await? else { return Ok(false) };
            self.named();
            self.put(transaction);
            Ok(true)
        })
    }

    fn commit(&self, mut points: Option<Bytes>) -> PointFuture<'_, bool> {
        Box::pin(async move {
            if self.is_loose() {
                let problem = "what is written before a phase is written in a step";
                return Err(StoreError::new(StoreErrorKind::Misconfigured, problem));
            }
            let (parts, lease, lease_for) = self.parts()?;
            // Before anything is taken out, and could be lost.
            if let Some(points) = &points {
                parts.check_size(points)?;
            }
            // Once, unless that takes longer than the lease that it leaves.
            while points.is_some() || !self.is_held(lease_for) {
                let Some(transaction) = self.any().await? else { return Ok(false) };
                // From here on it may be committed, whatever is heard of it.
                let committing = self.committing();
                let sent = Instant::now();
                if !parts.commit(transaction, lease, lease_for, points.take()).await? {
                    self.escape();
                    let context = "the handler ended its transaction by itself";
                    return Err(StoreError::new(StoreErrorKind::Escaped, context));
                }
                drop(committing);
                self.held_from(sent);
            }
            Ok(true)
        })
    }

    fn roll_back(&self) {
        self.let_go();
    }
}

/// Puts the slot right when a look is dropped, and its transaction with it.
struct LetGo<'a, DB: Database>(Option<&'a Slot<DB>>);

impl<DB: Database> Drop for LetGo<'_, DB> {
    fn drop(&mut self) {
        if let Some(slot) = self.0 {
            slot.let_go();
        }
    }
}

fn over(why: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, why)
}
