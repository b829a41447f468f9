//! Mistakes that others made.

use retrysafe_client::{Dialect, IdempotencyKey};

use crate::support::{Reply, Server, answer, builder, client, problem};

#[tokio::test]
async fn client_new_key_per_try() {
    // The client made a new key per attempt, or overwrote the caller's.
    let server = Server::replying(vec![Reply::Reset, answer(500), answer(201)]).await;
    let request = client().post(server.url("/"));
    request.header("Idempotency-Key", "mine").send().await.unwrap();
    assert!(server.seen().iter().all(|it| it.key() == "mine"));
    assert_eq!(server.asked(), 3);
}

#[tokio::test]
async fn client_reuses_key() {
    // A generated key was written into a reusable options value: the next request got the first
    // one's resource.
    let server = Server::replying(vec![answer(201)]).await;
    let client = client();
    let request = client.post(server.url("/")).body("book");
    request.try_clone().unwrap().send().await.unwrap();
    request.try_clone().unwrap().send().await.unwrap();
    request.send().await.unwrap();
    let seen = server.seen();
    let keys: std::collections::HashSet<_> = seen.iter().map(|it| it.key()).collect();
    assert_eq!(keys.len(), 3);
    // A key that the caller gives is one operation, as often as it is given.
    let named = IdempotencyKey::new("order-7").unwrap();
    for _ in 0..2 {
        client.post(server.url("/")).with_extension(named.clone()).send().await.unwrap();
    }
    assert!(server.seen()[3..].iter().all(|it| it.key() == "order-7"));
}

#[tokio::test]
async fn client_retries_keyless_post() {
    // A POST without a key was retried on 500.
    let mut dialect = Dialect::draft07();
    dialect.methods = [reqwest::Method::PATCH].into_iter().collect();
    let client = builder().dialect(dialect).build().unwrap();
    for (reply, answered) in [(answer(500), true), (answer(429), true), (Reply::Reset, false)] {
        let server = Server::replying(vec![reply, answer(201)]).await;
        let sent = client.post(server.url("/")).send().await;
        assert_eq!(sent.is_ok(), answered);
        assert_eq!(server.asked(), 1);
        assert!(server.seen()[0].header("idempotency-key").is_none());
    }
}

#[tokio::test]
async fn client_ignores_409() {
    // 409 in progress was fatal instead of *wait and ask again*.
    let in_progress = problem(409, "in_progress").with("retry-after", "0");
    let mut replies = vec![in_progress; 20];
    replies.push(answer(201).with("idempotent-replayed", "true"));
    let server = Server::replying(replies).await;
    let response = client().post(server.url("/")).send().await.unwrap();
    assert_eq!(response.status(), 201);
    assert_eq!(server.asked(), 21, "waiting uses no attempt");
}

#[tokio::test]
async fn cached_500() {
    // A stored 500 made every retry useless: one that is marked as replayed is not retried.
    let replayed = answer(500).with("idempotent-replayed", "true");
    let server = Server::replying(vec![answer(500), replayed]).await;
    let response = client().post(server.url("/")).send().await.unwrap();
    assert_eq!((response.status().as_u16(), server.asked()), (500, 2));
}
