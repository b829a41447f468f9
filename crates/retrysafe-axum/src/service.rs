//! The Tower service, with Axum's bodies on both sides.

use std::{
    fmt,
    task::{Context, Poll},
};

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as HttpBody;
use retrysafe::{BoxError, RequestBody, Store};
use tower_layer::Layer as _;
use tower_service::Service;

use crate::future::ResponseFuture;

/// Guards the operations of an inner service. Made by
/// [`IdempotencyLayer`](crate::IdempotencyLayer).
pub struct IdempotencyService<I, S>(retrysafe::IdempotencyService<AxumBodied<I>, S>);

impl<I, S> IdempotencyService<I, S> {
    pub(crate) fn new(inner: I, layer: &retrysafe::IdempotencyLayer<S>) -> Self {
        Self(layer.layer(AxumBodied(inner)))
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
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        ResponseFuture::new(self.0.call(request))
    }
}

impl<I: Clone, S> Clone for IdempotencyService<I, S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<I, S> fmt::Debug for IdempotencyService<I, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The inner service, which is given Axum's own body: the one that came, if the request is not
/// guarded. Left to Axum, each would be boxed once more.
#[derive(Clone)]
struct AxumBodied<I>(I);

impl<I: Service<Request<Body>>> Service<Request<RequestBody<Body>>> for AxumBodied<I> {
    type Response = I::Response;
    type Error = I::Error;
    type Future = I::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), I::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<RequestBody<Body>>) -> I::Future {
        self.0.call(request.map(|body| body.into_passed().unwrap_or_else(Body::new)))
    }
}
