//! Every setting of the protocol, with the defaults of PROTOCOL.md.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, Method, Response, request};

use crate::{
    ConfigError, Fingerprinter, JsonPointer, KeptHeaders, KeyRules, OutcomePolicy, Problem,
    ProblemStyle, headers,
};

/// The settings of one layer, or of one route of the proxy.
///
/// ```
/// use std::time::Duration;
/// use retrysafe_core::{OnInFlight, Settings};
///
/// let mut settings = Settings::default();
/// settings.retention = Duration::from_secs(48 * 3600);
/// settings.on_in_flight = OnInFlight::wait(Duration::from_secs(10));
/// settings.validate()?;
/// # Ok::<(), retrysafe_core::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// Separates layers and services that share a store (S4). `default`.
    pub namespace: Arc<str>,
    /// The name of the layer or route in metrics and logs. `default`.
    pub route: Arc<str>,
    /// How a key is read from its header (K1 to K4).
    pub key: KeyRules,
    /// Where the key comes from (K8). The header.
    pub key_source: KeySource,
    /// Whether a request without a key is refused (K6). No.
    pub require_key: bool,
    /// The methods that are covered (K5). POST and PATCH.
    pub methods: Methods,
    /// What is compared between a request and its retry (F1, F2).
    pub fingerprinter: Fingerprinter,
    /// How much of a body is read before the store is asked, in bytes (F4). 64 KiB.
    pub inline_body: usize,
    /// What a duplicate gets while the first is running (D2). 409.
    pub on_in_flight: OnInFlight,
    /// What happens when nobody knows what an earlier attempt did (D3). It is executed again.
    pub on_unknown_outcome: OnUnknownOutcome,
    /// What happens when the store can't be reached (D4). 503.
    pub on_store_failure: OnStoreFailure,
    /// The deadline of one store call (D5). 2 s.
    pub store_deadline: Duration,
    /// How long an attempt holds the operation without renewing (E2). 30 s.
    pub lease: Duration,
    /// How long a running attempt goes on being renewed (E2). 10 min.
    pub max_execution: Duration,
    /// How long a finished record answers retries (R8). 24 h.
    pub retention: Duration,
    /// Which responses are kept (PROTOCOL 5).
    pub outcomes: OutcomePolicy,
    /// The largest body that is kept, in bytes (R4). 4 MiB.
    pub max_kept_body: usize,
    /// Which response headers are kept (R3).
    pub kept_headers: KeptHeaders,
    /// The header that marks a replay (R2). `Idempotent-Replayed`.
    pub replay_marker: HeaderName,
    /// How problems are rendered (PROTOCOL 6).
    pub problems: ProblemStyle,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            namespace: "default".into(),
            route: "default".into(),
            key: KeyRules::default(),
            key_source: KeySource::Header,
            require_key: false,
            methods: Methods::default(),
            fingerprinter: Fingerprinter::default(),
            inline_body: 64 * 1024,
            on_in_flight: OnInFlight::Reject,
            on_unknown_outcome: OnUnknownOutcome::Reexecute,
            on_store_failure: OnStoreFailure::Fail,
            store_deadline: Duration::from_secs(2),
            lease: Duration::from_secs(30),
            max_execution: Duration::from_secs(600),
            retention: Duration::from_secs(24 * 3600),
            outcomes: OutcomePolicy::Standard,
            max_kept_body: 4 * 1024 * 1024,
            kept_headers: KeptHeaders::default(),
            replay_marker: headers::IDEMPOTENT_REPLAYED.clone(),
            problems: ProblemStyle::default(),
        }
    }
}

impl Settings {
    /// Checks that the settings fit together.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first setting that can't be used.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let error = |setting, problem: &str| Err(ConfigError::new(setting, problem));
        if self.methods.0.is_empty() {
            return error("methods", "at least one method must be covered");
        }
        if let Some(method) =
            self.methods.0.iter().find(|method| method.is_safe() || **method == Method::CONNECT)
        {
            return Err(ConfigError::new(
                "methods",
                format!("{method} can't be covered: retrying it is safe, or nobody could"),
            ));
        }
        self.key.validate()?;
        if matches!(self.key_source, KeySource::Content) && self.fingerprinter.ignores_body() {
            let problem = "a key made of the content needs a fingerprint that looks at the body";
            return error("key_source", problem);
        }
        // K4: a key that is accepted for longer than its record lives could run again.
        if self.key.accepted_for().is_some_and(|accepted| accepted > self.retention) {
            return error("key_format", "keys must not be accepted for longer than the retention");
        }
        if self.store_deadline.is_zero() {
            return error("store_deadline", "must be longer than zero");
        }
        // A claim is sent twice at most before it is answered (D5), and a lease that could end
        // before its first renewal would protect nothing.
        if self.lease < Duration::from_millis(300) {
            return error("lease", "must be 300 ms or longer, so that it can be renewed in time");
        }
        if self.max_execution < self.lease {
            return error("max_execution", "must not be shorter than the lease");
        }
        // E2: else a record could end while its attempt is still held.
        if self.retention < self.keep_counters_for() {
            return error("retention", "must not be shorter than max_execution plus lease");
        }
        if self.retention > MAX_RETENTION {
            return error("retention", "must not be longer than 100 years");
        }
        if self.store_deadline > MAX_RETENTION {
            return error("store_deadline", "must not be longer than 100 years");
        }
        if let OnInFlight::Wait { timeout, .. } = self.on_in_flight
            && (timeout.is_zero() || timeout > MAX_RETENTION)
        {
            return error("on_in_flight", "`wait` must be longer than zero and at most 100 years");
        }
        Ok(())
    }

    /// How long the counters of a released operation stay: while an older attempt could still be
    /// alive (PROTOCOL 5).
    pub fn keep_counters_for(&self) -> Duration {
        self.max_execution.saturating_add(self.lease)
    }

    /// How long they stay if an earlier attempt vanished: as long as its record would have, because
    /// the doubt about what it did goes with them (E3).
    pub fn keep_doubt_for(&self) -> Duration {
        self.keep_counters_for().max(self.retention)
    }
}

/// Keeps every sum of times within what the stores can hold.
const MAX_RETENTION: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// The methods that are covered (K5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Methods(Vec<Method>);

impl Methods {
    /// POST, PATCH, PUT and DELETE.
    pub fn all_unsafe() -> Self {
        Self(vec![Method::POST, Method::PATCH, Method::PUT, Method::DELETE])
    }

    /// Whether a method is covered. Methods are case-sensitive (RFC 9110, section 9.1), but `patch`,
    /// as `fetch` sends it, is PATCH to a service that is not: it is covered with it.
    pub fn cover(&self, method: &Method) -> bool {
        self.0.iter().any(|covered| covered.as_str().eq_ignore_ascii_case(method.as_str()))
    }
}

impl Default for Methods {
    /// POST and PATCH.
    fn default() -> Self {
        Self(vec![Method::POST, Method::PATCH])
    }
}

impl FromIterator<Method> for Methods {
    fn from_iter<I: IntoIterator<Item = Method>>(methods: I) -> Self {
        Self(methods.into_iter().collect())
    }
}

/// Where the key comes from (K8).
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum KeySource {
    /// From the header of [`Settings::key`].
    #[default]
    Header,
    /// From a member of a JSON body that ends within [`Settings::inline_body`].
    Json(JsonPointer),
    /// The fingerprint itself is the key: identical requests within retention are one operation.
    /// A change of the [`Fingerprinter`], a rotated key of its keyring included, makes other keys.
    /// **Two intended identical orders are merged.** Bodies have to end within
    /// [`Settings::inline_body`].
    Content,
    /// From the head of the request. See [`KeySource::function`].
    #[doc(hidden)]
    Function(Arc<KeyFinder>),
    /// From the header, or from a field of the body. See [`KeySource::header_or_field`].
    #[doc(hidden)]
    HeaderOrField(Arc<FieldFinder>),
}

type KeyFinder = dyn Fn(&request::Parts) -> Option<String> + Send + Sync;
type FieldFinder =
    dyn Fn(&request::Parts, Option<&Bytes>) -> Result<Option<String>, Problem> + Send + Sync;

impl KeySource {
    /// Takes the key from the head of a request.
    pub fn function(
        find: impl Fn(&request::Parts) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        Self::Function(Arc::new(find))
    }

    /// Takes the key from the header, or from a field of the body (AIP-155 calls it `request_id`).
    /// One that is in both places and not the same is refused (G2). A body that does not end within
    /// [`Settings::inline_body`] is `None` to the function: who needs it answers
    /// [`Problem::key_out_of_reach`].
    pub fn header_or_field(
        find: impl Fn(&request::Parts, Option<&Bytes>) -> Result<Option<String>, Problem>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self::HeaderOrField(Arc::new(find))
    }
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("Header"),
            Self::Json(pointer) => write!(f, "Json({pointer})"),
            Self::Content => f.write_str("Content"),
            Self::Function(_) => f.write_str("Function(..)"),
            Self::HeaderOrField(_) => f.write_str("HeaderOrField(..)"),
        }
    }
}

/// What a duplicate gets while the first is running (D2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnInFlight {
    /// 409 `in_progress` with `Retry-After: 1`.
    #[default]
    Reject,
    /// It waits for the outcome.
    Wait {
        /// How long, before it gets the 409 after all.
        timeout: Duration,
        /// How many may wait in this process at once; the next one gets the 409.
        max_waiters: usize,
    },
}

impl OnInFlight {
    /// Waits for the outcome for so long, with the default of 1,024 waiters.
    pub fn wait(timeout: Duration) -> Self {
        Self::Wait { timeout, max_waiters: 1024 }
    }
}

/// What happens when nobody knows what an earlier attempt did (D3).
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum OnUnknownOutcome {
    /// It is executed again, and the handler is told that an earlier attempt vanished.
    #[default]
    Reexecute,
    /// 409 `outcome_unknown` until an operator resolves it: at most once within retention.
    Refuse,
    /// A function looks at the real world. See [`OnUnknownOutcome::reconcile`].
    #[doc(hidden)]
    Reconcile(Arc<Reconciler>),
}

/// The user's function behind [`OnUnknownOutcome::reconcile`].
pub type Reconciler =
    dyn Fn(Unknown) -> Pin<Box<dyn Future<Output = Reconciled> + Send>> + Send + Sync;

impl OnUnknownOutcome {
    /// Looks at the real world. The operation is taken over first and the function runs under the
    /// lease of the new attempt; a panic counts as [`Reconciled::StillUnknown`].
    pub fn reconcile<F, R>(look: F) -> Self
    where
        F: Fn(Unknown) -> R + Send + Sync + 'static,
        R: Future<Output = Reconciled> + Send + 'static,
    {
        Self::Reconcile(Arc::new(move |unknown| Box::pin(look(unknown))))
    }
}

impl fmt::Debug for OnUnknownOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reexecute => "Reexecute",
            Self::Refuse => "Refuse",
            Self::Reconcile(_) => "Reconcile(..)",
        })
    }
}

/// What a reconciling function is told.
#[derive(Clone, Debug)]
pub struct Unknown {
    /// The attempt that looks; earlier ones vanished. Its `derive_key` gives the keys that those
    /// used.
    pub context: crate::Attempt,
}

/// What a reconciling function found out: with a response, or with the value of a function that has
/// no response. `Debug` shows neither.
pub enum Reconciled<R = Response<Bytes>> {
    /// It happened, and this is what came of it. It is kept; an [`Overrule`](crate::Overrule) among a
    /// response's extensions says for how long, or that its body is not (E4). Over gRPC the status of
    /// a response with a message is that of its header `grpc-status`, or OK; it is sent where clients
    /// look for it, in the trailers.
    Happened(R),
    /// It did not happen: run it.
    DidNotHappen,
    /// Nobody can tell yet: `outcome_unknown`.
    StillUnknown,
}

// S3: the response is not shown.
impl<R> fmt::Debug for Reconciled<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Happened(_) => "Happened(..)",
            Self::DidNotHappen => "DidNotHappen",
            Self::StillUnknown => "StillUnknown",
        })
    }
}

/// What happens when the store can't be reached at `begin` (D4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnStoreFailure {
    /// 503 `store_unavailable`.
    #[default]
    Fail,
    /// The handler runs unprotected, and the response says so. **A retry may run it again.** There is
    /// no attempt then: a handler that can't do without, because it asks for one or for its
    /// transaction, answers 503 `store_unavailable` all the same.
    Bypass,
}
