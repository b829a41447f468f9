//! Reading the key (PROTOCOL 1).

use std::time::Duration;

use http::{HeaderName, Method, Request, Response};
use retrysafe::{
    IdempotencyLayer, KeyFormat, KeyParsing, KeyRules, KeySource, Methods, Scope, ScopeFrom,
};
use uuid::Uuid;

use crate::common::*;

#[tokio::test]
async fn k1_the_header_can_be_another() {
    let store = store();
    let rules = KeyRules::default().header(HeaderName::from_static("x-request-key"));
    let layer = layer(&store).settings(|it| it.key = rules).build().unwrap();
    let orders = Guarded::orders(&layer);
    let request = || Request::post("/orders").header("X-Request-Key", "k").body(body("a")).unwrap();
    orders.send(request()).await.assert_first(201, "order 1");
    orders.send(request()).await.assert_replay(201, "order 1");
    orders.send(order("k", "a")).await.assert_first(201, "order 2");
    orders.send(order("k", "a")).await.assert_first(201, "order 3");
}

#[tokio::test]
async fn k2_strict_parsing_takes_only_the_string_item() {
    let store = store();
    let rules = KeyRules::default().parsing(KeyParsing::Strict);
    let orders = Guarded::orders(&layer(&store).settings(|it| it.key = rules).build().unwrap());
    let refused = orders.send(order("k", "a")).await;
    refused.assert_problem(400, "invalid_key");
    assert_eq!(refused.member("reason"), "syntax");
    orders.send(order("\"k\"", "a")).await.assert_first(201, "order 1");
    orders.send(order("\"k\";p=1", "a")).await.assert_replay(201, "order 1");
}

#[tokio::test]
async fn k3_a_bad_key_is_refused_before_anything_else() {
    let (store, layer) = default_layer();
    let orders = Guarded::orders(&layer);
    let long = "k".repeat(256);
    let bad: [(&[&[u8]], &str); 9] = [
        (&[b"a", b"b"], "duplicate"),
        (&[b"a", b"a"], "duplicate"),
        (&[b""], "empty"),
        (&[b"\"\""], "empty"),
        (&[long.as_bytes()], "too_long"),
        (&[b"\"open"], "syntax"),
        (&[b"a b"], "syntax"),
        (&[b"a,b"], "syntax"),
        (&[b"k\xc3\xa9"], "syntax"),
    ];
    for (lines, reason) in bad {
        let mut request = Request::post("/orders");
        for line in lines {
            request = request.header("idempotency-key", *line);
        }
        // A body that never comes: a bad key is not waited with.
        let (_pipe, body) = pipe();
        let answer = orders.send(request.body(body).unwrap()).await;
        answer.assert_problem(400, "invalid_key");
        assert_eq!(answer.member("reason"), reason, "{lines:?}");
    }
    assert_eq!((orders.runs(), store.script().all_calls()), (0, 0));
    orders.send(order(&"k".repeat(255), "a")).await.assert_first(201, "order 1");
}

#[tokio::test]
async fn k4_formats() {
    let with = |format| {
        let rules = KeyRules::default().format(format);
        let layer = layer(&store()).settings(|it| it.key = rules).build().unwrap();
        Guarded::orders(&layer)
    };
    let refused = |answer: Answer, reason: &str| {
        answer.assert_problem(400, "invalid_key");
        assert_eq!(answer.member("reason"), reason);
    };

    // All spellings of one UUID are one key.
    let orders = with(KeyFormat::Uuid);
    let uuid = Uuid::from_u128(0x8e03978e_40d5_43e8_bc93_6894a57f9324);
    orders.send(order(&uuid.hyphenated().to_string(), "a")).await.assert_first(201, "order 1");
    for spelling in [
        uuid.hyphenated().to_string().to_uppercase(),
        uuid.simple().to_string(),
        format!("\"{}\"", uuid.hyphenated()),
    ] {
        orders.send(order(&spelling, "a")).await.assert_replay(201, "order 1");
    }
    refused(orders.send(order("order-17", "a")).await, "format");

    let orders = with(KeyFormat::Prefixed { prefix: "idem_".into() });
    orders
        .send(order(&format!("idem_{}", "0a".repeat(32)), "a"))
        .await
        .assert_first(201, "order 1");
    refused(orders.send(order("idem_0a", "a")).await, "format");

    let orders = with(KeyFormat::custom(|key| key.starts_with("eu-")));
    orders.send(order("eu-1", "a")).await.assert_first(201, "order 1");
    refused(orders.send(order("us-1", "a")).await, "format");
}

#[tokio::test]
async fn k4_a_key_older_than_its_record_could_be_is_refused() {
    let rules = KeyRules::default().format(KeyFormat::UuidV7 {
        max_age: Duration::from_secs(3600),
        skew: Duration::from_secs(60),
    });
    let build = |retention| {
        let rules = rules.clone();
        layer(&store()).retention(retention).settings(|it| it.key = rules).build()
    };
    assert_eq!(build(Duration::from_secs(3600)).unwrap_err().setting(), "key_format");
    let orders = Guarded::orders(&build(Duration::from_secs(7200)).unwrap());
    // Made in 2001.
    let old = Uuid::from_u128(0x00e4_e1c0_0000_7000_8000_0000_0000_0000);
    let answer = orders.send(order(&old.to_string(), "a")).await;
    answer.assert_problem(400, "invalid_key");
    assert_eq!(answer.member("reason"), "expired");
    assert_eq!(orders.runs(), 0);
}

#[tokio::test]
async fn k5_other_methods_pass_with_the_header_untouched() {
    let (store, layer) = default_layer();
    let orders = Guarded::new(&layer, |run, request: Given| async move {
        assert_eq!(request.headers()["idempotency-key"], "k");
        created(run)
    });
    let request = |method: &Method| {
        let request = Request::builder().method(method).uri("/orders");
        request.header("idempotency-key", "k").body(empty()).unwrap()
    };
    for method in [Method::GET, Method::HEAD, Method::PUT, Method::DELETE, Method::OPTIONS] {
        for _ in 0..2 {
            assert!(!orders.send(request(&method)).await.is_replay(), "{method}");
        }
    }
    assert_eq!(store.script().all_calls(), 0);
    orders.send(request(&Method::PATCH)).await.assert_first(201, "order 11");
    orders.send(request(&Method::PATCH)).await.assert_replay(201, "order 11");
    // As `fetch` sends it. To a service that takes it for PATCH it is no less unsafe.
    let patch = Method::from_bytes(b"patch").unwrap();
    for _ in 0..2 {
        orders.send(request(&patch)).await.assert_problem(422, "key_reused");
    }
}

#[tokio::test]
async fn k5_all_unsafe_methods_and_none() {
    let all = layer(&store()).settings(|it| it.methods = Methods::all_unsafe()).build().unwrap();
    let orders = Guarded::orders(&all);
    for (run, method) in [Method::PUT, Method::DELETE].into_iter().enumerate() {
        let request = || {
            let request = Request::builder().method(&method).uri("/orders/1");
            request.header("idempotency-key", method.as_str()).body(empty()).unwrap()
        };
        orders.send(request()).await.assert_first(201, &format!("order {}", run + 1));
        orders.send(request()).await.assert_replay(201, &format!("order {}", run + 1));
    }
    let none = layer(&store()).settings(|it| it.methods = Methods::from_iter([])).build();
    assert_eq!(none.unwrap_err().setting(), "methods");
}

#[tokio::test]
async fn k6_no_key_passes_or_is_refused() {
    let (store, layer) = default_layer();
    let orders = Guarded::orders(&layer);
    orders.send(keyless()).await.assert_first(201, "order 1");
    orders.send(keyless()).await.assert_first(201, "order 2");
    assert_eq!(store.script().all_calls(), 0);

    let required = IdempotencyLayer::sharing(layer.engine(), Scope::shared()).require_key();
    let orders = Guarded::orders(&required.build().unwrap());
    orders.send(keyless()).await.assert_problem(400, "missing_key");
    let get = Request::get("/orders").body(empty()).unwrap();
    orders.send(get).await.assert_first(201, "order 1");
}

#[tokio::test]
async fn k7_an_upgrade_header_bypasses_nothing() {
    let (_, layer) = default_layer();
    let orders = Guarded::new(&layer, |run, request: Given| async move {
        let upgrade = request.headers().contains_key("upgrade");
        assert_eq!(upgrade, request.method() == Method::GET);
        assert_eq!(request.headers().contains_key("http2-settings"), upgrade);
        Response::builder().status(201).body(body(format!("order {run}"))).unwrap()
    });
    let request = |method| {
        Request::builder()
            .method(method)
            .uri("/orders")
            .header("idempotency-key", "k")
            .header("connection", "Upgrade, HTTP2-Settings")
            .header("upgrade", "h2c")
            .header("http2-settings", "AAMAAABkAAQAAP__")
            .body(empty())
            .unwrap()
    };
    orders.send(request(Method::POST)).await.assert_first(201, "order 1");
    orders.send(request(Method::POST)).await.assert_replay(201, "order 1");
    // A WebSocket is none of our business.
    orders.send(request(Method::GET)).await.assert_first(201, "order 2");
    let connect = layer_covering(Method::CONNECT);
    assert_eq!(connect.unwrap_err().setting(), "methods");
}

fn layer_covering(method: Method) -> Result<TestLayer, retrysafe::ConfigError> {
    layer(&store()).settings(|it| it.methods = Methods::from_iter([method])).build()
}

fn keyed_by(source: KeySource, require: bool) -> Guarded {
    let settings = layer(&store()).settings(|it| {
        it.key_source = source;
        it.require_key = require;
        it.inline_body = 1024;
    });
    Guarded::orders(&settings.build().unwrap())
}

fn post(content: &str) -> Request<Body> {
    Request::post("/orders").body(body(content.to_owned())).unwrap()
}

#[tokio::test]
async fn k8_a_key_from_the_body() {
    let source = || KeySource::Json("/request_id".parse().unwrap());
    let orders = keyed_by(source(), false);
    orders.send(post(r#"{"request_id":"r-1"}"#)).await.assert_first(201, "order 1");
    orders.send(post(r#"{"request_id":"r-1"}"#)).await.assert_replay(201, "order 1");
    orders.send(post(r#"{"request_id":"r-1","a":1}"#)).await.assert_problem(422, "key_reused");
    for keyless in ["{}", r#"{"request_id":null}"#] {
        assert!(!orders.send(post(keyless)).await.is_replay());
        assert!(!orders.send(post(keyless)).await.is_replay());
    }
    // K3: a bad key is never ignored, and neither is one that was not reached.
    let runs = orders.runs();
    for bad in
        [r#"{"request_id":{}}"#, r#"{"request_id":"r-1"#, r#"{"request_id":"a","request_id":"b"}"#]
    {
        orders.send(post(bad)).await.assert_problem(400, "invalid_key");
    }
    let long = format!(r#"{{"pad":"{}","request_id":"r-2"}}"#, "x".repeat(2048));
    orders.send(post(&long)).await.assert_problem(400, "missing_key");
    assert_eq!(orders.runs(), runs);

    let required = keyed_by(source(), true);
    required.send(post("{}")).await.assert_problem(400, "missing_key");
    assert_eq!(required.runs(), 0);
}

#[tokio::test]
async fn k8_a_key_from_a_function_of_the_head() {
    let source = KeySource::function(|head| {
        let path = head.uri.path();
        path.strip_prefix("/orders/").map(str::to_owned)
    });
    let orders = keyed_by(source, false);
    let put = |uri: &str| Request::post(uri).body(body("a")).unwrap();
    orders.send(put("/orders/17")).await.assert_first(201, "order 1");
    orders.send(put("/orders/17")).await.assert_replay(201, "order 1");
    orders.send(put("/orders/18")).await.assert_first(201, "order 2");
    orders.send(put("/carts")).await.assert_first(201, "order 3");
    orders.send(put("/carts")).await.assert_first(201, "order 4");
    let long = format!("/orders/{}", "1".repeat(256));
    orders.send(put(&long)).await.assert_problem(400, "invalid_key");
}

#[derive(Clone)]
struct User(&'static str);

#[tokio::test]
async fn k6_k8_only_a_request_with_a_key_is_asked_whose_it_is() {
    let store = store();
    let scope = ScopeFrom::extension(|user: &User| user.0);
    let layer = IdempotencyLayer::builder(store.clone(), scope);
    let layer =
        layer.settings(|it| it.key_source = KeySource::Json("/request_id".parse().unwrap()));
    let orders = Guarded::orders(&layer.build().unwrap());
    for (run, nobodys) in ["{}", r#"{"other":1}"#].into_iter().enumerate() {
        orders.send(post(nobodys)).await.assert_first(201, &format!("order {}", run + 1));
    }
    assert_eq!(store.script().all_calls(), 0);
    let keyed = || post(r#"{"request_id":"r-1"}"#);
    orders.send(keyed()).await.assert_problem(400, "missing_scope");
    let alices = || {
        let mut request = keyed();
        request.extensions_mut().insert(User("alice"));
        request
    };
    orders.send(alices()).await.assert_first(201, "order 3");
    orders.send(alices()).await.assert_replay(201, "order 3");
}

#[tokio::test]
async fn k8_the_content_as_the_key() {
    let orders = keyed_by(KeySource::Content, true);
    orders.send(post("one")).await.assert_first(201, "order 1");
    orders.send(post("one")).await.assert_replay(201, "order 1");
    orders.send(post("two")).await.assert_first(201, "order 2");
    orders.send(post(&"x".repeat(2048))).await.assert_problem(400, "missing_key");
    assert_eq!(orders.runs(), 2);
}
