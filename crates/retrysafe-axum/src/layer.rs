//! The layer, for Axum.

use std::fmt;

use axum::extract::OriginalUri;
use http::{Uri, request::Parts};
use retrysafe::{Engine, IdempotencyLayerBuilder, ScopeFrom, Settings, Store};
use tower_layer::Layer;

use crate::service::IdempotencyService;

/// Makes the operations of an Axum service idempotent. See the [crate's page](crate) for where to
/// put it.
///
/// It is [`retrysafe::IdempotencyLayer`] with two differences. A key is bound to the path as the
/// client sent it, under nested routers too (F1). And bodies are [`axum::body::Body`] on both
/// sides: one that is passed on is not boxed again.
///
/// ```
/// use std::time::Duration;
/// use axum::{Router, routing::post};
/// use retrysafe_axum::{
///     IdempotencyLayer, IdempotentRouter, MemoryStore, OnInFlight, OnUnknownOutcome, ScopeFrom,
/// };
///
/// #[derive(Clone)]
/// struct Tenant(u64);
///
/// let payments = IdempotencyLayer::builder(
///     MemoryStore::new(),
///     ScopeFrom::extension(|tenant: &Tenant| tenant.0.to_be_bytes()),
/// )
/// .namespace("payments")
/// .require_key()
/// .on_in_flight(OnInFlight::wait(Duration::from_secs(10)))
/// .on_unknown_outcome(OnUnknownOutcome::Refuse)
/// .build()?;
///
/// let app: Router = Router::new()
///     .route("/payments", post(|| async { "paid" }))
///     .idempotent(payments);
/// # Ok::<(), retrysafe_axum::ConfigError>(())
/// ```
pub struct IdempotencyLayer<S>(retrysafe::IdempotencyLayer<S>);

impl<S: Store> IdempotencyLayer<S> {
    /// A layer on a store of its own, and where the scope of a request comes from.
    pub fn builder(store: S, scope: impl Into<ScopeFrom>) -> IdempotencyLayerBuilder<S, Self> {
        retrysafe::IdempotencyLayer::builder(store, scope).adapted()
    }

    /// A layer on an engine that it shares with others.
    pub fn sharing(
        engine: &Engine<S>,
        scope: impl Into<ScopeFrom>,
    ) -> IdempotencyLayerBuilder<S, Self> {
        retrysafe::IdempotencyLayer::sharing(engine, scope).adapted()
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

impl<S: Store> From<retrysafe::IdempotencyLayer<S>> for IdempotencyLayer<S> {
    fn from(layer: retrysafe::IdempotencyLayer<S>) -> Self {
        Self(layer.or_original_uri(original_uri))
    }
}

/// F1: a router in a router takes the prefix off the request's URI, and keeps the original here.
fn original_uri(parts: &Parts) -> Option<&Uri> {
    parts.extensions.get::<OriginalUri>().map(|original| &original.0)
}

impl<I, S> Layer<I> for IdempotencyLayer<S> {
    type Service = IdempotencyService<I, S>;

    fn layer(&self, inner: I) -> Self::Service {
        IdempotencyService::new(inner, &self.0)
    }
}

impl<S> Clone for IdempotencyLayer<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> fmt::Debug for IdempotencyLayer<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
