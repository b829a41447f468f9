//! Where the layer goes: around one service or a server, among others.

use std::time::Duration;

use futures_util::FutureExt as _;
use http_body::Body as HttpBody;
use retrysafe_tonic::{IdempotencyLayer, ScopeFrom, UnaryMethods};
use tokio::time;
use tonic::{
    Code, Request, Status,
    body::Body,
    server::NamedService,
    service::{InterceptorLayer, interceptor::InterceptedService},
};
use tower::{
    Layer as _, ServiceBuilder, ServiceExt as _, limit::ConcurrencyLimitLayer, service_fn,
};

use crate::support::{ledger::ledger_server::LedgerServer, *};

#[derive(Clone)]
struct User(String);

fn authenticate(mut request: Request<()>) -> Result<Request<()>, Status> {
    let user = request.metadata().get("x-user-id").and_then(|it| it.to_str().ok());
    let user = User(user.ok_or_else(|| Status::unauthenticated("who?"))?.to_owned());
    request.extensions_mut().insert(user);
    Ok(request)
}

fn per_user() -> IdempotencyLayer<TestStore> {
    let scope = ScopeFrom::extension(|user: &User| user.0.clone());
    let methods = UnaryMethods::named([TRANSFER]).unwrap();
    IdempotencyLayer::builder(store(), scope, methods).build().unwrap()
}

fn from(user: &'static [u8]) -> Request<ledger::TransferRequest> {
    with_metadata(&[("idempotency-key", b"k"), ("x-user-id", user)])
}

#[tokio::test]
async fn s1_an_interceptor_outside_says_who_the_caller_is() {
    let ledger = TestLedger::counting();
    let by_layers = ServiceBuilder::new()
        .layer(InterceptorLayer::new(authenticate))
        .layer(per_user())
        .service(ledger.server());
    let by_hand = InterceptedService::new(per_user().layer(ledger.server()), authenticate);
    for service in
        [Service::new(by_layers.map_response(boxed)), Service::new(by_hand.map_response(boxed))]
    {
        let client = Client::of(service);
        let runs = ledger.runs.get();
        assert_first(&client.send(from(b"alice")).await, &format!("transfer {}", runs + 1));
        assert_first(&client.send(from(b"bob")).await, &format!("transfer {}", runs + 2));
        assert_replay(&client.send(from(b"alice")).await, &format!("transfer {}", runs + 1));
        assert_eq!(client.refused(keyed("k", 1)).await.code(), Code::Unauthenticated);
    }
}

fn boxed<B>(response: http::Response<B>) -> http::Response<Body>
where
    B: HttpBody<Data = bytes::Bytes, Error: Into<retrysafe_tonic::BoxError>> + Send + 'static,
{
    response.map(Body::new)
}

#[tokio::test]
async fn an_interceptor_inside_is_part_of_the_operation() {
    let (store, layer) = default_layer();
    let ledger = TestLedger::counting();
    let inside = InterceptedService::new(ledger.server(), |_| {
        Err::<Request<()>, _>(Status::permission_denied("not you"))
    });
    let client = Client::of(Service::new(layer.layer(inside)));
    assert_eq!(client.refused(keyed("k", 1)).await.code(), Code::PermissionDenied);
    assert_eq!((state(&store, "k").await, ledger.runs.get()), ("released", 0));
}

#[test]
fn a_guarded_service_has_the_name_of_its_own() {
    fn name<T: NamedService>(_: &T) -> &'static str {
        T::NAME
    }
    let guarded = per_user().layer(TestLedger::counting().server());
    assert_eq!(name(&guarded), <LedgerServer<TestLedger> as NamedService>::NAME);
}

#[tokio::test]
async fn bypass_poll_ready() {
    // The inner service was cloned and called without `poll_ready`: panic under a limit.
    let (_, layer) = default_layer();
    let ledger = TestLedger::counting();
    let service = ServiceBuilder::new()
        .layer(layer)
        .layer(ConcurrencyLimitLayer::new(1))
        .service(ledger.server());
    let client = Client::of(Service::new(service));
    for run in 1..=3 {
        let key = format!("k{run}");
        assert_first(&client.transfer(&key).await, &format!("transfer {run}"));
        assert_replay(&client.transfer(&key).await, &format!("transfer {run}"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_time_out_inside_is_ambiguous() {
    // It drops the handler half done, and answers no gRPC status at all.
    let (store, layer) = default_layer();
    let ledger = TestLedger::new(|_, _| async { std::future::pending().await });
    let server = ledger.server();
    let inside = service_fn(move |request: http::Request<Body>| {
        let answer = time::timeout(Duration::from_secs(1), server.clone().oneshot(request));
        answer.map(|it| it.unwrap_or_else(|_| Ok(http::Response::new(Body::empty()))))
    });
    let client = Client::of(Service::new(layer.layer(inside)));
    assert!(client.transfer("k").await.is_err());
    assert_eq!(ledger.runs.get(), 1);
    assert_eq!(state(&store, "k").await, "lapsed");
}
