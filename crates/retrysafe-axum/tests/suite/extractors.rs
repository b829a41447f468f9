//! The key and the attempt, as a handler asks for them.

use axum::{
    Extension, Json, Router,
    extract::Request,
    http::{HeaderName, StatusCode},
    routing::{get, post},
};
use retrysafe_axum::{
    CurrentAttempt, IdempotencyKey, IdempotencyLayer, IdempotentRouter, JsonPointer, Key, KeyRules,
    KeySource, MemoryStore, OnStoreFailure, OperationId, ProblemStyle, Scope,
};
use retrysafe_testkit::{Fault, Faulty, Verb};
use serde_json::{Value, json};

use crate::support::{KEY, call, layer, post as post_with_key};

async fn key(Key(key): Key) -> String {
    key.as_str().to_owned()
}

async fn perhaps_key(key: Option<Key>) -> String {
    key.map_or_else(|| "none".to_owned(), |Key(key)| key.as_str().to_owned())
}

async fn attempt(attempt: CurrentAttempt) -> Json<Value> {
    Json(json!({
        "number": attempt.number(),
        "fence": attempt.fence(),
        "vanished": attempt.previous_vanished(),
        "key": attempt.key().as_str(),
        "charge": attempt.derive_key("charge"),
    }))
}

async fn perhaps_attempt(attempt: Option<CurrentAttempt>) -> String {
    attempt.map_or_else(|| "none".to_owned(), |attempt| attempt.number().to_string())
}

fn routes() -> Router {
    Router::new()
        .route("/key", post(key))
        .route("/perhaps-key", post(perhaps_key))
        .route("/attempt", post(attempt))
        .route("/perhaps-attempt", post(perhaps_attempt))
}

fn keyless(uri: &str) -> Request {
    Request::post(uri).body("".into()).unwrap()
}

#[tokio::test]
async fn k6_a_handler_that_needs_a_key_is_not_run_without() {
    for app in [routes(), routes().idempotent(layer())] {
        for uri in ["/key", "/attempt"] {
            let refused = call(&app, keyless(uri)).await;
            assert_eq!(refused.code(), "missing_key", "{uri}");
            assert_eq!(refused.status, StatusCode::BAD_REQUEST);
            assert_eq!(refused.headers["cache-control"], "no-store");
        }
        for uri in ["/perhaps-key", "/perhaps-attempt"] {
            assert_eq!(call(&app, keyless(uri)).await.body, "none", "{uri}");
        }
    }
}

#[tokio::test]
async fn a_key_is_read_with_a_layer_and_without() {
    for app in [routes(), routes().idempotent(layer())] {
        assert_eq!(call(&app, post_with_key("/key", "")).await.body, KEY);
    }
    assert_eq!(call(&routes(), post_with_key("/perhaps-key", "")).await.body, KEY);
}

#[tokio::test]
async fn k3_a_key_that_cannot_be_read_is_never_ignored() {
    let request = |uri: &str, lines: &[&str]| {
        let mut request = keyless(uri);
        for line in lines {
            request.headers_mut().append("idempotency-key", line.parse().unwrap());
        }
        request
    };
    for uri in ["/key", "/perhaps-key"] {
        for (lines, reason) in
            [(&["a", "b"][..], "duplicate"), (&[""], "empty"), (&["a,b"], "syntax")]
        {
            let refused = call(&routes(), request(uri, lines)).await;
            assert_eq!(refused.code(), "invalid_key");
            assert_eq!(refused.json()["reason"], reason);
        }
    }
}

#[tokio::test]
async fn the_key_is_the_one_that_the_layer_found() {
    let by_header = IdempotencyLayer::builder(MemoryStore::new(), Scope::shared())
        .settings(|it| {
            it.key = KeyRules::default().header(HeaderName::from_static("x-request-key"));
        })
        .build()
        .unwrap();
    let mut request = keyless("/key");
    request.headers_mut().insert("x-request-key", "\"order 4711\"".parse().unwrap());
    assert_eq!(call(&routes().idempotent(by_header), request).await.body, "order 4711");

    let by_body = IdempotencyLayer::builder(MemoryStore::new(), Scope::shared())
        .settings(|it| {
            let pointer: JsonPointer = "/id".parse().unwrap();
            it.key_source = KeySource::Json(pointer);
        })
        .build()
        .unwrap();
    let request = Request::post("/key").body(r#"{"id":"4711"}"#.into()).unwrap();
    assert_eq!(call(&routes().idempotent(by_body), request).await.body, "4711");
}

#[tokio::test]
async fn e3_the_attempt_says_what_it_is() {
    let app = routes().idempotent(layer());
    let answer = call(&app, post_with_key("/attempt", "")).await.json();
    let id = OperationId::new("default", &Scope::shared(), &IdempotencyKey::new(KEY).unwrap());
    assert_eq!(answer["number"], 1);
    assert!(answer["fence"].as_u64().unwrap() >= 1);
    assert_eq!(answer["vanished"], false);
    assert_eq!(answer["key"], KEY);
    assert_eq!(answer["charge"], id.derive_key("charge"));
}

#[tokio::test]
async fn an_attempt_without_a_layer_is_a_mistake_that_is_told() {
    let refused = call(&routes(), post_with_key("/attempt", "")).await;
    assert_eq!(refused.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(refused.code(), "handler_failed");
    assert!(refused.json()["detail"].as_str().unwrap().contains("No idempotency layer"));

    // K5: a layer that does not cover the method guards nothing.
    let app: Router = Router::new().route("/", get(attempt)).idempotent(layer());
    let request = Request::get("/").header("idempotency-key", KEY).body("".into()).unwrap();
    assert_eq!(call(&app, request).await.code(), "handler_failed");
}

/// The layer has let it through because it was asked to, and there is nothing to fix in the service.
#[tokio::test]
async fn d4_an_attempt_that_there_is_not_without_the_store_is_a_matter_of_time() {
    let store = Faulty::new(MemoryStore::new());
    let layer = IdempotencyLayer::builder(store.clone(), Scope::shared())
        .settings(|it| it.on_store_failure = OnStoreFailure::Bypass)
        .build()
        .unwrap();
    let app = routes().idempotent(layer);
    store.script().next(Verb::Begin, Fault::Unreachable);
    let refused = call(&app, post_with_key("/attempt", "")).await;
    assert_eq!((refused.status.as_u16(), refused.code()), (503, "store_unavailable".to_owned()));
    assert_eq!(refused.headers["retry-after"], "1");
    store.script().next(Verb::Begin, Fault::Unreachable);
    assert_eq!(call(&app, post_with_key("/perhaps-attempt", "")).await.body, "none");
    assert_eq!(call(&app, post_with_key("/attempt", "")).await.json()["number"], 1);
}

#[tokio::test]
async fn rejections_are_rendered_in_the_style_of_the_service() {
    let style = ProblemStyle::default().base("https://api.example/problems/");
    let app = routes().layer(Extension(style));
    let refused = call(&app, keyless("/key")).await;
    assert_eq!(refused.json()["type"], "https://api.example/problems/missing_key");
}

#[tokio::test]
async fn s3_debug_shows_no_key() {
    async fn debug(key: Key, attempt: CurrentAttempt) -> String {
        format!("{key:?} {attempt:?}")
    }
    let app: Router = Router::new().route("/", post(debug)).idempotent(layer());
    let answer = call(&app, post_with_key("/", "")).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(!String::from_utf8_lossy(&answer.body).contains(&KEY[..8]));
}
