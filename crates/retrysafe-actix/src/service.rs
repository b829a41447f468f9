//! The service that guards an inner one on one worker.

use std::{
    fmt,
    rc::Rc,
    task::{Context, Poll},
};

use actix_web::{
    Error,
    body::{EitherBody, MessageBody},
    dev::{Service, ServiceRequest, ServiceResponse},
    error::ErrorBadRequest,
};
use retrysafe::Store;
use tower_layer::Layer as _;
use tower_service::Service as _;

use crate::{
    future::ResponseFuture, handler::Handler, head, request::incoming, response::ResponseBody,
};

/// Guards the operations of an inner service. Made by [`Idempotency`](crate::Idempotency).
pub struct IdempotencyService<I, S> {
    inner: Rc<I>,
    layer: retrysafe::IdempotencyLayer<S>,
    guarded: retrysafe::IdempotencyService<Handler<I>, S>,
}

impl<I, S> IdempotencyService<I, S> {
    pub(crate) fn new(inner: I, layer: &retrysafe::IdempotencyLayer<S>) -> Self {
        let inner = Rc::new(inner);
        let guarded = layer.layer(Handler::new(inner.clone()));
        Self { inner, layer: layer.clone(), guarded }
    }
}

impl<I, B, S> Service<ServiceRequest> for IdempotencyService<I, S>
where
    I: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error> + 'static,
    B: MessageBody + 'static,
    S: Store,
{
    type Response = ServiceResponse<EitherBody<B, ResponseBody>>;
    type Error = Error;
    type Future = ResponseFuture<I::Future>;

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&self, request: ServiceRequest) -> Self::Future {
        let may_be_guarded = head::method(request.method()).is_some_and(|method| {
            self.layer.may_cover(&method, |name| request.headers().contains_key(name.as_str()))
        });
        if !may_be_guarded {
            return ResponseFuture::passed(self.inner.call(request));
        }
        match incoming(request) {
            Ok((request, aside)) => {
                ResponseFuture::guarded(self.guarded.clone().call(request), aside)
            }
            // K3: nothing runs unprotected because it can't be read.
            Err(invalid) => ResponseFuture::refused(ErrorBadRequest(invalid)),
        }
    }
}

impl<I, S> fmt::Debug for IdempotencyService<I, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyService").finish_non_exhaustive()
    }
}
