//! A store that counts what it is asked.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use retrysafe_axum::{
    About, Begin, Claim, Fingerprint, Held, Lease, OperationId, Store, StoreError, Swept, Unit,
};

/// Counts the calls that reach a store: each is one round trip of a store that is a server (ST2).
/// `sweep` is nobody's request, so it is not counted.
#[derive(Clone, Default)]
pub(crate) struct Counting<S> {
    store: S,
    calls: Arc<AtomicUsize>,
}

impl<S> Counting<S> {
    pub(crate) fn new(store: S) -> Self {
        Self { store, calls: Arc::default() }
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::Acquire)
    }

    fn called(&self) -> &S {
        self.calls.fetch_add(1, Ordering::AcqRel);
        &self.store
    }
}

impl<S: Store> Store for Counting<S> {
    fn about(&self) -> About {
        self.store.about()
    }

    async fn begin(&self, claim: &Claim) -> Result<Begin, StoreError> {
        self.called().begin(claim).await
    }

    async fn renew(&self, lease: &Lease, lease_for: Duration) -> Result<Held, StoreError> {
        self.called().renew(lease, lease_for).await
    }

    async fn complete(
        &self,
        lease: &Lease,
        fingerprint: &Fingerprint,
        payload: Bytes,
        retention: Duration,
    ) -> Result<Held, StoreError> {
        self.called().complete(lease, fingerprint, payload, retention).await
    }

    async fn release(&self, lease: &Lease, keep: Duration) -> Result<Held, StoreError> {
        self.called().release(lease, keep).await
    }

    async fn changed(
        &self,
        id: &OperationId,
        seen: u32,
        within: Duration,
    ) -> Result<(), StoreError> {
        self.called().changed(id, seen, within).await
    }

    async fn sweep(&self, limit: usize) -> Result<Swept, StoreError> {
        self.store.sweep(limit).await
    }

    fn unit(&self, lease: &Lease) -> Option<Arc<dyn Unit>> {
        self.store.unit(lease)
    }
}
