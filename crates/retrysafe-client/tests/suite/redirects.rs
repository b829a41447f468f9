//! C6: the key is not sent across a cross-origin redirect.

use crate::support::{Server, answer, client};

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
