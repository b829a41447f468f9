//! Clients that leave, at every point at which they can (PROTOCOL 3, D5).

use std::{future::poll_fn, pin::pin, task::Poll, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use retrysafe::{
    About, Begin, Claim, Fingerprint, Held, IdempotencyLayer, Inspect as _, Lease, MemoryStore,
    OnInFlight, OperationId, Scope, State, Store, StoreError, Swept,
};
use retrysafe_testkit::{Fault, Faulty, Point, Verb};
use tokio::{task::yield_now, time::Instant};

use crate::common::*;

/// A store whose verbs wait once before their effect and once after it.
#[derive(Clone)]
struct Unhurried(TestStore);

async fn unhurried<T>(call: impl Future<Output = T>) -> T {
    yield_now().await;
    let answer = call.await;
    yield_now().await;
    answer
}

impl Store for Unhurried {
    fn about(&self) -> About {
        self.0.about()
    }
    async fn begin(&self, claim: &Claim) -> Result<Begin, StoreError> {
        unhurried(self.0.begin(claim)).await
    }
    async fn renew(&self, lease: &Lease, lease_for: Duration) -> Result<Held, StoreError> {
        unhurried(self.0.renew(lease, lease_for)).await
    }
    async fn complete(
        &self,
        lease: &Lease,
        fingerprint: &Fingerprint,
        payload: Bytes,
        retention: Duration,
    ) -> Result<Held, StoreError> {
        unhurried(self.0.complete(lease, fingerprint, payload, retention)).await
    }
    async fn release(&self, lease: &Lease, keep: Duration) -> Result<Held, StoreError> {
        unhurried(self.0.release(lease, keep)).await
    }
    async fn changed(
        &self,
        id: &OperationId,
        seen: u32,
        within: Duration,
    ) -> Result<(), StoreError> {
        unhurried(self.0.changed(id, seen, within)).await
    }
    async fn sweep(&self, limit: usize) -> Result<Swept, StoreError> {
        self.0.sweep(limit).await
    }
}

type UnhurriedLayer = IdempotencyLayer<Unhurried>;

struct World {
    store: TestStore,
    layer: UnhurriedLayer,
    orders: Guarded,
}

impl World {
    fn new(handler: fn(&UnhurriedLayer) -> Guarded) -> Self {
        let store = store();
        let layer = IdempotencyLayer::builder(Unhurried(store.clone()), Scope::shared())
            .on_in_flight(OnInFlight::wait(Duration::from_secs(60)))
            .build()
            .unwrap();
        let orders = handler(&layer);
        Self { store, layer, orders }
    }

    /// Polls a request so many times and drops it; `true` if its answer was there before.
    async fn send_and_leave(&self, request: Request<Body>, polls: usize) -> bool {
        let mut sent = pin!(async { self.orders.send(request).await });
        for _ in 0..polls {
            let polled = poll_fn(|cx| Poll::Ready(sent.as_mut().poll(cx))).await;
            if polled.is_ready() {
                return true;
            }
            yield_now().await;
        }
        false
    }

    /// Once nothing goes on any more: the handler ran and its outcome is there, or it never ran
    /// and the key is free. A retry ends with one execution either way.
    async fn assert_once(&self, retry: Request<Body>, context: &str) {
        self.layer.engine().drain().await;
        let runs = self.orders.runs();
        let entry = self.store.get(&id("k")).await.unwrap();
        match entry.map(|entry| entry.state) {
            None | Some(State::Released) => assert_eq!(runs, 0, "{context}: freed after it ran"),
            Some(State::Finished { .. }) => assert_eq!(runs, 1, "{context}"),
            other => panic!("{context}: {other:?} after {runs} runs"),
        }
        let answer = self.orders.send(retry).await;
        assert_eq!((answer.status, answer.is_replay()), (201, runs == 1), "{context}: {answer:?}");
        assert_eq!(self.orders.runs(), 1, "{context}");
        self.layer.engine().drain().await;
    }
}

/// Answers in pieces, with waits before and in between.
fn slow(layer: &UnhurriedLayer) -> Guarded {
    answering(layer, "text/plain")
}

fn live(layer: &UnhurriedLayer) -> Guarded {
    answering(layer, "text/event-stream")
}

fn answering(layer: &UnhurriedLayer, content_type: &'static str) -> Guarded {
    Guarded::new(layer, move |run, request| async move {
        yield_now().await;
        let length = read(request).await.unwrap().len();
        let (sender, body) = pipe();
        tokio::spawn(async move {
            for piece in [format!("order {run}"), format!(" of {length}")] {
                yield_now().await;
                sender.data(piece);
            }
        });
        let response = Response::builder().status(201).header("content-type", content_type);
        response.body(body).unwrap()
    })
}

/// Leaves after 0, 1, 2, ... polls, until the answer comes before.
async fn leave_everywhere(
    handler: fn(&UnhurriedLayer) -> Guarded,
    request: fn() -> Request<Body>,
    prepare: impl Fn(&World),
) {
    for polls in 0.. {
        let world = World::new(handler);
        prepare(&world);
        let answered = world.send_and_leave(request(), polls).await;
        world.assert_once(request(), &format!("left after {polls} polls")).await;
        if answered {
            assert!(polls > 5, "the harness dropped nothing");
            return;
        }
        assert!(polls < 1000, "no answer");
    }
}

fn short() -> Request<Body> {
    order("k", "a")
}

/// Longer than what is read ahead, and not there at once.
fn long() -> Request<Body> {
    let (upload, body) = pipe();
    tokio::spawn(async move {
        for _ in 0..10 {
            yield_now().await;
            upload.data(vec![7; 10 * 1024]);
        }
    });
    with_body("k", body)
}

#[tokio::test(start_paused = true)]
async fn d5_a_client_that_leaves_anywhere() {
    leave_everywhere(slow, short, |_| {}).await;
}

#[tokio::test(start_paused = true)]
async fn d5_an_upload_that_is_left_anywhere() {
    leave_everywhere(slow, long, |_| {}).await;
}

#[tokio::test(start_paused = true)]
async fn d5_a_stream_that_is_left_anywhere() {
    leave_everywhere(live, short, |_| {}).await;
}

#[tokio::test(start_paused = true)]
async fn d5_a_client_that_leaves_anywhere_while_the_store_loses_answers() {
    for verb in [Verb::Begin, Verb::Complete] {
        for fault in [Fault::FailBefore, Fault::FailAfter] {
            leave_everywhere(slow, short, |world| world.store.script().next(verb, fault)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn d5_a_waiter_that_leaves_anywhere() {
    for polls in 0.. {
        let world = World::new(slow);
        let first = world.orders.spawn(short());
        world.orders.ran(1).await;
        let answered = world.send_and_leave(short(), polls).await;
        assert_eq!(first.await.unwrap().status, 201);
        world.assert_once(short(), &format!("left after {polls} polls")).await;
        if answered {
            assert!(polls > 5, "the harness dropped nothing");
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn d5_a_claim_whose_answer_was_lost_is_repeated_by_the_same_owner() {
    for fault in [Fault::FailBefore, Fault::FailAfter, Fault::HangBefore, Fault::HangAfter] {
        let (store, layer) = default_layer();
        let orders = Guarded::orders(&layer);
        store.script().next(Verb::Begin, fault);
        orders.send(order("k", "a")).await.assert_first(201, "order 1");
        assert_eq!(store.script().calls(Verb::Begin), 2, "{fault:?}");
        assert_eq!(entry(&store, "k").await.unwrap().attempt, 1);
        orders.send(order("k", "a")).await.assert_replay(201, "order 1");
    }
}

#[tokio::test(start_paused = true)]
async fn d5_a_claim_whose_answer_was_lost_twice_runs_nothing_and_is_freed() {
    for fault in [Fault::FailAfter, Fault::HangAfter] {
        let (store, layer) = default_layer();
        let orders = Guarded::orders(&layer);
        store.script().next(Verb::Begin, fault);
        store.script().next(Verb::Begin, fault);
        // The first releases are lost too.
        store.script().next(Verb::Release, Fault::FailBefore);
        store.script().next(Verb::Release, Fault::HangBefore);
        orders.send(order("k", "a")).await.assert_problem(503, "store_unavailable");
        assert_eq!(state(&store, "k").await, "in flight");
        layer.engine().drain().await;
        assert_eq!(state(&store, "k").await, "released");
        assert_eq!(orders.runs(), 0);
        orders.send(order("k", "a")).await.assert_first(201, "order 1");
        // Nothing ran, so nothing vanished.
        assert!(!entry(&store, "k").await.unwrap().previous_vanished);
    }
}

#[tokio::test(start_paused = true)]
async fn d5_a_late_claim_of_who_was_answered_503_does_not_stay() {
    let (store, layer) = default_layer();
    let orders = Guarded::orders(&layer);
    store.script().next(Verb::Begin, Fault::Late);
    store.script().next(Verb::Begin, Fault::Late);
    orders.send(order("k", "a")).await.assert_problem(503, "store_unavailable");
    // The first release finds nothing to release; then the claim arrives.
    let hold = store.script().hold(Verb::Release, Point::After);
    hold.reached(1).await;
    store.deliver_late().await;
    assert_eq!(state(&store, "k").await, "in flight");
    hold.release();
    layer.engine().drain().await;
    assert_eq!(state(&store, "k").await, "released");
}

#[tokio::test(start_paused = true)]
async fn d5_a_late_claim_of_who_was_answered_409_does_not_stay() {
    let (store, layer) = default_layer();
    let gate = Gate::closed();
    let at_gate = gate.clone();
    let orders = Guarded::new(&layer, move |run, _| {
        let gate = at_gate.clone();
        async move {
            gate.pass().await;
            if run == 1 { status(429) } else { created(run) }
        }
    });
    let first = orders.spawn(order("k", "a"));
    orders.ran(1).await;
    // The first try of the duplicate is under way for long; the second finds somebody else.
    store.script().next(Verb::Begin, Fault::Late);
    orders.send(order("k", "a")).await.assert_problem(409, "in_progress");
    gate.open();
    assert_eq!(first.await.unwrap().status, 429);
    assert_eq!(state(&store, "k").await, "released");
    assert_eq!(store.deliver_late().await, 1);
    assert_eq!(state(&store, "k").await, "in flight");
    let landed = Instant::now();
    layer.engine().drain().await;
    assert_eq!(state(&store, "k").await, "released");
    assert!(landed.elapsed() < Duration::from_secs(5), "long before the lease is over");
    orders.send(order("k", "a")).await.assert_first(201, "order 2");
    assert_eq!(orders.runs(), 2);
}

#[tokio::test(start_paused = true)]
async fn d5_a_grant_that_came_too_late_runs_nothing() {
    // The store takes longer to grant the claim than the claim holds: somebody may have taken over.
    let store: TestStore = Faulty::new(MemoryStore::new());
    let layer = layer(&store).lease(Duration::from_secs(1)).build().unwrap();
    let orders = Guarded::orders(&layer);
    store.script().next(Verb::Begin, Fault::Delay(Duration::from_millis(1500)));
    store.script().always(Verb::Renew, Fault::FailBefore);
    orders.send(order("k", "a")).await.assert_problem(503, "store_unavailable");
    layer.engine().drain().await;
    assert_eq!((orders.runs(), state(&store, "k").await), (0, "released"));
    orders.send(order("k", "a")).await.assert_first(201, "order 1");
}

#[tokio::test]
async fn disconnect_frees() {
    // The client hung up, the handler's future was dropped, the key was freed, the retry ran again.
    let (store, layer) = default_layer();
    let gate = Gate::closed();
    let orders = Guarded::gated(&layer, &gate);
    let client = orders.spawn(order("k", "a"));
    orders.ran(1).await;
    client.abort();
    assert!(client.await.unwrap_err().is_cancelled());
    orders.send(order("k", "a")).await.assert_problem(409, "in_progress");
    gate.open();
    layer.engine().drain().await;
    assert_eq!(state(&store, "k").await, "finished");
    orders.send(order("k", "a")).await.assert_replay(201, "order 1");
    assert_eq!(orders.runs(), 1);
}

#[tokio::test]
async fn disconnect_wedges() {
    // The same, but the key stayed locked for 24 hours.
    let (store, layer) = default_layer();
    let gate = Gate::closed();
    let orders = Guarded::gated(&layer, &gate);
    let hold = store.script().hold(Verb::Begin, Point::After);
    let client = orders.spawn(order("k", "a"));
    hold.reached(1).await;
    client.abort();
    assert!(client.await.unwrap_err().is_cancelled());
    hold.release();
    gate.open();
    layer.engine().drain().await;
    orders.send(order("k", "a")).await.assert_replay(201, "order 1");
}
