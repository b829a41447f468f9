//! A child process, and what is said between it and its parent.

use std::{env, fmt::Display, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

const ROLE: &str = "RETRYSAFE_TEST_CHILD";
const ADDRESS: &str = "RETRYSAFE_TEST_CHILD_ADDRESS";

/// What a child says begins with this; the test harness talks on the same pipe.
const SAYS: &str = "child: ";

/// Longer than a busy machine takes, so that a child that hangs fails.
const PATIENCE: Duration = Duration::from_secs(300);

/// A child. It is killed when it is dropped.
pub(super) struct Process {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts this binary again, to run the test with this path, crate included, in a role.
    pub(super) fn start(test: &str, role: &str, address: &str) -> Self {
        let (_, test) = test.split_once("::").expect("a path begins with its crate");
        let mut child = Command::new(env::current_exe().expect("a test binary"))
            .args(["--exact", test, "--nocapture"])
            .env(ROLE, role)
            .env(ADDRESS, address)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the test binary starts");
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (input, output) = (input.expect("a pipe"), output.expect("a pipe"));
        Self { child, input, output: BufReader::new(output).lines() }
    }

    /// The next thing that it says.
    pub(super) async fn says(&mut self) -> String {
        let says = async {
            while let Some(line) = self.output.next_line().await.expect("text") {
                if let Some((_, said)) = line.split_once(SAYS) {
                    return Some(said.to_owned());
                }
            }
            None
        };
        match timeout(PATIENCE, says).await {
            Ok(Some(said)) => said,
            Ok(None) => panic!("the child ended: {:?}", self.child.wait().await),
            Err(_) => panic!("the child said nothing in {PATIENCE:?}"),
        }
    }

    pub(super) async fn go_on(&mut self) {
        self.input.write_all(b"\n").await.expect("the child reads");
    }

    /// `kill -9`.
    pub(super) async fn kill(mut self) {
        self.child.kill().await.expect("a child can be killed");
    }
}

/// The role and the address that the parent has given; `None` in a process that has no parent.
pub(super) fn role() -> Option<(String, String)> {
    let told = (env::var(ROLE).ok()?, env::var(ADDRESS).ok()?);
    // The harness has begun a line.
    println!();
    Some(told)
}

/// Tells the parent.
pub(super) fn say(what: impl Display) {
    println!("{SAYS}{what}");
}
