//! Recovery points: what is known between calls to other services is committed.

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use retrysafe_axum::{
    CurrentAttempt, FromAttempt as _, Held, IdempotentRouter as _, NotLent, OnUnknownOutcome,
    PhaseError, Phases, Store as _, Transaction,
};
use retrysafe_sqlite::{SqliteTransaction, Undone};
use retrysafe_testkit::ManualClock;
use tokio::{sync::Notify, time::timeout};

use crate::{App, Bank, PATIENCE, Tx, claim, credit, work};

type InPhases = Transaction<Phases<SqliteTransaction>>;

/// A service of somebody else's: the keys that it was called with.
#[derive(Clone, Default)]
struct Processor(Arc<Mutex<Vec<String>>>);

impl Processor {
    async fn charge(self, key: String) -> Result<usize, StatusCode> {
        let mut calls = self.0.lock().unwrap();
        calls.push(key);
        Ok(calls.len())
    }

    fn calls(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// How a handler ends, the first time and later.
fn endings(first: StatusCode) -> impl Fn() -> StatusCode + Clone + Send + Sync + 'static {
    let runs = Arc::new(AtomicU32::new(0));
    move || {
        let is_first = runs.fetch_add(1, Ordering::SeqCst) == 0;
        if is_first { first } else { StatusCode::CREATED }
    }
}

/// Reserves on account 2, charges, and credits account 1.
async fn pay(
    mut phases: Phases<SqliteTransaction>,
    processor: Processor,
    ending: StatusCode,
) -> Result<Response, PhaseError<StatusCode>> {
    phases.step("reserve", |transaction| async move { reserve(&transaction).await }).await?;
    let charge = phases.phase("charge", |key| processor.charge(key)).await?;
    let transaction = phases.transaction().await.map_err(PhaseError::or_failed)?;
    credit(&transaction, 1).await.map_err(|_| PhaseError::Failed(ending))?;
    Ok((ending, charge.to_string()).into_response())
}

async fn reserve(transaction: &SqliteTransaction) -> Result<(), StatusCode> {
    credit(transaction, 2).await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

fn answer(paid: Result<Response, PhaseError<StatusCode>>) -> Response {
    paid.unwrap_or_else(|error| match error {
        PhaseError::Failed(status) => status.into_response(),
        _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    })
}

fn reserved(bank: &Bank) -> i64 {
    bank.number("SELECT balance FROM account WHERE id = 2")
}

fn paying(bank: &Bank, processor: &Processor, first: StatusCode) -> App {
    let (ending, processor) = (endings(first), processor.clone());
    let handler = move |Transaction(phases): InPhases| {
        let (ending, processor) = (ending(), processor.clone());
        async move { answer(pay(phases, processor, ending).await) }
    };
    let layer = bank.layer().build().unwrap();
    App(Router::new().route("/", post(handler)).idempotent(layer))
}

#[tokio::test]
async fn the_next_attempt_goes_on_from_the_last_point_in_sqlite() {
    for failed in [500, 503, 408, 429, 409] {
        let (bank, processor) = (Bank::new(), Processor::default());
        let failed = StatusCode::from_u16(failed).unwrap();
        let app = paying(&bank, &processor, failed);
        assert_eq!(app.post("one").await.status, failed);
        assert_eq!((reserved(&bank), bank.balance(), bank.finished()), (1, 0, 0), "{failed}");
        // Of another request it is not the operation, and never will be.
        assert_eq!(app.post_with("one", "other").await.code(), "key_reused");
        let retry = app.post("one").await;
        assert_eq!((retry.status, &*retry.body), (StatusCode::CREATED, b"1".as_slice()));
        assert_eq!((reserved(&bank), bank.balance(), bank.finished()), (1, 1, 1), "{failed}");
        assert_eq!(processor.calls().len(), 1, "what is kept is not called again");
        assert!(app.post("one").await.is_replay());
    }
}

#[tokio::test]
async fn a_refusal_after_a_phase_is_kept_and_the_points_stay() {
    let (bank, processor) = (Bank::new(), Processor::default());
    let app = paying(&bank, &processor, StatusCode::PAYMENT_REQUIRED);
    assert_eq!(app.post("one").await.status, StatusCode::PAYMENT_REQUIRED);
    assert!(app.post("one").await.is_replay());
    assert_eq!((reserved(&bank), bank.balance(), bank.finished()), (1, 0, 1));
}

#[tokio::test]
async fn a_call_that_fails_is_made_again_with_the_same_key() {
    let (bank, processor) = (Bank::new(), Processor::default());
    let (ending, calls) = (endings(StatusCode::BAD_GATEWAY), processor.clone());
    let app = bank.app(move |Transaction(mut phases): InPhases| {
        let (ending, processor) = (ending(), calls.clone());
        async move {
            let key = phases.attempt().derive_key("charge");
            let charged = phases.phase("charge", |given| async move {
                assert_eq!(given, key);
                processor.charge(given).await?;
                if ending == StatusCode::CREATED { Ok(()) } else { Err(ending) }
            });
            match charged.await {
                Ok(()) => StatusCode::CREATED,
                Err(PhaseError::Failed(status)) => status,
                Err(other) => panic!("{other}"),
            }
        }
    });
    assert_eq!(app.post("one").await.status, StatusCode::BAD_GATEWAY);
    // A layer that is told to refuse what is unknown refuses this, too.
    assert_eq!(app.post("one").await.code(), "outcome_unknown");
    let layer = bank.layer().on_unknown_outcome(OnUnknownOutcome::Reexecute);
    let calls = processor.clone();
    let handler = move |Transaction(mut phases): InPhases| async move {
        assert!(phases.attempt().previous_vanished());
        phases.phase("charge", |key| calls.charge(key)).await.unwrap().to_string()
    };
    let app = App(Router::new().route("/", post(handler)).idempotent(layer.build().unwrap()));
    assert_eq!(app.post("one").await.body, "2");
    let calls = processor.calls();
    assert!(calls.len() == 2 && calls[0] == calls[1], "{calls:?}");
}

#[tokio::test]
async fn nothing_is_open_while_another_service_is_called() {
    let bank = Bank::new();
    let other = bank.app(work);
    let app = bank.app(move |Transaction(mut phases): InPhases| async move {
        phases
            .step("reserve", |transaction| async move { reserve(&transaction).await })
            .await
            .unwrap();
        let done = phases.phase("other", |_| async move {
            Ok::<_, StatusCode>(other.post("other").await.status.as_u16())
        });
        assert_eq!(done.await.unwrap(), 201);
        StatusCode::CREATED
    });
    assert_eq!(app.post("one").await.status, StatusCode::CREATED);
    assert_eq!((reserved(&bank), bank.balance(), bank.finished()), (1, 1, 2));
}

#[tokio::test]
async fn e5_an_attempt_that_was_taken_over_keeps_no_further_point() {
    let clock = ManualClock::new();
    let bank = Bank::with(|store| store.clock(Arc::new(clock.clone())));
    let processor = Processor::default();
    let first = claim(PATIENCE);
    let mut second = claim(PATIENCE);
    second.take_over = true;
    let (late, attempt) = bank.begin(&first).await.unwrap();
    let mut phases = Phases::<SqliteTransaction>::from_attempt(&attempt).unwrap();
    phases.step("reserve", |tx| async move { reserve(&tx).await }).await.unwrap();
    let mut taken = None;
    let charged = phases.phase("charge", |key| {
        let (processor, taken) = (processor.clone(), &mut taken);
        let (bank, clock, second) = (&bank, &clock, &second);
        async move {
            clock.advance(PATIENCE * 2);
            *taken = bank.begin(second).await;
            processor.charge(key).await
        }
    });
    assert!(matches!(charged.await, Err(PhaseError::Lost)));
    // Nor can it commit anything else.
    let step = phases.step("more", |tx| async move { reserve(&tx).await });
    assert!(matches!(step.await, Err(PhaseError::Lost)));
    let refunded = phases.phase("refund", |key| processor.clone().charge(key)).await;
    assert!(matches!(refunded, Err(PhaseError::Lost)), "{refunded:?}");
    assert!(matches!(phases.transaction().await, Err(PhaseError::Lost)));
    let done = bank.store.complete(&late, &first.fingerprint, "late".into(), PATIENCE).await;
    assert!(matches!(done, Ok(Held::Lost(_))), "{done:?}");

    let (lease, attempt) = taken.expect("it was taken over");
    assert_eq!((attempt.number(), attempt.fence(), attempt.previous_vanished()), (2, 2, true));
    let mut phases = Phases::<SqliteTransaction>::from_attempt(&attempt).unwrap();
    phases.step("reserve", |tx| async move { reserve(&tx).await }).await.unwrap();
    assert_eq!(phases.phase("charge", |key| processor.clone().charge(key)).await.unwrap(), 2);
    let done = bank.store.complete(&lease, &second.fingerprint, "done".into(), PATIENCE);
    assert_eq!(done.await.unwrap(), Held::Applied);
    let calls = processor.calls();
    assert!(calls.len() == 2 && calls[0] == calls[1], "{calls:?}");
    assert_eq!((reserved(&bank), bank.finished()), (1, 1));
}

#[tokio::test]
async fn a_step_that_fails_is_undone_and_can_be_made_up_for() {
    let bank = Bank::new();
    let app = bank.app(move |Transaction(mut phases): InPhases| async move {
        let failed = phases.step("reserve", |transaction| async move {
            reserve(&transaction).await.unwrap();
            Err::<(), _>("no more")
        });
        assert!(matches!(failed.await, Err(PhaseError::Failed("no more"))));
        let instead =
            phases.step("instead", |transaction| async move { credit(&transaction, 3).await });
        instead.await.unwrap();
        StatusCode::CREATED
    });
    assert_eq!(app.post("one").await.status, StatusCode::CREATED);
    assert_eq!(reserved(&bank), 0);
    assert_eq!(bank.number("SELECT balance FROM account WHERE id = 3"), 1);
}

#[tokio::test]
async fn a_step_that_is_dropped_half_done_leaves_nothing() {
    let bank = Bank::new();
    let app = bank.app(move |Transaction(mut phases): InPhases| async move {
        let half_done = phases.step("reserve", |transaction| async move {
            reserve(&transaction).await?;
            pending::<Result<(), StatusCode>>().await
        });
        assert!(timeout(Duration::from_millis(50), half_done).await.is_err());
        StatusCode::CREATED
    });
    assert_eq!(app.post("one").await.status, StatusCode::CREATED);
    assert_eq!((reserved(&bank), bank.finished()), (0, 1));
}

/// It is kept, and this attempt does not know: what it kept next would take its place.
#[tokio::test]
async fn a_part_that_is_dropped_while_it_is_kept_is_the_last_of_its_attempt() {
    let bank = Bank::new();
    let handler = move |Transaction(mut phases): InPhases| async move {
        let written = &Notify::new();
        let step = phases.step("reserve", |transaction| async move {
            reserve(&transaction).await?;
            written.notify_one();
            Ok::<_, StatusCode>(())
        });
        tokio::select! {
            biased;
            kept = step => kept.unwrap(),
            () = written.notified() => {}
        }
        let charged = phases.phase("charge", |_| async { Ok::<_, StatusCode>(7) }).await;
        match charged {
            Ok(_) => StatusCode::CREATED,
            Err(PhaseError::InDoubt) => StatusCode::SERVICE_UNAVAILABLE,
            Err(error) => panic!("{error}"),
        }
    };
    let layer = bank.layer().on_unknown_outcome(OnUnknownOutcome::Reexecute);
    let app = App(Router::new().route("/", post(handler)).idempotent(layer.build().unwrap()));
    assert_eq!(app.post("one").await.status, StatusCode::SERVICE_UNAVAILABLE);
    let retry = app.post("one").await;
    assert_eq!(retry.status, StatusCode::CREATED, "{:?}", retry.body);
    assert_eq!((reserved(&bank), bank.finished()), (1, 1));
}

#[tokio::test]
async fn an_attempt_has_one_row_of_phases() {
    let bank = Bank::new();
    let app = bank.app(move |attempt: CurrentAttempt| async move {
        let first = Phases::<SqliteTransaction>::from_attempt(&attempt);
        let second = Phases::<SqliteTransaction>::from_attempt(&attempt);
        assert!(first.is_ok() && matches!(second, Err(NotLent::InUse)));
        StatusCode::CREATED
    });
    assert_eq!(app.post("one").await.status, StatusCode::CREATED);
}

/// The record of a longer one says nothing of its body while it is in flight, so another request could
/// be given what was kept for this one.
#[tokio::test]
async fn f4_phases_are_for_requests_that_are_read_before_the_claim() {
    let (bank, processor) = (Bank::new(), Processor::default());
    let app = paying(&bank, &processor, StatusCode::CREATED);
    let refused = app.post_with("one", &"x".repeat(100 * 1024)).await;
    assert_eq!(
        (refused.status, &*refused.code()),
        (StatusCode::INTERNAL_SERVER_ERROR, "handler_failed")
    );
    assert!(processor.calls().is_empty() && reserved(&bank) == 0);
    // Nothing was done in its name, so the key is free.
    assert_eq!(app.post_with("one", "short").await.status, StatusCode::CREATED);
    assert_eq!((reserved(&bank), bank.balance(), bank.finished()), (1, 1, 1));
}

#[tokio::test]
async fn two_parts_of_one_name_are_a_mistake() {
    let bank = Bank::new();
    let app = bank.app(move |Transaction(mut phases): InPhases| async move {
        let call = |_| async { Ok::<_, StatusCode>(7) };
        assert_eq!(phases.phase("charge", call).await.unwrap(), 7);
        assert!(matches!(phases.phase("charge", call).await, Err(PhaseError::Repeated)));
        StatusCode::CREATED
    });
    assert_eq!(app.post("one").await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn a_step_that_failed_may_be_tried_again_and_a_call_has_had_its_key() {
    let bank = Bank::new();
    let processor = Processor::default();
    let charging = processor.clone();
    let app = bank.app(move |Transaction(mut phases): InPhases| async move {
        let failed = phases.step("reserve", |tx| async move {
            reserve(&tx).await?;
            Err::<(), _>(StatusCode::CONFLICT)
        });
        assert!(matches!(failed.await, Err(PhaseError::Failed(StatusCode::CONFLICT))));
        phases.step("reserve", |tx| async move { reserve(&tx).await }).await.unwrap();
        let failed = phases.phase("charge", |key| async {
            charging.clone().charge(key).await?;
            Err::<usize, _>(StatusCode::BAD_GATEWAY)
        });
        assert!(matches!(failed.await, Err(PhaseError::Failed(StatusCode::BAD_GATEWAY))));
        // It may be another call by mistake, to which the processor would give the answer of this one.
        let again = phases.phase("charge", |key| charging.charge(key)).await;
        assert!(matches!(again, Err(PhaseError::Repeated)));
        StatusCode::CREATED
    });
    assert_eq!(app.post("one").await.status, StatusCode::CREATED);
    assert_eq!((reserved(&bank), bank.finished()), (1, 1));
    assert_eq!(processor.calls().len(), 1);
}

#[tokio::test]
async fn what_is_written_outside_of_a_step_before_a_phase_is_a_mistake() {
    let bank = Bank::new();
    let app = bank.app(
        move |Transaction(transaction): Tx, Transaction(mut phases): InPhases| async move {
            credit(&transaction, 1).await.unwrap();
            let called = phases.phase("charge", |_| async { Ok::<_, StatusCode>(7) }).await;
            assert!(matches!(called, Err(PhaseError::Store(_))), "{called:?}");
            StatusCode::INTERNAL_SERVER_ERROR
        },
    );
    assert_eq!(app.post("one").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!((bank.balance(), bank.finished()), (0, 0));
}

#[tokio::test]
async fn a_result_that_json_can_not_hold_leaves_nothing_of_its_step() {
    let bank = Bank::new();
    let app = bank.app(move |Transaction(mut phases): InPhases| async move {
        let unwritable = phases.step("reserve", |transaction| async move {
            reserve(&transaction).await?;
            Ok::<_, StatusCode>(std::collections::BTreeMap::from([((1, 2), 3)]))
        });
        assert!(matches!(unwritable.await, Err(PhaseError::Unreadable(_))));
        StatusCode::CREATED
    });
    assert_eq!(app.post("one").await.status, StatusCode::CREATED);
    assert_eq!((reserved(&bank), bank.finished()), (0, 1));
}

#[tokio::test]
async fn a_step_holds_the_writer_no_longer_than_others_may() {
    let bank = Bank::with(|store| store.hold(Duration::from_millis(50)));
    let app = bank.app(move |Transaction(mut phases): InPhases| async move {
        let too_long = phases.step("reserve", |transaction| async move {
            while credit(&transaction, 2).await.is_ok() {}
            credit(&transaction, 2).await
        });
        let too_long = too_long.await;
        assert!(matches!(too_long, Err(PhaseError::Failed(Undone::TookTooLong))), "{too_long:?}");
        StatusCode::INTERNAL_SERVER_ERROR
    });
    assert_eq!(app.post("one").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!((reserved(&bank), bank.finished()), (0, 0));
    assert_eq!(bank.app(work).post("one").await.status, StatusCode::CREATED);
}
