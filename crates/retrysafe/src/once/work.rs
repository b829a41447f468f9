//! The handler of a call as the inner service of a guard.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use retrysafe_core::{Attempt, OperationId};
use tower_service::Service;

use super::OnceContext;
use crate::body::RequestBody;

/// A handler that runs once at most. The engine clones what it has to wait with; clones share the
/// one handler.
pub(crate) struct Work<H> {
    handler: Arc<Mutex<Option<H>>>,
    id: OperationId,
}

impl<H> Work<H> {
    pub(crate) fn new(id: OperationId, handler: H) -> Self {
        Self { handler: Arc::new(Mutex::new(Some(handler))), id }
    }
}

impl<H> Clone for Work<H> {
    fn clone(&self) -> Self {
        Self { handler: self.handler.clone(), id: self.id }
    }
}

impl<H, F, B, E> Service<Request<RequestBody<Full<Bytes>>>> for Work<H>
where
    H: FnOnce(OnceContext) -> F,
    F: Future<Output = Result<Response<B>, E>>,
{
    type Response = Response<B>;
    type Error = E;
    type Future = F;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), E>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<RequestBody<Full<Bytes>>>) -> F {
        // In a statement of its own: the handler runs without the lock.
        let handler = self.handler.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(handler) = handler else { unreachable!("the engine runs a handler once") };
        // Without an attempt the store could not be reached, and the run is unprotected (D4).
        let attempt = request.extensions().get::<Attempt>().cloned();
        handler(OnceContext::named(self.id, attempt))
    }
}
