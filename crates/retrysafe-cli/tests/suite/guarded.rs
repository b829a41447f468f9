//! The proxy with the layer on: how an attempt ends when the service fails, and what it is told.

use std::{fs, thread};

use crate::support::{
    Connection, OK, Running, Service, exchange, get, header, nowhere, post, retrysafe, status,
};

const KEY: &str = "Idempotency-Key: k-1\r\n";

fn send(proxy: &Running) -> thread::JoinHandle<String> {
    let address = proxy.address;
    thread::spawn(move || exchange(address, &post("/orders", KEY, "{}")))
}

/// Sends until the answer is not that an attempt is in progress.
fn send_until_settled(proxy: &Running) -> thread::JoinHandle<String> {
    let address = proxy.address;
    thread::spawn(move || {
        loop {
            let response = exchange(address, &post("/orders", KEY, "{}"));
            if !response.contains("\"code\":\"in_progress\"") {
                return response;
            }
        }
    })
}

#[test]
fn e3_the_service_is_told_of_the_attempt() {
    let service = Service::listen();
    let proxy = Running::proxy(service.address, &[]);
    let address = proxy.address;
    let client = thread::spawn(move || {
        // What the layer says can be neither pretended nor, as a hop-by-hop header, taken out.
        let spoofed = format!(
            "{KEY}Idempotency-Attempt: 9\r\nIdempotency-Previous: vanished\r\nConnection: Idempotency-Attempt\r\n"
        );
        exchange(address, &post("/orders", &spoofed, "{}"))
    });
    let mut connection = service.accept();
    let request = connection.request().unwrap();
    assert_eq!(header(&request, "idempotency-key").unwrap(), "k-1");
    assert_eq!(header(&request, "idempotency-attempt").unwrap(), "1");
    assert!(header(&request, "idempotency-fence").is_some());
    assert_eq!(header(&request, "idempotency-previous"), None);
    connection.send("HTTP/1.1 201 Created\r\nIdempotency-Outcome: store; retention=9999\r\nIdempotent-Replayed: true\r\nContent-Length: 0\r\n\r\n");
    let first = client.join().unwrap();
    assert_eq!(status(&first), 201);
    assert_eq!(header(&first, "idempotency-outcome"), None);
    assert_eq!(header(&first, "idempotent-replayed"), None);
    let retry = send(&proxy).join().unwrap();
    assert_eq!(status(&retry), 201);
    assert_eq!(header(&retry, "idempotent-replayed").unwrap(), "true");
    assert!(!service.was_connected_to());
}

#[test]
fn k5_all_unsafe_covers_put_and_delete() {
    // As PROTOCOL writes it and as flags are written: it was once taken for a method of that name.
    for all in ["all_unsafe", "all-unsafe"] {
        let proxy = Running::proxy(Service::listen().always(OK), &["--methods", all]);
        for method in ["PUT", "DELETE"] {
            let request = post("/orders/7", &format!("Idempotency-Key: {method}\r\n"), "{}");
            let request = request.replacen("POST", method, 1);
            assert_eq!(header(&exchange(proxy.address, &request), "idempotent-replayed"), None);
            let retry = exchange(proxy.address, &request);
            assert_eq!(header(&retry, "idempotent-replayed").unwrap(), "true", "{all}: {method}");
        }
    }
}

#[test]
fn the_type_of_a_problem_begins_as_one_says() {
    for base in ["urn:acme:problem:", "https://acme.example/problems/"] {
        let proxy = Running::proxy(nowhere(), &["--require-key", "--problem-base", base]);
        let refused = exchange(proxy.address, &post("/orders", "", "{}"));
        assert!(refused.contains(&format!("\"type\":\"{base}missing_key\"")), "{refused}");
    }
}

#[test]
fn a_service_that_could_not_be_connected_to_frees_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let store = format!("sqlite:{}", folder.path().join("records.db").display());
    let down = Running::proxy(nowhere(), &["--store", &store]);
    let refused = send(&down).join().unwrap();
    assert_eq!(status(&refused), 502);
    assert!(refused.contains("\"code\":\"upstream_unreachable\""), "{refused}");
    // At once, and nothing has vanished: provably nothing was done.
    let service = Service::listen();
    let up = Running::proxy(service.address, &["--store", &store]);
    let retry = send(&up);
    let mut connection = service.accept();
    let request = connection.request().unwrap();
    assert_eq!(header(&request, "idempotency-attempt").unwrap(), "2");
    assert_eq!(header(&request, "idempotency-previous"), None);
    connection.send(OK);
    assert_eq!(status(&retry.join().unwrap()), 200);
}

/// An attempt fails this way; its lease runs out by itself, and the next one is told.
#[track_caller]
fn is_ambiguous(flags: &[&str], fail: impl FnOnce(Connection), expected: &str) {
    let service = Service::listen();
    let proxy = Running::proxy(service.address, &[&["--lease", "1s"], flags].concat());
    let first = send(&proxy);
    let mut connection = service.accept();
    connection.request().unwrap();
    fail(connection);
    let failed = first.join().unwrap();
    assert!(failed.contains(&format!("\"code\":\"{expected}\"")), "{failed}");
    let at_once = send(&proxy).join().unwrap();
    assert!(at_once.contains("\"code\":\"in_progress\""), "the work may go on: {at_once}");
    assert!(!service.was_connected_to());
    let later = send_until_settled(&proxy);
    let mut connection = service.accept();
    let request = connection.request().unwrap();
    assert_eq!(header(&request, "idempotency-attempt").unwrap(), "2");
    assert_eq!(header(&request, "idempotency-previous").unwrap(), "vanished");
    connection.send(OK);
    assert_eq!(status(&later.join().unwrap()), 200);
}

#[test]
fn a_service_that_breaks_off_leaves_the_outcome_unknown() {
    is_ambiguous(&[], drop, "upstream_failed");
}

#[test]
fn a_service_that_times_out_leaves_the_outcome_unknown() {
    let mut kept = None;
    is_ambiguous(
        &["--upstream-timeout", "100ms"],
        |connection| kept = Some(connection),
        "upstream_timeout",
    );
}

#[test]
fn a_response_that_breaks_off_leaves_the_outcome_unknown() {
    is_ambiguous(
        &[],
        |mut connection| connection.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"),
        "upstream_failed",
    );
}

#[test]
fn a_route_overrides_the_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::listen();
    let text = format!(
        "upstream = \"http://{}\"\nlisten = \"127.0.0.1:0\"\nstore = \"memory:\"\n\n[[route]]\npath = \"/open/*\"\nprotect = false\n\n[[route]]\npath = \"/strict/{{id}}\"\nmethods = [\"PUT\"]\nrequire_key = true\n",
        service.address
    );
    let path = folder.path().join("retrysafe.toml");
    fs::write(&path, text).unwrap();
    let proxy =
        Running::start(retrysafe().args(["proxy", "--config", &path.display().to_string()]));
    let address = proxy.address;
    service.always(OK);
    let put = |path: &str| {
        exchange(address, &format!("PUT {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"))
    };
    // Not protected: the key is not even read.
    let malformed = "Idempotency-Key: \"\r\n";
    assert_eq!(status(&exchange(address, &post("/open/a", malformed, ""))), 200);
    assert_eq!(status(&exchange(address, &post("/orders", malformed, ""))), 400);
    assert!(put("/strict/7").contains("\"code\":\"missing_key\""));
    assert_eq!(status(&put("/strict/7/more")), 200);
    assert_eq!(status(&get(address, "/strict/7")), 200);
    assert_eq!(status(&exchange(address, &post("/strict/7", "", ""))), 200);
}

#[test]
fn metrics_count_what_became_of_requests() {
    let service = Service::listen();
    let proxy = Running::proxy(service.address, &["--admin", "127.0.0.1:0"]);
    service.always(OK);
    // What an alarm watches is there before anything happens.
    let quiet = get(proxy.admin.unwrap(), "/metrics");
    for name in ["lost_leases_total", "unrecorded_total", "panics_total", "in_flight", "waiters"] {
        assert!(quiet.contains(&format!("\nretrysafe_{name} 0\n")), "{name} is not in\n{quiet}");
    }
    send(&proxy).join().unwrap();
    send(&proxy).join().unwrap();
    let metrics = get(proxy.admin.unwrap(), "/metrics");
    for line in [
        "retrysafe_requests_total{outcome=\"executed\",route=\"default\"} 1",
        "retrysafe_requests_total{outcome=\"replayed\",route=\"default\"} 1",
        "retrysafe_store_seconds_bucket{store=\"memory\",verb=\"begin\"",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

/// A gRPC client looks for the status behind the message, wherever the operator looked for it.
#[test]
fn d3_r6_an_answer_that_is_resolved_has_its_trailers() {
    let folder = tempfile::tempdir().unwrap();
    let store = format!("sqlite:{}", folder.path().join("records.db").display());
    let service = Service::listen();
    let flags = ["--store", &store, "--on-unknown-outcome", "refuse"];
    let proxy = Running::proxy(service.address, &flags);
    let failed = send(&proxy);
    let mut connection = service.accept();
    connection.request().unwrap();
    connection.send("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(status(&failed.join().unwrap()), 500);

    let keys = |arguments: &[&str]| {
        retrysafe().args(["keys", "--store", &store, "--json"]).args(arguments).output().unwrap()
    };
    let read = |arguments: &[&str]| -> serde_json::Value {
        serde_json::from_slice(&keys(arguments).stdout).unwrap()
    };
    let unknown = read(&["list", "--state", "unknown"]);
    let id = unknown["operation"].as_str().unwrap();
    let message = folder.path().join("message");
    fs::write(&message, b"\0\0\0\0\x02\x08\x01").unwrap();
    let body = format!("@{}", message.display());
    let grpc = "content-type: application/grpc";
    let happened =
        ["resolve", id, "--happened", "--status", "200", "--header", grpc, "--body", &body];
    // Every retry would get it, and none could read it.
    let endless = keys(&happened);
    let error = String::from_utf8(endless.stderr).unwrap();
    assert!(endless.status.code() == Some(2) && error.contains("grpc-status: 0"), "{error}");
    let trailers = ["--trailer", "grpc-status: 0", "--trailer", "Checksum: 1"];
    assert!(keys(&[&happened[..], &trailers].concat()).status.success());

    let mut client = Connection::to(proxy.address);
    client.send(&post("/orders", &format!("{KEY}TE: trailers\r\nConnection: close\r\n"), "{}"));
    let resolved = client.rest();
    assert!(resolved.starts_with("HTTP/1.1 200 "), "{resolved}");
    let end = "7\r\n\0\0\0\0\x02\x08\x01\r\n0\r\ngrpc-status: 0\r\nchecksum: 1\r\n\r\n";
    assert!(resolved.ends_with(end), "{resolved}");
    let shown = read(&["show", id]);
    let trailers = serde_json::json!([["grpc-status", "0"], ["checksum", "1"]]);
    assert_eq!(shown["response"]["trailers"], trailers);
}
