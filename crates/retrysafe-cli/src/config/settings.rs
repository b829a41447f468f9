//! The settings of the layer: what a flag, a variable or the file says of them, and what holds in
//! the end for one route.

use std::time::Duration;

use clap::{ArgAction, Args, ValueEnum};
use http::Method;
use retrysafe::{
    KeptHeaders, KeyParsing, KeyRules, OnInFlight, OnStoreFailure, OnUnknownOutcome, OutcomePolicy,
    ScopeFrom, Settings,
};
use serde::Deserialize;

use super::text::{
    FingerprintMode, Header, Headers, InFlightPolicy, KeyFrom, KeyShape, Methods, ProblemBase,
    ScopeText, Size, Span, Status,
};

/// What was said of the layer in one place: a flag or its environment variable, the top of the
/// file, or one `[[route]]`. What was not said is left to the next place.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[command(next_help_heading = "Protection (any of these can be overridden in a [[route]])")]
pub(crate) struct Overrides {
    /// `false` passes everything through
    #[arg(long, env = "RETRYSAFE_PROTECT", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true, action = ArgAction::Set)]
    protect: Option<bool>,
    /// Who a key belongs to: credentials (default), shared, header:NAME (one that a gateway in
    /// front overwrites) or cookie:NAME
    #[arg(long, env = "RETRYSAFE_SCOPE")]
    scope: Option<ScopeText>,
    /// Separates services that share a store [default: default]
    #[arg(long, env = "RETRYSAFE_NAMESPACE", value_name = "NAME")]
    namespace: Option<String>,
    /// Where the key comes from: header (default), content or json:/POINTER
    #[arg(long, env = "RETRYSAFE_KEY_FROM", value_name = "SOURCE")]
    key_from: Option<KeyFrom>,
    /// The header that holds the key [default: idempotency-key]
    #[arg(long, env = "RETRYSAFE_KEY_HEADER", value_name = "NAME")]
    key_header: Option<Header>,
    /// Which spellings of a key are understood [default: lenient]
    #[arg(long, env = "RETRYSAFE_KEY_PARSING", value_name = "HOW")]
    key_parsing: Option<KeySpelling>,
    /// What keys have to look like: any (default), uuid, uuid-v4, uuid-v7:24h, prefixed:idem_
    #[arg(long, env = "RETRYSAFE_KEY_FORMAT", value_name = "FORMAT")]
    key_format: Option<KeyShape>,
    /// The longest key, in bytes [default: 255]
    #[arg(long, env = "RETRYSAFE_MAX_KEY_LENGTH", value_name = "BYTES")]
    max_key_length: Option<usize>,
    /// Refuse requests without a key
    #[arg(long, env = "RETRYSAFE_REQUIRE_KEY", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true, action = ArgAction::Set)]
    require_key: Option<bool>,
    /// Which methods are covered, or all-unsafe [default: POST,PATCH]
    #[arg(long, env = "RETRYSAFE_METHODS", value_name = "LIST")]
    methods: Option<Methods>,
    /// What tells a retry from a reuse of the key: raw (default), json, json-without:/A,/B, form,
    /// multipart or no-body
    #[arg(long, env = "RETRYSAFE_FINGERPRINT", value_name = "MODE")]
    fingerprint: Option<FingerprintMode>,
    /// Headers that have to be the same in a retry
    #[arg(long, env = "RETRYSAFE_FINGERPRINT_HEADERS", value_name = "LIST")]
    fingerprint_headers: Option<Headers>,
    /// What a retry gets while the first is running: reject (default) or wait:10s
    #[arg(long, env = "RETRYSAFE_ON_IN_FLIGHT", value_name = "POLICY")]
    on_in_flight: Option<InFlightPolicy>,
    /// What happens when nobody knows what the last attempt did [default: reexecute]
    #[arg(long, env = "RETRYSAFE_ON_UNKNOWN_OUTCOME", value_name = "POLICY")]
    on_unknown_outcome: Option<UnknownOutcomePolicy>,
    /// What happens when the store can't be reached [default: fail]
    #[arg(long, env = "RETRYSAFE_ON_STORE_FAILURE", value_name = "POLICY")]
    on_store_failure: Option<StoreFailurePolicy>,
    /// Which answers are kept [default: standard]
    #[arg(long, env = "RETRYSAFE_OUTCOMES", value_name = "POLICY")]
    outcomes: Option<Outcomes>,
    /// How long an attempt holds an operation without renewing it [default: 30s]
    #[arg(long, env = "RETRYSAFE_LEASE", value_name = "DURATION")]
    pub(crate) lease: Option<Span>,
    /// For how long an attempt's lease is renewed [default: 10m]
    #[arg(long, env = "RETRYSAFE_MAX_EXECUTION", value_name = "DURATION")]
    max_execution: Option<Span>,
    /// How long a finished operation answers retries [default: 24h]
    #[arg(long, env = "RETRYSAFE_RETENTION", value_name = "DURATION")]
    retention: Option<Span>,
    /// How much of a body is read before the store is asked [default: 64KiB]
    #[arg(long, env = "RETRYSAFE_INLINE_BODY", value_name = "SIZE")]
    inline_body: Option<Size>,
    /// The largest response body that is kept [default: 4MiB]
    #[arg(long, env = "RETRYSAFE_MAX_KEPT_BODY", value_name = "SIZE")]
    max_kept_body: Option<Size>,
    /// How long the store may take for one call [default: 2s]
    #[arg(long, env = "RETRYSAFE_STORE_DEADLINE", value_name = "DURATION")]
    store_deadline: Option<Span>,
    /// How long the service may be silent before it is given up [default: max-execution]
    #[arg(long, env = "RETRYSAFE_UPSTREAM_TIMEOUT", value_name = "DURATION")]
    upstream_timeout: Option<Span>,
    /// The header that marks a replay [default: idempotent-replayed]
    #[arg(long, env = "RETRYSAFE_REPLAY_HEADER", value_name = "NAME")]
    replay_header: Option<Header>,
    /// Response headers that are kept although they would not be, such as set-cookie
    #[arg(long, env = "RETRYSAFE_KEEP_HEADERS", value_name = "LIST")]
    keep_headers: Option<Headers>,
    /// More response headers that are not kept
    #[arg(long, env = "RETRYSAFE_DROP_HEADERS", value_name = "LIST")]
    drop_headers: Option<Headers>,
    /// What the `type` of a problem starts with
    #[arg(long, env = "RETRYSAFE_PROBLEM_BASE", value_name = "URI")]
    problem_base: Option<ProblemBase>,
    /// The status of key_reused [default: 422]
    #[arg(long, env = "RETRYSAFE_KEY_REUSED_STATUS", value_name = "STATUS")]
    key_reused_status: Option<Status>,
    /// The status of in_progress [default: 409]
    #[arg(long, env = "RETRYSAFE_IN_PROGRESS_STATUS", value_name = "STATUS")]
    in_progress_status: Option<Status>,
}

/// Which spellings of a key are understood (K2).
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum KeySpelling {
    /// `"k"` and `k`.
    Lenient,
    /// `"k"` only.
    Strict,
}

/// What happens when nobody knows what the last attempt did (D3).
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum UnknownOutcomePolicy {
    /// The handler runs again, and is told so.
    Reexecute,
    /// 409 until an operator resolves it.
    Refuse,
}

/// What happens when the store can't be reached (D4).
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum StoreFailurePolicy {
    /// 503.
    Fail,
    /// The request runs unprotected.
    Bypass,
}

/// Which answers are kept (PROTOCOL 5).
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcomes {
    /// 2xx, 3xx and most 4xx.
    Standard,
    /// Nearly everything, server errors included.
    Stripe,
    /// 2xx only.
    SuccessOnly,
}

/// What holds for the requests of one route.
#[derive(Clone, Debug)]
pub(crate) struct RouteSettings {
    /// Whether the layer is on.
    pub(crate) protect: bool,
    /// Who a key belongs to (S1).
    pub(crate) scope: ScopeFrom,
    /// The layer's settings, validated.
    pub(crate) layer: Settings,
    /// How long the service may be silent before it is given up.
    pub(crate) upstream_timeout: Duration,
}

said_or_not! { Overrides:
    protect,
    scope,
    namespace,
    key_from,
    key_header,
    key_parsing,
    key_format,
    max_key_length,
    require_key,
    methods,
    fingerprint,
    fingerprint_headers,
    on_in_flight,
    on_unknown_outcome,
    on_store_failure,
    outcomes,
    lease,
    max_execution,
    retention,
    inline_body,
    max_kept_body,
    store_deadline,
    upstream_timeout,
    replay_header,
    keep_headers,
    drop_headers,
    problem_base,
    key_reused_status,
    in_progress_status,
}

impl Overrides {
    /// The methods that were named here.
    pub(crate) fn methods(&self) -> Option<&[Method]> {
        self.methods.as_ref().map(|methods| methods.0.as_slice())
    }

    /// What holds for the route of this name, with PROTOCOL's default where nothing was said.
    pub(crate) fn resolve(
        self,
        route: &str,
        max_waiters: usize,
    ) -> Result<RouteSettings, retrysafe::ConfigError> {
        let mut layer = Settings::default();
        layer.route = route.into();
        layer.key = self.key_rules();
        put(&mut layer.namespace, self.namespace.map(Into::into));
        put(&mut layer.key_source, self.key_from.map(|said| said.0));
        put(&mut layer.require_key, self.require_key);
        put(&mut layer.methods, self.methods.map(|said| said.0.into_iter().collect()));
        put(&mut layer.fingerprinter, self.fingerprint.map(|said| said.0));
        if let Some(Headers(names)) = self.fingerprint_headers {
            layer.fingerprinter = layer.fingerprinter.with_headers(names);
        }
        put(
            &mut layer.on_in_flight,
            self.on_in_flight.map(|said| match said {
                InFlightPolicy::Reject => OnInFlight::Reject,
                InFlightPolicy::Wait(timeout) => OnInFlight::Wait { timeout, max_waiters },
            }),
        );
        put(
            &mut layer.on_unknown_outcome,
            self.on_unknown_outcome.map(|said| match said {
                UnknownOutcomePolicy::Reexecute => OnUnknownOutcome::Reexecute,
                UnknownOutcomePolicy::Refuse => OnUnknownOutcome::Refuse,
            }),
        );
        put(
            &mut layer.on_store_failure,
            self.on_store_failure.map(|said| match said {
                StoreFailurePolicy::Fail => OnStoreFailure::Fail,
                StoreFailurePolicy::Bypass => OnStoreFailure::Bypass,
            }),
        );
        put(
            &mut layer.outcomes,
            self.outcomes.map(|said| match said {
                Outcomes::Standard => OutcomePolicy::Standard,
                Outcomes::Stripe => OutcomePolicy::Stripe,
                Outcomes::SuccessOnly => OutcomePolicy::SuccessOnly,
            }),
        );
        put(&mut layer.lease, self.lease.map(|said| said.0));
        put(&mut layer.max_execution, self.max_execution.map(|said| said.0));
        put(&mut layer.retention, self.retention.map(|said| said.0));
        put(&mut layer.inline_body, self.inline_body.map(Size::in_memory));
        put(&mut layer.max_kept_body, self.max_kept_body.map(Size::in_memory));
        put(&mut layer.store_deadline, self.store_deadline.map(|said| said.0));
        put(&mut layer.replay_marker, self.replay_header.map(|said| said.0));
        // A header that is named in both lists is left out.
        let kept = self.keep_headers.unwrap_or_default().0.into_iter();
        let kept = kept.fold(layer.kept_headers, KeptHeaders::keep);
        let left_out = self.drop_headers.unwrap_or_default().0.into_iter();
        layer.kept_headers = left_out.fold(kept, KeptHeaders::leave_out);
        if let Some(base) = self.problem_base {
            layer.problems = layer.problems.base(&base.0);
        }
        if let Some(Status(status)) = self.key_reused_status {
            layer.problems = layer.problems.key_reused_status(status);
        }
        if let Some(Status(status)) = self.in_progress_status {
            layer.problems = layer.problems.in_progress_status(status);
        }
        layer.validate()?;
        let upstream_timeout = self.upstream_timeout.map_or(layer.max_execution, |said| said.0);
        if upstream_timeout.is_zero() {
            return Err(retrysafe::ConfigError::new(
                "upstream_timeout",
                "must be longer than zero",
            ));
        }
        Ok(RouteSettings {
            protect: self.protect.unwrap_or(true),
            scope: self.scope.map_or_else(ScopeFrom::credentials, |said| said.0),
            layer,
            upstream_timeout,
        })
    }

    fn key_rules(&self) -> KeyRules {
        let mut rules = KeyRules::default();
        if let Some(Header(name)) = &self.key_header {
            rules = rules.header(name.clone());
        }
        if let Some(KeySpelling::Strict) = self.key_parsing {
            rules = rules.parsing(KeyParsing::Strict);
        }
        if let Some(bytes) = self.max_key_length {
            rules = rules.max_length(bytes);
        }
        if let Some(KeyShape(format)) = &self.key_format {
            rules = rules.format(format.clone());
        }
        rules
    }
}

fn put<T>(setting: &mut T, said: Option<T>) {
    if let Some(value) = said {
        *setting = value;
    }
}
