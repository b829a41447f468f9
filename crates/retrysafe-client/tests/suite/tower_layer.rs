//! The same calls over Tower, with hyper's client below.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::legacy::{Client as Hyper, connect::HttpConnector},
    rt::TokioExecutor,
};
use retrysafe_client::{
    ClientBuilder, ClientService, Dialect, Error, ErrorKind, FileJournal, IdempotencyKey,
    OutcomeUnknown, ReadBody, ShareAnswers, Unknown,
};
use tower::{Layer as _, ServiceExt as _};

use crate::support::{Reply, Server, answer, builder, closed, problem};

type Service = ClientService<Hyper<HttpConnector, ReadBody<Full<Bytes>>>>;

fn service(builder: ClientBuilder) -> Service {
    let layer = builder.layer().unwrap().nothing_sent_if(|error| {
        error
            .downcast_ref::<hyper_util::client::legacy::Error>()
            .is_some_and(|error| error.is_connect())
    });
    layer.layer(Hyper::builder(TokioExecutor::new()).build_http())
}

fn order(url: String) -> Request<Full<Bytes>> {
    Request::post(url).body(Full::new(Bytes::from("book"))).unwrap()
}

async fn text(
    response: Response<impl http_body::Body<Data = Bytes, Error: std::fmt::Debug>>,
) -> Bytes {
    response.into_body().collect().await.unwrap().to_bytes()
}

#[tokio::test]
async fn c4_faults_are_retried_with_the_same_key() {
    for fault in [
        Reply::Reset,
        Reply::Truncated,
        answer(500),
        answer(503).with("retry-after", "0"),
        problem(409, "in_progress"),
    ] {
        let server = Server::replying(vec![fault.clone(), fault.clone(), answer(201)]).await;
        let response = service(builder()).oneshot(order(server.url("/orders"))).await.unwrap();
        assert_eq!(response.status(), 201, "{fault:?}");
        assert_eq!(text(response).await, "done");
        let seen = server.seen();
        assert_eq!(seen.len(), 3);
        assert!(seen.iter().all(|it| it.key() == seen[0].key() && it.body == "book"));
    }
}

#[tokio::test]
async fn c5_the_error_names_the_key() {
    let server = Server::replying(vec![Reply::Reset]).await;
    let mut request = order(server.url("/"));
    request.extensions_mut().insert(IdempotencyKey::new("mine").unwrap());
    let error: Error = service(builder()).oneshot(request).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
    assert_eq!(OutcomeUnknown::of(&error).unwrap().key().as_str(), "mine");
    assert!(server.seen().iter().all(|it| it.key() == "mine"));
    // Nobody there: nothing to find out.
    let error = service(builder()).oneshot(order(closed().await)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Inner);
    assert!(error.into_inner().is_ok());
}

#[tokio::test]
async fn c4_a_body_that_is_too_long_to_read_first_is_sent_once() {
    let server = Server::replying(vec![answer(500), answer(201)]).await;
    let mut settings = retrysafe_client::Settings::default();
    settings.max_repeatable_body = 3;
    let error = service(retrysafe_client::Client::builder().settings(settings))
        .oneshot(order(server.url("/")))
        .await
        .unwrap_err();
    assert_eq!(OutcomeUnknown::of(&error).unwrap().why(), Unknown::Unrepeatable);
    assert_eq!((server.asked(), server.seen()[0].body.as_str()), (1, "book"));
}

#[tokio::test]
async fn journal_sharing_and_keys_in_bodies_are_the_same_here() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let server =
        Server::replying(vec![Reply::Reset, Reply::Reset, Reply::Reset, answer(201)]).await;
    let journal = FileJournal::open(&path).unwrap();
    let layered = service(builder().journal(journal));
    let error = layered.clone().oneshot(order(server.url("/"))).await.unwrap_err();
    let key = OutcomeUnknown::of(&error).unwrap().key().clone();
    drop(layered);
    // Resumed by the other kind of client.
    let client = builder().journal(FileJournal::open(&path).unwrap()).build().unwrap();
    assert_eq!(client.resume().await.unwrap()[0].key(), &key);
    assert_eq!(server.seen()[3].key(), key.as_str());

    let shared = service(builder().share_answers(ShareAnswers::default()));
    let keyed = || {
        let mut request = order(server.url("/"));
        request.extensions_mut().insert(IdempotencyKey::new("shared").unwrap());
        request
    };
    let before = server.asked();
    for _ in 0..3 {
        assert_eq!(text(shared.clone().oneshot(keyed()).await.unwrap()).await, "done");
    }
    assert_eq!(server.asked(), before + 1);

    let square = service(builder().dialect(Dialect::square()));
    let request = Request::post(server.url("/")).body(Full::new(Bytes::from("{}"))).unwrap();
    square.oneshot(request).await.unwrap();
    assert!(server.seen().last().unwrap().body.starts_with(r#"{"idempotency_key":""#));
}
