//! The futures of [`IdempotencyService`](crate::IdempotencyService), outside and inside of the
//! engine.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Response;
use http_body::Body as HttpBody;
use pin_project_lite::pin_project;
use retrysafe::BoxError;
use tonic::body::Body;

use crate::handler;

pin_project! {
    /// A response that is on its way. One that is not guarded is the inner future, unboxed.
    pub struct ResponseFuture<F, R, E> {
        #[pin]
        response: retrysafe::ResponseFuture<HandlerFuture<F>, R, E>,
    }
}

impl<F, R, E> ResponseFuture<F, R, E> {
    pub(crate) fn new(response: retrysafe::ResponseFuture<HandlerFuture<F>, R, E>) -> Self {
        Self { response }
    }
}

impl<F, R, E> Future for ResponseFuture<F, R, E>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // What is Tonic's body already stays as it is: `Body::new` boxes anything else.
        self.project().response.poll(cx).map_ok(|response| {
            response.map(|body| body.into_passed().map_or_else(Body::new, Body::new))
        })
    }
}

impl<F, R, E> fmt::Debug for ResponseFuture<F, R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.response.fmt(f)
    }
}

pin_project! {
    /// The handler at work.
    pub(crate) struct HandlerFuture<F> {
        #[pin]
        handler: F,
        guarded: bool,
    }
}

impl<F> HandlerFuture<F> {
    pub(crate) fn new(handler: F, guarded: bool) -> Self {
        Self { handler, guarded }
    }
}

impl<F, R, E> Future for HandlerFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let mut response = ready!(this.handler.poll(cx));
        if let (true, Ok(response)) = (*this.guarded, &mut response) {
            handler::find_overrule(response);
        }
        Poll::Ready(response)
    }
}
