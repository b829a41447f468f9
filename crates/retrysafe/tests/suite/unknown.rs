//! Unknown outcomes and stores that fail (PROTOCOL 3, D3 and D4).

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::Response;
use retrysafe::{
    About, Attempt, Begin, Claim, Fingerprint, Held, IdempotencyLayer, Inspect as _, KeptHeaders,
    Lease, MemoryStore, OnInFlight, OnStoreFailure, OnUnknownOutcome, OperationId, Outcome,
    OutcomeOverrule, Overrule, Reconciled, Resolution, Scope, Store, StoreError, StoreErrorKind,
    Swept,
};
use retrysafe_testkit::{Fault, Faulty, ManualClock, Point, Verb};
use tokio::time::sleep;

use crate::common::*;

const SECOND: Duration = Duration::from_secs(1);

fn after_unknown(store: &TestStore, on: OnUnknownOutcome) -> TestLayer {
    layer(store).on_unknown_outcome(on).build().unwrap()
}

/// Fails the first time, and answers with the attempt from then on.
fn flaky(layer: &TestLayer) -> Guarded {
    Guarded::new(layer, |run, request: Given| async move {
        let attempt = request.extensions().get::<Attempt>().unwrap();
        let told = (attempt.number(), attempt.previous_vanished());
        match run {
            1 => status(500),
            _ => Response::builder().status(201).body(body(format!("{told:?}"))).unwrap(),
        }
    })
}

#[tokio::test]
async fn d3_reexecute_tells_the_handler() {
    let store = store();
    let orders = flaky(&after_unknown(&store, OnUnknownOutcome::Reexecute));
    orders.send(order("k", "a")).await.assert_first(500, "answer");
    assert_eq!(state(&store, "k").await, "lapsed");
    orders.send(order("k", "b")).await.assert_problem(422, "key_reused");
    orders.send(order("k", "a")).await.assert_first(201, "(2, true)");
    orders.send(order("k", "a")).await.assert_replay(201, "(2, true)");
    assert_eq!(orders.runs(), 2);
}

#[tokio::test]
async fn d3_refuse_until_an_operator_resolves_it() {
    let store = store();
    let orders = flaky(&after_unknown(&store, OnUnknownOutcome::Refuse));
    assert_eq!(orders.send(order("never", "a")).await.status, 500);
    let failing = Guarded::new(&after_unknown(&store, OnUnknownOutcome::Refuse), |_, _| async {
        status(500)
    });
    assert_eq!(failing.send(order("lost", "a")).await.status, 500);
    for key in ["never", "lost"] {
        for _ in 0..2 {
            let answer = orders.send(order(key, "a")).await;
            answer.assert_problem(409, "outcome_unknown");
            assert_eq!(answer.member("attempt"), 1);
            assert!(!answer.headers.contains_key("retry-after"));
        }
        orders.send(order(key, "b")).await.assert_problem(422, "key_reused");
    }
    let _ = store.resolve(&id("never"), 1, Resolution::DidNotHappen).await.unwrap();
    orders.send(order("never", "a")).await.assert_first(201, "(2, false)");

    let response =
        Response::builder().status(202).header("location", "/orders/7").body(()).unwrap();
    let outcome = Outcome {
        status: response.status(),
        headers: response.headers(),
        body: Some(&[Bytes::from_static(b"by hand")]),
        trailers: None,
        stream: false,
        trailers_only: false,
        recorded: Duration::ZERO,
        trace: None,
    };
    let payload = outcome.encode(&KeptHeaders::default());
    let happened = Resolution::Happened { payload, retention: Duration::from_secs(60) };
    let _ = store.resolve(&id("lost"), 1, happened).await.unwrap();
    let replay = orders.send(order("lost", "a")).await;
    replay.assert_replay(202, "by hand");
    assert_eq!(replay.headers["location"], "/orders/7");
}

#[tokio::test]
async fn d3_reconcile_asks_the_real_world() {
    let store = store();
    let answers = Arc::new(Mutex::new(vec![
        Some(Reconciled::Happened(Response::builder().status(202).body("found".into()).unwrap())),
        None,
        Some(Reconciled::StillUnknown),
    ]));
    let asked = answers.clone();
    let charge = id("k").derive_key("charge");
    let reconcile = OnUnknownOutcome::reconcile(move |unknown| {
        // It is told which keys the attempts that vanished have used.
        assert_eq!(unknown.context.derive_key("charge"), charge);
        assert!(unknown.context.previous_vanished());
        let answer = asked.lock().unwrap().pop();
        async move {
            tokio::task::yield_now().await;
            answer.unwrap().expect("a reconciler that panics")
        }
    });
    let orders = Guarded::new(&after_unknown(&store, reconcile), |_, _| async { status(500) });
    assert_eq!(orders.send(order("k", "a")).await.status, 500);
    // Still unknown, and a panic counts as that (D3).
    for attempt in [2, 3] {
        let answer = orders.send(order("k", "a")).await;
        answer.assert_problem(409, "outcome_unknown");
        assert_eq!(answer.member("attempt"), attempt);
        assert_eq!(state(&store, "k").await, "lapsed");
    }
    orders.send(order("k", "a")).await.assert_replay(202, "found");
    orders.send(order("k", "a")).await.assert_replay(202, "found");
    assert_eq!((orders.runs(), answers.lock().unwrap().len()), (1, 0));
}

#[tokio::test]
async fn d3_reconcile_runs_what_did_not_happen() {
    let store = store();
    let reconcile = OnUnknownOutcome::reconcile(|_| async { Reconciled::DidNotHappen });
    let orders = flaky(&after_unknown(&store, reconcile));
    assert_eq!(orders.send(order("k", "a")).await.status, 500);
    orders.send(order("k", "a")).await.assert_first(201, "(2, true)");
    orders.send(order("k", "a")).await.assert_replay(201, "(2, true)");
}

#[tokio::test]
async fn d3_reconcile_runs_under_the_lease_of_its_attempt() {
    let store = store();
    let (looking, gate) = (Count::default(), Gate::closed());
    let (seen, at_gate) = (looking.clone(), gate.clone());
    let reconcile = OnUnknownOutcome::reconcile(move |_| {
        seen.more();
        let gate = at_gate.clone();
        async move {
            gate.pass().await;
            Reconciled::DidNotHappen
        }
    });
    let orders = flaky(&after_unknown(&store, reconcile));
    assert_eq!(orders.send(order("k", "a")).await.status, 500);
    let retry = orders.spawn(order("k", "a"));
    looking.reached(1).await;
    assert_eq!(state(&store, "k").await, "in flight");
    orders.send(order("k", "a")).await.assert_problem(409, "in_progress");
    gate.open();
    retry.await.unwrap().assert_first(201, "(2, true)");
    assert_eq!(looking.now(), 1);
}

/// How a take-over can end without an outcome.
#[derive(Clone, Copy, Debug)]
enum TakeOver {
    Releases,
    IsNeverAnswered,
    IsGrantedTooLate,
}

#[tokio::test(start_paused = true)]
async fn d3_e3_what_vanished_is_not_forgotten_while_its_record_would_have_lived() {
    for take_over in [TakeOver::Releases, TakeOver::IsNeverAnswered, TakeOver::IsGrantedTooLate] {
        let (store, looked) = (store(), Count::default());
        let counted = looked.clone();
        let reconcile = OnUnknownOutcome::reconcile(move |_| {
            counted.more();
            async { Reconciled::DidNotHappen }
        });
        let layer = layer(&store).on_unknown_outcome(reconcile).lease(SECOND).build().unwrap();
        let orders = Guarded::new(&layer, move |run, request: Given| async move {
            let attempt = request.extensions().get::<Attempt>().unwrap();
            match run {
                1 => status(500),
                2 if matches!(take_over, TakeOver::Releases) => status(429),
                _ => Response::new(body(format!("{}", attempt.previous_vanished()))),
            }
        });
        assert_eq!(orders.send(order("k", "a")).await.status, 500);
        match take_over {
            TakeOver::Releases => {
                assert_eq!(orders.send(order("k", "a")).await.status, 429);
            }
            TakeOver::IsNeverAnswered => {
                store.script().next(Verb::Begin, Fault::HangAfter);
                store.script().next(Verb::Begin, Fault::HangAfter);
                orders.send(order("k", "a")).await.assert_problem(503, "store_unavailable");
            }
            TakeOver::IsGrantedTooLate => {
                store.script().next(Verb::Begin, Fault::Delay(3 * SECOND / 2));
                store.script().always(Verb::Renew, Fault::FailBefore);
                orders.send(order("k", "a")).await.assert_problem(503, "store_unavailable");
                store.script().heal();
            }
        }
        layer.engine().drain().await;
        assert_eq!(state(&store, "k").await, "released", "{take_over:?}");
        // Longer than an older attempt could be alive, and shorter than retention.
        sleep(12 * 60 * SECOND).await;
        let looked_before = looked.now();
        orders.send(order("k", "a")).await.assert_first(200, "true");
        assert_eq!(looked.now(), looked_before + 1, "{take_over:?}");
    }
}

/// Looks until the gate is open, and finds that nothing happened.
fn slow_look(gate: &Gate) -> (Count, OnUnknownOutcome) {
    let (gate, looked) = (gate.clone(), Count::default());
    let counted = looked.clone();
    let reconcile = OnUnknownOutcome::reconcile(move |_| {
        counted.more();
        let gate = gate.clone();
        async move {
            gate.pass().await;
            Reconciled::DidNotHappen
        }
    });
    (looked, reconcile)
}

#[tokio::test(start_paused = true)]
async fn d3_who_looked_for_longer_than_its_lease_runs_nothing() {
    let (store, gate) = (store(), Gate::closed());
    let (looked, reconcile) = slow_look(&gate);
    let orders = flaky(&after_unknown(&store, reconcile));
    assert_eq!(orders.send(order("k", "a")).await.status, 500);
    store.script().always(Verb::Renew, Fault::FailBefore);
    let retry = orders.spawn(order("k", "a"));
    looked.reached(1).await;
    sleep(31 * SECOND).await;
    gate.open();
    retry.await.unwrap().assert_problem(409, "in_progress");
    assert_eq!(orders.runs(), 1);
    // The key is free, and the doubt is not.
    assert_eq!(state(&store, "k").await, "released");
    orders.send(order("k", "a")).await.assert_first(201, "(3, true)");
    assert_eq!(looked.now(), 2);
}

#[tokio::test(start_paused = true)]
async fn d3_who_was_overtaken_while_it_looked_runs_nothing() {
    let (store, gate) = (store(), Gate::closed());
    let (looked, reconcile) = slow_look(&gate);
    let orders = flaky(&after_unknown(&store, reconcile));
    assert_eq!(orders.send(order("k", "a")).await.status, 500);
    store.script().always(Verb::Renew, Fault::FailBefore);
    let overtaken = orders.spawn(order("k", "a"));
    looked.reached(1).await;
    sleep(31 * SECOND).await;
    let winner = orders.spawn(order("k", "a"));
    looked.reached(2).await;
    gate.open();
    overtaken.await.unwrap().assert_problem(409, "in_progress");
    winner.await.unwrap().assert_first(201, "(3, true)");
    orders.send(order("k", "a")).await.assert_replay(201, "(3, true)");
    assert_eq!(orders.runs(), 2);
}

/// A layer that keeps 1 KiB, whose reconciler finds a response of so many bytes.
fn found(store: &TestStore, length: usize) -> TestLayer {
    let reconcile = OnUnknownOutcome::reconcile(move |_| async move {
        let found = Response::builder().status(202).body("f".repeat(length).into());
        Reconciled::Happened(found.unwrap())
    });
    let layer = layer(store).on_unknown_outcome(reconcile);
    layer.settings(|it| it.max_kept_body = 1024).build().unwrap()
}

#[tokio::test]
async fn d3_f4_what_happened_after_a_long_upload_is_kept_with_all_of_it() {
    let store = store();
    let orders = flaky(&found(&store, 5));
    let long = |last: u8| {
        let mut bytes = vec![7; 100 * 1024];
        bytes[100 * 1024 - 1] = last;
        order("k", bytes)
    };
    assert_eq!(orders.send(long(0)).await.status, 500);
    orders.send(long(0)).await.assert_replay(202, "fffff");
    orders.send(long(0)).await.assert_replay(202, "fffff");
    orders.send(long(1)).await.assert_problem(422, "key_reused");
    orders.send(order("k", "short")).await.assert_problem(422, "key_reused");
    assert_eq!(orders.runs(), 1);
}

#[tokio::test]
async fn d3_f4_what_happened_is_not_kept_with_an_upload_that_broke_off() {
    let store = store();
    let orders = flaky(&found(&store, 5));
    let long = || order("k", vec![7; 100 * 1024]);
    assert_eq!(orders.send(long()).await.status, 500);
    let cut = with_body("k", pieces([data(vec![7; 90 * 1024]), broken()]));
    orders.send(cut).await.assert_problem(409, "outcome_unknown");
    assert_eq!(state(&store, "k").await, "lapsed");
    orders.send(long()).await.assert_replay(202, "fffff");
}

#[tokio::test]
async fn d3_r4_what_happened_with_a_long_response_is_given_whole_once() {
    let store = store();
    let orders = flaky(&found(&store, 1025));
    assert_eq!(orders.send(order("k", "a")).await.status, 500);
    orders.send(order("k", "a")).await.assert_replay(202, &"f".repeat(1025));
    let retry = orders.send(order("k", "a")).await;
    retry.assert_problem(409, "response_unavailable");
    assert_eq!(retry.member("original_status"), 202);
    assert_eq!(orders.runs(), 1);
}

#[tokio::test]
async fn d3_e4_what_happened_is_kept_as_its_response_says() {
    let clock = Arc::new(ManualClock::new());
    let memory = MemoryStore::builder().clock(clock.clone()).build().unwrap();
    let store = Faulty::new(memory);
    let reconcile = OnUnknownOutcome::reconcile(|unknown| async move {
        let omit = unknown.context.key().as_str() == "secret";
        let outcome = omit.then_some(OutcomeOverrule::OmitBody);
        let overrule = Overrule { outcome, retention: Some(48 * 3600 * SECOND) };
        let found = Response::builder().status(202).extension(overrule).body("found".into());
        Reconciled::Happened(found.unwrap())
    });
    let orders = Guarded::new(&after_unknown(&store, reconcile), |_, _| async { status(500) });
    for key in ["k", "secret"] {
        assert_eq!(orders.send(order(key, "a")).await.status, 500);
        let found = orders.call(order(key, "a")).await;
        assert!(found.extensions().get::<Overrule>().is_none());
        Answer::read(found).await.assert_replay(202, "found");
    }
    clock.advance(47 * 3600 * SECOND);
    orders.send(order("k", "a")).await.assert_replay(202, "found");
    orders.send(order("secret", "a")).await.assert_problem(409, "response_unavailable");
    assert_eq!(orders.runs(), 2);
}

#[tokio::test(start_paused = true)]
async fn d3_r7_what_happened_and_was_not_recorded_says_so() {
    let store = store();
    let layer = found(&store, 5);
    let orders = flaky(&layer);
    assert_eq!(orders.send(order("k", "a")).await.status, 500);
    store.script().next(Verb::Complete, Fault::FailBefore);
    let answer = orders.send(order("k", "a")).await;
    answer.assert_replay(202, "fffff");
    assert_eq!(answer.headers["idempotency-status"], "not-recorded");
    layer.engine().drain().await;
    let replay = orders.send(order("k", "a")).await;
    replay.assert_replay(202, "fffff");
    assert!(!replay.headers.contains_key("idempotency-status"));
    assert_eq!(orders.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn d4_d5_a_store_that_does_not_answer() {
    let (store, layer) = default_layer();
    let orders = Guarded::orders(&layer);
    for fault in [Fault::FailBefore, Fault::FailAfter, Fault::HangBefore, Fault::HangAfter] {
        store.script().always(Verb::Begin, fault);
        let answer = orders.send(order("k", "a")).await;
        answer.assert_problem(503, "store_unavailable");
        assert_eq!(answer.headers["retry-after"], "1");
        store.script().heal();
        layer.engine().drain().await;
        assert!(matches!(state(&store, "k").await, "absent" | "released"), "{fault:?}");
    }
    assert_eq!(orders.runs(), 0);
    orders.send(order("k", "a")).await.assert_first(201, "order 1");
}

/// A store that answers every claim with one kind of error.
pub(crate) struct Down(pub(crate) MemoryStore, pub(crate) StoreErrorKind);

impl Store for Down {
    fn about(&self) -> About {
        self.0.about()
    }
    async fn begin(&self, _: &Claim) -> Result<Begin, StoreError> {
        Err(StoreError::new(self.1, "down"))
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
}

#[tokio::test(start_paused = true)]
async fn d4_only_what_was_never_sent_may_bypass() {
    use StoreErrorKind as Kind;
    for (kind, bypasses) in [
        (Kind::Unreachable, true),
        (Kind::Unavailable, false),
        (Kind::Timeout, false),
        (Kind::Full, false),
        (Kind::Unreadable, false),
        (Kind::Misconfigured, false),
    ] {
        for on_failure in [OnStoreFailure::Fail, OnStoreFailure::Bypass] {
            let store = Down(MemoryStore::new(), kind);
            let layer = IdempotencyLayer::builder(store, Scope::shared());
            let layer = layer.settings(|it| it.on_store_failure = on_failure).build().unwrap();
            let orders = Guarded::orders(&layer);
            let answer = orders.send(order("k", "a")).await;
            if bypasses && on_failure == OnStoreFailure::Bypass {
                answer.assert_first(201, "order 1");
                assert_eq!(answer.headers["idempotency-status"], "bypassed");
            } else {
                answer.assert_problem(503, "store_unavailable");
                assert_eq!(orders.runs(), 0, "{kind:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn d4_who_was_told_that_it_is_in_flight_never_bypasses() {
    let store = store();
    let layer = layer(&store)
        .on_in_flight(OnInFlight::wait(60 * SECOND))
        .settings(|it| it.on_store_failure = OnStoreFailure::Bypass)
        .build()
        .unwrap();
    let gate = Gate::closed();
    let orders = Guarded::gated(&layer, &gate);
    let first = orders.spawn(order("k", "a"));
    orders.ran(1).await;
    let duplicate = orders.spawn(order("k", "a"));
    store.script().called(Verb::Changed, 1).await;
    store.script().always(Verb::Begin, Fault::Unreachable);
    gate.open();
    first.await.unwrap().assert_first(201, "order 1");
    duplicate.await.unwrap().assert_problem(503, "store_unavailable");
    assert_eq!(orders.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn d4_who_was_told_that_the_outcome_is_unknown_never_bypasses() {
    let store = store();
    let layer = layer(&store)
        .on_unknown_outcome(OnUnknownOutcome::reconcile(|_| async { Reconciled::StillUnknown }))
        .settings(|it| {
            it.on_store_failure = OnStoreFailure::Bypass;
            // A longer body is claimed once to learn what to compare, and then once more.
            it.inline_body = 4;
        })
        .build()
        .unwrap();
    let orders = Guarded::new(&layer, |_, request: Given| async move {
        read(request).await.unwrap();
        status(500)
    });
    orders.send(order("k", "a long body")).await.assert_first(500, "answer");
    let hold = store.script().hold(Verb::Begin, Point::After);
    let retry = orders.spawn(order("k", "a long body"));
    hold.reached(1).await;
    store.script().always(Verb::Begin, Fault::Unreachable);
    hold.release();
    retry.await.unwrap().assert_problem(503, "store_unavailable");
    assert_eq!(orders.runs(), 1);
}
