//! Who a key belongs to (PROTOCOL 2, S1 to S4).

use http::Request;
use retrysafe::{Engine, IdempotencyLayer, Scope, ScopeFrom};

use crate::common::*;

#[derive(Clone)]
struct User(&'static str);

fn scoped(scope: ScopeFrom) -> (TestStore, Guarded) {
    let store = store();
    let layer = IdempotencyLayer::builder(store.clone(), scope).build().unwrap();
    (store, Guarded::orders(&layer))
}

fn from(headers: &[(&'static str, &'static str)]) -> Request<Body> {
    let mut request = order("k", "a");
    for (name, value) in headers {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    request
}

#[tokio::test]
async fn s1_a_scope_that_finds_nobody_refuses() {
    let sources = [
        ScopeFrom::extension(|user: &User| user.0),
        ScopeFrom::header("x-account").unwrap(),
        ScopeFrom::cookie("session").unwrap(),
        ScopeFrom::function(|_| None),
        ScopeFrom::async_function(|_| async { None }),
    ];
    for source in sources {
        let (store, orders) = scoped(source);
        orders.send(order("k", "a")).await.assert_problem(400, "missing_scope");
        assert_eq!((orders.runs(), store.script().all_calls()), (0, 0));
        // Without a key there is nothing to belong to anybody.
        orders.send(keyless()).await.assert_first(201, "order 1");
    }
}

#[tokio::test]
async fn s1_a_scope_from_an_extension() {
    let (_, orders) = scoped(ScopeFrom::extension(|user: &User| user.0));
    let by = |user| {
        let mut request = order("k", "a");
        request.extensions_mut().insert(User(user));
        request
    };
    orders.send(by("alice")).await.assert_first(201, "order 1");
    orders.send(by("bob")).await.assert_first(201, "order 2");
    orders.send(by("alice")).await.assert_replay(201, "order 1");
}

#[tokio::test]
async fn s1_a_scope_from_a_header_a_cookie_or_an_async_function() {
    let (_, orders) = scoped(ScopeFrom::header("x-account").unwrap());
    orders.send(from(&[("x-account", "1")])).await.assert_first(201, "order 1");
    orders.send(from(&[("x-account", "2")])).await.assert_first(201, "order 2");
    orders.send(from(&[("x-account", "1")])).await.assert_replay(201, "order 1");
    let two_lines = from(&[("x-account", "1"), ("x-account", "2")]);
    orders.send(two_lines).await.assert_problem(400, "missing_scope");

    let (_, orders) = scoped(ScopeFrom::cookie("session").unwrap());
    orders.send(from(&[("cookie", "a=1; session=x")])).await.assert_first(201, "order 1");
    orders.send(from(&[("cookie", "session=x; a=2")])).await.assert_replay(201, "order 1");
    orders.send(from(&[("cookie", "session=y")])).await.assert_first(201, "order 2");

    let (_, orders) = scoped(ScopeFrom::async_function(|head| {
        let name = head.headers.get("x-account").map(|it| it.as_bytes().to_vec());
        async {
            tokio::task::yield_now().await;
            name.map(Scope::from_bytes)
        }
    }));
    orders.send(from(&[("x-account", "1")])).await.assert_first(201, "order 1");
    orders.send(from(&[("x-account", "1")])).await.assert_replay(201, "order 1");
}

#[tokio::test]
async fn s1_credentials_with_one_anonymous_scope() {
    let (_, orders) = scoped(ScopeFrom::credentials());
    orders.send(from(&[("authorization", "Bearer one")])).await.assert_first(201, "order 1");
    orders.send(from(&[("authorization", "Bearer two")])).await.assert_first(201, "order 2");
    orders.send(from(&[("authorization", "bearer one")])).await.assert_replay(201, "order 1");
    orders.send(from(&[])).await.assert_first(201, "order 3");
    orders.send(from(&[])).await.assert_replay(201, "order 3");
    // Two of these would be one caller, and get each other's answers (`cross_tenant_replay`).
    for other in [
        ("cookie", "session=1"),
        ("x-api-key", "1"),
        ("x-auth-key", "1"),
        ("x-auth-token", "1"),
        ("x-access-token", "1"),
        ("x-amz-security-token", "1"),
        ("x-authorization", "Bearer one"),
        ("authorization", "Signature x"),
        ("signature", "sig1=:eA==:"),
        ("signature-input", "sig1=();created=1"),
        ("x-hub-signature-256", "sha256=78"),
        ("dpop", "eyJ0eXAiOiJkcG9wK2p3dCJ9"),
        ("client-cert", ":eA==:"),
        ("x-forwarded-client-cert", "Hash=78"),
    ] {
        let refused = orders.send(from(&[other])).await;
        refused.assert_problem(400, "missing_scope");
        let detail = refused.member("detail").to_string();
        assert!(detail.contains("--scope header:") && detail.contains("cookie:"), "{detail}");
    }
}

#[tokio::test]
async fn separator_collision() {
    // S2: scope `a:b` with key `c` was the same record as scope `a` with key `b:c`.
    let (_, orders) = scoped(ScopeFrom::header("x-account").unwrap());
    let request = |scope: &'static str, key| {
        let mut request = order(key, "a");
        request.headers_mut().append("x-account", scope.parse().unwrap());
        request
    };
    orders.send(request("a:b", "c")).await.assert_first(201, "order 1");
    orders.send(request("a", "b:c")).await.assert_first(201, "order 2");
    orders.send(request("a:b", "c")).await.assert_replay(201, "order 1");
}

#[tokio::test]
async fn s4_a_namespace_separates_layers_that_share_a_store() {
    let store = store();
    let engine = Engine::builder(store.clone()).build().unwrap();
    let named = |namespace| {
        let layer = IdempotencyLayer::sharing(&engine, Scope::shared()).namespace(namespace);
        Guarded::new(&layer.build().unwrap(), move |run, _| async move {
            http::Response::new(body(format!("{namespace} {run}")))
        })
    };
    let (orders, refunds) = (named("orders"), named("refunds"));
    orders.send(order("k", "a")).await.assert_first(200, "orders 1");
    refunds.send(order("k", "a")).await.assert_first(200, "refunds 1");
    orders.send(order("k", "a")).await.assert_replay(200, "orders 1");
    refunds.send(order("k", "a")).await.assert_replay(200, "refunds 1");
}
