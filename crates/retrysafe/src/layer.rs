//! The Tower layer and how it is built.

use std::{fmt, marker::PhantomData, sync::Arc, time::Duration};

use http::{HeaderName, Method, Uri, request::Parts};
use retrysafe_core::{
    ConfigError, Fingerprinter, OnInFlight, OnUnknownOutcome, OutcomePolicy, Settings, Store, grpc,
};
use tower_layer::Layer;

use crate::{
    door::Door,
    engine::{Engine, Tasks},
    guard::{Covered, Guard},
    observe::RequestCounter,
    scope::ScopeFrom,
    service::IdempotencyService,
};

/// Makes the operations of a service idempotent: one that names itself with an `Idempotency-Key`
/// runs once, and every retry gets the same answer.
///
/// Put it inside whatever tells who the caller is, because the scope is taken from there.
///
/// ```
/// use retrysafe::{IdempotencyLayer, MemoryStore, Scope};
///
/// // The defaults, for one trusted client:
/// let layer = IdempotencyLayer::builder(MemoryStore::new(), Scope::shared()).build()?;
/// # Ok::<(), retrysafe::ConfigError>(())
/// ```
///
/// ```
/// use std::time::Duration;
/// use retrysafe::{IdempotencyLayer, MemoryStore, OnInFlight, OnUnknownOutcome, ScopeFrom};
///
/// #[derive(Clone)]
/// struct User { id: String }
///
/// let layer = IdempotencyLayer::builder(
///     MemoryStore::new(),
///     ScopeFrom::extension(|user: &User| user.id.clone()),
/// )
/// .namespace("payments")
/// .require_key()
/// .on_in_flight(OnInFlight::wait(Duration::from_secs(10)))
/// .on_unknown_outcome(OnUnknownOutcome::Refuse)
/// .build()?;
/// # Ok::<(), retrysafe::ConfigError>(())
/// ```
///
/// A layer without a scope does not compile (S1):
///
/// ```compile_fail
/// use retrysafe::{IdempotencyLayer, MemoryStore};
///
/// let layer = IdempotencyLayer::builder(MemoryStore::new()).build();
/// ```
pub struct IdempotencyLayer<S> {
    guard: Arc<Guard<S>>,
}

impl<S: Store> IdempotencyLayer<S> {
    /// A layer on a store of its own, and where the scope of a request comes from.
    pub fn builder(store: S, scope: impl Into<ScopeFrom>) -> IdempotencyLayerBuilder<S> {
        Self::on(Engine::builder(store).build(), scope)
    }

    /// A layer on an engine that it shares with others.
    pub fn sharing(engine: &Engine<S>, scope: impl Into<ScopeFrom>) -> IdempotencyLayerBuilder<S> {
        Self::on(Ok(engine.clone()), scope)
    }

    /// For adapters: a layer on an engine that they have built. If they could not,
    /// [`build`](IdempotencyLayerBuilder::build) says why.
    pub fn on(
        engine: Result<Engine<S>, ConfigError>,
        scope: impl Into<ScopeFrom>,
    ) -> IdempotencyLayerBuilder<S> {
        IdempotencyLayerBuilder {
            engine,
            scope: scope.into(),
            settings: Settings::default(),
            original_uri: None,
            door: Door::Service,
            tasks: Tasks::Anywhere,
            covered: None,
            layer: PhantomData,
        }
    }

    /// For adapters: where their router keeps the URI as the client sent it, unless the builder was
    /// told (F1).
    pub fn or_original_uri(self, find: fn(&Parts) -> Option<&Uri>) -> Self {
        if self.guard.original_uri.is_some() {
            return self;
        }
        Self { guard: Arc::new(Guard { original_uri: Some(find), ..Guard::clone(&self.guard) }) }
    }

    /// For adapters whose requests are not of [`http`]: whether one may be guarded, by its method and
    /// whether it carries the header that holds the key. One that may not needs no conversion: the
    /// service would pass it on.
    pub fn may_cover(&self, method: &Method, carries: impl FnOnce(&HeaderName) -> bool) -> bool {
        self.guard.may_cover(method, carries)
    }

    /// The engine, for [`Engine::drain`] at shutdown.
    pub fn engine(&self) -> &Engine<S> {
        &self.guard.engine
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.guard.settings
    }
}

impl<S> Clone for IdempotencyLayer<S> {
    fn clone(&self) -> Self {
        Self { guard: self.guard.clone() }
    }
}

impl<S> fmt::Debug for IdempotencyLayer<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyLayer")
            .field("settings", &self.guard.settings)
            .finish_non_exhaustive()
    }
}

impl<I, S> Layer<I> for IdempotencyLayer<S> {
    type Service = IdempotencyService<I, S>;

    fn layer(&self, inner: I) -> Self::Service {
        IdempotencyService::new(inner, self.guard.clone())
    }
}

/// Builds an [`IdempotencyLayer`]. What has no method of its own here is set through
/// [`settings`](Self::settings). An adapter's builder is this one, and builds a layer `L` of its own.
pub struct IdempotencyLayerBuilder<S, L = IdempotencyLayer<S>> {
    engine: Result<Engine<S>, ConfigError>,
    scope: ScopeFrom,
    settings: Settings,
    original_uri: Option<fn(&Parts) -> Option<&Uri>>,
    door: Door,
    tasks: Tasks,
    covered: Option<Arc<Covered>>,
    layer: PhantomData<fn() -> L>,
}

impl<S: Store, L> IdempotencyLayerBuilder<S, L> {
    /// Separates this layer from others on the same store (S4).
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.settings.namespace = namespace.into();
        self
    }

    /// Refuses a request without a key (K6).
    pub fn require_key(mut self) -> Self {
        self.settings.require_key = true;
        self
    }

    /// What is compared between a request and its retry (F1, F2).
    pub fn fingerprint(mut self, fingerprinter: Fingerprinter) -> Self {
        self.settings.fingerprinter = fingerprinter;
        self
    }

    /// What a duplicate gets while the first is running (D2).
    pub fn on_in_flight(mut self, on_in_flight: OnInFlight) -> Self {
        self.settings.on_in_flight = on_in_flight;
        self
    }

    /// What happens when nobody knows what an earlier attempt did (D3).
    pub fn on_unknown_outcome(mut self, on_unknown_outcome: OnUnknownOutcome) -> Self {
        self.settings.on_unknown_outcome = on_unknown_outcome;
        self
    }

    /// Which responses are kept (PROTOCOL 5).
    pub fn outcomes(mut self, outcomes: OutcomePolicy) -> Self {
        self.settings.outcomes = outcomes;
        self
    }

    /// How long an attempt holds the operation without renewing (E2).
    pub fn lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease;
        self
    }

    /// How long a finished record answers retries (R8).
    pub fn retention(mut self, retention: Duration) -> Self {
        self.settings.retention = retention;
        self
    }

    /// Changes any setting.
    pub fn settings(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self
    }

    /// Where to find the URI as the client sent it, if a router outside has changed the request's
    /// (F1).
    pub fn original_uri(mut self, find: fn(&Parts) -> Option<&Uri>) -> Self {
        self.original_uri = Some(find);
        self
    }

    /// Says that the inner service forwards to another process: the attempt goes into headers (E3),
    /// and `Idempotency-Outcome` overrules the outcome (E4).
    pub fn forwarding(mut self) -> Self {
        self.door = Door::Upstream;
        self
    }

    /// For adapters: says that the service is one of gRPC. Its outcome is known when its body has
    /// been read, because the status is in the trailers (G4); a replay announces no trailers; and
    /// a body that is not at hand when its head is goes out as it is made, like a stream (R5).
    pub fn grpc(mut self) -> Self {
        self.door = Door::Grpc;
        self.settings.outcomes = OutcomePolicy::custom(grpc::judge);
        self
    }

    /// For adapters: says that the service and its bodies must not leave their thread. What goes on
    /// as a task is spawned with [`tokio::task::spawn_local`], so there must be a `LocalSet`; and the
    /// engine must renew its leases elsewhere ([`EngineBuilder::renew_on`](crate::EngineBuilder::renew_on)).
    pub fn local(mut self) -> Self {
        self.tasks = Tasks::Local;
        self
    }

    /// Covers only the requests to some URIs; what is not covered passes through, unboxed.
    pub fn covering(mut self, covered: impl Fn(&Uri) -> bool + Send + Sync + 'static) -> Self {
        self.covered = Some(Arc::new(covered));
        self
    }

    /// For adapters: builds a layer of theirs instead, which is made of this one.
    pub fn adapted<M: From<IdempotencyLayer<S>>>(self) -> IdempotencyLayerBuilder<S, M> {
        let Self { engine, scope, settings, original_uri, door, tasks, covered, .. } = self;
        let layer = PhantomData;
        IdempotencyLayerBuilder {
            engine,
            scope,
            settings,
            original_uri,
            door,
            tasks,
            covered,
            layer,
        }
    }

    /// The layer.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the setting that can't be used.
    pub fn build(self) -> Result<L, ConfigError>
    where
        L: From<IdempotencyLayer<S>>,
    {
        self.settings.validate()?;
        let engine = self.engine?;
        // E2: a handler that blocks the one thread must not stop the renewals.
        if self.tasks == Tasks::Local && !engine.renews_elsewhere() {
            let problem = "must renew its leases on another runtime: EngineBuilder::renew_on";
            return Err(ConfigError::new("engine", problem));
        }
        let by_status = !matches!(self.settings.outcomes, OutcomePolicy::Custom(_));
        if self.door == Door::Grpc && by_status {
            let problem = "over gRPC every answer has the HTTP status 200: use a custom policy";
            return Err(ConfigError::new("outcomes", problem));
        }
        let (kept, about) = (self.settings.max_kept_body, engine.about());
        // R4: what is between the two is answered, and not kept.
        if kept > about.max_payload && kept != Settings::default().max_kept_body {
            tracing::warn!(
                store = about.engine,
                "max_kept_body is {kept} bytes, and a record of this store holds {}: longer answers \
                 are not kept",
                about.max_payload
            );
        }
        Ok(L::from(IdempotencyLayer {
            guard: Arc::new(Guard {
                engine,
                requests: RequestCounter::new(&self.settings.route),
                settings: Arc::new(self.settings),
                scope: self.scope,
                original_uri: self.original_uri,
                door: self.door,
                tasks: self.tasks,
                covered: self.covered,
            }),
        }))
    }
}

impl<S, L> fmt::Debug for IdempotencyLayerBuilder<S, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyLayerBuilder")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
