//! The example `batch-import`, run as a user runs it, and killed as nobody should.

#![allow(clippy::unwrap_used, reason = "all of this is tests")]

#[path = "../../crates/retrysafe-cli/tests/suite/support/readme.rs"]
mod readme;

use std::{
    collections::HashSet,
    fs,
    future::pending,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use retrysafe_axum::{Once, Scope};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::Notify;

const LINES: usize = 10_000;

/// A file of lines, a store and an output, in a directory of their own.
struct Import {
    directory: TempDir,
}

impl Import {
    fn of(lines: usize) -> Self {
        let import = Self { directory: tempfile::tempdir().unwrap() };
        let lines = (1..=lines).map(|number| (format!("line-{number}"), number as i64 * 10));
        import.write(lines);
        import
    }

    fn write(&self, lines: impl IntoIterator<Item = (String, i64)>) {
        let mut text = "id,customer,cents\n".to_owned();
        lines.into_iter().for_each(|(id, cents)| text += &format!("{id},alice,{cents}\n"));
        fs::write(self.path("lines.csv"), text).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn store(&self) -> String {
        format!("sqlite:{}", self.path("import.db").display())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_batch-import"));
        command.arg(self.path("lines.csv")).args(["--store", &self.store(), "--out"]);
        command.arg(self.path("out.csv"));
        command
    }

    fn run(&self) -> Output {
        self.command().output().unwrap()
    }

    #[track_caller]
    fn prints(&self, expected: &str) {
        let output = self.run();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{expected}\n"), "{errors}");
    }

    /// The ids in the output, in their order.
    fn imported(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("out.csv")).unwrap_or_default();
        text.lines().map(|line| line.split(',').next().unwrap().to_owned()).collect()
    }

    #[track_caller]
    fn assert_each_once(&self, lines: usize) {
        let imported = self.imported();
        let ids: HashSet<_> = imported.iter().collect();
        assert_eq!((imported.len(), ids.len()), (lines, lines));
    }

    /// Starts the import and kills it when at least so many lines are in the output.
    fn kill_at(&self, lines: usize) {
        let mut process = self.command().stdout(Stdio::null()).spawn().unwrap();
        let out = self.path("out.csv");
        while count_lines(&out) < lines {
            assert!(process.try_wait().unwrap().is_none(), "it ended before it could be killed");
            thread::sleep(Duration::from_millis(1));
        }
        process.kill().unwrap();
        process.wait().unwrap();
    }
}

fn count_lines(path: &Path) -> usize {
    fs::read(path).map_or(0, |text| text.iter().filter(|byte| **byte == b'\n').count())
}

#[test]
fn it_prints_what_the_documents_show() {
    let directory = tempfile::tempdir().unwrap();
    std::env::set_current_dir(directory.path()).unwrap();
    for document in [include_str!("../README.md"), include_str!("../../docs/guides/batches.md")] {
        let steps = readme::steps(document, "batch-import");
        assert!(!steps.is_empty(), "a document has lost its example");
        for step in steps {
            step.run("target/debug/batch-import", env!("CARGO_BIN_EXE_batch-import"));
        }
        for left in fs::read_dir(directory.path()).unwrap() {
            fs::remove_file(left.unwrap().path()).unwrap();
        }
    }
}

#[test]
fn killed_half_way_and_started_again_imports_every_line_once() {
    let import = Import::of(LINES);
    import.kill_at(LINES / 2);
    let before = import.imported().len();
    assert!((LINES / 2..LINES).contains(&before), "{before} lines before the kill");
    let output = import.run();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    import.assert_each_once(LINES);
    import.prints("10000 lines: 0 imported, 10000 imported before, 0 failed");
    import.assert_each_once(LINES);
}

#[test]
fn killed_again_and_again_imports_every_line_once() {
    let import = Import::of(1_500);
    for lines in [1, 300, 700, 1_100] {
        import.kill_at(lines);
    }
    let output = import.run();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    import.assert_each_once(1_500);
}

/// Does to one line what a process does that dies in the middle: it claims it, appends it or not,
/// and is gone.
fn die_in_the_middle(import: &Import, append: bool) {
    let out = import.path("out.csv");
    let mut file = fs::File::options().append(true).create(true).open(&out).unwrap();
    let scope = Scope::from_bytes(out.canonicalize().unwrap().as_os_str().as_encoded_bytes());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let opened = retrysafe_stores::open(&import.store()).await.unwrap();
        let once = Once::builder(opened.store).namespace("batch-import");
        let once = once.lease(Duration::from_secs(1)).build().unwrap();
        let line = json!({ "id": "line-2", "customer": "alice", "cents": 20 });
        let reached = Arc::new(Notify::new());
        let here = reached.clone();
        let call = once.run("import", &scope, "line-2", &line, move |_| async move {
            if append {
                file.write_all(b"line-2,alice,20\n").unwrap();
            }
            here.notify_one();
            pending::<Result<(), String>>().await
        });
        tokio::spawn(call.into_future());
        reached.notified().await;
    });
    runtime.shutdown_background();
}

#[test]
fn a_line_that_was_appended_and_not_recorded_is_not_appended_again() {
    let import = Import::of(3);
    die_in_the_middle(&import, true);
    import.prints("3 lines: 2 imported, 1 imported before, 0 failed");
    import.assert_each_once(3);
    import.prints("3 lines: 0 imported, 3 imported before, 0 failed");
}

#[test]
fn a_line_that_was_claimed_and_not_appended_is_appended() {
    let import = Import::of(3);
    die_in_the_middle(&import, false);
    import.prints("3 lines: 3 imported, 0 imported before, 0 failed");
    import.assert_each_once(3);
}

#[test]
fn half_a_line_is_taken_away_and_imported_whole() {
    let import = Import::of(3);
    fs::write(import.path("out.csv"), "line-1,alice,10\nline-2,al").unwrap();
    import.prints("3 lines: 2 imported, 1 imported before, 0 failed");
    let text = fs::read_to_string(import.path("out.csv")).unwrap();
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort();
    assert_eq!(lines, ["line-1,alice,10", "line-2,alice,20", "line-3,alice,30"]);
}

/// What a process that was killed leaves, cut at every byte.
#[test]
fn wherever_a_line_breaks_off_it_is_imported_whole() {
    let line = "\"a,b\",\"alice \"\"al\"\"\n\nsmith\",10\n";
    for length in 0..line.len() {
        let import = Import::of(0);
        let text = format!("id,customer,cents\nb,bob,5\n{line}");
        fs::write(import.path("lines.csv"), text).unwrap();
        fs::write(import.path("out.csv"), format!("b,bob,5\n{}", &line[..length])).unwrap();
        import.prints("2 lines: 1 imported, 1 imported before, 0 failed");
        let out = fs::read_to_string(import.path("out.csv")).unwrap();
        assert_eq!(out, format!("b,bob,5\n{line}"), "cut at {length}");
    }
}

#[test]
fn a_file_that_is_no_output_of_an_import_is_left_as_it_is() {
    let header_and_line = "id,customer,cents\nline-1,alice,10";
    for text in ["{ \"port\": 80 }", header_and_line, "line-1,alice,10\n\0\0", "line-9,al"] {
        let import = Import::of(3);
        fs::write(import.path("out.csv"), text).unwrap();
        let output = import.run();
        assert_eq!(output.status.code(), Some(1), "{text}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("out.csv") && said.contains("no line of the import"), "{said}");
        assert_eq!(fs::read_to_string(import.path("out.csv")).unwrap(), text);
    }
}

#[test]
fn an_output_of_another_name_is_not_imported_into_twice() {
    let import = Import::of(3);
    import.prints("3 lines: 3 imported, 0 imported before, 0 failed");
    fs::rename(import.path("out.csv"), import.path("imported.csv")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_batch-import"));
    command.arg(import.path("lines.csv")).args(["--store", &import.store(), "--out"]);
    let output = command.arg(import.path("imported.csv")).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed, "3 lines: 0 imported, 3 imported before, 0 failed\n");
    assert_eq!(count_lines(&import.path("imported.csv")), 3);
}

#[test]
fn the_same_line_twice_is_one_and_another_line_of_its_id_is_refused() {
    let import = Import::of(0);
    import.write([("a", 10), ("b", 20), ("a", 10), ("b", 21)].map(|(id, it)| (id.to_owned(), it)));
    let output = import.run();
    assert_eq!(output.status.code(), Some(1));
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed, "4 lines: 2 imported, 1 imported before, 1 failed\n");
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("batch-import: b: key_reused"), "{errors}");
    import.assert_each_once(2);
}

#[test]
fn lines_that_are_gone_from_the_output_are_told_and_not_imported_again() {
    let import = Import::of(3);
    assert!(import.run().status.success());
    fs::write(import.path("out.csv"), "line-1,alice,10\n").unwrap();
    let output = import.run();
    assert_eq!(output.status.code(), Some(1));
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed, "3 lines: 0 imported, 1 imported before, 2 failed\n");
    assert!(
        String::from_utf8(output.stderr).unwrap().contains("line-3: was imported, and is gone")
    );
}

#[test]
fn of_many_lines_that_are_gone_ten_are_named() {
    let import = Import::of(30);
    assert!(import.run().status.success());
    fs::remove_file(import.path("out.csv")).unwrap();
    let said = String::from_utf8(import.run().stderr).unwrap();
    assert_eq!(said.matches("was imported, and is gone").count(), 10, "{said}");
    assert!(said.contains("20 more were imported, and are gone"), "{said}");
}

#[test]
fn a_file_that_cannot_be_read_is_not_one_without_lines() {
    let import = Import::of(0);
    let mut command = Command::new(env!("CARGO_BIN_EXE_batch-import"));
    command.arg(import.path(".")).args(["--store", &import.store(), "--out"]);
    let output = command.arg(import.path("out.csv")).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
}

#[test]
fn a_second_import_into_one_file_is_refused_while_the_first_runs() {
    let import = Import::of(3);
    let out = fs::File::create(import.path("out.csv")).unwrap();
    out.lock().unwrap();
    let output = import.run();
    assert_eq!(output.status.code(), Some(1));
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(line.contains("another import is writing to it"), "{line}");
    drop(out);
    assert!(import.run().status.success());
}

#[test]
fn bad_input_is_one_clear_line_and_imports_nothing() {
    for (text, store, code, says) in [
        ("id,customer,cents\na,alice,ten\n", "sqlite:unread.db", 1, "lines.csv"),
        ("id,customer\na,alice\n", "sqlite:unread.db", 1, "no `cents`"),
        ("a,alice,10\n", "sqlite:unread.db", 1, "no `id`"),
        ("id,customer,cents\n", "memory:", 2, "would import it again"),
        ("id,customer,cents\n", "sqllite:import.db", 2, "`sqllite:`"),
        ("id,customer,cents\n", "sqlite:/no/such/directory/import.db", 1, "/no/such/directory"),
    ] {
        let import = Import::of(0);
        fs::write(import.path("lines.csv"), text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_batch-import"));
        command.arg(import.path("lines.csv")).args(["--store", store, "--out"]);
        let output = command.arg(import.path("out.csv")).output().unwrap();
        let line = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{line}");
        assert!(line.starts_with("batch-import: ") && line.contains(says), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(output.stdout.is_empty() && import.imported().is_empty());
    }
}

#[test]
fn none_at_once_is_refused() {
    let import = Import::of(1);
    let output = import.command().args(["--concurrency", "0"]).output().unwrap();
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{line}");
    assert_eq!(line, "batch-import: --concurrency: must be 1 or more\n");
    assert!(import.imported().is_empty());
}
