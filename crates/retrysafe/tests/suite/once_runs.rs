//! What happens to a call while it runs and after (PROTOCOL 3 to 5): the engine, seen from `Once`.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use retrysafe::{
    Code, Inspect as _, MemoryStore, OnInFlight, OnStoreFailure, OnUnknownOutcome, Once,
    OnceBuilder, OnceContext, OnceError, Reconciled, Resolution, Scope, StoreErrorKind,
};
use retrysafe_testkit::{Fault, Faulty, ManualClock, TokioClock, Verb};
use tokio::task::JoinSet;

use crate::{
    common::*,
    once::{Receipt, Refusal, SECOND, assert_code, default_once, failing, on, order, state_of},
    unknown::Down,
};

const DAY: Duration = Duration::from_secs(24 * 3600);

#[tokio::test]
async fn e1_dropping_the_call_changes_nothing() {
    // `disconnect_frees` and `disconnect_wedges`
    let (_, once) = default_once();
    let (started, gate) = (Count::default(), Gate::closed());
    let (counted, at_gate) = (started.clone(), gate.clone());
    let call = once.run("order", &Scope::shared(), "k", "a", move |_| async move {
        let run = counted.more();
        at_gate.pass().await;
        Ok::<_, Refusal>(Receipt { run })
    });
    let call = tokio::spawn(call.into_future());
    started.reached(1).await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    assert_code(order!(once, started, "k", "a").await, Code::InProgress);
    gate.open();
    once.engine().drain().await;
    let retry = order!(once, started, "k", "a").await.unwrap();
    assert!(retry.replayed && retry.value.run == 1);
}

#[tokio::test(start_paused = true)]
async fn e2_a_handler_that_never_ends_is_taken_over_and_never_answers() {
    let (_, once) = default_once();
    let (started, gate) = (Count::default(), Gate::closed());
    let (counted, at_gate) = (started.clone(), gate.clone());
    let first = once.run("order", &Scope::shared(), "k", "a", move |_| async move {
        let run = counted.more();
        at_gate.pass().await;
        Ok::<_, Refusal>(Receipt { run })
    });
    let first = tokio::spawn(first.into_future());
    started.reached(1).await;
    // It is renewed up to `max_execution`, and then no longer.
    tokio::time::sleep(590 * SECOND).await;
    assert_code(order!(once, started, "k", "a").await, Code::InProgress);
    tokio::time::sleep(60 * SECOND).await;
    let second = order!(once, started, "k", "a").await.unwrap();
    assert_eq!((second.value.run, second.attempt), (2, Some(2)));
    // E5: its late result is not given, to nobody.
    gate.open();
    let late = first.await.unwrap().unwrap();
    assert!(late.replayed && late.value.run == 2, "{late:?}");
    assert_eq!(order!(once, started, "k", "a").await.unwrap().value.run, 2);
}

#[tokio::test]
async fn e5_a_panic_is_not_definite() {
    let (_, once) = default_once();
    let runs = Count::default();
    for place in ["call", "future"] {
        let panics = once.run("order", &Scope::shared(), place, "a", move |_| {
            assert!(place != "call", "the handler panicked");
            async move {
                assert!(place != "future", "the handler panicked");
                Ok::<_, Refusal>(Receipt { run: 0 })
            }
        });
        let error = assert_code(panics.await, Code::HandlerFailed);
        assert!(!error.is_definite());
        assert_eq!(state_of(&once, place).await, "lapsed");
        assert!(!order!(once, runs, place, "a").await.unwrap().replayed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn d1_fifty_at_once_run_once() {
    // `check_then_set`
    for on_in_flight in [OnInFlight::Reject, OnInFlight::wait(60 * SECOND)] {
        let store = store();
        let once = on(&store).on_in_flight(on_in_flight).build().unwrap();
        let runs = Count::default();
        let mut fifty = JoinSet::new();
        for _ in 0..50 {
            let (once, counted) = (once.clone(), runs.clone());
            fifty.spawn(async move {
                once.run("order", &Scope::shared(), "k", "a", |_| async move {
                    tokio::task::yield_now().await;
                    Ok::<_, Refusal>(counted.more())
                })
                .await
            });
        }
        let answers = fifty.join_all().await;
        assert_eq!(runs.now(), 1);
        let first = answers.iter().flatten().filter(|done| !done.replayed).count();
        assert_eq!(first, 1);
        for answer in answers {
            match answer {
                Ok(done) => assert_eq!(done.value, 1),
                Err(error) => {
                    assert_eq!(on_in_flight, OnInFlight::Reject);
                    assert_eq!(error.code(), Some(Code::InProgress));
                    assert!(!error.is_definite());
                }
            }
        }
    }
}

#[tokio::test]
async fn d2_a_duplicate_waits_for_the_value() {
    let store = store();
    let once = on(&store).on_in_flight(OnInFlight::wait(60 * SECOND)).build().unwrap();
    let (started, gate) = (Count::default(), Gate::closed());
    let (counted, at_gate) = (started.clone(), gate.clone());
    let first = once.run("order", &Scope::shared(), "k", "a", move |_| async move {
        at_gate.pass().await;
        Ok::<_, Refusal>(Receipt { run: counted.more() })
    });
    let first = tokio::spawn(first.into_future());
    store.script().called(Verb::Begin, 1).await;
    let waiting = tokio::spawn(order!(once, started, "k", "a").into_future());
    store.script().called(Verb::Changed, 1).await;
    gate.open();
    assert_eq!(first.await.unwrap().unwrap().value.run, 1);
    let waited = waiting.await.unwrap().unwrap();
    assert!(waited.replayed && waited.value.run == 1);
    assert_eq!(started.now(), 1);
}

#[tokio::test]
async fn d3_reconcile_with_a_typed_answer() {
    let (_, once) = default_once();
    let runs = Count::default();
    failing!(once, runs, "k", Refusal::Lost).await.unwrap_err();
    let still = order!(once, runs, "k", "a").reconcile(|_| async { Reconciled::StillUnknown });
    assert_code(still.await, Code::OutcomeUnknown);
    let panics = order!(once, runs, "k", "a").reconcile(|unknown| async move {
        assert!(!unknown.context.previous_vanished(), "a reconciler that panics");
        Reconciled::StillUnknown
    });
    assert_code(panics.await, Code::OutcomeUnknown);
    assert_eq!(runs.now(), 1);

    let happened = order!(once, runs, "k", "a").reconcile(|unknown| async move {
        assert_eq!(unknown.context.key().as_str(), "k");
        Reconciled::Happened(Receipt { run: 77 })
    });
    let done = happened.await.unwrap();
    assert!(done.replayed && done.value.run == 77);
    let retry = order!(once, runs, "k", "a").await.unwrap();
    assert!(retry.replayed && retry.value.run == 77);
    assert_eq!(runs.now(), 1);
}

#[tokio::test]
async fn d3_an_operator_resolves_with_the_json_of_a_value() {
    let (store, _) = default_once();
    let once = on(&store).on_unknown_outcome(OnUnknownOutcome::Refuse).build().unwrap();
    let runs = Count::default();
    failing!(once, runs, "k", Refusal::Lost).await.unwrap_err();
    let outcome = retrysafe::Outcome {
        status: http::StatusCode::OK,
        headers: &http::HeaderMap::new(),
        body: Some(&[Bytes::from_static(br#"{"run":7}"#)]),
        trailers: None,
        stream: false,
        trailers_only: false,
        recorded: Duration::ZERO,
        trace: None,
    };
    let payload = outcome.encode(&retrysafe::KeptHeaders::default());
    let id = once.operation_id(&Scope::shared(), "k").unwrap();
    let happened = Resolution::Happened { payload, retention: 60 * SECOND };
    let _ = store.resolve(&id, 1, happened).await.unwrap();
    let done = order!(once, runs, "k", "a").await.unwrap();
    assert!(done.replayed && done.value.run == 7);
    assert_eq!(runs.now(), 1);
}

#[tokio::test]
async fn d3_reconcile_runs_what_did_not_happen() {
    let (_, once) = default_once();
    let (runs, looked) = (Count::default(), Count::default());
    failing!(once, runs, "k", Refusal::Lost).await.unwrap_err();
    let run = || {
        let looked = looked.clone();
        order!(once, runs, "k", "a").reconcile(move |_| {
            looked.more();
            async { Reconciled::DidNotHappen }
        })
    };
    assert_eq!(run().await.unwrap().value.run, 2);
    assert!(run().await.unwrap().replayed);
    assert_eq!(looked.now(), 1);
}

#[tokio::test]
async fn d4_a_bypassed_run_says_so() {
    let down = Down(MemoryStore::new(), StoreErrorKind::Unreachable);
    let once = Once::builder(down);
    let once = once.settings(|it| it.on_store_failure = OnStoreFailure::Bypass).build().unwrap();
    let done = once.run("order", &Scope::shared(), "k", "a", |context: OnceContext| async move {
        assert!(context.attempt().is_none());
        // Nobody knows whether there was an earlier attempt.
        Ok::<_, Refusal>((
            context.fence(),
            context.previous_vanished(),
            context.derive_key("charge"),
        ))
    });
    let done = done.await.unwrap();
    let id = once.operation_id(&Scope::shared(), "k").unwrap();
    assert_eq!(done.value, (0, true, id.derive_key("charge")));
    assert!(!done.recorded && !done.replayed && done.attempt.is_none());
}

#[tokio::test]
async fn d4_a_store_that_is_down_is_not_definite() {
    let once =
        Once::builder(Down(MemoryStore::new(), StoreErrorKind::Unreachable)).build().unwrap();
    let runs = Count::default();
    let error = assert_code(order!(once, runs, "k", "a").await, Code::StoreUnavailable);
    assert!(!error.is_definite());
    assert_eq!(runs.now(), 0);
}

/// A clock, and a `Once` whose records live by it.
fn aging(
    change: impl FnOnce(OnceBuilder<TestStore>) -> OnceBuilder<TestStore>,
) -> (Arc<ManualClock>, Once<TestStore>) {
    let clock = Arc::new(ManualClock::new());
    let memory = MemoryStore::builder().clock(clock.clone()).build().unwrap();
    (clock, change(Once::builder(Faulty::new(memory))).build().unwrap())
}

#[tokio::test]
async fn e4_retention_of_one_run() {
    let (clock, once) = aging(|once| once);
    let runs = Count::default();
    let order = |key: &'static str| order!(once, runs, key, "a");
    order("short").retention(60 * SECOND).await.unwrap();
    order("usual").await.unwrap();
    clock.advance(61 * SECOND);
    assert!(!order("short").await.unwrap().replayed);
    assert!(order("usual").await.unwrap().replayed);
}

#[tokio::test]
async fn e4_retention_of_one_run_that_was_reconciled() {
    let (clock, once) = aging(|once| once);
    let runs = Count::default();
    failing!(once, runs, "k", Refusal::Lost).retention(30 * DAY).await.unwrap_err();
    let happened = |_| async { Reconciled::Happened(Receipt { run: 77 }) };
    let before = order!(once, runs, "k", "a").retention(30 * DAY).reconcile(happened);
    assert_eq!(before.await.unwrap().value.run, 77);
    for (days, replayed) in [(29, true), (1, false)] {
        clock.advance(days * DAY);
        // In the other order of what is said of it as well.
        let retry = order!(once, runs, "k", "a").reconcile(happened).retention(30 * DAY);
        assert_eq!(retry.await.unwrap().replayed, replayed);
    }
    assert_eq!(runs.now(), 2);
}

#[tokio::test]
async fn d3_r8_an_unknown_outcome_is_refused_for_the_retention_of_its_run() {
    let (clock, once) = aging(|once| once.on_unknown_outcome(OnUnknownOutcome::Refuse));
    let runs = Count::default();
    failing!(once, runs, "long", Refusal::Lost).retention(30 * DAY).await.unwrap_err();
    // E2: no claim is forgotten while its attempt may be held.
    failing!(once, runs, "short", Refusal::Lost).retention(SECOND).await.unwrap_err();
    for (key, later) in [("short", 600 * SECOND), ("long", 29 * DAY)] {
        clock.advance(later);
        assert_code(order!(once, runs, key, "a").await, Code::OutcomeUnknown);
    }
    assert_eq!(runs.now(), 2);
    clock.advance(DAY);
    assert!(!order!(once, runs, "long", "a").await.unwrap().replayed);
}

#[tokio::test]
async fn e4_a_run_may_be_kept_for_ever() {
    let (clock, once) = aging(|once| once);
    let runs = Count::default();
    let order = || order!(once, runs, "k", "a").retention(Duration::MAX);
    order().await.unwrap();
    clock.advance(36_500 * DAY);
    assert!(order().await.unwrap().replayed);
}

#[tokio::test(start_paused = true)]
async fn r7_a_value_that_was_not_recorded_says_so() {
    // `failed_complete_deletes`
    let store =
        Faulty::new(MemoryStore::builder().clock(Arc::new(TokioClock::new())).build().unwrap());
    let once = on(&store).build().unwrap();
    let runs = Count::default();
    store.script().next(Verb::Complete, Fault::FailBefore);
    let first = order!(once, runs, "k", "a").await.unwrap();
    assert!(!first.recorded && !first.replayed && first.attempt == Some(1));
    once.engine().drain().await;
    let retry = order!(once, runs, "k", "a").await.unwrap();
    assert!(retry.recorded && retry.replayed);
    assert_eq!(runs.now(), 1);
}

#[tokio::test(start_paused = true)]
async fn r7_a_kept_error_that_was_not_recorded_says_so() {
    let memory = MemoryStore::builder().clock(Arc::new(TokioClock::new())).build().unwrap();
    let store = Faulty::new(memory);
    let once = on(&store).build().unwrap();
    let runs = Count::default();
    store.script().next(Verb::Complete, Fault::FailBefore);
    for (expected, was_replayed) in [(false, false), (true, true)] {
        let declined = failing!(once, runs, "k", Refusal::Declined).keep_if(|_| true).await;
        let Err(OnceError::Failed { replayed, recorded, .. }) = declined else {
            panic!("{declined:?}")
        };
        assert_eq!((recorded, replayed), (expected, was_replayed));
        once.engine().drain().await;
    }
    assert_eq!(runs.now(), 1);
}
