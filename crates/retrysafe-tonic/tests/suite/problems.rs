//! What is answered instead of running (G3).

use std::time::Duration;

use retrysafe_testkit::{Fault, Verb};
use retrysafe_tonic::{
    Engine, OnUnknownOutcome, OutcomeOverrule, Overrule, Overruled as _, Scope, ScopeFrom,
    UnaryMethods,
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::*;

#[tokio::test]
async fn g3_a_missing_key_is_an_invalid_argument() {
    let store = store();
    let ledger = TestLedger::counting();
    let client = ledger.behind(&layer(&store).require_key().build().unwrap());
    let status = client.refused(bare(1)).await;
    assert_problem(&status, Code::InvalidArgument, "MISSING_KEY");
    assert_eq!(pushback(&status), None);
    assert_eq!(ledger.runs.get(), 0);
}

#[tokio::test]
async fn g3_bad_metadata_is_an_invalid_argument() {
    let (_, layer) = default_layer();
    let ledger = TestLedger::counting();
    let client = ledger.behind(&layer);
    let long = [b'k'; 256];
    let name = "idempotency-key";
    for (lines, reason) in [
        (&[(name, &b""[..])][..], "empty"),
        (&[(name, b"two words")], "syntax"),
        (&[(name, b"caf\xc3\xa9")], "syntax"),
        (&[(name, b"a,b")], "syntax"),
        (&[(name, b"\"unfinished")], "syntax"),
        (&[(name, &long)], "too_long"),
        (&[(name, b"a"), (name, b"a")], "duplicate"),
    ] {
        let status = client.refused(with_metadata(lines)).await;
        assert_problem(&status, Code::InvalidArgument, "INVALID_KEY");
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().metadata["reason"], reason);
    }
    assert_eq!(ledger.runs.get(), 0);
}

#[tokio::test]
async fn g3_a_caller_that_is_nobody_is_an_invalid_argument() {
    #[derive(Clone)]
    struct User(String);
    let scope = ScopeFrom::extension(|user: &User| user.0.clone());
    let methods = UnaryMethods::named([TRANSFER]).unwrap();
    let layer = retrysafe_tonic::IdempotencyLayer::builder(store(), scope, methods);
    let status =
        TestLedger::counting().behind(&layer.build().unwrap()).refused(keyed("k", 1)).await;
    assert_problem(&status, Code::InvalidArgument, "MISSING_SCOPE");
}

#[tokio::test]
async fn g3_a_key_of_another_request_is_a_failed_precondition() {
    let (_, layer) = default_layer();
    let ledger = TestLedger::counting();
    let client = ledger.behind(&layer);
    assert_first(&client.send(keyed("k", 1)).await, "transfer 1");
    let status = client.refused(keyed("k", 2)).await;
    assert_problem(&status, Code::FailedPrecondition, "KEY_REUSED");
    assert_eq!(pushback(&status), Some("-1"));
    assert_replay(&client.send(keyed("k", 1)).await, "transfer 1");
}

#[tokio::test]
async fn g3_in_progress_is_aborted_and_says_when_to_try_again() {
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

    let status = client.refused(keyed("k", 1)).await;
    assert_problem(&status, Code::Aborted, "IN_PROGRESS");
    assert_eq!(pushback(&status), Some("1000"));
    let details = status.get_error_details();
    assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_secs(1)));

    gate.open();
    assert_first(&first.await.unwrap(), "transfer 1");
    assert_replay(&client.transfer("k").await, "transfer 1");
    assert_eq!(ledger.runs.get(), 1);
}

#[tokio::test]
async fn g3_an_unknown_outcome_is_aborted_and_not_to_be_retried() {
    let store = store();
    let layer = layer(&store).on_unknown_outcome(OnUnknownOutcome::Refuse).build().unwrap();
    let ledger = TestLedger::new(|_, _| async { Err(Status::internal("half done")) });
    let client = ledger.behind(&layer);
    assert_eq!(client.refused(keyed("k", 1)).await.message(), "half done");
    let status = client.refused(keyed("k", 1)).await;
    assert_problem(&status, Code::Aborted, "OUTCOME_UNKNOWN");
    assert_eq!(pushback(&status), Some("-1"));
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().metadata["attempt"], "1");
    assert!(details.retry_info().is_none());
    assert_eq!(ledger.runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn g3_a_store_that_is_down_is_unavailable() {
    let (store, layer) = default_layer();
    let ledger = TestLedger::counting();
    let client = ledger.behind(&layer);
    for fault in [Fault::FailBefore, Fault::FailAfter, Fault::HangBefore, Fault::HangAfter] {
        store.script().always(Verb::Begin, fault);
        let status = client.refused(keyed("k", 1)).await;
        assert_problem(&status, Code::Unavailable, "STORE_UNAVAILABLE");
        assert_eq!(pushback(&status), Some("1000"));
        store.script().heal();
        layer.engine().drain().await;
    }
    assert_eq!(ledger.runs.get(), 0);
    assert_first(&client.transfer("k").await, "transfer 1");
}

#[tokio::test]
async fn g3_too_many_in_flight_is_unavailable() {
    let engine = Engine::builder(store()).max_in_flight(1).build().unwrap();
    let methods = UnaryMethods::named([TRANSFER]).unwrap();
    let layer = retrysafe_tonic::IdempotencyLayer::sharing(&engine, Scope::shared(), methods);
    let gate = Gate::closed();
    let held = gate.clone();
    let ledger = TestLedger::new(move |run, _| {
        let held = held.clone();
        async move {
            held.pass().await;
            transferred(run)
        }
    });
    let client = ledger.behind(&layer.build().unwrap());
    let first = client.clone();
    let first = tokio::spawn(async move { first.transfer("one").await });
    ledger.runs.reaches(1).await;
    let status = client.refused(keyed("two", 1)).await;
    assert_problem(&status, Code::Unavailable, "OVERLOADED");
    assert_eq!(pushback(&status), Some("1000"));
    gate.open();
    assert_first(&first.await.unwrap(), "transfer 1");
}

#[tokio::test]
async fn g3_an_answer_that_was_not_kept_is_a_failed_precondition() {
    let (_, layer) = default_layer();
    let ledger = TestLedger::new(|run, _| async move {
        let omit = Overrule { outcome: Some(OutcomeOverrule::OmitBody), retention: None };
        transferred(run).map(|reply| reply.overruled(omit))
    });
    let client = ledger.behind(&layer);
    assert_first(&client.transfer("k").await, "transfer 1");
    let status = client.refused(keyed("k", 1)).await;
    assert_problem(&status, Code::FailedPrecondition, "RESPONSE_UNAVAILABLE");
    assert_eq!(pushback(&status), Some("-1"));
    assert_eq!(ledger.runs.get(), 1);
}

#[tokio::test]
async fn g3_a_problem_is_trailers_only() {
    let store = store();
    let layer = layer(&store).require_key().build().unwrap();
    let (service, _) = raw(&layer, |_| unreachable!("it has no key"));
    let mut request = raw_request("k", pieces([data(frame(b""))]));
    request.headers_mut().remove("idempotency-key");
    let answer = call(&service, request).await;
    assert!(answer.ends_with_head && answer.body.is_empty() && answer.trailers.is_none());
    assert_eq!(answer.headers["content-type"], "application/grpc");
    assert_eq!(answer.headers["grpc-status"], "3");
    assert!(answer.headers.contains_key("grpc-message"));
    assert!(answer.headers.contains_key("grpc-status-details-bin"));
}
