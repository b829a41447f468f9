//! A process and its descendants. PostgreSQL puts each of its children into a group of its own, so a
//! process group is not enough.

use std::{
    fs,
    process::{Command, Stdio},
};

/// Sends a signal. Those that are gone already are passed over.
pub(super) fn signal(name: &str, processes: &[u32]) {
    let mut kill = Command::new("sh");
    kill.args([
        "-c",
        r#"signal=$1; shift; for it; do kill -s "$signal" "$it"; done"#,
        "kill",
        name,
    ]);
    kill.args(processes.iter().map(u32::to_string)).stderr(Stdio::null());
    kill.status().expect("sh starts");
}

/// A process and its descendants, parents first.
pub(super) fn of(process: u32) -> Vec<u32> {
    let all = all();
    let mut family = vec![process];
    let mut known = 0;
    while let Some(&parent) = family.get(known) {
        family.extend(all.iter().filter(|it| it.parent == parent).map(|it| it.id));
        known += 1;
    }
    family
}

/// Whether any of these is still there and in such a state (a letter, as `ps` prints it).
pub(super) fn any(processes: &[u32], state: impl Fn(char) -> bool) -> bool {
    all().iter().any(|it| processes.contains(&it.id) && state(it.state))
}

struct Process {
    id: u32,
    parent: u32,
    state: char,
}

/// Every process of the machine: from `/proc` where there is one, else from `ps`.
fn all() -> Vec<Process> {
    let Ok(processes) = fs::read_dir("/proc") else { return listed() };
    let stats = processes.flatten().filter_map(|it| {
        let id = it.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(it.path().join("stat")).ok()?;
        // The name, in parentheses, may hold anything.
        let mut rest = stat.rsplit_once(')')?.1.split_whitespace();
        let state = rest.next()?.chars().next()?;
        Some(Process { id, state, parent: rest.next()?.parse().ok()? })
    });
    stats.collect()
}

fn listed() -> Vec<Process> {
    let list = Command::new("ps").args(["-A", "-o", "pid=,ppid=,stat="]).output();
    let list = String::from_utf8_lossy(&list.expect("ps starts").stdout).into_owned();
    let processes = list.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (id, parent) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(Process { id, parent, state: words.next()?.chars().next()? })
    });
    processes.collect()
}
