//! The key and the attempt, as a handler asks for them.

use actix_web::{App, http::StatusCode, web};
use retrysafe_actix::{
    CurrentAttempt, Idempotency, IdempotencyKey, JsonPointer, Key, KeyRules, KeySource,
    MemoryStore, OnStoreFailure, OperationId, OptionalKey, ProblemStyle, Scope,
};
use retrysafe_testkit::{Fault, Faulty, Verb};
use serde_json::{Value, json};

use crate::support::{KEY, app, call, idempotency, keyless, post};

async fn key(Key(key): Key) -> String {
    key.as_str().to_owned()
}

async fn perhaps_key(OptionalKey(key): OptionalKey) -> String {
    key.map_or_else(|| "none".to_owned(), |key| key.as_str().to_owned())
}

async fn attempt(attempt: CurrentAttempt) -> web::Json<Value> {
    web::Json(json!({
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

fn routes(config: &mut web::ServiceConfig) {
    config
        .route("/key", web::post().to(key))
        .route("/perhaps-key", web::post().to(perhaps_key))
        .route("/attempt", web::post().to(attempt))
        .route("/perhaps-attempt", web::post().to(perhaps_attempt))
        .route("/get-attempt", web::get().to(attempt));
}

#[actix_web::test]
async fn k6_a_handler_that_needs_a_key_is_not_run_without() {
    let bare = app!(App::new().configure(routes));
    let guarded = app!(App::new().configure(routes).wrap(idempotency()));
    for uri in ["/key", "/attempt"] {
        for refused in [call!(bare, keyless(uri, "")), call!(guarded, keyless(uri, ""))] {
            assert_eq!(refused.code(), "missing_key", "{uri}");
            assert_eq!(refused.status, StatusCode::BAD_REQUEST);
            assert_eq!(refused.header("cache-control"), Some("no-store"));
        }
    }
    for uri in ["/perhaps-key", "/perhaps-attempt"] {
        for answer in [call!(bare, keyless(uri, "")), call!(guarded, keyless(uri, ""))] {
            assert_eq!(answer.body, "none", "{uri}");
        }
    }
}

#[actix_web::test]
async fn a_key_is_read_with_a_middleware_and_without() {
    let bare = app!(App::new().configure(routes));
    let guarded = app!(App::new().configure(routes).wrap(idempotency()));
    for answer in [call!(bare, post("/key", "")), call!(guarded, post("/key", ""))] {
        assert_eq!(answer.body, KEY);
    }
    assert_eq!(call!(bare, post("/perhaps-key", "")).body, KEY);
}

#[actix_web::test]
async fn k3_a_key_that_cannot_be_read_is_never_ignored() {
    let bare = app!(App::new().configure(routes));
    for uri in ["/key", "/perhaps-key"] {
        for (lines, reason) in
            [(&["a", "b"][..], "duplicate"), (&[""], "empty"), (&["a,b"], "syntax")]
        {
            let mut request = keyless(uri, "");
            for line in lines {
                request = request.append_header(("idempotency-key", *line));
            }
            let refused = call!(bare, request);
            assert_eq!(refused.code(), "invalid_key");
            assert_eq!(refused.json()["reason"], reason);
        }
    }
}

#[actix_web::test]
async fn the_key_is_the_one_that_the_middleware_found() {
    let by_header = Idempotency::builder(MemoryStore::new(), Scope::shared())
        .settings(|it| it.key = KeyRules::default().header("x-request-key".parse().unwrap()))
        .build()
        .unwrap();
    let app = app!(App::new().configure(routes).wrap(by_header));
    let request = keyless("/key", "").insert_header(("X-Request-Key", "\"order 4711\""));
    assert_eq!(call!(app, request).body, "order 4711");

    let by_body = Idempotency::builder(MemoryStore::new(), Scope::shared())
        .settings(|it| {
            let pointer: JsonPointer = "/id".parse().unwrap();
            it.key_source = KeySource::Json(pointer);
        })
        .build()
        .unwrap();
    let app = app!(App::new().configure(routes).wrap(by_body));
    assert_eq!(call!(app, keyless("/key", r#"{"id":"4711"}"#)).body, "4711");
}

#[actix_web::test]
async fn e3_the_attempt_says_what_it_is() {
    let app = app!(App::new().configure(routes).wrap(idempotency()));
    let answer = call!(app, post("/attempt", "")).json();
    let id = OperationId::new("default", &Scope::shared(), &IdempotencyKey::new(KEY).unwrap());
    assert_eq!(answer["number"], 1);
    assert!(answer["fence"].as_u64().unwrap() >= 1);
    assert_eq!(answer["vanished"], false);
    assert_eq!(answer["key"], KEY);
    assert_eq!(answer["charge"], id.derive_key("charge"));
}

#[actix_web::test]
async fn an_attempt_without_a_middleware_is_a_mistake_that_is_told() {
    let bare = app!(App::new().configure(routes));
    let refused = call!(bare, post("/attempt", ""));
    assert_eq!(refused.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(refused.code(), "handler_failed");
    assert!(refused.json()["detail"].as_str().unwrap().contains("No idempotency layer"));

    // K5: a middleware that does not cover the method guards nothing.
    let guarded = app!(App::new().configure(routes).wrap(idempotency()));
    let request = post("/get-attempt", "").method(actix_web::http::Method::GET);
    assert_eq!(call!(guarded, request).code(), "handler_failed");
}

/// The middleware has let it through because it was asked to, and there is nothing to fix in the
/// service.
#[actix_web::test]
async fn d4_an_attempt_that_there_is_not_without_the_store_is_a_matter_of_time() {
    let store = Faulty::new(MemoryStore::new());
    let idempotency = Idempotency::builder(store.clone(), Scope::shared())
        .settings(|it| it.on_store_failure = OnStoreFailure::Bypass)
        .build()
        .unwrap();
    let app = app!(App::new().configure(routes).wrap(idempotency));
    store.script().next(Verb::Begin, Fault::Unreachable);
    let refused = call!(app, post("/attempt", ""));
    assert_eq!((refused.status.as_u16(), refused.code()), (503, "store_unavailable".to_owned()));
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(call!(app, post("/attempt", "")).json()["number"], 1);
}

#[actix_web::test]
async fn rejections_are_rendered_in_the_style_of_the_service() {
    let style = || ProblemStyle::default().base("https://api.example/problems/");
    let by_value = app!(App::new().app_data(style()).configure(routes));
    let by_data = app!(App::new().app_data(web::Data::new(style())).configure(routes));
    for refused in [call!(by_value, keyless("/key", "")), call!(by_data, keyless("/key", ""))] {
        assert_eq!(refused.json()["type"], "https://api.example/problems/missing_key");
    }
}
