//! Where the layer is: inside and outside of nested routers and other layers, on a method, on a
//! handler, around a whole service.

use axum::{
    Router,
    extract::{Request, State},
    handler::Handler as _,
    http::{HeaderValue, StatusCode, Uri},
    middleware::{map_request, map_response},
    response::Response,
    routing::post,
};
use retrysafe_axum::{Engine, IdempotencyLayer, IdempotentRouter, MemoryStore, Scope};
use retrysafe_sqlite::SqliteStore;
use tower::{Layer as _, ServiceExt as _};

use crate::support::{self, Runs, call, create, layer};

#[tokio::test]
async fn nested_route_collision() {
    let runs = Runs::default();
    let store = MemoryStore::new();
    let layer = || IdempotencyLayer::builder(store.clone(), Scope::shared()).build().unwrap();
    // To the layers inside, each of these is `POST /create`.
    let inside = || Router::new().route("/create", post(create)).idempotent(layer());
    let app = Router::new()
        .nest("/orders", inside())
        .nest("/refunds", inside())
        .nest("/deep", Router::new().nest("/er", inside()))
        .nest_service("/service", inside().with_state(runs.clone()))
        .with_state(runs.clone());

    let first = call(&app, support::post("/orders/create", "one")).await;
    assert_eq!(first.status, StatusCode::CREATED);
    call(&app, support::post("/orders/create", "one")).await.replays(&first);
    for other in ["/refunds/create", "/deep/er/create", "/service/create"] {
        let answer = call(&app, support::post(other, "one")).await;
        assert_eq!(answer.code(), "key_reused", "{other}");
    }
    assert_eq!(runs.so_far(), 1);

    // A layer outside of the nesting sees the same operation.
    let outside = Router::new()
        .nest("/orders", Router::new().route("/create", post(create)))
        .idempotent(layer())
        .with_state(runs.clone());
    call(&outside, support::post("/orders/create", "one")).await.replays(&first);
    assert_eq!(runs.so_far(), 1);
}

#[tokio::test]
async fn a_layer_inside_on_another_kind_of_store_claims_too() {
    // One on everything that forgets with its process, by default; one on what must not be forgotten.
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("payments.db")).unwrap();
    let runs = Runs::default();
    let process = || {
        let outside = IdempotencyLayer::builder(MemoryStore::new(), Scope::shared());
        let inside = IdempotencyLayer::builder(store.clone(), Scope::shared());
        Router::new()
            .route("/payments", post(create))
            .idempotent(inside.build().unwrap())
            .idempotent(outside.build().unwrap())
            .with_state(runs.clone())
    };
    let (one, other) = (process(), process());
    let first = call(&one, support::post("/payments", "one")).await;
    assert_eq!(first.status, StatusCode::CREATED);
    // To the layer outside it is a first answer, wherever the inner one has it from (R2).
    let elsewhere = call(&other, support::post("/payments", "one")).await;
    assert_eq!((elsewhere.status, &elsewhere.body), (first.status, &first.body));
    call(&one, support::post("/payments", "one")).await.replays(&first);
    assert_eq!(runs.so_far(), 1);
}

#[tokio::test]
async fn f1_the_builder_can_name_another_original_uri() {
    #[derive(Clone)]
    struct Public(Uri);

    let layer = IdempotencyLayer::builder(MemoryStore::new(), Scope::shared())
        .original_uri(|parts| parts.extensions.get::<Public>().map(|public| &public.0))
        .build()
        .unwrap();
    let runs = Runs::default();
    // What a gateway in front took off the path, it says in a header.
    async fn from_gateway(mut request: Request) -> Request {
        let public = request.headers()["x-public-path"].to_str().unwrap().parse().unwrap();
        request.extensions_mut().insert(Public(public));
        request
    }
    let app = Router::new()
        .route("/create", post(create))
        .idempotent(layer)
        .layer(map_request(from_gateway))
        .with_state(runs.clone());
    let request = |public: &'static str| {
        let mut request = support::post("/create", "one");
        request.headers_mut().insert("x-public-path", HeaderValue::from_static(public));
        request
    };
    let first = call(&app, request("/a/create")).await;
    call(&app, request("/a/create")).await.replays(&first);
    assert_eq!(call(&app, request("/b/create")).await.code(), "key_reused");
}

#[tokio::test]
async fn every_place_replays() {
    let runs = Runs::default();
    let places: [(&str, Router<Runs>); 4] = [
        ("router", Router::new().route("/", post(create)).idempotent(layer())),
        ("layer", Router::new().route("/", post(create)).layer(layer())),
        ("method", Router::new().route("/", post(create).idempotent(layer()))),
        ("handler", Router::new().route("/", post(create.layer(layer())))),
    ];
    for (place, app) in places {
        let before = runs.so_far();
        let app = app.with_state(runs.clone());
        let first = call(&app, support::post("/", "one")).await;
        call(&app, support::post("/", "one")).await.replays(&first);
        assert_eq!(runs.so_far(), before + 1, "{place}");
    }
}

#[tokio::test]
async fn a_whole_service_replays() {
    let runs = Runs::default();
    let router: Router = Router::new().route("/", post(create)).with_state(runs.clone());
    let service = layer().layer(router);
    for replayed in [false, true] {
        let response = service.clone().oneshot(support::post("/", "one")).await.unwrap();
        assert_eq!(response.status(), StatusCode::CREATED);
        assert_eq!(response.headers().contains_key("idempotent-replayed"), replayed);
    }
    assert_eq!(runs.so_far(), 1);
}

#[tokio::test]
async fn a_fallback_may_act_and_is_guarded() {
    let runs = Runs::default();
    let app = Router::new().fallback(create).idempotent(layer()).with_state(runs.clone());
    let first = call(&app, support::post("/anything", "one")).await;
    call(&app, support::post("/anything", "one")).await.replays(&first);
    assert_eq!(runs.so_far(), 1);
}

#[tokio::test]
async fn what_layers_inside_add_is_kept_and_what_layers_outside_add_is_not() {
    async fn count(State(runs): State<Runs>, name: &'static str, response: Response) -> Response {
        let mut response = response;
        response.headers_mut().insert(name, HeaderValue::from(runs.count()));
        response
    }
    let (inside, outside) = (Runs::default(), Runs::default());
    let (of_inside, of_outside) = (inside.clone(), outside.clone());
    let app = Router::new()
        .route("/", post(create))
        .layer(map_response(move |it| count(State(of_inside.clone()), "x-inside", it)))
        .idempotent(layer())
        .layer(map_response(move |it| count(State(of_outside.clone()), "x-outside", it)))
        .with_state(Runs::default());
    let first = call(&app, support::post("/", "one")).await;
    let retry = call(&app, support::post("/", "one")).await;
    assert!(retry.is_replay());
    assert_eq!(
        (&first.headers["x-inside"], &retry.headers["x-inside"]),
        (&HeaderValue::from(1), &HeaderValue::from(1))
    );
    assert_eq!(retry.headers["x-outside"], "2");
}

#[tokio::test]
async fn layers_that_share_an_engine_share_its_records() {
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let layer = || IdempotencyLayer::sharing(&engine, Scope::shared()).build().unwrap();
    let runs = Runs::default();
    let app = Router::new()
        .route("/orders", post(create).idempotent(layer()))
        .route("/refunds", post(create).idempotent(layer()))
        .with_state(runs.clone());
    call(&app, support::post("/orders", "one")).await;
    assert_eq!(call(&app, support::post("/refunds", "one")).await.code(), "key_reused");
    engine.drain().await;
    assert_eq!(runs.so_far(), 1);
}
