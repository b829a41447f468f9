//! P2, P3 and P13: the time of the layer in process, against the same Axum service without it.

use std::{hint::black_box, time::Duration};

use axum::Router;
use retrysafe_axum::{IdempotencyService, IdempotentRouter as _, MemoryStore};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::{Builder, Runtime};

use crate::{
    Outcome,
    least::Least,
    measure::{Effort, in_turn},
    orders::{self, Orders},
    report::{Number, Row},
};

/// How many requests are timed at a stretch.
pub(crate) const BATCH: usize = 500;

pub(crate) const BARE: usize = 0;
pub(crate) const FIRST: usize = 1;
pub(crate) const REPLAY: usize = 2;
const PEER_FIRST: usize = 3;
const PEER_REPLAY: usize = 4;
/// Only the making and dropping of a request, which every variant has in it.
pub(crate) const NOTHING: usize = 5;
const LEAST: usize = 6;
pub(crate) const ROUTED: usize = 7;

const NAMES: [&str; 8] =
    ["bare", "first", "replay", "peer-first", "peer-replay", "nothing", "least", "routed"];

/// The key of a request, if it has one.
pub(crate) type Key = Option<String>;

pub(crate) fn measure(effort: Effort) -> Outcome<Vec<Row>> {
    let mut services = Services::start()?;
    let mut rows = services.times(effort)?;
    rows.push(Row::holds("P3", "replays share one body", services.replays_share_a_body()?));
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
    least: Least,
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
            least: Least::new(orders::bare()),
            finished: orders::fresh_key(),
            runtime,
        };
        for variant in [FIRST, ROUTED, PEER_FIRST] {
            let key = services.finished.clone();
            services.drive(variant, vec![Some(key)])?;
        }
        Ok(services)
    }

    /// Answers requests one after the other, and says how long that took.
    pub(crate) fn drive(&mut self, variant: usize, keys: Vec<Key>) -> Outcome<Duration> {
        match variant {
            BARE => self.runtime.block_on(answer_all(&mut self.bare, keys)),
            FIRST | REPLAY => self.runtime.block_on(answer_all(&mut self.ours, keys)),
            ROUTED => self.runtime.block_on(answer_all(&mut self.routed, keys)),
            LEAST => self.runtime.block_on(answer_all(&mut self.least, keys)),
            PEER_FIRST | PEER_REPLAY => self.runtime.block_on(answer_all(&mut self.peer, keys)),
            _ => make_all(&keys),
        }
    }

    /// Answers many requests of a variant by its name.
    pub(crate) fn drive_many(&mut self, variant: &str, requests: usize) -> Outcome<()> {
        let variant = NAMES.iter().position(|name| *name == variant).ok_or("no such variant")?;
        for _ in 0..requests.div_ceil(BATCH) {
            let keys = self.keys(variant);
            self.drive(variant, keys)?;
        }
        Ok(())
    }

    /// The keys of a variant's requests: a fresh one for each, or that of the finished operation.
    pub(crate) fn keys(&self, variant: usize) -> Vec<Key> {
        let key = |_| match variant {
            REPLAY | PEER_REPLAY => Some(self.finished.clone()),
            _ => Some(orders::fresh_key()),
        };
        (0..BATCH).map(key).collect()
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
        const VARIANTS: usize = 7;
        let rounds = in_turn::<VARIANTS>(effort.rounds(300), |variant| {
            let keys = self.keys(variant);
            Ok(self.drive(variant, keys)?.as_secs_f64() * 1e6 / BATCH as f64)
        })?;
        let added = |variant: usize| rounds.median(|it| it[variant] - it[BARE]);
        let time = |variant: usize| rounds.median(|it| it[variant] - it[NOTHING]);
        let ratio = |this: usize, that: usize| {
            rounds.median(|it| (it[this] - it[NOTHING]) / (it[that] - it[NOTHING]))
        };
        let micros = |value| Number::of(value, 2, "µs");
        let (first, replay) = (ratio(FIRST, BARE), ratio(REPLAY, BARE));
        let of_peer = added(FIRST) / added(PEER_FIRST);
        Ok(vec![
            Row::at_most("P2", "first: time against the bare service", Number::ratio(first), 1.8),
            Row::at_most("P3", "replay: time against the bare service", Number::ratio(replay), 1.0),
            Row::shown("P2", "time of the bare service", micros(time(BARE))),
            Row::at_most(
                "P13",
                "first: our added time against `idempotent`'s",
                Number::ratio(of_peer),
                1.0 / 3.0,
            ),
            Row::shown(
                "P13",
                "replay: our time against `idempotent`'s",
                Number::ratio(ratio(REPLAY, PEER_REPLAY)),
            ),
            Row::shown("P13", "first: added by us", micros(added(FIRST))),
            Row::shown("P13", "first: added by `idempotent`", micros(added(PEER_FIRST))),
            Row::shown("P13", "first: added by the least that a layer does", micros(added(LEAST))),
            Row::shown("P13", "replay: us", micros(time(REPLAY))),
            Row::shown("P13", "replay: `idempotent`", micros(time(PEER_REPLAY))),
        ])
    }
}

/// Answers requests one after the other, and says how long this thread has worked on them: all of
/// it happens here, and what other processes take of the processor does not count.
async fn answer_all(service: &mut impl Orders, keys: Vec<Key>) -> Outcome<Duration> {
    let started = processor_time()?;
    for key in &keys {
        orders::answer(service, orders::request(key.as_deref())).await?;
    }
    Ok(processor_time()? - started)
}

fn make_all(keys: &[Key]) -> Outcome<Duration> {
    let started = processor_time()?;
    for key in keys {
        drop(black_box(orders::request(key.as_deref())));
    }
    Ok(processor_time()? - started)
}

pub(crate) fn processor_time() -> Outcome<Duration> {
    Ok(clock_gettime(ClockId::ThreadCPUTime).try_into()?)
}
