//! The example `client-retry`, run as a user runs it: against the demo, with a wire in between that
//! fails.

#![allow(clippy::unwrap_used, reason = "all of this is tests")]

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use retrysafe_testkit::servers::Wire;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

/// The binary of the workspace, which `make examples` builds into the same folder.
fn retrysafe() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_client-retry")).with_file_name("retrysafe");
    assert!(program.exists(), "first: cargo build -p retrysafe-cli; or: make examples");
    program
}

struct Demo {
    _process: Child,
    address: SocketAddr,
}

impl Demo {
    async fn start(folder: &Path) -> Self {
        let mut process = Command::new(retrysafe())
            .args(["demo", "--listen", "127.0.0.1:0", "--payment", "1ms"])
            .current_dir(folder)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let address = loop {
            let line = lines.next_line().await.unwrap().expect("it says where it listens");
            if let Some(address) = line.strip_prefix("listening on http://") {
                break address.parse().unwrap();
            }
        };
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { _process: process, address }
    }

    async fn count(&self) -> Value {
        let url = format!("http://{}/orders/count", self.address);
        reqwest::get(url).await.unwrap().json().await.unwrap()
    }
}

/// Runs the example, and says what it printed.
async fn client_retry(url: &str, arguments: &[&str]) -> (String, Vec<u64>) {
    let output = Command::new(env!("CARGO_BIN_EXE_client-retry"))
        .arg(url)
        .args(arguments)
        .output()
        .await
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    let Some(last) = said.lines().last() else { panic!("{error}") };
    let numbers = last.split(' ').map(|it| it.split_once('=').unwrap().1.parse().unwrap());
    let numbers: Vec<u64> = numbers.collect();
    // Neither unknown nor failed.
    assert_eq!(output.status.success(), numbers[2..4] == [0, 0], "{said}{error}");
    (said.clone(), numbers)
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_lost_cost_no_second_charge() {
    let folder = tempfile::tempdir().unwrap();
    let demo = Demo::start(folder.path()).await;
    let wire = Arc::new(Wire::to(demo.address).await);
    let journal = folder.path().join("orders.journal");
    let flags = ["--calls", "300", "--journal", journal.to_str().unwrap()];
    let disturbed = tokio::spawn({
        let wire = wire.clone();
        async move {
            loop {
                // The answer of every so manieth request is swallowed.
                wire.cut_after_one_with(b"POST /orders");
                while wire.awaits_cut() {
                    tokio::task::yield_now().await;
                }
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        }
    });
    let url = wire.url_for("http://127.0.0.1:1/orders");
    let (said, numbers) = client_retry(&url, &flags).await;
    disturbed.abort();
    let _ = disturbed.await;
    let [calls, succeeded, unknown, failed, attempts] = numbers[..] else { panic!("{said}") };
    assert_eq!((calls, succeeded + unknown, failed), (300, 300, 0), "{said}");
    assert!(attempts > 300, "{said}");

    // The next run finds out what this one does not know.
    let (said, _) = client_retry(&url, &["--calls", "0", flags[2], flags[3]]).await;
    assert_eq!(said.lines().filter(|it| it.contains(": 201 Created")).count() as u64, unknown);
    let done = json!({ "executions": 300, "orders": 300, "charges": 300 });
    assert_eq!(demo.count().await, done);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_went_away_leaves_what_is_unknown_to_the_next_run() {
    let folder = tempfile::tempdir().unwrap();
    let demo = Demo::start(folder.path()).await;
    let wire = Wire::to(demo.address).await;
    let journal = folder.path().join("orders.journal");
    let url = wire.url_for("http://127.0.0.1:1/orders");
    // The answer never comes, and the client has little time.
    wire.stall_answers();
    let flags = ["--calls", "3", "--deadline", "400ms", "--journal", journal.to_str().unwrap()];
    let (said, numbers) = client_retry(&url, &flags).await;
    assert_eq!(numbers[..4], [3, 0, 3, 0], "{said}");
    wire.unstall();
    let (said, numbers) = client_retry(&url, &["--calls", "0", flags[4], flags[5]]).await;
    assert_eq!(said.lines().filter(|it| it.starts_with("resumed idem_")).count(), 3, "{said}");
    assert_eq!(numbers[0], 0);
    assert_eq!(demo.count().await["charges"], 3);
}

#[tokio::test]
async fn bad_input_is_one_clear_line() {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("no/such/folder");
    let output = Command::new(env!("CARGO_BIN_EXE_client-retry"))
        .args(["http://127.0.0.1:1/orders", "--journal", journal.to_str().unwrap()])
        .output()
        .await
        .unwrap();
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && line.contains("no/such/folder"), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    let output = Command::new(env!("CARGO_BIN_EXE_client-retry")).arg("orders").output();
    let line = String::from_utf8(output.await.unwrap().stderr).unwrap();
    assert!(line.contains("'orders' for '<URL>'"), "{line}");
    for (flag, says) in
        [("--concurrency", "--concurrency: must be 1"), ("--attempts", "attempts: ")]
    {
        let output = Command::new(env!("CARGO_BIN_EXE_client-retry"))
            .args(["http://127.0.0.1:1/orders", flag, "0"])
            .output()
            .await
            .unwrap();
        let line = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{line}");
        assert!(line.contains(says) && line.lines().count() == 1, "{line}");
    }
    // Nothing to send is not an error: that is how an earlier run is resumed.
    let (said, _) = client_retry("http://127.0.0.1:1/orders", &["--calls", "0"]).await;
    assert_eq!(said, "calls=0 succeeded=0 unknown=0 failed=0 attempts=0\n");
    // Nobody there: nothing was done, and nothing is unknown.
    let (said, numbers) = client_retry("http://127.0.0.1:1/orders", &["--calls", "2"]).await;
    assert_eq!(numbers[..4], [2, 0, 0, 2], "{said}");
}
