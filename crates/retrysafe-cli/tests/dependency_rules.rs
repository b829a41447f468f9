//! The rules of ARCHITECTURE.md that a compiler does not check.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// Which crates of the workspace each may depend on, outside of its tests.
const ALLOWED: [(&str, &[&str]); 13] = [
    ("retrysafe-core", &[]),
    ("retrysafe", &["retrysafe-core"]),
    ("retrysafe-actix", &["retrysafe"]),
    ("retrysafe-axum", &["retrysafe"]),
    ("retrysafe-client", &["retrysafe-core"]),
    ("retrysafe-nats", &["retrysafe-core"]),
    ("retrysafe-redis", &["retrysafe-core"]),
    ("retrysafe-sqlite", &["retrysafe-core"]),
    ("retrysafe-sqlx", &["retrysafe-core"]),
    (
        "retrysafe-stores",
        &[
            "retrysafe-core",
            "retrysafe-nats",
            "retrysafe-redis",
            "retrysafe-sqlite",
            "retrysafe-sqlx",
        ],
    ),
    ("retrysafe-testkit", &["retrysafe-core"]),
    ("retrysafe-tonic", &["retrysafe"]),
    ("retrysafe-cli", &["retrysafe", "retrysafe-core", "retrysafe-stores"]),
];

#[test]
fn dependencies_point_one_way() {
    let packages = packages();
    assert_eq!(packages.len(), ALLOWED.len(), "a crate is missing in the table above");
    for package in &packages {
        let name = text(&package["name"]);
        let (_, allowed) = ALLOWED.iter().find(|(it, _)| *it == name).expect(name);
        for dependency in dependencies(package) {
            let ours = ALLOWED.iter().any(|(it, _)| *it == dependency);
            assert!(!ours || allowed.contains(&dependency), "{name} must not need {dependency}");
        }
    }
}

#[test]
fn core_does_no_io_and_stores_know_no_http() {
    const HTTP: [&str; 8] =
        ["http", "http-body", "hyper", "hyper-util", "axum", "tower", "tower-service", "retrysafe"];
    for package in &packages() {
        let banned: &[&str] = match text(&package["name"]) {
            "retrysafe-core" => &HTTP[1..],
            "retrysafe-nats" | "retrysafe-redis" | "retrysafe-sqlite" | "retrysafe-sqlx"
            | "retrysafe-stores" => &HTTP,
            _ => &[],
        };
        for dependency in dependencies(package) {
            assert!(!banned.contains(&dependency), "{} needs {dependency}", package["name"]);
        }
    }
    let core = packages().into_iter().find(|it| it["name"] == "retrysafe-core").unwrap();
    let tokio = core["dependencies"].as_array().unwrap().iter();
    for tokio in tokio.filter(|it| it["name"] == "tokio" && it["kind"].is_null()) {
        assert_eq!(tokio["features"], serde_json::json!(["sync", "time"]));
    }
}

#[test]
fn no_default_feature_pulls_a_driver() {
    for package in &packages() {
        let features = package["features"].as_object().unwrap();
        let default = features.get("default").and_then(Value::as_array);
        assert!(default.is_none_or(Vec::is_empty), "{} has default features", package["name"]);
        for (feature, enables) in features {
            // It puts the driver into the lock file of everybody, enabled or not.
            let weak = enables.as_array().unwrap().iter().any(|it| text(it).contains("?/"));
            assert!(!weak, "{} of {} has the form dep?/feature", feature, package["name"]);
        }
    }
}

#[test]
fn every_crate_takes_the_workspace_lints() {
    for package in &packages() {
        let manifest = fs::read_to_string(text(&package["manifest_path"])).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{}", package["name"]);
    }
}

/// Adapters decide nothing about the protocol: its header names, codes and statuses come from core.
#[test]
fn adapters_contain_no_protocol_decision() {
    const OURS: [&str; 18] = [
        "\"idempotency-",
        "\"Idempotency-",
        "\"idempotent-",
        "\"Idempotent-",
        "\"invalid_key\"",
        "\"missing_key\"",
        "\"missing_scope\"",
        "\"key_reused\"",
        "\"in_progress\"",
        "\"outcome_unknown\"",
        "\"response_unavailable\"",
        "\"store_unavailable\"",
        "\"incomplete_body\"",
        "\"handler_failed\"",
        "StatusCode::CONFLICT",
        "StatusCode::UNPROCESSABLE_ENTITY",
        "problem+json",
        "fn decide",
    ];
    for part in [
        "retrysafe-actix/src",
        "retrysafe-axum/src",
        "retrysafe-cli/src/proxy",
        "retrysafe-cli/src/proxy.rs",
        "retrysafe-tonic/src",
    ] {
        for file in sources(&crates().join(part)) {
            let source = fs::read_to_string(&file).unwrap();
            let code = source.split("#[cfg(test)]").next().unwrap();
            for (number, line) in code.lines().enumerate() {
                if line.trim_start().starts_with("//") {
                    continue;
                }
                for ours in OURS {
                    let place = format!("{}:{}", file.display(), number + 1);
                    assert!(!line.contains(ours), "{place}: {ours} belongs to core");
                }
            }
        }
    }
}

fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--locked"])
        .current_dir(crates())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// What a package needs, outside of its tests.
fn dependencies(package: &Value) -> Vec<&str> {
    let all = package["dependencies"].as_array().unwrap().iter();
    all.filter(|it| it["kind"] != "dev").map(|it| text(&it["name"])).collect()
}

fn sources(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|entry| sources(&entry))
        .filter(|it| it.extension().is_some_and(|it| it == "rs"))
        .collect()
}

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}
