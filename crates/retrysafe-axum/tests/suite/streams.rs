//! R5: responses that go out while they are being made.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use axum::{
    Extension, Router,
    body::{Body, Bytes},
    response::{
        IntoResponse, Response,
        sse::{Event, Sse},
    },
    routing::post,
};
use futures_util::{StreamExt as _, stream};
use http_body_util::BodyExt as _;
use retrysafe_axum::{IdempotentRouter, StreamedResponse};
use tokio::sync::mpsc;
use tower::ServiceExt as _;

use crate::support::{Runs, call, layer, post as post_with_key};

/// What the handler streams, as the test sends it.
type Source = Arc<Mutex<Option<mpsc::UnboundedReceiver<&'static str>>>>;

fn pieces(source: &Source) -> impl stream::Stream<Item = &'static str> + Send + use<> {
    let receiver = source.lock().unwrap().take().expect("the handler runs once");
    stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) })
}

async fn events(Extension(source): Extension<Source>) -> impl IntoResponse {
    Sse::new(pieces(&source).map(|piece| Ok::<_, Infallible>(Event::default().data(piece))))
}

async fn marked(Extension(source): Extension<Source>) -> impl IntoResponse {
    (StreamedResponse, Body::from_stream(pieces(&source).map(Ok::<_, Infallible>)))
}

async fn next_data(response: &mut Response) -> Bytes {
    response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap()
}

#[tokio::test]
async fn r5_a_stream_passes_live_and_is_replayed() {
    for (uri, first_piece, whole) in
        [("/events", "data: one\n\n", "data: one\n\ndata: two\n\n"), ("/marked", "one", "onetwo")]
    {
        let (sender, receiver) = mpsc::unbounded_channel();
        let source: Source = Arc::new(Mutex::new(Some(receiver)));
        let app: Router = Router::new()
            .route("/events", post(events))
            .route("/marked", post(marked))
            .idempotent(layer())
            .layer(Extension(source));

        sender.send("one").unwrap();
        let mut response = app.clone().oneshot(post_with_key(uri, "")).await.unwrap();
        // It is here before there is a second piece.
        assert_eq!(next_data(&mut response).await, first_piece, "{uri}");
        assert_eq!(call(&app, post_with_key(uri, "")).await.code(), "in_progress");
        sender.send("two").unwrap();
        drop(sender);
        let content_type = response.headers().get("content-type").cloned();
        let rest = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!([first_piece.as_bytes(), &rest].concat(), whole.as_bytes());

        let replay = call(&app, post_with_key(uri, "")).await;
        assert!(replay.is_replay());
        assert_eq!(replay.headers.get("content-type"), content_type.as_ref());
        assert_eq!(replay.body, whole);
    }
}

#[tokio::test]
async fn r5_a_client_that_is_gone_is_read_on_for() {
    let (sender, receiver) = mpsc::unbounded_channel();
    let source: Source = Arc::new(Mutex::new(Some(receiver)));
    let layer = layer();
    let app: Router = Router::new()
        .route("/events", post(events))
        .idempotent(layer.clone())
        .layer(Extension(source));
    let response = app.clone().oneshot(post_with_key("/events", "")).await.unwrap();
    drop(response);
    sender.send("one").unwrap();
    drop(sender);
    layer.engine().drain().await;
    let replay = call(&app, post_with_key("/events", "")).await;
    assert!(replay.is_replay());
    assert_eq!(replay.body, "data: one\n\n");
}

#[tokio::test]
async fn oversize_reruns() {
    // R4: over `max_kept_body`, the client gets all of it, and nothing runs again.
    let runs = Runs::default();
    let layer = retrysafe_axum::IdempotencyLayer::builder(
        retrysafe_axum::MemoryStore::new(),
        retrysafe_axum::Scope::shared(),
    )
    .settings(|settings| settings.max_kept_body = 1024)
    .build()
    .unwrap();
    let app: Router = Router::new()
        .route(
            "/",
            post(|Extension(runs): Extension<Runs>| async move {
                runs.count();
                vec![b'x'; 100_000]
            }),
        )
        .idempotent(layer)
        .layer(Extension(runs.clone()));
    let first = call(&app, post_with_key("/", "")).await;
    assert_eq!(first.body.len(), 100_000);
    assert_eq!(call(&app, post_with_key("/", "")).await.code(), "response_unavailable");
    assert_eq!(runs.so_far(), 1);
}
