//! `.idempotent(layer)` on what Axum builds.

use std::convert::Infallible;

use axum::{Router, routing::MethodRouter};
use retrysafe::Store;

use crate::IdempotencyLayer;

/// Guards what Axum builds. In scope, [`Router`] and [`MethodRouter`] have a method
/// [`idempotent`](Self::idempotent).
pub trait IdempotentRouter: Sized {
    /// Makes the operations of the routes that are here by now idempotent, the fallback included:
    /// it may act too. Routes that are added later are not guarded.
    ///
    /// ```
    /// use axum::{Router, routing::{get, post}};
    /// use retrysafe_axum::{IdempotencyLayer, IdempotentRouter, MemoryStore, Scope};
    ///
    /// let idempotency = IdempotencyLayer::builder(MemoryStore::new(), Scope::shared()).build()?;
    /// let app: Router = Router::new()
    ///     .route("/orders", post(|| async { "ordered" }))
    ///     .idempotent(idempotency)
    ///     .route("/search", post(|| async { "found" })); // does nothing that must not be repeated
    /// # Ok::<(), retrysafe_axum::ConfigError>(())
    /// ```
    fn idempotent<D: Store>(self, layer: IdempotencyLayer<D>) -> Self;
}

impl<S: Clone + Send + Sync + 'static> IdempotentRouter for Router<S> {
    fn idempotent<D: Store>(self, layer: IdempotencyLayer<D>) -> Self {
        self.layer(layer)
    }
}

impl<S: Clone + Send + Sync + 'static> IdempotentRouter for MethodRouter<S, Infallible> {
    fn idempotent<D: Store>(self, layer: IdempotencyLayer<D>) -> Self {
        self.layer(layer)
    }
}
