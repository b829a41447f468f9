//! Measures the targets of DESIGN: what each row means is in `docs/benchmarks.md`.
//!
//! Every figure is a ratio or a count from one run. What is compared runs in turn, round by round,
//! and the median over the rounds counts, so that a busy neighbour disturbs both sides alike.

mod actix;
pub mod allocations;
mod client;
mod counting;
mod duplicates;
mod in_process;
mod instructions;
mod least;
mod load;
mod loopback;
mod measure;
mod orders;
mod process;
mod proxy;
mod report;
mod roles;
mod round_trips;
mod servers;
mod size;
mod sqlite;
mod tonic;
mod upload;

use std::{env, error::Error, panic::catch_unwind};

use crate::{
    measure::Effort,
    report::{Row, print},
};

/// What ends a benchmark early is told to whoever runs it, and nothing else.
pub type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const USAGE: &str = "usage: bench [--quick] [all | P1 P2 P3 P4 P5 P6 P7 P8 P9 P10 P11 P12 P13 | ACTIX | CLIENT | EXACT | INSTRUCTIONS | STORES | SWEEP | TONIC ...]";

/// What measures one or more targets.
struct Group {
    targets: &'static [&'static str],
    measure: fn(Effort) -> Outcome<Vec<Row>>,
}

const GROUPS: [Group; 25] = [
    Group { targets: &["P1"], measure: instructions::measure },
    Group { targets: &["P1", "P2", "P3", "P13"], measure: in_process::measure },
    Group { targets: &["TONIC"], measure: tonic::measure },
    Group { targets: &["ACTIX"], measure: actix::measure },
    Group { targets: &["INSTRUCTIONS"], measure: instructions::doors },
    Group { targets: &["P4"], measure: loopback::measure },
    Group { targets: &["P5"], measure: round_trips::measure },
    Group { targets: &["P5"], measure: servers::round_trips },
    Group { targets: &["P6"], measure: servers::redis::claims },
    Group { targets: &["P7"], measure: servers::postgres::against_pgbench },
    Group { targets: &["STORES"], measure: servers::redis::beside_its_driver },
    Group { targets: &["STORES"], measure: servers::postgres::beside_its_driver },
    Group { targets: &["STORES"], measure: servers::mysql::beside_its_driver },
    Group { targets: &["STORES"], measure: servers::nats::beside_its_driver },
    Group { targets: &["EXACT"], measure: servers::transactional::measure },
    Group { targets: &["SWEEP"], measure: servers::sweep::postgres },
    Group { targets: &["SWEEP"], measure: servers::sweep::mariadb },
    Group { targets: &["P13"], measure: servers::redis::against_the_peer },
    Group { targets: &["P8"], measure: sqlite::measure },
    Group { targets: &["P9"], measure: size::measure },
    Group { targets: &["P1", "P2", "P3", "P9"], measure: allocations::measure },
    Group { targets: &["P10"], measure: duplicates::measure },
    Group { targets: &["P11"], measure: proxy::measure },
    Group { targets: &["P12"], measure: upload::measure },
    Group { targets: &["CLIENT"], measure: client::measure },
];

/// Measures what the arguments ask for, or plays a role in it.
///
/// # Errors
///
/// If something can't be measured.
pub fn run() -> Outcome<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some(roles::ROLE) => roles::play(&arguments[1..]),
        _ => measure_all(&arguments),
    }
}

fn measure_all(arguments: &[String]) -> Outcome<()> {
    let (flags, mut targets): (Vec<_>, Vec<_>) =
        arguments.iter().map(|it| it.to_ascii_uppercase()).partition(|it| it.starts_with('-'));
    targets.retain(|it| it != "ALL");
    let known = |target: &String| GROUPS.iter().any(|it| it.targets.contains(&target.as_str()));
    if flags.iter().any(|it| it != "--QUICK") || !targets.iter().all(known) {
        return Err(USAGE.into());
    }
    if cfg!(debug_assertions) {
        return Err("a debug build measures nothing: run it with --release".into());
    }
    let effort = if flags.is_empty() { Effort::Full } else { Effort::Quick };
    let wanted = |target: &str| targets.is_empty() || targets.iter().any(|it| it == target);

    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    for group in GROUPS.iter().filter(|it| it.targets.iter().any(|target| wanted(target))) {
        eprintln!("measuring {} ...", group.targets.join(", "));
        // What can't be measured, a server that is not installed say, costs only its own rows.
        match catch_unwind(|| (group.measure)(effort)) {
            Ok(Ok(measured)) => {
                rows.extend(measured.into_iter().filter(|row| wanted(row.target)));
            }
            Ok(Err(error)) => failures.push(format!("{}: {error}", group.targets.join(", "))),
            Err(_) => failures.push(format!("{}: it panicked", group.targets.join(", "))),
        }
    }
    print(&rows);
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ").into()) }
}
