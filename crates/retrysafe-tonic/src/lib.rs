//! stub
mod client;
mod future;
mod handler;
mod layer;
mod message;
mod methods;
mod open;
mod service;
mod status;

#[doc(inline)]
pub use retrysafe::*;

pub use self::{
    client::KeyInterceptor,
    future::ResponseFuture,
    handler::{IdempotentRequest, Overruled},
    layer::IdempotencyLayer,
    methods::UnaryMethods,
    service::IdempotencyService,
    status::to_status,
};
