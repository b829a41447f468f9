//! Several real processes on one server. A child is this test binary, told to run [`child`] alone.

use std::{
    collections::HashMap,
    env,
    io::{self, BufRead as _},
    process::Stdio,
    time::Duration,
};

use retrysafe_core::{Begin, Found, Held, Inspect as _, Store as _};
use retrysafe_testkit::servers::RedisServer;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    task::JoinSet,
};

use crate::{LONG, acquire, claim, numbered, patient, prefix};

const ROLE: &str = "RETRYSAFE_REDIS_CHILD";
const URL: &str = "RETRYSAFE_REDIS_CHILD_URL";
const PREFIX: &str = "RETRYSAFE_REDIS_CHILD_PREFIX";
/// What a child says begins with this; the test harness talks on the same pipe.
const SAYS: &str = "child: ";
const OPERATIONS: u64 = 100;
/// The lease of an attempt whose process is killed.
const BRIEF: Duration = Duration::from_millis(1500);

struct Process {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(role: &str, url: &str, prefix: &str) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "processes::child", "--nocapture"])
            .env(ROLE, role)
            .env(URL, url)
            .env(PREFIX, prefix)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, input, output: BufReader::new(output).lines() }
    }

    async fn says(&mut self) -> String {
        while let Some(line) = self.output.next_line().await.unwrap() {
            if let Some((_, said)) = line.split_once(SAYS) {
                return said.to_owned();
            }
        }
        panic!("the child ended: {:?}", self.child.wait().await);
    }

    async fn go_on(&mut self) {
        self.input.write_all(b"\n").await.unwrap();
    }

    /// `kill -9`.
    async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

fn say(what: impl std::fmt::Display) {
    println!("{SAYS}{what}");
}

fn wait_for_a_line() {
    io::stdin().lock().read_line(&mut String::new()).unwrap();
}

/// What a child process runs. Without a role, which only a parent gives it, there is nothing to do.
#[test]
fn child() {
    let Ok(role) = env::var(ROLE) else { return };
    println!();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = patient(env::var(URL).unwrap());
        let store = store.key_prefix(env::var(PREFIX).unwrap()).open().await.unwrap();
        match role.as_str() {
            "claims" => {
                say("ready");
                wait_for_a_line();
                let mut claims = JoinSet::new();
                for number in 0..OPERATIONS {
                    for _ in 0..4 {
                        let store = store.clone();
                        claims.spawn(async move {
                            match store.begin(&claim(numbered(number))).await.unwrap() {
                                Begin::Acquired(_) => Some(number),
                                Begin::Found(_) => None,
                            }
                        });
                    }
                }
                let won = claims.join_all().await.into_iter().flatten();
                say(won.map(|number| number.to_string()).collect::<Vec<_>>().join(" "));
            }
            "attempt" => {
                let owned = retrysafe_core::Claim { lease: BRIEF, ..claim(numbered(0)) };
                let lease = acquire(&store, &owned).await;
                say("begun");
                wait_for_a_line();
                let done = store.complete(&lease, &owned.fingerprint, "done".into(), LONG).await;
                assert_eq!(done.unwrap(), Held::Applied);
                say("completed");
                wait_for_a_line();
            }
            other => panic!("no such role: {other}"),
        }
    });
}

#[tokio::test]
async fn st1_one_process_of_two_wins_each_operation() {
    let (url, prefix) = (RedisServer::shared().await.url(), prefix());
    let start = || Process::start("claims", &url, &prefix);
    let mut processes = [start(), start()];
    for process in &mut processes {
        assert_eq!(process.says().await, "ready");
    }
    for process in &mut processes {
        process.go_on().await;
    }
    let mut winners = HashMap::<u64, usize>::new();
    for process in &mut processes {
        for number in process.says().await.split_whitespace() {
            *winners.entry(number.parse().unwrap()).or_default() += 1;
        }
    }
    assert_eq!(winners.len() as u64, OPERATIONS);
    assert!(winners.values().all(|winners| *winners == 1), "{winners:?}");
}

#[tokio::test]
async fn crash_wedges() {
    let (url, prefix) = (RedisServer::shared().await.url(), prefix());
    let mut process = Process::start("attempt", &url, &prefix);
    assert_eq!(process.says().await, "begun");
    process.kill().await;

    let store = patient(&url).key_prefix(&prefix).open().await.unwrap();
    let retry = claim(numbered(0));
    // Until the lease is over in real time, by the server's clock.
    store.changed(&retry.id, 1, LONG).await.unwrap();
    let take_over = retrysafe_core::Claim { take_over: true, ..retry };
    let Begin::Acquired(acquired) = store.begin(&take_over).await.unwrap() else {
        panic!("the lapsed attempt should have been taken over")
    };
    assert!(acquired.attempt == 2 && acquired.fence == 2 && acquired.previous_vanished);
}

#[tokio::test]
async fn st9_an_outcome_survives_the_kill_of_its_process() {
    let (url, prefix) = (RedisServer::shared().await.url(), prefix());
    let mut process = Process::start("attempt", &url, &prefix);
    assert_eq!(process.says().await, "begun");
    let store = patient(&url).key_prefix(&prefix).open().await.unwrap();
    let retry = claim(numbered(0));
    process.go_on().await;
    // Woken by what another process did.
    store.changed(&retry.id, 1, LONG).await.unwrap();
    assert_eq!(process.says().await, "completed");
    process.kill().await;

    let begun = store.begin(&retry).await.unwrap();
    assert!(matches!(begun, Begin::Found(Found::Finished { payload, .. }) if payload == "done"));
    assert_eq!(store.count().await.unwrap().finished, 1);
}
