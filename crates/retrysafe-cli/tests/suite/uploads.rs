//! F4 through the proxy: a body that is longer than what is read ahead is never held in memory, and
//! a retry is told from another upload to the last byte.

use std::{net::SocketAddr, thread};

use crate::support::{Connection, OK, Running, Service, header, status};

const MIB: usize = 1024 * 1024;

/// Sends `length` bytes and then `end`, and answers with the response.
fn upload(address: SocketAddr, length: usize, end: &str) -> String {
    let mut client = Connection::to(address);
    client.send(&head(length + end.len()));
    let block = vec![b'a'; MIB];
    let mut left = length;
    while left > 0 {
        let piece = left.min(block.len());
        if client.send_bytes(&block[..piece]).is_err() {
            break; // Answered before the end.
        }
        left -= piece;
    }
    let _ = client.send_bytes(end.as_bytes());
    client.request().unwrap()
}

fn head(length: usize) -> String {
    format!(
        "POST /files HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k-1\r\nContent-Length: {length}\r\n\r\n"
    )
}

#[cfg(target_os = "linux")]
fn most_memory(proxy: &Running) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

#[test]
#[cfg(target_os = "linux")]
fn p12_a_long_upload_takes_constant_memory_and_its_retry_is_replayed() {
    let service = Service::listen().always_to_long_bodies(OK);
    let proxy = Running::proxy(service, &[]);
    let before = most_memory(&proxy);
    let first = upload(proxy.address, 256 * MIB, "z");
    assert_eq!(status(&first), 200);
    let retry = upload(proxy.address, 256 * MIB, "z");
    assert_eq!(header(&retry, "idempotent-replayed").unwrap(), "true");
    let grew = most_memory(&proxy) - before;
    assert!(grew < 16 * MIB, "memory grew by {grew} bytes");
}

#[test]
fn f4_an_upload_is_compared_to_its_last_byte() {
    let service = Service::listen().always_to_long_bodies(OK);
    let proxy = Running::proxy(service, &[]);
    let send = |end| status(&upload(proxy.address, MIB, end));
    assert_eq!(send("xyz"), 200);
    assert_eq!(send("xyz"), 200);
    assert_eq!(send("xya"), 422, "another last byte");
    assert_eq!(send("xy"), 422, "shorter");
    assert_eq!(send("xyzz"), 422, "the same bytes, and more");
}

#[test]
fn f4_a_duplicate_of_an_upload_in_flight_is_answered_at_once() {
    let service = Service::listen();
    let proxy = Running::proxy(service.address, &["--on-in-flight", "wait:1h"]);
    let address = proxy.address;
    let first = thread::spawn(move || upload(address, 4 * MIB, ""));
    let mut connection = service.accept();
    connection.head().unwrap();
    // It announces a long body and sends one byte more than what is read ahead.
    let mut duplicate = Connection::to(address);
    duplicate.send(&head(4 * MIB));
    duplicate.send_bytes(&[b'a'; 64 * 1024 + 1]).unwrap();
    let answer = duplicate.request().unwrap();
    assert!(answer.contains("\"code\":\"in_progress\""), "{answer}");
    assert_eq!(connection.skip(4 * MIB as u64), 4 * MIB as u64);
    connection.send(OK);
    assert_eq!(status(&first.join().unwrap()), 200);
}
