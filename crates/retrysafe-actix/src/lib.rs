//! retrysafe for actix-web.
mod aside;
mod background;
mod extract;
mod future;
mod handler;
mod head;
mod middleware;
mod request;
mod respond;
mod response;
mod scope;
mod service;

#[doc(inline)]
pub use retrysafe::*;

pub use self::{
    background::background,
    extract::{CurrentAttempt, Key, OptionalKey, Rejection},
    future::ResponseFuture,
    middleware::Idempotency,
    respond::{Marked, Overrule, StreamedResponse},
    response::ResponseBody,
    scope::ScopeFrom,
    service::IdempotencyService,
};
