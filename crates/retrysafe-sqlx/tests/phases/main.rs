//! Recovery points in both engines: what is known between calls to other services is committed. On
//! real servers, and with processes that are killed.

#![expect(clippy::unwrap_used, reason = "a test says what failed by where it panics")]

mod commits;
mod process;
#[macro_use]
mod steps;

use std::{
    collections::HashSet,
    fs,
    future::{pending, poll_fn},
    io::Write as _,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    task::Poll,
    time::Duration,
};

use retrysafe_axum::{
    Algorithm, Attempt, Begin, BodyPart, Claim, Code, Completer, Done, Fingerprint,
    FromAttempt as _, Held, IdempotencyKey, Lease, NotLent, OnInFlight, OnUnknownOutcome, Once,
    OnceError, OperationId, Owner, PhaseError, Phases, Scope, Store as _, StoreErrorKind,
    SystemEntropy,
};
use retrysafe_testkit::servers::{MariadbServer, PostgresServer};
use tokio::time::timeout;

use self::process::{Process, say};

/// Longer than a machine that is busy with other things stands still.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a process that was killed goes on holding its key.
const LEASE: Duration = Duration::from_millis(500);

/// Statements that every engine knows.
const ACCOUNTS: [&str; 2] = [
    "CREATE TABLE account (id INT PRIMARY KEY, balance INT NOT NULL)",
    "INSERT INTO account VALUES (1, 0), (2, 0), (3, 0)",
];
const CREDITS: [&str; 3] = [
    "UPDATE account SET balance = balance + 1 WHERE id = 1",
    "UPDATE account SET balance = balance + 1 WHERE id = 2",
    "UPDATE account SET balance = balance + 1 WHERE id = 3",
];
const BALANCES: [&str; 3] = [
    "SELECT balance FROM account WHERE id = 1",
    "SELECT balance FROM account WHERE id = 2",
    "SELECT balance FROM account WHERE id = 3",
];

/// A service of somebody else's: the keys that it was called with.
#[derive(Clone, Default)]
struct Processor(Arc<Mutex<Vec<String>>>);

impl Processor {
    async fn charge(self, key: String) -> Result<usize, Failed> {
        let mut calls = self.0.lock().unwrap();
        calls.push(key);
        Ok(calls.len())
    }

    fn calls(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

#[derive(Debug)]
struct Failed;

impl From<sqlx::Error> for Failed {
    fn from(_: sqlx::Error) -> Self {
        Self
    }
}

impl<E> From<PhaseError<E>> for Failed {
    fn from(_: PhaseError<E>) -> Self {
        Self
    }
}

fn claim() -> Claim {
    let key = IdempotencyKey::new("one").unwrap();
    Claim {
        id: OperationId::new("default", &Scope::shared(), &key),
        owner: Owner::new(&SystemEntropy),
        fingerprint: Fingerprint {
            algorithm: Algorithm::from_u32(1),
            head: [1; 32],
            body: Some(BodyPart::IGNORED),
        },
        lease: LEASE,
        retention: PATIENCE,
        take_over: true,
    }
}

/// The moments at which a process is killed.
const MOMENTS: [&str; 7] = [
    "in the step",
    "between step and phase",
    "before the call",
    "after the call",
    "after the phase",
    "after the work",
    "answered",
];

/// Whether it was answered from the record; nothing if it has to be tried again. On a machine that is
/// busy the lease may be over before the claim is answered, and then nothing runs.
fn answered(done: Result<Done<()>, OnceError<Failed>>) -> Option<bool> {
    match done {
        Ok(done) => Some(done.replayed),
        Err(OnceError::Problem(problem)) if problem.retry_after.is_some() => None,
        Err(error) => panic!("{error:?}"),
    }
}

async fn at(moment: &str, here: &str) {
    if moment == here {
        say(here);
        pending::<()>().await;
    }
}

macro_rules! engine {
    ($engine:ident, $server:ident, $store:ident, $transaction:ident, $pool:ident) => {
        mod $engine {
            use retrysafe_sqlx::{$store, $transaction};
            use sqlx::$engine::$pool;

            use super::*;

            pub(crate) type InPhases = Phases<$transaction>;

            pub(crate) struct Bank {
                pub(crate) url: String,
                pub(crate) store: $store,
            }

            impl Bank {
                pub(crate) async fn new() -> Self {
                    let url = $server::shared().await.fresh_database().await;
                    let bank = Self::at(&url).await;
                    for sql in ACCOUNTS {
                        bank.run(sql).await;
                    }
                    bank
                }

                async fn at(url: &str) -> Self {
                    let pool = $pool::new().max_connections(4).connect(url).await.unwrap();
                    let store = $store::builder(pool).migrate().timeout(PATIENCE).wait(PATIENCE);
                    Self { url: url.to_owned(), store: store.open().await.unwrap() }
                }

                /// The same, with a store that keeps no more than so many bytes.
                async fn with_payloads_of(self, most: usize) -> Self {
                    let pool = $pool::new().max_connections(4).connect(&self.url).await.unwrap();
                    let store = $store::builder(pool).timeout(PATIENCE).wait(PATIENCE);
                    Self { store: store.max_payload(most).open().await.unwrap(), ..self }
                }

                pub(crate) async fn run(&self, sql: &'static str) {
                    let pool = $pool::new().connect(&self.url).await.unwrap();
                    sqlx::raw_sql(sql).execute(&pool).await.unwrap();
                    pool.close().await;
                }

                /// The balances of the three accounts.
                pub(crate) async fn balances(&self) -> [i32; 3] {
                    let pool = $pool::new().connect(&self.url).await.unwrap();
                    let mut balances = [0; 3];
                    for (balance, sql) in balances.iter_mut().zip(BALANCES) {
                        *balance = sqlx::query_scalar(sql).fetch_one(&pool).await.unwrap();
                    }
                    pool.close().await;
                    balances
                }

                fn once(&self) -> Once<$store> {
                    self.once_for(PATIENCE)
                }

                pub(crate) fn once_for(&self, lease: Duration) -> Once<$store> {
                    let once = Once::builder(self.store.clone()).lease(lease);
                    let once = once.on_in_flight(OnInFlight::wait(PATIENCE));
                    let once = once.settings(|settings| {
                        settings.max_execution = PATIENCE;
                        settings.store_deadline = PATIENCE * 2;
                    });
                    once.build().unwrap()
                }

                /// An attempt, without an engine.
                pub(crate) async fn begin(&self, claim: &Claim) -> (Lease, Attempt) {
                    let Begin::Acquired(acquired) = self.store.begin(claim).await.unwrap() else {
                        panic!("the claim should have been granted");
                    };
                    let (attempt, fence) = (acquired.attempt, acquired.fence);
                    let lease = Lease { id: claim.id, owner: claim.owner, attempt, fence };
                    let key = IdempotencyKey::new("one").unwrap();
                    let attempt = Attempt::new(claim.id, key, Scope::shared(), acquired);
                    (lease.clone(), attempt.with_unit(self.store.unit(&lease)))
                }
            }

            pub(crate) async fn credit(
                mut transaction: $transaction,
                account: usize,
            ) -> Result<(), Failed> {
                sqlx::raw_sql(CREDITS[account - 1]).execute(&mut *transaction).await?;
                Ok(())
            }

            /// Reserves on account 2, charges, and credits account 1.
            async fn pay(mut phases: InPhases, processor: Processor) -> Result<usize, Failed> {
                phases.step("reserve", |transaction| credit(transaction, 2)).await?;
                let charge = phases.phase("charge", |key| processor.charge(key)).await?;
                credit(phases.transaction().await?, 1).await?;
                Ok(charge)
            }

            #[tokio::test]
            async fn the_next_attempt_goes_on_from_the_last_point() {
                let (bank, processor) = (Bank::new().await, Processor::default());
                let once = bank.once();
                let runs = Arc::new(AtomicU32::new(0));
                let run = |input: u32| {
                    let (runs, processor) = (runs.clone(), processor.clone());
                    once.run("pay", &Scope::shared(), "one", &input, |context| async move {
                        let charge = pay(context.lent().unwrap(), processor).await?;
                        match runs.fetch_add(1, Ordering::SeqCst) {
                            0 => Err(Failed),
                            _ => Ok(charge),
                        }
                    })
                };
                assert!(matches!(run(1).await, Err(OnceError::Failed { .. })));
                assert_eq!(bank.balances().await, [0, 1, 0]);
                // Of another input it is not the operation, and never will be.
                assert_eq!(run(2).await.unwrap_err().code(), Some(Code::KeyReused));
                let retry = run(1).await.unwrap();
                assert_eq!((retry.value, retry.replayed), (1, false));
                assert_eq!(bank.balances().await, [1, 1, 0]);
                assert_eq!(processor.calls().len(), 1, "what is kept is not called again");
                assert!(run(1).await.unwrap().replayed);
            }

            #[tokio::test]
            async fn what_is_released_after_a_point_goes_on_too() {
                let (bank, processor) = (Bank::new().await, Processor::default());
                let once = bank.once();
                let runs = Arc::new(AtomicU32::new(0));
                let run = || {
                    let (runs, processor) = (runs.clone(), processor.clone());
                    once.run("pay", &Scope::shared(), "one", &(), |context| async move {
                        let charge = pay(context.lent().unwrap(), processor).await?;
                        match runs.fetch_add(1, Ordering::SeqCst) {
                            0 => Err(Failed),
                            _ => Ok(charge),
                        }
                    })
                    .release_if(|_| true)
                };
                assert!(matches!(run().await, Err(OnceError::Failed { .. })));
                assert_eq!(run().await.unwrap().value, 1);
                assert_eq!(bank.balances().await, [1, 1, 0]);
                assert_eq!(processor.calls().len(), 1);
            }

            #[tokio::test]
            async fn what_was_abandoned_is_finished() {
                async fn run(
                    once: Once<$store>,
                    processor: Processor,
                    key: String,
                    fails: bool,
                ) -> Result<bool, OnceError<Failed>> {
                    let run = once.run("pay", &Scope::shared(), &*key, &5, move |context| async move {
                        pay(context.phases().unwrap(), processor).await?;
                        if fails { Err(Failed) } else { Ok(()) }
                    });
                    Ok(run.completable().await?.replayed)
                }
                let (bank, processor) = (Bank::new().await, Processor::default());
                let once = bank.once();
                let calls = || processor.clone();
                assert!(run(once.clone(), calls(), "one".to_owned(), true).await.is_err());
                let (again, called) = (once.clone(), calls());
                let mut completer = Completer::new(&once).on("pay", move |call| {
                    assert_eq!(call.input::<u32>().unwrap(), 5);
                    let run = run(again.clone(), called.clone(), call.key().to_owned(), false);
                    async { run.await.ok() }
                });
                let completed = completer.look().await.unwrap();
                assert_eq!((completed.found, completed.finished), (1, 1));
                assert_eq!(completer.look().await.unwrap().found, 0);
                assert!(run(once, calls(), "one".to_owned(), false).await.unwrap());
                assert_eq!(bank.balances().await, [1, 1, 0]);
                assert_eq!(processor.calls().len(), 1);
            }

            #[tokio::test]
            async fn a_refusal_after_a_phase_is_kept_and_the_points_stay() {
                let (bank, processor) = (Bank::new().await, Processor::default());
                let once = bank.once();
                let run = || {
                    let processor = processor.clone();
                    once.run("pay", &Scope::shared(), "one", &(), |context| async move {
                        pay(context.lent().unwrap(), processor).await.unwrap();
                        Err::<(), _>("declined".to_owned())
                    })
                    .keep_if(|_| true)
                };
                for is_replayed in [false, true] {
                    let refused = run().await.unwrap_err();
                    assert!(
                        matches!(refused, OnceError::Failed { replayed, .. } if replayed == is_replayed)
                    );
                    assert_eq!(bank.balances().await, [0, 1, 0]);
                }
            }

            #[tokio::test]
            async fn a_lease_between_two_points_is_renewed() {
                let bank = Bank::new().await;
                let once = bank.once_for(LEASE);
                let run = || {
                    once.run("pay", &Scope::shared(), "one", &(), |context| async move {
                        let mut phases: InPhases = context.lent().unwrap();
                        let slow = phases.phase("charge", |_| async {
                            tokio::time::sleep(LEASE * 3).await;
                            Ok::<_, Failed>(())
                        });
                        slow.await?;
                        credit(phases.transaction().await?, 1).await
                    })
                };
                while answered(run().await).is_none() {}
                assert_eq!(bank.balances().await, [1, 0, 0]);
            }

            #[tokio::test]
            async fn e5_an_attempt_that_was_taken_over_keeps_no_further_point() {
                let (bank, processor) = (Bank::new().await, Processor::default());
                let other = Bank::at(&bank.url).await;
                let (first, second) = (claim(), claim());
                let (late, attempt) = bank.begin(&first).await;
                let mut phases = InPhases::from_attempt(&attempt).unwrap();
                phases.step("reserve", |transaction| credit(transaction, 2)).await.unwrap();
                let mut taken = None;
                let charged = phases.phase("charge", |key| {
                    let (other, second, taken) = (&other, &second, &mut taken);
                    let processor = processor.clone();
                    async move {
                        // Without an engine nobody renews.
                        tokio::time::sleep(LEASE * 2).await;
                        let (lease, attempt) = other.begin(second).await;
                        let mut phases = InPhases::from_attempt(&attempt).unwrap();
                        phases.step("reserve", |transaction| credit(transaction, 2)).await.unwrap();
                        phases.step("noted", |transaction| credit(transaction, 3)).await.unwrap();
                        *taken = Some((lease, attempt, phases));
                        processor.charge(key).await
                    }
                });
                let charged = charged.await;
                assert!(matches!(charged, Err(PhaseError::Lost)), "{charged:?}");
                // Nor does it do anything else.
                let more = phases.step("more", |transaction| credit(transaction, 2)).await;
                assert!(matches!(more, Err(PhaseError::Lost)), "{more:?}");
                let refunded = phases.phase("refund", |key| processor.clone().charge(key)).await;
                assert!(matches!(refunded, Err(PhaseError::Lost)), "{refunded:?}");
                assert!(matches!(phases.transaction().await, Err(PhaseError::Lost)));

                let (lease, attempt, mut phases) = taken.unwrap();
                assert_eq!((attempt.number(), attempt.fence(), attempt.previous_vanished()), (2, 2, true));
                let charged = phases.phase("charge", |key| processor.clone().charge(key)).await;
                assert_eq!(charged.unwrap(), 2);
                let done = bank.store.complete(&late, &first.fingerprint, "late".into(), PATIENCE);
                assert!(matches!(done.await, Ok(Held::Lost(_))));

                let done = other.store.complete(&lease, &second.fingerprint, "done".into(), PATIENCE);
                assert_eq!(done.await.unwrap(), Held::Applied);
                let calls = processor.calls();
                assert!(calls.len() == 2 && calls[0] == calls[1], "{calls:?}");
                assert_eq!(bank.balances().await, [0, 1, 1]);
            }

            /// The renewal that a transaction begins with is undone with it.
            #[tokio::test]
            async fn e5_an_attempt_that_was_taken_over_in_a_step_that_failed_calls_nobody() {
                let (bank, processor) = (Bank::new().await, Processor::default());
                let other = Bank::at(&bank.url).await;
                let (_, attempt) = bank.begin(&claim()).await;
                let mut phases = InPhases::from_attempt(&attempt).unwrap();
                phases.step("reserve", |transaction| credit(transaction, 2)).await.unwrap();
                let failed = phases.step("book", |transaction| async move {
                    credit(transaction, 1).await.unwrap();
                    tokio::time::sleep(LEASE * 2).await;
                    Err::<(), _>("no more")
                });
                assert!(matches!(failed.await, Err(PhaseError::Failed("no more"))));
                let (_, attempt) = other.begin(&claim()).await;
                let mut theirs = InPhases::from_attempt(&attempt).unwrap();
                theirs.step("reserve", |transaction| credit(transaction, 2)).await.unwrap();
                let refunded = phases.phase("refund", |key| processor.clone().charge(key)).await;
                assert!(matches!(refunded, Err(PhaseError::Lost)), "{refunded:?}");
                assert!(processor.calls().is_empty(), "{:?}", processor.calls());
            }

            #[tokio::test]
            async fn a_phase_that_never_answers_does_not_wedge_its_key() {
                for elsewhere in [false, true] {
                    let bank = Bank::new().await;
                    let keys = Arc::new(Mutex::new(Vec::new()));
                    let once_of = |bank: &Bank| {
                        let once = Once::builder(bank.store.clone()).lease(LEASE);
                        let once = once.settings(|settings| {
                            settings.max_execution = LEASE;
                            settings.store_deadline = PATIENCE;
                        });
                        once.build().unwrap()
                    };
                    let run = |once: &Once<$store>| {
                        let (once, keys) = (once.clone(), keys.clone());
                        async move {
                            let run = once.run("pay", &Scope::shared(), "one", &(), |context| async move {
                                let mut phases: InPhases = context.lent().unwrap();
                                let charged = phases.phase("charge", |key| async move {
                                    let is_first = {
                                        let mut keys = keys.lock().unwrap();
                                        keys.push(key);
                                        keys.len() == 1
                                    };
                                    if is_first {
                                        pending::<()>().await;
                                    }
                                    Ok::<_, Failed>(())
                                });
                                charged.await?;
                                credit(phases.transaction().await?, 1).await
                            });
                            run.await
                        }
                    };
                    let once = once_of(&bank);
                    let hangs = tokio::spawn(run(&once));
                    let other = Bank::at(&bank.url).await;
                    let next = if elsewhere { once_of(&other) } else { once.clone() };
                    let retried = async {
                        while keys.lock().unwrap().is_empty() {
                            tokio::task::yield_now().await;
                        }
                        loop {
                            match answered(run(&next).await) {
                                Some(replayed) => break replayed,
                                None => tokio::time::sleep(LEASE / 10).await,
                            }
                        }
                    };
                    let replayed = timeout(PATIENCE, retried).await.expect("it is taken over");
                    assert!(!replayed);
                    // Where it hangs they get the answer, too.
                    assert!(run(&once).await.unwrap().replayed);
                    assert_eq!(bank.balances().await, [1, 0, 0]);
                    let keys = keys.lock().unwrap().clone();
                    assert!(keys.len() == 2 && keys[0] == keys[1], "{keys:?}");
                    hangs.abort();
                }
            }

            #[tokio::test]
            async fn an_attempt_that_goes_on_is_counted_whatever_it_comes_to() {
                let (bank, processor) = (Bank::new().await, Processor::default());
                let once = bank.once();
                let fails = Arc::new(AtomicU32::new(3));
                let run = {
                    let (once, processor) = (once.clone(), processor.clone());
                    move |key: String| {
                        let (once, processor, fails) = (once.clone(), processor.clone(), fails.clone());
                        async move {
                            let run = once.run("pay", &Scope::shared(), &*key, &5, |context| async move {
                                let mut phases: InPhases = context.phases().unwrap();
                                phases.phase("charge", |key| processor.charge(key)).await?;
                                let left = fails.load(Ordering::SeqCst);
                                if left > 0 {
                                    fails.store(left - 1, Ordering::SeqCst);
                                    return Err(Failed);
                                }
                                credit(phases.transaction().await?, 1).await
                            });
                            run.completable().await
                        }
                    }
                };
                assert!(run("one".to_owned()).await.is_err());
                let again = run.clone();
                let completer = Completer::new(&once).on("pay", move |call| {
                    let run = again(call.key().to_owned());
                    async { run.await.ok() }
                });
                let mut completer = completer.every(Duration::from_millis(1)).attempts(3);
                let tried = async {
                    let mut failed = 0;
                    while failed < 2 {
                        failed += completer.look().await.unwrap().failed;
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                timeout(PATIENCE, tried).await.expect("it is tried again");
                // Three attempts: the caller's, two of this. From here on it is an operator's.
                for _ in 0..3 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    let completed = completer.look().await.unwrap();
                    assert_eq!((completed.found, completed.finished, completed.failed), (1, 0, 0));
                }
                assert_eq!(run("one".to_owned()).await.unwrap().attempt, Some(4));
                assert_eq!(processor.calls().len(), 1);
                assert_eq!(bank.balances().await, [1, 0, 0]);
            }

            #[tokio::test]
            async fn f4_phases_are_for_requests_that_are_read_before_the_claim() {
                let bank = Bank::new().await;
                let mut claim = claim();
                claim.fingerprint.body = None;
                let (_, attempt) = bank.begin(&claim).await;
                assert_eq!(InPhases::from_attempt(&attempt).unwrap_err(), NotLent::Unread);
                assert!($transaction::from_attempt(&attempt).is_ok());
            }

            #[tokio::test]
            async fn a_part_that_is_dropped_while_it_looks_back_leaves_no_doubt() {
                let (bank, processor) = (Bank::new().await, Processor::default());
                let once = bank.once();
                let runs = Arc::new(AtomicU32::new(0));
                let run = |key: u32| {
                    let (runs, processor) = (runs.clone(), processor.clone());
                    let run = once.run("pay", &Scope::shared(), &*key.to_string(), &(), |context| async move {
                        let mut phases: InPhases = context.lent().unwrap();
                        let mut charge = Box::pin(phases.phase("charge", |key| processor.charge(key)));
                        match runs.fetch_add(1, Ordering::SeqCst) {
                            0 => charge.await.map(drop)?,
                            1 => {
                                // It asks, and nobody listens to the answer.
                                let asks = poll_fn(|cx| Poll::Ready(charge.as_mut().poll(cx).is_pending()));
                                if asks.await {
                                    return Ok(());
                                }
                            }
                            _ => {
                                charge.await?;
                                return credit(phases.transaction().await?, 1).await;
                            }
                        }
                        Err(Failed)
                    });
                    async { run.await }
                };
                for key in 0..100 {
                    runs.store(0, Ordering::SeqCst);
                    assert!(matches!(run(key).await, Err(OnceError::Failed { .. })));
                    match run(key).await {
                        // What it says to have done it has not.
                        Err(OnceError::Problem(it)) if it.code == Code::StoreUnavailable => {
                            assert!(!run(key).await.unwrap().replayed);
                            assert_eq!(bank.balances().await, [1, 0, 0]);
                            let calls = processor.calls();
                            assert_eq!(calls.iter().collect::<HashSet<_>>().len(), calls.len());
                            return;
                        }
                        // The server was faster, and it was further by then: the next may be in time.
                        Ok(_) | Err(OnceError::Failed { .. }) => {}
                        Err(error) => assert_eq!(error.code(), Some(Code::InProgress), "{error:?}"),
                    }
                }
                panic!("none was dropped in time");
            }

            steps!($transaction);

            /// What a process does that is going to be killed: reserves, charges, credits.
            async fn pay_until(url: &str, calls: PathBuf, moment: &str) -> bool {
                let once = Bank::at(url).await.once_for(LEASE);
                loop {
                    let paid = try_pay(&once, calls.clone(), moment.to_owned()).await;
                    if let Some(replayed) = answered(paid) {
                        return replayed;
                    }
                }
            }

            async fn try_pay(
                once: &Once<$store>,
                calls: PathBuf,
                moment: String,
            ) -> Result<Done<()>, OnceError<Failed>> {
                let run = once.run("pay", &Scope::shared(), "one", &(), |context| async move {
                    let mut phases: InPhases = context.lent().unwrap();
                    let step = phases.step("reserve", |mut transaction| async {
                        sqlx::raw_sql(CREDITS[1]).execute(&mut *transaction).await?;
                        at(&moment, "in the step").await;
                        drop(transaction);
                        Ok::<_, Failed>(())
                    });
                    step.await?;
                    at(&moment, "between step and phase").await;
                    let charged = phases.phase("charge", |key| async {
                        let key = key;
                        at(&moment, "before the call").await;
                        let mut file = fs::OpenOptions::new();
                        let file = file.create(true).append(true).open(&calls);
                        writeln!(file.unwrap(), "{key}").unwrap();
                        at(&moment, "after the call").await;
                        Ok::<_, Failed>("charged".to_owned())
                    });
                    assert_eq!(charged.await?, "charged");
                    at(&moment, "after the phase").await;
                    credit(phases.transaction().await?, 1).await?;
                    at(&moment, "after the work").await;
                    Ok::<_, Failed>(())
                });
                run.await
            }

            #[tokio::test]
            async fn child() {
                let Some((url, calls, moment)) = process::role() else { return };
                pay_until(&url, calls, &moment).await;
                say("answered");
                pending().await
            }

            #[tokio::test]
            async fn phases_are_done_once_whenever_the_process_is_killed() {
                for moment in MOMENTS {
                    let (bank, directory) = (Bank::new().await, tempfile::tempdir().unwrap());
                    let calls = directory.path().join("calls");
                    let child = concat!(stringify!($engine), "::child");
                    let mut process = Process::start(child, &bank.url, &calls, moment);
                    assert_eq!(process.says().await, moment);
                    process.kill().await;
                    let replayed = pay_until(&bank.url, calls.clone(), "").await;
                    assert_eq!(replayed, moment == "answered", "{moment}");
                    assert_eq!(bank.balances().await, [1, 1, 0], "{moment}");
                    let calls = fs::read_to_string(calls).unwrap();
                    let again = moment == "after the call";
                    assert_eq!(calls.lines().count(), if again { 2 } else { 1 }, "{moment}");
                    assert_eq!(calls.lines().collect::<HashSet<_>>().len(), 1, "one key: {moment}");
                }
            }
        }
    };
}

engine!(postgres, PostgresServer, TransactionalPostgres, PostgresTransaction, PgPoolOptions);
engine!(mysql, MariadbServer, TransactionalMySql, MySqlTransaction, MySqlPoolOptions);
