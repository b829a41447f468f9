//! P1: instructions that the layer adds to a request without a key. And what each door adds to one
//! with a key, which has no target of its own and says where the time of P2, ACTIX and TONIC goes.
//!
//! This program runs itself under Callgrind for `N` and for `2 N` requests; the difference is what
//! `N` requests cost without start-up. Callgrind counts; it does not time, so a busy machine
//! changes nothing. It lacks the processor's own instructions for SHA-256, which is many times as
//! long without them: so that is counted apart.

use std::{fs, process::Command};

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
    Ok(counted(&[roles::KEYLESS, service])?.others)
}

/// What the doors add to a first execution and to a replay.
pub(crate) fn doors(_: Effort) -> Outcome<Vec<Row>> {
    const TARGET: &str = "INSTRUCTIONS";
    if Command::new("valgrind").arg("--version").output().is_err() {
        return Ok(vec![Row::skipped(TARGET, "of the doors", "valgrind is not installed")]);
    }
    let mut rows = Vec::new();
    for door in [roles::TOWER, roles::ACTIX, roles::TONIC] {
        let count = |variant| counted(&[roles::DRIVE, door, variant]);
        let nothing = count("nothing")?;
        for variant in ["bare", "first", "replay"] {
            let Counted { sha256, others } = count(variant)?;
            let number = Number::of(others - nothing.others, 0, "");
            rows.push(Row::shown(TARGET, format!("{door}, {variant}, without SHA-256"), number));
            if sha256 > 0.0 {
                let number = Number::of(sha256, 0, "");
                rows.push(Row::shown(TARGET, format!("{door}, {variant}, SHA-256"), number));
            }
        }
    }
    Ok(rows)
}

/// The instructions of one request.
struct Counted {
    sha256: f64,
    others: f64,
}

fn counted(role: &[&str]) -> Outcome<Counted> {
    let (once, twice) = (count(role, REQUESTS)?, count(role, 2 * REQUESTS)?);
    let per_request = |once, twice| (twice - once) as f64 / REQUESTS as f64;
    let (sha256, all) = (per_request(once.0, twice.0), per_request(once.1, twice.1));
    Ok(Counted { sha256, others: all - sha256 })
}

/// Instructions in SHA-256, and in all.
fn count(role: &[&str], requests: u64) -> Outcome<(i64, i64)> {
    let profile = tempfile::NamedTempFile::new()?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--compress-strings=no", "--compress-pos=no"])
        .arg(format!("--callgrind-out-file={}", profile.path().display()))
        .arg(std::env::current_exe()?)
        .arg(roles::ROLE)
        .args(role)
        .arg(requests.to_string())
        .output()?;
    let counted = in_profile(&fs::read_to_string(profile.path())?);
    counted.ok_or_else(|| String::from_utf8_lossy(&output.stderr).into())
}

/// What a profile says: a line that begins with a number is a place in the source and what was
/// counted there, in the function that was named last. After `calls=` it is that of another one.
fn in_profile(profile: &str) -> Option<(i64, i64)> {
    let (mut sha256, mut all) = (0, 0);
    let (mut in_sha256, mut of_call) = (false, false);
    for line in profile.lines() {
        if let Some(function) = line.strip_prefix("fn=") {
            in_sha256 = function.starts_with("sha2::") && function.contains("compress");
        } else if line.starts_with("calls=") {
            of_call = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit()) {
            let (_, cost) = line.split_once(' ')?;
            let cost: i64 = cost.trim().parse().ok()?;
            if !std::mem::take(&mut of_call) {
                all += cost;
                sha256 += if in_sha256 { cost } else { 0 };
            }
        }
    }
    (all > 0).then_some((sha256, all))
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
