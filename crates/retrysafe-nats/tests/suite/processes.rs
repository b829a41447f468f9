//! Several real processes on one stream. A child is this test binary, told to run [`child`] alone.

use std::{
    collections::HashMap,
    env,
    io::{self, BufRead as _},
    process::Stdio,
    time::Duration,
};

use retrysafe_core::{Begin, Claim, Found, Held, Store as _};
use retrysafe_nats::NatsStore;
use retrysafe_testkit::servers::NatsServer;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    task::JoinSet,
};

use crate::{LONG, acquire, claim, complete, numbered, patient, stream, until};

const ROLE: &str = "RETRYSAFE_NATS_CHILD";
const URL: &str = "RETRYSAFE_NATS_CHILD_URL";
const STREAM: &str = "RETRYSAFE_NATS_CHILD_STREAM";
/// What a child says begins with this; the test harness talks on the same pipe.
const SAYS: &str = "child: ";
const OPERATIONS: u64 = 100;
const SHORT: Duration = Duration::from_millis(500);

struct Process {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Process {
    async fn start(role: &str, stream: &str) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "processes::child", "--nocapture"])
            .env(ROLE, role)
            .env(URL, NatsServer::shared().await.url())
            .env(STREAM, stream)
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

async fn open(url: &str, stream: &str) -> NatsStore {
    patient(url).stream(stream).open().await.unwrap()
}

/// What a child process runs. Without a role, which only a parent gives it, there is nothing to do.
#[test]
fn child() {
    let Ok(role) = env::var(ROLE) else { return };
    let (url, stream) = (env::var(URL).unwrap(), env::var(STREAM).unwrap());
    println!();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = open(&url, &stream).await;
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
                let owned = Claim { lease: SHORT, ..claim(numbered(0)) };
                let lease = acquire(&store, &owned).await;
                say("begun");
                wait_for_a_line();
                let done = store.complete(&lease, &owned.fingerprint, "late".into(), LONG).await;
                say(match done.unwrap() {
                    Held::Applied => "applied",
                    Held::Lost(_) => "lost",
                });
                wait_for_a_line();
            }
            other => panic!("no such role: {other}"),
        }
    });
}

#[tokio::test]
async fn st1_one_process_of_two_wins_each_operation() {
    let stream = stream();
    // Neither finds the stream: they create it at once, too.
    let mut processes =
        [Process::start("claims", &stream).await, Process::start("claims", &stream).await];
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

async fn taken_over(store: &NatsStore) -> (Claim, retrysafe_core::Lease) {
    let take_over = Claim { take_over: true, ..claim(numbered(0)) };
    let acquired = until("the lease is over", || async {
        match store.begin(&take_over).await.unwrap() {
            Begin::Acquired(acquired) => Some(acquired),
            Begin::Found(Found::InFlight { attempt: 1, .. }) => None,
            found => panic!("{found:?}"),
        }
    })
    .await;
    assert!(acquired.attempt == 2 && acquired.fence == 2 && acquired.previous_vanished);
    let lease = crate::lease(&take_over, acquired);
    (take_over, lease)
}

#[tokio::test]
async fn st6_what_a_killed_process_held_is_taken_over() {
    let stream = stream();
    let mut process = Process::start("attempt", &stream).await;
    assert_eq!(process.says().await, "begun");
    process.kill().await;
    let store = open(&NatsServer::shared().await.url(), &stream).await;
    let (owned, lease) = taken_over(&store).await;
    complete(&store, &owned, &lease, "done").await;
}

#[tokio::test]
async fn unfenced_complete() {
    let stream = stream();
    let mut process = Process::start("attempt", &stream).await;
    assert_eq!(process.says().await, "begun");
    // It lives on, and knows nothing of this.
    let store = open(&NatsServer::shared().await.url(), &stream).await;
    let (owned, lease) = taken_over(&store).await;
    process.go_on().await;
    assert_eq!(process.says().await, "lost");
    complete(&store, &owned, &lease, "second").await;
    let found = store.begin(&claim(owned.id)).await.unwrap();
    assert!(matches!(found, Begin::Found(Found::Finished { payload, .. }) if payload == "second"));
}
