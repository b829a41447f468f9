//! Idempotency for any async function (PROTOCOL 8): through the same engine as an HTTP request, with
//! the operation's name in the place of method and path.

pub(crate) mod asked;
mod context;
mod error;
mod rules;
mod run;
mod work;

use std::{convert::Infallible, fmt, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::Response;
use http_body::Body;
use retrysafe_core::{
    ConfigError, Fingerprinter, OnInFlight, OnUnknownOutcome, OperationId, Problem, Reconciled,
    Scope, Settings, Store, Unknown,
};
use serde::Serialize;
use tracing::Instrument as _;

pub(crate) use self::rules::ErrorRules;
use self::{
    asked::{Kind, Unasked},
    work::Work,
};
pub use self::{context::OnceContext, error::OnceError, run::OnceRun};
use crate::{
    batch::Batch,
    body::{BoxError, ResponseBody},
    door::Door,
    engine::{Engine, Tasks},
    guard::Guard,
    observe::{RequestCounter, RequestOutcome},
    scope::ScopeFrom,
};

/// Runs any async function once per key: a queue consumer, a cron job, a webhook handler, a command.
///
/// ```
/// use retrysafe::{MemoryStore, Once, Scope};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize)]
/// struct Transfer { to: String, cents: u64 }
///
/// #[derive(Debug, PartialEq, Serialize, Deserialize)]
/// struct Receipt { number: u64 }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let once = Once::builder(MemoryStore::new()).build()?;
/// let alice = Scope::from_bytes("alice");
/// let transfer = Transfer { to: "bob".to_owned(), cents: 1250 };
///
/// let run = || {
///     once.run("transfer", &alice, "transfer-4711", &transfer, |context| async move {
///         // The same in every attempt of this transfer: the bank moves the money once.
///         let bank_key = context.derive_key("bank");
///         # let _ = bank_key;
///         Ok::<_, std::io::Error>(Receipt { number: 1 })
///     })
/// };
/// let first = run().await?;
/// let retry = run().await?;
/// assert!(!first.replayed && retry.replayed);
/// assert_eq!(first.value, retry.value);
/// # Ok(())
/// # }
/// ```
///
/// # What is promised
///
/// What a layer promises for requests: of any number of calls with one key, in all processes that
/// share the store, one runs the handler at a time, and a finished one answers all the others. A
/// handler that has to wait goes on as a task of its own: dropping the call changes nothing (E1).
///
/// - The **operation's name** and the **input** tell a retry from a reuse of the key. The input is
///   compared by its canonical JSON, and serves for nothing else: hand over what makes two calls the
///   same. For a fingerprint of your own that is the few fields that matter, `&(order.id,
///   order.cents)`, or [`Settings::fingerprinter`]. A map whose order is random is fine as long as
///   its numbers are ones that a double holds (F2).
/// - An **`Ok`** is kept, as JSON. The first caller's value has been through JSON as well, so it is
///   what every retry gets.
/// - An **`Err`** is ambiguous: it may have had an effect, so what follows is
///   [`OnUnknownOutcome`], by default another execution at the next try. [`OnceRun::release_if`] and
///   [`OnceRun::keep_if`] say more of it.
/// - Every failure is a [`OnceError`], which says whether the outcome is
///   [definite](OnceError::is_definite).
///
/// `Once` has a namespace of its own, `once`, so it can be used inside a guarded HTTP handler (O4).
/// Two functions that share a key need two namespaces, or one would be the other's `key_reused`.
///
/// Cloning it is cheap; clones share everything.
pub struct Once<S> {
    guard: Arc<Guard<S>>,
}

/// What a call came to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Done<T> {
    /// The handler's value.
    pub value: T,
    /// Whether it was answered from the record: the handler did not run for this call.
    pub replayed: bool,
    /// The number of the attempt that ran; `None` for a replay, and for a run that nothing protects.
    pub attempt: Option<u32>,
    /// Whether a retry gets the same. `false` if the outcome could not be written, which is being
    /// retried in the background (R7), and for a run that nothing protects. (A value that is too
    /// large to be kept is recorded as done: its retry is `response_unavailable`.)
    pub recorded: bool,
}

/// A response of [`Once::respond`] that is on its way.
type Responding<B> = Pin<Box<dyn Future<Output = Response<ResponseBody<B>>> + Send>>;

/// What happens to a call without a key (O1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unnamed {
    /// It is refused with `missing_key`.
    #[default]
    Refuse,
    /// It runs unprotected. **A retry runs again.**
    RunUnprotected,
}

impl<S: Store> Once<S> {
    /// A `Once` on a store of its own.
    pub fn builder(store: S) -> OnceBuilder<S> {
        OnceBuilder::on(Engine::builder(store).build())
    }

    /// A `Once` on an engine that it shares with others, such as a layer. Not for what a layer's
    /// handlers await if the engine is [bounded](crate::EngineBuilder::max_in_flight).
    pub fn sharing(engine: &Engine<S>) -> OnceBuilder<S> {
        OnceBuilder::on(Ok(engine.clone()))
    }

    /// Runs the handler once for this key; a retry gets its value. The key is text, or an `Option`
    /// of it: see [`Unnamed`]. Nothing happens until the call is awaited; key and input are taken
    /// now, whatever becomes of them later.
    ///
    /// # Errors
    ///
    /// [`OnceError`] if there is no value to give: it says why, and whether the outcome is definite.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing about a claim that was sent: the handler runs, and its
    /// outcome is kept. A call that waits for another (D2) just leaves.
    pub fn run<'k, I, H, F, T, E>(
        &self,
        operation: &str,
        scope: &Scope,
        key: impl Into<Option<&'k str>>,
        input: &I,
        handler: H,
    ) -> OnceRun<S, H, T, E>
    where
        I: Serialize + ?Sized,
        H: FnOnce(OnceContext) -> F + Send + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
        E: Send + 'static,
    {
        let asked = self.guard.ask(Kind::Value, operation, scope, key.into(), input);
        OnceRun::new(self.guard.clone(), asked, handler, ErrorRules::default())
    }

    /// Answers an HTTP request from within its handler, without a layer (O4): the handler's response
    /// is kept as a layer would keep it, by the same policy, and a retry gets it as a replay.
    ///
    /// What can't be answered so (a reused key, one in progress, a store that is down) is answered
    /// with its problem, rendered by [`Settings::problems`]. So what comes back is always the
    /// response to send.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use http::Response;
    /// use http_body_util::Full;
    /// use retrysafe::{MemoryStore, Once, Scope};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let once = Once::builder(MemoryStore::new()).build()?;
    /// let respond = |order: &'static str| {
    ///     once.respond("place_order", &Scope::shared(), "order-1", order, move |_| async move {
    ///         Response::new(Full::new(Bytes::from(order)))
    ///     })
    /// };
    /// assert_eq!(respond("book").await.status(), 200);
    /// assert_eq!(respond("book").await.headers()["Idempotent-Replayed"], "true");
    /// assert_eq!(respond("lamp").await.status(), 422);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// As for [`run`](Self::run).
    pub fn respond<'k, I, H, F, B>(
        &self,
        operation: &str,
        scope: &Scope,
        key: impl Into<Option<&'k str>>,
        input: &I,
        handler: H,
    ) -> Responding<B>
    where
        I: Serialize + ?Sized,
        H: FnOnce(OnceContext) -> F + Send + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
    {
        let asked = self.guard.ask(Kind::Response, operation, scope, key.into(), input);
        let guard = self.guard.clone();
        Box::pin(async move {
            let asked = match asked {
                Ok(Some(asked)) => asked,
                Ok(None) => {
                    let context = OnceContext::unnamed(guard.engine.entropy());
                    return handler(context).await.map(ResponseBody::passed);
                }
                Err(unasked) => {
                    let problem = match unasked {
                        Unasked::Problem(problem) => *problem,
                        Unasked::Input(error) => OnceError::<()>::Input(error).to_problem(),
                    };
                    return guard.refuse(&problem, RequestOutcome::Rejected, None, None);
                }
            };
            let handler = move |context| {
                let response = handler(context);
                async { Ok::<_, Infallible>(response.await) }
            };
            let (id, span) = (asked.id, guard.span(&asked.id));
            match guard.settle(Work::new(id, handler), asked).instrument(span).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        })
    }

    /// Runs a handler once for each of many items, each with a key of its own. See [`Batch`].
    pub fn run_each<I, K, KeyOf, H, F, T, E>(
        &self,
        operation: &str,
        scope: &Scope,
        items: I,
        key_of: KeyOf,
        handler: H,
    ) -> Batch<S, I::IntoIter, KeyOf, H, T, E>
    where
        I: IntoIterator<Item: Serialize>,
        KeyOf: FnMut(&I::Item) -> K,
        K: AsRef<str>,
        H: Fn(I::Item, OnceContext) -> F + Send + Sync + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
        E: Send + 'static,
    {
        Batch::new(self.clone(), operation, scope, items.into_iter(), key_of, handler)
    }

    /// The id of an operation: what logs and the operator's commands show of it.
    ///
    /// # Errors
    ///
    /// The problem `invalid_key`, if this is not a key by the rules of [`Settings::key`].
    pub fn operation_id(&self, scope: &Scope, key: &str) -> Result<OperationId, Problem> {
        let settings = &*self.guard.settings;
        let key = settings.key.check(key, || self.guard.engine.clock().wall())?;
        Ok(OperationId::new(&settings.namespace, scope, &key))
    }

    /// The engine, for [`Engine::drain`] at shutdown.
    pub fn engine(&self) -> &Engine<S> {
        &self.guard.engine
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.guard.settings
    }

    /// One item of a batch.
    pub(crate) fn run_item<I, H, F, T, E>(
        &self,
        operation: &str,
        scope: &Scope,
        key: &str,
        item: I,
        rules: &ErrorRules<E>,
        handler: Arc<H>,
    ) -> OnceRun<S, impl FnOnce(OnceContext) -> F + Send + 'static + use<S, I, H, F, T, E>, T, E>
    where
        I: Serialize + Send + 'static,
        H: Fn(I, OnceContext) -> F + Send + Sync + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
        E: Send + 'static,
    {
        let asked = self.guard.ask(Kind::Value, operation, scope, Some(key), &item);
        let handler = move |context| handler(item, context);
        OnceRun::new(self.guard.clone(), asked, handler, rules.clone())
    }

    /// The same, but it looks at the real world when an outcome is unknown.
    pub(crate) fn reconciling<T, L, R>(&self, look: L) -> Self
    where
        T: Serialize + 'static,
        L: Fn(Unknown) -> R + Send + Sync + 'static,
        R: Future<Output = Reconciled<T>> + Send + 'static,
    {
        Self { guard: run::reconciling(&self.guard, look) }
    }

    /// The same, but it remembers for so long.
    pub(crate) fn remembering(&self, retention: Duration) -> Self {
        Self { guard: run::remembering(&self.guard, retention) }
    }
}

impl<S> Clone for Once<S> {
    fn clone(&self) -> Self {
        Self { guard: self.guard.clone() }
    }
}

impl<S> fmt::Debug for Once<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Once").field("settings", &self.guard.settings).finish_non_exhaustive()
    }
}

/// Builds a [`Once`]. What has no method of its own here is set through
/// [`settings`](Self::settings); what is about requests alone (methods, the key's header, how much of
/// a body is read ahead) says nothing to a `Once`.
pub struct OnceBuilder<S> {
    engine: Result<Engine<S>, ConfigError>,
    settings: Settings,
}

impl<S: Store> OnceBuilder<S> {
    fn on(engine: Result<Engine<S>, ConfigError>) -> Self {
        let mut settings = Settings::default();
        // O4: usable inside a layer on the same store.
        settings.namespace = "once".into();
        settings.route = "once".into();
        settings.fingerprinter = Fingerprinter::json();
        Self { engine, settings }.unnamed(Unnamed::default())
    }

    /// Separates this `Once` from others on the same store (S4). `once` by default.
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.settings.namespace = namespace.into();
        self
    }

    /// What happens to a call without a key (O1). It is refused by default.
    pub fn unnamed(mut self, unnamed: Unnamed) -> Self {
        self.settings.require_key = unnamed == Unnamed::Refuse;
        self
    }

    /// What a duplicate gets while the first is running (D2). `in_progress` by default.
    pub fn on_in_flight(mut self, on_in_flight: OnInFlight) -> Self {
        self.settings.on_in_flight = on_in_flight;
        self
    }

    /// What happens when nobody knows what an earlier attempt did (D3). It is executed again by
    /// default. To look at the real world with a typed answer, use [`OnceRun::reconcile`].
    pub fn on_unknown_outcome(mut self, on_unknown_outcome: OnUnknownOutcome) -> Self {
        self.settings.on_unknown_outcome = on_unknown_outcome;
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

    /// The `Once`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the setting that can't be used.
    pub fn build(self) -> Result<Once<S>, ConfigError> {
        self.settings.validate()?;
        Ok(Once {
            guard: Arc::new(Guard {
                engine: self.engine?,
                requests: RequestCounter::new(&self.settings.route),
                settings: Arc::new(self.settings),
                // Each call names its own.
                scope: ScopeFrom::from(Scope::shared()),
                original_uri: None,
                door: Door::Service,
                tasks: Tasks::Anywhere,
                covered: None,
            }),
        })
    }
}

impl<S> fmt::Debug for OnceBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnceBuilder").field("settings", &self.settings).finish_non_exhaustive()
    }
}
