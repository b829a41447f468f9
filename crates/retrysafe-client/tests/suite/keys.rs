//! C1, C2: which key a request has, and what happens where it can have none.

use axum::{Router, http::StatusCode, routing::post};
use retrysafe_axum::{Fingerprinter, IdempotencyLayer, IdempotentRouter as _, MemoryStore, Scope};
use retrysafe_client::{
    ContentKey, Dialect, Error, ErrorKind, IdempotencyKey, KeySource, Quoting, Spelling,
    VOLATILE_FIELDS, business_key,
};
use tokio::net::TcpListener;

use crate::support::{Server, answer, builder, client};

fn refused(sent: reqwest_middleware::Result<reqwest::Response>) -> (ErrorKind, String) {
    let error = match sent.unwrap_err() {
        reqwest_middleware::Error::Middleware(error) => error.downcast::<Error>().unwrap(),
        error => panic!("{error}"),
    };
    let why = std::error::Error::source(&error).unwrap().to_string();
    (error.kind(), why)
}

#[tokio::test]
async fn c2_random_keys_are_uuids() {
    let server = Server::replying(vec![answer(201)]).await;
    client().post(server.url("/")).send().await.unwrap();
    let seventh = builder().keys(KeySource::UuidV7).build().unwrap();
    seventh.patch(server.url("/")).send().await.unwrap();
    let versions: Vec<_> = server
        .seen()
        .iter()
        .map(|it| uuid::Uuid::parse_str(it.key()).unwrap().get_version_num())
        .collect();
    assert_eq!(versions, [4, 7]);
    assert_eq!(server.seen()[1].method, "PATCH");
}

#[tokio::test]
async fn c2_the_same_content_is_the_same_key_in_any_spelling() {
    let server = Server::replying(vec![answer(201)]).await;
    let content = ContentKey::builder().exclude("/sent_at").build().unwrap();
    let client = builder().keys(KeySource::Content(content)).build().unwrap();
    for body in [
        r#"{"item":"book","amount":1999,"sent_at":1}"#,
        r#"{ "sent_at": 2, "amount": 1999.0, "item": "book" }"#,
        r#"{"item":"lamp","amount":1999}"#,
    ] {
        let request = client.post(server.url("/")).header("content-type", "application/json");
        request.body(body).send().await.unwrap();
    }
    let seen = server.seen();
    assert_eq!(seen[0].key(), seen[1].key());
    assert_ne!(seen[0].key(), seen[2].key());
    assert!(seen[0].key().starts_with("idem_") && seen[0].key().len() == 69);
    // What goes over the wire is what the caller wrote.
    assert!(seen[1].body.contains("1999.0"));
}

#[tokio::test]
async fn c1_sent_bare_unless_asked_to_quote() {
    let server = Server::replying(vec![answer(201)]).await;
    let mut quoted = Dialect::draft07();
    quoted.quoting = Quoting::Always;
    let client = builder().dialect(quoted).build().unwrap();
    let key = business_key("orders", "4711");
    client.post(server.url("/")).with_extension(key.clone()).send().await.unwrap();
    assert_eq!(server.seen()[0].key(), format!("\"{}\"", key.as_str()));
}

#[tokio::test]
async fn c2_each_preset_puts_the_key_where_its_server_looks() {
    let server = Server::replying(vec![answer(201)]).await;
    for dialect in [Dialect::paypal(), Dialect::square(), Dialect::aip155()] {
        let client = builder().dialect(dialect).build().unwrap();
        let request = client.post(server.url("/")).header("content-type", "application/json");
        request.body(r#"{"amount":9007199254740993}"#).send().await.unwrap();
    }
    let seen = server.seen();
    assert_eq!(seen[0].header("paypal-request-id").unwrap().len(), 36);
    for (seen, name) in [(&seen[1], "idempotency_key"), (&seen[2], "request_id")] {
        let start = format!(r#"{{"{name}":""#);
        assert!(seen.body.starts_with(&start), "{}", seen.body);
        assert!(seen.body.ends_with(r#"","amount":9007199254740993}"#), "{}", seen.body);
        assert!(seen.header("idempotency-key").is_none());
    }
}

#[tokio::test]
async fn bad_input_is_a_clear_error_and_nothing_is_sent() {
    let server = Server::replying(vec![answer(201)]).await;
    let long = "x".repeat(256);
    for (key, says) in [
        (long.as_str(), "longer than 255 bytes"),
        ("a,b", "without quotes, commas"),
        ("", "empty"),
        ("caf\u{e9}", "visible ASCII"),
    ] {
        let request = client().post(server.url("/")).header("idempotency-key", key);
        let (kind, why) = refused(request.send().await);
        assert_eq!(kind, ErrorKind::NoKey);
        assert!(why.contains(says), "{why}");
    }
    // As the guide prints it.
    let request = client().post(server.url("/")).header("idempotency-key", "");
    let said = format!("{:#}", request.send().await.unwrap_err());
    assert!(said.contains("nothing was sent") && said.contains("empty"), "{said}");
    let adyen = builder().dialect(Dialect::adyen()).build().unwrap();
    let key = IdempotencyKey::new(&"x".repeat(65)).unwrap();
    let (_, why) = refused(adyen.post(server.url("/")).with_extension(key).send().await);
    assert!(why.contains("longer than 64 bytes"), "{why}");

    let square = builder().dialect(Dialect::square()).build().unwrap();
    for body in ["", "[1]", "{"] {
        let (kind, _) = refused(square.post(server.url("/")).body(body).send().await);
        assert_eq!(kind, ErrorKind::NoKey);
    }
    let content = ContentKey::builder().include("/order").build().unwrap();
    let content = builder().keys(KeySource::Content(content)).build().unwrap();
    let (_, why) = refused(content.post(server.url("/")).body(r#"{"item":1}"#).send().await);
    assert!(why.contains("nothing at /order"), "{why}");
    assert_eq!(server.asked(), 0);
}

#[test]
fn what_does_not_fit_is_found_when_the_client_is_built() {
    let content = |spelling| {
        let content = ContentKey::builder().spelling(spelling).build().unwrap();
        builder().dialect(Dialect::square()).keys(KeySource::Content(content)).build()
    };
    let refused = content(Spelling::Hex).unwrap_err();
    assert_eq!(refused.setting(), "key");
    assert!(refused.to_string().contains("longer than square takes (45)"), "{refused}");
    assert!(content(Spelling::Uuid).is_ok());
}

/// What the key leaves out, the server has to leave out as well: it compares bodies.
#[tokio::test]
async fn a_content_key_wants_a_server_that_compares_alike() {
    let pointers = || VOLATILE_FIELDS.iter().map(|it| it.parse().unwrap());
    for (fingerprinter, status) in
        [(Fingerprinter::json_without(pointers()).unwrap(), 201), (Fingerprinter::default(), 422)]
    {
        let layer = IdempotencyLayer::builder(MemoryStore::new(), Scope::shared());
        let layer = layer.settings(|settings| settings.fingerprinter = fingerprinter);
        let app = Router::new().route("/orders", post(async || StatusCode::CREATED));
        let app = app.idempotent(layer.build().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/orders", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });

        let content = ContentKey::builder().exclude_all(VOLATILE_FIELDS).build().unwrap();
        let client = builder().keys(KeySource::Content(content)).build().unwrap();
        let order = |body: &'static str| client.post(&*url).body(body).send();
        let first = order(r#"{"item":"book","timestamp":1}"#).await.unwrap();
        assert_eq!(first.status(), 201);
        let retry = order(r#"{ "timestamp": 2, "item": "book" }"#).await.unwrap();
        assert_eq!(retry.status(), status);
    }
}
