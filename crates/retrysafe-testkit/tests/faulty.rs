//! Faults happen as they are asked for, and a correct store stays correct behind them.

use std::{sync::Arc, time::Duration};

use retrysafe_core::{
    Algorithm, Begin, Claim, Fingerprint, Found, Held, Inspect as _, Lease, MemoryStore,
    OperationId, Owner, State, Store as _, StoreErrorKind,
};
use retrysafe_testkit::{
    Fault, Faulty, Point, SeededEntropy, Verb,
    contract::{Workload, workload},
};

const LONG: Duration = Duration::from_secs(3600);

fn faulty() -> Faulty<MemoryStore> {
    Faulty::new(MemoryStore::new())
}

fn claim(owner: u64) -> Claim {
    Claim {
        id: OperationId::from_bytes([1; 32]),
        owner: Owner::new(&SeededEntropy::new(owner)),
        fingerprint: Fingerprint { algorithm: Algorithm::from_u32(1), head: [1; 32], body: None },
        lease: LONG,
        retention: LONG,
        take_over: true,
    }
}

fn lease(claim: &Claim) -> Lease {
    Lease { id: claim.id, owner: claim.owner, attempt: 1, fence: 1 }
}

async fn state(store: &Faulty<MemoryStore>) -> Option<State> {
    store.get(&claim(0).id).await.expect("no faults for operators").map(|entry| entry.state)
}

/// Lets every task go on until it waits for something that only time or a test can bring.
async fn settle() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn failing_before_has_no_effect() {
    let store = faulty();
    store.script().next(Verb::Begin, Fault::FailBefore);
    let error = store.begin(&claim(1)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    assert_eq!(state(&store).await, None);
    assert!(matches!(store.begin(&claim(2)).await, Ok(Begin::Acquired(_))), "only the next call");
}

#[tokio::test]
async fn failing_after_has_its_effect() {
    let store = faulty();
    store.script().next(Verb::Begin, Fault::FailAfter);
    store.begin(&claim(1)).await.unwrap_err();
    assert!(matches!(state(&store).await, Some(State::InFlight { .. })));
    assert!(matches!(store.begin(&claim(1)).await, Ok(Begin::Acquired(_))), "ST4");
}

#[tokio::test(start_paused = true)]
async fn a_hanging_call_never_answers() {
    let store = faulty();
    for (owner, fault) in [(1, Fault::HangBefore), (2, Fault::HangAfter)] {
        store.script().next(Verb::Begin, fault);
        let claim = claim(owner);
        let hanging = store.begin(&claim);
        assert!(tokio::time::timeout(LONG, hanging).await.is_err());
        let effect = fault == Fault::HangAfter;
        assert_eq!(state(&store).await.is_some(), effect, "{fault:?}");
    }
    store.script().next(Verb::Begin, Fault::Delay(LONG));
    let before = tokio::time::Instant::now();
    assert!(matches!(store.begin(&claim(2)).await, Ok(Begin::Acquired(_))));
    assert_eq!(before.elapsed(), LONG);
}

#[tokio::test]
async fn plans_are_met_in_their_order() {
    let store = faulty();
    let script = store.script();
    script.next_is_well(Verb::Sweep);
    script.next(Verb::Sweep, Fault::FailBefore);
    script.always(Verb::Sweep, Fault::FailAfter);
    assert!(store.sweep(1).await.is_ok());
    assert!(store.sweep(1).await.unwrap_err().to_string().contains("before"));
    assert!(store.sweep(1).await.unwrap_err().to_string().contains("after"));
    assert!(store.sweep(1).await.unwrap_err().to_string().contains("after"));
    script.heal();
    assert!(store.sweep(1).await.is_ok());
    assert_eq!((script.calls(Verb::Sweep), script.all_calls()), (5, 5));
}

#[tokio::test]
async fn a_late_copy_of_a_begin_does_not_take_a_released_key() {
    let store = faulty();
    let claim = claim(1);
    store.script().next(Verb::Begin, Fault::Duplicate);
    assert!(matches!(store.begin(&claim).await, Ok(Begin::Acquired(_))));
    assert_eq!(store.release(&lease(&claim), LONG).await.unwrap(), Held::Applied);
    assert_eq!(store.deliver_late().await, 1);
    assert_eq!(state(&store).await, Some(State::Released), "ST4");
}

#[tokio::test]
async fn a_late_completion_does_not_overwrite_the_successors() {
    let store = faulty();
    let (first, second) = (claim(1), claim(2));
    assert!(matches!(store.begin(&first).await, Ok(Begin::Acquired(_))));
    store.script().next(Verb::Complete, Fault::Late);
    let late = store.complete(&lease(&first), &first.fingerprint, "first".into(), LONG).await;
    assert!(late.is_err());
    assert_eq!(store.renew(&lease(&first), Duration::ZERO).await.unwrap(), Held::Applied);
    assert!(matches!(store.begin(&second).await, Ok(Begin::Acquired(_))));
    let print = &second.fingerprint;
    let held = store.complete(&lease(&second), print, "second".into(), LONG).await.unwrap();
    assert_eq!(held, Held::Applied);
    assert_eq!(store.deliver_late().await, 1);
    let found = store.begin(&claim(3)).await.unwrap();
    assert!(
        matches!(found, Begin::Found(Found::Finished { payload, .. }) if payload == "second"),
        "unfenced_complete"
    );
}

#[tokio::test]
async fn a_call_can_be_held_before_and_after_its_effect() {
    for (point, effect) in [(Point::Before, false), (Point::After, true)] {
        let store = faulty();
        let hold = store.script().hold(Verb::Begin, point);
        let held = tokio::spawn({
            let store = store.clone();
            async move { store.begin(&claim(1)).await }
        });
        hold.reached(1).await;
        store.script().called(Verb::Begin, 1).await;
        assert_eq!(state(&store).await.is_some(), effect, "{point:?}");
        settle().await;
        assert!(!held.is_finished());
        hold.release();
        assert!(matches!(held.await.unwrap(), Ok(Begin::Acquired(_))));
    }
}

#[test]
fn histories_with_faults_are_linearizable() {
    const FAULTS: [Fault; 6] = [
        Fault::FailBefore,
        Fault::FailAfter,
        Fault::HangBefore,
        Fault::HangAfter,
        Fault::Delay(Duration::from_millis(1)),
        Fault::Late,
    ];
    retrysafe_testkit::contract::run(async {
        for seed in 0..40 {
            let store = faulty();
            store.script().random(seed, 5, &FAULTS);
            let handles = [Arc::new(store.clone()), Arc::new(store)];
            let much = Workload { deadline: Duration::from_millis(5), ..Workload::default() };
            let history = workload(&handles, seed, much).await;
            handles[0].deliver_late().await;
            if let Err(unexplained) = history.check() {
                panic!("seed {seed}: {unexplained}");
            }
        }
    });
}
