//! C7: calls of one process with one key share one request.

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use retrysafe_client::{
    CallDeadline, Client, ConfigError, ContentKey, Dialect, IdempotencyKey, KeySource,
    OutcomeUnknown, ShareAnswers, Unknown,
};

use crate::support::{Reply, Server, answer, builder, impatient, unknown};

fn sharing(share: ShareAnswers) -> Result<Client, ConfigError> {
    let content = KeySource::Content(ContentKey::builder().build()?);
    let dialect = Dialect::openai_compatible();
    builder().dialect(dialect).keys(content).share_answers(share).build()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c7_concurrent_calls_share_one_request() {
    // The server answers when all have asked.
    let (go, wait) = mpsc::channel();
    let wait = Mutex::new(wait);
    let server = Arc::new(
        Server::start(move |_, _| {
            wait.lock().unwrap().recv().unwrap();
            answer(200).with("x-model", "m").saying("forty-two")
        })
        .await,
    );
    let client = sharing(ShareAnswers::default()).unwrap();
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let request = client.post(server.url("/v1/chat")).body(r#"{"prompt":"?"}"#);
            tokio::spawn(request.send())
        })
        .collect();
    server.is_asked().await;
    go.send(()).unwrap();
    for call in calls {
        let response = call.await.unwrap().unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["x-model"]),
            (200, &"m".parse().unwrap())
        );
        assert_eq!(response.url().as_str(), server.url("/v1/chat"));
        assert_eq!(response.text().await.unwrap(), "forty-two");
    }
    // And so does who comes later; another prompt is another request.
    let again = client.post(server.url("/v1/chat")).body(r#"{"prompt":"?"}"#).send().await.unwrap();
    assert_eq!(again.text().await.unwrap(), "forty-two");
    assert_eq!(server.asked(), 1);
    go.send(()).unwrap();
    client.post(server.url("/v1/chat")).body(r#"{"prompt":"!"}"#).send().await.unwrap();
    assert_eq!(server.asked(), 2);
}

#[tokio::test]
async fn c7_what_was_not_done_is_done_by_the_next() {
    let server = Server::replying(vec![answer(429), answer(429), answer(429), answer(200)]).await;
    let client = sharing(ShareAnswers::default()).unwrap();
    let key = IdempotencyKey::new("k").unwrap();
    let call = || client.post(server.url("/")).with_extension(key.clone()).send();
    assert_eq!(call().await.unwrap().status(), 429);
    assert_eq!(call().await.unwrap().status(), 200);
    assert_eq!(call().await.unwrap().status(), 200);
    assert_eq!(server.asked(), 4);
}

#[tokio::test]
async fn c7_an_unknown_outcome_is_shared_too() {
    // The server keeps no keys: another request could execute again.
    let server = Server::replying(vec![Reply::Reset, answer(200)]).await;
    let client = sharing(ShareAnswers::default()).unwrap();
    for _ in 0..3 {
        let unknown = unknown(client.post(server.url("/")).body("{}").send().await);
        assert_eq!(unknown.why(), Unknown::NoKeysKept);
    }
    assert_eq!(server.asked(), 1);
}

#[tokio::test]
async fn c7_a_caller_that_hangs_up_leaves_no_second_execution() {
    let server = Server::replying(vec![Reply::Silence, answer(200)]).await;
    let client = sharing(ShareAnswers::default()).unwrap();
    let call = || client.post(server.url("/")).body("{}").send();
    let first = tokio::spawn(call());
    server.is_asked().await;
    let waiting = tokio::spawn(call());
    first.abort();
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(OutcomeUnknown::of(&error).unwrap().why(), Unknown::Abandoned);
    assert_eq!(server.asked(), 1);
}

#[tokio::test]
async fn c7_it_is_bounded() {
    let server = Server::replying(vec![answer(200)]).await;
    let client = sharing(ShareAnswers { capacity: 1, ..ShareAnswers::default() }).unwrap();
    let call = |body: &'static str| client.post(server.url("/")).body(body).send();
    // The cache makes room in its own time, so the second may be asked for a few times.
    let mut asked = 0;
    while server.asked() < asked + 2 {
        asked = server.asked();
        call("{\"a\":1}").await.unwrap();
        call("{\"a\":2}").await.unwrap();
    }
    let mut policy = impatient();
    policy.deadline = Duration::from_millis(100);
    let share = ShareAnswers { ttl: Duration::from_millis(200), ..ShareAnswers::default() };
    let client = builder().retries(policy).share_answers(share).build().unwrap();
    let key = IdempotencyKey::new("k").unwrap();
    let before = server.asked();
    while server.asked() < before + 2 {
        client.post(server.url("/")).with_extension(key.clone()).send().await.unwrap();
    }
}

#[test]
fn what_could_not_work_is_found_when_it_is_built() {
    let refused = |share| sharing(share).unwrap_err().setting();
    assert_eq!(refused(ShareAnswers { capacity: 0, ..ShareAnswers::default() }), "cache_capacity");
    let ttl = Duration::from_secs(1);
    assert_eq!(refused(ShareAnswers { ttl, ..ShareAnswers::default() }), "cache_ttl");
}

#[tokio::test]
async fn cross_tenant_replay() {
    // Keys not bound to the caller: someone else's response.
    let server = Server::start(|_, seen| {
        let who = seen.header("authorization").or(seen.header("x-api-key")).unwrap_or("nobody");
        answer(200).saying(who)
    })
    .await;
    let client = sharing(ShareAnswers::default()).unwrap();
    let ask = async |name: &str, value: &str| {
        let request = client.post(server.url("/v1/chat")).header(name, value).body("{}");
        request.send().await.unwrap().text().await.unwrap()
    };
    for _ in 0..2 {
        for (name, value) in
            [("authorization", "Bearer a"), ("authorization", "Bearer b"), ("x-api-key", "c")]
        {
            assert_eq!(ask(name, value).await, value);
        }
    }
    assert_eq!(server.asked(), 3, "each of them is answered from here the second time");
}

#[tokio::test]
async fn other_path_replays() {
    // The same key on another path or method got the first one's answer.
    let server = Server::start(|_, seen| answer(200).saying(&*seen.path)).await;
    let client = sharing(ShareAnswers::default()).unwrap();
    let key = IdempotencyKey::new("k").unwrap();
    for path in ["/a", "/b", "/a?c"] {
        let response = client.post(server.url(path)).with_extension(key.clone()).send().await;
        assert_eq!(response.unwrap().text().await.unwrap(), path);
    }
    client.patch(server.url("/a")).with_extension(key).send().await.unwrap();
    assert_eq!(server.asked(), 4);
}

#[tokio::test]
async fn c7_a_refusal_for_want_of_credentials_is_nobodys_answer() {
    let server = Server::replying(vec![answer(401), answer(200)]).await;
    let client = sharing(ShareAnswers::default()).unwrap();
    let ask = || client.post(server.url("/")).body("{}").send();
    assert_eq!(ask().await.unwrap().status(), 401);
    assert_eq!(ask().await.unwrap().status(), 200);
}

#[tokio::test]
async fn c7_a_server_that_keeps_keys_is_asked_for_what_is_unknown() {
    let replies = vec![Reply::Reset, Reply::Reset, Reply::Reset, answer(200)];
    let server = Server::replying(replies).await;
    let client = builder().share_answers(ShareAnswers::default()).build().unwrap();
    let key = IdempotencyKey::new("k").unwrap();
    let ask = || client.post(server.url("/")).with_extension(key.clone()).send();
    assert_eq!(unknown(ask().await).why(), Unknown::Attempts);
    assert_eq!(ask().await.unwrap().status(), 200);
    // A caller that hangs up leaves the place, too, and who waits knows that it may be done.
    let server = Server::replying(vec![Reply::Silence, answer(429)]).await;
    let ask = || client.post(server.url("/")).with_extension(key.clone()).send();
    let first = tokio::spawn(ask());
    server.is_asked().await;
    let mut waiting = Box::pin(ask());
    assert!(futures_util::FutureExt::now_or_never(&mut waiting).is_none());
    first.abort();
    assert_eq!(unknown(waiting.await).why(), Unknown::Attempts);
    assert_eq!(server.asked(), 4);
}

#[tokio::test]
async fn c3_who_waits_for_another_call_has_a_deadline_too() {
    let server = Server::replying(vec![Reply::Silence]).await;
    let client = sharing(ShareAnswers::default()).unwrap();
    let ask = || client.post(server.url("/")).body("{}");
    let first = tokio::spawn(ask().send());
    server.is_asked().await;
    let soon = CallDeadline(Duration::from_millis(20));
    let waited = ask().with_extension(soon).send().await;
    assert_eq!(unknown(waited).why(), Unknown::Deadline);
    assert_eq!(server.asked(), 1);
    first.abort();
}

#[tokio::test]
async fn other_body_replays() {
    // The same key with another body got the first one's answer.
    let server = Server::start(|_, seen| answer(200).saying(&*seen.body)).await;
    let client = sharing(ShareAnswers::default()).unwrap();
    let key = IdempotencyKey::new("k").unwrap();
    let ask = |body: &'static str| {
        client.post(server.url("/v1/chat")).with_extension(key.clone()).body(body).send()
    };
    assert_eq!(ask("forty").await.unwrap().text().await.unwrap(), "forty");
    assert_eq!(ask("forty").await.unwrap().text().await.unwrap(), "forty");
    let refused = ask("forty-two").await.unwrap_err();
    let reqwest_middleware::Error::Middleware(refused) = refused else { panic!("{refused}") };
    let refused: retrysafe_client::Error = refused.downcast().unwrap();
    assert_eq!(refused.kind(), retrysafe_client::ErrorKind::KeyReused);
    assert_eq!(server.asked(), 1);
    // Who waits for the first does not get its answer either.
    let server = Server::replying(vec![Reply::Silence]).await;
    let ask = |body: &'static str| {
        client.post(server.url("/v1/chat")).with_extension(key.clone()).body(body).send()
    };
    let first = tokio::spawn(ask("forty"));
    server.is_asked().await;
    assert!(ask("forty-two").await.is_err());
    assert_eq!(server.asked(), 1);
    first.abort();
}

#[tokio::test]
async fn c2_what_a_content_key_leaves_out_may_differ() {
    let server = Server::replying(vec![answer(200)]).await;
    let content = ContentKey::builder().exclude("/timestamp").build().unwrap();
    let client = builder()
        .dialect(Dialect::openai_compatible())
        .keys(KeySource::Content(content))
        .share_answers(ShareAnswers::default())
        .build()
        .unwrap();
    for body in [r#"{"a":1,"timestamp":1}"#, r#"{"a":1,"timestamp":2}"#] {
        let request = client.post(server.url("/")).header("content-type", "application/json");
        assert_eq!(request.body(body).send().await.unwrap().status(), 200);
    }
    assert_eq!(server.asked(), 1);
}
