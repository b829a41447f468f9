//! `Once` in a handler, without a layer (O4).

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use retrysafe_axum::{
    CurrentAttempt, IdempotencyLayer, IdempotentRouter as _, Key, MemoryStore, Once, Overrule,
    ProblemStyle, Scope,
};
use serde_json::{Value, json};

use crate::support::*;

#[derive(Clone)]
struct App {
    once: Once<MemoryStore>,
    runs: Runs,
}

async fn create(State(app): State<App>, Key(key): Key, Json(order): Json<Value>) -> Response {
    let runs = app.runs.clone();
    let fails = order["fails"] == true;
    app.once
        .respond("create", &Scope::shared(), key.as_str(), &order, move |context| async move {
            let run = runs.count();
            let told = json!({ "run": run, "attempt": context.number() });
            match fails {
                true => (Overrule::release(), StatusCode::NOT_FOUND).into_response(),
                false => (StatusCode::CREATED, [("location", "/1")], Json(told)).into_response(),
            }
        })
        .await
        .into_response()
}

fn app() -> (App, Router) {
    let style = ProblemStyle::default().base("https://e.test/");
    let once = Once::builder(MemoryStore::new()).settings(|it| it.problems = style);
    let app = App { once: once.build().unwrap(), runs: Runs::default() };
    let router = Router::new().route("/orders", post(create)).with_state(app.clone());
    (app, router)
}

fn order(order: Value) -> axum::extract::Request {
    let mut request = post_json(order.to_string());
    request.headers_mut().insert("idempotency-key", KEY.parse().unwrap());
    request
}

fn post_json(body: String) -> axum::extract::Request {
    let mut request = crate::support::post("/orders", body);
    request.headers_mut().insert("content-type", "application/json".parse().unwrap());
    request
}

#[tokio::test]
async fn o4_one_line_in_a_handler() {
    let (app, router) = app();
    let first = call(&router, order(json!({ "item": "book" }))).await;
    assert_eq!(
        (first.status, first.json()),
        (StatusCode::CREATED, json!({ "run": 1, "attempt": 1 }))
    );
    call(&router, order(json!({ "item": "book" }))).await.replays(&first);

    let reused = call(&router, order(json!({ "item": "lamp" }))).await;
    assert_eq!((reused.status.as_u16(), reused.code()), (422, "key_reused".to_owned()));
    assert_eq!(reused.json()["type"], "https://e.test/key_reused");
    assert_eq!(app.runs.so_far(), 1);
}

#[tokio::test]
async fn k3_without_a_key_or_with_a_bad_one_nothing_runs() {
    let (app, router) = app();
    let mut request = order(json!({ "item": "book" }));
    request.headers_mut().remove("idempotency-key");
    assert_eq!(call(&router, request).await.code(), "missing_key");
    let mut request = order(json!({ "item": "book" }));
    request.headers_mut().insert("idempotency-key", "a, b".parse().unwrap());
    assert_eq!(call(&router, request).await.code(), "invalid_key");
    assert_eq!(app.runs.so_far(), 0);
}

#[tokio::test]
async fn e4_a_response_overrules_its_outcome() {
    let (app, router) = app();
    for run in [1, 2] {
        let answer = call(&router, order(json!({ "fails": true }))).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        assert_eq!(app.runs.so_far(), run);
    }
}

#[tokio::test]
async fn o4_a_step_inside_a_guarded_handler_on_the_same_engine() {
    let layer = IdempotencyLayer::builder(MemoryStore::new(), Scope::shared()).build().unwrap();
    let once = Once::sharing(layer.engine()).build().unwrap();
    let app = App { once, runs: Runs::default() };
    async fn handler(State(app): State<App>, attempt: CurrentAttempt) -> Response {
        let key = attempt.key().clone();
        let runs = app.runs.clone();
        let mail = app.once.run("mail", &Scope::shared(), key.as_str(), &(), move |_| async move {
            Ok::<_, String>(runs.count())
        });
        // The request's own outcome is unknown; its step is done.
        (StatusCode::INTERNAL_SERVER_ERROR, mail.await.unwrap().value.to_string()).into_response()
    }
    let router = Router::new().route("/orders", post(handler));
    let router = router.idempotent(layer).with_state(app.clone());
    for _ in 0..2 {
        let answer = call(&router, order(json!({}))).await;
        assert_eq!((answer.status.as_u16(), &answer.body[..]), (500, &b"1"[..]));
    }
    assert_eq!(app.runs.so_far(), 1);
}
