//! What a call allocates beside the bare `reqwest` call. The allocator that counts is for the whole
//! binary, so this test has one of its own.

#![expect(clippy::unwrap_used, reason = "a test says what failed by where it panics")]

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    thread,
};

use retrysafe_client::Client;

/// Answers every request on a thread of its own, whose allocations are not counted.
fn server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut request = [0; 4096];
                // One write of the client is one request: they are small.
                while stream.read(&mut request).is_ok_and(|length| length > 0) {
                    let answer = b"HTTP/1.1 201 Created\r\ncontent-type: application/json\r\n\
                                   content-length: 15\r\n\r\n{\"order\":\"o-1\"}";
                    stream.write_all(answer).unwrap();
                }
            });
        }
    });
    format!("http://{address}/orders")
}

#[test]
fn a_call_that_succeeds_at_once_allocates_little_more() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (bare, ours) = (reqwest::Client::new(), Client::builder().build().unwrap());
    let url = server();
    let bare = || {
        let request = bare.post(&url).header("content-type", "application/json").body("book");
        runtime.block_on(async { request.send().await.unwrap().bytes().await.unwrap() })
    };
    let ours = || {
        let request = ours.post(&url).header("content-type", "application/json").body("book");
        runtime.block_on(async { request.send().await.unwrap().bytes().await.unwrap() })
    };
    let least = |call: &dyn Fn() -> bytes::Bytes| {
        // A connection is made the first time, and now and then a buffer grows.
        let count = |_| {
            let mut answer = bytes::Bytes::new();
            let info = allocation_counter::measure(|| answer = call());
            assert_eq!(answer, "{\"order\":\"o-1\"}");
            info.count_total
        };
        (0..50).map(count).min().unwrap()
    };
    let (bare, ours) = (least(&bare), least(&ours));
    println!("allocations: bare {bare}, ours {ours}");
    // 10 with the features of this crate (`-p retrysafe-client`). What others of the workspace turn on
    // in the libraries below adds one.
    assert!(ours <= bare + 11, "bare {bare}, ours {ours}");
}
