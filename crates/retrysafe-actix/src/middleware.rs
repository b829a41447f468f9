//! The middleware.

use std::{
    fmt,
    future::{Ready, ready},
};

use actix_web::{
    Error,
    body::{EitherBody, MessageBody},
    dev::{Service, ServiceRequest, ServiceResponse, Transform},
};
use retrysafe::{Engine, IdempotencyLayerBuilder, Settings, Store};

use crate::{
    background::background, response::ResponseBody, scope::ScopeFrom, service::IdempotencyService,
};

/// Makes the operations of an Actix service idempotent. See the [crate's page](crate) for where to
/// put it.
///
/// Build it **once, outside of the closure** that `HttpServer::new` is given, and clone it there.
/// That closure runs once for every worker: a memory store made in it would be another store for
/// each, and a retry that meets another worker would run again.
///
/// ```
/// use std::time::Duration;
/// use actix_web::{App, web};
/// use retrysafe_actix::{Idempotency, MemoryStore, OnInFlight, OnUnknownOutcome, ScopeFrom};
///
/// #[derive(Clone)]
/// struct Tenant(u64);
///
/// let payments = Idempotency::builder(
///     MemoryStore::new(),
///     ScopeFrom::extension(|tenant: &Tenant| tenant.0.to_be_bytes()),
/// )
/// .namespace("payments")
/// .require_key()
/// .on_in_flight(OnInFlight::wait(Duration::from_secs(10)))
/// .on_unknown_outcome(OnUnknownOutcome::Refuse)
/// .build()?;
///
/// let app = move || {
///     App::new().service(
///         web::resource("/payments")
///             .route(web::post().to(async || "paid"))
///             .wrap(payments.clone()),
///     )
/// };
/// # let _ = app;
/// # Ok::<(), retrysafe_actix::ConfigError>(())
/// ```
///
/// A middleware without a scope does not compile (S1):
///
/// ```compile_fail
/// use retrysafe_actix::{Idempotency, MemoryStore};
///
/// let idempotency = Idempotency::builder(MemoryStore::new()).build();
/// ```
pub struct Idempotency<S>(retrysafe::IdempotencyLayer<S>);

impl<S: Store> Idempotency<S> {
    /// A middleware on a store of its own, and where the scope of a request comes from.
    pub fn builder(store: S, scope: impl Into<ScopeFrom>) -> IdempotencyLayerBuilder<S, Self> {
        let engine = background().and_then(|it| Engine::builder(store).renew_on(it).build());
        retrysafe::IdempotencyLayer::on(engine, scope.into()).local().adapted()
    }

    /// A middleware on an engine that it shares with others. The engine must renew its leases on
    /// the [`background`](crate::background) thread, or the middleware can't be built.
    pub fn sharing(
        engine: &Engine<S>,
        scope: impl Into<ScopeFrom>,
    ) -> IdempotencyLayerBuilder<S, Self> {
        retrysafe::IdempotencyLayer::sharing(engine, scope.into()).local().adapted()
    }

    /// The engine, for [`Engine::drain`] at shutdown.
    pub fn engine(&self) -> &Engine<S> {
        self.0.engine()
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        self.0.settings()
    }
}

impl<S> From<retrysafe::IdempotencyLayer<S>> for Idempotency<S> {
    fn from(layer: retrysafe::IdempotencyLayer<S>) -> Self {
        Self(layer)
    }
}

impl<I, B, S> Transform<I, ServiceRequest> for Idempotency<S>
where
    I: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error> + 'static,
    B: MessageBody + 'static,
    S: Store,
{
    type Response = ServiceResponse<EitherBody<B, ResponseBody>>;
    type Error = Error;
    type Transform = IdempotencyService<I, S>;
    type InitError = ();
    type Future = Ready<Result<Self::Transform, ()>>;

    fn new_transform(&self, inner: I) -> Self::Future {
        ready(Ok(IdempotencyService::new(inner, &self.0)))
    }
}

impl<S> Clone for Idempotency<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> fmt::Debug for Idempotency<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
