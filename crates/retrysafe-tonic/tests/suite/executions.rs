//! One execution, whatever the clients do (PROTOCOL 3 and 4).

use std::{sync::Arc, time::Duration};

use retrysafe_testkit::{Fault, Verb};
use retrysafe_tonic::{
    Attempt, IdempotentRequest as _, OnInFlight, OnStoreFailure, OutcomeOverrule, Overrule,
    Overruled as _,
};
use tokio::{task::JoinSet, time};
use tonic::{Code, Status};

use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_then_set() {
    let (_, layer) = default_layer();
    let gate = Gate::closed();
    let held = gate.clone();
    let ledger = TestLedger::new(move |run, _| {
        let held = held.clone();
        async move {
            held.pass().await;
            transferred(run)
        }
    });
    let client = ledger.behind(&layer);
    let mut calls = JoinSet::new();
    for _ in 0..50 {
        let client = client.clone();
        calls.spawn(async move { client.transfer("k").await });
    }
    // 49 are refused while the first runs; then it may end.
    for _ in 0..49 {
        let refused = calls.join_next().await.unwrap().unwrap().unwrap_err();
        assert_problem(&refused, Code::Aborted, "IN_PROGRESS");
    }
    gate.open();
    assert_first(&calls.join_next().await.unwrap().unwrap(), "transfer 1");
    assert_replay(&client.transfer("k").await, "transfer 1");
    assert_eq!(ledger.runs.get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d2_duplicates_wait_for_the_answer() {
    let store = store();
    let wait = OnInFlight::wait(Duration::from_secs(60));
    let layer = layer(&store).on_in_flight(wait).build().unwrap();
    let gate = Gate::closed();
    let held = gate.clone();
    let ledger = TestLedger::new(move |run, _| {
        let held = held.clone();
        async move {
            held.pass().await;
            transferred(run)
        }
    });
    let client = ledger.behind(&layer);
    let mut calls = JoinSet::new();
    for _ in 0..50 {
        let client = client.clone();
        calls.spawn(async move { client.transfer("k").await });
    }
    ledger.runs.reaches(1).await;
    gate.open();
    let replies = calls.join_all().await;
    let replayed =
        |reply: &&Reply| reply.as_ref().unwrap().metadata().contains_key("idempotent-replayed");
    assert_eq!(replies.iter().filter(replayed).count(), 49);
    for reply in replies {
        assert_eq!(reply.unwrap().into_inner().transfer_id, "transfer 1");
    }
    assert_eq!(ledger.runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn d2_a_wait_that_is_over_is_in_progress() {
    let store = store();
    let wait = OnInFlight::wait(Duration::from_secs(5));
    let layer = layer(&store).on_in_flight(wait).build().unwrap();
    let ledger = TestLedger::new(|_, _| async { std::future::pending().await });
    let client = ledger.behind(&layer);
    let first = client.clone();
    let first = tokio::spawn(async move { first.transfer("k").await });
    ledger.runs.reaches(1).await;
    let status = client.refused(keyed("k", 1)).await;
    assert_problem(&status, Code::Aborted, "IN_PROGRESS");
    first.abort();
}

#[tokio::test(start_paused = true)]
async fn e2_a_handler_that_never_ends_is_not_run_again_while_its_lease_is_renewed() {
    let (_, layer) = default_layer();
    let ledger = TestLedger::new(|run, _| async move {
        match run {
            1 => std::future::pending().await,
            _ => transferred(run),
        }
    });
    let client = ledger.behind(&layer);
    let first = client.clone();
    tokio::spawn(async move { first.transfer("k").await });
    ledger.runs.reaches(1).await;
    for _ in 0..9 {
        time::sleep(Duration::from_secs(60)).await;
        let status = client.refused(keyed("k", 1)).await;
        assert_problem(&status, Code::Aborted, "IN_PROGRESS");
    }
    // `max_execution` and a lease later it counts as vanished (D3).
    time::sleep(Duration::from_secs(120)).await;
    assert_first(&client.transfer("k").await, "transfer 2");
}

#[tokio::test]
async fn disconnect_frees() {
    // The client hung up, the handler's future was dropped, the key was freed and the retry ran.
    let (_, layer) = default_layer();
    let gate = Gate::closed();
    let held = gate.clone();
    let ledger = TestLedger::new(move |run, _| {
        let held = held.clone();
        async move {
            held.pass().await;
            transferred(run)
        }
    });
    let client = ledger.behind(&layer);
    let first = client.clone();
    let first = tokio::spawn(async move { first.transfer("k").await });
    ledger.runs.reaches(1).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    let status = client.refused(keyed("k", 1)).await;
    assert_problem(&status, Code::Aborted, "IN_PROGRESS");
    gate.open();
    layer.engine().drain().await;
    assert_replay(&client.transfer("k").await, "transfer 1");
    assert_eq!(ledger.runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn e1_a_deadline_outside_ends_the_clients_wait_only() {
    let (_, layer) = default_layer();
    let ledger = TestLedger::new(|run, _| async move {
        time::sleep(Duration::from_secs(20)).await;
        transferred(run)
    });
    let client = ledger.behind(&layer);
    assert!(time::timeout(Duration::from_secs(1), client.transfer("k")).await.is_err());
    layer.engine().drain().await;
    assert_replay(&client.transfer("k").await, "transfer 1");
    assert_eq!(ledger.runs.get(), 1);
}

#[tokio::test]
async fn e3_the_handler_is_told_of_its_attempt() {
    let (_, layer) = default_layer();
    let ledger = TestLedger::new(|run, request| async move {
        let attempt = request.attempt()?;
        assert_eq!(attempt.key().as_str(), "k");
        assert_eq!(attempt.number(), u32::try_from(run).unwrap());
        assert_eq!(attempt.previous_vanished(), run > 1);
        let reply = ledger::TransferReply { transfer_id: attempt.derive_key("book") };
        match run {
            1 => Err(Status::unavailable(reply.transfer_id)),
            _ => Ok(tonic::Response::new(reply)),
        }
    });
    let client = ledger.behind(&layer);
    let derived = client.refused(keyed("k", 1)).await.message().to_owned();
    assert_first(&client.transfer("k").await, &derived);
}

#[tokio::test]
async fn e3_a_handler_without_an_attempt_says_why() {
    let (_, guarding) = default_layer();
    let ledger = TestLedger::new(|run, request| async move {
        assert!(request.extensions().get::<Attempt>().is_none());
        request.attempt()?;
        transferred(run)
    });
    let status = ledger.behind(&guarding).refused(bare(1)).await;
    assert_problem(&status, Code::InvalidArgument, "MISSING_KEY");
    let unguarded = Client::of(Service::new(ledger.server()));
    let status = unguarded.refused(keyed("k", 1)).await;
    assert_problem(&status, Code::Internal, "HANDLER_FAILED");

    // D4: the layer has let it through, as it was asked to, and there is nothing to fix in the service.
    let store = store();
    let bypassing = layer(&store).settings(|it| it.on_store_failure = OnStoreFailure::Bypass);
    let client = ledger.behind(&bypassing.build().unwrap());
    store.script().next(Verb::Begin, Fault::Unreachable);
    let status = client.refused(keyed("k", 1)).await;
    assert_problem(&status, Code::Unavailable, "STORE_UNAVAILABLE");
    assert_eq!(pushback(&status), Some("1000"));
}

#[tokio::test]
async fn e4_a_handler_overrules_the_policy() {
    use OutcomeOverrule::{OmitBody, Release, Store, Unknown};
    type Answer = fn() -> Reply;
    let ok: Answer = || transferred(0);
    let not_found: Answer = || Err(Status::not_found(""));
    let internal: Answer = || Err(Status::internal(""));
    for (answer, outcome, expected) in [
        (ok, Release, "released"),
        (ok, Unknown, "lapsed"),
        (not_found, Release, "released"),
        (not_found, OmitBody, "finished"),
        (internal, Store, "finished"),
        (internal, Release, "released"),
    ] {
        let (store, layer) = default_layer();
        let overrule = Overrule { outcome: Some(outcome), retention: None };
        let ledger = TestLedger::new(move |_, _| async move {
            match answer() {
                Ok(reply) => Ok(reply.overruled(overrule)),
                Err(status) => Err(status.overruled(overrule)),
            }
        });
        let _ = ledger.behind(&layer).transfer("k").await;
        assert_eq!(state(&store, "k").await, expected, "{outcome:?}");
    }
}

#[test]
fn e4_an_overruled_status_keeps_its_source() {
    use std::error::Error as _;
    let mut status = Status::internal("");
    status.set_source(Arc::new(std::io::Error::other("the disk is full")));
    let status = status.overruled(Overrule::default());
    let source = status.source().and_then(|it| it.source()).unwrap();
    assert_eq!(source.to_string(), "the disk is full");
}

#[tokio::test]
async fn e5_a_panic_is_internal_and_ambiguous() {
    let (store, layer) = default_layer();
    let ledger = TestLedger::new(|run, _| async move {
        assert!(run > 1, "the first one panics");
        transferred(run)
    });
    let client = ledger.behind(&layer);
    let status = client.refused(keyed("k", 1)).await;
    assert_problem(&status, Code::Internal, "HANDLER_FAILED");
    assert_eq!(state(&store, "k").await, "lapsed");
    assert_first(&client.transfer("k").await, "transfer 2");
}

#[tokio::test(start_paused = true)]
async fn e5_the_loser_answers_with_the_winners_record() {
    let (store, layer) = default_layer();
    let gate = Gate::closed();
    let held = gate.clone();
    let ledger = TestLedger::new(move |run, _| {
        let held = held.clone();
        async move {
            if run == 1 {
                held.pass().await;
            }
            transferred(run)
        }
    });
    let client = ledger.behind(&layer);
    let first = client.clone();
    let first = tokio::spawn(async move { first.transfer("k").await });
    ledger.runs.reaches(1).await;
    store.script().always(Verb::Renew, Fault::FailBefore);
    time::sleep(Duration::from_secs(61)).await;
    assert_first(&client.transfer("k").await, "transfer 2");
    gate.open();
    assert_replay(&first.await.unwrap(), "transfer 2");
}

#[tokio::test(start_paused = true)]
async fn r7_an_outcome_that_was_not_recorded_says_so() {
    let (store, layer) = default_layer();
    let ledger = TestLedger::counting();
    let client = ledger.behind(&layer);
    store.script().next(Verb::Complete, Fault::FailBefore);
    let first = client.transfer("k").await;
    assert_first(&first, "transfer 1");
    assert_eq!(first.unwrap().metadata().get("idempotency-status").unwrap(), "not-recorded");
    layer.engine().drain().await;
    assert_replay(&client.transfer("k").await, "transfer 1");
    assert_eq!(ledger.runs.get(), 1);
}
