//! What takes more than one request at a time.

use std::{net::SocketAddr, pin::Pin, time::Duration};

use http::Method;
use http_body_util::BodyExt as _;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{Answer, Case, Profile, Sent, Service, service::PATIENCE};

/// How such a case comes out.
pub(super) type Race = fn(Service, SocketAddr) -> Pin<Box<dyn Future<Output = ()>>>;

pub(super) fn races() -> [Case; 7] {
    [
        Case::race("expired_answers_409", Profile::Brief, |service, address| {
            Box::pin(expired_answers_409(service, address))
        }),
        Case::race("reader_guard_across_sleep", Profile::Waiting, |service, address| {
            Box::pin(others_go_on("reader_guard_across_sleep", 1, service, address))
        }),
        Case::race("waiters_eat_pool", Profile::Waiting, |service, address| {
            Box::pin(others_go_on("waiters_eat_pool", AT_ONCE, service, address))
        }),
        Case::race("check_then_set", Profile::Standard, |service, address| {
            Box::pin(check_then_set(service, address))
        }),
        Case::race("d2_fifty_that_wait", Profile::Waiting, |service, address| {
            Box::pin(fifty_that_wait(service, address))
        }),
        Case::race("disconnect_frees", Profile::Waiting, |service, address| {
            Box::pin(disconnect_frees(service, address))
        }),
        Case::race("r5_events", Profile::Standard, |service, address| {
            Box::pin(events(service, address))
        }),
    ]
}

const AT_ONCE: usize = 50;

fn order() -> Sent {
    Sent::new(Method::POST, "").key(b"$").answered("gate")
}

fn send_all(case: &'static str, address: SocketAddr) -> JoinSet<Answer> {
    let mut all = JoinSet::new();
    for _ in 0..AT_ONCE {
        all.spawn(async move { order().send(case, address).await });
    }
    all
}

/// While one runs, all others learn that it does.
async fn check_then_set(service: Service, address: SocketAddr) {
    let case = "check_then_set";
    let mut all = send_all(case, address);
    for _ in 1..AT_ONCE {
        let refused = all.join_next().await.expect("one is left").expect("no panic");
        assert_eq!(refused.status, 409, "{refused:?}");
        assert_eq!(refused.code().as_deref(), Some("in_progress"));
        assert_eq!(refused.headers["retry-after"], "1");
    }
    service.open("/check_then_set");
    let done = all.join_next().await.expect("the last one").expect("no panic");
    assert_eq!((done.status.as_u16(), &done.body[..]), (201, &b"order 1"[..]));
    assert!(order().send(case, address).await.is_replay());
    assert_eq!(service.runs(case), 1);
}

/// With `wait` all get the same answer; one of them did the work.
async fn fifty_that_wait(service: Service, address: SocketAddr) {
    let case = "d2_fifty_that_wait";
    let all = send_all(case, address);
    service.ran("/d2_fifty_that_wait").await;
    service.open("/d2_fifty_that_wait");
    let answers = all.join_all().await;
    for answer in &answers {
        assert_eq!((answer.status.as_u16(), &answer.body[..]), (201, &b"order 1"[..]));
    }
    assert_eq!(answers.iter().filter(|answer| !answer.is_replay()).count(), 1);
    assert_eq!(service.runs(case), 1);
}

/// Whoever waits holds nothing that others need, its owner among them.
async fn others_go_on(case: &'static str, waiting: usize, service: Service, address: SocketAddr) {
    let path = format!("/{case}");
    let mut all = JoinSet::new();
    for _ in 0..=waiting {
        all.spawn(async move { order().send(case, address).await });
    }
    service.ran(&path).await;
    let other = Sent::new(Method::POST, "/other").key(b"$-other");
    for _ in 0..2 {
        let answer = timeout(PATIENCE, other.send(case, address)).await.expect("it goes on");
        assert_eq!((answer.status.as_u16(), &answer.body[..]), (201, &b"order 1"[..]));
    }
    service.open(&path);
    for answer in timeout(PATIENCE, all.join_all()).await.expect("its owner goes on") {
        assert_eq!((answer.status.as_u16(), &answer.body[..]), (201, &b"order 1"[..]));
    }
    assert_eq!(service.runs(case), 2);
}

/// A key whose record has expired is free.
async fn expired_answers_409(service: Service, address: SocketAddr) {
    let case = "expired_answers_409";
    let order = Sent::new(Method::POST, "").key(b"$");
    assert_eq!(order.send(case, address).await.body, "order 1");
    let expired = async {
        loop {
            let answer = order.send(case, address).await;
            assert_eq!(answer.status, 201, "{answer:?}");
            if !answer.is_replay() {
                return answer;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    assert_eq!(timeout(PATIENCE, expired).await.expect("it expires").body, "order 2");
    assert_eq!(service.runs(case), 2);
}

/// A client that hangs up changes nothing: who comes back gets the answer of the one execution.
async fn disconnect_frees(service: Service, address: SocketAddr) {
    let case = "disconnect_frees";
    let gone = tokio::spawn(async move { order().send(case, address).await });
    service.ran("/disconnect_frees").await;
    gone.abort();
    assert!(gone.await.expect_err("it was aborted").is_cancelled());
    let back = tokio::spawn(async move { order().send(case, address).await });
    service.open("/disconnect_frees");
    let back = back.await.expect("no panic");
    assert_eq!((back.status.as_u16(), &back.body[..]), (201, &b"order 1"[..]));
    assert!(back.is_replay());
    assert_eq!(service.runs(case), 1);
}

/// A stream passes while it is being made, and is replayed whole.
async fn events(service: Service, address: SocketAddr) {
    let case = "r5_events";
    let request = Sent::new(Method::POST, "").key(b"$").answered("events");
    let mut response = request.open(case, address).await;
    let live = response.body_mut().frame().await.expect("a frame").expect("no error");
    assert_eq!(live.data_ref().expect("data")[..], b"data: first\n\n"[..]);
    service.open("/r5_events");
    let rest = Answer::read(response).await;
    assert_eq!(rest.body, "data: last\n\n");
    // The client's end came after that of the record.
    let replay = request.send(case, address).await;
    assert!(replay.is_replay());
    assert_eq!(replay.body, "data: first\n\ndata: last\n\n");
    assert_eq!(replay.headers["content-type"], "text/event-stream");
    assert_eq!(service.runs(case), 1);
}
