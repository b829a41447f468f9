//! The case table on an Axum router, and in an Axum handler without a layer.

use std::net::SocketAddr;

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{OriginalUri, Request},
    http::Method,
    response::IntoResponse,
    routing::any,
};
use retrysafe_axum::{IdempotencyLayer, IdempotentRouter, Key, MemoryStore, Once, Scope, Unnamed};
use retrysafe_testkit::doors::{self, Door, Place, Profile, Service};
use tokio::net::TcpListener;

struct Axum;

impl Door for Axum {
    const PLACE: Place = Place::InProcess;

    async fn open(&self, service: Service, profile: Profile) -> SocketAddr {
        let layer: IdempotencyLayer<_> =
            IdempotencyLayer::builder(MemoryStore::new(), Scope::shared())
                .settings(|settings| profile.change(settings))
                .build()
                .expect("the settings of a profile fit together");
        let answer = any(move |OriginalUri(original): OriginalUri, mut request: Request| {
            let service = service.clone();
            *request.uri_mut() = original;
            async move { service.answer(request).await.map(Body::new) }
        });
        // Nested: the layer has to find what the client sent.
        let case = Router::new().route("/", answer.clone()).route("/{*below}", answer);
        let case = case.idempotent(layer);
        serve(Router::new().nest("/{case}", case)).await
    }
}

async fn serve(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn the_case_table() {
    doors::all(&Axum).await;
}

/// No layer: the handler keeps its own response, and says what a layer would have found out.
struct InHandler;

impl Door for InHandler {
    const PLACE: Place = Place::InProcess;

    async fn open(&self, service: Service, profile: Profile) -> SocketAddr {
        let once = Once::builder(MemoryStore::new())
            .unnamed(Unnamed::RunUnprotected)
            .settings(|settings| profile.change(settings))
            .build()
            .expect("the settings of a profile fit together");
        let answer = any(move |key: Option<Key>, method: Method, request: Request| async move {
            if method != Method::POST && method != Method::PATCH {
                return service.answer(request).await.map(Body::new).into_response();
            }
            let (head, body) = request.into_parts();
            let body = to_bytes(body, usize::MAX).await.expect("a body with an end");
            let operation = format!("{method} {}", head.uri);
            let input = String::from_utf8_lossy(&body).into_owned();
            let key = key.as_ref().map(|Key(key)| key.as_str());
            let request = Request::from_parts(head, Body::from(body));
            let place = |_| async move { service.answer(request).await };
            once.respond(&operation, &Scope::shared(), key, &input, place).await.into_response()
        });
        serve(Router::new().fallback(answer)).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_case_table_in_a_handler() {
    doors::all(&InHandler).await;
}
