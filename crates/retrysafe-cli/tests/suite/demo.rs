//! The demo, which is the whole of it: proxy, layer, store and a service, over real sockets.

use std::{fs, net::SocketAddr, path::Path, thread};

use crate::support::{Connection, Running, ends, exchange, get, header, post, retrysafe, status};

fn demo(folder: &Path, flags: &[&str]) -> Running {
    Running::start(
        retrysafe()
            .args(["demo", "--listen", "127.0.0.1:0", "--store", "sqlite:demo.db"])
            .args(flags)
            .current_dir(folder),
    )
}

fn order(address: SocketAddr, key: &str, amount: u32) -> String {
    let headers = format!("Idempotency-Key: {key}\r\n");
    let body = format!("{{\"item\": \"book\", \"amount\": {amount}}}");
    exchange(address, &post("/orders", &headers, &body))
}

/// Executions, orders, charges.
fn count(address: SocketAddr) -> [u64; 3] {
    let response = get(address, "/orders/count");
    let body = response.split_once("\r\n\r\n").unwrap().1;
    let count: serde_json::Value = serde_json::from_str(body).unwrap();
    ["executions", "orders", "charges"].map(|name| count[name].as_u64().unwrap())
}

/// Asks until the answer is not that the first is in progress.
fn settled(address: SocketAddr, key: &str) -> String {
    loop {
        let response = order(address, key, 1250);
        if !response.contains("\"code\":\"in_progress\"") {
            return response;
        }
        assert_eq!(header(&response, "retry-after").unwrap(), "1");
    }
}

#[test]
fn first_retry_and_changed_body() {
    let folder = tempfile::tempdir().unwrap();
    let demo = demo(folder.path(), &["--payment", "1ms"]);
    let first = order(demo.address, "k-1", 1250);
    assert_eq!(status(&first), 201, "{first}");
    assert!(header(&first, "location").unwrap().starts_with("/orders/ord_"));
    assert_eq!(header(&first, "idempotent-replayed"), None);
    let retry = order(demo.address, "k-1", 1250);
    assert_eq!(status(&retry), 201);
    assert_eq!(header(&retry, "idempotent-replayed").unwrap(), "true");
    assert_eq!(header(&retry, "location"), header(&first, "location"));
    assert_eq!(retry.split_once("\r\n\r\n").unwrap().1, first.split_once("\r\n\r\n").unwrap().1);
    let changed = order(demo.address, "k-1", 9900);
    assert_eq!(status(&changed), 422);
    assert!(changed.contains("\"code\":\"key_reused\""), "{changed}");
    assert_eq!(count(demo.address), [1, 1, 1]);
}

#[test]
fn cross_tenant_replay() {
    // The lesson: keys were not bound to the caller. Neither may what is made of them.
    let folder = tempfile::tempdir().unwrap();
    let demo = demo(folder.path(), &["--payment", "1ms"]);
    for (caller, amount) in [("alice", 1250), ("bob", 9900)] {
        let headers = format!("Idempotency-Key: k-1\r\nAuthorization: Bearer {caller}\r\n");
        let body = format!("{{\"item\": \"book\", \"amount\": {amount}}}");
        assert_eq!(status(&exchange(demo.address, &post("/orders", &headers, &body))), 201);
    }
    assert_eq!(count(demo.address), [2, 2, 2]);
}

#[test]
fn quoted_key_differs() {
    // The lesson: `"k"` and `k` were two keys. Nothing is protected here, so both orders run.
    let folder = tempfile::tempdir().unwrap();
    let demo = demo(folder.path(), &["--payment", "1ms", "--protect=false"]);
    for key in ["k-1", "\"k-1\""] {
        assert_eq!(status(&order(demo.address, key, 1250)), 201);
    }
    assert_eq!(count(demo.address), [2, 2, 1]);
}

#[test]
fn two_demos_do_not_write_into_one_book() {
    let folder = tempfile::tempdir().unwrap();
    let first = demo(folder.path(), &["--payment", "1ms"]);
    let mut second = retrysafe();
    second.args(["demo", "--listen", "127.0.0.1:0", "--store", "sqlite:demo.db"]);
    let (code, error) = ends(second.current_dir(&folder));
    assert_eq!((code, error.lines().count()), (1, 1), "{error}");
    assert!(error.starts_with("error: another demo writes to demo.db.orders.jsonl; "), "{error}");
    assert_eq!(status(&order(first.address, "k-1", 1250)), 201);
    assert_eq!(count(first.address), [1, 1, 1]);
}

#[test]
fn a_file_of_somebody_else_beside_the_store_stays_as_it_is() {
    for notes in ["what I must not forget\n", "{}\nwithout an end"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("demo.db.orders.jsonl");
        fs::write(&path, notes).unwrap();
        let mut demo = retrysafe();
        demo.args(["demo", "--listen", "127.0.0.1:0", "--store", "sqlite:demo.db"]);
        let (code, error) = ends(demo.current_dir(&folder));
        assert_eq!((code, error.lines().count()), (1, 1), "{error}");
        assert!(error.starts_with("error: demo.db.orders.jsonl can't be used: "), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), notes);
    }
}

#[test]
fn fifty_at_once_run_one() {
    let folder = tempfile::tempdir().unwrap();
    let demo = demo(folder.path(), &["--on-in-flight", "wait:20s"]);
    let address = demo.address;
    let clients: Vec<_> =
        (0..50).map(|_| thread::spawn(move || order(address, "many", 1250))).collect();
    for client in clients {
        assert_eq!(status(&client.join().unwrap()), 201);
    }
    assert_eq!(count(address), [1, 1, 1]);
}

#[test]
fn two_proxies_on_one_file_run_one() {
    let folder = tempfile::tempdir().unwrap();
    let store = format!("sqlite:{}", folder.path().join("shared.db").display());
    // The demo is nothing but a service here.
    let service = demo(folder.path(), &["--protect=false"]);
    let flags = ["--store", &store, "--on-in-flight", "wait:20s"];
    let proxies =
        [Running::proxy(service.address, &flags), Running::proxy(service.address, &flags)];
    let clients: Vec<_> = (0..50)
        .map(|number| {
            let address = proxies[number % 2].address;
            thread::spawn(move || order(address, "many", 1250))
        })
        .collect();
    for client in clients {
        assert_eq!(status(&client.join().unwrap()), 201);
    }
    assert_eq!(count(service.address), [1, 1, 1]);
}

#[test]
fn disconnect_frees() {
    // The lesson: the client hung up, the key was freed and the retry ran again. Here it is not.
    let folder = tempfile::tempdir().unwrap();
    let demo = demo(folder.path(), &[]);
    let mut client = Connection::to(demo.address);
    client.send(&post(
        "/orders",
        "Idempotency-Key: hangup\r\n",
        "{\"item\": \"book\", \"amount\": 1250}",
    ));
    while count(demo.address)[0] == 0 {
        thread::yield_now();
    }
    drop(client);
    let retry = settled(demo.address, "hangup");
    assert_eq!(status(&retry), 201);
    assert_eq!(header(&retry, "idempotent-replayed").unwrap(), "true");
    assert_eq!(count(demo.address), [1, 1, 1]);
}

/// Kills a demo in the middle of a payment that has charged already.
fn killed_in_a_payment(folder: &Path) {
    let mut demo = demo(folder, &["--payment", "1s"]);
    assert_eq!(status(&order(demo.address, "before", 1)), 201);
    let mut client = Connection::to(demo.address);
    client.send(&post(
        "/orders",
        "Idempotency-Key: kill\r\n",
        "{\"item\": \"book\", \"amount\": 1250}",
    ));
    while count(demo.address)[2] < 2 {
        thread::yield_now();
    }
    demo.kill();
}

#[test]
fn crash_wedges() {
    // The lesson: a crash left a key in progress for three days. Here its lease ends.
    let folder = tempfile::tempdir().unwrap();
    killed_in_a_payment(folder.path());
    let demo = demo(folder.path(), &["--payment", "1ms"]);
    let before = order(demo.address, "before", 1);
    assert_eq!(header(&before, "idempotent-replayed").unwrap(), "true");
    let again = settled(demo.address, "kill");
    assert_eq!(status(&again), 201);
    assert_eq!(header(&again, "idempotent-replayed"), None);
    // It ran twice, and the processor, which knows the key, charged once.
    assert_eq!(count(demo.address), [3, 2, 2]);
}

#[test]
fn d3_refused_until_an_operator_resolves_it() {
    let folder = tempfile::tempdir().unwrap();
    killed_in_a_payment(folder.path());
    let demo = demo(folder.path(), &["--payment", "1ms", "--on-unknown-outcome", "refuse"]);
    let refused = settled(demo.address, "kill");
    assert_eq!(status(&refused), 409);
    assert!(refused.contains("\"code\":\"outcome_unknown\""), "{refused}");

    let keys = |arguments: &[&str]| {
        let output = retrysafe()
            .args(["keys", "--store", "sqlite:demo.db"])
            .args(arguments)
            .current_dir(folder.path())
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        assert!(output.status.success(), "{}", text(output.stderr));
        (text(output.stdout), text(output.stderr))
    };
    let (unknown, _) = keys(&["list", "--state", "unknown", "--json"]);
    let entry: serde_json::Value = serde_json::from_str(unknown.trim()).unwrap();
    let id = entry["operation"].as_str().unwrap();
    assert_eq!(entry["state"], "unknown");
    let (_, audit) = keys(&[
        "resolve",
        id,
        "--happened",
        "--status",
        "201",
        "--header",
        "Location: /orders/by-hand",
        "--body",
        "{}",
    ]);
    assert!(audit.contains("retrysafe::audit") && audit.contains(id), "{audit}");
    let resolved = order(demo.address, "kill", 1250);
    assert_eq!(status(&resolved), 201);
    assert_eq!(header(&resolved, "location").unwrap(), "/orders/by-hand");
    let (shown, _) = keys(&["show", entry["id"].as_str().unwrap()]);
    assert!(shown.contains("finished") && shown.contains("location: /orders/by-hand"), "{shown}");

    keys(&["forget", id]);
    assert_eq!(status(&order(demo.address, "kill", 1250)), 201);
    assert_eq!(count(demo.address), [3, 2, 2]);
    let (code, error) = ends(
        retrysafe()
            .args(["keys", "show", "idem_0000000000000000", "--store", "sqlite:demo.db"])
            .current_dir(folder.path()),
    );
    assert_eq!(code, 1);
    assert!(error.starts_with("error: there is no record idem_0000000000000000"), "{error}");
}
