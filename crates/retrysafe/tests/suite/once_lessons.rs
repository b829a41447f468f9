//! The rows of LESSONS.md that need a store with faults, for `Once`; the others are in `once`.

use retrysafe::{Code, Once, OnceContext, Scope};
use retrysafe_testkit::{Fault, Point, Verb};
use tokio::{task::JoinHandle, time::sleep};

use crate::{
    common::*,
    once::{Receipt, Refusal, SECOND, default_once, order, state_of},
};

type Outcome = Result<retrysafe::Done<Receipt>, retrysafe::OnceError<Refusal>>;

/// A call whose handler waits at a gate.
fn gated(once: &Once<TestStore>, runs: &Count, gate: &Gate) -> JoinHandle<Outcome> {
    let (counted, gate) = (runs.clone(), gate.clone());
    let call = once.run("order", &Scope::shared(), "k", "a", move |_| async move {
        let run = counted.more();
        gate.pass().await;
        Ok::<_, Refusal>(Receipt { run })
    });
    tokio::spawn(call.into_future())
}

#[tokio::test(start_paused = true)]
async fn stale_takeover() {
    let (store, once) = default_once();
    store.script().always(Verb::Renew, Fault::FailBefore);
    let (runs, gate) = (Count::default(), Gate::closed());
    let first = gated(&once, &runs, &gate);
    runs.reached(1).await;
    sleep(31 * SECOND).await;
    let hold = store.script().hold(Verb::Begin, Point::Before);
    let retry = tokio::spawn(order!(once, runs, "k", "a").into_future());
    hold.reached(1).await;
    gate.open();
    assert_eq!(first.await.unwrap().unwrap().value.run, 1);
    hold.release();
    let retry = retry.await.unwrap().unwrap();
    assert!(retry.replayed && retry.value.run == 1);
    assert_eq!(runs.now(), 1);
}

#[tokio::test(start_paused = true)]
async fn unfenced_complete() {
    let (store, once) = default_once();
    store.script().always(Verb::Renew, Fault::FailBefore);
    let (runs, gate) = (Count::default(), Gate::closed());
    let first = gated(&once, &runs, &gate);
    runs.reached(1).await;
    sleep(31 * SECOND).await;
    let second = order!(once, runs, "k", "a").await.unwrap();
    assert!(!second.replayed && second.value.run == 2);
    gate.open();
    let late = first.await.unwrap().unwrap();
    assert!(late.replayed && late.value.run == 2);
    assert_eq!(state_of(&once, "k").await, "finished");
}

#[tokio::test(start_paused = true)]
async fn an_error_of_who_was_overtaken_is_not_given() {
    // E5, for a handler that failed after its lease was lost.
    let (store, once) = default_once();
    store.script().always(Verb::Renew, Fault::FailBefore);
    let (runs, gate) = (Count::default(), Gate::closed());
    let (counted, at_gate) = (runs.clone(), gate.clone());
    let first = once.run("order", &Scope::shared(), "k", "a", move |_| async move {
        counted.more();
        at_gate.pass().await;
        Err::<Receipt, _>(Refusal::Lost)
    });
    let first = tokio::spawn(first.release_if(|_| true).into_future());
    runs.reached(1).await;
    sleep(31 * SECOND).await;
    order!(once, runs, "k", "a").await.unwrap();
    gate.open();
    let late = first.await.unwrap().unwrap();
    assert!(late.replayed && late.value.run == 2);
    assert_eq!(state_of(&once, "k").await, "finished");
}

#[tokio::test(start_paused = true)]
async fn loser_frees_owner() {
    let (store, once) = default_once();
    let (runs, gate) = (Count::default(), Gate::closed());
    let first = gated(&once, &runs, &gate);
    runs.reached(1).await;
    // A rejected duplicate, one whose claim was lost, one that left.
    let rejected = order!(once, runs, "k", "a").await.unwrap_err();
    assert_eq!(rejected.code(), Some(Code::InProgress));
    store.script().next(Verb::Begin, Fault::FailAfter);
    store.script().next(Verb::Begin, Fault::HangAfter);
    let lost = order!(once, runs, "k", "a").await.unwrap_err();
    assert_eq!(lost.code(), Some(Code::StoreUnavailable));
    let left = tokio::spawn(order!(once, runs, "k", "a").into_future());
    left.abort();
    let _ = left.await;
    store.script().called(Verb::Release, 1).await;
    settle().await;
    assert_eq!(state_of(&once, "k").await, "in flight");
    gate.open();
    assert_eq!(first.await.unwrap().unwrap().value.run, 1);
    assert!(order!(once, runs, "k", "a").await.unwrap().replayed);
    assert_eq!(runs.now(), 1);
}

#[tokio::test]
async fn recomputed_key() {
    // The key was computed again after the handler had changed its input: here both are taken when
    // the call is made, and what is awaited later is that call.
    let (store, once) = default_once();
    let mut input = vec!["a".to_owned()];
    let mut key = "k".to_owned();
    let call = once.run("order", &Scope::shared(), key.as_str(), &input, |_: OnceContext| async {
        Ok::<_, Refusal>(1)
    });
    input.push("b".to_owned());
    key.push('2');
    assert!(!call.await.unwrap().replayed);
    let retry = once.run("order", &Scope::shared(), "k", &["a"], |_| async { Ok::<_, Refusal>(2) });
    let retry = retry.await.unwrap();
    assert!(retry.replayed && retry.value == 1);
    assert_eq!(retrysafe::Inspect::count(&store).await.unwrap().finished, 1);
}

#[tokio::test(start_paused = true)]
async fn crash_wedges() {
    // A process that claims and is gone: nobody renews its lease, and nobody gives it up.
    let (store, once) = default_once();
    let (runs, gate) = (Count::default(), Gate::closed());
    let claimed = gated(&once, &runs, &gate);
    runs.reached(1).await;
    store.script().always(Verb::Renew, Fault::FailBefore);
    claimed.abort();
    let error = order!(once, runs, "k", "a").await.unwrap_err();
    assert_eq!(error.code(), Some(Code::InProgress));
    assert!(error.to_problem().retry_after.is_some());
    sleep(61 * SECOND).await;
    assert_eq!(order!(once, runs, "k", "a").await.unwrap().value.run, 2);
}
