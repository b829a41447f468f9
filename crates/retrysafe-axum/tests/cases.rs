//! The case table on an Axum router.

use std::net::SocketAddr;

use axum::{
    Router,
    body::Body,
    extract::{OriginalUri, Request},
    routing::any,
};
use retrysafe_axum::{IdempotencyLayer, IdempotentRouter, MemoryStore, Scope};
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
        let case = Router::new().route("/", answer.clone()).route("/below", answer);
        let case = case.idempotent(layer);
        let app = Router::new().nest("/{case}", case);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        tokio::spawn(async move { axum::serve(listener, app).await });
        address
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_case_table() {
    doors::all(&Axum).await;
}
