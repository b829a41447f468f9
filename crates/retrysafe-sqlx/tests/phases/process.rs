//! A child process, which is killed: the test binary itself, told to run one test alone.

use std::{
    env,
    fmt::Display,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use crate::PATIENCE;

const URL: &str = "RETRYSAFE_TEST_CHILD_URL";
const CALLS: &str = "RETRYSAFE_TEST_CHILD_CALLS";
const MOMENT: &str = "RETRYSAFE_TEST_CHILD_MOMENT";
const SAYS: &str = "child: ";

pub(crate) struct Process {
    child: Child,
    output: Lines<BufReader<ChildStdout>>,
}

impl Process {
    pub(crate) fn start(test: &str, url: &str, calls: &Path, moment: &str) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(URL, url)
            .env(CALLS, calls)
            .env(MOMENT, moment)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, output }
    }

    /// The next thing that it says.
    pub(crate) async fn says(&mut self) -> String {
        let says = async {
            while let Some(line) = self.output.next_line().await.unwrap() {
                if let Some((_, said)) = line.split_once(SAYS) {
                    return said.to_owned();
                }
            }
            panic!("the child ended: {:?}", self.child.wait().await);
        };
        timeout(PATIENCE, says).await.expect("the child says something")
    }

    /// `kill -9`.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

/// What a parent has told this process; nothing if it has none.
pub(crate) fn role() -> Option<(String, PathBuf, String)> {
    let told = (env::var(URL).ok()?, env::var(CALLS).ok()?.into(), env::var(MOMENT).ok()?);
    // The harness has begun a line.
    println!();
    Some(told)
}

pub(crate) fn say(what: impl Display) {
    println!("{SAYS}{what}");
}
