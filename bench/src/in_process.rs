//! P1, P2, P3 and P13: the layer in process, against the same Axum service without it.

use std::time::Duration;

use axum::{Router, body::Body};
use http::Request;
use retrysafe_axum::{IdempotencyService, IdempotentRouter as _, MemoryStore};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::{Builder, Runtime};

use crate::{
    Outcome,
    measure::{Effort, in_turn},
    orders::{self, Orders},
    report::{Number, Row},
};

/// How many requests are timed at a stretch, and for how many allocations are counted.
const BATCH: usize = 500;

const BARE: usize = 0;
const FIRST: usize = 1;
const REPLAY: usize = 2;
const PEER_FIRST: usize = 3;
const PEER_REPLAY: usize = 4;
const ROUTED: usize = 5;

const NAMES: [&str; 6] = ["bare", "first", "replay", "peer-first", "peer-replay", "routed"];

pub(crate) fn measure(effort: Effort) -> Outcome<Vec<Row>> {
    let mut services = Services::start()?;
    let mut rows = services.allocations()?;
    rows.push(Row::holds("P3", "replays share one body", services.replays_share_a_body()?));
    rows.extend(services.times(effort)?);
    Ok(rows)
}

/// The same service bare, with our layer and with the peer's, on one thread.
pub(crate) struct Services {
    runtime: Runtime,
    bare: Router,
    ours: IdempotencyService<Router, MemoryStore>,
    /// The layer put on a `Router`.
    routed: Router,
    peer: orders::Peer,
    /// Of an operation that is finished in both stores.
    finished: String,
}

impl Services {
    pub(crate) fn start() -> Outcome<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let _entered = runtime.enter();
        let store = MemoryStore::builder().capacity(10_000_000).build()?;
        let mut services = Self {
            bare: orders::bare(),
            ours: orders::guarded(store.clone())?,
            routed: orders::bare().idempotent(orders::layer(store)?),
            peer: orders::with_peer()?,
            finished: orders::fresh_key(),
            runtime,
        };
        for variant in [FIRST, ROUTED, PEER_FIRST] {
            let request = orders::request(Some(&services.finished));
            services.drive(variant, vec![request])?;
        }
        Ok(services)
    }

    /// Answers requests one after the other.
    fn drive(&mut self, variant: usize, requests: Vec<Request<Body>>) -> Outcome<Duration> {
        match variant {
            BARE => self.runtime.block_on(answer_all(&mut self.bare, requests)),
            FIRST | REPLAY => self.runtime.block_on(answer_all(&mut self.ours, requests)),
            ROUTED => self.runtime.block_on(answer_all(&mut self.routed, requests)),
            _ => self.runtime.block_on(answer_all(&mut self.peer, requests)),
        }
    }

    /// Answers many requests of a variant by its name.
    pub(crate) fn drive_many(&mut self, variant: &str, requests: usize) -> Outcome<()> {
        let variant = NAMES.iter().position(|name| *name == variant).ok_or("no such variant")?;
        for _ in 0..requests.div_ceil(BATCH) {
            let requests = self.requests(variant);
            self.drive(variant, requests)?;
        }
        Ok(())
    }

    /// The requests of a variant: every one of an operation of its own, or all of the finished one.
    fn requests(&self, variant: usize) -> Vec<Request<Body>> {
        let request = |_| match variant {
            REPLAY | PEER_REPLAY => orders::request(Some(&self.finished)),
            _ => orders::request(Some(&orders::fresh_key())),
        };
        (0..BATCH).map(request).collect()
    }

    fn allocations(&mut self) -> Outcome<Vec<Row>> {
        // What grows by doubling has grown then.
        for _ in 0..100 {
            let requests = self.requests(FIRST);
            self.drive(FIRST, requests)?;
        }
        let keyless = |_| orders::request(None);
        let without_key_bare = self.allocations_of(BARE, (0..BATCH).map(keyless).collect())?;
        let without_key = self.allocations_of(FIRST, (0..BATCH).map(keyless).collect())?;
        let bare = self.allocations_of(BARE, self.requests(BARE))?;
        let first = self.allocations_of(FIRST, self.requests(FIRST))?;
        let replay = self.allocations_of(REPLAY, self.requests(REPLAY))?;
        let routed = self.allocations_of(ROUTED, (0..BATCH).map(keyless).collect())?;
        let (routed, extra) = (routed - without_key_bare, without_key - without_key_bare);
        Ok(vec![
            Row::exactly("P1", "no key: extra allocations", Number::count(extra), 0.0),
            Row::shown("P1", "the same, as a layer on a `Router`", Number::count(routed)),
            Row::at_most("P2", "first: extra allocations", Number::count(first - bare), 12.0),
            Row::shown("P2", "allocations of the bare service", Number::count(bare)),
            Row::shown("P3", "replay: extra allocations", Number::count(replay - bare)),
        ])
    }

    /// Allocations per request: everything runs on this thread.
    fn allocations_of(&mut self, variant: usize, requests: Vec<Request<Body>>) -> Outcome<f64> {
        let mut drove = Ok(Duration::ZERO);
        let info = allocation_counter::measure(|| drove = self.drive(variant, requests));
        drove?;
        Ok(info.count_total as f64 / BATCH as f64)
    }

    fn replays_share_a_body(&mut self) -> Outcome<bool> {
        let request = || orders::request(Some(&self.finished));
        self.runtime.block_on(async {
            let one = orders::answer(&mut self.ours, request()).await?;
            let other = orders::answer(&mut self.ours, request()).await?;
            Ok(one == other && one.as_ptr() == other.as_ptr())
        })
    }

    fn times(&mut self, effort: Effort) -> Outcome<Vec<Row>> {
        const VARIANTS: usize = 5;
        let rounds = in_turn::<VARIANTS>(effort.rounds(300), |variant| {
            let requests = self.requests(variant);
            Ok(self.drive(variant, requests)?.as_secs_f64() * 1e6 / BATCH as f64)
        })?;
        let added = |variant: usize| rounds.median(|it| it[variant] - it[BARE]);
        let micros = |value| Number::of(value, 2, "µs");
        let (first, replay) = (rounds.ratio(FIRST, BARE), rounds.ratio(REPLAY, BARE));
        let of_peer = added(FIRST) / added(PEER_FIRST);
        Ok(vec![
            Row::at_most("P2", "first: time against the bare service", Number::ratio(first), 1.8),
            Row::at_most("P3", "replay: time against the bare service", Number::ratio(replay), 1.0),
            Row::shown("P2", "time of the bare service", micros(rounds.median(|it| it[BARE]))),
            Row::at_most(
                "P13",
                "first: our added time against `idempotent`'s",
                Number::ratio(of_peer),
                1.0 / 3.0,
            ),
            Row::shown(
                "P13",
                "replay: our time against `idempotent`'s",
                Number::ratio(rounds.ratio(REPLAY, PEER_REPLAY)),
            ),
            Row::shown("P13", "first: added by us", micros(added(FIRST))),
            Row::shown("P13", "first: added by `idempotent`", micros(added(PEER_FIRST))),
            Row::shown("P13", "replay: us", micros(rounds.median(|it| it[REPLAY]))),
            Row::shown("P13", "replay: `idempotent`", micros(rounds.median(|it| it[PEER_REPLAY]))),
        ])
    }
}

/// Answers requests one after the other, and says how long this thread has worked on them: all of
/// it happens here, and what other processes take of the processor does not count.
async fn answer_all(service: &mut impl Orders, requests: Vec<Request<Body>>) -> Outcome<Duration> {
    let started = processor_time()?;
    for request in requests {
        orders::answer(service, request).await?;
    }
    Ok(processor_time()? - started)
}

fn processor_time() -> Outcome<Duration> {
    Ok(clock_gettime(ClockId::ThreadCPUTime).try_into()?)
}
