//! Bodies: those that can't be sent again, and answers that are read whole or handed on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use retrysafe_client::{ContentKey, Error, ErrorKind, FileJournal, KeySource, Unknown};

use crate::support::{Reply, Server, answer, builder, client, impatient, unknown};

/// A body that reqwest can't send twice.
fn stream() -> reqwest::Body {
    reqwest::Body::wrap(http_body_util::Full::new(Bytes::from("book")).map_err(|it| match it {}))
}

#[tokio::test]
async fn c4_a_body_that_can_not_be_sent_again_is_not_retried() {
    let server = Server::replying(vec![answer(201)]).await;
    let response = client().post(server.url("/")).body(stream()).send().await.unwrap();
    assert_eq!(response.status(), 201);
    let key = server.seen()[0].key().to_owned();
    assert_eq!(key.len(), 36, "it has a key all the same");

    for reply in [answer(500), Reply::Reset, Reply::Truncated] {
        let server = Server::replying(vec![reply, answer(201)]).await;
        let unknown = unknown(client().post(server.url("/")).body(stream()).send().await);
        assert_eq!((unknown.why(), server.asked()), (Unknown::Unrepeatable, 1));
        assert_eq!(unknown.key().as_str(), server.seen()[0].key());
    }
    // Refused is refused.
    let server = Server::replying(vec![answer(429), answer(201)]).await;
    let response = client().post(server.url("/")).body(stream()).send().await.unwrap();
    assert_eq!((response.status().as_u16(), server.asked()), (429, 1));
}

#[tokio::test]
async fn a_stream_has_no_content_key_and_no_place_in_a_journal() {
    let server = Server::replying(vec![answer(201)]).await;
    let folder = tempfile::tempdir().unwrap();
    let journal = FileJournal::open(folder.path().join("journal")).unwrap();
    let content = KeySource::Content(ContentKey::builder().build().unwrap());
    for client in
        [builder().keys(content).build().unwrap(), builder().journal(journal).build().unwrap()]
    {
        let sent = client.post(server.url("/")).body(stream()).send().await;
        let reqwest_middleware::Error::Middleware(error) = sent.unwrap_err() else { panic!() };
        let error: Error = error.downcast().unwrap();
        assert_eq!(error.kind(), ErrorKind::NoKey);
    }
    assert_eq!(server.asked(), 0);
}

#[tokio::test]
async fn an_answer_over_the_limit_comes_whole_and_is_not_read_first() {
    for (limit, length) in [(10, 9), (10, 10), (10, 11), (10, 100_000), (100_000, 70_000)] {
        let text = "x".repeat(length);
        let server = Server::replying(vec![answer(201).saying(text.clone())]).await;
        let mut settings = retrysafe_client::Settings::default();
        settings.max_whole_answer = limit;
        let client = retrysafe_client::Client::builder().settings(settings).build().unwrap();
        let response = client.post(server.url("/a?b")).send().await.unwrap();
        assert_eq!(response.url().as_str(), server.url("/a?b"), "the response is as it was");
        assert_eq!(response.content_length(), Some(length as u64));
        assert_eq!(response.text().await.unwrap(), text, "{limit}, {length}");
    }
}

#[tokio::test]
async fn r5_a_stream_is_handed_on_while_it_is_made() {
    // The server says the first half, and the second only when the client has the first.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heard = Arc::new(tokio::sync::Notify::new());
    let (told, asked) = (heard.clone(), Arc::new(AtomicUsize::new(0)));
    let count = asked.clone();
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            let _ = stream.read(&mut [0; 1024]).await;
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                        transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            told.notified().await;
            stream.write_all(b"6\r\n world\r\n0\r\n\r\n").await.unwrap();
        }
    });
    let mut policy = impatient();
    policy.attempt_timeout = Duration::from_secs(20);
    let client = builder().retries(policy).build().unwrap();
    let mut response = client.post(format!("http://{address}/")).send().await.unwrap();
    assert_eq!(response.chunk().await.unwrap().unwrap(), "hello");
    heard.notify_one();
    assert_eq!(response.chunk().await.unwrap().unwrap(), " world");
    assert_eq!(response.chunk().await.unwrap(), None);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}
