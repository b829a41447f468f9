//! P1, P2, P3 and P9: what is allocated. Counted by the program `allocations`, which prints the
//! numbers that this one reads.

use std::{env, path::Path, process::Command};

use retrysafe_axum::MemoryStore;

use crate::{
    Outcome,
    in_process::{BARE, BATCH, FIRST, REPLAY, ROUTED, Services},
    measure::Effort,
    report::{Number, Row},
    size,
};

/// How many keys the memory store holds when its size is measured.
const KEYS: usize = 100_000;

/// What some work allocated on this thread.
pub struct Counted {
    /// How often.
    pub allocations: u64,
    /// How many bytes it has not given back.
    pub kept_bytes: i64,
}

pub(crate) fn measure(_: Effort) -> Outcome<Vec<Row>> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["run", "--release", "--quiet", "--ignore-rust-version", "--bin", "allocations"])
        .arg("--manifest-path")
        .arg(manifest)
        .output()?;
    let said = String::from_utf8(output.stdout)?;
    let numbers: Vec<f64> = said.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [keyless_bare, keyless, routed, bare, first, replay, key] = numbers[..] else {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    };
    Ok(vec![
        Row::exactly("P1", "no key: extra allocations", Number::count(keyless - keyless_bare), 0.0),
        Row::shown(
            "P1",
            "the same, as a layer on a `Router`",
            Number::count(routed - keyless_bare),
        ),
        Row::at_most("P2", "first: extra allocations", Number::count(first - bare), 12.0),
        Row::shown("P2", "allocations of the bare service and a request", Number::count(bare)),
        Row::shown("P3", "replay: extra allocations", Number::count(replay - bare)),
        Row::at_most(
            "P9",
            "memory store: a finished key over head and body",
            Number::of(key, 1, "bytes"),
            300.0,
        ),
    ])
}

/// Counts, and prints the numbers.
///
/// # Errors
///
/// If a request is not answered as it should be.
pub fn count(count: impl Fn(&mut dyn FnMut()) -> Counted) -> Outcome<()> {
    let mut services = Services::start()?;
    // What grows by doubling has grown then.
    for _ in 0..100 {
        let keys = services.keys(FIRST);
        services.drive(FIRST, keys)?;
    }
    let keyless = |variant| (variant, vec![None; BATCH]);
    let keyed = |variant| (variant, services.keys(variant));
    let batches =
        [keyless(BARE), keyless(FIRST), keyless(ROUTED), keyed(BARE), keyed(FIRST), keyed(REPLAY)];
    for (variant, keys) in batches {
        let (mut keys, mut drove) = (Some(keys), Ok(()));
        let counted = count(&mut || {
            drove = services.drive(variant, keys.take().unwrap_or_default()).map(drop);
        });
        drove?;
        println!("{}", counted.allocations as f64 / BATCH as f64);
    }

    let store = MemoryStore::builder().capacity(KEYS).build()?;
    let mut content = Ok(0.0);
    let counted = count(&mut || content = size::fill_memory(&store, KEYS));
    println!("{}", counted.kept_bytes as f64 / KEYS as f64 - content?);
    Ok(())
}
