//! Stores that are chosen at run time: the same contract, with boxed futures.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    About, Begin, Claim, Counts, Entry, Held, Inspect, Lease, Operated, Resolution, Store,
    StoreError, Swept,
};
use crate::{Fingerprint, OperationId, Unit};

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// [`Store`] with boxed futures, so that a store can be chosen at run time. Implemented for every
/// `Store`; use it as [`SharedStore`], which is a `Store` again.
pub trait DynStore: Send + Sync + 'static {
    /// See [`Store::about`].
    fn about(&self) -> About;
    /// See [`Store::begin`].
    fn begin<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Begin, StoreError>>;
    /// See [`Store::renew`].
    fn renew<'a>(
        &'a self,
        lease: &'a Lease,
        lease_for: Duration,
    ) -> BoxFuture<'a, Result<Held, StoreError>>;
    /// See [`Store::complete`].
    fn complete<'a>(
        &'a self,
        lease: &'a Lease,
        fingerprint: &'a Fingerprint,
        payload: Bytes,
        retention: Duration,
    ) -> BoxFuture<'a, Result<Held, StoreError>>;
    /// See [`Store::release`].
    fn release<'a>(
        &'a self,
        lease: &'a Lease,
        keep_counters_for: Duration,
    ) -> BoxFuture<'a, Result<Held, StoreError>>;
    /// See [`Store::changed`].
    fn changed<'a>(
        &'a self,
        id: &'a OperationId,
        seen: u32,
        within: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>>;
    /// See [`Store::sweep`].
    fn sweep(&self, limit: usize) -> BoxFuture<'_, Result<Swept, StoreError>>;
    /// See [`Store::unit`].
    fn unit(&self, lease: &Lease) -> Option<Arc<dyn Unit>>;
}

impl<S: Store> DynStore for S {
    fn about(&self) -> About {
        Store::about(self)
    }
    fn begin<'a>(&'a self, claim: &'a Claim) -> BoxFuture<'a, Result<Begin, StoreError>> {
        Box::pin(Store::begin(self, claim))
    }
    fn renew<'a>(
        &'a self,
        lease: &'a Lease,
        lease_for: Duration,
    ) -> BoxFuture<'a, Result<Held, StoreError>> {
        Box::pin(Store::renew(self, lease, lease_for))
    }
    fn complete<'a>(
        &'a self,
        lease: &'a Lease,
        fingerprint: &'a Fingerprint,
        payload: Bytes,
        retention: Duration,
    ) -> BoxFuture<'a, Result<Held, StoreError>> {
        Box::pin(Store::complete(self, lease, fingerprint, payload, retention))
    }
    fn release<'a>(
        &'a self,
        lease: &'a Lease,
        keep_counters_for: Duration,
    ) -> BoxFuture<'a, Result<Held, StoreError>> {
        Box::pin(Store::release(self, lease, keep_counters_for))
    }
    fn changed<'a>(
        &'a self,
        id: &'a OperationId,
        seen: u32,
        within: Duration,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(Store::changed(self, id, seen, within))
    }
    fn sweep(&self, limit: usize) -> BoxFuture<'_, Result<Swept, StoreError>> {
        Box::pin(Store::sweep(self, limit))
    }
    fn unit(&self, lease: &Lease) -> Option<Arc<dyn Unit>> {
        Store::unit(self, lease)
    }
}

/// A store that was chosen at run time, shared. It is a [`Store`].
#[derive(Clone)]
pub struct SharedStore(Arc<dyn DynStore>);

impl SharedStore {
    /// Erases the type of a store.
    pub fn new(store: impl Store) -> Self {
        Self(Arc::new(store))
    }
}

impl fmt::Debug for SharedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedStore").field(&self.0.about().engine).finish()
    }
}

impl Store for SharedStore {
    fn about(&self) -> About {
        self.0.about()
    }
    async fn begin(&self, claim: &Claim) -> Result<Begin, StoreError> {
        self.0.begin(claim).await
    }
    async fn renew(&self, lease: &Lease, lease_for: Duration) -> Result<Held, StoreError> {
        self.0.renew(lease, lease_for).await
    }
    async fn complete(
        &self,
        lease: &Lease,
        fingerprint: &Fingerprint,
        payload: Bytes,
        retention: Duration,
    ) -> Result<Held, StoreError> {
        self.0.complete(lease, fingerprint, payload, retention).await
    }
    async fn release(
        &self,
        lease: &Lease,
        keep_counters_for: Duration,
    ) -> Result<Held, StoreError> {
        self.0.release(lease, keep_counters_for).await
    }
    async fn changed(
        &self,
        id: &OperationId,
        seen: u32,
        within: Duration,
    ) -> Result<(), StoreError> {
        self.0.changed(id, seen, within).await
    }
    async fn sweep(&self, limit: usize) -> Result<Swept, StoreError> {
        self.0.sweep(limit).await
    }
    fn unit(&self, lease: &Lease) -> Option<Arc<dyn Unit>> {
        self.0.unit(lease)
    }
}

/// [`Inspect`] with boxed futures; implemented for every `Inspect`.
pub trait DynInspect: Send + Sync + 'static {
    /// See [`Inspect::get`].
    fn get<'a>(&'a self, id: &'a OperationId) -> BoxFuture<'a, Result<Option<Entry>, StoreError>>;
    /// See [`Inspect::page`].
    fn page<'a>(
        &'a self,
        after: Option<&'a OperationId>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Entry>, StoreError>>;
    /// See [`Inspect::count`].
    fn count(&self) -> BoxFuture<'_, Result<Counts, StoreError>>;
    /// See [`Inspect::answers`].
    fn answers(&self) -> BoxFuture<'_, Result<(), StoreError>>;
    /// See [`Inspect::forget`].
    fn forget<'a>(&'a self, id: &'a OperationId) -> BoxFuture<'a, Result<Operated, StoreError>>;
    /// See [`Inspect::resolve`].
    fn resolve<'a>(
        &'a self,
        id: &'a OperationId,
        seen: u32,
        resolution: Resolution,
    ) -> BoxFuture<'a, Result<Operated, StoreError>>;
}

impl<I: Inspect> DynInspect for I {
    fn get<'a>(&'a self, id: &'a OperationId) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(Inspect::get(self, id))
    }
    fn page<'a>(
        &'a self,
        after: Option<&'a OperationId>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Entry>, StoreError>> {
        Box::pin(Inspect::page(self, after, limit))
    }
    fn count(&self) -> BoxFuture<'_, Result<Counts, StoreError>> {
        Box::pin(Inspect::count(self))
    }
    fn answers(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(Inspect::answers(self))
    }
    fn forget<'a>(&'a self, id: &'a OperationId) -> BoxFuture<'a, Result<Operated, StoreError>> {
        Box::pin(Inspect::forget(self, id))
    }
    fn resolve<'a>(
        &'a self,
        id: &'a OperationId,
        seen: u32,
        resolution: Resolution,
    ) -> BoxFuture<'a, Result<Operated, StoreError>> {
        Box::pin(Inspect::resolve(self, id, seen, resolution))
    }
}
