//! Several real processes on one table. A child is this test binary, told to run [`child`] alone.

use std::{
    collections::HashMap,
    env,
    io::{self, BufRead as _},
    process::Stdio,
};

use retrysafe_core::{Begin, Claim, Found, Held, Inspect as _, Store as _};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    task::JoinSet,
};

use crate::{LONG, Table, acquire, claim, numbered};

const ROLE: &str = "RETRYSAFE_POSTGRES_CHILD";
const URL: &str = "RETRYSAFE_POSTGRES_CHILD_URL";
const TABLE: &str = "RETRYSAFE_POSTGRES_CHILD_TABLE";
/// What a child says begins with this; the test harness talks on the same pipe.
const SAYS: &str = "child: ";
const OPERATIONS: u64 = 100;

struct Process {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(role: &str, table: &Table) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "processes::child", "--nocapture"])
            .env(ROLE, role)
            .env(URL, &table.url)
            .env(TABLE, &table.name)
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
    let table = Table { url: env::var(URL).unwrap(), name: env::var(TABLE).unwrap() };
    println!();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = table.open().await;
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
                let owned = claim(numbered(0));
                let lease = acquire(&store, &owned).await;
                say("begun");
                wait_for_a_line();
                let done = store.complete(&lease, &owned.fingerprint, "done".into(), LONG).await;
                assert_eq!(done.unwrap(), Held::Applied);
                say("completed");
                wait_for_a_line();
            }
            "stream" => {
                for number in 0.. {
                    let owned = claim(numbered(number));
                    let lease = acquire(&store, &owned).await;
                    let payload = number.to_string().into();
                    let done = store.complete(&lease, &owned.fingerprint, payload, LONG).await;
                    assert_eq!(done.unwrap(), Held::Applied);
                    say(number);
                }
            }
            other => panic!("no such role: {other}"),
        }
    });
}

#[tokio::test]
async fn st1_one_process_of_two_wins_each_operation() {
    let table = Table::new().await;
    // Neither finds a table: they create it at once, too.
    let mut processes = [Process::start("claims", &table), Process::start("claims", &table)];
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
async fn st9_a_claim_survives_the_kill_of_its_process() {
    let table = Table::new().await;
    let mut process = Process::start("attempt", &table);
    assert_eq!(process.says().await, "begun");
    process.kill().await;

    let retry = claim(numbered(0));
    let store = table.open().await;
    let begun = store.begin(&retry).await.unwrap();
    assert!(matches!(begun, Begin::Found(Found::InFlight { attempt: 1, .. })), "{begun:?}");

    // crash_wedges: once the lease is over the key is usable again.
    table.run("UPDATE {table} SET lease_until = clock_timestamp()").await;
    let begun = store.begin(&retry).await.unwrap();
    assert!(matches!(begun, Begin::Found(Found::Lapsed { attempt: 1, .. })), "{begun:?}");
    let take_over = Claim { take_over: true, ..retry };
    let Begin::Acquired(acquired) = store.begin(&take_over).await.unwrap() else {
        panic!("the lapsed attempt should have been taken over")
    };
    assert!(acquired.attempt == 2 && acquired.fence == 2 && acquired.previous_vanished);
}

#[tokio::test]
async fn st9_an_outcome_survives_the_kill_of_its_process() {
    let table = Table::new().await;
    let mut process = Process::start("attempt", &table);
    assert_eq!(process.says().await, "begun");
    process.go_on().await;
    assert_eq!(process.says().await, "completed");
    process.kill().await;

    let store = table.open().await;
    let begun = store.begin(&claim(numbered(0))).await.unwrap();
    assert!(matches!(begun, Begin::Found(Found::Finished { payload, .. }) if payload == "done"));
    assert_eq!(store.count().await.unwrap().finished, 1);
}

#[tokio::test]
async fn st9_whatever_was_acknowledged_survives_a_kill_at_any_moment() {
    let table = Table::new().await;
    let mut process = Process::start("stream", &table);
    let mut acknowledged = 0;
    while acknowledged < 200 {
        acknowledged = process.says().await.parse().unwrap();
    }
    process.kill().await;

    let store = table.open().await;
    for number in 0..=acknowledged {
        let begun = store.begin(&claim(numbered(number))).await.unwrap();
        let Begin::Found(Found::Finished { payload, .. }) = begun else {
            panic!("{number} of {acknowledged}: {begun:?}")
        };
        assert_eq!(payload, number.to_string());
    }
    // Of what was not acknowledged, one attempt at most was under way.
    let counts = store.count().await.unwrap();
    assert!(counts.finished > acknowledged && counts.in_flight <= 1, "{counts:?}");
}

#[tokio::test]
async fn changed_sees_what_another_process_did() {
    let table = Table::new().await;
    let mut process = Process::start("attempt", &table);
    assert_eq!(process.says().await, "begun");

    let store = table.open().await;
    let retry = claim(numbered(0));
    process.go_on().await;
    // Within an hour, or when another process has completed: the test ends long before the former.
    store.changed(&retry.id, 1, LONG).await.unwrap();
    let begun = store.begin(&retry).await.unwrap();
    assert!(matches!(begun, Begin::Found(Found::Finished { .. })), "{begun:?}");
}
