//! Other people's layers around and inside ours. What each order means is in
//! `docs/guides/order-of-layers.md`; here is the test of every sentence.

use std::{sync::Arc, time::Duration};

use axum::{
    BoxError, Router,
    body::Bytes,
    error_handling::HandleErrorLayer,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{Next, from_fn},
    response::IntoResponse,
    routing::post,
};
use retrysafe_axum::{
    IdempotencyLayer, IdempotentRouter, MemoryStore, OnInFlight, OnUnknownOutcome, Scope,
};
use tokio::sync::Semaphore;
use tower::{
    ServiceBuilder, buffer::BufferLayer, limit::ConcurrencyLimitLayer, limit::RateLimitLayer,
};
use tower_http::{
    compression::CompressionLayer, cors::CorsLayer, timeout::TimeoutLayer, trace::TraceLayer,
};

use crate::support::{self, Answer, Runs, call, create, layer};

const LONG: Duration = Duration::from_secs(3600);

fn orders() -> Router<Runs> {
    Router::new().route("/orders", post(create))
}

fn order() -> Request {
    support::post("/orders", "one")
}

async fn overloaded(_: BoxError) -> StatusCode {
    StatusCode::SERVICE_UNAVAILABLE
}

/// Each layer, inside of ours and around it.
#[tokio::test]
async fn no_layer_is_in_the_way() {
    macro_rules! both {
        ($($layer:expr),* $(,)?) => {
            [$(
                (stringify!($layer), orders().layer($layer).idempotent(layer())),
                (stringify!($layer), orders().idempotent(layer()).layer($layer)),
            )*]
        };
    }
    let buffered = || {
        ServiceBuilder::new()
            .layer(HandleErrorLayer::new(overloaded))
            .layer(BufferLayer::new(1))
            .layer(RateLimitLayer::new(1000, Duration::from_secs(1)))
    };
    let apps = both![
        ConcurrencyLimitLayer::new(1),
        buffered(),
        TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, LONG),
        TraceLayer::new_for_http(),
        CompressionLayer::new(),
        CorsLayer::permissive(),
    ];
    for (place, (name, app)) in apps.into_iter().enumerate() {
        let runs = Runs::default();
        let app = app.with_state(runs.clone());
        let first = call(&app, order()).await;
        assert_eq!(first.status, StatusCode::CREATED, "{name}, {place}");
        let retry = call(&app, order()).await;
        assert!(retry.is_replay(), "{name}, {place}: {retry:?}");
        assert_eq!((retry.status, &retry.body), (first.status, &first.body), "{name}, {place}");
        assert_eq!(runs.so_far(), 1, "{name}, {place}");
    }
}

/// A handler that goes on when it is told.
#[derive(Clone)]
struct Slow {
    runs: Runs,
    started: Arc<Semaphore>,
    go_on: Arc<Semaphore>,
}

impl Slow {
    fn new() -> Self {
        let closed = || Arc::new(Semaphore::new(0));
        Self { runs: Runs::default(), started: closed(), go_on: closed() }
    }

    async fn has_started(&self) {
        self.started.acquire().await.unwrap().forget();
    }
}

async fn slow(State(slow): State<Slow>) -> impl IntoResponse {
    let run = slow.runs.count();
    slow.started.add_permits(1);
    slow.go_on.acquire().await.unwrap().forget();
    (StatusCode::CREATED, format!("order {run}"))
}

fn waiting() -> IdempotencyLayer<MemoryStore> {
    let builder = IdempotencyLayer::builder(MemoryStore::new(), Scope::shared());
    builder.on_in_flight(OnInFlight::wait(LONG)).build().unwrap()
}

fn time_out() -> TimeoutLayer {
    TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, Duration::from_secs(5))
}

#[tokio::test(start_paused = true)]
async fn a_time_out_around_ends_only_the_clients_wait() {
    let handler = Slow::new();
    let app = Router::new()
        .route("/orders", post(slow))
        .idempotent(waiting())
        .layer(time_out())
        .with_state(handler.clone());
    assert_eq!(call(&app, order()).await.status, StatusCode::REQUEST_TIMEOUT);
    handler.go_on.add_permits(1);
    let retry = call(&app, order()).await;
    assert!(retry.is_replay());
    assert_eq!((retry.status, &retry.body[..]), (StatusCode::CREATED, &b"order 1"[..]));
    assert_eq!(handler.runs.so_far(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_time_out_inside_drops_the_work_half_done_and_nobody_knows() {
    let handler = Slow::new();
    let refusing: IdempotencyLayer<_> =
        IdempotencyLayer::builder(MemoryStore::new(), Scope::shared())
            .on_unknown_outcome(OnUnknownOutcome::Refuse)
            .build()
            .unwrap();
    let app = Router::new()
        .route("/orders", post(slow))
        .layer(time_out())
        .idempotent(refusing)
        .with_state(handler.clone());
    assert_eq!(call(&app, order()).await.status, StatusCode::REQUEST_TIMEOUT);
    assert_eq!(call(&app, order()).await.code(), "outcome_unknown");
    assert_eq!(handler.runs.so_far(), 1);
}

tokio::task_local! {
    static TENANT: &'static str;
}

#[tokio::test]
async fn a_task_local_of_a_layer_inside_is_the_handlers_and_one_from_around_may_be_gone() {
    let tenant = async || {
        tokio::task::yield_now().await;
        TENANT.try_with(|tenant| *tenant).unwrap_or("nobody")
    };
    let orders = || Router::new().route("/orders", post(tenant));
    let around = orders().idempotent(layer());
    let inside = orders()
        .layer(from_fn(|request: Request, next: Next| TENANT.scope("acme", next.run(request))))
        .idempotent(layer());
    assert_eq!(&TENANT.scope("acme", call(&around, order())).await.body[..], b"nobody");
    assert_eq!(&call(&inside, order()).await.body[..], b"acme");
}

/// `waiters_eat_pool`: those that wait hold no place of a limit inside.
#[tokio::test]
async fn a_limit_inside_counts_executions_and_one_around_counts_requests() {
    let handler = Slow::new();
    let inside = Router::new()
        .route("/orders", post(slow))
        .layer(ConcurrencyLimitLayer::new(2))
        .idempotent(waiting())
        .with_state(handler.clone());
    let send = |app: &Router, key: &'static str| {
        let app = app.clone();
        tokio::spawn(async move {
            let mut request = order();
            request.headers_mut().insert("idempotency-key", HeaderValue::from_static(key));
            call(&app, request).await
        })
    };
    let duplicates: Vec<_> = (0..10).map(|_| send(&inside, "one")).collect();
    handler.has_started().await;
    // Ten wait for the first; the second place is free.
    let other = send(&inside, "other");
    handler.has_started().await;
    handler.go_on.add_permits(2);
    assert_eq!(other.await.unwrap().status, StatusCode::CREATED);
    for duplicate in duplicates {
        assert_eq!(duplicate.await.unwrap().status, StatusCode::CREATED);
    }
    assert_eq!(handler.runs.so_far(), 2);

    // Around, it bounds those that wait too: they take their turn, and nothing hangs.
    let handler = Slow::new();
    let around = Router::new()
        .route("/orders", post(slow))
        .idempotent(waiting())
        .layer(ConcurrencyLimitLayer::new(2))
        .with_state(handler.clone());
    let duplicates: Vec<_> = (0..10).map(|_| send(&around, "one")).collect();
    handler.has_started().await;
    handler.go_on.add_permits(1);
    for duplicate in duplicates {
        assert_eq!(duplicate.await.unwrap().status, StatusCode::CREATED);
    }
    assert_eq!(handler.runs.so_far(), 1);
}

async fn long_text(State(runs): State<Runs>) -> String {
    runs.count();
    "the same line again, ".repeat(100)
}

fn text() -> Router<Runs> {
    Router::new().route("/orders", post(long_text))
}

fn accepting(encoding: Option<&'static str>) -> Request {
    let mut request = order();
    if let Some(encoding) = encoding {
        let value = HeaderValue::from_static(encoding);
        request.headers_mut().insert(header::ACCEPT_ENCODING, value);
    }
    request
}

fn encoding(answer: &Answer) -> Option<&HeaderValue> {
    answer.headers.get(header::CONTENT_ENCODING)
}

#[tokio::test]
async fn compression_around_asks_each_client_and_inside_asks_the_first() {
    let (gzip, plain) = (Some(HeaderValue::from_static("gzip")), None::<HeaderValue>);
    let around = text().idempotent(layer()).layer(CompressionLayer::new());
    let around = around.with_state(Runs::default());
    let first = call(&around, accepting(Some("gzip"))).await;
    let retry = call(&around, accepting(None)).await;
    assert_eq!((encoding(&first), encoding(&retry)), (gzip.as_ref(), plain.as_ref()));
    assert!(retry.is_replay() && retry.body.starts_with(b"the same line"));

    let inside = text().layer(CompressionLayer::new()).idempotent(layer());
    let inside = inside.with_state(Runs::default());
    let first = call(&inside, accepting(Some("gzip"))).await;
    let retry = call(&inside, accepting(None)).await;
    assert_eq!((encoding(&first), encoding(&retry)), (gzip.as_ref(), gzip.as_ref()));
    assert!(retry.is_replay() && retry.body == first.body, "gzip to who did not ask for it");
}

#[tokio::test]
async fn cors_around_is_on_every_answer_and_inside_on_no_refusal() {
    let from_elsewhere = |body: &'static str| {
        let mut request = support::post("/orders", body);
        let origin = HeaderValue::from_static("https://shop.example");
        request.headers_mut().insert(header::ORIGIN, origin);
        request
    };
    let cors = || {
        CorsLayer::new()
            .allow_origin(HeaderValue::from_static("https://shop.example"))
            .expose_headers([header::HeaderName::from_static("idempotent-replayed")])
    };
    let allows = |headers: &HeaderMap| headers.contains_key("access-control-allow-origin");
    let around = orders().idempotent(layer()).layer(cors()).with_state(Runs::default());
    let inside = orders().layer(cors()).idempotent(layer()).with_state(Runs::default());
    for (app, on_refusals) in [(around, true), (inside, false)] {
        assert!(allows(&call(&app, from_elsewhere("one")).await.headers));
        let replay = call(&app, from_elsewhere("one")).await;
        assert!(replay.is_replay() && allows(&replay.headers));
        let refused = call(&app, from_elsewhere("another")).await;
        assert_eq!(refused.code(), "key_reused");
        assert_eq!(allows(&refused.headers), on_refusals);
        let preflight = Request::options("/orders")
            .header("origin", "https://shop.example")
            .header("access-control-request-method", "POST")
            .header("idempotency-key", "ignored")
            .body(Bytes::new().into())
            .unwrap();
        assert_eq!(call(&app, preflight).await.status, StatusCode::OK);
    }
}
