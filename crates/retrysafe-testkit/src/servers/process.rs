//! A server as a process: in a directory of its own, and gone with the process that started it.

use std::{
    fs::{self, File},
    os::unix::{
        fs::{MetadataExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{
    family,
    programs::{self, Account},
};

/// How long anything may take that a server does at once on an idle machine. This one may be busy.
pub(super) const DEADLINE: Duration = Duration::from_secs(120);
/// How often is looked for what nobody tells us.
pub(super) const GLANCE: Duration = Duration::from_millis(5);

/// Runs a program under the id that it has noted. The id is noted before the program runs, and can't
/// be noted once the watchdog has moved the directory: there is no moment in which it is lost.
const BIRTH: &str = r#"echo $$ >"$1" || exit; shift; exec "$@""#;

/// Waits for the end of its input, which comes when the test process lets go of it or dies in any
/// way; then ends the server and removes the directory.
const WATCHDOG: &str = r#"
trap '' HUP INT TERM
while read -r _; do :; done
mv "$1" "$1.over" || exit
if read -r server <"$1.over/process"; then
    kill -s "$2" -- "-$server"
    kill -s CONT -- "-$server"
fi
# A PostgreSQL that was killed has left its segment of shared memory.
segment=$(sed -n '7s/.* //p' "$1.over/data/postmaster.pid") && ipcrm -m "$segment"
tries=0
until rm -rf "$1.over" || [ $((tries += 1)) -gt 100 ]; do sleep 0.1; done
"#;

/// Looks until it is so.
///
/// # Panics
///
/// If it isn't in time.
pub(super) async fn until(what: &str, mut it_is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !it_is_so().await {
        assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
        sleep(GLANCE).await;
    }
}

/// A server, running or not, and its directory.
pub(super) struct Process {
    directory: PathBuf,
    account: Option<Account>,
    watchdog: Child,
    server: Option<Child>,
    /// Where the log of the present run begins.
    log_start: usize,
    paused: AtomicBool,
}

/// Why a server didn't start.
pub(super) enum NotStarted {
    /// Somebody else has its port.
    PortTaken,
    /// Anything else: what it wrote.
    Failed(String),
}

impl Process {
    /// A new directory without a server. A server that refuses to run as root gets the account and
    /// owns the directory. In the end it is sent `last_signal` (KILL, but for one with children).
    pub(super) fn new(accounts: &[&str], last_signal: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("retrysafe-").tempdir();
        let directory = directory.expect("a temporary directory").keep();
        let watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "watchdog"])
            .arg(&directory)
            .arg(last_signal)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("sh starts");
        let owner = fs::metadata(&directory).expect("a directory just made").uid();
        let account = if owner == 0 { Account::first_of(accounts) } else { None };
        if let Some(account) = account {
            chown(&directory, Some(account.user), Some(account.group)).expect("root may give away");
        }
        let paused = AtomicBool::new(false);
        Self { directory, account, watchdog, server: None, log_start: 0, paused }
    }

    /// The directory of this server alone.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Runs a program that prepares the directory to its end, as the server's user.
    pub(super) async fn run(&self, program: &Path, arguments: &[String]) {
        let mut command = Command::new(program);
        command.args(arguments);
        self.settle(&mut command);
        programs::run(command).await;
    }

    /// Starts the server. Whether it is up is for [`ready`](Self::ready) to say.
    pub(super) fn start(&mut self, program: &Path, arguments: &[String]) {
        let log = self.directory.join("log");
        let log = File::options().create(true).append(true).open(log).expect("a log");
        self.log_start = log.metadata().map_or(0, |log| log.len() as usize);
        let mut command = Command::new("sh");
        command.args(["-c", BIRTH, "birth"]).arg(self.noted()).arg(program).args(arguments);
        command.stdin(Stdio::null()).stderr(log.try_clone().expect("a log")).stdout(log);
        // What the terminal sends to the test is not for the server.
        command.process_group(0);
        self.settle(&mut command);
        self.server = Some(command.spawn().expect("sh starts"));
    }

    /// Waits until the server has written that it is ready. It is its own log that is read: whoever
    /// else listens on the port by mistake can't pass for it.
    pub(super) async fn ready(&mut self, program: &Path, sign: &str) -> Result<(), NotStarted> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let server = self.server.as_mut().expect("a server was started");
            let ended = server.try_wait().expect("a child").is_some();
            let log = fs::read(self.directory.join("log")).unwrap_or_default();
            let log = String::from_utf8_lossy(log.get(self.log_start..).unwrap_or_default());
            if log.contains(sign) {
                return Ok(());
            }
            if ended {
                self.server = None;
                let _ = fs::remove_file(self.noted());
                return Err(if log.to_lowercase().contains("address already in use") {
                    NotStarted::PortTaken
                } else {
                    NotStarted::Failed(format!("{} ended:\n{log}", program.display()))
                });
            }
            if Instant::now() > deadline {
                let late = format!("{} not ready in {DEADLINE:?}:\n{log}", program.display());
                return Err(NotStarted::Failed(late));
            }
            sleep(GLANCE).await;
        }
    }

    /// Ends the server and its children by SIGKILL and waits until they are gone.
    pub(super) async fn kill(&mut self) {
        let Some(server) = &mut self.server else { return };
        // Stopped first, so that no child is born while the family is counted.
        family::signal("STOP", &[server.id()]);
        let family = family::of(server.id());
        family::signal("KILL", &family);
        while server.try_wait().expect("a child").is_none() {
            sleep(GLANCE).await;
        }
        let _ = fs::remove_file(self.noted());
        self.server = None;
        self.paused.store(false, Ordering::Relaxed);
        let gone = async || !family::any(&family, |state| state != 'Z');
        until("killed processes are gone", gone).await;
    }

    /// Stops the server and its children by SIGSTOP; returns when they stand still.
    pub(super) fn pause(&self) {
        let Some(server) = &self.server else { panic!("only what runs can be paused") };
        self.paused.store(true, Ordering::Relaxed);
        family::signal("STOP", &[server.id()]);
        let family = family::of(server.id());
        family::signal("STOP", &family);
        while family::any(&family, |state| !matches!(state, 'T' | 'Z')) {
            std::thread::sleep(Duration::from_millis(1));
            family::signal("STOP", &family);
        }
    }

    /// Lets them go on.
    pub(super) fn resume(&self) {
        let Some(server) = &self.server else { return };
        family::signal("CONT", &family::of(server.id()));
        self.paused.store(false, Ordering::Relaxed);
    }

    /// Where the server's id is noted for the watchdog.
    fn noted(&self) -> PathBuf {
        self.directory.join("process")
    }

    /// In its directory, as its user, and speaking English.
    fn settle(&self, command: &mut Command) {
        command.current_dir(&self.directory).env("LC_ALL", "C");
        if let Some(account) = self.account {
            command.uid(account.user).gid(account.group);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.paused.load(Ordering::Relaxed) {
            self.resume();
        }
        drop(self.watchdog.stdin.take());
        if let Some(server) = &mut self.server {
            let _ = server.wait();
        }
        let _ = self.watchdog.wait();
    }
}
