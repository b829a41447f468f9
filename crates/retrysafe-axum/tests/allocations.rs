//! P1: what a request without a key costs. The allocator that counts is for the whole binary, so
//! these tests have one of their own.

#![expect(clippy::unwrap_used, reason = "a test says what failed by where it panics")]

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    handler::Handler as _,
    response::Response,
    routing::post,
};
use futures_util::FutureExt as _;
use retrysafe_axum::{IdempotencyLayer, IdempotentRouter, MemoryStore, Scope};
use tower::{Layer as _, Service};
use tower_layer::layer_fn;

/// What a service has at hand. Something, for a service of no size is boxed at no cost.
type Shop = Arc<str>;

fn shop() -> Shop {
    "shop".into()
}

async fn handler(State(_): State<Shop>, body: Bytes) -> Bytes {
    body
}

fn bare() -> Router<Shop> {
    Router::new().route("/", post(handler))
}

fn layer() -> IdempotencyLayer<MemoryStore> {
    IdempotencyLayer::builder(MemoryStore::new(), Scope::shared()).build().unwrap()
}

/// How many allocations one request without a key takes, from the call to the end of the body.
fn allocations<S>(mut service: S) -> u64
where
    S: Service<Request, Response = Response, Error = Infallible>,
{
    let mut request = || {
        let request = Request::post("/").body(Body::from("four")).unwrap();
        let mut answer = None;
        let info = allocation_counter::measure(|| {
            let response = service.call(request).now_or_never().expect("nothing to wait for");
            answer = axum::body::to_bytes(response.unwrap().into_body(), 64).now_or_never();
        });
        assert_eq!(answer.unwrap().unwrap(), "four");
        info.count_total
    };
    // What is set up once is not counted.
    request();
    request()
}

/// A layer that does nothing, and has a size.
#[derive(Clone)]
struct Nothing<I> {
    inner: I,
    _size: Arc<()>,
}

impl<I: Service<Request>> Service<Request> for Nothing<I> {
    type Response = I::Response;
    type Error = I::Error;
    type Future = I::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), I::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> I::Future {
        self.inner.call(request)
    }
}

#[test]
fn p1_a_request_without_a_key_allocates_nothing_more() {
    let without = allocations(bare().with_state(shop()));
    assert_ne!(without, 0, "the counter counts");
    let service = layer().layer(bare().with_state(shop()));
    assert_eq!(allocations(service), without, "around a whole service");
    let on_handler = Router::new().route("/", post(handler.layer(layer())));
    assert_eq!(allocations(on_handler.with_state(shop())), without, "around a handler");
}

#[test]
fn p1_on_a_router_it_costs_what_a_layer_that_does_nothing_costs() {
    let state = Arc::new(());
    let nothing = bare().layer(layer_fn(move |inner| Nothing { inner, _size: state.clone() }));
    let nothing = allocations(nothing.with_state(shop()));
    assert_eq!(allocations(bare().idempotent(layer()).with_state(shop())), nothing, "on a router");
    let on_method = Router::new().route("/", post(handler).idempotent(layer()));
    assert_eq!(allocations(on_method.with_state(shop())), nothing, "on a method");
}
