//! The future of [`IdempotencyService`](crate::IdempotencyService).

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::Body;
use bytes::Bytes;
use http::Response;
use http_body::Body as HttpBody;
use pin_project_lite::pin_project;
use retrysafe::BoxError;

pin_project! {
    /// A response that is on its way. One that is not guarded is the inner future, unboxed.
    pub struct ResponseFuture<F, R, E> {
        #[pin]
        response: retrysafe::ResponseFuture<F, R, E>,
    }
}

impl<F, R, E> ResponseFuture<F, R, E> {
    pub(crate) fn new(response: retrysafe::ResponseFuture<F, R, E>) -> Self {
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
        // What is Axum's body already stays as it is: `Body::new` boxes anything else.
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
