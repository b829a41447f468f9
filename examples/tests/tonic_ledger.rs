//! The example `tonic-ledger`, run as a user runs it.

#![allow(clippy::unwrap_used, reason = "all of this is tests")]

#[path = "../../crates/retrysafe-cli/tests/suite/support/readme.rs"]
mod readme;

use std::{env, fs, path::Path, process::Stdio};

use retrysafe_tonic::{IdempotencyKey, IdempotentRequest as _};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    task::JoinSet,
};
use tonic::{Code, Request, Response, Status, transport::Channel};

use ledger::{
    CountRequest, TransferReply, TransferRequest, WatchRequest, ledger_client::LedgerClient,
};

mod ledger {
    tonic::include_proto!("ledger.v1");
}

const KEY: &str = "8e03978e-40d5-43e8-bc93-6894a57f9324";

fn command(listen: &str, store: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tonic-ledger"));
    command.args(["--listen", listen, "--store", store]).kill_on_drop(true);
    command
}

/// A running example.
struct Service {
    process: Child,
    address: String,
    client: LedgerClient<Channel>,
}

impl Service {
    async fn start(store: &str) -> Self {
        let mut process = command("127.0.0.1:0", store).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let line = lines.next_line().await.unwrap().expect("it says where it listens");
        let address = line.strip_prefix("listening on ").unwrap().split(',').next().unwrap();
        let channel = Channel::from_shared(address.to_owned()).unwrap().connect().await.unwrap();
        let address = address.strip_prefix("http://").unwrap().to_owned();
        Self { process, address, client: LedgerClient::new(channel) }
    }

    async fn transfer(&self, user: &str, amount: u64) -> Result<Response<TransferReply>, Status> {
        self.client.clone().transfer(of(user, amount)).await
    }

    /// Retries for as long as the first is in progress.
    async fn retry_until_answered(&self) -> Response<TransferReply> {
        loop {
            match self.transfer("alice", 100).await {
                Ok(reply) => return reply,
                Err(status) => assert_eq!(status.code(), Code::Aborted, "{status:?}"),
            }
        }
    }

    async fn count(&self) -> u64 {
        self.client.clone().count(CountRequest {}).await.unwrap().into_inner().count
    }

    /// Calls, and hangs up as soon as the handler runs.
    async fn transfer_and_hang_up(&self) {
        let mut client = self.client.clone();
        let call = tokio::spawn(async move { client.transfer(of("alice", 100)).await });
        while self.count().await == 0 {}
        call.abort();
    }
}

fn of(user: &str, amount: u64) -> Request<TransferRequest> {
    let transfer = TransferRequest {
        from_account: "alice".to_owned(),
        to_account: "bob".to_owned(),
        amount,
        request_id: String::new(),
    };
    let mut request = Request::new(transfer).with_key(&IdempotencyKey::new(KEY).unwrap());
    request.metadata_mut().insert("x-user-id", user.parse().unwrap());
    request
}

fn is_replay(reply: &Response<TransferReply>) -> bool {
    reply.metadata().contains_key("idempotent-replayed")
}

#[track_caller]
fn assert_replays(reply: &Response<TransferReply>, first: &Response<TransferReply>) {
    assert!(!is_replay(first) && is_replay(reply));
    assert_eq!(reply.get_ref(), first.get_ref());
}

#[tokio::test]
async fn it_prints_what_the_readme_shows() {
    // `make servers` installs grpcio here.
    env::set_current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()).unwrap();
    let python = Path::new("target/servers/python").exists();
    assert!(python, "this test needs grpcio and grpcio-tools for python3: make servers");
    let service = Service::start("memory:").await;
    let steps = readme::steps(include_str!("../README.md"), "tonic-ledger");
    assert!(steps.len() >= 4, "the README has lost its example");
    for step in steps {
        step.run("127.0.0.1:50051", &service.address);
    }
}

#[tokio::test]
async fn first_retry_and_changed() {
    let service = Service::start("memory:").await;
    let first = service.transfer("alice", 100).await.unwrap();
    assert_replays(&service.transfer("alice", 100).await.unwrap(), &first);
    assert_eq!(service.transfer("alice", 200).await.unwrap_err().code(), Code::FailedPrecondition);
    // The same key of somebody else is another transfer.
    let other = service.transfer("bob", 100).await.unwrap();
    assert_ne!(other.get_ref(), first.get_ref());
    assert_eq!(service.count().await, 2);
}

#[tokio::test]
async fn the_key_may_be_in_the_request() {
    let service = Service::start("memory:").await;
    let mut client = service.client.clone();
    let request = || TransferRequest { request_id: KEY.to_owned(), ..Default::default() };
    let first = client.transfer(request()).await.unwrap();
    assert_replays(&client.transfer(request()).await.unwrap(), &first);
    let status = client.transfer(TransferRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(service.count().await, 1);
}

#[tokio::test]
async fn fifty_at_once_run_once() {
    let service = Service::start("memory:").await;
    let mut calls = JoinSet::new();
    for _ in 0..50 {
        let mut client = service.client.clone();
        calls.spawn(async move { client.transfer(of("alice", 100)).await });
    }
    let (answered, refused): (Vec<_>, Vec<_>) =
        calls.join_all().await.into_iter().partition(Result::is_ok);
    let answered: Vec<_> = answered.into_iter().map(Result::unwrap).collect();
    let first: Vec<_> = answered.iter().filter(|reply| !is_replay(reply)).collect();
    assert_eq!(first.len(), 1);
    for late in answered.iter().filter(|reply| is_replay(reply)) {
        assert_replays(late, first[0]);
    }
    for early in refused {
        let status = early.unwrap_err();
        assert_eq!(status.code(), Code::Aborted);
        assert!(status.metadata().contains_key("grpc-retry-pushback-ms"));
    }
    assert_eq!(service.count().await, 1);
}

#[tokio::test]
async fn a_watcher_sees_transfers_and_does_not_hold_the_server() {
    let mut service = Service::start("memory:").await;
    let mut watched = service.client.watch(WatchRequest {}).await.unwrap().into_inner();
    let first = service.transfer("alice", 100).await.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap(), Some(first));
    let id = service.process.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-s", "TERM", &id]).status().await.unwrap().success());
    assert_eq!(watched.message().await.unwrap(), None);
    drop(watched);
    service.client = LedgerClient::new(Channel::from_static("http://127.0.0.1:1").connect_lazy());
    assert!(service.process.wait().await.unwrap().success());
}

#[tokio::test]
async fn a_client_that_hangs_up_and_comes_back_gets_the_replay() {
    let service = Service::start("memory:").await;
    service.transfer_and_hang_up().await;
    assert!(is_replay(&service.retry_until_answered().await));
    assert_eq!(service.count().await, 1);
}

#[tokio::test]
async fn a_kill_loses_nothing_that_was_answered() {
    let directory = tempfile::tempdir().unwrap();
    let store = format!("sqlite:{}", directory.path().join("ledger.db").display());
    let mut service = Service::start(&store).await;
    let first = service.transfer("alice", 100).await.unwrap();
    service.process.kill().await.unwrap();
    let service = Service::start(&store).await;
    assert_replays(&service.transfer("alice", 100).await.unwrap(), &first);
    assert_eq!(service.count().await, 0);
}

#[tokio::test]
async fn bad_input_is_one_clear_line() {
    for (store, code) in [("sqllite:ledger.db", 2), ("sqlite:/no/such/directory/ledger.db", 1)] {
        let output = command("127.0.0.1:0", store).output().await.unwrap();
        let line = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{line}");
        assert!(line.starts_with("tonic-ledger: ") && line.lines().count() == 1, "{line}");
    }
}

/// The tests of `retrysafe-tonic` need no code generator: they have what this build generated.
#[test]
fn the_generated_code_of_the_adapters_tests_is_current() {
    let kept =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/retrysafe-tonic/tests/generated");
    for name in ["ledger.v1.rs", "ledger.v1.bin"] {
        let (fresh, kept) = (Path::new(env!("OUT_DIR")).join(name), kept.join(name));
        let same = fs::read(&fresh).unwrap() == fs::read(&kept).unwrap();
        assert!(same, "cp {} {}", fresh.display(), kept.display());
    }
}
