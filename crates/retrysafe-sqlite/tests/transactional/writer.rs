//! Who holds the only writer, and who does not wait for it.

use std::{sync::Arc, time::Duration};

use axum::{Router, http::StatusCode, routing::post};
use retrysafe_axum::{
    Begin, Claim, Found, FromAttempt as _, Held, IdempotentRouter as _, OnInFlight, Owner,
    Store as _, SystemEntropy, Transaction,
};
use retrysafe_sqlite::{SqliteTransaction, Undone};
use retrysafe_testkit::ManualClock;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::timeout,
};

use crate::{App, Bank, PATIENCE, Tx, claim, credit, work};

/// A handler that holds the writer until it may go on.
struct Holding {
    app: App,
    started: mpsc::Receiver<()>,
    go_on: Arc<Semaphore>,
}

impl Holding {
    fn of(bank: &Bank) -> Self {
        let (starts, started) = mpsc::channel(9);
        let go_on = Arc::new(Semaphore::new(0));
        let goes_on = go_on.clone();
        let handler = move |Transaction(transaction): Tx| {
            let (starts, goes_on) = (starts.clone(), goes_on.clone());
            async move {
                credit(&transaction, 1).await.unwrap();
                starts.send(()).await.unwrap();
                goes_on.acquire().await.unwrap().forget();
                StatusCode::CREATED
            }
        };
        let wait = OnInFlight::wait(PATIENCE);
        let layer = bank.layer().on_in_flight(wait).build().unwrap();
        let app = App(Router::new().route("/", post(handler)).idempotent(layer));
        Self { app, started, go_on }
    }
}

#[tokio::test]
async fn replays_and_duplicates_do_not_wait_for_the_writer() {
    let bank = Bank::new();
    let quick = bank.app(work);
    assert_eq!(quick.post("done").await.status, StatusCode::CREATED);
    let mut holding = Holding::of(&bank);
    let app = holding.app.clone();
    let first = tokio::spawn(async move { app.post("one").await });
    holding.started.recv().await.unwrap();

    assert!(quick.post("done").await.is_replay());
    assert_eq!(quick.post("one").await.code(), "in_progress");
    assert_eq!(quick.post_with("one", "other").await.code(), "key_reused");
    let elsewhere = Bank::at(&bank.path, |store| store).app(work);
    assert!(elsewhere.post("done").await.is_replay());
    assert_eq!(elsewhere.post("one").await.code(), "in_progress");

    holding.go_on.add_permits(1);
    assert_eq!(first.await.unwrap().status, StatusCode::CREATED);
    assert_eq!((bank.balance(), bank.finished()), (2, 2));
}

#[tokio::test]
async fn duplicates_that_wait_get_the_answer() {
    let bank = Bank::new();
    let mut holding = Holding::of(&bank);
    let mut duplicates = JoinSet::new();
    for _ in 0..50 {
        let app = holding.app.clone();
        duplicates.spawn(async move { app.post("one").await });
    }
    holding.started.recv().await.unwrap();
    holding.go_on.add_permits(50);
    let answers = duplicates.join_all().await;
    assert!(answers.iter().all(|answer| answer.status == StatusCode::CREATED));
    assert_eq!(answers.iter().filter(|answer| !answer.is_replay()).count(), 1);
    assert_eq!((bank.balance(), bank.finished()), (1, 1));
}

#[tokio::test]
async fn a_duplicate_waits_for_its_bound_in_sqlite() {
    let bank = Bank::new();
    let mut holding = Holding::of(&bank);
    let app = holding.app.clone();
    let first = tokio::spawn(async move { app.post("one").await });
    holding.started.recv().await.unwrap();
    let bound = OnInFlight::wait(Duration::from_millis(50));
    let layer = bank.layer().on_in_flight(bound).build().unwrap();
    let waits = App(Router::new().route("/", post(work)).idempotent(layer));
    assert_eq!(waits.post("one").await.code(), "in_progress");
    holding.go_on.add_permits(1);
    assert_eq!(first.await.unwrap().status, StatusCode::CREATED);
}

#[tokio::test]
async fn who_holds_the_writer_for_too_long_is_rolled_back() {
    let bank = Bank::with(|store| store.hold(Duration::from_millis(50)));
    let app = bank.app(|Transaction(transaction): Tx| async move {
        let mut held = 0;
        // Until somebody else needs the writer.
        let undone = loop {
            match credit(&transaction, 1).await {
                Ok(()) => held += 1,
                Err(undone) => break undone,
            }
        };
        assert!(held > 0 && matches!(undone, Undone::TookTooLong), "{undone}");
        StatusCode::CREATED
    });
    assert_eq!(app.post("one").await.code(), "store_unavailable");
    assert_eq!((bank.balance(), bank.finished()), (0, 0));
    // The key is free, and the writer.
    assert_eq!(bank.app(work).post("one").await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn who_does_nothing_with_the_writer_is_rolled_back_too() {
    let bank = Bank::with(|store| store.hold(Duration::from_millis(50)));
    let mut holding = Holding::of(&bank);
    let app = holding.app.clone();
    let first = tokio::spawn(async move { app.post("one").await });
    holding.started.recv().await.unwrap();
    // It gets its turn although nobody lets the first go on.
    assert_eq!(bank.app(work).retry("other").await.status, StatusCode::CREATED);
    holding.go_on.add_permits(1);
    assert_eq!(first.await.unwrap().code(), "store_unavailable");
    assert_eq!((bank.balance(), bank.finished()), (1, 1));
}

#[tokio::test]
async fn a_statement_without_an_end_is_interrupted() {
    let bank = Bank::with(|store| store.hold(Duration::from_millis(50)));
    let app = bank.app(|Transaction(transaction): Tx| async move {
        credit(&transaction, 1).await.unwrap();
        let endless = "UPDATE account SET balance = (
            WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n)
            SELECT max(i) FROM n) WHERE id = 2";
        let ended = transaction.run(move |tx| tx.execute(endless, [])).await.unwrap();
        let interrupted = rusqlite::ErrorCode::OperationInterrupted;
        assert_eq!(ended.unwrap_err().sqlite_error_code(), Some(interrupted));
        StatusCode::CREATED
    });
    assert_eq!(app.post("one").await.code(), "store_unavailable");
    assert_eq!((bank.balance(), bank.finished()), (0, 0));
}

#[tokio::test]
async fn a_file_that_others_write_to_is_503_and_nothing_is_done() {
    let bank = Bank::with(|store| {
        store.busy_timeout(Duration::from_millis(50)).hold(Duration::from_millis(50))
    });
    let app = bank.app(|Transaction(transaction): Tx| async move {
        match credit(&transaction, 1).await {
            Ok(()) => StatusCode::CREATED,
            Err(undone) => {
                assert!(matches!(undone, Undone::Store(_)), "{undone}");
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    });
    let others = rusqlite::Connection::open(&bank.path).unwrap();
    others.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(app.post("one").await.status, StatusCode::SERVICE_UNAVAILABLE);
    others.execute_batch("ROLLBACK").unwrap();
    assert_eq!(app.retry("one").await.status, StatusCode::CREATED);
    assert_eq!((bank.balance(), bank.finished()), (1, 1));
}

#[tokio::test]
async fn two_processes_run_each_operation_once() {
    let bank = Bank::new();
    let other = Bank::at(&bank.path, |store| store);
    let apps = [bank.app(work), other.app(work)];
    let mut requests = JoinSet::new();
    for key in 0..20 {
        for app in &apps {
            for _ in 0..2 {
                let app = app.clone();
                requests.spawn(async move { app.retry(&format!("key-{key}")).await });
            }
        }
    }
    let answers = timeout(PATIENCE, requests.join_all()).await.expect("answers");
    assert!(answers.iter().all(|answer| answer.status == StatusCode::CREATED));
    assert_eq!(answers.iter().filter(|answer| !answer.is_replay()).count(), 20);
    assert_eq!((bank.balance(), bank.finished()), (20, 20));
}

#[tokio::test]
async fn st3_an_attempt_that_was_taken_over_writes_nothing() {
    let clock = ManualClock::new();
    let bank = Bank::with(|store| store.clock(Arc::new(clock.clone())));
    let (first, second) = (claim(PATIENCE), claim(PATIENCE));
    let (late, attempt) = bank.begin(&first).await.unwrap();
    let transaction = SqliteTransaction::from_attempt(&attempt).unwrap();
    assert!(bank.begin(&second).await.is_none());
    clock.advance(PATIENCE * 2);

    // Nothing was committed, so nothing is unknown: it is as good as free.
    let (lease, attempt) = bank.begin(&second).await.unwrap();
    assert_eq!((attempt.number(), attempt.fence(), attempt.previous_vanished()), (2, 2, false));
    let undone = credit(&transaction, 1).await.unwrap_err();
    assert!(matches!(undone, Undone::Lost), "{undone}");
    let lost = bank.store.complete(&late, &first.fingerprint, "late".into(), PATIENCE).await;
    assert!(matches!(lost, Ok(Held::Lost(Found::InFlight { .. }))), "{lost:?}");

    let transaction = SqliteTransaction::from_attempt(&attempt).unwrap();
    credit(&transaction, 1).await.unwrap();
    let done = bank.store.complete(&lease, &second.fingerprint, "done".into(), PATIENCE);
    assert_eq!(done.await.unwrap(), Held::Applied);
    // ST4: once more, the same.
    let again = bank.store.complete(&lease, &second.fingerprint, "done".into(), PATIENCE);
    assert_eq!(again.await.unwrap(), Held::Applied);
    assert_eq!((bank.balance(), bank.finished()), (1, 1));
}

#[tokio::test]
async fn a_transaction_that_began_before_the_lease_ended_is_not_taken_over() {
    let clock = ManualClock::new();
    let bank = Bank::with(|store| store.clock(Arc::new(clock.clone())).hold(PATIENCE));
    let other = Bank::at(&bank.path, |store| {
        let short = Duration::from_millis(50);
        store.clock(Arc::new(clock.clone())).busy_timeout(short).hold(short)
    });
    let first = claim(PATIENCE / 4);
    let (lease, attempt) = bank.begin(&first).await.unwrap();
    let transaction = SqliteTransaction::from_attempt(&attempt).unwrap();
    credit(&transaction, 1).await.unwrap();
    clock.advance(PATIENCE / 2);
    let refused = other.store.begin(&claim(PATIENCE)).await;
    assert!(refused.is_err(), "the writer is held: {refused:?}");
    let done = bank.store.complete(&lease, &first.fingerprint, "done".into(), PATIENCE);
    assert_eq!(done.await.unwrap(), Held::Applied);
    let replay = other.store.begin(&claim(PATIENCE)).await.unwrap();
    assert!(matches!(replay, Begin::Found(Found::Finished { .. })), "{replay:?}");
    assert_eq!((bank.balance(), bank.finished()), (1, 1));
}

#[tokio::test]
async fn st11_a_claim_that_is_dropped_anywhere_leaves_the_writer_free() {
    let bank = Bank::new();
    for polls in 0..20 {
        let claim = Claim { owner: Owner::new(&SystemEntropy), ..claim(PATIENCE) };
        let _ = timeout(Duration::from_micros(polls * 50), bank.store.begin(&claim)).await;
        let lease =
            retrysafe_axum::Lease { id: claim.id, owner: claim.owner, attempt: 0, fence: 0 };
        let _ = bank.store.release(&lease, PATIENCE).await.unwrap();
    }
    assert_eq!(bank.app(work).retry("two").await.status, StatusCode::CREATED);
    assert_eq!((bank.balance(), bank.finished()), (1, 1));
}
