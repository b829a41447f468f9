//! Several real processes on one store: what another process sees, and what is left of one that was
//! killed.
//!
//! A child process is the test binary itself, told to run one test alone, which
//! [`process_tests!`](crate::process_tests) makes beside the rules. Like the rules of the
//! [`contract`], each is a function that panics where a store breaks it.
//!
//! ```no_run
//! mod processes {
//!     # use std::{sync::Arc, time::Duration};
//!     # use retrysafe_core::{MemoryStore, OperationId};
//!     # use retrysafe_testkit::{Fixture, processes::Reachable};
//!     # pub struct MyFixture;
//!     # impl Fixture for MyFixture {
//!     #     type Store = MemoryStore;
//!     #     async fn handle(&self) -> MemoryStore { MemoryStore::new() }
//!     #     async fn pass(&self, _: Duration) {}
//!     #     fn tick(&self) -> Duration { Duration::from_secs(1) }
//!     #     fn rounds(&self) -> usize { 10 }
//!     #     async fn small(&self, _: usize) -> Option<MemoryStore> { None }
//!     #     async fn spoil(&self, _: &OperationId) -> bool { false }
//!     # }
//!     # impl Reachable for MyFixture {
//!     #     fn address(&self) -> String { String::new() }
//!     #     async fn at(_: &str) -> Self { MyFixture }
//!     # }
//!     retrysafe_testkit::process_tests!(MyFixture, MyFixture);
//! }
//! ```

mod process;

use std::{collections::HashMap, future::Future, io::BufRead as _, sync::Arc, time::Duration};

use retrysafe_core::{Begin, Claim, Found, Held, Inspect as _, Lease, OperationId, Store as _};
use tokio::task::JoinSet;

use self::process::{Process, role, say};
use crate::{
    Fixture,
    contract::{self, assert_is, fingerprint, lease},
};

/// How many operations the processes race for.
const OPERATIONS: u64 = 100;

/// How many outcomes are acknowledged before a process is killed.
const ACKNOWLEDGED: u64 = 200;

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(60 * 60);

/// A [`Fixture`] whose data another process can open.
pub trait Reachable: Fixture {
    /// What the other process is told to find the same data: one line.
    fn address(&self) -> String;

    /// The same data, in the other process. There, nothing but [`handle`](Fixture::handle) is asked
    /// of it.
    fn at(address: &str) -> impl Future<Output = Self> + Send;
}

/// Makes one test of each rule, and the test that a child process runs. The type is that of the
/// fixture; the expression makes one and is evaluated anew for each rule, in an async block.
#[macro_export]
macro_rules! process_tests {
    ($type:ty, $fixture:expr) => {
        $crate::process_tests! {
            $type, $fixture,
            st1_one_process_of_two_wins_each_operation
            st9_a_claim_survives_the_kill_of_its_process
            st9_an_outcome_survives_the_kill_of_its_process
            st9_whatever_was_acknowledged_survives_a_kill_at_any_moment
            changed_sees_what_another_process_did
            unfenced_complete
        }
    };
    ($type:ty, $fixture:expr, $($rule:ident)*) => {
        /// What a child process runs. Without a role, which only a parent gives it, there is nothing
        /// to do.
        #[test]
        fn child() {
            $crate::processes::child::<$type>();
        }
        $(
            #[test]
            fn $rule() {
                let child = concat!(module_path!(), "::child");
                $crate::contract::run(async {
                    $crate::processes::$rule(&$fixture, child).await;
                });
            }
        )*
    };
}

/// What a child process does, as its parent has told it.
///
/// # Panics
///
/// Where the store breaks a rule, which its parent hears.
pub fn child<F: Reachable>() {
    let Some((role, address)) = role() else { return };
    contract::run(async move {
        let store = Arc::new(F::at(&address).await.handle().await);
        match role.as_str() {
            "claims" => claims(store).await,
            "attempt" => attempt(&*store).await,
            "stream" => stream(&*store).await,
            other => panic!("no such role: {other}"),
        }
    });
}

/// Claims every operation a few times over.
async fn claims(store: Arc<impl retrysafe_core::Store>) {
    say("ready");
    wait_for_a_line();
    let mut claims = JoinSet::new();
    for number in 0..OPERATIONS {
        for _ in 0..4 {
            let store = store.clone();
            claims.spawn(async move {
                match store.begin(&claim(number)).await.expect("begin") {
                    Begin::Acquired(_) => Some(number),
                    Begin::Found(_) => None,
                }
            });
        }
    }
    let won = claims.join_all().await.into_iter().flatten();
    say(won.map(|number| number.to_string()).collect::<Vec<_>>().join(" "));
}

/// Begins an attempt, and completes it when it is told to.
async fn attempt(store: &impl retrysafe_core::Store) {
    let held = acquire(store, &claim(0)).await;
    say("begun");
    wait_for_a_line();
    let done = store.complete(&held, &fingerprint(1), "done".into(), LONG).await;
    say(match done.expect("complete") {
        Held::Applied => "applied",
        Held::Lost(_) => "lost",
    });
    wait_for_a_line();
}

/// Runs one operation after the other.
async fn stream(store: &impl retrysafe_core::Store) {
    for number in 0.. {
        let held = acquire(store, &claim(number)).await;
        let payload = number.to_string().into();
        let done = store.complete(&held, &fingerprint(1), payload, LONG).await;
        assert_eq!(done.expect("complete"), Held::Applied);
        say(number);
    }
}

/// ST1: neither finds a store, so they create it at once, too; and each operation is one's alone.
///
/// # Panics
///
/// As all of these do, where the store breaks the rule.
pub async fn st1_one_process_of_two_wins_each_operation<F: Reachable>(fixture: &F, child: &str) {
    let start = || Process::start(child, "claims", &fixture.address());
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
            *winners.entry(number.parse().expect("a number")).or_default() += 1;
        }
    }
    assert_eq!(winners.len() as u64, OPERATIONS, "ST1: each is won");
    assert!(winners.values().all(|winners| *winners == 1), "ST1: {winners:?}");
}

/// ST9, and crash_wedges: the claim stays until its lease is over, and then the key can be used.
pub async fn st9_a_claim_survives_the_kill_of_its_process<F: Reachable>(fixture: &F, child: &str) {
    let mut process = Process::start(child, "attempt", &fixture.address());
    assert_eq!(process.says().await, "begun");
    process.kill().await;

    let store = fixture.handle().await;
    let begun = store.begin(&claim(0)).await.expect("begin");
    assert_is!(begun, Begin::Found(Found::InFlight { attempt: 1, .. }), "ST9");
    fixture.pass(LONG * 2).await;
    let begun = store.begin(&claim(0)).await.expect("begin");
    assert_is!(begun, Begin::Found(Found::Lapsed { attempt: 1, .. }), "the lease is over");
    let begun = store.begin(&take_over()).await.expect("begin");
    let Begin::Acquired(acquired) = begun else { panic!("crash_wedges: {begun:?}") };
    assert!(acquired.attempt == 2 && acquired.fence == 2, "ST5: {acquired:?}");
    assert!(acquired.previous_vanished, "ST6: {acquired:?}");
}

/// ST9: what was acknowledged to a process outlives it.
pub async fn st9_an_outcome_survives_the_kill_of_its_process<F: Reachable>(
    fixture: &F,
    child: &str,
) {
    let mut process = Process::start(child, "attempt", &fixture.address());
    assert_eq!(process.says().await, "begun");
    process.go_on().await;
    assert_eq!(process.says().await, "applied");
    process.kill().await;

    let store = fixture.handle().await;
    assert_finished(&store, 0, "done").await;
    assert_eq!(store.count().await.expect("count").finished, 1);
}

/// ST9: the same for many, of a process that is killed while it runs more.
pub async fn st9_whatever_was_acknowledged_survives_a_kill_at_any_moment<F: Reachable>(
    fixture: &F,
    child: &str,
) {
    let mut process = Process::start(child, "stream", &fixture.address());
    let mut acknowledged: u64 = 0;
    while acknowledged < ACKNOWLEDGED {
        acknowledged = process.says().await.parse().expect("a number");
    }
    process.kill().await;

    let store = fixture.handle().await;
    for number in 0..=acknowledged {
        assert_finished(&store, number, &number.to_string()).await;
    }
    // Of what was not acknowledged, one attempt at most was under way.
    let counts = store.count().await.expect("count");
    assert!(counts.finished > acknowledged && counts.in_flight <= 1, "{counts:?}");
}

/// Who waits is told of, or finds, what another process did, long before the hour is over.
pub async fn changed_sees_what_another_process_did<F: Reachable>(fixture: &F, child: &str) {
    let mut process = Process::start(child, "attempt", &fixture.address());
    assert_eq!(process.says().await, "begun");
    let store = fixture.handle().await;
    process.go_on().await;
    store.changed(&operation(0), 1, LONG).await.expect("changed");
    assert_eq!(process.says().await, "applied");
    assert_finished(&store, 0, "done").await;
}

/// ST3: a process that outlived its lease, and knows nothing of its successor, has lost.
pub async fn unfenced_complete<F: Reachable>(fixture: &F, child: &str) {
    let mut process = Process::start(child, "attempt", &fixture.address());
    assert_eq!(process.says().await, "begun");
    fixture.pass(LONG * 2).await;
    let store = fixture.handle().await;
    let second = take_over();
    let held = acquire(&store, &second).await;
    process.go_on().await;
    assert_eq!(process.says().await, "lost", "ST3");
    let done = store.complete(&held, &fingerprint(1), "second".into(), LONG).await;
    assert_eq!(done.expect("complete"), Held::Applied);
    assert_finished(&store, 0, "second").await;
}

fn wait_for_a_line() {
    std::io::stdin().lock().read_line(&mut String::new()).expect("the parent's pipe");
}

/// The operation with this number. It is in the fixture's own data, so others may have the same.
fn operation(number: u64) -> OperationId {
    let mut id = [7; 32];
    id[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    id[8..16].copy_from_slice(&number.to_be_bytes());
    OperationId::from_bytes(id)
}

/// A claim by a new owner, which is remembered long after its lease is over.
fn claim(number: u64) -> Claim {
    Claim { retention: LONG * 24, ..contract::claim(operation(number)) }
}

fn take_over() -> Claim {
    Claim { take_over: true, ..claim(0) }
}

async fn acquire(store: &impl retrysafe_core::Store, claim: &Claim) -> Lease {
    match store.begin(claim).await.expect("begin") {
        Begin::Acquired(acquired) => lease(claim, acquired),
        found => panic!("the claim should have been granted: {found:?}"),
    }
}

async fn assert_finished(store: &impl retrysafe_core::Store, number: u64, payload: &str) {
    let begun = store.begin(&claim(number)).await.expect("begin");
    assert_is!(
        begun,
        Begin::Found(Found::Finished { payload: kept, .. }) if kept == payload.as_bytes(),
        format!("ST9: {number}")
    );
}
