//! A client of another language: grpcio for Python, plain, retrying and hedging.

use std::{env, path::PathBuf, process::Stdio, time::Duration};

use retrysafe_testkit::{Fault, Verb};
use retrysafe_tonic::{OnInFlight, OnUnknownOutcome, happened};
use serde_json::Value;
use tokio::process::Command;
use tonic::{Status, transport::Server};

use crate::{
    connection::{Served, gated, serve},
    support::*,
};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// What Python says of one scenario.
async fn python(served: &Served, scenario: &str, key: &str) -> Vec<Value> {
    let output = command(&["-c", "import grpc_tools.protoc"]).output().await.unwrap();
    let installed = output.status.success();
    assert!(installed, "this test needs grpcio and grpcio-tools for python3: make servers");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/transfer.py");
    let output =
        command(&[script, &served.address.to_string(), scenario, key]).output().await.unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{error}"))
}

/// Calls and gives up, until a handler runs.
async fn give_up(served: &Served, ledger: &TestLedger) {
    while ledger.runs.get() == 0 {
        let answers = python(served, "given-up", "k").await;
        // By the client's clock, or by the server's, which knows the deadline too.
        let codes = ["DEADLINE_EXCEEDED", "CANCELLED"];
        assert!(codes.iter().any(|code| answers[0]["code"] == *code), "{answers:?}");
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut path = vec![
        PathBuf::from(ROOT).join("target/servers/python"),
        PathBuf::from(ROOT).join("examples/proto"),
    ];
    path.extend(env::split_paths(&env::var_os("PYTHONPATH").unwrap_or_default()));
    let mut command = Command::new("python3");
    command
        .args(arguments)
        .env("PYTHONPATH", env::join_paths(path).unwrap())
        .env("GRPC_VERBOSITY", "NONE")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g3_g4_python_gets_first_answers_replays_and_problems() {
    let (_, layer) = default_layer();
    let ledger = TestLedger::new(|run, request| async move {
        match request.metadata().get("idempotency-key").unwrap().to_str().unwrap() {
            "closed" => Err(Status::failed_precondition("the account is closed")),
            _ => transferred(run),
        }
    });
    let served = serve(Server::builder(), &layer, &ledger).await;
    for replayed in [false, true] {
        let answers = python(&served, "plain", "one").await;
        assert_eq!(answers[0]["transfer_id"], "transfer 1");
        assert_eq!(answers[0]["replayed"], replayed);
        let answers = python(&served, "plain", "closed").await;
        assert_eq!(answers[0]["code"], "FAILED_PRECONDITION");
        assert_eq!(answers[0]["details"], "the account is closed");
        assert_eq!(answers[0]["replayed"], replayed);
    }
    let answers = python(&served, "plain", "a,b").await;
    assert_eq!(answers[0]["code"], "INVALID_ARGUMENT");
    let details = answers[0]["status_details"].as_str().unwrap();
    let reason: String = b"INVALID_KEY".iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(details.contains(&reason), "{details}");
    assert_eq!(ledger.runs.get(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e1_python_gives_up_and_comes_back() {
    let (_, layer) = default_layer();
    let (ledger, gate) = gated();
    let served = serve(Server::builder(), &layer, &ledger).await;
    give_up(&served, &ledger).await;
    let answers = python(&served, "plain", "k").await;
    assert_eq!((&answers[0]["code"], &answers[0]["pushback"]), (&"ABORTED".into(), &"1000".into()));
    gate.open();
    layer.engine().drain().await;
    let answers = python(&served, "plain", "k").await;
    assert_eq!(answers[0]["transfer_id"], "transfer 1");
    assert_eq!(answers[0]["replayed"], true);
    assert_eq!(ledger.runs.get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g3_a_retrying_channel_comes_back_when_it_was_told_to() {
    let (store, layer) = default_layer();
    let (ledger, gate) = gated();
    let served = serve(Server::builder(), &layer, &ledger).await;
    // The first try finds the store down, the second the operation in progress.
    give_up(&served, &ledger).await;
    let before = store.script().calls(Verb::Begin);
    store.script().next(Verb::Begin, Fault::FailBefore);
    store.script().next(Verb::Begin, Fault::FailBefore);
    let opened = async {
        // Three calls of the store: two for the try that failed, one that found the operation.
        store.script().called(Verb::Begin, before + 3).await;
        gate.open();
    };
    let (answers, ()) = tokio::join!(python(&served, "retry", "k"), opened);
    assert_eq!(answers[0]["transfer_id"], "transfer 1");
    assert_eq!(answers[0]["replayed"], true);
    assert_eq!(ledger.runs.get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g3_a_hedging_channel_runs_once() {
    // grpcio reads the policy and, as of 1.85, sends nothing twice by itself; others do.
    let store = store();
    let wait = OnInFlight::wait(Duration::from_secs(20));
    let layer = layer(&store).on_in_flight(wait).build().unwrap();
    let ledger = TestLedger::new(|run, _| async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        transferred(run)
    });
    let served = serve(Server::builder(), &layer, &ledger).await;
    let answers = python(&served, "hedge", "one").await;
    assert_eq!(answers[0]["transfer_id"], "transfer 1");
    assert_eq!(store.script().calls(Verb::Begin), 1, "the guide says that it sends one");
    let answers = python(&served, "hedge-by-hand", "two").await;
    assert_eq!(answers.len(), 3);
    assert!(answers.iter().all(|it| it["transfer_id"] == "transfer 2"), "{answers:?}");
    assert_eq!(ledger.runs.get(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d3_g4_python_gets_what_was_reconciled() {
    let store = store();
    let look = OnUnknownOutcome::reconcile(|_| async {
        happened(&ledger::TransferReply { transfer_id: "transfer 1".to_owned() })
    });
    let layer = layer(&store).on_unknown_outcome(look).build().unwrap();
    let ledger = TestLedger::new(|_, _| async { Err(Status::internal("booked, and not told")) });
    let served = serve(Server::builder(), &layer, &ledger).await;
    assert_eq!(python(&served, "plain", "k").await[0]["code"], "INTERNAL");
    for _ in 0..2 {
        let answers = python(&served, "plain", "k").await;
        assert_eq!(answers[0]["transfer_id"], "transfer 1", "{answers:?}");
        assert_eq!(answers[0]["replayed"], true);
    }
    assert_eq!(ledger.runs.get(), 1);
}
