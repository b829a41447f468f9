//! The proxy with the layer off: what passes, how a failing service is answered, how it stops.

use std::{net::TcpStream, thread};

use crate::support::{
    Connection, OK, Running, Service, exchange, get, header, nowhere, post, status,
};

fn open_proxy(service: &Service, flags: &[&str]) -> Running {
    Running::proxy(service.address, &[&["--protect=false"], flags].concat())
}

#[test]
fn a_request_is_passed_on_as_it_came() {
    let service = Service::listen();
    let proxy = open_proxy(&service, &[]);
    let client = thread::spawn(move || {
        let headers = "Idempotency-Key: k-1\r\nIdempotency-Attempt: 9\r\nIdempotent-Replayed: true\r\nConnection: X-Hop\r\nX-Hop: 1\r\n";
        exchange(proxy.address, &post("/a%20b?c=d&&e", headers, "{\"n\": 1}"))
    });
    let mut connection = service.accept();
    let request = connection.request().unwrap();
    assert!(request.starts_with("POST /a%20b?c=d&&e HTTP/1.1\r\n"), "{request}");
    assert_eq!(header(&request, "host").unwrap(), "shop.example");
    assert_eq!(header(&request, "idempotency-key").unwrap(), "k-1");
    assert_eq!(header(&request, "x-forwarded-for").unwrap(), "127.0.0.1");
    assert_eq!(header(&request, "x-forwarded-host").unwrap(), "shop.example");
    assert_eq!(header(&request, "via").unwrap(), "1.1 retrysafe");
    for gone in ["idempotency-attempt", "idempotent-replayed", "x-hop", "connection"] {
        assert_eq!(header(&request, gone), None, "{gone}");
    }
    assert!(request.ends_with("{\"n\": 1}"));
    connection.send(
        "HTTP/1.1 201 Created\r\nLocation: /orders/7\r\nIdempotent-Replayed: true\r\nIdempotency-Status: bypassed\r\nIdempotency-Outcome: release\r\nKeep-Alive: timeout=9\r\nLink: <a>\r\nLink: <b>\r\nContent-Length: 2\r\n\r\nok",
    );
    let response = client.join().unwrap();
    assert_eq!(status(&response), 201);
    assert_eq!(header(&response, "location").unwrap(), "/orders/7");
    assert_eq!(response.to_ascii_lowercase().matches("\nlink: ").count(), 2);
    let ours = ["idempotent-replayed", "idempotency-status", "idempotency-outcome", "keep-alive"];
    for gone in ours {
        assert_eq!(header(&response, gone), None, "{gone}");
    }
    assert!(response.ends_with("\r\n\r\nok"));
}

#[test]
fn bodies_stream_both_ways() {
    let service = Service::listen();
    let proxy = open_proxy(&service, &[]);
    let mut client = Connection::to(proxy.address);
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n");
    let mut connection = service.accept();
    connection.head().unwrap();
    // The first half arrives while the client is still sending.
    assert_eq!(connection.bytes(8), b"3\r\none\r\n");
    connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nearly\r\n");
    client.head().unwrap();
    assert_eq!(client.bytes(10), b"5\r\nearly\r\n");
    client.send("3\r\ntwo\r\n0\r\n\r\n");
    assert_eq!(connection.bytes(13), b"3\r\ntwo\r\n0\r\n\r\n");
    connection.send("0\r\n\r\n");
    assert_eq!(client.bytes(5), b"0\r\n\r\n");
}

#[test]
fn a_service_that_is_down_is_unreachable() {
    let proxy = Running::proxy(nowhere(), &["--protect=false"]);
    let response = get(proxy.address, "/");
    assert_eq!(status(&response), 502);
    assert!(response.contains("\"code\":\"upstream_unreachable\""), "{response}");
    assert_eq!(header(&response, "content-type").unwrap(), "application/problem+json");
}

#[test]
fn a_service_that_breaks_off_may_have_acted() {
    let service = Service::listen();
    let proxy = open_proxy(&service, &[]);
    let client = thread::spawn(move || exchange(proxy.address, &post("/", "", "{}")));
    let mut connection = service.accept();
    connection.request().unwrap();
    drop(connection);
    let response = client.join().unwrap();
    assert_eq!(status(&response), 502);
    assert!(response.contains("\"code\":\"upstream_failed\""), "{response}");
    // It was not sent again by itself.
    assert!(!service.was_connected_to());
}

#[test]
fn a_kept_connection_that_the_service_closes_with_the_request_in_it_is_not_retried() {
    let service = Service::listen();
    let proxy = open_proxy(&service, &[]);
    let address = proxy.address;
    let first = thread::spawn(move || get(address, "/"));
    let mut connection = service.accept();
    connection.request().unwrap();
    connection.send(OK);
    assert_eq!(status(&first.join().unwrap()), 200);
    let second = thread::spawn(move || exchange(address, &post("/", "", "{}")));
    assert!(connection.request().unwrap().starts_with("POST "), "the connection was kept");
    drop(connection);
    assert!(second.join().unwrap().contains("\"code\":\"upstream_failed\""));
    assert!(!service.was_connected_to());
}

#[test]
fn a_service_that_stalls_times_out() {
    let service = Service::listen();
    let proxy = open_proxy(&service, &["--upstream-timeout", "300ms"]);
    let client = thread::spawn(move || get(proxy.address, "/"));
    let mut connection = service.accept();
    connection.request().unwrap();
    let response = client.join().unwrap();
    assert_eq!(status(&response), 504);
    assert!(response.contains("\"code\":\"upstream_timeout\""), "{response}");
}

#[test]
fn a_service_that_lies_about_its_length_breaks_the_response() {
    let service = Service::listen();
    let proxy = open_proxy(&service, &[]);
    let client = thread::spawn(move || {
        let mut client = Connection::to(proxy.address);
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        client.rest()
    });
    let mut connection = service.accept();
    connection.request().unwrap();
    connection.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort");
    drop(connection);
    let response = client.join().unwrap();
    assert_eq!(header(&response, "content-length").unwrap(), "100");
    assert!(response.ends_with("short"), "{response}");
}

#[test]
fn an_upload_that_breaks_off_is_not_finished_for_the_client() {
    let service = Service::listen();
    let proxy = open_proxy(&service, &[]);
    let mut client = Connection::to(proxy.address);
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf");
    let mut connection = service.accept();
    connection.head().unwrap();
    assert_eq!(connection.bytes(4), b"half");
    drop(client);
    assert_eq!(connection.rest(), "");
}

#[test]
fn a_request_names_one_host() {
    let service = Service::listen();
    let proxy = Running::proxy(service.address, &[]);
    for hosts in ["", "Host: shop.example\r\nHost: other.example\r\n"] {
        let request = format!("POST / HTTP/1.1\r\n{hosts}Content-Length: 0\r\n\r\n");
        assert_eq!(status(&exchange(proxy.address, &request)), 400, "{hosts}");
    }
    assert!(!service.was_connected_to());
    // HTTP/1.0 knows no hosts.
    let client = thread::spawn(move || exchange(proxy.address, "GET / HTTP/1.0\r\n\r\n"));
    let mut connection = service.accept();
    connection.request().unwrap();
    connection.send(OK);
    assert_eq!(status(&client.join().unwrap()), 200);
}

/// It would be passed on without the coding, as what it is not.
#[test]
fn a_coding_of_a_body_that_is_not_undone_is_refused() {
    let service = Service::listen();
    let proxy = Running::proxy(service.address, &[]);
    let request = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n";
    assert_eq!(status(&exchange(proxy.address, request)), 501);
    assert!(!service.was_connected_to());
}

/// Whoever took the length for true would read the rest as the next response.
#[test]
fn a_length_beside_chunks_is_not_passed_on() {
    let service = Service::listen();
    let proxy = Running::proxy(service.address, &[]);
    let address = proxy.address;
    for key in ["", "Idempotency-Key: k-1\r\n"] {
        let client = thread::spawn(move || exchange(address, &post("/orders", key, "{}")));
        let mut connection = service.accept();
        connection.request().unwrap();
        connection.send("HTTP/1.1 201 Created\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n\r\n");
        let answer = client.join().unwrap();
        assert_eq!(status(&answer), 201);
        assert_ne!(header(&answer, "content-length").as_deref(), Some("2"), "{answer}");
        assert!(answer.contains("whole"), "{answer}");
    }
}

#[test]
fn a_get_keeps_a_body_of_unknown_length() {
    let service = Service::listen();
    let proxy = Running::proxy(service.address, &[]);
    let mut client = Connection::to(proxy.address);
    client.send("GET /_search HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nquery\r\n0\r\n\r\n");
    let mut connection = service.accept();
    let head = connection.head().unwrap();
    assert_eq!(header(&head, "transfer-encoding").as_deref(), Some("chunked"), "{head}");
    assert_eq!(connection.bytes(15), b"5\r\nquery\r\n0\r\n\r\n");
    connection.send(OK);
    assert_eq!(status(&client.head().unwrap()), 200);
}

#[test]
fn connect_is_refused() {
    let service = Service::listen();
    let proxy = open_proxy(&service, &[]);
    let response =
        exchange(proxy.address, "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n");
    assert_eq!(status(&response), 405);
    assert!(header(&response, "allow").is_some());
}

#[test]
fn k7_a_websocket_is_tunnelled() {
    let service = Service::listen();
    let proxy = open_proxy(&service, &[]);
    let mut client = Connection::to(proxy.address);
    client.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    let mut connection = service.accept();
    let request = connection.request().unwrap();
    assert_eq!(header(&request, "upgrade").unwrap(), "websocket");
    connection.send(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    );
    let response = client.head().unwrap();
    assert_eq!(status(&response), 101);
    assert_eq!(header(&response, "upgrade").unwrap(), "websocket");
    client.send("ping");
    assert_eq!(connection.bytes(4), b"ping");
    connection.send("pong");
    assert_eq!(client.bytes(4), b"pong");
    drop(connection);
    assert_eq!(client.rest(), "");
}

#[test]
fn k7_an_upgrade_to_http_2_is_dropped() {
    let service = Service::listen();
    let proxy = open_proxy(&service, &[]);
    let client = thread::spawn(move || {
        let headers = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n";
        exchange(proxy.address, &post("/", headers, "{}"))
    });
    let mut connection = service.accept();
    let request = connection.request().unwrap();
    for gone in ["upgrade", "http2-settings", "connection"] {
        assert_eq!(header(&request, gone), None, "{gone}");
    }
    connection.send(OK);
    assert_eq!(status(&client.join().unwrap()), 200);
}

#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    let mut proxy = Running::proxy(nowhere(), &[]);
    proxy.hang_up_the_log();
    for _ in 0..2 {
        // Each is logged as a warning.
        let answer = exchange(proxy.address, &post("/orders", "Idempotency-Key: k-1\r\n", "{}"));
        assert_eq!(status(&answer), 502, "{answer}");
    }
    proxy.signal("TERM");
    assert_eq!(proxy.ended_silently().code(), Some(0));
}

#[test]
fn sigterm_finishes_what_runs_and_exits_0() {
    let service = Service::listen();
    let mut proxy = open_proxy(&service, &[]);
    let address = proxy.address;
    let client = thread::spawn(move || get(address, "/"));
    let mut connection = service.accept();
    connection.request().unwrap();
    proxy.signal("TERM");
    proxy.logged("stopping");
    while TcpStream::connect(address).is_ok() {
        thread::yield_now();
    }
    connection.send(OK);
    assert_eq!(status(&client.join().unwrap()), 200);
    let (ended, log) = proxy.ended();
    assert_eq!(ended.code(), Some(0), "{log}");
    assert!(log.contains("nothing was left running"), "{log}");
}

#[test]
fn r4_a_limit_that_the_store_does_not_reach_is_told() {
    let mut proxy = Running::proxy(nowhere(), &["--max-kept-body", "65MiB"]);
    proxy.logged("a record of this store holds 67108864");
}

#[test]
fn a_drain_that_is_too_short_says_what_was_left() {
    let service = Service::listen();
    let proxy = open_proxy(&service, &["--drain", "200ms"]);
    let address = proxy.address;
    let client = thread::spawn(move || {
        let mut client = Connection::to(address);
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        client.rest()
    });
    let mut connection = service.accept();
    connection.request().unwrap();
    proxy.signal("INT");
    let (ended, log) = proxy.ended();
    assert_eq!(ended.code(), Some(0), "{log}");
    assert!(log.contains("requests=1"), "{log}");
    assert_eq!(client.join().unwrap(), "");
}

#[test]
fn a_second_signal_exits_at_once() {
    let service = Service::listen();
    let mut proxy = open_proxy(&service, &["--drain", "1h"]);
    let address = proxy.address;
    let client = thread::spawn(move || {
        let mut client = Connection::to(address);
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        client.rest()
    });
    let mut connection = service.accept();
    connection.request().unwrap();
    proxy.signal("TERM");
    proxy.logged("stopping");
    proxy.signal("TERM");
    let (ended, log) = proxy.ended();
    assert_eq!(ended.code(), Some(1), "{log}");
    client.join().unwrap();
}

#[test]
fn operators_are_answered_on_an_address_of_their_own() {
    let service = Service::listen();
    let proxy = open_proxy(&service, &["--admin", "127.0.0.1:0"]);
    let admin = proxy.admin.unwrap();
    assert_eq!(status(&get(admin, "/livez")), 200);
    assert_eq!(status(&get(admin, "/readyz")), 200);
    let metrics = get(admin, "/metrics");
    assert_eq!(status(&metrics), 200);
    assert!(header(&metrics, "content-type").unwrap().starts_with("text/plain"));
    assert_eq!(status(&get(admin, "/other")), 404);
    assert_eq!(status(&exchange(admin, &post("/livez", "", ""))), 405);
    assert!(!service.was_connected_to());
}
