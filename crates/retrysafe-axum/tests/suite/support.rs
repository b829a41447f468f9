//! What the tests share: a service that counts, and how it is called.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
};
use http_body_util::BodyExt as _;
use retrysafe_axum::{IdempotencyLayer, MemoryStore, Scope};
use serde_json::{Value, json};
use tower::ServiceExt as _;

pub(crate) const KEY: &str = "8e03978e-40d5-43e8-bc93-6894a57f9324";

/// How often handlers have run.
#[derive(Clone, Default)]
pub(crate) struct Runs(Arc<AtomicU32>);

impl Runs {
    /// Counts one more, and says which it is.
    pub(crate) fn count(&self) -> u32 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub(crate) fn so_far(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Answers 201 with the number of the run.
pub(crate) async fn create(State(runs): State<Runs>, body: Bytes) -> impl IntoResponse {
    let run = runs.count();
    let headers = [(header::LOCATION, format!("/orders/{run}"))];
    (StatusCode::CREATED, headers, Json(json!({ "run": run, "received": body.len() })))
}

/// A layer with the defaults, for one trusted client.
pub(crate) fn layer() -> IdempotencyLayer<MemoryStore> {
    IdempotencyLayer::builder(MemoryStore::new(), Scope::shared()).build().unwrap()
}

/// A POST with a key.
pub(crate) fn post(uri: &str, body: impl Into<Body>) -> Request {
    Request::post(uri).header("idempotency-key", KEY).body(body.into()).unwrap()
}

/// An answer that has been read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn is_replay(&self) -> bool {
        self.headers.contains_key("idempotent-replayed")
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The code of a problem.
    pub(crate) fn code(&self) -> String {
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/problem+json");
        self.json()["code"].as_str().unwrap().to_owned()
    }

    /// Holds a replay against the answer that it repeats.
    #[track_caller]
    pub(crate) fn replays(&self, first: &Self) {
        assert!(!first.is_replay() && self.is_replay());
        assert_eq!(self.status, first.status);
        assert_eq!(self.body, first.body);
        let mut headers = self.headers.clone();
        headers.remove("idempotent-replayed");
        assert_eq!(headers, first.headers);
    }
}

pub(crate) async fn call(app: &Router, request: Request) -> Answer {
    let response = app.clone().oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer { status: head.status, headers: head.headers, body }
}
