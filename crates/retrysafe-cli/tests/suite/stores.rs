//! Proxies on one store that is a server: Redis, PostgreSQL, MariaDB, NATS. Several on one store run
//! one; one that dies or falls asleep is followed by another; and what a store that goes away does.

use std::{
    hash::{BuildHasher as _, RandomState},
    net::SocketAddr,
    sync::LazyLock,
    thread,
};

use crate::support::{
    OK, Running, Service, ends, exchange, get, header, nowhere, post, retrysafe, status,
};
use retrysafe_testkit::servers::{MariadbServer, NatsServer, PostgresServer, RedisServer};
use serde_json::Value;
use tokio::runtime::Runtime;

/// The servers' own; the tests themselves block.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

const ADMIN: [&str; 2] = ["--admin", "127.0.0.1:0"];

/// A store on a busy machine is waited for where its absence is not what is tested. Its URL says so
/// of each request, and this of each call.
const PATIENT: [&str; 2] = ["--store-deadline", "30s"];

/// Every test for one engine: how a store of one's own on the shared server is called, and which
/// server may be killed.
macro_rules! on {
    ($engine:ident, $shared:expr, $server:ty, $own:expr) => {
        mod $engine {
            use super::*;

            fn store() -> String {
                RUNTIME.block_on($shared)
            }

            #[test]
            fn two_proxies_on_one_store_run_one() {
                super::two_proxies_on_one_store_run_one(&store());
            }

            #[test]
            fn crash_wedges() {
                super::crash_wedges(&store());
            }

            #[test]
            fn unfenced_complete() {
                super::unfenced_complete(&store());
            }

            #[test]
            fn an_operator_looks_and_decides() {
                super::an_operator_looks_and_decides(&store());
            }

            #[test]
            fn d4_a_store_that_goes_away_and_comes_back() {
                let mut server = RUNTIME.block_on(<$server>::start());
                let url: String = ($own)(server.url());
                // Not there at the start: one line, and exit code 1.
                RUNTIME.block_on(server.kill());
                is_unreachable_at_the_start(&url, server.addr());
                RUNTIME.block_on(server.restart());

                let service = Service::listen();
                let proxy = Running::proxy(
                    service.address,
                    &[&["--store", &url][..], &ADMIN, &SHORT].concat(),
                );
                let admin = proxy.admin.unwrap();
                while status(&get(admin, "/readyz")) != 200 {}
                RUNTIME.block_on(server.kill());
                is_refused_while_it_is_away(&proxy, &service);
                RUNTIME.block_on(server.restart());
                is_served_again(&proxy, service);
            }
        }
    };
}

on!(
    redis,
    async { format!("{}?timeout=30s&prefix={}:", RedisServer::shared().await.url(), fresh()) },
    RedisServer,
    |url| url
);
on!(
    postgres,
    // Each connection costs a password's digest, which takes its time where nothing is optimised.
    async {
        PostgresServer::shared().await.fresh_database().await + "?max-connections=4&timeout=30s"
    },
    PostgresServer,
    |url| url
);
on!(
    mysql,
    async { MariadbServer::shared().await.fresh_database().await + "?timeout=30s" },
    MariadbServer,
    |url| url
);
on!(
    nats,
    async { format!("{}?timeout=30s&stream={}", NatsServer::shared().await.url(), fresh()) },
    NatsServer,
    |url| url
);

/// The demo's lease: short enough to see it end.
const SHORT: [&str; 2] = ["--lease", "2s"];

/// A name that no other test has.
fn fresh() -> String {
    format!("test_{:016x}", RandomState::new().hash_one(0))
}

fn order(address: SocketAddr, key: &str) -> String {
    exchange(address, &post("/orders", &format!("Idempotency-Key: {key}\r\n"), "{}"))
}

/// Asks until the answer is not that an attempt is in progress.
fn settled(address: SocketAddr, key: &'static str) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        loop {
            let response = order(address, key);
            if !response.contains("\"code\":\"in_progress\"") {
                return response;
            }
        }
    })
}

fn number(message: &str, name: &str) -> u64 {
    header(message, name).unwrap().parse().unwrap()
}

fn created(body: &str) -> String {
    format!("HTTP/1.1 201 Created\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn two_proxies_on_one_store_run_one(store: &str) {
    let service = Service::listen();
    let flags = [&["--store", store, "--on-in-flight", "wait:60s"][..], &PATIENT].concat();
    let proxies =
        [Running::proxy(service.address, &flags), Running::proxy(service.address, &flags)];
    let clients: Vec<_> = (0..50)
        .map(|client| {
            let address = proxies[client % 2].address;
            // A store that is too busy to open connections in time refuses, and nothing runs.
            thread::spawn(move || {
                loop {
                    let response = order(address, "many");
                    if !response.contains("\"code\":\"store_unavailable\"") {
                        return response;
                    }
                }
            })
        })
        .collect();
    let mut connection = service.accept();
    assert_eq!(number(&connection.request().unwrap(), "idempotency-attempt"), 1);
    connection.send(&created("the only one"));
    let mut replayed = 0;
    for client in clients {
        let response = client.join().unwrap();
        assert_eq!(status(&response), 201, "{response}");
        assert!(response.ends_with("the only one"), "{response}");
        replayed += u32::from(header(&response, "idempotent-replayed").is_some());
    }
    assert_eq!(replayed, 49);
    assert!(!service.was_connected_to());
}

/// The lesson: a crash left a key in progress for three days. Here its lease ends.
fn crash_wedges(store: &str) {
    let service = Service::listen();
    // Long enough that a busy machine finds it alive, short enough to see it end.
    let flags = [&["--store", store, "--lease", "5s"][..], &PATIENT].concat();
    let mut owner = Running::proxy(service.address, &flags);
    let other = Running::proxy(service.address, &flags);
    let (of_owner, of_other) = (owner.address, other.address);
    let client = thread::spawn(move || {
        let mut client = crate::support::Connection::to(of_owner);
        client.send(&post("/orders", "Idempotency-Key: killed\r\n", "{}"));
        client.rest()
    });
    let mut payment = service.accept();
    let first = payment.request().unwrap();
    owner.kill(); // SIGKILL, in the middle of the payment
    assert_eq!(client.join().unwrap(), "");
    let at_once = order(of_other, "killed");
    assert!(at_once.contains("\"code\":\"in_progress\""), "the lease goes on: {at_once}");

    let retry = settled(of_other, "killed");
    let mut connection = service.accept();
    let second = connection.request().unwrap();
    assert_eq!(number(&second, "idempotency-attempt"), 2);
    assert_eq!(header(&second, "idempotency-previous").unwrap(), "vanished");
    assert!(number(&second, "idempotency-fence") > number(&first, "idempotency-fence"));
    connection.send(&created("second"));
    assert!(retry.join().unwrap().ends_with("second"));
    let again = order(of_other, "killed");
    assert!(again.ends_with("second") && header(&again, "idempotent-replayed").is_some());
}

/// The lesson: an owner that outlived its lease overwrote its successor's record. Here it has lost.
fn unfenced_complete(store: &str) {
    let service = Service::listen();
    let flags = [&["--store", store][..], &ADMIN, &SHORT, &PATIENT].concat();
    let sleeper = Running::proxy(service.address, &flags);
    let other = Running::proxy(service.address, &flags);
    let address = sleeper.address;
    let late = thread::spawn(move || order(address, "slept"));
    let mut payment = service.accept();
    let first = payment.request().unwrap();
    sleeper.signal("STOP"); // as a machine does that is moved, or swaps

    let retry = settled(other.address, "slept");
    let mut connection = service.accept();
    let second = connection.request().unwrap();
    assert!(number(&second, "idempotency-fence") > number(&first, "idempotency-fence"));
    connection.send(&created("second"));
    assert!(retry.join().unwrap().ends_with("second"));

    // Now the first one hears of its payment, and its completion is too late.
    payment.send(&created("first"));
    sleeper.signal("CONT");
    let late = late.join().unwrap();
    // E5: the loser never answers with its own result. Who heard of its loss by a renewal, and not
    // by the completion, does not know the outcome and says to ask again.
    assert!(late.ends_with("second") || late.contains("\"code\":\"in_progress\""), "{late}");
    let again = order(sleeper.address, "slept");
    assert!(again.ends_with("second") && header(&again, "idempotent-replayed").is_some());
    let metrics = get(sleeper.admin.unwrap(), "/metrics");
    let fenced = "\nretrysafe_requests_total{outcome=\"fenced\",route=\"default\"} 1\n";
    assert!(metrics.contains(fenced), "{metrics}");
    assert!(!metrics.contains("\nretrysafe_lost_leases_total 0\n"), "{metrics}");
    assert!(!service.was_connected_to());
}

fn keys(store: &str, arguments: &[&str]) -> String {
    let output = retrysafe().args(["keys", "--store", store]).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(output.stderr));
    text(output.stdout)
}

fn an_operator_looks_and_decides(store: &str) {
    let service = Service::listen();
    let policy = ["--on-unknown-outcome", "refuse", "--lease", "1s"];
    let flags = [&["--store", store][..], &policy, &PATIENT].concat();
    let proxy = Running::proxy(service.address, &flags);
    let address = proxy.address;

    // One is finished, and one has an outcome that nobody knows.
    let finished = thread::spawn(move || order(address, "finished"));
    let mut connection = service.accept();
    connection.request().unwrap();
    connection.send(&created("done"));
    assert_eq!(status(&finished.join().unwrap()), 201);
    let broken = thread::spawn(move || order(address, "unknown"));
    connection.request().unwrap();
    drop(connection);
    assert_eq!(status(&broken.join().unwrap()), 502);
    let refused = settled(address, "unknown").join().unwrap();
    assert!(refused.contains("\"code\":\"outcome_unknown\""), "{refused}");

    let listed = |state: &str| -> Vec<Value> {
        let lines = keys(store, &["list", "--state", state, "--json"]);
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let name = |entries: &[Value]| entries[0]["operation"].as_str().unwrap().to_owned();
    let (unknown, finished) = (listed("unknown"), listed("finished"));
    assert_eq!((unknown.len(), finished.len()), (1, 1));
    let shown = keys(store, &["show", &name(&finished)]);
    assert!(shown.contains("201") && shown.contains("4 bytes"), "{shown}");

    let forget = ["keys", "forget", &name(&unknown), "--store", store];
    let (code, error) = ends(retrysafe().args(forget));
    assert!(code == 1 && error.contains("nobody knows what attempt 1"), "{error}");
    keys(
        store,
        &["resolve", &name(&unknown), "--happened", "--status", "202", "--body", "by hand"],
    );
    let resolved = order(address, "unknown");
    assert!(status(&resolved) == 202 && resolved.ends_with("by hand"), "{resolved}");
    keys(store, &["forget", &name(&finished)]);
    let again = thread::spawn(move || order(address, "finished"));
    let mut connection = service.accept();
    connection.request().unwrap();
    connection.send(&created("again"));
    assert!(again.join().unwrap().ends_with("again"));

    let missing = ["keys", "show", "idem_0000000000000000", "--store", store];
    let (code, error) = ends(retrysafe().args(missing));
    assert_eq!(code, 1);
    // Behind what the store warns of.
    let error = error.lines().last().unwrap();
    assert!(error.starts_with("error: there is no record idem_0000000000000000"), "{error}");
}

fn is_unreachable_at_the_start(url: &str, server: SocketAddr) {
    for arguments in [
        &["proxy", "--upstream", "http://127.0.0.1:1", "--listen", "127.0.0.1:0"][..],
        &["demo", "--listen", "127.0.0.1:0"],
        &["keys", "list"],
    ] {
        let folder = tempfile::tempdir().unwrap();
        let command = &mut retrysafe();
        let (code, error) =
            ends(command.args(arguments).args(["--store", url]).current_dir(folder.path()));
        assert_eq!(code, 1, "{error}");
        assert!(error.starts_with("error: ") && error.lines().count() == 1, "{error}");
        assert!(error.contains(&server.to_string()), "{error}");
        assert!(!error.contains("retrysafe:retrysafe"), "S3: {error}");
    }
}

fn is_refused_while_it_is_away(proxy: &Running, service: &Service) {
    for _ in 0..3 {
        let refused = order(proxy.address, "away");
        assert_eq!(status(&refused), 503, "{refused}");
        assert!(refused.contains("\"code\":\"store_unavailable\""), "{refused}");
        assert!(header(&refused, "retry-after").is_some(), "{refused}");
    }
    assert_eq!(status(&get(proxy.admin.unwrap(), "/readyz")), 503);
    assert_eq!(status(&get(proxy.admin.unwrap(), "/livez")), 200);
    assert!(!service.was_connected_to());
}

/// By itself: the proxy was not started again.
fn is_served_again(proxy: &Running, service: Service) {
    service.always(OK);
    while status(&get(proxy.admin.unwrap(), "/readyz")) != 200 {}
    // A claim whose answer was lost may have been granted; then it is in progress until it is released.
    let served = loop {
        let answer = order(proxy.address, "away");
        match status(&answer) {
            200 => break answer,
            status => assert!(matches!(status, 409 | 503), "{answer}"),
        }
    };
    assert!(served.ends_with("ok"));
    assert_eq!(header(&order(proxy.address, "away"), "idempotent-replayed").unwrap(), "true");
}

#[test]
fn a_wrong_setting_of_a_store_exits_2() {
    for (store, says) in [
        ("redis://u:secret@127.0.0.1?prefx=a", "`prefx`"),
        ("postgres://u:secret@127.0.0.1/d?tabel=a", "`tabel`"),
        ("mysql://u:secret@127.0.0.1/d?migrate=maybe", "true or false"),
        ("nats://u:secret@127.0.0.1/a", "?stream=NAME"),
        ("retrysafe.db", "`sqlite:retrysafe.db`?"),
    ] {
        let upstream = format!("http://{}", nowhere());
        let (code, error) = ends(retrysafe().args([
            "proxy",
            "--listen",
            "127.0.0.1:0",
            "--upstream",
            &upstream,
            "--store",
            store,
        ]));
        assert_eq!(code, 2, "{error}");
        assert!(error.contains(says) && !error.contains("secret"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}
