//! Servers as processes of their own, and which processor who runs on.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, ChildStdout, Command, Stdio},
    thread,
};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::{Outcome, roles};

/// What a server prints once it can be connected to, before its address.
pub(crate) const LISTENING: &str = "listening on http://";

/// The processor of what is measured.
pub(crate) const MEASURED: usize = 0;
/// The processor of everything else.
pub(crate) const OTHERS: usize = 1;

/// A running server. It ends when this is dropped.
pub(crate) struct Server {
    process: Child,
    pub(crate) address: SocketAddr,
    /// Kept open, so that the server can go on printing.
    _output: BufReader<ChildStdout>,
}

impl Server {
    /// This program in a role.
    pub(crate) fn role(arguments: &[&str], processor: usize) -> Outcome<Self> {
        let mut command = Command::new(env::current_exe()?);
        command.arg(roles::ROLE).args(arguments);
        Self::start(command, processor)
    }

    /// Any program that prints where it listens.
    pub(crate) fn start(mut command: Command, processor: usize) -> Outcome<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        // A child runs where the thread that started it may run.
        let starting = thread::spawn(move || {
            let _pinned = Pinned::to(processor);
            command.spawn()
        });
        let mut process = starting.join().map_err(|_| "starting a server panicked")??;
        let output = process.stdout.take().ok_or("a server has no output")?;
        let mut output = BufReader::new(output);
        let mut line = String::new();
        while output.read_line(&mut line)? > 0 {
            if let Some(address) = line.trim().strip_prefix(LISTENING) {
                return Ok(Self { process, address: address.parse()?, _output: output });
            }
            line.clear();
        }
        Err(format!("a server ended before it listened: {}", process.wait()?).into())
    }

    /// How much processor time the server has used, in seconds.
    pub(crate) fn processor_time(&self) -> Outcome<f64> {
        // Fields 14 and 15 of `stat`, in hundredths of a second; the name in parentheses is the
        // second field and may hold anything.
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        let fields = stat.rsplit_once(')').ok_or("an unreadable stat")?.1;
        let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
        Ok(ticks.sum::<Result<f64, _>>()? / 100.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// This thread, bound to one processor until this is dropped. Where there is only one, or where it
/// may not be bound, it runs anywhere.
pub(crate) struct Pinned(Option<CpuSet>);

impl Pinned {
    pub(crate) fn to(processor: usize) -> Self {
        let before = sched_getaffinity(None).ok();
        let mut one = CpuSet::new();
        one.set(processor);
        if before.is_some_and(|set| set.is_set(processor)) {
            let _ = sched_setaffinity(None, &one);
        }
        Self(before)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = sched_setaffinity(None, before);
        }
    }
}
