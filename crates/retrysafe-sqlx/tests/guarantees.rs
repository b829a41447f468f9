//! Every test that `docs/guarantees.md` names is one.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::{fs, path::Path};

#[test]
fn every_guarantee_names_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = fs::read_to_string(root.join("docs/guarantees.md")).unwrap();
    let mut sources = String::new();
    for part in ["crates/retrysafe/tests", "crates/retrysafe-sqlite/tests", "crates/retrysafe-sqlx"]
    {
        read(&root.join(part), &mut sources);
    }
    // What stands between backquotes and looks like a sentence is the name of a test.
    let names: Vec<_> = page
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| name.matches('_').count() > 2 || *name == "crash_wedges")
        .filter(|name| name.chars().all(|it| it == '_' || it.is_ascii_alphanumeric()))
        .filter(|name| !name.starts_with("idle_in_transaction"))
        .collect();
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        assert!(sources.contains(&format!("fn {name}(")), "there is no test {name}");
    }
}

fn read(directory: &Path, sources: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read(&path, sources);
        } else if path.extension().is_some_and(|it| it == "rs") {
            sources.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}
