//! P1: instructions that the layer adds to a request without a key.
//!
//! This program runs itself under Callgrind for `N` and for `2 N` requests; the difference is what
//! `N` requests cost without start-up. Callgrind counts; it does not time, so a busy machine
//! changes nothing.

use std::process::Command;

use tokio::runtime::Builder;

use crate::{
    Outcome,
    measure::Effort,
    orders::{self, Orders},
    report::{Number, Row},
    roles,
};

const REQUESTS: u64 = 2_000;
const WHAT: &str = "no key: extra instructions";

pub(crate) fn measure(_: Effort) -> Outcome<Vec<Row>> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        return Ok(vec![Row::skipped("P1", WHAT, "valgrind is not installed")]);
    }
    let bare = per_request(roles::BARE)?;
    let guarded = per_request(roles::GUARDED)?;
    Ok(vec![
        Row::at_most("P1", WHAT, Number::of(guarded - bare, 0, ""), 400.0),
        Row::shown("P1", "instructions of the bare service", Number::of(bare, 0, "")),
    ])
}

fn per_request(service: &str) -> Outcome<f64> {
    let (once, twice) = (count(service, REQUESTS)?, count(service, 2 * REQUESTS)?);
    Ok((twice - once) as f64 / REQUESTS as f64)
}

fn count(service: &str, requests: u64) -> Outcome<i64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args([roles::ROLE, roles::KEYLESS, service, &requests.to_string()])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    said.lines()
        .find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok())
        .ok_or_else(|| format!("valgrind counted nothing: {said}").into())
}

/// Answers a number of requests without a key, for whoever counts.
pub(crate) fn answer_keyless(mut service: impl Orders, requests: u64) -> Outcome<()> {
    Builder::new_current_thread().enable_all().build()?.block_on(async {
        for _ in 0..requests {
            orders::answer(&mut service, orders::request(None)).await?;
        }
        Ok(())
    })
}
