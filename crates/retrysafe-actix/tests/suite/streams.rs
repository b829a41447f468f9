//! R5: responses that go out while they are being made.

use std::{future::poll_fn, pin::pin, sync::Mutex};

use actix_web::{App, Error, HttpResponse, Responder, body::MessageBody, dev::Service as _, web};
use bytes::Bytes;
use futures_util::{Stream, stream};
use retrysafe_actix::StreamedResponse;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::support::{app, call, idempotency, post};

type Source = Mutex<Option<UnboundedReceiver<&'static str>>>;

/// What the handler streams, as the test sends it.
fn source() -> (UnboundedSender<&'static str>, web::Data<Source>) {
    let (sender, receiver) = unbounded_channel();
    (sender, web::Data::new(Mutex::new(Some(receiver))))
}

fn pieces(source: &Source) -> impl Stream<Item = Result<Bytes, Error>> + use<> {
    let receiver = source.lock().unwrap().take().expect("the handler runs once");
    stream::unfold(receiver, |mut receiver| async {
        let piece = receiver.recv().await?;
        Some((Ok(Bytes::from_static(piece.as_bytes())), receiver))
    })
}

async fn events(source: web::Data<Source>) -> HttpResponse {
    HttpResponse::Ok().content_type("text/event-stream").streaming(pieces(&source))
}

async fn marked(source: web::Data<Source>) -> impl Responder {
    StreamedResponse.of(HttpResponse::Ok().content_type("text/csv").streaming(pieces(&source)))
}

#[actix_web::test]
async fn r5_a_stream_passes_live_and_is_replayed() {
    for uri in ["/events", "/marked"] {
        let (sender, source) = source();
        let app = app!(
            App::new()
                .app_data(source)
                .route("/events", web::post().to(events))
                .route("/marked", web::post().to(marked))
                .wrap(idempotency())
        );
        sender.send("one").unwrap();
        let response = app.call(post(uri, "").to_request()).await.unwrap();
        let content_type = response.headers().get("content-type").cloned();
        let mut body = pin!(response.into_body());
        let mut next = async || poll_fn(|cx| body.as_mut().poll_next(cx)).await;
        // It is here before there is a second piece.
        assert_eq!(next().await.unwrap().unwrap(), "one");
        assert_eq!(call!(app, post(uri, "")).code(), "in_progress");
        sender.send("two").unwrap();
        drop(sender);
        assert_eq!(next().await.unwrap().unwrap(), "two");
        assert!(next().await.is_none());

        let replay = call!(app, post(uri, ""));
        assert!(replay.is_replay());
        assert_eq!(replay.headers.get("content-type"), content_type.as_ref());
        assert_eq!(replay.body, "onetwo");
    }
}

#[actix_web::test]
async fn r5_a_client_that_is_gone_is_read_on_for() {
    let (sender, source) = source();
    let idempotency = idempotency();
    let app = app!(
        App::new()
            .app_data(source)
            .route("/events", web::post().to(events))
            .wrap(idempotency.clone())
    );
    drop(app.call(post("/events", "").to_request()).await.unwrap());
    sender.send("one").unwrap();
    drop(sender);
    idempotency.engine().drain().await;
    let replay = call!(app, post("/events", ""));
    assert!(replay.is_replay());
    assert_eq!(replay.body, "one");
}
