//! An engine that renews on a runtime of its own: what it has left to do does not end with the
//! runtime that serves requests, as a worker of Actix is one.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use retrysafe::{
    About, Begin, Claim, Engine, Fingerprint, Held, IdempotencyLayer, Lease, OperationId, Scope,
    Store, StoreError, Swept,
};
use retrysafe_testkit::{Fault, Point, Verb};
use tokio::{
    runtime::{self, Handle, Runtime},
    task::LocalSet,
    time::timeout,
};

use crate::common::*;

/// Where leases are renewed.
fn home() -> Runtime {
    runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Serves requests until it is told that this is enough.
fn serve(until: impl Future<Output = ()>) {
    let worker = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    worker.block_on(until);
}

fn layer_at<S: Store>(home: &Runtime, store: S) -> IdempotencyLayer<S> {
    let engine = Engine::builder(store).renew_on(home.handle().clone()).build().unwrap();
    IdempotencyLayer::sharing(&engine, Scope::shared()).build().unwrap()
}

fn drain<S: Store>(home: &Runtime, layer: &IdempotencyLayer<S>) {
    let drained = async { timeout(Duration::from_secs(60), layer.engine().drain()).await };
    home.block_on(drained).unwrap();
}

/// Nothing ran, so it must not end as unknown.
#[test]
fn d5_a_claim_that_its_worker_leaves_is_freed() {
    let (home, store) = (home(), store());
    let layer = layer_at(&home, store.clone());
    let orders = Guarded::orders(&layer);
    let hold = store.script().hold(Verb::Begin, Point::After);
    serve(async {
        orders.spawn(order("k", "a"));
        hold.reached(1).await;
    });
    hold.release();
    drain(&home, &layer);
    assert_eq!(home.block_on(state(&store, "k")), "released");
    home.block_on(orders.send(order("k", "a"))).assert_first(201, "order 1");
}

/// What the client was told must not be done again.
#[test]
fn r7_an_outcome_that_its_worker_could_not_record_is_written_later() {
    let (home, store) = (home(), store());
    let layer = layer_at(&home, store.clone());
    let orders = Guarded::orders(&layer);
    store.script().always(Verb::Complete, Fault::FailBefore);
    serve(async {
        let first = orders.send(order("k", "a")).await;
        first.assert_first(201, "order 1");
        assert_eq!(first.headers["idempotency-status"], "not-recorded");
    });
    store.script().heal();
    drain(&home, &layer);
    home.block_on(orders.send(order("k", "a"))).assert_replay(201, "order 1");
    assert_eq!(orders.runs(), 1);
}

/// A store whose claims have a connection each, and say in which runtime they let go of it.
#[derive(Clone)]
struct Connecting {
    store: TestStore,
    let_go: Arc<Mutex<Vec<Option<runtime::Id>>>>,
}

struct Connection(Arc<Mutex<Vec<Option<runtime::Id>>>>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.lock().unwrap().push(Handle::try_current().ok().map(|runtime| runtime.id()));
    }
}

impl Store for Connecting {
    fn about(&self) -> About {
        self.store.about()
    }
    async fn begin(&self, claim: &Claim) -> Result<Begin, StoreError> {
        let _connection = Connection(self.let_go.clone());
        self.store.begin(claim).await
    }
    async fn renew(&self, lease: &Lease, lease_for: Duration) -> Result<Held, StoreError> {
        self.store.renew(lease, lease_for).await
    }
    async fn complete(
        &self,
        lease: &Lease,
        fingerprint: &Fingerprint,
        payload: Bytes,
        retention: Duration,
    ) -> Result<Held, StoreError> {
        self.store.complete(lease, fingerprint, payload, retention).await
    }
    async fn release(&self, lease: &Lease, keep: Duration) -> Result<Held, StoreError> {
        self.store.release(lease, keep).await
    }
    async fn changed(
        &self,
        id: &OperationId,
        seen: u32,
        within: Duration,
    ) -> Result<(), StoreError> {
        self.store.changed(id, seen, within).await
    }
    async fn sweep(&self, limit: usize) -> Result<Swept, StoreError> {
        self.store.sweep(limit).await
    }
}

/// A connection that is let go of in the middle is returned by a task: not by one of a worker that
/// is blocked, or has ended.
#[test]
fn e2_a_call_that_is_given_up_lets_go_of_its_connection_at_home() {
    let home = home();
    let store = Connecting { store: store(), let_go: Arc::default() };
    let layer = layer_at(&home, store.clone());
    let orders = Guarded::orders(&layer);
    let hold = store.store.script().hold(Verb::Begin, Point::After);
    serve(async {
        let left = LocalSet::new();
        let answer = orders.clone();
        left.spawn_local(async move { answer.send(order("k", "a")).await });
        left.run_until(hold.reached(1)).await;
    });
    hold.release();
    drain(&home, &layer);
    assert_eq!(*store.let_go.lock().unwrap(), [Some(home.handle().id())]);
}
