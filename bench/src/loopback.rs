//! P4: the layer in a served Axum application, over HTTP on the loopback interface.
//!
//! The servers share one processor and the clients have the other, so the server is the bottleneck
//! and its throughput is the inverse of what a request costs it.

use std::time::Duration;

use crate::{
    Outcome,
    load::{Ask, Load},
    measure::{Effort, in_turn, median},
    process::{MEASURED, OTHERS, Pinned, Server},
    report::{Number, Row},
    roles,
};

const BARE: usize = 0;
const FIRST: usize = 1;
const REPLAY: usize = 2;

const NAMES: [&str; 3] = ["without the layer", "first", "replay"];

pub(crate) fn measure(effort: Effort) -> Outcome<Vec<Row>> {
    let bare = Server::role(&[roles::SERVE, roles::BARE], MEASURED)?;
    let guarded = Server::role(&[roles::SERVE, roles::GUARDED], MEASURED)?;
    let _pinned = Pinned::to(OTHERS);
    let mut loads = [
        Load::new(bare.address, "/orders", Ask::First)?,
        Load::new(guarded.address, "/orders", Ask::First)?,
        Load::new(guarded.address, "/orders", Ask::Again)?,
    ];

    let window = Duration::from_millis(500);
    let throughput = in_turn::<3>(effort.rounds(20), |variant| loads[variant].throughput(window))?;
    let half = throughput.median(|round| round[BARE]) / 2.0;
    let mut latencies: [Vec<[f64; 3]>; 3] = Default::default();
    in_turn::<3>(effort.rounds(10), |variant| {
        let seen = loads[variant].latency(half, window)?;
        latencies[variant].push([50.0, 99.0, 99.9].map(|at| seen.value_at_percentile(at) as f64));
        Ok(0.0)
    })?;

    let ratio = |variant| Number::ratio(throughput.ratio(variant, BARE));
    let mut rows = vec![
        Row::at_least("P4", "first: throughput with / without the layer", ratio(FIRST), 0.85),
        Row::at_least("P4", "replay: throughput with / without the layer", ratio(REPLAY), 1.0),
    ];
    for (name, seen) in NAMES.iter().zip(latencies) {
        let [p50, p99, p999] = [0, 1, 2]
            .map(|at| Number::of(median(seen.iter().map(|it| it[at])) / 1e3, 0, "µs").to_string());
        rows.push(Row::shown(
            "P4",
            format!("{name}: p50 / p99 / p99.9 at half of the bare throughput"),
            format!("{p50} / {p99} / {p999}"),
        ));
    }
    Ok(rows)
}
