//! The programs of the servers, and the users they run as.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Where `make servers` puts what the system has not.
const OWN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/servers/bin");

/// The first of these programs that is there: where `make servers` puts them, on the path, or where
/// systems keep what only their own services start.
pub(super) fn find(names: &[&str]) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places = vec![PathBuf::from(OWN)];
    places.extend(postgres());
    places.extend(env::split_paths(&path));
    places.extend(["/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin"].map(PathBuf::from));
    let there = |name: &&str| places.iter().map(|it| it.join(name)).find(|it| it.is_file());
    match names.iter().find_map(there) {
        Some(program) => program,
        None => panic!("{} is not installed: run `make servers`", names[0]),
    }
}

/// Debian keeps PostgreSQL's programs off the path, by version; its wrappers on the path look for
/// clusters of the system. The newest comes first.
fn postgres() -> Vec<PathBuf> {
    let version = |it: &PathBuf| it.file_name()?.to_str()?.parse::<u32>().ok();
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<PathBuf> = versions.map(|it| it.path()).collect();
    versions.sort_by_key(|it| std::cmp::Reverse(version(it)));
    versions.into_iter().map(|it| it.join("bin")).collect()
}

/// Runs a command to its end and gives what it wrote.
///
/// # Panics
///
/// If it fails, with what it complained about.
pub(super) async fn run(command: Command) -> String {
    let program = Path::new(command.get_program()).display().to_string();
    let mut command = tokio::process::Command::from(command);
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await;
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {}\n{said}\n{complaint}", output.status);
    said
}

/// A user that servers run as which refuse to run as root.
#[derive(Clone, Copy)]
pub(super) struct Account {
    pub(super) user: u32,
    pub(super) group: u32,
}

impl Account {
    /// The first of these users that exists; none if none was asked for.
    pub(super) fn first_of(names: &[&str]) -> Option<Self> {
        let number = |flag: &str, name: &str| {
            let id = Command::new("id").args([flag, name]).stderr(Stdio::null()).output().ok()?;
            String::from_utf8(id.stdout).ok()?.trim().parse().ok()
        };
        let account =
            |name: &&str| Some(Self { user: number("-u", name)?, group: number("-g", name)? });
        let first = names.iter().find_map(account);
        assert!(names.is_empty() || first.is_some(), "no user to run as among {names:?}");
        first
    }
}
