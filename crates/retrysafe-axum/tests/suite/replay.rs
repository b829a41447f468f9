//! First, retry, and everything that is neither.

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Multipart, Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::Response,
    routing::{get, post},
};
use retrysafe_axum::{
    CurrentAttempt, IdempotencyLayer, IdempotentRouter, MemoryStore, OnUnknownOutcome, Scope,
    ScopeFrom,
};
use serde_json::{Value, json};

use crate::support::{self, Answer, Runs, call, create, layer};

#[derive(Clone)]
struct User(String);

/// Authentication, as far as a test needs it.
async fn authenticate(mut request: Request, next: Next) -> Response {
    if let Some(user) = request.headers().get("x-user-id") {
        let user = User(user.to_str().unwrap().to_owned());
        request.extensions_mut().insert(user);
    }
    next.run(request).await
}

fn orders(runs: &Runs) -> Router {
    Router::new()
        .route("/orders", post(create).put(create))
        .idempotent(layer())
        .with_state(runs.clone())
}

#[tokio::test]
async fn r2_a_retry_gets_the_first_answer() {
    let runs = Runs::default();
    let app = orders(&runs);
    let first = call(&app, support::post("/orders", "one")).await;
    let retry = call(&app, support::post("/orders", "one")).await;
    assert_eq!(
        (first.status, &first.headers["location"]),
        (StatusCode::CREATED, &"/orders/1".parse().unwrap())
    );
    retry.replays(&first);
    assert_eq!(runs.so_far(), 1);
}

#[tokio::test]
async fn k5_k6_what_is_not_covered_passes_through() {
    let runs = Runs::default();
    let app = orders(&runs);
    let keyless = || Request::post("/orders").body("one".into()).unwrap();
    let put = || {
        Request::put("/orders").header("idempotency-key", support::KEY).body("one".into()).unwrap()
    };
    for (run, request) in [keyless(), keyless(), put(), put()].into_iter().enumerate() {
        let answer = call(&app, request).await;
        assert_eq!(answer.json()["run"], run + 1);
        assert!(!answer.is_replay());
    }
}

#[tokio::test]
async fn other_path_replays() {
    let runs = Runs::default();
    let app = Router::new()
        .route("/orders", post(create).patch(create))
        .route("/refunds", post(create))
        .idempotent(layer())
        .with_state(runs.clone());
    call(&app, support::post("/orders", "one")).await;
    let mut patch = support::post("/orders", "one");
    *patch.method_mut() = axum::http::Method::PATCH;
    for other in [
        support::post("/refunds", "one"),
        support::post("/orders?dry_run=1", "one"),
        support::post("/orders", "two"),
        support::post("/nowhere", "one"),
        patch,
    ] {
        assert_eq!(call(&app, other).await.code(), "key_reused");
    }
    assert_eq!(runs.so_far(), 1);
}

#[tokio::test]
async fn s1_without_a_scope_nothing_runs() {
    let runs = Runs::default();
    let scope = ScopeFrom::extension(|user: &User| user.0.clone());
    let layer = IdempotencyLayer::builder(MemoryStore::new(), scope).build().unwrap();
    let app = Router::new()
        .route("/orders", post(create))
        .idempotent(layer)
        .layer(middleware::from_fn(authenticate))
        .with_state(runs.clone());
    assert_eq!(call(&app, support::post("/orders", "one")).await.code(), "missing_scope");
    assert_eq!(runs.so_far(), 0);
}

#[tokio::test]
async fn cross_tenant_replay() {
    let runs = Runs::default();
    let scope = ScopeFrom::extension(|user: &User| user.0.clone());
    let layer = IdempotencyLayer::builder(MemoryStore::new(), scope).build().unwrap();
    let app = Router::new()
        .route("/orders", post(create))
        .idempotent(layer)
        .layer(middleware::from_fn(authenticate))
        .with_state(runs.clone());
    let as_user = |user: &'static str| {
        let mut request = support::post("/orders", "one");
        request.headers_mut().insert("x-user-id", user.parse().unwrap());
        request
    };
    let alice = call(&app, as_user("alice")).await;
    let bob = call(&app, as_user("bob")).await;
    assert_eq!((&alice.json()["run"], &bob.json()["run"]), (&json!(1), &json!(2)));
    call(&app, as_user("alice")).await.replays(&alice);
    call(&app, as_user("bob")).await.replays(&bob);
}

#[tokio::test]
async fn e5_a_panic_is_a_500_and_the_next_attempt_is_told() {
    async fn fails_once(attempt: CurrentAttempt, State(runs): State<Runs>) -> Json<Value> {
        assert!(runs.count() > 1, "the first run fails");
        Json(json!({ "attempt": attempt.number(), "vanished": attempt.previous_vanished() }))
    }
    let app = |policy| {
        let layer = IdempotencyLayer::builder(MemoryStore::new(), Scope::shared());
        Router::new()
            .route("/orders", post(fails_once))
            .idempotent(layer.on_unknown_outcome(policy).build().unwrap())
            .with_state(Runs::default())
    };
    let again = app(OnUnknownOutcome::Reexecute);
    let failed = call(&again, support::post("/orders", "")).await;
    assert_eq!(
        (failed.status, failed.code()),
        (StatusCode::INTERNAL_SERVER_ERROR, "handler_failed".into())
    );
    let second = call(&again, support::post("/orders", "")).await;
    assert_eq!(second.json(), json!({ "attempt": 2, "vanished": true }));
    call(&again, support::post("/orders", "")).await.replays(&second);

    let never = app(OnUnknownOutcome::Refuse);
    assert_eq!(call(&never, support::post("/orders", "")).await.code(), "handler_failed");
    assert_eq!(call(&never, support::post("/orders", "")).await.code(), "outcome_unknown");
}

/// A layer that reads next to nothing ahead.
fn small_layer() -> IdempotencyLayer<MemoryStore> {
    IdempotencyLayer::builder(MemoryStore::new(), Scope::shared())
        .settings(|settings| settings.inline_body = 1024)
        .build()
        .unwrap()
}

#[tokio::test]
async fn f4_extractors_read_bodies_that_are_longer_than_what_is_read_ahead() {
    async fn json_in(Extension(runs): Extension<Runs>, Json(it): Json<Value>) -> Json<Value> {
        Json(json!({ "run": runs.count(), "length": it["text"].as_str().unwrap().len() }))
    }
    async fn parts_in(Extension(runs): Extension<Runs>, mut parts: Multipart) -> Json<Value> {
        let mut lengths = Vec::new();
        while let Some(part) = parts.next_field().await.unwrap() {
            lengths.push(part.bytes().await.unwrap().len());
        }
        Json(json!({ "run": runs.count(), "lengths": lengths }))
    }
    let app = Router::new()
        .route("/json", post(json_in))
        .route("/parts", post(parts_in))
        .idempotent(small_layer())
        .layer(Extension(Runs::default()));

    let text = "x".repeat(200 * 1024);
    let document = |text: &str| json!({ "text": text }).to_string();
    let form = |text: &str| {
        format!(
            "--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n{text}\r\n\
             --b\r\nContent-Disposition: form-data; name=\"c\"\r\n\r\nsmall\r\n--b--\r\n"
        )
    };
    let request = |uri, content_type: &'static str, key: &'static str, body: String| {
        Request::post(uri)
            .header("idempotency-key", key)
            .header("content-type", content_type)
            .body(body.into())
            .unwrap()
    };
    let json_request = |text: &str| request("/json", "application/json", "json", document(text));
    let form_request =
        |text: &str| request("/parts", "multipart/form-data; boundary=b", "form", form(text));

    let first = call(&app, json_request(&text)).await;
    assert_eq!(first.json(), json!({ "run": 1, "length": text.len() }));
    call(&app, json_request(&text)).await.replays(&first);
    let first = call(&app, form_request(&text)).await;
    assert_eq!(first.json(), json!({ "run": 2, "lengths": [text.len(), 5] }));
    call(&app, form_request(&text)).await.replays(&first);

    let changed = text.replacen('x', "y", 1);
    assert_eq!(call(&app, json_request(&changed)).await.code(), "key_reused");
    assert_eq!(call(&app, form_request(&changed)).await.code(), "key_reused");
    let longer = text + "x";
    assert_eq!(call(&app, json_request(&longer)).await.code(), "key_reused");
}

#[tokio::test]
async fn the_body_limit_of_axum_holds_behind_the_layer() {
    let runs = Runs::default();
    let app = Router::new()
        .route("/orders", post(create))
        .layer(DefaultBodyLimit::max(4096))
        .idempotent(small_layer())
        .with_state(runs.clone());
    let too_long = call(&app, support::post("/orders", vec![b'x'; 8192])).await;
    assert_eq!(too_long.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(runs.so_far(), 0);
}

#[tokio::test]
async fn binary_body_lost() {
    let bytes: Vec<u8> = (0..=255).cycle().take(4096).collect();
    let copy = bytes.clone();
    let app: Router = Router::new()
        .route("/", post(move || std::future::ready(Bytes::from(copy.clone()))))
        .idempotent(layer());
    let first = call(&app, support::post("/", "")).await;
    assert_eq!(first.body, bytes);
    call(&app, support::post("/", "")).await.replays(&first);
}

#[tokio::test]
async fn an_unknown_method_of_a_known_route_is_answered_by_axum() {
    let app: Router = Router::new().route("/", get(|| async {})).idempotent(layer());
    let refused: Answer = call(&app, support::post("/", "")).await;
    assert_eq!(refused.status, StatusCode::METHOD_NOT_ALLOWED);
    assert!(refused.headers.contains_key("allow"));
}
