//! S3: what a client sends is in no log, however much is logged, and in no metric.

use crate::support::{Running, Service, ends, exchange, get, post, retrysafe, status};

#[test]
fn s3_keys_scopes_and_bodies_reach_neither_logs_nor_metrics() {
    let folder = tempfile::tempdir().unwrap();
    let store = format!("sqlite:{}", folder.path().join("records.db").display());
    let service = Service::listen().always(
        "HTTP/1.1 201 Created\r\nX-Answer: secret-header\r\nContent-Length: 13\r\n\r\nsecret-answer",
    );
    let mut proxy = Running::start(retrysafe().env("RUST_LOG", "trace").args([
        "proxy",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--upstream",
        &format!("http://{service}"),
        "--store",
        &store,
    ]));
    let log = proxy.read_log();
    let send = |key: &str, body: &str| {
        let headers =
            format!("Idempotency-Key: {key}\r\nAuthorization: Bearer secret-credential\r\n");
        status(&exchange(proxy.address, &post("/orders", &headers, body)))
    };
    assert_eq!(send("secret-key", "secret-body"), 201);
    assert_eq!(send("secret-key", "secret-body"), 201);
    assert_eq!(send("secret-key", "another secret-body"), 422);
    assert_eq!(send("\"secret-key", "secret-body"), 400);
    assert_eq!(send("secret-long", &"secret-body".repeat(10_000)), 201);
    let metrics = get(proxy.admin.unwrap(), "/metrics");
    assert!(metrics.contains("retrysafe_requests_total"));
    assert!(!metrics.contains("secret-"), "{metrics}");
    proxy.signal("TERM");
    assert_eq!(proxy.ended_silently().code(), Some(0));
    let log = log.join().unwrap();
    assert!(log.contains("TRACE") && log.contains("operation=idem_"), "{log}");
    let told: Vec<_> = log.lines().filter(|line| line.contains("secret-")).collect();
    assert_eq!(told, [""; 0]);
    let (code, error) =
        ends(retrysafe().env("RUST_LOG", "trace").args(["keys", "list", "--store", &store]));
    assert_eq!(code, 0, "{error}");
    assert!(!error.contains("secret-"), "{error}");
}
