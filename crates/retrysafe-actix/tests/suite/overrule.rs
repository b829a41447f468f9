//! E4: what a handler says of its own response.

use std::{sync::Arc, time::Duration};

use actix_web::{App, HttpResponse, HttpResponseBuilder, Responder, http::StatusCode, web};
use retrysafe_actix::{Idempotency, MemoryStore, OnUnknownOutcome, Overrule, Scope};
use retrysafe_testkit::ManualClock;

use crate::support::{Runs, app, call, idempotency, keyless, post};

/// An app whose handler answers each time with a status and what it says of it.
macro_rules! answering {
    ($runs:expr, $status:expr, $overrule:expr) => {{
        let idempotency = Idempotency::builder(MemoryStore::new(), Scope::shared())
            .on_unknown_outcome(OnUnknownOutcome::Refuse)
            .build()
            .unwrap();
        let handler = async |runs: web::Data<Runs>| {
            $overrule.of(HttpResponseBuilder::new($status).body(runs.count().to_string()))
        };
        app!(
            App::new().app_data($runs.data()).route("/", web::post().to(handler)).wrap(idempotency)
        )
    }};
}

#[actix_web::test]
async fn e4_store_keeps_what_the_policy_would_not() {
    let runs = Runs::default();
    let app = answering!(runs, StatusCode::INTERNAL_SERVER_ERROR, Overrule::store());
    let first = call!(app, post("/", ""));
    call!(app, post("/", "")).replays(&first);
    assert_eq!(runs.so_far(), 1);
}

#[actix_web::test]
async fn e4_release_frees_the_key() {
    let runs = Runs::default();
    let app = answering!(runs, StatusCode::OK, Overrule::release());
    assert_eq!(call!(app, post("/", "")).body, "1");
    let second = call!(app, post("/", ""));
    assert!(!second.is_replay());
    assert_eq!(second.body, "2");
}

#[actix_web::test]
async fn e4_unknown_leaves_it_to_the_policy_of_unknown_outcomes() {
    let runs = Runs::default();
    let app = answering!(runs, StatusCode::OK, Overrule::unknown());
    assert_eq!(call!(app, post("/", "")).body, "1");
    assert_eq!(call!(app, post("/", "")).code(), "outcome_unknown");
    assert_eq!(runs.so_far(), 1);
}

#[actix_web::test]
async fn e4_omit_body_finishes_without_the_response() {
    let runs = Runs::default();
    let app = answering!(runs, StatusCode::CREATED, Overrule::omit_body());
    assert_eq!(call!(app, post("/", "")).body, "1");
    let retry = call!(app, post("/", ""));
    assert_eq!(retry.code(), "response_unavailable");
    assert_eq!(retry.json()["original_status"], 201);
    assert_eq!(runs.so_far(), 1);
}

#[actix_web::test]
async fn e4_retention_of_one_response() {
    let clock = ManualClock::new();
    let store = MemoryStore::builder().clock(Arc::new(clock.clone())).build().unwrap();
    let idempotency = Idempotency::builder(store, Scope::shared()).build().unwrap();
    let handler = async |runs: web::Data<Runs>| {
        Overrule::default().retention(Duration::from_secs(60)).of(runs.count().to_string())
    };
    let app = app!(
        App::new()
            .app_data(Runs::default().data())
            .route("/", web::post().to(handler))
            .wrap(idempotency)
    );
    let first = call!(app, post("/", ""));
    clock.advance(Duration::from_secs(59));
    call!(app, post("/", "")).replays(&first);
    clock.advance(Duration::from_secs(2));
    let later = call!(app, post("/", ""));
    assert!(!later.is_replay());
    assert_eq!(later.body, "2");
}

#[actix_web::test]
async fn e4_an_extension_of_the_response_says_the_same() {
    async fn handler(runs: web::Data<Runs>) -> HttpResponse {
        let mut response = HttpResponse::Ok().body(runs.count().to_string());
        response.extensions_mut().insert(Overrule::release());
        response
    }
    let app = app!(
        App::new()
            .app_data(Runs::default().data())
            .route("/", web::post().to(handler))
            .wrap(idempotency())
    );
    assert_eq!(call!(app, post("/", "")).body, "1");
    assert_eq!(call!(app, post("/", "")).body, "2");
}

#[actix_web::test]
async fn without_a_middleware_an_overrule_says_nothing() {
    async fn handler() -> impl Responder {
        Overrule::release().of("done")
    }
    let bare = app!(App::new().route("/", web::post().to(handler)));
    assert_eq!(call!(bare, post("/", "")).body, "done");
    // Nor does it for a request without a key.
    let guarded = app!(App::new().route("/", web::post().to(handler)).wrap(idempotency()));
    assert_eq!(call!(guarded, keyless("/", "")).body, "done");
}
