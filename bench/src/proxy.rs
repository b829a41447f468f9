//! P11: the proxy against itself with the layer off.
//!
//! One proxy, one upstream, one memory store; two routes to the same service, of which one is not
//! protected. The proxy has a processor for itself.

use std::{env, fs, path::PathBuf, process::Command, time::Duration};

use crate::{
    Outcome,
    load::{Ask, Load},
    measure::{Effort, in_turn},
    process::{MEASURED, OTHERS, Pinned, Server},
    report::{Number, Row},
    roles,
};

const OFF: usize = 0;
const FIRST: usize = 1;
const REPLAY: usize = 2;

const CONFIG: &str = "
sweep = \"off\"
[[route]]
path = \"/off\"
protect = false
";

pub(crate) fn measure(effort: Effort) -> Outcome<Vec<Row>> {
    let binary = build()?;
    let directory = tempfile::tempdir()?;
    let config = directory.path().join("retrysafe.toml");
    fs::write(&config, CONFIG)?;

    let upstream = Server::role(&[roles::UPSTREAM], OTHERS)?;
    let mut command = Command::new(binary);
    command
        .args(["proxy", "--listen", "127.0.0.1:0", "--store", "memory:", "--scope", "shared"])
        .args(["--upstream", &format!("http://{}", upstream.address)])
        .arg("--config")
        .arg(&config);
    let proxy = Server::start(command, MEASURED)?;
    let _pinned = Pinned::to(OTHERS);
    let mut loads = [
        Load::new(proxy.address, "/off", Ask::First)?,
        Load::new(proxy.address, "/orders", Ask::First)?,
        Load::new(proxy.address, "/orders", Ask::Again)?,
    ];

    let window = Duration::from_millis(500);
    let mut cost = [0.0; 3];
    let mut answered = [0.0; 3];
    let throughput = in_turn::<3>(effort.rounds(20), |variant| {
        let before = proxy.processor_time()?;
        let throughput = loads[variant].throughput(window)?;
        cost[variant] += proxy.processor_time()? - before;
        answered[variant] += throughput * window.as_secs_f64();
        Ok(throughput)
    })?;
    let half = throughput.median(|round| round[OFF]) / 2.0;
    let p99 = in_turn::<3>(effort.rounds(20), |variant| {
        Ok(loads[variant].latency(half, window)?.value_at_percentile(99.0) as f64)
    })?;

    let ratio = |variant| Number::ratio(throughput.ratio(variant, OFF));
    let micros =
        |variant: usize| Number::of(cost[variant] / answered[variant] * 1e6, 1, "µs").to_string();
    Ok(vec![
        Row::at_least(
            "P11",
            "proxy, first: throughput with / without the layer",
            ratio(FIRST),
            0.9,
        ),
        Row::at_most(
            "P11",
            "proxy, first: p99 with / without the layer, at half load",
            Number::ratio(p99.ratio(FIRST, OFF)),
            1.25,
        ),
        Row::shown("P11", "proxy, replay: throughput with / without the layer", ratio(REPLAY)),
        Row::shown(
            "P11",
            "proxy, processor time of a request: off / first / replay",
            [OFF, FIRST, REPLAY].map(micros).join(" / "),
        ),
    ])
}

/// Builds the proxy as it is released.
fn build() -> Outcome<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--release", "--quiet", "--package", "retrysafe-cli"])
        .current_dir(&root)
        .status()?;
    if !built.success() {
        return Err("the proxy can't be built".into());
    }
    Ok(root.join("target/release/retrysafe"))
}
