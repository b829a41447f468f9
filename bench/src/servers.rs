//! The stores that are servers, each beside its own driver: private servers of the testkit, started
//! for the measurement.
//!
//! Server, driver and callers share all processors. What is compared runs in turn against one server,
//! and the driver does by hand what the store does: as many round trips, with as many bytes.

mod callers;
pub(crate) mod mysql;
pub(crate) mod nats;
pub(crate) mod postgres;
pub(crate) mod redis;
mod round_trips;
pub(crate) mod sweep;
pub(crate) mod transactional;

use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use self::callers::{Side, Work, drive};
pub(crate) use self::round_trips::measure as round_trips;
use crate::{
    Outcome,
    measure::{Effort, all_in_turn},
    report::{Number, Row},
};

/// How many callers share the one connection of a driver that can have many requests under way.
const CALLERS: usize = 64;

/// How many callers there are where each needs a connection: as many as a store opens by default.
const CONNECTIONS: usize = 16;

/// How long what is finished answers.
const RETENTION: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a verb may take here: a machine that is busy with others does not end a measurement.
const PATIENCE: Duration = Duration::from_secs(60);

fn runtime() -> Outcome<Runtime> {
    Ok(Builder::new_multi_thread().enable_all().build()?)
}

const STORE: usize = 0;
const DRIVER: usize = 1;

/// One caller, and many, with a store and with its driver in turn.
fn beside<S: Side, D: Side>(
    runtime: &Runtime,
    effort: Effort,
    engine: &str,
    turns: usize,
    mut store: Vec<S>,
    mut driver: Vec<D>,
) -> Outcome<Vec<Row>> {
    const TARGET: &str = "STORES";

    let many = store.len();
    let mut in_turn = |callers: usize, turns: usize| {
        all_in_turn::<_, 2>(effort.rounds(15), |variant| match variant {
            STORE => runtime.block_on(drive(&mut store, callers, turns, Work::Operation)),
            _ => runtime.block_on(drive(&mut driver, callers, turns, Work::Operation)),
        })
    };
    let alone = in_turn(1, 2 * turns)?;
    let together = in_turn(many, turns)?;

    let micros = |value| Number::of(value, 0, "µs").to_string();
    let rate = |value| Number::of(value, 0, "/s").to_string();
    let row = |what: String, store: String, driver: String, ratio: f64| {
        let ratio = Number::ratio(ratio);
        Row::shown(TARGET, what, format!("{store} / {driver}, {ratio}"))
    };
    Ok(vec![
        row(
            format!("{engine}, one caller: begin, store / driver"),
            micros(alone.median(|it| it[STORE].begin.median)),
            micros(alone.median(|it| it[DRIVER].begin.median)),
            alone.median(|it| it[STORE].begin.median / it[DRIVER].begin.median),
        ),
        row(
            format!("{engine}, one caller: complete, store / driver"),
            micros(alone.median(|it| it[STORE].complete.median)),
            micros(alone.median(|it| it[DRIVER].complete.median)),
            alone.median(|it| it[STORE].complete.median / it[DRIVER].complete.median),
        ),
        row(
            format!("{engine}, {many} callers: first executions, store / driver"),
            rate(together.median(|it| it[STORE].per_second)),
            rate(together.median(|it| it[DRIVER].per_second)),
            together.median(|it| it[STORE].per_second / it[DRIVER].per_second),
        ),
        row(
            format!("{engine}, {many} callers: p99 of begin, store / driver"),
            micros(together.median(|it| it[STORE].begin.p99)),
            micros(together.median(|it| it[DRIVER].begin.p99)),
            together.median(|it| it[STORE].begin.p99 / it[DRIVER].begin.p99),
        ),
    ])
}
