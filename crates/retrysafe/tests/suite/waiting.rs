//! Duplicates that wait for the first (PROTOCOL 3, D2).

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use retrysafe::{
    About, Begin, Claim, Fingerprint, Held, IdempotencyLayer, Lease, MemoryStore, OnInFlight,
    OnUnknownOutcome, OperationId, Scope, Store, StoreError, Swept,
};
use retrysafe_testkit::{Fault, Verb};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tower::{Layer as _, ServiceBuilder, service_fn};

use crate::common::*;

fn waiting_layer(store: &TestStore) -> TestLayer {
    layer(store).on_in_flight(OnInFlight::wait(Duration::from_secs(60))).build().unwrap()
}

fn spawn_many(orders: &Guarded, count: usize) -> JoinSet<Answer> {
    (0..count)
        .map(|_| {
            let orders = orders.clone();
            async move { orders.send(order("k", "a")).await }
        })
        .collect()
}

/// Spawns a first request whose handler waits at the gate, and duplicates until all have asked.
async fn first_and_duplicates(
    orders: &Guarded,
    store: &TestStore,
    duplicates: usize,
) -> (JoinHandle<Answer>, JoinSet<Answer>) {
    let first = orders.spawn(order("k", "a"));
    orders.ran(1).await;
    let begun = store.script().calls(Verb::Begin);
    let waiting = spawn_many(orders, duplicates);
    store.script().called(Verb::Begin, begun + duplicates).await;
    store.script().called(Verb::Changed, 1).await;
    settle().await;
    (first, waiting)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn d2_fifty_duplicates_get_the_same_answer() {
    let store = store();
    let gate = Gate::closed();
    let orders = Guarded::gated(&waiting_layer(&store), &gate);
    let all = spawn_many(&orders, 50);
    orders.ran(1).await;
    store.script().called(Verb::Changed, 1).await;
    gate.open();
    let answers = all.join_all().await;
    for answer in &answers {
        assert_eq!((answer.status, answer.text()), (201, "order 1"));
        assert_eq!(answer.headers["location"], "/orders/1");
    }
    assert_eq!(answers.iter().filter(|it| !it.is_replay()).count(), 1);
    assert_eq!(orders.runs(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn p10_a_thousand_duplicates() {
    let store = store();
    let gate = Gate::closed();
    let orders = Guarded::gated(&waiting_layer(&store), &gate);
    let (first, waiting) = first_and_duplicates(&orders, &store, 999).await;
    gate.open();
    first.await.unwrap().assert_first(201, "order 1");
    let answers = waiting.join_all().await;
    answers.iter().for_each(|answer| answer.assert_replay(201, "order 1"));
    assert_eq!((answers.len(), orders.runs()), (999, 1));
}

#[tokio::test(start_paused = true)]
async fn d2_there_is_no_herd() {
    let store = store();
    let gate = Gate::closed();
    let orders = Guarded::gated(&waiting_layer(&store), &gate);
    let (first, waiting) = first_and_duplicates(&orders, &store, 50).await;
    gate.open();
    first.await.unwrap().assert_first(201, "order 1");
    waiting.join_all().await.iter().for_each(|answer| answer.assert_replay(201, "order 1"));
    // Each asked once when it came; one of them watched, and asked once more for all.
    assert_eq!(store.script().calls(Verb::Begin), 1 + 50 + 1);
    assert_eq!(store.script().calls(Verb::Changed), 1);
}

#[tokio::test(start_paused = true)]
async fn waiters_eat_pool() {
    // Every waiter held a pooled connection: ten duplicates starved the owner's write.
    let store = store();
    let gate = Gate::closed();
    let orders = Guarded::gated(&waiting_layer(&store), &gate);
    let (first, waiting) = first_and_duplicates(&orders, &store, 50).await;
    assert_eq!(store.script().calls(Verb::Changed), 1, "one of them occupies the store");
    gate.open();
    first.await.unwrap();
    waiting.join_all().await;
}

#[tokio::test(start_paused = true)]
async fn waiters_eat_pool_of_a_concurrency_limit() {
    // The same with the places under a limit around the handler.
    let store = store();
    let (gate, runs) = (Gate::closed(), Count::default());
    let (at_gate, counted) = (gate.clone(), runs.clone());
    let handler = service_fn(move |request: Given| {
        let (gate, run) = (at_gate.clone(), counted.more());
        async move {
            if request.headers()["idempotency-key"] == "k" {
                gate.pass().await;
            }
            Ok::<_, Infallible>(created(run))
        }
    });
    let limited = ServiceBuilder::new().concurrency_limit(2).service(handler);
    let orders = Guarded::around(waiting_layer(&store).layer(limited));
    let first = orders.spawn(order("k", "a"));
    runs.reached(1).await;
    let waiting = spawn_many(&orders, 5);
    let second = Duration::from_secs(1);
    timeout(second, store.script().called(Verb::Begin, 6)).await.unwrap();
    store.script().called(Verb::Changed, 1).await;
    let other = timeout(second, orders.send(order("other", "a"))).await.unwrap();
    other.assert_first(201, "order 2");
    gate.open();
    first.await.unwrap().assert_first(201, "order 1");
    waiting.join_all().await.iter().for_each(|answer| answer.assert_replay(201, "order 1"));
}

#[tokio::test(start_paused = true)]
async fn reader_guard_across_sleep() {
    // One waiting duplicate held a lock over its sleep and stalled everybody.
    let store = store();
    let gate = Gate::closed();
    let orders = Guarded::gated(&waiting_layer(&store), &gate);
    let (first, waiting) = first_and_duplicates(&orders, &store, 3).await;
    let others = (0..200).map(|number| orders.spawn(order(&format!("other-{number}"), "a")));
    let others: Vec<_> = others.collect();
    orders.ran(201).await;
    gate.open();
    for other in others {
        assert_eq!(other.await.unwrap().status, 201);
    }
    first.await.unwrap();
    waiting.join_all().await;
}

#[tokio::test(start_paused = true)]
async fn d2_no_more_waiters_than_allowed() {
    let store = store();
    let wait = OnInFlight::Wait { timeout: Duration::from_secs(60), max_waiters: 3 };
    let gate = Gate::closed();
    let orders = Guarded::gated(&layer(&store).on_in_flight(wait).build().unwrap(), &gate);
    let (first, waiting) = first_and_duplicates(&orders, &store, 3).await;
    let answer = orders.send(order("k", "a")).await;
    answer.assert_problem(409, "in_progress");
    assert_eq!(answer.headers["retry-after"], "1");
    gate.open();
    first.await.unwrap().assert_first(201, "order 1");
    waiting.join_all().await.iter().for_each(|answer| answer.assert_replay(201, "order 1"));
}

#[tokio::test(start_paused = true)]
async fn d2_who_waits_too_long_gets_the_409_and_the_owner_is_unharmed() {
    let store = store();
    let gate = Gate::closed();
    let orders = Guarded::gated(&waiting_layer(&store), &gate);
    let (first, waiting) = first_and_duplicates(&orders, &store, 10).await;
    waiting.join_all().await.iter().for_each(|it| it.assert_problem(409, "in_progress"));
    assert_eq!(state(&store, "k").await, "in flight");
    gate.open();
    first.await.unwrap().assert_first(201, "order 1");
    orders.send(order("k", "a")).await.assert_replay(201, "order 1");
    assert_eq!(orders.runs(), 1);
}

/// Answers with the statuses in turn, one execution at a time or it panics.
fn one_at_a_time(layer: &TestLayer, gate: &Gate, statuses: &'static [u16]) -> Guarded {
    let (gate, inside) = (gate.clone(), Arc::new(AtomicUsize::new(0)));
    Guarded::new(layer, move |run, _| {
        let (gate, inside) = (gate.clone(), inside.clone());
        async move {
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two at once");
            gate.pass().await;
            inside.fetch_sub(1, Ordering::SeqCst);
            status(statuses[(run - 1).min(statuses.len() - 1)])
        }
    })
}

#[tokio::test(start_paused = true)]
async fn d2_of_a_released_outcome_one_waiter_at_a_time_executes() {
    let store = store();
    let gate = Gate::closed();
    let orders = one_at_a_time(&waiting_layer(&store), &gate, &[429, 429, 429, 201]);
    let (first, waiting) = first_and_duplicates(&orders, &store, 20).await;
    for run in 1..=4 {
        orders.ran(run).await;
        settle().await;
        assert_eq!(orders.runs(), run);
        gate.admit();
    }
    assert_eq!(first.await.unwrap().status, 429);
    let answers = waiting.join_all().await;
    let count = |status| answers.iter().filter(|it| it.status == status).count();
    assert_eq!((count(429), count(201)), (2, 18));
    assert_eq!(answers.iter().filter(|it| it.is_replay()).count(), 17);
    assert_eq!(orders.runs(), 4);
}

#[tokio::test(start_paused = true)]
async fn d2_of_an_unknown_outcome_one_waiter_at_a_time_executes() {
    let store = store();
    let gate = Gate::closed();
    let orders = one_at_a_time(&waiting_layer(&store), &gate, &[500, 503, 201]);
    let (first, waiting) = first_and_duplicates(&orders, &store, 20).await;
    gate.open();
    assert_eq!(first.await.unwrap().status, 500);
    let answers = waiting.join_all().await;
    let count = |status| answers.iter().filter(|it| it.status == status).count();
    assert_eq!((count(503), count(201)), (1, 19));
    assert_eq!(orders.runs(), 3);
}

#[tokio::test(start_paused = true)]
async fn d2_where_unknown_outcomes_are_refused_every_waiter_is_told() {
    let store = store();
    let layer = layer(&store)
        .on_in_flight(OnInFlight::wait(Duration::from_secs(60)))
        .on_unknown_outcome(OnUnknownOutcome::Refuse);
    let gate = Gate::closed();
    let orders = one_at_a_time(&layer.build().unwrap(), &gate, &[500]);
    let (first, waiting) = first_and_duplicates(&orders, &store, 20).await;
    gate.open();
    assert_eq!(first.await.unwrap().status, 500);
    waiting.join_all().await.iter().for_each(|it| it.assert_problem(409, "outcome_unknown"));
    assert_eq!(orders.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn d2_a_waiter_takes_over_from_an_owner_whose_lease_runs_out() {
    let store = store();
    // Its renewals are lost, as if its process were gone.
    store.script().always(Verb::Renew, Fault::FailBefore);
    let gate = Gate::closed();
    let orders = Guarded::gated(&waiting_layer(&store), &gate);
    let (first, waiting) = first_and_duplicates(&orders, &store, 3).await;
    orders.ran(2).await;
    assert_eq!(entry(&store, "k").await.unwrap().attempt, 2);
    gate.open();
    let mut answers = waiting.join_all().await;
    answers.push(first.await.unwrap());
    let texts: Vec<_> = answers.iter().map(|it| (it.status, it.text().to_owned())).collect();
    assert_eq!(orders.runs(), 2);
    let kept = (201, "order 2".to_owned());
    let in_progress = texts.iter().filter(|it| it.0 == 409).count();
    let same = texts.iter().filter(|it| **it == kept).count();
    // The one that was overtaken is answered from the winner's record, or told to come back (E5).
    assert!(same >= 3 && same + in_progress == 4, "{texts:?}");
}

#[tokio::test(start_paused = true)]
async fn d2_a_leader_that_leaves_passes_its_turn_on() {
    let store = store();
    let gate = Gate::closed();
    let orders = Guarded::gated(&waiting_layer(&store), &gate);
    let first = orders.spawn(order("k", "a"));
    orders.ran(1).await;
    let mut waiters = Vec::new();
    for number in 0..5 {
        waiters.push(orders.spawn(order("k", "a")));
        store.script().called(Verb::Begin, number + 2).await;
        settle().await;
    }
    for (number, leader) in waiters.drain(..3).enumerate() {
        assert_eq!(store.script().calls(Verb::Changed), number + 1);
        leader.abort();
        assert!(leader.await.unwrap_err().is_cancelled());
        store.script().called(Verb::Changed, number + 2).await;
    }
    gate.open();
    first.await.unwrap().assert_first(201, "order 1");
    for waiter in waiters {
        waiter.await.unwrap().assert_replay(201, "order 1");
    }
    assert_eq!(orders.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn d2_a_store_that_fails_while_it_is_watched() {
    let store = store();
    let gate = Gate::closed();
    let orders = Guarded::gated(&waiting_layer(&store), &gate);
    store.script().next(Verb::Changed, Fault::FailBefore);
    let first = orders.spawn(order("k", "a"));
    orders.ran(1).await;
    let waiting = spawn_many(&orders, 5);
    store.script().called(Verb::Changed, 2).await;
    settle().await;
    gate.open();
    first.await.unwrap().assert_first(201, "order 1");
    let answers = waiting.join_all().await;
    let failed: Vec<_> = answers.iter().filter(|it| it.status == 503).collect();
    assert_eq!(failed.len(), 1, "who watched is told; the next one watches");
    failed[0].assert_problem(503, "store_unavailable");
    assert_eq!(answers.iter().filter(|it| it.is_replay()).count(), 4);
    assert_eq!(orders.runs(), 1);
}

#[tokio::test]
async fn d2_what_is_waited_for_is_compared_all_the_same() {
    let store = store();
    let gate = Gate::closed();
    let orders = Guarded::gated(&waiting_layer(&store), &gate);
    let (first, waiting) = first_and_duplicates(&orders, &store, 1).await;
    // At once, and not after a wait.
    orders.send(order("k", "b")).await.assert_problem(422, "key_reused");
    gate.open();
    first.await.unwrap();
    waiting.join_all().await[0].assert_replay(201, "order 1");
}

/// A store that calls its waiters back at once, for no reason, as the contract allows.
struct Nervous(MemoryStore);

impl Store for Nervous {
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
    async fn release(&self, lease: &Lease, keep: Duration) -> Result<Held, StoreError> {
        self.0.release(lease, keep).await
    }
    async fn changed(&self, _: &OperationId, _: u32, _: Duration) -> Result<(), StoreError> {
        Ok(())
    }
    async fn sweep(&self, limit: usize) -> Result<Swept, StoreError> {
        self.0.sweep(limit).await
    }
}

#[tokio::test]
async fn d2_the_timeout_holds_on_a_store_that_wakes_early() {
    let layer = IdempotencyLayer::builder(Nervous(MemoryStore::new()), Scope::shared())
        .on_in_flight(OnInFlight::wait(Duration::from_millis(20)));
    let gate = Gate::closed();
    let orders = Guarded::gated(&layer.build().unwrap(), &gate);
    let first = orders.spawn(order("k", "a"));
    orders.ran(1).await;
    orders.send(order("k", "a")).await.assert_problem(409, "in_progress");
    gate.open();
    first.await.unwrap().assert_first(201, "order 1");
}

#[tokio::test(start_paused = true)]
async fn d2_a_waiter_is_answered_in_time_whatever_the_inner_service_waits_for() {
    let store = store();
    let (gate, others) = (Gate::closed(), Gate::closed());
    let runs = Count::default();
    let (passes, stays, counted) = (gate.clone(), others.clone(), runs.clone());
    let handler = service_fn(move |request: Given| {
        let gate = match request.headers()["idempotency-key"] == "k" {
            true => passes.clone(),
            false => stays.clone(),
        };
        let run = counted.more();
        async move {
            gate.pass().await;
            Ok::<_, Infallible>(created(run))
        }
    });
    let limited = ServiceBuilder::new().concurrency_limit(2).service(handler);
    let orders = Guarded::around(waiting_layer(&store).layer(limited));
    let first = orders.spawn(order("k", "a"));
    runs.reached(1).await;
    let waiter = orders.spawn(order("k", "a"));
    store.script().called(Verb::Changed, 1).await;
    // Others take every place under the limit, and the waiter has none.
    let _others: Vec<_> = (0..3).map(|it| orders.spawn(order(&format!("o-{it}"), "a"))).collect();
    runs.reached(2).await;
    gate.open();
    first.await.unwrap().assert_first(201, "order 1");
    waiter.await.unwrap().assert_problem(409, "in_progress");
}
