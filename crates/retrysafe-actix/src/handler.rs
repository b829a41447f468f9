//! Actix's service as the engine runs it.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use actix_web::{
    Error,
    body::MessageBody,
    dev::{Service as ActixService, ServiceRequest, ServiceResponse},
};
use fragile::Fragile;
use http::{Request, Response};
use pin_project_lite::pin_project;
use retrysafe::RequestBody;
use tower_service::Service;

use crate::{
    aside::Aside,
    request::{self, Incoming},
    response::{self, HandlerBody},
};

/// The inner service. Nothing of it is `Send`, and the engine asks for what is: all of it is wrapped,
/// and the engine's tasks stay on the thread of the worker (`IdempotencyLayerBuilder::local`).
pub(crate) struct Handler<I>(Fragile<Rc<I>>);

impl<I> Handler<I> {
    pub(crate) fn new(inner: Rc<I>) -> Self {
        Self(Fragile::new(inner))
    }
}

impl<I> Clone for Handler<I> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<I, B> Service<Request<RequestBody<Incoming>>> for Handler<I>
where
    I: ActixService<ServiceRequest, Response = ServiceResponse<B>, Error = Error>,
    B: MessageBody + 'static,
{
    type Response = Response<HandlerBody>;
    type Error = Fragile<Error>;
    type Future = Handling<I::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.get().poll_ready(cx).map_err(Fragile::new)
    }

    fn call(&mut self, request: Request<RequestBody<Incoming>>) -> Self::Future {
        let Some((request, aside)) = request::outgoing(request) else {
            unreachable!("a request runs once, and what is Actix's waits for it aside")
        };
        Handling { handler: Fragile::new(self.0.get().call(request)), aside }
    }
}

pin_project! {
    /// The handler at work.
    pub(crate) struct Handling<F> {
        #[pin]
        handler: Fragile<F>,
        aside: Aside,
    }
}

impl<F, B> Future for Handling<F>
where
    F: Future<Output = Result<ServiceResponse<B>, Error>>,
    B: MessageBody + 'static,
{
    type Output = Result<Response<HandlerBody>, Fragile<Error>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        Poll::Ready(Ok(match ready!(this.handler.poll(cx)) {
            Ok(answer) => {
                let (request, response) = answer.into_parts();
                let (response, head) = response::incoming(response.map_into_boxed_body());
                this.aside.answered(request, head);
                response
            }
            // An error is the response that it renders to, and its status decides (PROTOCOL 5).
            Err(error) => {
                let rendered = error.as_response_error().error_response();
                let (response, head) = response::incoming(rendered);
                this.aside.failed(error, head);
                response
            }
        }))
    }
}
