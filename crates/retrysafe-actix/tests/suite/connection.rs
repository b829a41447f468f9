//! Over real connections and several workers, as clients come.

use std::{net::SocketAddr, time::Duration};

use retrysafe_actix::{Idempotency, MemoryStore, OnInFlight, Scope};
use tokio::{io::AsyncWriteExt as _, task::JoinSet};

use crate::{
    server::{Client, Received, Served, head},
    support::idempotency,
};

#[actix_web::test]
async fn first_and_replay_over_one_connection() {
    let served = Served::start(1, idempotency());
    served.payment.go_on.add_permits(1);
    let mut client = served.connect().await;
    let first = client.ask("/pay", b"100").await;
    assert_eq!((first.status, &first.body[..], first.is_replay()), (201, "paid 1", false));
    for _ in 0..2 {
        let retry = client.ask("/pay", b"100").await;
        assert_eq!((retry.status, &retry.body[..], retry.is_replay()), (201, "paid 1", true));
    }
    assert_eq!(served.payment.runs.so_far(), 1);
    drop(client);
    served.handle.stop(true).await;
}

#[actix_web::test]
async fn disconnect_frees() {
    let mut served = Served::start(2, idempotency());
    let mut client = served.connect().await;
    client.send("/pay", b"100").await;
    served.started.recv().await.unwrap();
    drop(client);
    // The server has noticed, and the request's future is gone.
    served.dropped.recv().await.unwrap();

    let early = served.connect().await.ask("/pay", b"100").await;
    assert_eq!(early.status, 409);
    assert!(early.head.contains("\r\nretry-after: 1\r\n"), "{}", early.head);
    assert!(early.body.contains("in_progress"), "{}", early.body);

    served.payment.go_on.add_permits(1);
    served.idempotency.engine().drain().await;
    let retry = served.connect().await.ask("/pay", b"100").await;
    assert_eq!((retry.status, &retry.body[..], retry.is_replay()), (201, "paid 1", true));
    assert_eq!(served.payment.runs.so_far(), 1);
    served.handle.stop(true).await;
}

/// As the crate's page says to shut down.
async fn drains(mut served: Served<MemoryStore>) {
    let mut client = served.connect().await;
    client.send("/pay", b"100").await;
    served.started.recv().await.unwrap();
    drop(client);
    served.dropped.recv().await.unwrap();

    served.handle.pause().await;
    assert_eq!(served.idempotency.engine().in_flight(), 1);
    served.payment.go_on.add_permits(1);
    served.idempotency.engine().drain().await;
    assert_eq!(served.idempotency.engine().in_flight(), 0);
    served.handle.stop(true).await;
    served.running.await.unwrap().unwrap();

    let again = Served::start(1, served.idempotency.clone());
    let retry = again.connect().await.ask("/pay", b"100").await;
    assert_eq!((retry.status, &retry.body[..], retry.is_replay()), (201, "paid 1", true));
    again.handle.stop(false).await;
}

#[actix_web::test]
async fn e1_a_drain_waits_for_what_outlives_its_connection() {
    drains(Served::start(2, idempotency())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e1_so_it_does_in_a_runtime_of_tokio() {
    drains(Served::start(2, idempotency())).await;
}

fn bytes(length: usize) -> Vec<u8> {
    (0..=250).cycle().take(length).collect()
}

const MIB: usize = 1024 * 1024;

#[actix_web::test]
async fn f4_an_upload_that_is_longer_than_what_is_read_ahead() {
    let served = Served::start(1, idempotency());
    let mut client = served.connect().await;
    let body = bytes(3 * MIB);
    let first = client.ask("/upload", &body).await;
    assert_eq!((first.status, &first.body[..]), (201, "3145728 bytes, run 1"));
    let retry = client.ask("/upload", &body).await;
    assert_eq!((retry.status, &retry.body, retry.is_replay()), (201, &first.body, true));
    let mut changed = body;
    *changed.last_mut().unwrap() ^= 1;
    let reused = client.ask("/upload", &changed).await;
    assert!(reused.status == 422 && reused.body.contains("key_reused"), "{reused:?}");
    assert_eq!(served.payment.runs.so_far(), 1);
    drop(client);
    served.handle.stop(true).await;
}

#[actix_web::test]
async fn f4_an_upload_that_breaks_off_is_not_kept() {
    let mut served = Served::start(1, idempotency());
    let body = bytes(2 * MIB);
    let mut client = served.connect().await;
    client.stream.write_all(head("/upload", body.len()).as_bytes()).await.unwrap();
    client.stream.write_all(&body[..MIB]).await.unwrap();
    drop(client);
    served.dropped.recv().await.unwrap();
    served.idempotency.engine().drain().await;
    // Nothing was kept of it: the whole upload runs.
    let retry = served.connect().await.ask("/upload", &body).await;
    assert_eq!((retry.status, &retry.body[..]), (201, "2097152 bytes, run 1"));
    assert!(!retry.is_replay());
    served.handle.stop(true).await;
}

#[actix_web::test]
async fn an_answer_that_did_not_wait_for_the_body_arrives_whole() {
    let mut served = Served::start(1, idempotency());
    served.payment.go_on.add_permits(1);
    assert_eq!(served.connect().await.ask("/pay", b"100").await.status, 201);
    served.started.recv().await.unwrap();
    // The heads differ, so the answer is known before the body is read.
    let body = bytes(4 * MIB);
    let Client { stream, .. } = served.connect().await;
    let (reading, mut writing) = stream.into_split();
    let sending = tokio::spawn(async move {
        // The server may hang up on it before it is all there.
        let _ = writing.write_all(head("/upload", body.len()).as_bytes()).await;
        let _ = writing.write_all(&body).await;
        writing
    });
    let answer = first_line(reading).await;
    assert!(answer.starts_with("HTTP/1.1 422 "), "{answer}");
    drop(sending.await.unwrap());
    let retry = served.connect().await.ask("/pay", b"100").await;
    assert!(retry.is_replay());
    assert_eq!(served.payment.runs.so_far(), 1);
    served.handle.stop(true).await;
}

async fn first_line(mut reading: tokio::net::tcp::OwnedReadHalf) -> String {
    use tokio::io::AsyncReadExt as _;

    let mut received = Vec::new();
    while !received.ends_with(b"\r\n") {
        received.push(reading.read_u8().await.unwrap());
    }
    String::from_utf8(received).unwrap()
}

/// Fifty clients with a connection each.
async fn fifty(address: SocketAddr) -> Vec<Received> {
    let mut clients = JoinSet::new();
    for _ in 0..50 {
        clients.spawn(async move { Client::connect(address).await.ask("/pay", b"100").await });
    }
    clients.join_all().await
}

#[actix_web::test]
async fn check_then_set() {
    let served = Served::start(4, idempotency());
    served.payment.go_on.add_permits(50);
    let answers = fifty(served.address).await;
    let first = answers.iter().filter(|it| it.status == 201 && !it.is_replay()).count();
    assert_eq!(first, 1);
    for answer in answers {
        match answer.status {
            201 => assert_eq!(answer.body, "paid 1"),
            _ => assert!(answer.status == 409 && answer.body.contains("in_progress")),
        }
    }
    assert_eq!(served.payment.runs.so_far(), 1);
    served.handle.stop(true).await;
}

#[actix_web::test]
async fn d2_duplicates_on_all_workers_wait_for_the_first() {
    let waiting = Idempotency::builder(MemoryStore::new(), Scope::shared())
        .on_in_flight(OnInFlight::wait(Duration::from_secs(60)))
        .build()
        .unwrap();
    let mut served = Served::start(4, waiting);
    let payment = served.payment.clone();
    let go_on = async {
        served.started.recv().await.unwrap();
        payment.go_on.add_permits(1);
    };
    let (answers, ()) = tokio::join!(fifty(served.address), go_on);
    assert_eq!(answers.iter().filter(|it| !it.is_replay()).count(), 1);
    for answer in answers {
        assert_eq!((answer.status, &answer.body[..]), (201, "paid 1"));
    }
    assert_eq!(served.payment.runs.so_far(), 1);
    served.handle.stop(true).await;
}
