//! What several primaries go through when one is added, taken away, or lost: how many operations move,
//! what each request costs, and what a retry meets meanwhile.
//!
//! ```text
//! cargo run -p retrysafe-sqlx --example primaries
//! ```
//!
//! [`Primaries`] is the one that services use. The primaries behind it are stores in memory, and the
//! time is the simulation's, so that every run prints the same. `docs/scaling.md` shows what it
//! prints, and the tests below hold both to what is claimed.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use retrysafe_core::{
    About, Algorithm, Begin, Claim, Counts, Entropy as _, Entry, Fingerprint, Found, Held, Inspect,
    Lease, MemoryStore, Operated, OperationId, Owner, Resolution, Store, StoreError,
    StoreErrorKind, Swept,
};
use retrysafe_sqlx::{Primaries, PrimariesBuilder};
use retrysafe_testkit::{ManualClock, SeededEntropy};

const HOUR: Duration = Duration::from_secs(60 * 60);
const RETENTION_HOURS: usize = 24;
/// An operation is tried again within this many hours. A retry that is refused comes an hour later,
/// and that is still within the retention: after it an operation is a new one.
const RETRIED_WITHIN: usize = RETENTION_HOURS - 2;
const NEW_EACH_HOUR: usize = 400;
/// Processes are restarted with a new list one by one, one each hour.
const PROCESSES: usize = 4;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    print!("{}", Findings::gather().await.report());
}

/// What requests met, by phase.
type Seen = BTreeMap<&'static str, Met>;

struct Findings {
    adding: Seen,
    leaving: Seen,
    done_wrongly: Vec<(&'static str, Seen)>,
    losses: Vec<(&'static str, Seen)>,
}

impl Findings {
    async fn gather() -> Self {
        let mut done_wrongly = Vec::new();
        for change in [&AT_ONCE, &TOO_SOON] {
            done_wrongly.push((change.title, simulate(change, None).await));
        }
        let mut losses = Vec::new();
        for (what, change, outage) in LOSSES {
            losses.push((what, simulate(change, Some(outage)).await));
        }
        let adding = simulate(&ADDING, None).await;
        Self { adding, leaving: simulate(&LEAVING, None).await, done_wrongly, losses }
    }

    fn report(&self) -> String {
        let mut report = where_operations_are();
        report += &phases(&ADDING, &self.adding);
        let (refused, again) = (total(&self.leaving, |met| met.refused), again(&self.leaving));
        let _ = writeln!(report, "{}: {refused} refused, {again} run again", LEAVING.title);

        report += "\nThe same addition, done wrongly: operations that were run again\n";
        for (what, seen) in &self.done_wrongly {
            let _ = writeln!(report, "  {what:<64} {:>5}", self::again(seen));
        }

        report +=
            "\nOne primary is away for an hour: requests refused then, and run again in all\n";
        for (what, seen) in &self.losses {
            let then = &seen[OUTAGE];
            let all = then.ran + then.replayed + then.refused + then.again;
            let share = percent(then.refused, all);
            let again = self::again(seen);
            let _ = writeln!(report, "  {what:<44} {share:>7} refused {again:>5} run again");
        }
        report
    }
}

fn total(seen: &Seen, count: fn(&Met) -> usize) -> usize {
    seen.values().map(count).sum()
}

fn again(seen: &Seen) -> usize {
    total(seen, |met| met.again)
}

// ---- where operations are

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const OPERATIONS: usize = 100_000;

fn operation(entropy: &SeededEntropy) -> OperationId {
    let half = || entropy.next_u128().to_be_bytes();
    let mut id = [0; 32];
    id[..16].copy_from_slice(&half());
    id[16..].copy_from_slice(&half());
    OperationId::from_bytes(id)
}

fn standing<S>(names: &[&str], store: impl Fn(&str) -> S) -> PrimariesBuilder<S> {
    names.iter().fold(Primaries::builder(), |list, name| list.primary(*name, store(name)))
}

fn where_operations_are() -> String {
    let mut report = format!("{OPERATIONS} operations, when a primary is added\n");
    for (before, added) in NAMES.iter().enumerate().skip(1) {
        let list = |count| built(standing(&NAMES[..count], |_| ()));
        let (old, new) = (list(before), list(before + 1));
        let entropy = SeededEntropy::new(1);
        let (mut moved, mut elsewhere) = (0, 0);
        let mut shares = BTreeMap::<String, usize>::new();
        for _ in 0..OPERATIONS {
            let id = operation(&entropy);
            let (from, to) = (old.names_of(&id)[0], new.names_of(&id)[0]);
            if from != to {
                moved += 1;
                elsewhere += usize::from(to != *added);
            }
            *shares.entry(to.to_owned()).or_default() += 1;
        }
        let (least, most) = (shares.values().min(), shares.values().max());
        let share = |count: Option<&usize>| percent(*count.unwrap_or(&0), OPERATIONS);
        let _ = writeln!(
            report,
            "  {before} to {}: {:>6} move, {elsewhere} of them to an old one; shares {} to {}",
            before + 1,
            percent(moved, OPERATIONS),
            share(least),
            share(most)
        );
    }
    report
}

// ---- what a request meets

type List = Primaries<Server>;

/// A change of the list, and when each process is given which.
struct Change {
    title: &'static str,
    /// The phases in their order: from which hour, what it is called, and which lists there are.
    phases: &'static [(usize, &'static str, Step)],
    lists: fn(&BTreeMap<&'static str, Server>) -> [List; 3],
}

/// From one list to the next, one process each hour.
#[derive(Clone, Copy)]
struct Step {
    from: usize,
    to: usize,
}

const BEFORE: usize = 0;
const MOVING: usize = 1;
const AFTER: usize = 2;
const END: usize = 80;

const fn stay(list: usize) -> Step {
    Step { from: list, to: list }
}

const ADDING: Change = Change {
    title: "Adding `d` to `a`, `b` and `c`",
    phases: &[
        (0, "before", stay(BEFORE)),
        (24, "before, moving", Step { from: BEFORE, to: MOVING }),
        (28, "moving", stay(MOVING)),
        (52, "moving, after", Step { from: MOVING, to: AFTER }),
        (56, "after", stay(AFTER)),
    ],
    lists: |servers| {
        let list = |names: &[&str]| standing(names, |name| servers[name].clone());
        [
            built(list(&["a", "b", "c"])),
            built(list(&["a", "b", "c"]).joining("d", servers["d"].clone())),
            built(list(&["a", "b", "c", "d"])),
        ]
    },
};

const LEAVING: Change = Change {
    title: "Taking `d` away from `a`, `b`, `c` and `d`",
    phases: ADDING.phases,
    lists: |servers| {
        let list = |names: &[&str]| standing(names, |name| servers[name].clone());
        [
            built(list(&["a", "b", "c", "d"])),
            built(list(&["a", "b", "c"]).leaving("d", servers["d"].clone())),
            built(list(&["a", "b", "c"])),
        ]
    },
};

const AT_ONCE: Change = Change {
    title: "no list with `joining`, all processes restarted one by one",
    phases: &[
        (0, "before", stay(BEFORE)),
        (24, "before, after", Step { from: BEFORE, to: AFTER }),
        (28, "after", stay(AFTER)),
    ],
    lists: ADDING.lists,
};

const TOO_SOON: Change = Change {
    title: "the list with `joining` for one hour instead of one retention",
    phases: &[
        (0, "before", stay(BEFORE)),
        (24, "before, moving", Step { from: BEFORE, to: MOVING }),
        (28, "moving", stay(MOVING)),
        (29, "moving, after", Step { from: MOVING, to: AFTER }),
        (33, "after", stay(AFTER)),
    ],
    lists: ADDING.lists,
};

/// A primary that can't be reached for an hour.
#[derive(Clone, Copy)]
struct Outage {
    name: &'static str,
    hour: usize,
}

/// What that hour is counted under.
const OUTAGE: &str = "outage";

const LOSSES: [(&str, &Change, Outage); 4] = [
    ("one of three", &ADDING, Outage { name: "a", hour: 12 }),
    ("one of four", &ADDING, Outage { name: "a", hour: 60 }),
    ("an old one of three, while `d` is joining", &ADDING, Outage { name: "a", hour: 40 }),
    ("`d` itself, while it is joining", &ADDING, Outage { name: "d", hour: 40 }),
];

/// What requests met in one phase.
#[derive(Default)]
struct Met {
    /// First requests that ran, and the calls to primaries that they took.
    ran: usize,
    ran_calls: usize,
    /// Duplicates that were told that the first is in flight.
    in_flight: usize,
    /// Retries that got the answer of the first, and the calls that they took.
    replayed: usize,
    replayed_calls: usize,
    /// Answered 503.
    refused: usize,
    /// What must not be.
    again: usize,
}

fn phases(change: &Change, seen: &Seen) -> String {
    let mut report = format!("\n{}: what requests meet\n", change.title);
    let _ = writeln!(
        report,
        "  hours   lists            run   calls   in flight   replayed   calls   refused   again"
    );
    for (at, (from, name, _)) in change.phases.iter().enumerate() {
        let until = change.phases.get(at + 1).map_or(END, |(next, ..)| *next) - 1;
        let met = &seen[name];
        let each = |calls: usize, of: usize| format!("{:.2}", calls as f64 / of.max(1) as f64);
        let _ = writeln!(
            report,
            "  {from:>2}-{until:<2}   {name:<14} {:>5} {:>7} {:>11} {:>10} {:>7} {:>9} {:>7}",
            met.ran,
            each(met.ran_calls, met.ran),
            met.in_flight,
            met.replayed,
            each(met.replayed_calls, met.replayed),
            met.refused,
            met.again
        );
    }
    report
}

/// Something that a client wants, and knows by the answer whether it has it.
struct Wanted {
    id: OperationId,
    /// Whether it was executed before, as far as the client knows.
    done: bool,
}

async fn simulate(change: &Change, outage: Option<Outage>) -> Seen {
    let clock = ManualClock::new();
    let entropy = SeededEntropy::new(2);
    let servers: BTreeMap<_, _> =
        NAMES[..4].iter().map(|name| (*name, Server::new(&clock))).collect();
    let lists = (change.lists)(&servers);
    let mut seen = Seen::new();
    let mut due: BTreeMap<usize, Vec<Wanted>> = BTreeMap::new();
    for hour in 0..END {
        let begun = change.phases.iter().rfind(|(from, ..)| *from <= hour);
        let (since, phase, step) = begun.unwrap_or(&change.phases[0]);
        // So many processes have been restarted with the next list.
        let restarted = (hour - since + 1).min(PROCESSES);
        let process = || match entropy.below(PROCESSES) < restarted {
            true => &lists[step.to],
            false => &lists[step.from],
        };
        let away = outage.filter(|outage| outage.hour == hour);
        for (name, server) in &servers {
            server.away.store(away.is_some_and(|outage| outage.name == *name), Relaxed);
        }
        let met = seen.entry(away.map_or(*phase, |_| OUTAGE)).or_default();

        let mut requests = due.remove(&hour).unwrap_or_default();
        let new = || Wanted { id: operation(&entropy), done: false };
        requests.extend(std::iter::repeat_with(new).take(NEW_EACH_HOUR));
        for mut wanted in requests {
            let request = Request { servers: &servers, entropy: &entropy, wanted: &wanted, met };
            // Who was refused comes back in an hour, who was answered once more, some time later.
            let after = match request.send(process(), process()).await {
                false => 1,
                true if wanted.done => continue,
                true => {
                    wanted.done = true;
                    1 + entropy.below(RETRIED_WITHIN)
                }
            };
            due.entry(hour + after).or_default().push(wanted);
        }
        clock.advance(HOUR);
    }
    seen
}

/// One request of a client.
struct Request<'a> {
    servers: &'a BTreeMap<&'static str, Server>,
    entropy: &'a SeededEntropy,
    wanted: &'a Wanted,
    met: &'a mut Met,
}

impl Request<'_> {
    /// Sends it to one process, and while that one works at it, its duplicate to another. Whether
    /// there was an answer.
    async fn send(self, process: &List, other: &List) -> bool {
        let Self { servers, entropy, wanted, met } = self;
        let calls = || servers.values().map(|server| server.calls.load(Relaxed)).sum::<usize>();
        let claim = || claim(wanted.id, entropy);
        let before = calls();
        let owned = claim();
        match process.begin(&owned).await {
            Ok(Begin::Acquired(acquired)) => {
                let lease = Lease {
                    id: owned.id,
                    owner: owned.owner,
                    attempt: acquired.attempt,
                    fence: acquired.fence,
                };
                let begun = calls() - before;
                match other.begin(&claim()).await {
                    Ok(Begin::Found(Found::InFlight { .. })) => met.in_flight += 1,
                    Err(_) => met.refused += 1,
                    Ok(_) => met.again += 1,
                }
                let before = calls();
                let retention = owned.retention;
                let print = &owned.fingerprint;
                let done = process.complete(&lease, print, Bytes::new(), retention).await;
                match done {
                    Ok(Held::Applied) if !wanted.done => {
                        met.ran += 1;
                        met.ran_calls += begun + calls() - before;
                    }
                    // A retry that ran, or an attempt that was taken from its owner.
                    _ => met.again += 1,
                }
                true
            }
            Ok(Begin::Found(Found::Finished { .. })) if wanted.done => {
                met.replayed += 1;
                met.replayed_calls += calls() - before;
                true
            }
            Ok(_) => {
                met.again += 1;
                true
            }
            Err(_) => {
                met.refused += 1;
                false
            }
        }
    }
}

fn claim(id: OperationId, entropy: &SeededEntropy) -> Claim {
    Claim {
        id,
        owner: Owner::new(entropy),
        fingerprint: Fingerprint { algorithm: Algorithm::from_u32(1), head: [1; 32], body: None },
        lease: Duration::from_secs(30),
        retention: HOUR * RETENTION_HOURS as u32,
        take_over: false,
    }
}

fn built<S>(list: PrimariesBuilder<S>) -> Primaries<S> {
    match list.build() {
        Ok(list) => list,
        Err(error) => panic!("the lists of the simulation are sound: {error}"),
    }
}

fn percent(part: usize, of: usize) -> String {
    format!("{:.1} %", part as f64 * 100.0 / of.max(1) as f64)
}

// ---- a primary

/// A store in memory that counts what it is asked, and can be away.
#[derive(Clone)]
struct Server {
    store: MemoryStore,
    away: Arc<AtomicBool>,
    calls: Arc<AtomicUsize>,
}

impl Server {
    fn new(clock: &ManualClock) -> Self {
        let store = MemoryStore::builder().clock(Arc::new(clock.clone())).build();
        match store {
            Ok(store) => Self { store, away: Arc::default(), calls: Arc::default() },
            Err(error) => panic!("a store in memory: {error}"),
        }
    }

    async fn ask<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.calls.fetch_add(1, Relaxed);
        match self.away.load(Relaxed) {
            true => Err(StoreError::new(StoreErrorKind::Unreachable, "it is away")),
            false => call.await,
        }
    }
}

impl Store for Server {
    fn about(&self) -> About {
        self.store.about()
    }

    async fn begin(&self, claim: &Claim) -> Result<Begin, StoreError> {
        self.ask(self.store.begin(claim)).await
    }

    async fn renew(&self, lease: &Lease, lease_for: Duration) -> Result<Held, StoreError> {
        self.ask(self.store.renew(lease, lease_for)).await
    }

    async fn complete(
        &self,
        lease: &Lease,
        fingerprint: &Fingerprint,
        payload: Bytes,
        retention: Duration,
    ) -> Result<Held, StoreError> {
        self.ask(self.store.complete(lease, fingerprint, payload, retention)).await
    }

    async fn release(&self, lease: &Lease, keep_for: Duration) -> Result<Held, StoreError> {
        self.ask(self.store.release(lease, keep_for)).await
    }

    async fn changed(
        &self,
        id: &OperationId,
        seen: u32,
        within: Duration,
    ) -> Result<(), StoreError> {
        self.ask(self.store.changed(id, seen, within)).await
    }

    async fn sweep(&self, limit: usize) -> Result<Swept, StoreError> {
        self.ask(self.store.sweep(limit)).await
    }
}

impl Inspect for Server {
    async fn get(&self, id: &OperationId) -> Result<Option<Entry>, StoreError> {
        self.ask(self.store.get(id)).await
    }

    async fn page(
        &self,
        after: Option<&OperationId>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        self.ask(self.store.page(after, limit)).await
    }

    async fn count(&self) -> Result<Counts, StoreError> {
        self.ask(self.store.count()).await
    }

    async fn forget(&self, id: &OperationId) -> Result<Operated, StoreError> {
        self.ask(self.store.forget(id)).await
    }

    async fn resolve(
        &self,
        id: &OperationId,
        seen: u32,
        resolution: Resolution,
    ) -> Result<Operated, StoreError> {
        self.ask(self.store.resolve(id, seen, resolution)).await
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::OnceCell;

    use super::*;

    /// Gathered once, for all tests.
    async fn findings() -> &'static Findings {
        static FINDINGS: OnceCell<Findings> = OnceCell::const_new();
        FINDINGS.get_or_init(Findings::gather).await
    }

    #[tokio::test]
    async fn the_page_shows_what_is_printed() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/scaling.md");
        let page = std::fs::read_to_string(page).unwrap();
        let report = findings().await.report();
        assert!(page.contains(&report), "docs/scaling.md is to show:\n{report}");
    }

    #[tokio::test]
    async fn nothing_is_run_again_or_refused_while_the_list_changes_as_it_should() {
        let findings = findings().await;
        for seen in [&findings.adding, &findings.leaving] {
            for (phase, met) in seen {
                assert_eq!((met.again, met.refused), (0, 0), "{phase}");
                assert!(met.ran > 0 && met.in_flight == met.ran && met.replayed > 0, "{phase}");
            }
        }
    }

    #[tokio::test]
    async fn whoever_skips_a_step_runs_operations_again() {
        for (what, seen) in &findings().await.done_wrongly {
            assert!(again(seen) > 0, "{what}");
        }
    }

    #[tokio::test]
    async fn a_lost_primary_refuses_its_own_keys_and_runs_none_again() {
        for (what, seen) in &findings().await.losses {
            assert_eq!(again(seen), 0, "{what}");
            let refused = |phase: &str| seen[phase].refused > 0;
            assert!(seen.keys().all(|phase| refused(phase) == (*phase == OUTAGE)), "{what}");
        }
    }
}
