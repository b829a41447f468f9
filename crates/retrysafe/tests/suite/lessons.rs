//! Mistakes that others made, in released systems. Each row of LESSONS.md has a test of its name;
//! those that need the tools of another subject are there: `disconnect_frees` and
//! `disconnect_wedges` in `dropped`, `reader_guard_across_sleep` and `waiters_eat_pool` in `waiting`,
//! `failed_complete_deletes` and `expired_answers_409` in `recording`, `separator_collision` in
//! `scopes`, `double_counts` in `bodies`.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response, Uri};
use metrics_util::debugging::DebuggingRecorder;
use retrysafe::{
    Begin, Claim, Engine, IdempotencyLayer, Inspect as _, MemoryStore, Operated, OutcomePolicy,
    Owner, RequestBody, Resolution, Scope, ScopeFrom, Store as _, SystemEntropy,
};
use retrysafe_testkit::{Fault, Faulty, Point, TokioClock, Verb};
use tokio::{task::JoinSet, time::sleep};
use tower::{Layer as _, ServiceBuilder, buffer::BufferLayer, service_fn};

use crate::common::*;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn check_then_set() {
    for _ in 0..50 {
        let (_, layer) = default_layer();
        let orders = Guarded::new(&layer, |run, _| async move {
            tokio::task::yield_now().await;
            created(run)
        });
        let mut eight = JoinSet::new();
        for _ in 0..8 {
            let orders = orders.clone();
            eight.spawn(async move { orders.send(order("k", "a")).await });
        }
        for answer in eight.join_all().await {
            assert!(answer.status == 201 || answer.status == 409, "{answer:?}");
        }
        assert_eq!(orders.runs(), 1);
    }
}

/// The first run never ends by itself; its renewals are lost.
async fn abandoned_first() -> (TestStore, TestLayer, Guarded, Gate, tokio::task::JoinHandle<Answer>)
{
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
            created(run)
        }
    });
    let first = orders.spawn(order("k", "a"));
    orders.ran(1).await;
    (store, layer, orders, gate, first)
}

#[tokio::test(start_paused = true)]
async fn stale_takeover() {
    // A take-over of an expired lease overwrote a record that had completed in between.
    let (store, _, orders, gate, first) = abandoned_first().await;
    sleep(31 * SECOND).await;
    let hold = store.script().hold(Verb::Begin, Point::Before);
    let retry = orders.spawn(order("k", "a"));
    hold.reached(1).await;
    gate.open();
    first.await.unwrap().assert_first(201, "order 1");
    hold.release();
    retry.await.unwrap().assert_replay(201, "order 1");
    assert_eq!(orders.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn loser_frees_owner() {
    let (store, layer) = default_layer();
    let gate = Gate::closed();
    let orders = Guarded::gated(&layer, &gate);
    let first = orders.spawn(order("k", "a"));
    orders.ran(1).await;
    // A rejected duplicate, one whose claim was lost, one that left.
    orders.send(order("k", "a")).await.assert_problem(409, "in_progress");
    store.script().next(Verb::Begin, Fault::FailAfter);
    store.script().next(Verb::Begin, Fault::HangAfter);
    orders.send(order("k", "a")).await.assert_problem(503, "store_unavailable");
    let left = orders.spawn(order("k", "a"));
    left.abort();
    let _ = left.await;
    store.script().called(Verb::Release, 1).await;
    settle().await;
    assert_eq!(state(&store, "k").await, "in flight");
    gate.open();
    first.await.unwrap().assert_first(201, "order 1");
    orders.send(order("k", "a")).await.assert_replay(201, "order 1");
}

#[tokio::test(start_paused = true)]
async fn unfenced_complete() {
    // An owner that outlived its lease overwrote, or deleted, its successor's record.
    let (store, _, orders, gate, first) = abandoned_first().await;
    sleep(31 * SECOND).await;
    orders.send(order("k", "a")).await.assert_first(201, "order 2");
    gate.open();
    first.await.unwrap().assert_replay(201, "order 2");
    orders.send(order("k", "a")).await.assert_replay(201, "order 2");
    assert_eq!(state(&store, "k").await, "finished");
}

#[tokio::test(start_paused = true)]
async fn missing_deadline() {
    // An absent lease was read as an expired one: there is none without a deadline, and a key that
    // is claimed is not free a moment later, nor before its last renewal has run out.
    let (store, layer) = default_layer();
    let gate = Gate::closed();
    let orders = Guarded::gated(&layer, &gate);
    let first = orders.spawn(order("k", "a"));
    orders.ran(1).await;
    for _ in 0..120 {
        orders.send(order("k", "a")).await.assert_problem(409, "in_progress");
        sleep(SECOND).await;
    }
    gate.open();
    first.await.unwrap().assert_first(201, "order 1");
    assert_eq!((orders.runs(), state(&store, "k").await), (1, "finished"));
}

#[tokio::test]
async fn recomputed_key() {
    // The key was computed again after the handler had changed its input.
    let store = store();
    let scope = ScopeFrom::header("x-account").unwrap();
    let layer = IdempotencyLayer::builder(store.clone(), scope).build().unwrap();
    let orders = Guarded::new(&layer, |run, mut request: Given| async move {
        request.headers_mut().insert("idempotency-key", "other".parse().unwrap());
        request.headers_mut().insert("x-account", "other".parse().unwrap());
        *request.uri_mut() = Uri::from_static("/other");
        request.extensions_mut().clear();
        let _ = read(request).await;
        created(run)
    });
    let request = || {
        let mut request = order("k", "a");
        request.headers_mut().insert("x-account", "alice".parse().unwrap());
        request
    };
    orders.send(request()).await.assert_first(201, "order 1");
    orders.send(request()).await.assert_replay(201, "order 1");
    assert_eq!(store.count().await.unwrap().finished, 1);
}

#[tokio::test(start_paused = true)]
async fn crash_wedges() {
    // A crash left a key in progress for three days.
    let memory = MemoryStore::builder().clock(Arc::new(TokioClock::new())).build().unwrap();
    let crashed = Claim {
        id: id("k"),
        owner: Owner::new(&SystemEntropy),
        fingerprint: {
            let store = Faulty::new(memory.clone());
            let layer = layer(&store).build().unwrap();
            let gate = Gate::closed();
            let orders = Guarded::gated(&layer, &gate);
            drop(orders.spawn(order("probe", "a")));
            orders.ran(1).await;
            entry(&store, "probe").await.unwrap().fingerprint
        },
        lease: 30 * SECOND,
        retention: 24 * 3600 * SECOND,
        take_over: true,
    };
    // A process that claims, and is gone.
    assert!(matches!(memory.begin(&crashed).await, Ok(Begin::Acquired(_))));
    let store = Faulty::new(memory);
    let orders = Guarded::orders(&layer(&store).build().unwrap());
    orders.send(order("k", "a")).await.assert_problem(409, "in_progress");
    sleep(31 * SECOND).await;
    orders.send(order("k", "a")).await.assert_first(201, "order 1");
    orders.send(order("k", "a")).await.assert_replay(201, "order 1");
}

/// A layer that keeps 100 bytes, and a response of more.
fn oversize() -> Guarded {
    let store = store();
    let layer = layer(&store).settings(|it| it.max_kept_body = 100).build().unwrap();
    Guarded::new(&layer, |_, _| async { Response::new(body("x".repeat(101))) })
}

#[tokio::test]
async fn oversize_reruns() {
    let orders = oversize();
    orders.send(order("k", "a")).await;
    for _ in 0..3 {
        orders.send(order("k", "a")).await.assert_problem(409, "response_unavailable");
    }
    assert_eq!(orders.runs(), 1);
}

#[tokio::test]
async fn oversize_empties() {
    let orders = oversize();
    orders.send(order("k", "a")).await.assert_first(200, &"x".repeat(101));
    let retry = orders.send(order("k", "a")).await;
    assert_eq!(retry.member("original_status"), 200);
}

async fn replays_with(name: &'static str, value: &'static str) -> Answer {
    let (_, layer) = default_layer();
    let orders = Guarded::new(&layer, move |run, _| async move {
        let mut response = created(run);
        response.headers_mut().insert(name, value.parse().unwrap());
        response
    });
    let first = orders.send(order("k", "a")).await;
    assert_eq!(first.headers[name], value);
    let replay = orders.send(order("k", "a")).await;
    replay.assert_replay(201, "order 1");
    replay
}

#[tokio::test]
async fn no_store_reruns() {
    assert_eq!(
        replays_with("cache-control", "no-store").await.headers["cache-control"],
        "no-store"
    );
}

#[tokio::test]
async fn set_cookie_reruns() {
    let replay = replays_with("set-cookie", "session=1").await;
    assert!(!replay.headers.contains_key("set-cookie"), "a cookie is not for whoever comes later");
}

#[tokio::test]
async fn long_key_unprotected() {
    let (_, layer) = default_layer();
    let orders = Guarded::orders(&layer);
    let long = "k".repeat(300);
    for bad in [long.as_bytes(), b"", b"\xff\xfe", b"caf\xc3\xa9"] {
        let mut request = order("k", "a");
        let value = http::HeaderValue::from_bytes(bad).unwrap();
        request.headers_mut().insert("idempotency-key", value);
        orders.send(request).await.assert_problem(400, "invalid_key");
    }
    assert_eq!(orders.runs(), 0);
}

#[tokio::test]
async fn quoted_key_differs() {
    let (_, layer) = default_layer();
    let orders = Guarded::orders(&layer);
    orders.send(order("\"k\"", "a")).await.assert_first(201, "order 1");
    orders.send(order("k", "a")).await.assert_replay(201, "order 1");
    orders.send(order("\"k\"; a=1", "a")).await.assert_replay(201, "order 1");
}

#[derive(Clone)]
struct Original(Uri);

#[tokio::test]
async fn nested_route_collision() {
    // Inside a nested router the prefix was gone: two routes replayed each other.
    let store = store();
    let layer =
        layer(&store).original_uri(|head| head.extensions.get::<Original>().map(|it| &it.0));
    let orders = Guarded::orders(&layer.build().unwrap());
    let under = |prefix: &str| {
        let mut request = order("k", "a");
        let original = format!("{prefix}/orders").parse().unwrap();
        request.extensions_mut().insert(Original(original));
        request
    };
    orders.send(under("/eu")).await.assert_first(201, "order 1");
    orders.send(under("/us")).await.assert_problem(422, "key_reused");
}

#[tokio::test]
async fn other_path_replays() {
    let (_, layer) = default_layer();
    let orders = Guarded::orders(&layer);
    orders.send(order("k", "a")).await.assert_first(201, "order 1");
    let mut other_path = order("k", "a");
    *other_path.uri_mut() = Uri::from_static("/refunds");
    let mut other_method = order("k", "a");
    *other_method.method_mut() = http::Method::PATCH;
    for other in [other_path, other_method, order("k", "b")] {
        orders.send(other).await.assert_problem(422, "key_reused");
    }
    orders.send(order("k", "a")).await.assert_replay(201, "order 1");
}

#[tokio::test]
async fn cross_tenant_replay() {
    let store = store();
    let scope = ScopeFrom::credentials();
    let orders = Guarded::orders(&IdempotencyLayer::builder(store, scope).build().unwrap());
    let by = |credentials: &'static str| {
        let mut request = order("k", "a");
        request.headers_mut().insert("authorization", credentials.parse().unwrap());
        request
    };
    orders.send(by("Bearer alice")).await.assert_first(201, "order 1");
    orders.send(by("Bearer bob")).await.assert_first(201, "order 2");
    orders.send(by("Bearer alice")).await.assert_replay(201, "order 1");
    orders.send(by("Bearer bob")).await.assert_replay(201, "order 2");
}

#[tokio::test]
async fn cached_500() {
    // A stored 500 made every retry useless; the blanket opposite charged twice without a word.
    let (_, layer) = default_layer();
    let orders = Guarded::new(&layer, |run, request: Given| async move {
        let attempt = request.extensions().get::<retrysafe::Attempt>().unwrap();
        assert_eq!(attempt.previous_vanished(), run == 2, "the handler is told");
        if run == 1 { status(500) } else { created(run) }
    });
    orders.send(order("k", "a")).await.assert_first(500, "answer");
    orders.send(order("k", "a")).await.assert_first(201, "order 2");
    orders.send(order("k", "a")).await.assert_replay(201, "order 2");

    let refuse = layer_refusing();
    let orders = Guarded::new(&refuse, |_, _| async { status(500) });
    orders.send(order("k", "a")).await.assert_first(500, "answer");
    orders.send(order("k", "a")).await.assert_problem(409, "outcome_unknown");
    assert_eq!(orders.runs(), 1);
}

fn layer_refusing() -> TestLayer {
    layer(&store()).on_unknown_outcome(retrysafe::OnUnknownOutcome::Refuse).build().unwrap()
}

#[tokio::test]
async fn repeated_headers_lost() {
    let (_, layer) = default_layer();
    let orders = Guarded::new(&layer, |run, _| async move {
        let mut response = created(run);
        for (name, value) in
            [("link", "<a>"), ("x-tag", "1"), ("link", "<b>"), ("x-tag", "1"), ("link", "<c>")]
        {
            response.headers_mut().append(name, value.parse().unwrap());
        }
        response.headers_mut().append("x-tag", http::HeaderValue::from_bytes(b"\xff").unwrap());
        response
    });
    for _ in 0..2 {
        let answer = orders.send(order("k", "a")).await;
        let lines =
            |name| answer.headers.get_all(name).iter().map(|it| it.as_bytes()).collect::<Vec<_>>();
        assert_eq!(lines("link"), [b"<a>", b"<b>", b"<c>"]);
        assert_eq!(lines("x-tag"), [&b"1"[..], b"1", b"\xff"]);
    }
}

#[tokio::test]
async fn status_changed() {
    let (_, layer) = default_layer();
    let orders = Guarded::new(&layer, |run, _| async move {
        let mut response = created(run);
        response.headers_mut().insert("etag", "\"v1\"".parse().unwrap());
        response
    });
    for _ in 0..2 {
        let answer = orders.send(order("k", "a")).await;
        assert_eq!(answer.status, 201);
        assert_eq!(answer.headers["location"], "/orders/1");
        assert_eq!(answer.headers["etag"], "\"v1\"");
    }
}

#[tokio::test]
async fn binary_body_lost() {
    let (_, layer) = default_layer();
    let bytes: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    let sent = bytes.clone();
    let orders = Guarded::new(&layer, move |_, _| {
        let sent = sent.clone();
        async move { Response::new(body(sent)) }
    });
    for _ in 0..2 {
        assert_eq!(orders.send(order("k", bytes.clone())).await.body, bytes);
    }
    assert_eq!(orders.runs(), 1);
}

#[tokio::test]
async fn replay_never_engaged() {
    // Probe and write used different keys: nothing was ever replayed, in tests neither.
    let (store, layer) = default_layer();
    let orders = Guarded::orders(&layer);
    orders.send(order("k", "a")).await.assert_first(201, "order 1");
    assert_eq!(state(&store, "k").await, "finished");
    for _ in 0..10 {
        orders.send(order("k", "a")).await.assert_replay(201, "order 1");
    }
    assert_eq!((orders.runs(), store.count().await.unwrap().finished), (1, 1));
}

#[tokio::test]
async fn bypass_poll_ready() {
    // The inner service was cloned and called without `poll_ready`: panic under a concurrency limit.
    let (_, layer) = default_layer();
    let runs = Arc::new(AtomicUsize::new(0));
    let inside = Arc::new(AtomicUsize::new(0));
    let (counted, entered) = (runs.clone(), inside.clone());
    let handler = service_fn(move |_: Request<RequestBody<Body>>| {
        let run = counted.fetch_add(1, Ordering::SeqCst) + 1;
        let inside = entered.clone();
        async move {
            assert!(inside.fetch_add(1, Ordering::SeqCst) < 2);
            tokio::task::yield_now().await;
            inside.fetch_sub(1, Ordering::SeqCst);
            Ok::<_, Infallible>(created(run))
        }
    });
    let limited_inside = Guarded::around(
        ServiceBuilder::new().layer(layer.clone()).concurrency_limit(2).service(handler.clone()),
    );
    let limited_outside = Guarded::around(
        ServiceBuilder::new().concurrency_limit(2).layer(layer.clone()).service(handler.clone()),
    );
    let buffered_inside = Guarded::around(
        layer.layer(
            ServiceBuilder::new()
                .layer(BufferLayer::new(2))
                .concurrency_limit(2)
                .service(handler.clone()),
        ),
    );
    let buffered_outside = Guarded::around(
        ServiceBuilder::new()
            .layer(BufferLayer::new(2))
            .concurrency_limit(2)
            .layer(layer)
            .service(handler),
    );
    let stacks = [limited_inside, limited_outside, buffered_inside, buffered_outside];
    for (number, stack) in stacks.into_iter().enumerate() {
        let before = runs.load(Ordering::SeqCst);
        let mut all = JoinSet::new();
        for key in 0..20 {
            for _ in 0..2 {
                let (stack, key) = (stack.clone(), format!("{number}-{key}"));
                all.spawn(async move { stack.send(order(&key, "a")).await });
            }
        }
        for _ in 0..20 {
            let stack = stack.clone();
            all.spawn(async move { stack.send(keyless()).await });
        }
        for answer in all.join_all().await {
            assert!(matches!(answer.status, 201 | 409), "{answer:?}");
        }
        assert_eq!(runs.load(Ordering::SeqCst) - before, 40, "stack {number}");
    }
}

#[tokio::test(start_paused = true)]
async fn capacity_evicts() {
    // The cache evicted a live claim: double execution. A store that is full refuses.
    let memory = MemoryStore::builder().capacity(2).clock(Arc::new(TokioClock::new()));
    let store = Faulty::new(memory.build().unwrap());
    let gate = Gate::closed();
    let orders = Guarded::gated(&layer(&store).build().unwrap(), &gate);
    let running = [orders.spawn(order("a", "")), orders.spawn(order("b", ""))];
    orders.ran(2).await;
    orders.send(order("c", "")).await.assert_problem(503, "store_unavailable");
    assert_eq!(store.script().calls(Verb::Release), 0, "a refusal leaves nothing to release");
    gate.open();
    for first in running {
        assert_eq!(first.await.unwrap().status, 201);
    }
    orders.send(order("c", "")).await.assert_problem(503, "store_unavailable");
    assert!(orders.send(order("a", "")).await.is_replay());
    assert!(orders.send(order("b", "")).await.is_replay());
    sleep(25 * 3600 * SECOND).await;
    orders.send(order("c", "")).await.assert_first(201, "order 3");
}

#[tokio::test(start_paused = true)]
async fn undecodable_deleted() {
    // A record of another version was deleted and run again during an upgrade.
    let (store, layer) = default_layer();
    let orders = Guarded::new(&layer, |_, _| async { status(500) });
    orders.send(order("k", "a")).await.assert_first(500, "answer");
    let payload = (&b"\x02written by a later release"[..]).into();
    let newer = Resolution::Happened { payload, retention: 3600 * SECOND };
    assert_eq!(store.resolve(&id("k"), 1, newer).await.unwrap(), Operated::Applied);
    let before = entry(&store, "k").await;
    for _ in 0..3 {
        orders.send(order("k", "a")).await.assert_problem(503, "store_unavailable");
    }
    assert_eq!(entry(&store, "k").await, before);
    assert_eq!(orders.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn replay_burns_quota() {
    // Replays were counted as fresh executions in metrics and quotas.
    let recorder = DebuggingRecorder::new();
    let snapshots = recorder.snapshotter();
    let _metrics = metrics::set_default_local_recorder(&recorder);
    let (_, layer) = default_layer();
    let orders = Guarded::orders(&layer);
    for _ in 0..3 {
        orders.send(order("k", "a")).await;
    }
    orders.send(order("k", "b")).await;
    orders.send(order("l", "a")).await;
    assert_outcomes(&snapshots, &[("executed", 2), ("key_reused", 1), ("replayed", 2)]);
}

#[tokio::test(start_paused = true)]
async fn every_request_is_counted_once() {
    let recorder = DebuggingRecorder::new();
    let snapshots = recorder.snapshotter();
    let _metrics = metrics::set_default_local_recorder(&recorder);
    let (_store, _layer, orders, gate, first) = abandoned_first().await;
    sleep(31 * SECOND).await;
    orders.send(order("k", "a")).await.assert_first(201, "order 2");
    gate.open();
    // It ran, and was overtaken: `fenced`, and not a replay as well.
    first.await.unwrap().assert_replay(201, "order 2");
    assert_outcomes(&snapshots, &[("executed", 1), ("fenced", 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_is_counted_once() {
    let recorder = DebuggingRecorder::new();
    let snapshots = recorder.snapshotter();
    let _metrics = metrics::set_default_local_recorder(&recorder);
    let (store, _layer, orders, gate, first) = abandoned_first().await;
    sleep(31 * SECOND).await;
    orders.send(order("k", "a")).await.assert_first(201, "order 2");
    // A renewal finds out, and then the end does.
    let renewals = store.script().calls(Verb::Renew);
    store.script().heal();
    sleep(11 * SECOND).await;
    assert!(store.script().calls(Verb::Renew) > renewals);
    gate.open();
    first.await.unwrap().assert_replay(201, "order 2");
    assert_eq!(counted(&snapshots, "retrysafe_lost_leases_total"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_layers_on_one_store_run_once() {
    // As two processes would: nothing shared but the store.
    for _ in 0..50 {
        let store = store();
        let ran = Arc::new(Mutex::new(Vec::new()));
        let processes: Vec<_> = (0..2)
            .map(|_| {
                let engine = Engine::builder(store.clone()).build().unwrap();
                let layer = IdempotencyLayer::sharing(&engine, Scope::shared()).build().unwrap();
                let ran = ran.clone();
                Guarded::new(&layer, move |run, _| {
                    ran.lock().unwrap().push(run);
                    async move { created(run) }
                })
            })
            .collect();
        let mut all = JoinSet::new();
        for number in 0..20 {
            let orders = processes[number % 2].clone();
            all.spawn(async move { orders.send(order("k", "a")).await });
        }
        all.join_all().await;
        assert_eq!(ran.lock().unwrap().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_may_keep_a_500_on_purpose() {
    let store = store();
    let layer = layer(&store).outcomes(OutcomePolicy::Stripe).build().unwrap();
    let orders = Guarded::new(&layer, |_, _| async { status(500) });
    orders.send(order("k", "a")).await.assert_first(500, "answer");
    orders.send(order("k", "a")).await.assert_replay(500, "answer");
}
