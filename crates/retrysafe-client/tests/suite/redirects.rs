//! C6: the key is not sent across a cross-origin redirect.

use retrysafe_client::{Dialect, Unknown};
use tokio::{io::AsyncWriteExt as _, net::TcpListener};

use crate::support::{self, Server, answer, builder, client, unknown};

#[tokio::test]
async fn c6_the_key_stays_with_its_origin() {
    let stranger = Server::replying(vec![answer(201)]).await;
    let elsewhere = stranger.url("/orders");
    for status in [301, 302, 303, 307, 308] {
        let server =
            Server::replying(vec![answer(status).with("location", elsewhere.clone())]).await;
        let response = client().post(server.url("/orders")).body("book").send().await.unwrap();
        assert_eq!(response.status(), status, "it comes back as the answer");
        assert_eq!(response.headers()["location"], elsewhere);
    }
    assert_eq!(stranger.asked(), 0);
}

#[tokio::test]
async fn c6_within_one_origin_it_is_followed_with_the_key() {
    let server = Server::start(|_, seen| match seen.path.as_str() {
        "/v1/orders" => answer(307).with("location", "/v2/orders"),
        _ => answer(201),
    })
    .await;
    let response = client().post(server.url("/v1/orders")).body("book").send().await.unwrap();
    assert_eq!(response.status(), 201);
    let seen = server.seen();
    assert_eq!((seen[1].path.as_str(), seen[1].body.as_str()), ("/v2/orders", "book"));
    assert_eq!(seen[0].key(), seen[1].key());
}

#[tokio::test]
async fn c4_a_connection_that_fails_after_a_redirect_is_not_the_first_one() {
    // The order is executed, and what it redirects to can't be reached any more.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/orders", listener.local_addr().unwrap());
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        drop(listener);
        support::read(&mut stream).await.unwrap();
        let head = "HTTP/1.1 303 See Other\r\nlocation: /orders/1\r\ncontent-length: 0\r\n\
                    connection: close\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
    });
    let sent = client().post(url).body("book").send().await;
    served.await.unwrap();
    assert_eq!(unknown(sent).why(), Unknown::Attempts);
}

#[tokio::test]
async fn c4_a_refusal_after_a_redirect_is_not_of_the_first_request() {
    // The order is executed, and what it redirects to is refused.
    for refused in [425, 429, 401, 403] {
        let server = Server::start(move |_, seen| match seen.method.as_str() {
            "POST" => answer(303).with("location", "/orders/1"),
            _ => answer(refused),
        })
        .await;
        let posts = || server.seen().iter().filter(|it| it.method == "POST").count();
        // A server that keeps no keys would execute it again.
        let keyless = builder().dialect(Dialect::openai_compatible()).build().unwrap();
        unknown(keyless.post(server.url("/orders")).body("book").send().await);
        assert_eq!(posts(), 1, "{refused}");
        // And where keys are kept, nobody is told that nothing was done.
        unknown(client().post(server.url("/orders")).body("book").send().await);
    }
    // The same request, elsewhere: that one was refused.
    let server = Server::start(|number, seen| match (seen.path.as_str(), number) {
        ("/orders", _) => answer(307).with("location", "/v2/orders"),
        (_, 1) => answer(429),
        _ => answer(201),
    })
    .await;
    let keyless = builder().dialect(Dialect::openai_compatible()).build().unwrap();
    let response = keyless.post(server.url("/orders")).body("book").send().await.unwrap();
    assert_eq!(response.status(), 201);
}
