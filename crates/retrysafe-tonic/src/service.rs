//! The Tower service, with Tonic's bodies on both sides.

use std::{
    fmt,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as HttpBody;
use retrysafe::{BoxError, RequestBody, Store, grpc::GRPC_ACCEPT_ENCODING};
use tonic::{body::Body, server::NamedService};
use tower_layer::Layer as _;
use tower_service::Service;

use crate::{
    future::{HandlerFuture, ResponseFuture},
    open::Closing,
};

/// Guards the listed methods of an inner service. Made by
/// [`IdempotencyLayer`](crate::IdempotencyLayer).
pub struct IdempotencyService<I, S> {
    guarded: retrysafe::IdempotencyService<TonicBodied<I>, S>,
    inline_body: usize,
}

impl<I, S: Store> IdempotencyService<I, S> {
    pub(crate) fn new(inner: I, layer: &retrysafe::IdempotencyLayer<S>) -> Self {
        let inline_body = layer.settings().inline_body;
        Self { guarded: layer.layer(TonicBodied(inner)), inline_body }
    }
}

impl<I, S, R> Service<Request<Body>> for IdempotencyService<I, S>
where
    I: Service<Request<Body>, Response = Response<R>> + Clone + Send + 'static,
    I::Future: Send,
    I::Error: Send + 'static,
    S: Store,
    R: HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
{
    type Response = Response<Body>;
    type Error = I::Error;
    type Future = ResponseFuture<I::Future, R, I::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), I::Error>> {
        self.guarded.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let body = Closing::new(body, &parts.uri, self.inline_body);
        ResponseFuture::new(self.guarded.call(Request::from_parts(parts, body)))
    }
}

// What is added to a Tonic server by itself has a name.
impl<I: NamedService, S> NamedService for IdempotencyService<I, S> {
    const NAME: &'static str = I::NAME;
}

impl<I: Clone, S> Clone for IdempotencyService<I, S> {
    fn clone(&self) -> Self {
        Self { guarded: self.guarded.clone(), inline_body: self.inline_body }
    }
}

impl<I, S> fmt::Debug for IdempotencyService<I, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.guarded.fmt(f)
    }
}

/// The inner service, which is given Tonic's own body: the one that came, if the request is not
/// guarded.
#[derive(Clone)]
pub(crate) struct TonicBodied<I>(I);

impl<I: Service<Request<Body>, Response = Response<R>>, R> Service<Request<RequestBody<Closing>>>
    for TonicBodied<I>
{
    type Response = I::Response;
    type Error = I::Error;
    type Future = HandlerFuture<I::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), I::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<RequestBody<Closing>>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let (body, guarded) = match body.into_passed() {
            Ok(body) => (body.into_inner(), false),
            Err(body) => {
                // G4: a retry may come from a client that understands other encodings.
                parts.headers.remove(&GRPC_ACCEPT_ENCODING);
                (Body::new(body), true)
            }
        };
        HandlerFuture::new(self.0.call(Request::from_parts(parts, body)), guarded)
    }
}
