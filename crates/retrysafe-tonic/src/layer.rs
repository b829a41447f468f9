//! The layer, for Tonic.

use std::{fmt, sync::Arc};

use retrysafe::{
    Engine, IdempotencyLayerBuilder, KeySource, ProblemStyle, ScopeFrom, Settings, Store,
};
use tower_layer::Layer;

use crate::{methods::UnaryMethods, service::IdempotencyService, status};

/// Makes unary methods of a Tonic server idempotent. See the [crate's page](crate) for where to put
/// it.
///
/// It is [`retrysafe::IdempotencyLayer`] for gRPC: it covers the methods that are listed (G1),
/// answers its problems with a gRPC status (G3), and keeps an answer by its `grpc-status` (G4).
///
/// ```
/// use std::time::Duration;
/// use retrysafe_tonic::{
///     IdempotencyLayer, MemoryStore, OnInFlight, OnUnknownOutcome, ScopeFrom, UnaryMethods,
/// };
///
/// #[derive(Clone)]
/// struct Tenant(u64);
///
/// let ledger = IdempotencyLayer::builder(
///     MemoryStore::new(),
///     ScopeFrom::extension(|tenant: &Tenant| tenant.0.to_be_bytes()),
///     UnaryMethods::named(["ledger.v1.Ledger/Transfer"])?,
/// )
/// .namespace("ledger")
/// .require_key()
/// .on_in_flight(OnInFlight::wait(Duration::from_secs(10)))
/// .on_unknown_outcome(OnUnknownOutcome::Refuse)
/// .build()?;
/// # Ok::<(), retrysafe_tonic::ConfigError>(())
/// ```
///
/// What is kept can be changed with [`OutcomePolicy::custom`](crate::OutcomePolicy::custom) and
/// [`grpc::Status::of`](crate::grpc::Status::of); the policies that go by an HTTP status are refused,
/// because over gRPC that is always 200.
pub struct IdempotencyLayer<S>(retrysafe::IdempotencyLayer<S>);

impl<S: Store> IdempotencyLayer<S> {
    /// A layer on a store of its own: where the scope of a request comes from, and which methods
    /// are covered.
    pub fn builder(
        store: S,
        scope: impl Into<ScopeFrom>,
        methods: UnaryMethods,
    ) -> IdempotencyLayerBuilder<S, Self> {
        grpc(retrysafe::IdempotencyLayer::builder(store, scope), methods)
    }

    /// A layer on an engine that it shares with others.
    pub fn sharing(
        engine: &Engine<S>,
        scope: impl Into<ScopeFrom>,
        methods: UnaryMethods,
    ) -> IdempotencyLayerBuilder<S, Self> {
        grpc(retrysafe::IdempotencyLayer::sharing(engine, scope), methods)
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

/// The longest request that is read to find a key in it: what Tonic itself reads of a message by
/// default, and its prefix.
const READ_FOR_KEY: usize = 4 * 1024 * 1024 + 5;

fn grpc<S: Store>(
    builder: IdempotencyLayerBuilder<S>,
    methods: UnaryMethods,
) -> IdempotencyLayerBuilder<S, IdempotencyLayer<S>> {
    let methods = Arc::new(methods);
    let covered = methods.clone();
    builder
        .grpc()
        .covering(move |uri| covered.contains(uri.path()))
        .settings(|settings| {
            let style = ProblemStyle::default();
            settings.problems =
                style.render_with(|problem, _| status::to_status(problem).into_http());
            if methods.have_key_fields() {
                settings.key_source = KeySource::header_or_field(move |parts, body| {
                    methods.key_of(parts.uri.path(), body)
                });
                settings.inline_body = READ_FOR_KEY;
            }
        })
        .adapted()
}

impl<S> From<retrysafe::IdempotencyLayer<S>> for IdempotencyLayer<S> {
    fn from(layer: retrysafe::IdempotencyLayer<S>) -> Self {
        Self(layer)
    }
}

impl<I, S: Store> Layer<I> for IdempotencyLayer<S> {
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
