//! Who asks for one driver gets one driver, also in the lock file.

#![expect(clippy::unwrap_used, reason = "a test says what failed by where it panics")]

use std::{fs, path::Path, process::Command};

use tempfile::TempDir;

/// The lock file of a service that uses this crate with a feature.
fn lock_file(feature: &str) -> String {
    let directory = TempDir::new().unwrap();
    let manifest = format!(
        r#"
        [package]
        name = "service"
        version = "0.0.0"
        edition = "2024"

        [dependencies]
        retrysafe-sqlx = {{ path = {:?}, features = [{feature:?}] }}

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
    fs::read_to_string(directory.path().join("Cargo.lock")).unwrap()
}

#[test]
fn one_driver_in_the_lock_file() {
    for (feature, others) in [
        ("postgres", ["sqlx-mysql", "sqlx-sqlite", "libsqlite3-sys", "openssl", "native-tls"]),
        ("mysql", ["sqlx-postgres", "sqlx-sqlite", "libsqlite3-sys", "openssl", "native-tls"]),
    ] {
        let lock = lock_file(feature);
        assert!(lock.contains(&format!("name = \"sqlx-{feature}\"")));
        for other in others {
            assert!(!lock.contains(&format!("name = \"{other}\"")), "{feature} brings {other}");
        }
    }
}
