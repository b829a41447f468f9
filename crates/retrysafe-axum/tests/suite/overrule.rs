//! E4: what a handler says of its own response.

use std::{sync::Arc, time::Duration};

use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::post};
use retrysafe_axum::{
    IdempotencyLayer, IdempotentRouter, MemoryStore, OnUnknownOutcome, OutcomeOverrule, Overrule,
    Scope,
};
use retrysafe_testkit::ManualClock;

use crate::support::{Runs, call, layer, post as post_with_key};

/// A handler that answers each time with a status and what it says of it.
fn app(runs: &Runs, status: StatusCode, overrule: Overrule) -> Router {
    let handler = move |State(runs): State<Runs>| async move {
        (status, overrule, runs.count().to_string()).into_response()
    };
    let layer = IdempotencyLayer::builder(MemoryStore::new(), Scope::shared())
        .on_unknown_outcome(OnUnknownOutcome::Refuse)
        .build()
        .unwrap();
    Router::new().route("/", post(handler)).idempotent(layer).with_state(runs.clone())
}

#[tokio::test]
async fn e4_store_keeps_what_the_policy_would_not() {
    let runs = Runs::default();
    let app = app(&runs, StatusCode::INTERNAL_SERVER_ERROR, Overrule::store());
    let first = call(&app, post_with_key("/", "")).await;
    call(&app, post_with_key("/", "")).await.replays(&first);
    assert_eq!(runs.so_far(), 1);
}

#[tokio::test]
async fn e4_release_frees_the_key() {
    let runs = Runs::default();
    let app = app(&runs, StatusCode::OK, Overrule::release());
    assert_eq!(call(&app, post_with_key("/", "")).await.body, "1");
    let second = call(&app, post_with_key("/", "")).await;
    assert!(!second.is_replay());
    assert_eq!(second.body, "2");
}

#[tokio::test]
async fn e4_unknown_leaves_it_to_the_policy_of_unknown_outcomes() {
    let runs = Runs::default();
    let app = app(&runs, StatusCode::OK, Overrule::unknown());
    assert_eq!(call(&app, post_with_key("/", "")).await.body, "1");
    assert_eq!(call(&app, post_with_key("/", "")).await.code(), "outcome_unknown");
    assert_eq!(runs.so_far(), 1);
}

#[tokio::test]
async fn e4_omit_body_finishes_without_the_response() {
    let runs = Runs::default();
    let app = app(&runs, StatusCode::CREATED, Overrule::omit_body());
    assert_eq!(call(&app, post_with_key("/", "")).await.body, "1");
    let retry = call(&app, post_with_key("/", "")).await;
    assert_eq!(retry.code(), "response_unavailable");
    assert_eq!(retry.json()["original_status"], 201);
    assert_eq!(runs.so_far(), 1);
}

#[tokio::test]
async fn e4_retention_of_one_response() {
    let clock = ManualClock::new();
    let store = MemoryStore::builder().clock(Arc::new(clock.clone())).build().unwrap();
    let layer = IdempotencyLayer::builder(store, Scope::shared()).build().unwrap();
    let runs = Runs::default();
    let handler = |State(runs): State<Runs>| async move {
        (Overrule::default().retention(Duration::from_secs(60)), runs.count().to_string())
    };
    let app = Router::new().route("/", post(handler)).idempotent(layer).with_state(runs.clone());
    let first = call(&app, post_with_key("/", "")).await;
    clock.advance(Duration::from_secs(59));
    call(&app, post_with_key("/", "")).await.replays(&first);
    clock.advance(Duration::from_secs(2));
    let later = call(&app, post_with_key("/", "")).await;
    assert!(!later.is_replay());
    assert_eq!(later.body, "2");
}

#[tokio::test]
async fn without_a_layer_an_overrule_says_nothing() {
    let value = retrysafe::Overrule { outcome: Some(OutcomeOverrule::Release), retention: None };
    let handler = move || async move { (Overrule::from(value), "done") };
    let app: Router = Router::new().route("/", post(handler));
    let answer = call(&app, post_with_key("/", "")).await;
    assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, &b"done"[..]));
    // Nor does it for a request without a key.
    let app = app.idempotent(layer());
    let keyless = axum::extract::Request::post("/").body("".into()).unwrap();
    assert_eq!(call(&app, keyless).await.body, "done");
}
