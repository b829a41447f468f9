//! Running the handler (PROTOCOL 4).

use std::{
    pin::Pin,
    sync::{Arc, Mutex, mpsc},
    task::{Context, Poll},
    time::Duration,
};

use http::Response;
use metrics_util::debugging::DebuggingRecorder;
use retrysafe::{
    Attempt, Code, Engine, IdempotencyLayer, Once, OutcomeOverrule, Overrule, Scope,
    StreamedResponse,
};
use retrysafe_testkit::{Fault, Verb};
use tokio::time::sleep;
use tower::{Layer as _, service_fn};

use crate::common::*;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn e1_a_drain_waits_for_what_runs_and_for_its_record() {
    let (store, layer) = default_layer();
    let gate = Gate::closed();
    let orders = Guarded::gated(&layer, &gate);
    let client = orders.spawn(order("k", "a"));
    orders.ran(1).await;
    client.abort();
    let engine = layer.engine().clone();
    assert_eq!(engine.in_flight(), 1);
    let drained = tokio::spawn(async move { engine.drain().await });
    settle().await;
    assert!(!drained.is_finished());
    gate.open();
    drained.await.unwrap();
    assert_eq!((state(&store, "k").await, layer.engine().in_flight()), ("finished", 0));
    // Requests are still served.
    orders.send(order("l", "a")).await.assert_first(201, "order 2");
}

#[tokio::test(start_paused = true)]
async fn e2_a_handler_longer_than_its_lease_is_renewed_every_third_of_it() {
    let (store, layer) = default_layer();
    let orders = Guarded::new(&layer, |run, _| async move {
        sleep(100 * SECOND).await;
        created(run)
    });
    let first = orders.spawn(order("k", "a"));
    for _ in 0..3 {
        sleep(31 * SECOND).await;
        orders.send(order("k", "a")).await.assert_problem(409, "in_progress");
    }
    first.await.unwrap().assert_first(201, "order 1");
    assert!((9..=10).contains(&store.script().calls(Verb::Renew)));
    let renewals = store.script().calls(Verb::Renew);
    sleep(100 * SECOND).await;
    assert_eq!(store.script().calls(Verb::Renew), renewals, "what has ended is not renewed");
}

#[tokio::test(start_paused = true)]
async fn e2_a_renewal_that_fails_is_tried_again_in_time() {
    let (store, layer) = default_layer();
    let orders = Guarded::new(&layer, |run, _| async move {
        sleep(100 * SECOND).await;
        created(run)
    });
    for fault in [Fault::FailBefore, Fault::HangBefore, Fault::FailAfter, Fault::HangAfter] {
        store.script().next(Verb::Renew, fault);
        store.script().next(Verb::Renew, fault);
    }
    let first = orders.spawn(order("k", "a"));
    for _ in 0..99 {
        sleep(SECOND).await;
        assert_eq!(state(&store, "k").await, "in flight");
    }
    first.await.unwrap().assert_first(201, "order 1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e2_a_handler_that_blocks_its_thread_is_renewed() {
    let store = store();
    let layer = layer(&store).lease(3 * SECOND).build().unwrap();
    let (go_on, blocked) = mpsc::channel::<()>();
    let blocked = Arc::new(Mutex::new(blocked));
    let orders = Guarded::new(&layer, move |run, _| {
        let blocked = blocked.clone();
        async move {
            let _ = blocked.lock().unwrap().recv();
            created(run)
        }
    });
    let first = orders.spawn(order("k", "a"));
    store.script().called(Verb::Renew, 2).await;
    assert_eq!(state(&store, "k").await, "in flight");
    drop(go_on);
    first.await.unwrap().assert_first(201, "order 1");
}

#[tokio::test(start_paused = true)]
async fn e2_after_max_execution_the_lease_runs_out_and_the_completion_still_applies() {
    let store = store();
    let layer = layer(&store).settings(|it| it.max_execution = 60 * SECOND).build().unwrap();
    let orders = Guarded::new(&layer, |run, _| async move {
        sleep(200 * SECOND).await;
        created(run)
    });
    let first = orders.spawn(order("k", "a"));
    sleep(79 * SECOND).await;
    assert_eq!(state(&store, "k").await, "in flight");
    sleep(2 * SECOND).await;
    assert_eq!(state(&store, "k").await, "lapsed");
    assert!(!first.is_finished(), "the handler is not cancelled");
    first.await.unwrap().assert_first(201, "order 1");
    orders.send(order("k", "a")).await.assert_replay(201, "order 1");
    assert_eq!(store.script().calls(Verb::Renew), 5);
}

#[tokio::test]
async fn e2_retention_must_cover_an_execution() {
    let build = |retention| layer(&store()).retention(retention).build();
    assert_eq!(build(629 * SECOND).unwrap_err().setting(), "retention");
    assert!(build(630 * SECOND).is_ok());
}

#[tokio::test]
async fn e3_the_handler_is_told_of_its_attempt() {
    let (_, layer) = default_layer();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = seen.clone();
    let orders = Guarded::new(&layer, move |run, request: Given| {
        let attempt = request.extensions().get::<Attempt>().unwrap().clone();
        told.lock().unwrap().push(attempt);
        async move { if run < 3 { status([500, 429][run - 1]) } else { created(run) } }
    });
    for _ in 0..4 {
        orders.send(order("k", "a")).await;
    }
    let seen = seen.lock().unwrap();
    let of = |what: fn(&Attempt) -> u64| seen.iter().map(what).collect::<Vec<_>>();
    assert_eq!(of(|it| it.number().into()), [1, 2, 3]);
    assert!(of(|it| it.fence()).is_sorted_by(|one, next| one < next));
    assert_eq!(of(|it| it.previous_vanished().into()), [0, 1, 1]);
    for attempt in &*seen {
        assert_eq!(attempt.key().as_str(), "k");
        assert!(*attempt.scope() == Scope::shared());
        assert_eq!(*attempt.operation(), id("k"));
        assert_eq!(attempt.derive_key("charge"), id("k").derive_key("charge"));
    }
}

#[tokio::test]
async fn e3_a_service_behind_the_proxy_is_told_by_headers() {
    let store = store();
    let orders =
        Guarded::new(&layer(&store).forwarding().build().unwrap(), |run, request: Given| {
            let header =
                |name| request.headers().get(name).map(|it| it.to_str().unwrap().to_owned());
            assert!(!request.headers().contains_key("idempotency_previous"));
            let told = [
                header("idempotency-attempt"),
                header("idempotency-fence"),
                header("idempotency-previous"),
                header("idempotency-key"),
            ];
            async move {
                let answer = body(told.map(|it| it.unwrap_or("-".into())).join(" "));
                Response::builder().status(if run == 1 { 500 } else { 201 }).body(answer).unwrap()
            }
        });
    let request = || {
        let mut request = order("k", "a");
        // A client does not get to say these; CGI would read the last one as the one before.
        for name in [
            "idempotency-attempt",
            "idempotency-fence",
            "idempotency-previous",
            "idempotency_previous",
        ] {
            request.headers_mut().append(name, "spoofed".parse().unwrap());
        }
        request
    };
    orders.send(request()).await.assert_first(500, "1 1 - k");
    orders.send(request()).await.assert_first(201, "2 2 vanished k");
}

fn overruling(status: u16, outcome: OutcomeOverrule) -> (TestStore, Guarded) {
    let (store, layer) = default_layer();
    let orders = Guarded::new(&layer, move |run, _| async move {
        let mut response = created(run);
        *response.status_mut() = status.try_into().unwrap();
        response.extensions_mut().insert(Overrule { outcome: Some(outcome), retention: None });
        response
    });
    (store, orders)
}

#[tokio::test]
async fn e4_a_handler_overrules_the_policy() {
    let (_, orders) = overruling(500, OutcomeOverrule::Store);
    orders.send(order("k", "a")).await.assert_first(500, "order 1");
    orders.send(order("k", "a")).await.assert_replay(500, "order 1");

    let (store, orders) = overruling(201, OutcomeOverrule::Release);
    orders.send(order("k", "a")).await.assert_first(201, "order 1");
    assert_eq!(state(&store, "k").await, "released");
    orders.send(order("k", "a")).await.assert_first(201, "order 2");

    let (store, orders) = overruling(201, OutcomeOverrule::Unknown);
    orders.send(order("k", "a")).await.assert_first(201, "order 1");
    assert_eq!(state(&store, "k").await, "lapsed");

    // PROTOCOL 5: 1xx are never kept.
    let (store, orders) = overruling(103, OutcomeOverrule::Store);
    orders.send(order("k", "a")).await.assert_first(103, "order 1");
    assert_eq!(state(&store, "k").await, "lapsed");

    let (store, orders) = overruling(201, OutcomeOverrule::OmitBody);
    let first = orders.send(order("k", "a")).await;
    first.assert_first(201, "order 1");
    assert_eq!(first.headers["location"], "/orders/1");
    assert_eq!(state(&store, "k").await, "finished");
    let retry = orders.send(order("k", "a")).await;
    retry.assert_problem(409, "response_unavailable");
    assert_eq!(retry.member("original_status"), 201);
    assert!(!retry.headers.contains_key("retry-after"));
    assert_eq!(orders.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn e4_a_handler_overrules_the_retention() {
    let (_, layer) = default_layer();
    let orders = Guarded::new(&layer, |run, _| async move {
        let mut response = created(run);
        let retention = Some(60 * SECOND);
        response.extensions_mut().insert(Overrule { outcome: None, retention });
        response
    });
    orders.send(order("k", "a")).await.assert_first(201, "order 1");
    sleep(59 * SECOND).await;
    orders.send(order("k", "a")).await.assert_replay(201, "order 1");
    sleep(2 * SECOND).await;
    orders.send(order("k", "a")).await.assert_first(201, "order 2");
}

#[tokio::test(start_paused = true)]
async fn e4_a_retention_without_end_is_no_panic() {
    let (store, layer) = default_layer();
    let orders = Guarded::new(&layer, |run, _| async move {
        let mut response = created(run);
        let retention = Some(Duration::MAX);
        response.extensions_mut().insert(Overrule { outcome: None, retention });
        response
    });
    orders.send(order("k", "a")).await.assert_first(201, "order 1");
    sleep(25 * 3600 * SECOND).await;
    orders.send(order("k", "a")).await.assert_replay(201, "order 1");
    assert_eq!(state(&store, "k").await, "finished");
}

#[tokio::test(start_paused = true)]
async fn e4_st5_a_short_retention_does_not_let_the_fence_start_anew() {
    let (store, layer) = default_layer();
    store.script().always(Verb::Renew, Fault::FailBefore);
    let gate = Gate::closed();
    let at_gate = gate.clone();
    let orders = Guarded::new(&layer, move |run, _| {
        let gate = at_gate.clone();
        async move {
            if run == 1 {
                gate.pass().await;
            }
            let mut response = created(run);
            let retention = Some(SECOND);
            response.extensions_mut().insert(Overrule { outcome: None, retention });
            response
        }
    });
    let first = orders.spawn(order("k", "a"));
    orders.ran(1).await;
    sleep(31 * SECOND).await;
    orders.send(order("k", "a")).await.assert_first(201, "order 2");
    // The first attempt is still alive. It must not be met by another of its own fence.
    sleep(600 * SECOND).await;
    orders.send(order("k", "a")).await.assert_replay(201, "order 2");
    assert_eq!(entry(&store, "k").await.unwrap().fence, 2);
    gate.open();
    first.await.unwrap().assert_replay(201, "order 2");
    sleep(31 * SECOND).await;
    orders.send(order("k", "a")).await.assert_first(201, "order 3");
}

#[tokio::test]
async fn e4_a_service_behind_the_proxy_overrules_by_a_header() {
    let store = store();
    let orders = Guarded::new(&layer(&store).forwarding().build().unwrap(), |run, _| async move {
        let mut response = created(run);
        response.headers_mut().insert("idempotency-outcome", "release".parse().unwrap());
        response
    });
    let first = orders.send(order("k", "a")).await;
    first.assert_first(201, "order 1");
    assert!(!first.headers.contains_key("idempotency-outcome"), "stripped on the way out");
    orders.send(order("k", "a")).await.assert_first(201, "order 2");
}

#[tokio::test]
async fn e5_a_panic_is_a_500_wherever_it_happens() {
    for place in ["call", "future", "body"] {
        let (store, layer) = default_layer();
        let orders = Guarded::new(&layer, move |run, _| {
            assert!(place != "call" || run > 1, "in the call");
            async move {
                tokio::task::yield_now().await;
                assert!(place != "future" || run > 1, "in the future");
                let frames = pieces((0..2).map(move |piece| {
                    assert!(place != "body" || piece == 0 || run > 1, "in the body");
                    data("order ")
                }));
                Response::builder().status(201).body(frames).unwrap()
            }
        });
        orders.send(order("k", "a")).await.assert_problem(500, "handler_failed");
        assert_eq!(state(&store, "k").await, "lapsed", "{place}: given up at once");
        orders.send(order("k", "a")).await.assert_first(201, "order order ");
        orders.send(order("k", "a")).await.assert_replay(201, "order order ");
    }
}

#[tokio::test]
async fn e5_a_panic_of_what_the_handler_drops_is_its_own() {
    /// Panics when it is dropped, after its answer or instead of one.
    struct Dropped(Option<Response<Body>>);

    impl Future for Dropped {
        type Output = Result<Response<Body>, Failure>;

        fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
            Poll::Ready(Ok(self.0.take().expect("a handler that panics, and then once more")))
        }
    }

    impl Drop for Dropped {
        fn drop(&mut self) {
            panic!("in what the handler drops");
        }
    }

    for answer in [Some(201), None] {
        let (store, layer) = default_layer();
        let inner = service_fn(move |_: Given| Dropped(answer.map(status)));
        let orders = Guarded::around(layer.layer(inner));
        orders.send(order("k", "a")).await.assert_problem(500, "handler_failed");
        assert_eq!(state(&store, "k").await, "lapsed", "{answer:?}: given up at once");
    }
}

#[tokio::test(start_paused = true)]
async fn e5_a_stream_that_panics_is_given_up() {
    let (store, layer) = default_layer();
    let orders = Guarded::new(&layer, |run, _| async move {
        let frames = pieces((0..2).map(move |piece| {
            assert!(piece == 0 || run > 1, "in the stream");
            data("event ")
        }));
        let mut response = Response::new(frames);
        response.extensions_mut().insert(StreamedResponse);
        response
    });
    let broken = orders.send(order("k", "a")).await;
    assert!(broken.broke_off && broken.text() == "event ");
    layer.engine().drain().await;
    assert_eq!(state(&store, "k").await, "lapsed");
    assert!(!orders.send(order("k", "a")).await.broke_off);
    layer.engine().drain().await;
    orders.send(order("k", "a")).await.assert_replay(200, "event event ");
}

/// An owner whose renewals are lost, and who is overtaken. Run `n` answers once gate `n` is open.
struct Overtaken {
    store: TestStore,
    orders: Guarded,
    gates: [Gate; 3],
    first: tokio::task::JoinHandle<Answer>,
}

impl Overtaken {
    /// The first attempt runs, and its lease has run out.
    async fn new(statuses: [u16; 3]) -> Self {
        let (store, layer) = default_layer();
        store.script().always(Verb::Renew, Fault::FailBefore);
        let gates = [(); 3].map(|()| Gate::closed());
        let at_gates = gates.clone();
        let orders = Guarded::new(&layer, move |run, _| {
            let gate = at_gates[run - 1].clone();
            async move {
                gate.pass().await;
                let mut response = created(run);
                *response.status_mut() = statuses[run - 1].try_into().unwrap();
                response
            }
        });
        let first = orders.spawn(order("k", "a"));
        orders.ran(1).await;
        sleep(31 * SECOND).await;
        Self { store, orders, gates, first }
    }
}

#[tokio::test(start_paused = true)]
async fn e5_the_loser_answers_with_the_winners_record() {
    for status in [201, 500, 429] {
        let world = Overtaken::new([status, 202, 0]).await;
        world.gates[1].open();
        world.orders.send(order("k", "a")).await.assert_first(202, "order 2");
        world.gates[0].open();
        world.first.await.unwrap().assert_replay(202, "order 2");
        world.orders.send(order("k", "a")).await.assert_replay(202, "order 2");
        assert_eq!(world.orders.runs(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn e5_the_loser_answers_409_while_the_winner_runs() {
    let world = Overtaken::new([201, 202, 0]).await;
    let second = world.orders.spawn(order("k", "a"));
    world.orders.ran(2).await;
    world.gates[0].open();
    world.first.await.unwrap().assert_problem(409, "in_progress");
    assert_eq!(state(&world.store, "k").await, "in flight");
    world.gates[1].open();
    second.await.unwrap().assert_first(202, "order 2");
}

#[tokio::test(start_paused = true)]
async fn e5_the_loser_is_not_answered_with_another_requests_record() {
    let world = Overtaken::new([201, 429, 202]).await;
    world.gates[1].open();
    assert_eq!(world.orders.send(order("k", "a")).await.status, 429);
    // The key is free, and a new operation takes it.
    world.gates[2].open();
    world.orders.send(order("k", "b")).await.assert_first(202, "order 3");
    world.gates[0].open();
    let loser = world.first.await.unwrap();
    assert!(!loser.is_replay() && loser.status >= 400, "{loser:?}");
    assert_ne!(loser.text(), "order 3");
}

#[tokio::test(start_paused = true)]
async fn e5_a_stream_whose_lease_is_lost_breaks_off() {
    let recorder = DebuggingRecorder::new();
    let snapshots = recorder.snapshotter();
    let _metrics = metrics::set_default_local_recorder(&recorder);
    let (store, layer) = default_layer();
    let pipes = Arc::new(Mutex::new(Vec::new()));
    let opened = pipes.clone();
    let orders = Guarded::new(&layer, move |_, _| {
        let (pipe, body) = pipe();
        pipe.data("event ");
        opened.lock().unwrap().push(pipe);
        async move {
            Response::builder().header("content-type", "text/event-stream").body(body).unwrap()
        }
    });
    store.script().always(Verb::Renew, Fault::FailBefore);
    let first = orders.spawn(order("k", "a"));
    orders.ran(1).await;
    sleep(31 * SECOND).await;
    let second = orders.spawn(order("k", "a"));
    orders.ran(2).await;
    // The next renewal of the first attempt finds that it has lost its lease.
    store.script().heal();
    let broken = first.await.unwrap();
    assert!(broken.broke_off && broken.text() == "event ");
    pipes.lock().unwrap().clear();
    second.await.unwrap().assert_first(200, "event ");
    layer.engine().drain().await;
    orders.send(order("k", "a")).await.assert_replay(200, "event ");
    assert_outcomes(&snapshots, &[("executed", 1), ("fenced", 1), ("replayed", 1)]);
}

#[tokio::test]
async fn e6_a_bound_on_executions() {
    let store = store();
    let engine = Engine::builder(store.clone()).max_in_flight(2).build().unwrap();
    let layer = IdempotencyLayer::sharing(&engine, Scope::shared()).build().unwrap();
    let gate = Gate::closed();
    let orders = Guarded::gated(&layer, &gate);
    let running = [orders.spawn(order("a", "")), orders.spawn(order("b", ""))];
    orders.ran(2).await;
    let calls = store.script().all_calls();
    let answer = orders.send(order("c", "")).await;
    answer.assert_problem(503, "overloaded");
    assert!(answer.headers.contains_key("retry-after"));
    assert_eq!(store.script().all_calls(), calls, "before any store call");
    gate.open();
    for first in running {
        assert_eq!(first.await.unwrap().status, 201);
    }
    orders.send(order("c", "")).await.assert_first(201, "order 3");
    let zero = Engine::builder(store).max_in_flight(0).build();
    assert_eq!(zero.unwrap_err().setting(), "max_in_flight");
}

/// A layer whose engine runs one at a time.
fn one_at_a_time(store: &TestStore) -> IdempotencyLayer<TestStore> {
    let engine = Engine::builder(store.clone()).max_in_flight(1).build().unwrap();
    IdempotencyLayer::sharing(&engine, Scope::shared()).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn e6_what_is_left_to_do_in_the_background_counts() {
    for verb in [Verb::Begin, Verb::Complete] {
        let store = store();
        let layer = one_at_a_time(&store);
        let orders = Guarded::orders(&layer);
        if verb == Verb::Begin {
            // A claim that was never answered, and is hard to release.
            store.script().next(verb, Fault::HangAfter);
            store.script().next(verb, Fault::FailAfter);
            store.script().always(Verb::Release, Fault::FailBefore);
            orders.send(order("k", "a")).await.assert_problem(503, "store_unavailable");
        } else {
            // An outcome that is hard to write.
            store.script().always(verb, Fault::FailBefore);
            orders.send(order("k", "a")).await.assert_first(201, "order 1");
        }
        for _ in 0..10 {
            sleep(10 * SECOND).await;
            orders.send(order("l", "a")).await.assert_problem(503, "overloaded");
        }
        store.script().heal();
        layer.engine().drain().await;
        assert_eq!(orders.send(order("l", "a")).await.status, 201, "{verb:?}");
    }
}

#[tokio::test]
async fn e6_a_step_of_a_handler_needs_a_place_of_its_own() {
    let store = store();
    let layer = one_at_a_time(&store);
    let shared = Once::sharing(layer.engine()).build().unwrap();
    let own = Once::builder(store).build().unwrap();
    for (once, key, code) in [(shared, "shared", Some(Code::Overloaded)), (own, "own", None)] {
        let orders = Guarded::new(&layer, move |run, _| {
            let charge =
                once.run("charge", &Scope::shared(), key, "a", |_| async { Ok::<_, ()>(1) });
            async move {
                assert_eq!(charge.await.err().and_then(|error| error.code()), code);
                created(run)
            }
        });
        orders.send(order(key, "a")).await.assert_first(201, "order 1");
    }
}

#[tokio::test]
async fn e6_what_was_found_and_not_run_does_not_count() {
    let store = store();
    let orders = Guarded::orders(&one_at_a_time(&store));
    for _ in 0..3 {
        orders.send(order("k", "a")).await;
        orders.send(order("k", "b")).await.assert_problem(422, "key_reused");
    }
    orders.send(order("l", "a")).await.assert_first(201, "order 2");
}
