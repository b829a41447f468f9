//! First, retry, and everything that is neither.

use std::{
    cell::Cell,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Mutex},
};

use actix_web::{
    App, Error, HttpMessage as _, HttpRequest, HttpResponse,
    body::MessageBody,
    dev::{Service as _, ServiceRequest, ServiceResponse},
    error::{ErrorConflict, ErrorForbidden, ErrorInternalServerError, ErrorNotFound},
    http::{Method, StatusCode},
    middleware::{Next, from_fn},
    web,
};
use bytes::Bytes;
use retrysafe_actix::{
    CurrentAttempt, Idempotency, MemoryStore, OnUnknownOutcome, OutcomePolicy, Scope, ScopeFrom,
};
use serde_json::{Value, json};

use crate::support::{
    self, KEY, Runs, User, app, authenticate, call, create, idempotency, keyless,
};

#[actix_web::test]
async fn r2_a_retry_gets_the_first_answer() {
    let runs = Runs::default();
    let app = app!(
        App::new()
            .app_data(runs.data())
            .service(web::resource("/orders").route(web::post().to(create)).wrap(idempotency()))
    );
    let first = call!(app, support::post("/orders", "one"));
    assert_eq!((first.status, first.header("location")), (StatusCode::CREATED, Some("/orders/1")));
    call!(app, support::post("/orders", "one")).replays(&first);
    assert_eq!(runs.so_far(), 1);
}

#[actix_web::test]
async fn k5_k6_what_is_not_covered_passes_through() {
    let runs = Runs::default();
    let app = app!(App::new().app_data(runs.data()).wrap(idempotency()).service(
        web::resource("/orders").route(web::post().to(create)).route(web::put().to(create))
    ));
    let put = || support::post("/orders", "one").method(Method::PUT);
    let keyless = || keyless("/orders", "one");
    for (run, request) in [keyless(), keyless(), put(), put()].into_iter().enumerate() {
        let answer = call!(app, request);
        assert_eq!(answer.json(), json!({ "run": run + 1, "received": 3 }));
        assert!(!answer.is_replay());
    }
}

#[actix_web::test]
async fn k6_a_key_may_be_required() {
    let required =
        Idempotency::builder(MemoryStore::new(), Scope::shared()).require_key().build().unwrap();
    let runs = Runs::default();
    let app =
        app!(App::new().app_data(runs.data()).wrap(required).route("/", web::post().to(create)));
    assert_eq!(call!(app, keyless("/", "")).code(), "missing_key");
    assert_eq!(runs.so_far(), 0);
}

#[actix_web::test]
async fn other_path_replays() {
    let runs = Runs::default();
    let app = app!(
        App::new()
            .app_data(runs.data())
            .wrap(idempotency())
            .service(
                web::resource("/orders")
                    .route(web::post().to(create))
                    .route(web::patch().to(create))
            )
            .route("/refunds", web::post().to(create))
    );
    call!(app, support::post("/orders", "one"));
    for other in [
        support::post("/refunds", "one"),
        support::post("/orders?dry_run=1", "one"),
        support::post("/orders", "two"),
        support::post("/nowhere", "one"),
        support::post("/orders", "one").method(Method::PATCH),
    ] {
        assert_eq!(call!(app, other).code(), "key_reused");
    }
    assert_eq!(runs.so_far(), 1);
}

#[actix_web::test]
async fn s1_without_a_scope_nothing_runs() {
    let runs = Runs::default();
    let scope = ScopeFrom::extension(|user: &User| user.0.clone());
    let idempotency = Idempotency::builder(MemoryStore::new(), scope).build().unwrap();
    let app = app!(
        App::new()
            .app_data(runs.data())
            .route("/orders", web::post().to(create))
            .wrap(idempotency)
            .wrap(from_fn(authenticate))
    );
    assert_eq!(call!(app, support::post("/orders", "one")).code(), "missing_scope");
    assert_eq!(runs.so_far(), 0);
}

#[actix_web::test]
async fn cross_tenant_replay() {
    let scopes = [
        ScopeFrom::extension(|user: &User| user.0.clone()),
        ScopeFrom::function(|request| {
            request.extensions().get::<User>().map(|user| Scope::from_bytes(&user.0))
        }),
        ScopeFrom::async_function(|request| {
            // Nothing of this has to be `Send`.
            let user = request.extensions().get::<User>().cloned().map(Rc::new);
            async move {
                tokio::task::yield_now().await;
                user.map(|user| Scope::from_bytes(&user.0))
            }
        }),
        ScopeFrom::header("x-user-id").unwrap(),
    ];
    for scope in scopes {
        let runs = Runs::default();
        let idempotency = Idempotency::builder(MemoryStore::new(), scope).build().unwrap();
        let app = app!(
            App::new()
                .app_data(runs.data())
                .route("/orders", web::post().to(create))
                .wrap(idempotency)
                .wrap(from_fn(authenticate))
        );
        let by = |user: &str| support::post("/orders", "one").insert_header(("x-user-id", user));
        let alice = call!(app, by("alice"));
        let bob = call!(app, by("bob"));
        assert_eq!((&alice.json()["run"], &bob.json()["run"]), (&json!(1), &json!(2)));
        call!(app, by("alice")).replays(&alice);
        call!(app, by("bob")).replays(&bob);
    }
}

#[actix_web::test]
async fn s1_what_the_scope_is_taken_from_need_not_be_send() {
    struct Session(Rc<str>);

    async fn log_in<B: MessageBody>(
        request: ServiceRequest,
        next: Next<B>,
    ) -> Result<ServiceResponse<B>, Error> {
        request.extensions_mut().insert(Session("alice".into()));
        next.call(request).await
    }
    let scope = ScopeFrom::extension(|session: &Session| session.0.as_bytes().to_owned());
    let idempotency = Idempotency::builder(MemoryStore::new(), scope).build().unwrap();
    let app = app!(
        App::new()
            .app_data(Runs::default().data())
            .route("/", web::post().to(create))
            .wrap(idempotency)
            .wrap(from_fn(log_in))
    );
    let first = call!(app, support::post("/", ""));
    call!(app, support::post("/", "")).replays(&first);
}

#[actix_web::test]
async fn e5_a_panic_is_a_500_and_the_next_attempt_is_told() {
    async fn fails_once(attempt: CurrentAttempt, runs: web::Data<Runs>) -> web::Json<Value> {
        assert!(runs.count() > 1, "the first run fails");
        web::Json(json!({ "attempt": attempt.number(), "vanished": attempt.previous_vanished() }))
    }
    let service = |policy| {
        let idempotency = Idempotency::builder(MemoryStore::new(), Scope::shared());
        App::new()
            .app_data(Runs::default().data())
            .route("/orders", web::post().to(fails_once))
            .wrap(idempotency.on_unknown_outcome(policy).build().unwrap())
    };
    let again = app!(service(OnUnknownOutcome::Reexecute));
    let failed = call!(again, support::post("/orders", ""));
    assert_eq!(
        (failed.status, failed.code()),
        (StatusCode::INTERNAL_SERVER_ERROR, "handler_failed".into())
    );
    let second = call!(again, support::post("/orders", ""));
    assert_eq!(second.json(), json!({ "attempt": 2, "vanished": true }));
    call!(again, support::post("/orders", "")).replays(&second);

    let never = app!(service(OnUnknownOutcome::Refuse));
    assert_eq!(call!(never, support::post("/orders", "")).code(), "handler_failed");
    assert_eq!(call!(never, support::post("/orders", "")).code(), "outcome_unknown");
}

/// PROTOCOL 5: an error is the response that it renders to.
#[actix_web::test]
async fn an_error_of_a_handler_is_a_response_like_any() {
    async fn fails(path: web::Path<u16>, runs: web::Data<Runs>) -> Result<HttpResponse, Error> {
        let said = format!("run {}", runs.count());
        Err(match *path {
            404 => ErrorNotFound(said),
            409 => ErrorConflict(said),
            _ => ErrorInternalServerError(said),
        })
    }
    let runs = Runs::default();
    let idempotency = Idempotency::builder(MemoryStore::new(), Scope::shared())
        .on_unknown_outcome(OnUnknownOutcome::Refuse)
        .build()
        .unwrap();
    let app = app!(
        App::new()
            .app_data(runs.data())
            .route("/fails/{status}", web::post().to(fails))
            .wrap(idempotency)
    );
    let request = |status: u16| {
        support::keyless(&format!("/fails/{status}"), "")
            .insert_header(("idempotency-key", status.to_string()))
    };
    let kept = call!(app, request(404));
    assert_eq!((kept.status, &kept.body[..]), (StatusCode::NOT_FOUND, &b"run 1"[..]));
    call!(app, request(404)).replays(&kept);
    // Released: the next try runs.
    assert_eq!(call!(app, request(409)).body, "run 2");
    assert_eq!(call!(app, request(409)).body, "run 3");
    // Ambiguous: nobody knows what it did.
    assert_eq!(call!(app, request(500)).body, "run 4");
    assert_eq!(call!(app, request(500)).code(), "outcome_unknown");
    assert_eq!(runs.so_far(), 4);
}

#[actix_web::test]
async fn an_error_of_a_middleware_inside_is_one_too() {
    async fn forbid<B: MessageBody>(
        request: ServiceRequest,
        _: Next<B>,
    ) -> Result<ServiceResponse<B>, Error> {
        let runs = request.app_data::<web::Data<Runs>>().unwrap();
        Err(ErrorForbidden(format!("refusal {}", runs.count())))
    }
    let runs = Runs::default();
    let app = app!(
        App::new()
            .app_data(runs.data())
            .route("/", web::post().to(create))
            .wrap(from_fn(forbid))
            .wrap(idempotency())
    );
    // Outside it is still an error, for those who handle errors.
    let error = app.call(support::post("/", "").to_request()).await.err().unwrap();
    assert_eq!(error.to_string(), "refusal 1");
    let first = support::read(HttpResponse::from_error(error)).await;
    assert_eq!((first.status, &first.body[..]), (StatusCode::FORBIDDEN, &b"refusal 1"[..]));
    call!(app, support::post("/", "")).replays(&first);
    assert_eq!(runs.so_far(), 1);
}

#[actix_web::test]
async fn what_actix_knows_of_a_request_reaches_the_handler() {
    struct Note(Rc<Cell<u32>>);

    async fn tell(request: HttpRequest, path: web::Path<(String, u32)>) -> web::Json<Value> {
        let note = request.extensions().get::<Note>().unwrap().0.get();
        let all: Vec<_> =
            request.headers().get_all("x-many").map(|it| it.to_str().unwrap()).collect();
        web::Json(json!({
            "path": *path,
            "pattern": request.match_pattern(),
            "name": request.match_name(),
            "query": request.query_string(),
            "data": ***request.app_data::<web::Data<&str>>().unwrap(),
            "inner_data": *request.app_data::<u8>().unwrap(),
            "host": request.connection_info().host(),
            "peer": request.peer_addr().unwrap().to_string(),
            "note": note,
            "many": all,
            "version": format!("{:?}", request.version()),
        }))
    }
    let note = Rc::new(Cell::new(7));
    let app = app!(
        App::new()
            .app_data(web::Data::new("outer"))
            .wrap_fn(move |request, next| {
                request.extensions_mut().insert(Note(note.clone()));
                next.call(request)
            })
            .service(web::scope("/shops/{shop}").app_data(5_u8).wrap(idempotency()).service(
                web::resource("/orders/{order}").name("order").route(web::post().to(tell))
            ))
    );
    let peer: SocketAddr = "192.0.2.1:4711".parse().unwrap();
    let request = || {
        support::post("/shops/london/orders/7?x=%20y", "body")
            .insert_header(("host", "orders.example"))
            .append_header(("x-many", "one"))
            .append_header(("x-many", "two"))
            .peer_addr(peer)
    };
    let first = call!(app, request());
    assert_eq!(
        first.json(),
        json!({
            "path": ["london", 7],
            "pattern": "/shops/{shop}/orders/{order}",
            "name": "order",
            "query": "x=%20y",
            "data": "outer",
            "inner_data": 5,
            "host": "orders.example",
            "peer": "192.0.2.1:4711",
            "note": 7,
            "many": ["one", "two"],
            "version": "HTTP/1.1",
        })
    );
    call!(app, request()).replays(&first);
}

#[actix_web::test]
async fn what_actix_knows_of_a_response_reaches_what_is_outside() {
    struct Mark;

    async fn marked() -> Result<HttpResponse, Error> {
        let mut response = HttpResponse::Accepted().reason("Noted").finish();
        response.extensions_mut().insert(Mark);
        Ok(response)
    }
    let seen = Arc::new(Mutex::new(Vec::new()));
    let seeing = seen.clone();
    let app = app!(
        App::new()
            .route("/", web::post().to(marked))
            .route("/fails", web::post().to(async || Err::<&str, _>(ErrorNotFound("nothing"))))
            .wrap(idempotency())
            .wrap_fn(move |request, next| {
                let seen = seeing.clone();
                let answer = next.call(request);
                async move {
                    let answer = answer.await?;
                    let response = answer.response();
                    seen.lock().unwrap().push((
                        response.head().reason().to_owned(),
                        response.extensions().get::<Mark>().is_some(),
                        response.error().map(ToString::to_string),
                        answer.request().path().to_owned(),
                    ));
                    Ok(answer)
                }
            })
    );
    for _ in 0..2 {
        call!(app, support::post("/", ""));
    }
    for _ in 0..2 {
        call!(app, support::post("/fails", "").insert_header(("idempotency-key", "other")));
    }
    let saw = |reason: &str, mark, error: Option<&str>, path: &str| {
        (reason.to_owned(), mark, error.map(str::to_owned), path.to_owned())
    };
    assert_eq!(
        *seen.lock().unwrap(),
        [
            saw("Noted", true, None, "/"),
            // A replay is what was kept of it.
            saw("Accepted", false, None, "/"),
            saw("Not Found", false, Some("nothing"), "/fails"),
            saw("Not Found", false, None, "/fails"),
        ]
    );
}

#[actix_web::test]
async fn k7_an_upgrade_bypasses_nothing() {
    async fn tell(request: HttpRequest, runs: web::Data<Runs>, body: Bytes) -> web::Json<Value> {
        let names: Vec<_> = ["upgrade", "http2-settings", "connection"]
            .into_iter()
            .filter(|name| request.headers().contains_key(*name))
            .collect();
        web::Json(json!({ "run": runs.count(), "names": names, "length": body.len() }))
    }
    let app = app!(
        App::new()
            .app_data(Runs::default().data())
            .route("/", web::post().to(tell))
            .wrap(idempotency())
    );
    let request = || {
        support::post("/", "body")
            .insert_header(("connection", "Upgrade, HTTP2-Settings"))
            .insert_header(("upgrade", "h2c"))
            .insert_header(("http2-settings", "AAMAAABk"))
    };
    let first = call!(app, request());
    assert_eq!(first.json(), json!({ "run": 1, "names": [], "length": 4 }));
    call!(app, request()).replays(&first);
}

#[actix_web::test]
async fn a_middleware_around_another_of_the_same_operation_runs_once() {
    let runs = Runs::default();
    let idempotency = idempotency();
    let app = app!(
        App::new()
            .app_data(runs.data())
            .service(web::resource("/").route(web::post().to(create)).wrap(idempotency.clone()))
            .wrap(idempotency)
    );
    let first = call!(app, support::post("/", ""));
    assert_eq!(first.status, StatusCode::CREATED);
    call!(app, support::post("/", "")).replays(&first);
    assert_eq!(runs.so_far(), 1);
}

#[actix_web::test]
async fn outcomes_can_be_chosen() {
    let runs = Runs::default();
    let idempotency = Idempotency::builder(MemoryStore::new(), Scope::shared())
        .outcomes(OutcomePolicy::Stripe)
        .build()
        .unwrap();
    let handler = async |runs: web::Data<Runs>| {
        HttpResponse::InternalServerError().body(runs.count().to_string())
    };
    let app = app!(
        App::new().app_data(runs.data()).route("/", web::post().to(handler)).wrap(idempotency)
    );
    let first = call!(app, support::post("/", ""));
    call!(app, support::post("/", "")).replays(&first);
}

#[actix_web::test]
async fn s3_debug_shows_no_key() {
    async fn debug(
        attempt: CurrentAttempt,
        key: retrysafe_actix::Key,
        optional: retrysafe_actix::OptionalKey,
    ) -> String {
        format!("{attempt:?} {key:?} {optional:?}")
    }
    let app = app!(App::new().route("/", web::post().to(debug)).wrap(idempotency()));
    let answer = call!(app, support::post("/", ""));
    assert_eq!(answer.status, StatusCode::OK);
    assert!(!String::from_utf8_lossy(&answer.body).contains(&KEY[..8]));
}
