//! Batches: `Once::run_each`.

use std::{
    collections::BTreeSet,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::StreamExt as _;
use retrysafe::{
    BatchProgress, BatchReport, Code, Engine, IdempotencyLayer, MemoryStore, OnInFlight,
    OnUnknownOutcome, Once, OnceBuilder, OnceContext, OnceError, Reconciled, Scope,
};
use retrysafe_testkit::ManualClock;

use crate::{
    common::*,
    once::{Odd, Refusal, SECOND, default_once, on},
};

fn counts<T, E>(report: &BatchReport<T, E>) -> (usize, usize, usize) {
    (report.executed, report.replayed, report.failed)
}

/// A batch of numbers, each its own key, whose handler doubles them.
macro_rules! doubled {
    ($once:expr, $runs:expr, $items:expr) => {{
        let counted = $runs.clone();
        $once.run_each(
            "double",
            &Scope::shared(),
            $items,
            |number: &u64| number.to_string(),
            move |number: u64, _| {
                counted.more();
                async move { Ok::<_, Refusal>(number * 2) }
            },
        )
    }};
}

#[tokio::test]
async fn finished_items_are_skipped_and_their_results_returned() {
    let (_, once) = default_once();
    let runs = Count::default();
    let report = doubled!(once, runs, 0..50).await;
    assert_eq!(counts(&report), (50, 0, 0));
    let report = doubled!(once, runs, 0..100).await;
    assert_eq!(counts(&report), (50, 50, 0));
    for (index, item) in report.items.iter().enumerate() {
        let done = item.as_ref().unwrap();
        assert_eq!((done.value, done.replayed), (index as u64 * 2, index < 50));
    }
    assert_eq!(runs.now(), 100);
    assert_eq!(counts(&doubled!(once, runs, 0..0).await), (0, 0, 0));
}

#[tokio::test]
async fn a_failed_item_does_not_stop_the_others() {
    let (_, once) = default_once();
    let failing = Arc::new(Mutex::new(BTreeSet::from([3_u64, 5])));
    let import = || {
        let failing = failing.clone();
        once.run_each(
            "import",
            &Scope::shared(),
            0_u64..10,
            |number| if *number == 7 { String::new() } else { number.to_string() },
            move |number, context: OnceContext| {
                let fails = failing.lock().unwrap().contains(&number);
                let attempt = context.number();
                async move {
                    match (fails, number) {
                        (true, 3) => Err(Refusal::Lost),
                        (true, _) => Err(Refusal::Declined),
                        (false, _) => Ok(attempt),
                    }
                }
            },
        )
        .keep_if(|refusal| *refusal == Refusal::Declined)
    };
    let report = import().await;
    assert_eq!(counts(&report), (7, 0, 3));
    let definite: Vec<_> =
        report.items.iter().map(|it| it.as_ref().err().map(OnceError::is_definite)).collect();
    assert_eq!((definite[3], definite[5], definite[7]), (Some(false), Some(true), Some(true)));
    let code = report.items[7].as_ref().unwrap_err().code();
    assert_eq!(code, Some(Code::InvalidKey));

    failing.lock().unwrap().clear();
    let report = import().await;
    // 3 was ambiguous and runs again; 5 was kept as it was; 7 still has no key.
    assert_eq!(counts(&report), (1, 7, 2));
    assert_eq!(report.items[3].as_ref().unwrap().value, 2);
    assert!(matches!(
        report.items[5],
        Err(OnceError::Failed { error: Refusal::Declined, replayed: true, .. })
    ));
}

#[tokio::test]
async fn an_item_that_panics_when_it_is_read_does_not_stop_the_others() {
    let (_, once) = default_once();
    // Kept by a build that could read it.
    once.run("odd", &Scope::shared(), "2", &2_u64, |_| async { Ok::<u64, Refusal>(2) })
        .await
        .unwrap();
    let batch = once.run_each(
        "odd",
        &Scope::shared(),
        1_u64..=3,
        |number| number.to_string(),
        |number, _| async move { Ok::<_, Refusal>(Odd::Read(number)) },
    );
    let report = batch.concurrency(1).await;
    assert_eq!(counts(&report), (2, 0, 1));
    assert!(matches!(report.items[1], Err(OnceError::Undecodable(_))));
}

#[tokio::test]
async fn two_items_with_one_key_are_a_first_and_its_retry() {
    let (_, once) = default_once();
    let (running, runs) = (Arc::new(AtomicUsize::new(0)), Count::default());
    let items = vec![("a", 1), ("a", 1), ("b", 1), ("a", 2), ("b", 1), ("c", 1)];
    let counted = runs.clone();
    let batch = once.run_each(
        "import",
        &Scope::shared(),
        items,
        |(key, _)| *key,
        move |(_, value), _| {
            let (running, run) = (running.clone(), counted.more());
            async move {
                running.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                running.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, Refusal>((value, run))
            }
        },
    );
    let report = batch.await;
    assert_eq!(counts(&report), (3, 2, 1));
    let value = |index: usize| report.items[index].as_ref().unwrap();
    assert!(value(1).replayed && value(1).value == value(0).value);
    assert!(value(4).replayed && value(4).value == value(2).value);
    assert_eq!(report.items[3].as_ref().unwrap_err().code(), Some(Code::KeyReused));
    assert_eq!(runs.now(), 3);
}

#[tokio::test]
async fn a_key_is_made_once_for_each_item() {
    // `recomputed_key`: the function may give another each time.
    let (_, once) = default_once();
    let (made, runs) = (Count::default(), Count::default());
    let (counted, counted_runs) = (made.clone(), runs.clone());
    let batch = once.run_each(
        "import",
        &Scope::shared(),
        [1, 1, 1],
        move |_| {
            counted.more();
            "the same"
        },
        move |number, _| {
            counted_runs.more();
            async move {
                tokio::task::yield_now().await;
                Ok::<i32, Refusal>(number)
            }
        },
    );
    assert_eq!(counts(&batch.await), (1, 2, 0));
    assert_eq!((made.now(), runs.now()), (3, 1));
}

#[tokio::test]
async fn no_more_than_so_many_run_at_once() {
    for concurrency in [1, 3, 16] {
        let (_, once) = default_once();
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (now, highest) = (running.clone(), most.clone());
        let batch = once.run_each(
            "import",
            &Scope::shared(),
            0..40,
            |number: &u64| number.to_string(),
            move |_, _| {
                let (now, highest) = (now.clone(), highest.clone());
                async move {
                    highest.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    settle().await;
                    now.fetch_sub(1, Ordering::SeqCst);
                    Ok::<_, Refusal>(())
                }
            },
        );
        assert_eq!(counts(&batch.concurrency(concurrency).await), (40, 0, 0));
        assert_eq!(most.load(Ordering::SeqCst), concurrency);
    }
}

/// A `Once` whose engine runs so many at a time.
fn bounded(store: &TestStore, bound: usize) -> OnceBuilder<TestStore> {
    let engine = Engine::builder(store.clone()).max_in_flight(bound).build().unwrap();
    Once::sharing(&engine).on_in_flight(OnInFlight::wait(60 * SECOND))
}

/// A batch of numbers whose handler waits at a gate.
macro_rules! gated {
    ($once:expr, $runs:expr, $gate:expr, $items:expr) => {{
        let (counted, gate) = ($runs.clone(), $gate.clone());
        $once.run_each(
            "double",
            &Scope::shared(),
            $items,
            |number: &u64| number.to_string(),
            move |number: u64, _| {
                let gate = gate.clone();
                counted.more();
                async move {
                    gate.pass().await;
                    Ok::<_, Refusal>(number * 2)
                }
            },
        )
    }};
}

#[tokio::test]
async fn e6_the_items_of_a_batch_wait_for_their_places() {
    let once = bounded(&store(), 3).build().unwrap();
    let (runs, gate) = (Count::default(), Gate::closed());
    let batch = tokio::spawn(gated!(once, runs, gate, 0..40).into_future());
    for finished in 0..37 {
        runs.reached(finished + 3).await;
        settle().await;
        assert_eq!(runs.now(), finished + 3);
        gate.admit();
    }
    gate.open();
    assert_eq!(counts(&batch.await.unwrap()), (40, 0, 0));
    assert_eq!(counts(&doubled!(once, runs, 0..40).await), (0, 40, 0));
}

#[tokio::test]
async fn e6_a_batch_waits_for_places_that_others_have() {
    let once = bounded(&store(), 1).build().unwrap();
    let (runs, gate) = (Count::default(), Gate::closed());
    let other = tokio::spawn(gated!(once, runs, gate, [100]).into_future());
    runs.reached(1).await;
    let batch = tokio::spawn(doubled!(once, runs, 0..40).into_future());
    settle().await;
    assert_eq!(runs.now(), 1);
    gate.open();
    assert_eq!(counts(&other.await.unwrap()), (1, 0, 0));
    assert_eq!(counts(&batch.await.unwrap()), (40, 0, 0));
}

#[tokio::test]
async fn e6_d2_an_item_that_waited_for_an_outcome_waits_for_its_place() {
    let store = store();
    let (elsewhere, once) = (on(&store).build().unwrap(), bounded(&store, 1).build().unwrap());
    let (runs, theirs, ours) = (Count::default(), Gate::closed(), Gate::closed());
    let first = tokio::spawn(gated!(elsewhere, runs, theirs, [0]).into_future());
    runs.reached(1).await;
    let batch = tokio::spawn(gated!(once, runs, ours, [0, 1]).into_future());
    runs.reached(2).await;
    theirs.open();
    assert_eq!(counts(&first.await.unwrap()), (1, 0, 0));
    settle().await;
    assert!(!batch.is_finished());
    ours.open();
    assert_eq!(counts(&batch.await.unwrap()), (1, 1, 0));
}

#[tokio::test]
async fn e6_an_item_that_is_not_polled_has_no_place() {
    let once = bounded(&store(), 4).build().unwrap();
    let (runs, gate) = (Count::default(), Gate::closed());
    let mut stream = pin!(doubled!(once, Count::default(), 0..10).into_stream());
    assert!(stream.next().await.is_some());
    let others = tokio::spawn(gated!(once, runs, gate, 100..104).into_future());
    runs.reached(4).await;
    gate.open();
    assert_eq!(counts(&others.await.unwrap()), (4, 0, 0));
    assert_eq!(stream.count().await, 9);
}

#[tokio::test(start_paused = true)]
async fn d2_an_item_that_is_not_polled_holds_nobody_up() {
    let once = on(&store()).on_in_flight(OnInFlight::wait(10 * SECOND)).build().unwrap();
    let (runs, gate) = (Count::default(), Gate::closed());
    let first = tokio::spawn(gated!(once, runs, gate, [1]).into_future());
    runs.reached(1).await;
    let mut stream = pin!(doubled!(once, runs, [1, 2]).into_stream());
    assert_eq!(stream.next().await.unwrap().index, 1);
    // Whoever reads the stream is busy with that item from here on, and the other has the turn.
    let waiter = tokio::spawn(doubled!(once, runs, [1]).into_future());
    settle().await;
    let since = tokio::time::Instant::now();
    gate.open();
    assert_eq!(counts(&first.await.unwrap()), (1, 0, 0));
    assert_eq!(counts(&waiter.await.unwrap()), (0, 1, 0));
    assert!(since.elapsed() < SECOND, "{:?}", since.elapsed());
    assert!(stream.next().await.unwrap().result.unwrap().replayed);
}

#[tokio::test(start_paused = true)]
async fn e6_a_handler_that_has_the_last_place_does_not_wait_for_its_batch_for_ever() {
    let store = store();
    let once = bounded(&store, 1).build().unwrap();
    let layer = IdempotencyLayer::sharing(once.engine(), Scope::shared()).build().unwrap();
    let alone = on(&store).build().unwrap();
    for (key, once, expected) in [("shared", once, (0, 0, 40)), ("own", alone, (40, 0, 0))] {
        let runs = Count::default();
        let imports = Guarded::new(&layer, move |run, _| {
            let batch = doubled!(once, runs, 0..40);
            async move {
                let report = batch.await;
                assert_eq!(counts(&report), expected);
                let refused = |item: &Result<_, OnceError<Refusal>>| {
                    item.as_ref().is_err_and(|error| error.code() == Some(Code::Overloaded))
                };
                assert_eq!(report.items.iter().filter(|item| refused(item)).count(), expected.2);
                created(run)
            }
        });
        let since = tokio::time::Instant::now();
        imports.send(order(key, "a")).await.assert_first(201, "order 1");
        assert!(since.elapsed() < 601 * SECOND, "{:?}", since.elapsed());
    }
}

#[tokio::test]
async fn a_batch_lets_others_run() {
    let (_, once) = default_once();
    let others = Count::default();
    let counted = others.clone();
    let other = tokio::spawn(async move {
        loop {
            counted.more();
            tokio::task::yield_now().await;
        }
    });
    let report = doubled!(once, Count::default(), 0..5_000).await;
    other.abort();
    assert_eq!(counts(&report), (5_000, 0, 0));
    assert!(others.now() > 10, "others ran {} times", others.now());
    // Nor does it run for longer than it is given.
    let without_end = doubled!(once, Count::default(), 5_000..);
    assert!(tokio::time::timeout(SECOND / 100, without_end.into_future()).await.is_err());
}

#[tokio::test]
async fn progress_is_shown_after_each_item() {
    let (_, once) = default_once();
    let runs = Count::default();
    doubled!(once, runs, 0..3).await;
    let shown = Arc::new(Mutex::new(Vec::<BatchProgress>::new()));
    let seen = shown.clone();
    let watched = doubled!(once, runs, 0..5).concurrency(1);
    watched.on_progress(move |progress| seen.lock().unwrap().push(*progress)).await;
    let shown = shown.lock().unwrap();
    let finished: Vec<_> = shown.iter().map(BatchProgress::finished).collect();
    assert_eq!(finished, [1, 2, 3, 4, 5]);
    assert!(shown.iter().all(|progress| progress.total == Some(5)));
    let last = shown.last().unwrap();
    assert_eq!((last.executed, last.replayed, last.failed), (2, 3, 0));
}

#[tokio::test]
async fn a_batch_that_is_dropped_starts_nothing_more_and_what_runs_goes_on() {
    let (store, _) = default_once();
    let once = on(&store).on_in_flight(OnInFlight::wait(60 * SECOND)).build().unwrap();
    let (runs, gate) = (Count::default(), Gate::closed());
    let import = || {
        let (counted, gate) = (runs.clone(), gate.clone());
        once.run_each(
            "import",
            &Scope::shared(),
            0..10,
            |number: &u64| number.to_string(),
            move |_, _| {
                let (run, gate) = (counted.more(), gate.clone());
                async move {
                    gate.pass().await;
                    Ok::<_, Refusal>(run)
                }
            },
        )
        .concurrency(4)
    };
    let cut = tokio::spawn(import().into_future());
    runs.reached(4).await;
    cut.abort();
    assert!(cut.await.unwrap_err().is_cancelled());
    settle().await;
    assert_eq!(runs.now(), 4);
    gate.open();
    once.engine().drain().await;
    assert_eq!(counts(&import().await), (6, 4, 0));
    assert_eq!(runs.now(), 10);
}

#[tokio::test]
async fn a_stream_gives_each_item_as_it_is_finished() {
    let (_, once) = default_once();
    let runs = Count::default();
    let items: Vec<_> = doubled!(once, runs, 0..20).into_stream().collect().await;
    let indices: BTreeSet<_> = items.iter().map(|item| item.index).collect();
    assert_eq!((items.len(), indices.len()), (20, 20));
    for item in items {
        assert_eq!(item.result.unwrap().value, item.index as u64 * 2);
    }
}

#[tokio::test]
async fn d3_each_item_is_reconciled_by_its_key() {
    let (_, once) = default_once();
    let import = |fails: bool| {
        once.run_each(
            "import",
            &Scope::shared(),
            0_u64..4,
            |number| number.to_string(),
            move |number, _| async move {
                match fails {
                    true => Err(Refusal::Lost),
                    false => Ok(number),
                }
            },
        )
    };
    assert_eq!(counts(&import(true).await), (0, 0, 4));
    let report = import(false)
        .reconcile(|unknown| async move {
            match unknown.context.key().as_str() {
                "0" => Reconciled::Happened(100),
                "1" => Reconciled::StillUnknown,
                _ => Reconciled::DidNotHappen,
            }
        })
        .await;
    assert_eq!(counts(&report), (2, 1, 1));
    assert_eq!(report.items[0].as_ref().unwrap().value, 100);
    assert_eq!(report.items[1].as_ref().unwrap_err().code(), Some(Code::OutcomeUnknown));
}

#[tokio::test]
async fn d3_r8_what_is_unknown_of_an_item_is_remembered_for_its_retention() {
    let clock = Arc::new(ManualClock::new());
    let memory = MemoryStore::builder().clock(clock.clone()).build().unwrap();
    let once = Once::builder(memory).on_unknown_outcome(OnUnknownOutcome::Refuse).build().unwrap();
    let import = || {
        once.run_each(
            "import",
            &Scope::shared(),
            0_u64..4,
            |number| number.to_string(),
            |_, _| async { Err::<(), _>(Refusal::Lost) },
        )
        .retention(48 * 3600 * SECOND)
    };
    for refused in [false, true] {
        for item in import().await.items {
            assert_eq!(item.unwrap_err().code() == Some(Code::OutcomeUnknown), refused);
        }
        clock.advance(47 * 3600 * SECOND);
    }
}
