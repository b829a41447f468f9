//! C3 to C5: what is retried, how often, and how a call ends.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use http::Extensions;
use reqwest::{Request, Response};
use reqwest_middleware::{Next, Result};
use retrysafe_client::{CallDeadline, CallReport, ErrorKind, OutcomeUnknown, Unknown};

use crate::support::{Reply, Server, answer, builder, client, closed, impatient, problem, unknown};

#[tokio::test]
async fn c4_every_fault_is_retried_with_the_same_key() {
    for fault in [
        Reply::Reset,
        Reply::Truncated,
        answer(408),
        answer(425),
        answer(429),
        answer(500),
        answer(502),
        answer(503).with("retry-after", "0"),
        answer(504),
        answer(529),
        problem(409, "in_progress"),
    ] {
        let server = Server::replying(vec![fault.clone(), fault.clone(), answer(201)]).await;
        let response = client().post(server.url("/orders")).body("book").send().await.unwrap();
        assert_eq!(response.status(), 201, "{fault:?}");
        assert_eq!(response.extensions().get::<CallReport>().unwrap().attempts, 3);
        assert_eq!(response.text().await.unwrap(), "done");
        let seen = server.seen();
        assert_eq!(seen.len(), 3, "{fault:?}");
        assert!(seen.iter().all(|it| it.key() == seen[0].key() && it.body == "book"));
    }
}

#[tokio::test]
async fn c4_a_slow_answer_is_asked_for_again() {
    let server = Server::replying(vec![Reply::Silence, answer(201)]).await;
    let mut policy = impatient();
    policy.attempt_timeout = Duration::from_millis(200);
    let client = builder().retries(policy).build().unwrap();
    let response = client.post(server.url("/")).send().await.unwrap();
    assert_eq!(response.status(), 201);
    assert_eq!(server.asked(), 2);
}

#[tokio::test]
async fn c4_what_is_final_is_asked_for_once() {
    for (reply, status) in [
        (problem(422, "key_reused"), 422),
        (problem(409, "response_unavailable"), 409),
        (problem(409, "something_of_the_application"), 409),
        (answer(400), 400),
        (answer(404), 404),
        (answer(500).with("idempotent-replayed", "true"), 500),
    ] {
        let server = Server::replying(vec![reply]).await;
        let response = client().post(server.url("/")).send().await.unwrap();
        assert_eq!(response.status(), status);
        // The body that was read to find out is still there.
        assert_ne!(response.text().await.unwrap(), "");
        assert_eq!(server.asked(), 1);
    }
}

#[tokio::test]
async fn c5_the_error_names_the_key() {
    let server = Server::replying(vec![answer(500)]).await;
    let unknown = unknown(client().post(server.url("/")).send().await);
    assert_eq!(unknown.key().as_str(), server.seen()[0].key());
    assert_eq!((unknown.attempts(), unknown.why()), (3, Unknown::Attempts));
    assert_eq!(unknown.status().unwrap(), 500);
    let said = unknown.to_string();
    assert!(said.contains(&unknown.operation().to_string()), "{said}");
    // S3
    assert!(
        !said.contains(unknown.key().as_str())
            && !format!("{unknown:?}").contains(unknown.key().as_str())
    );
}

#[tokio::test]
async fn c5_a_server_that_does_not_know_either() {
    let server = Server::replying(vec![problem(409, "outcome_unknown")]).await;
    let unknown = unknown(client().post(server.url("/")).send().await);
    assert_eq!((unknown.why(), server.asked()), (Unknown::Reported, 1));
}

#[tokio::test]
async fn c4_nobody_there_is_no_unknown_outcome() {
    let error = client().post(closed().await).send().await.unwrap_err();
    assert!(OutcomeUnknown::of(&error).is_none());
    assert!(error.is_connect());
}

#[tokio::test]
async fn c4_what_can_never_be_sent_is_tried_once() {
    let server = Server::replying(vec![answer(201)]).await;
    let counted = |url: String| async move {
        let sent = Arc::new(AtomicU64::new(0));
        let client = builder().with(counting(sent.clone())).build().unwrap();
        let error = client.post(url).send().await.unwrap_err();
        assert!(OutcomeUnknown::of(&error).is_none(), "{error:?}");
        assert_eq!(sent.load(Ordering::Relaxed), 1, "{error:?}");
        error
    };
    let error = counted(server.url("/").replace("http:", "ftp:")).await;
    assert!(error.is_builder(), "{error:?}");
    // This workspace builds reqwest without TLS.
    let error = counted(server.url("/").replace("http:", "https:")).await;
    let says = error.to_string();
    assert!(says.contains("nothing was sent") && says.contains("`rustls`"), "{says}");
    let reqwest_middleware::Error::Middleware(error) = error else { panic!("{error}") };
    let error: &retrysafe_client::Error = error.downcast_ref().unwrap();
    assert_eq!(error.kind(), ErrorKind::NoTls);
    assert_eq!(server.asked(), 0);
}

/// Counts what is sent.
fn counting(
    sent: Arc<AtomicU64>,
) -> impl for<'a> Fn(Request, &'a mut Extensions, Next<'a>) -> BoxFuture<'a, Result<Response>> {
    move |request, extensions, next| {
        sent.fetch_add(1, Ordering::Relaxed);
        next.run(request, extensions)
    }
}

#[tokio::test]
async fn c3_the_deadline_of_one_call() {
    let server = Server::replying(vec![problem(409, "in_progress").with("retry-after", "1")]).await;
    let deadline = CallDeadline(Duration::from_millis(500));
    let sent = client().post(server.url("/")).with_extension(deadline).send().await;
    assert_eq!(unknown(sent).why(), Unknown::Deadline);
    assert_eq!(server.asked(), 1, "there was no time to wait for a second");
}

#[tokio::test]
async fn c4_methods_that_are_idempotent_need_no_key() {
    let server = Server::replying(vec![Reply::Reset, answer(503), answer(200)]).await;
    let response = client().http().get(server.url("/")).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(server.seen().iter().all(|it| it.header("idempotency-key").is_none()));
    // The last answer is the answer: of a GET nothing has to be found out.
    let server = Server::replying(vec![answer(503)]).await;
    assert_eq!(client().http().put(server.url("/")).send().await.unwrap().status(), 503);
    assert_eq!(server.asked(), 3);
    let server = Server::replying(vec![Reply::Silence]).await;
    let mut policy = impatient();
    policy.attempt_timeout = Duration::from_millis(50);
    let client = builder().retries(policy).build().unwrap();
    let error = client.http().get(server.url("/")).send().await.unwrap_err();
    let reqwest_middleware::Error::Middleware(error) = error else { panic!("{error}") };
    let error: &retrysafe_client::Error = error.downcast_ref().unwrap();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}

#[tokio::test]
async fn c5_what_is_refused_at_the_door_says_nothing_of_an_earlier_attempt() {
    // The first was executed, and its answer is lost. By then the key is too old, say.
    let refusals = [
        (400, "invalid_key"),
        (400, "missing_scope"),
        (400, "incomplete_body"),
        (422, "key_reused"),
    ];
    for (status, code) in refusals {
        let server = Server::replying(vec![Reply::Reset, problem(status, code)]).await;
        let sent = client().post(server.url("/")).body("book").send().await;
        assert_eq!(unknown(sent).why(), Unknown::Refused, "{code}");
        // Where it is all that was said, it is the answer.
        let server = Server::replying(vec![problem(status, code)]).await;
        let sent = client().post(server.url("/")).body("book").send().await;
        assert_eq!(sent.unwrap().status(), status);
    }
    // A 400 of the application's own is its answer.
    let server = Server::replying(vec![Reply::Reset, problem(400, "no_such_book")]).await;
    let sent = client().post(server.url("/")).body("book").send().await;
    assert_eq!(sent.unwrap().status(), 400);
}
