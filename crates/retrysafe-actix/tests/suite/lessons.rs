//! The mistakes of others, on this door.

use std::sync::Arc;

use actix_web::{
    App, HttpRequest, HttpResponse,
    dev::Service as _,
    http::{StatusCode, Uri},
    web,
};
use bytes::Bytes;
use retrysafe_actix::{
    CurrentAttempt, Idempotency, MemoryStore, OnStoreFailure, OptionalKey, Scope, ScopeFrom,
    StoreError, StoreErrorKind,
};
use retrysafe_testkit::{Fault, Faulty, Verb};
use serde_json::json;

use crate::support::{self, KEY, Runs, Watched, app, call, create, idempotency, keyless};

/// Answers two posts, and says whether the second was the replay of the first.
async fn second_replays(response: impl Fn(u32) -> HttpResponse + 'static) -> bool {
    let (runs, response) = (Runs::default(), Arc::new(response));
    let handler = move |runs: web::Data<Runs>| {
        let response = response.clone();
        async move { response(runs.count()) }
    };
    let app = app!(
        App::new().app_data(runs.data()).route("/", web::post().to(handler)).wrap(idempotency())
    );
    let first = call!(app, support::post("/", ""));
    let second = call!(app, support::post("/", ""));
    if second.is_replay() {
        // Cookies are for whoever was there (R3).
        let mut kept = first;
        kept.headers.remove("set-cookie");
        second.replays(&kept);
        assert_eq!(runs.so_far(), 1);
    }
    second.is_replay()
}

#[actix_web::test]
async fn no_store_reruns() {
    let answer =
        |_| HttpResponse::Ok().insert_header(("cache-control", "no-store")).body("charged");
    assert!(second_replays(answer).await);
}

#[actix_web::test]
async fn set_cookie_reruns() {
    let answer =
        |run| HttpResponse::Ok().insert_header(("set-cookie", format!("s={run}"))).body("charged");
    assert!(second_replays(answer).await);
}

#[actix_web::test]
async fn repeated_headers_lost() {
    let answer = |_| {
        HttpResponse::Ok()
            .append_header(("link", "</a>; rel=next"))
            .append_header(("x-custom", "one"))
            .append_header(("link", "</b>; rel=last"))
            .append_header(("x-custom", "two"))
            .finish()
    };
    assert!(second_replays(answer).await);
}

#[actix_web::test]
async fn status_changed() {
    let answer = |run: u32| {
        HttpResponse::Created()
            .insert_header(("location", format!("/orders/{run}")))
            .insert_header(("etag", format!("\"{run}\"")))
            .finish()
    };
    assert!(second_replays(answer).await);
    assert!(second_replays(|_| HttpResponse::NoContent().finish()).await);
}

#[actix_web::test]
async fn binary_body_lost() {
    let bytes: Vec<u8> = (0..=255).cycle().take(4096).collect();
    assert!(second_replays(move |_| HttpResponse::Ok().body(bytes.clone())).await);
}

#[actix_web::test]
async fn cached_500() {
    assert!(!second_replays(|_| HttpResponse::InternalServerError().finish()).await);
    assert!(!second_replays(|_| HttpResponse::TooManyRequests().finish()).await);
    assert!(second_replays(|_| HttpResponse::UnprocessableEntity().finish()).await);
}

#[actix_web::test]
async fn quoted_key_differs() {
    let app = app!(
        App::new()
            .app_data(Runs::default().data())
            .route("/", web::post().to(create))
            .wrap(idempotency())
    );
    let first = call!(app, support::post("/", ""));
    let quoted = keyless("/", "").insert_header(("Idempotency-Key", format!("\"{KEY}\"")));
    call!(app, quoted).replays(&first);
}

#[actix_web::test]
async fn long_key_unprotected() {
    let runs = Runs::default();
    let app = app!(
        App::new().app_data(runs.data()).route("/", web::post().to(create)).wrap(idempotency())
    );
    let long = "k".repeat(256);
    for (lines, reason) in [
        (&["a", "b"][..], "duplicate"),
        (&[""], "empty"),
        (&["a,b"], "syntax"),
        (&["schl\u{fc}ssel"], "syntax"),
        (&[&long], "too_long"),
    ] {
        let mut request = keyless("/", "");
        for line in lines {
            request = request.append_header(("idempotency-key", line.as_bytes()));
        }
        let refused = call!(app, request);
        assert_eq!(refused.code(), "invalid_key");
        assert_eq!(
            (refused.status, &refused.json()["reason"]),
            (StatusCode::BAD_REQUEST, &json!(reason))
        );
        assert_eq!(refused.header("cache-control"), Some("no-store"));
    }
    assert_eq!(runs.so_far(), 0);
}

#[actix_web::test]
async fn separator_collision() {
    let runs = Runs::default();
    let scope = ScopeFrom::header("x-user-id").unwrap();
    let idempotency = Idempotency::builder(MemoryStore::new(), scope).build().unwrap();
    let app =
        app!(App::new().app_data(runs.data()).route("/", web::post().to(create)).wrap(idempotency));
    for (user, key) in [("a:b", "c"), ("a", "b:c")] {
        let request = keyless("/", "")
            .insert_header(("x-user-id", user))
            .insert_header(("idempotency-key", key));
        assert!(!call!(app, request).is_replay());
    }
    assert_eq!(runs.so_far(), 2);
}

/// The request is changed inside; the outcome goes to the operation that was claimed.
#[actix_web::test]
async fn recomputed_key() {
    let runs = Runs::default();
    let app = app!(
        App::new()
            .app_data(runs.data())
            .route("/inside", web::post().to(create))
            .wrap_fn(|mut request, next| {
                request.head_mut().uri = Uri::from_static("/inside");
                request.match_info_mut().get_mut().update(&Uri::from_static("/inside"));
                request.headers_mut().remove("idempotency-key");
                next.call(request)
            })
            .wrap(idempotency())
    );
    let first = call!(app, support::post("/outside", ""));
    assert_eq!(first.status, StatusCode::CREATED);
    call!(app, support::post("/outside", "")).replays(&first);
    assert_eq!(call!(app, support::post("/inside", "")).code(), "key_reused");
    assert_eq!(runs.so_far(), 1);
}

#[actix_web::test]
async fn failed_complete_deletes() {
    let store = Faulty::new(MemoryStore::new());
    let idempotency = Idempotency::builder(store.clone(), Scope::shared()).build().unwrap();
    let runs = Runs::default();
    let app = app!(
        App::new()
            .app_data(runs.data())
            .route("/", web::post().to(create))
            .wrap(idempotency.clone())
    );
    store.script().next(Verb::Complete, Fault::FailBefore);
    let first = call!(app, support::post("/", ""));
    assert_eq!(first.status, StatusCode::CREATED);
    // R7: it is told, and the write is retried.
    assert_eq!(first.header("idempotency-status"), Some("not-recorded"));
    idempotency.engine().drain().await;
    let retry = call!(app, support::post("/", ""));
    assert!(retry.is_replay() && retry.body == first.body);
    assert_eq!(runs.so_far(), 1);
}

#[actix_web::test]
async fn d4_without_the_store_nothing_runs_unless_it_was_asked_for() {
    async fn tell(
        runs: web::Data<Runs>,
        key: OptionalKey,
        attempt: Option<CurrentAttempt>,
        request: HttpRequest,
        body: Bytes,
    ) -> HttpResponse {
        assert_eq!(request.path(), "/");
        HttpResponse::Created().json(json!({
            "run": runs.count(),
            "key": key.0.unwrap().as_str(),
            "attempt": attempt.is_some(),
            "received": body.len(),
        }))
    }
    for (on_failure, runs_after) in [(OnStoreFailure::Fail, 0), (OnStoreFailure::Bypass, 1)] {
        let store = Watched::new(|verb| {
            (verb == Verb::Begin).then(|| StoreError::new(StoreErrorKind::Unreachable, "down"))
        });
        let idempotency = Idempotency::builder(store, Scope::shared())
            .settings(|settings| settings.on_store_failure = on_failure)
            .build()
            .unwrap();
        let runs = Runs::default();
        let app = app!(
            App::new().app_data(runs.data()).route("/", web::post().to(tell)).wrap(idempotency)
        );
        let answer = call!(app, support::post("/", "body"));
        assert_eq!(runs.so_far(), runs_after);
        if on_failure == OnStoreFailure::Bypass {
            assert_eq!(answer.header("idempotency-status"), Some("bypassed"));
            assert_eq!(
                answer.json(),
                json!({ "run": 1, "key": KEY, "attempt": false, "received": 4 })
            );
        } else {
            assert_eq!(answer.code(), "store_unavailable");
            assert_eq!(answer.header("retry-after"), Some("1"));
        }
    }
}

#[actix_web::test]
async fn bypass_poll_ready() {
    use std::{
        future::{Ready, ready},
        task::{Context, Poll},
    };

    use actix_web::{
        Error,
        dev::{Service, ServiceRequest, Transform},
    };

    /// Panics when it is called without having been asked whether it is ready.
    struct Strict;
    struct StrictService<I>(I, std::cell::Cell<bool>);

    impl<I: Service<ServiceRequest, Error = Error>> Transform<I, ServiceRequest> for Strict {
        type Response = I::Response;
        type Error = Error;
        type Transform = StrictService<I>;
        type InitError = ();
        type Future = Ready<Result<StrictService<I>, ()>>;

        fn new_transform(&self, inner: I) -> Self::Future {
            ready(Ok(StrictService(inner, std::cell::Cell::new(false))))
        }
    }

    impl<I: Service<ServiceRequest, Error = Error>> Service<ServiceRequest> for StrictService<I> {
        type Response = I::Response;
        type Error = Error;
        type Future = I::Future;

        fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
            self.1.set(true);
            self.0.poll_ready(cx)
        }

        fn call(&self, request: ServiceRequest) -> I::Future {
            assert!(self.1.replace(false), "called without poll_ready");
            self.0.call(request)
        }
    }

    let app = app!(
        App::new()
            .app_data(Runs::default().data())
            .route("/", web::post().to(create))
            .wrap(Strict)
            .wrap(idempotency())
    );
    for request in [keyless("/", ""), support::post("/", "")] {
        std::future::poll_fn(|cx| app.poll_ready(cx)).await.unwrap();
        assert_eq!(call!(app, request).status, StatusCode::CREATED);
    }
}
