//! The example `once-consumer`, run as a user runs it.

#![allow(clippy::unwrap_used, reason = "all of this is tests")]

#[path = "../../crates/retrysafe-cli/tests/suite/support/readme.rs"]
mod readme;

use std::process::{Command, Output};

fn consume(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_once-consumer")).args(arguments).output().unwrap()
}

fn printed(arguments: &[&str]) -> String {
    let output = consume(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn it_prints_what_the_readme_shows() {
    // The documents name the binary as a build from the root of the repository leaves it.
    let directory = tempfile::tempdir().unwrap();
    std::env::set_current_dir(directory.path()).unwrap();
    for document in [include_str!("../README.md"), include_str!("../../docs/guides/once.md")] {
        let steps = readme::steps(document, "once-consumer");
        assert!(!steps.is_empty(), "a document has lost its example");
        for step in steps {
            step.run("target/debug/once-consumer", env!("CARGO_BIN_EXE_once-consumer"));
        }
    }
}

#[test]
fn each_order_is_shipped_once_however_many_consumers_there_are() {
    for consumers in ["1", "2", "50"] {
        let printed = printed(&["--messages", "210", "--consumers", consumers]);
        // 42 delivered twice, 70 lost acknowledgements, 30 lost answers of the warehouse.
        assert_eq!(
            printed,
            "210 messages, 352 deliveries\n\
             210 shipped, 112 answered from the record, 30 failed and came back, 0 put aside\n\
             the warehouse packed 210 parcels\n"
        );
    }
}

#[test]
fn bad_input_is_one_clear_line() {
    for (flag, value, code, says) in [
        ("--consumers", "0", 2, "--consumers: must be 1 or more"),
        ("--store", "sqllite:shipping.db", 2, "`sqllite:`"),
        ("--store", "sqlite:/no/such/directory/shipping.db", 1, "/no/such/directory"),
    ] {
        let output = consume(&[flag, value]);
        let line = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{line}");
        assert!(line.starts_with("once-consumer: ") && line.contains(says), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(output.stdout.is_empty());
    }
}
