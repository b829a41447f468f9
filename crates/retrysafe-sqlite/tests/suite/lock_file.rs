//! One lock file for this crate and for a service that has an `SqlitePool`.

use std::{fs, path::Path, process::Command};

use tempfile::TempDir;

#[test]
fn resolves_next_to_sqlx() {
    let directory = TempDir::new().unwrap();
    let manifest = format!(
        r#"
        [package]
        name = "beside-sqlx"
        version = "0.0.0"
        edition = "2024"

        [dependencies]
        retrysafe-sqlite = {{ path = {:?} }}
        sqlx = {{ version = "0.9", default-features = false, features = ["sqlite"] }}

        [workspace]
        "#,
        Path::new(env!("CARGO_MANIFEST_DIR"))
    );
    fs::write(directory.path().join("Cargo.toml"), manifest).unwrap();
    fs::create_dir(directory.path().join("src")).unwrap();
    fs::write(directory.path().join("src/lib.rs"), "").unwrap();

    let generate = |arguments: &[&str]| {
        Command::new(env!("CARGO"))
            .arg("generate-lockfile")
            .args(arguments)
            .current_dir(directory.path())
            .output()
            .unwrap()
    };
    let mut generated = generate(&[]);
    if !generated.status.success() {
        // Away from the network, from what cargo already knows of the registry.
        generated = generate(&["--offline"]);
    }
    assert!(generated.status.success(), "{}", String::from_utf8_lossy(&generated.stderr));

    let lock = fs::read_to_string(directory.path().join("Cargo.lock")).unwrap();
    let linked = lock.matches("name = \"libsqlite3-sys\"").count();
    assert_eq!(linked, 1, "one library is linked");
    assert!(lock.contains("name = \"sqlx-sqlite\"") && lock.contains("name = \"rusqlite\""));
}
