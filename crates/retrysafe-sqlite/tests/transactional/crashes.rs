//! A process that is killed, at every moment of an operation and at any other. A child process is the
//! test binary itself, told to run one test alone.

use std::{
    collections::HashSet, env, fs, io::Write as _, path::Path, process::Stdio, sync::Arc,
    time::Duration,
};

use retrysafe_axum::{Completer, Done, OnInFlight, Once, OnceError, PhaseError, Scope};
use retrysafe_sqlite::{SqliteTransaction, TransactionalSqlite};
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use crate::{ACCOUNTS, Bank, PATIENCE, credit};

const ROLE: &str = "RETRYSAFE_TEST_CHILD";
const PLACE: &str = "RETRYSAFE_TEST_CHILD_PLACE";
const SAYS: &str = "child: ";

/// How long a killed process goes on holding its key.
const LEASE: Duration = Duration::from_millis(500);

struct Process {
    child: Child,
    output: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(role: &str, place: &Path) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "crashes::child", "--nocapture"])
            .env(ROLE, role)
            .env(PLACE, place)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, output }
    }

    /// The next thing that it says.
    async fn says(&mut self) -> String {
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
    async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

fn say(what: &str) {
    println!("{SAYS}{what}");
}

/// What a child process runs. Without a role, which only a parent gives it, there is nothing to do.
#[tokio::test]
async fn child() {
    let (Ok(role), Ok(place)) = (env::var(ROLE), env::var(PLACE)) else { return };
    println!();
    let service = Service::at(Path::new(&place));
    if role == "stream" {
        for number in 0.. {
            service.credit(&number.to_string(), "").await;
            say(&number.to_string());
        }
    }
    match role.strip_prefix("phases: ") {
        Some(moment) => service.pay(moment).await,
        None => service.credit("one", &role).await,
    };
    say("answered");
    std::future::pending().await
}

/// A service that stands still at a moment, to be killed.
struct Service {
    once: Once<TransactionalSqlite>,
    calls: std::path::PathBuf,
}

async fn at(moment: &str, here: &str) {
    if moment == here {
        say(here);
        std::future::pending::<()>().await;
    }
}

impl Service {
    fn at(directory: &Path) -> Self {
        let path = directory.join("bank.db");
        let store = TransactionalSqlite::builder(path).busy_timeout(PATIENCE).hold(PATIENCE);
        let once = Once::builder(store.open().unwrap())
            .lease(LEASE)
            .on_in_flight(OnInFlight::wait(PATIENCE))
            .settings(|settings| {
                settings.max_execution = PATIENCE;
                settings.store_deadline = PATIENCE;
            });
        Self { once: once.build().unwrap(), calls: directory.join("calls") }
    }

    /// One more on the account; whether it was answered from the record.
    async fn credit(&self, key: &str, moment: &str) -> bool {
        loop {
            if let Some(replayed) = answered(self.try_credit(key, moment).await) {
                return replayed;
            }
        }
    }

    /// Reserves, charges, credits.
    async fn pay(&self, moment: &str) -> bool {
        loop {
            if let Some(replayed) = answered(self.try_pay(moment).await) {
                return replayed;
            }
        }
    }

    async fn try_credit(&self, key: &str, moment: &str) -> Result<Done<()>, OnceError<String>> {
        let moment = moment.to_owned();
        let run = self.once.run("credit", &Scope::shared(), key, &(), |context| async move {
            at(&moment, "after the claim").await;
            let transaction: SqliteTransaction = context.lent().unwrap();
            credit(&transaction, 1).await.unwrap();
            at(&moment, "during the work").await;
            credit(&transaction, 2).await.unwrap();
            if moment == "in the transaction" {
                let stands_still = transaction.run(|_| {
                    say("in the transaction");
                    std::thread::sleep(PATIENCE);
                });
                stands_still.await.unwrap();
            }
            at(&moment, "after the work").await;
            Ok::<_, String>(())
        });
        run.await
    }

    async fn try_pay(&self, moment: &str) -> Result<Done<()>, OnceError<String>> {
        let (moment, calls) = (moment.to_owned(), self.calls.clone());
        let run = self.once.run("pay", &Scope::shared(), "one", &(), |context| async move {
            let mut phases = context.phases::<SqliteTransaction>().unwrap();
            phases
                .step("reserve", |transaction| async {
                    let transaction = transaction;
                    credit(&transaction, 2).await.map_err(|undone| undone.to_string())?;
                    at(&moment, "in the step").await;
                    Ok(())
                })
                .await
                .map_err(text)?;
            at(&moment, "between step and phase").await;
            let charged = phases.phase("charge", |key| async {
                let key = key;
                at(&moment, "before the call").await;
                let mut calls =
                    fs::OpenOptions::new().create(true).append(true).open(&calls).unwrap();
                writeln!(calls, "{key}").unwrap();
                at(&moment, "after the call").await;
                Ok::<_, String>("charged".to_owned())
            });
            assert_eq!(charged.await.map_err(text)?, "charged");
            at(&moment, "after the phase").await;
            let transaction =
                phases.transaction().await.map_err(PhaseError::or_failed).map_err(text)?;
            credit(&transaction, 1).await.map_err(|undone| undone.to_string())?;
            at(&moment, "after the work").await;
            Ok::<_, String>(())
        });
        run.completable().await
    }
}

/// Whether it was answered from the record; nothing if it has to be tried again. On a machine that is
/// busy the lease may be over before the claim is answered, and then nothing runs.
fn answered(done: Result<Done<()>, OnceError<String>>) -> Option<bool> {
    match done {
        Ok(done) => Some(done.replayed),
        Err(OnceError::Problem(problem)) if problem.retry_after.is_some() => None,
        Err(error) => panic!("{error}"),
    }
}

fn text(error: PhaseError<String>) -> String {
    error.to_string()
}

fn place() -> TempDir {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("bank.db");
    Connection::open(path).unwrap().execute_batch(ACCOUNTS).unwrap();
    directory
}

#[tokio::test]
async fn sqlite_does_it_once_whenever_the_process_is_killed() {
    for moment in
        ["after the claim", "during the work", "in the transaction", "after the work", "answered"]
    {
        let place = place();
        let mut process = Process::start(moment, place.path());
        assert_eq!(process.says().await, moment);
        process.kill().await;
        let replayed = Service::at(place.path()).credit("one", "").await;
        assert_eq!(replayed, moment == "answered", "{moment}");
        let bank = Bank::at(place.path().join("bank.db"), |store| store);
        assert_eq!((bank.balance(), bank.finished()), (1, 1), "{moment}");
        assert_eq!(bank.number("SELECT balance FROM account WHERE id = 2"), 1, "{moment}");
    }
}

#[tokio::test]
async fn phases_are_done_once_whenever_the_process_is_killed() {
    for moment in [
        "in the step",
        "between step and phase",
        "before the call",
        "after the call",
        "after the phase",
        "after the work",
        "answered",
    ] {
        let place = place();
        let mut process = Process::start(&format!("phases: {moment}"), place.path());
        assert_eq!(process.says().await, moment);
        process.kill().await;
        let replayed = Service::at(place.path()).pay("").await;
        assert_eq!(replayed, moment == "answered", "{moment}");
        let bank = Bank::at(place.path().join("bank.db"), |store| store);
        assert_eq!((bank.balance(), bank.finished()), (1, 1), "{moment}");
        assert_eq!(bank.number("SELECT balance FROM account WHERE id = 2"), 1, "{moment}");
        let calls = fs::read_to_string(place.path().join("calls")).unwrap();
        let again = moment == "after the call";
        assert_eq!(calls.lines().count(), if again { 2 } else { 1 }, "{moment}");
        assert_eq!(calls.lines().collect::<HashSet<_>>().len(), 1, "one key: {moment}");
    }
}

#[tokio::test]
async fn what_a_killed_process_has_begun_is_finished_though_nobody_comes_back() {
    for (moment, calls) in [("before the call", 1), ("after the call", 2), ("after the phase", 1)] {
        let place = place();
        let mut process = Process::start(&format!("phases: {moment}"), place.path());
        assert_eq!(process.says().await, moment);
        process.kill().await;
        let service = Arc::new(Service::at(place.path()));
        let again = service.clone();
        let mut completer = Completer::new(&service.once).on("pay", move |_| {
            let service = again.clone();
            async move { Some(service.pay("").await) }
        });
        let finished = async {
            while completer.look().await.unwrap().finished == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, finished).await.expect("it is finished when its lease is over");
        let bank = Bank::at(place.path().join("bank.db"), |store| store);
        assert_eq!((bank.balance(), bank.finished()), (1, 1), "{moment}");
        let called = fs::read_to_string(place.path().join("calls")).unwrap();
        assert_eq!(called.lines().count(), calls, "{moment}");
        assert!(service.pay("").await, "who comes back after all gets the answer");
    }
}

#[tokio::test]
async fn sqlite_loses_and_doubles_nothing_whatever_is_killed() {
    let place = place();
    let mut answered = 0;
    for round in 0..5 {
        let mut process = Process::start("stream", place.path());
        // It begins anew each time: what was answered is answered again.
        for number in 0..answered + 20 + round * 7 {
            assert_eq!(process.says().await, number.to_string());
            answered = answered.max(number);
        }
        process.kill().await;
    }
    let service = Service::at(place.path());
    for number in 0..=answered {
        assert!(service.credit(&number.to_string(), "").await, "{number} was answered");
    }
    let bank = Bank::at(place.path().join("bank.db"), |store| store);
    assert_eq!(bank.balance(), bank.finished());
    assert_eq!(bank.number("SELECT balance FROM account WHERE id = 2"), bank.finished());
    assert!(bank.finished() > answered);
}
