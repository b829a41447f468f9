//! When the outcome is written, and what if it can't be (PROTOCOL 5, R1, R7, R8).

use std::{sync::Arc, time::Duration};

use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use retrysafe::{Counts, Engine, IdempotencyLayer, Inspect as _, MemoryStore, Scope};
use retrysafe_testkit::{Fault, Faulty, ManualClock, Point, Verb};
use tokio::{
    runtime,
    time::{sleep, timeout},
};

use crate::common::*;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn r1_nothing_is_answered_before_the_record_is_durable() {
    for (answer, verb) in [(201, Verb::Complete), (429, Verb::Release), (500, Verb::GiveUp)] {
        for point in [Point::Before, Point::After] {
            let (store, layer) = default_layer();
            let orders = Guarded::new(&layer, move |_, _| async move { status(answer) });
            let hold = store.script().hold(verb, point);
            let client = orders.clone();
            let head = tokio::spawn(async move { client.call(order("k", "a")).await.status() });
            hold.reached(1).await;
            settle().await;
            assert!(!head.is_finished(), "{verb:?} {point:?}");
            hold.release();
            assert_eq!(head.await.unwrap(), answer);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn r7_an_outcome_that_was_not_recorded_says_so_and_is_written_later() {
    for fault in [Fault::FailBefore, Fault::FailAfter, Fault::HangBefore, Fault::HangAfter] {
        let (store, layer) = default_layer();
        let orders = Guarded::orders(&layer);
        store.script().next(Verb::Complete, fault);
        let first = orders.send(order("k", "a")).await;
        first.assert_first(201, "order 1");
        assert_eq!(first.headers["idempotency-status"], "not-recorded");
        layer.engine().drain().await;
        assert_eq!(store.script().calls(Verb::Complete), 2);
        let replay = orders.send(order("k", "a")).await;
        replay.assert_replay(201, "order 1");
        assert!(!replay.headers.contains_key("idempotency-status"));
        assert_eq!(orders.runs(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn failed_complete_deletes() {
    // The outcome could not be written, so the record was deleted, and the retry ran again.
    let (store, layer) = default_layer();
    let orders = Guarded::orders(&layer);
    store.script().always(Verb::Complete, Fault::FailBefore);
    orders.send(order("k", "a")).await.assert_first(201, "order 1");
    // The lease goes on being renewed: nobody runs again what was done.
    for _ in 0..10 {
        sleep(20 * SECOND).await;
        orders.send(order("k", "a")).await.assert_problem(409, "in_progress");
    }
    store.script().heal();
    layer.engine().drain().await;
    orders.send(order("k", "a")).await.assert_replay(201, "order 1");
    assert_eq!((orders.runs(), store.script().calls(Verb::Release)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn r7_an_outcome_that_is_never_written_is_counted_as_lost() {
    let recorder = DebuggingRecorder::new();
    let snapshots = recorder.snapshotter();
    let _metrics = metrics::set_default_local_recorder(&recorder);
    let (store, layer) = default_layer();
    let orders = Guarded::orders(&layer);
    store.script().always(Verb::Complete, Fault::FailBefore);
    orders.send(order("k", "a")).await.assert_first(201, "order 1");
    layer.engine().drain().await;
    sleep(60 * SECOND).await;
    assert_eq!(state(&store, "k").await, "lapsed", "it is kept, and its outcome unknown");
    let lost = snapshots.snapshot().into_vec().into_iter().find_map(|(key, _, _, value)| {
        (key.key().name() == "retrysafe_unrecorded_total").then_some(value)
    });
    assert_eq!(lost, Some(DebugValue::Counter(1)));
}

#[tokio::test(start_paused = true)]
async fn r7_once_somebody_may_have_taken_over_the_answer_is_409() {
    let (store, layer) = default_layer();
    store.script().always(Verb::Renew, Fault::FailBefore);
    store.script().always(Verb::Complete, Fault::FailBefore);
    let orders = Guarded::new(&layer, |run, _| async move {
        sleep(31 * SECOND).await;
        created(run)
    });
    orders.send(order("k", "a")).await.assert_problem(409, "in_progress");
    // Nobody has: the write is retried, and applies.
    store.script().heal();
    layer.engine().drain().await;
    orders.send(order("k", "a")).await.assert_replay(201, "order 1");
    assert_eq!(orders.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn r7_a_lease_counts_from_when_it_was_sent_for() {
    let (store, layer) = default_layer();
    // The claim takes a second to be granted, and 30 s later it may be over.
    store.script().next(Verb::Begin, Fault::Delay(SECOND));
    store.script().always(Verb::Renew, Fault::FailBefore);
    store.script().always(Verb::Complete, Fault::FailBefore);
    let orders = Guarded::new(&layer, |run, _| async move {
        sleep(Duration::from_millis(29_500)).await;
        created(run)
    });
    orders.send(order("k", "a")).await.assert_problem(409, "in_progress");
}

#[tokio::test(start_paused = true)]
async fn r7_who_knows_that_its_lease_is_lost_does_not_answer() {
    // A store that forgets what it has acknowledged, as a failover may: here its clock is set.
    let clock = ManualClock::new();
    let memory = MemoryStore::builder().clock(Arc::new(clock.clone())).build().unwrap();
    let store = Faulty::new(memory);
    let gate = Gate::closed();
    let orders = Guarded::gated(&layer(&store).build().unwrap(), &gate);
    let first = orders.spawn(order("k", "a"));
    orders.ran(1).await;
    clock.advance(31 * SECOND);
    let others = Guarded::orders(&layer(&store).build().unwrap());
    others.send(order("k", "a")).await.assert_first(201, "order 1");
    // A renewal finds that out, less than a lease after the claim was sent.
    sleep(11 * SECOND).await;
    assert_eq!(store.script().calls(Verb::Renew), 1);
    store.script().next(Verb::Complete, Fault::FailBefore);
    gate.open();
    first.await.unwrap().assert_problem(409, "in_progress");
}

#[tokio::test(start_paused = true)]
async fn r7_what_could_not_be_released_or_given_up_is_told_again() {
    for (answer, verb, then) in [(429, Verb::Release, "released"), (500, Verb::GiveUp, "lapsed")] {
        let (store, layer) = default_layer();
        let orders = Guarded::new(&layer, move |_, _| async move { status(answer) });
        store.script().next(verb, Fault::FailBefore);
        store.script().next(verb, Fault::HangBefore);
        let first = orders.send(order("k", "a")).await;
        assert_eq!(first.status, answer);
        assert_eq!(first.headers["idempotency-status"], "not-recorded");
        layer.engine().drain().await;
        assert_eq!(state(&store, "k").await, then);
    }
}

#[tokio::test(start_paused = true)]
async fn expired_answers_409() {
    // After the stored response expired the key answered 409 for ever. R8: it is free.
    let store = store();
    let layer = layer(&store).retention(3600 * SECOND).build().unwrap();
    let orders = Guarded::orders(&layer);
    orders.send(order("k", "a")).await.assert_first(201, "order 1");
    sleep(3599 * SECOND).await;
    orders.send(order("k", "a")).await.assert_replay(201, "order 1");
    sleep(2 * SECOND).await;
    orders.send(order("k", "b")).await.assert_first(201, "order 2");
}

#[tokio::test(start_paused = true)]
async fn r8_the_engine_sweeps_by_itself() {
    let store = store();
    let build = |every| {
        let engine = Engine::builder(store.clone()).sweep_every(every).build().unwrap();
        let layer = IdempotencyLayer::sharing(&engine, Scope::shared()).retention(3600 * SECOND);
        layer.build().unwrap()
    };
    let off = build(None);
    Guarded::orders(&off).send(order("k", "a")).await.assert_first(201, "order 1");
    sleep(7200 * SECOND).await;
    assert_eq!(store.script().calls(Verb::Sweep), 0);

    let on = build(Some(60 * SECOND));
    let orders = Guarded::orders(&on);
    for number in 0..100 {
        orders.send(order(&format!("k{number}"), "a")).await;
    }
    assert_eq!(store.count().await.unwrap().finished, 100, "the first has expired");
    store.script().called(Verb::Sweep, 45).await;
    assert_eq!(store.count().await.unwrap().finished, 100);
    store.script().called(Verb::Sweep, 125).await;
    assert_eq!(store.count().await.unwrap(), Counts::default());
    // An engine that is gone sweeps no more.
    drop((on, orders));
    let swept = store.script().calls(Verb::Sweep);
    sleep(3600 * SECOND).await;
    assert_eq!(store.script().calls(Verb::Sweep), swept);
}

#[test]
fn e2_r8_an_engine_outlives_its_runtime() {
    let store = store();
    let often = Some(Duration::from_millis(1));
    let engine = Engine::builder(store.clone()).sweep_every(often).build().unwrap();
    let layer = IdempotencyLayer::sharing(&engine, Scope::shared());
    let layer = layer.lease(3 * SECOND).build().unwrap();
    let gate = Gate::closed();
    let orders = Guarded::gated(&layer, &gate);
    for key in ["first", "second"] {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (swept, renewed) =
            (store.script().calls(Verb::Sweep), store.script().calls(Verb::Renew));
        let served = runtime.block_on(async {
            let answer = orders.spawn(order(key, "a"));
            let kept_up = async {
                store.script().called(Verb::Sweep, swept + 1).await;
                store.script().called(Verb::Renew, renewed + 1).await;
            };
            timeout(60 * SECOND, kept_up).await.unwrap();
            gate.admit();
            answer.await.unwrap()
        });
        assert_eq!(served.status, 201, "in the {key} runtime");
    }
}
