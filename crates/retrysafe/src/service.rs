//! The Tower service.

use std::{
    fmt, mem,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use retrysafe_core::Store;
use tower_service::Service;

use crate::{
    body::{BoxError, RequestBody, ResponseBody},
    future::ResponseFuture,
    guard::Guard,
};

/// Guards the operations of an inner service. Made by
/// [`IdempotencyLayer`](crate::IdempotencyLayer).
pub struct IdempotencyService<I, S> {
    inner: I,
    guard: Arc<Guard<S>>,
}

impl<I, S> IdempotencyService<I, S> {
    pub(crate) fn new(inner: I, guard: Arc<Guard<S>>) -> Self {
        Self { inner, guard }
    }
}

impl<I: Clone, S> Clone for IdempotencyService<I, S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), guard: self.guard.clone() }
    }
}

impl<I, S> fmt::Debug for IdempotencyService<I, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyService").finish_non_exhaustive()
    }
}

impl<I, S, B, R> Service<Request<B>> for IdempotencyService<I, S>
where
    I: Service<Request<RequestBody<B>>, Response = Response<R>> + Clone + Send + 'static,
    I::Future: Send,
    I::Error: Send + 'static,
    S: Store,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
    R: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
{
    type Response = Response<ResponseBody<R>>;
    type Error = I::Error;
    type Future = ResponseFuture<I::Future, R, I::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), I::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if !self.guard.covers(&request) {
            return ResponseFuture::passed(self.inner.call(request.map(RequestBody::passed)));
        }
        // The service that was polled to readiness is the one that is called; its clone, which
        // was not, stays behind (`bypass_poll_ready`).
        let clone = self.inner.clone();
        let ready = mem::replace(&mut self.inner, clone);
        ResponseFuture::guarded(self.guard.clone().answer(ready, request))
    }
}
