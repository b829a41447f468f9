//! What operators see: metrics, the audit log, and the names in them (DESIGN, Observability).

use std::{sync::Arc, time::Duration};

use metrics::{Key, Label, Level, Metadata, with_recorder};
use retrysafe_core::{OperationId, Settings, StoreError, Trace};

static METADATA: Metadata<'static> =
    Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

/// What became of a guarded request: the label `outcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestOutcome {
    /// The handler ran for it.
    Executed,
    /// It was answered from the record.
    Replayed,
    /// The handler ran, and the key was freed again.
    Released,
    /// Another attempt is running.
    InProgress,
    /// The key was used with a different request.
    KeyReused,
    /// Nobody knows what an earlier attempt did.
    OutcomeUnknown,
    /// The operation is done, and its response was not kept.
    ResponseUnavailable,
    /// The handler ran unprotected.
    Bypassed,
    /// It was refused before the operation was looked at, or the store did not answer.
    Rejected,
    /// The handler ran, but another attempt had taken over: its own answer was not given.
    Fenced,
}

impl RequestOutcome {
    const ALL: [Self; 10] = [
        Self::Executed,
        Self::Replayed,
        Self::Released,
        Self::InProgress,
        Self::KeyReused,
        Self::OutcomeUnknown,
        Self::ResponseUnavailable,
        Self::Bypassed,
        Self::Rejected,
        Self::Fenced,
    ];

    /// The name in metrics and logs.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Executed => "executed",
            Self::Replayed => "replayed",
            Self::Released => "released",
            Self::InProgress => "in_progress",
            Self::KeyReused => "key_reused",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::ResponseUnavailable => "response_unavailable",
            Self::Bypassed => "bypassed",
            Self::Rejected => "rejected",
            Self::Fenced => "fenced",
        }
    }
}

/// Counts the guarded requests of a layer. Its keys are made beforehand: a label that is not a
/// literal is allocated, and hashed, each time.
#[derive(Clone)]
pub(crate) struct RequestCounter(Arc<[Key; RequestOutcome::ALL.len()]>);

impl RequestCounter {
    pub(crate) fn new(route: &Arc<str>) -> Self {
        let key = |outcome: RequestOutcome| {
            let labels =
                vec![Label::new("outcome", outcome.as_str()), Label::new("route", route.clone())];
            Key::from_parts("retrysafe_requests_total", labels)
        };
        Self(Arc::new(RequestOutcome::ALL.map(key)))
    }

    pub(crate) fn count(&self, outcome: RequestOutcome) {
        let key = &self.0[outcome as usize];
        with_recorder(|recorder| recorder.register_counter(key, &METADATA)).increment(1);
    }
}

/// Writes what became of a guarded request to the audit log. `first_trace` links a
/// replay to the trace that first ran.
pub(crate) fn decided(
    settings: &Settings,
    outcome: RequestOutcome,
    operation: Option<&OperationId>,
    attempt: Option<u32>,
    trace: Option<Trace>,
    first_trace: Option<Trace>,
) {
    let span = tracing::Span::current();
    span.record("outcome", outcome.as_str());
    span.record("attempt", attempt);
    if let Some(first) = &first_trace {
        span.record("first_trace", tracing::field::display(first.trace_id()));
    }
    tracing::info!(
        target: "retrysafe::audit",
        outcome = outcome.as_str(),
        route = &*settings.route,
        operation = operation.map(tracing::field::display),
        attempt,
        trace = trace.as_ref().map(|it| tracing::field::display(it.trace_id())),
        first_trace = first_trace.as_ref().map(|it| tracing::field::display(it.trace_id())),
        "decided",
    );
}

/// Measures the calls of one store, with keys that are made beforehand.
pub(crate) struct StoreCalls {
    store: &'static str,
    seconds: [(&'static str, Key); 5],
}

impl StoreCalls {
    pub(crate) fn new(store: &'static str) -> Self {
        let key = |verb| {
            let labels = vec![Label::new("store", store), Label::new("verb", verb)];
            (verb, Key::from_parts("retrysafe_store_seconds", labels))
        };
        Self { store, seconds: ["begin", "renew", "complete", "release", "sweep"].map(key) }
    }

    pub(crate) fn call(&self, verb: &'static str, took: Duration, error: Option<&StoreError>) {
        if let Some((_, key)) = self.seconds.iter().find(|(it, _)| *it == verb) {
            with_recorder(|recorder| recorder.register_histogram(key, &METADATA))
                .record(took.as_secs_f64());
        }
        if let Some(error) = error {
            let (store, kind) = (self.store, error.kind().as_str());
            metrics::counter!(
                "retrysafe_store_errors_total", "store" => store, "verb" => verb, "kind" => kind
            )
            .increment(1);
            tracing::warn!(store, verb, kind, error = %chain(error), "store call failed");
        }
    }
}

pub(crate) fn in_flight(change: f64) {
    metrics::gauge!("retrysafe_in_flight").increment(change);
}

pub(crate) fn waiters(change: f64) {
    metrics::gauge!("retrysafe_waiters").increment(change);
}

pub(crate) fn lease_lost(operation: &OperationId, attempt: u32) {
    metrics::counter!("retrysafe_lost_leases_total").increment(1);
    tracing::warn!(%operation, attempt, "lease lost: another attempt has taken over");
}

pub(crate) fn unrecorded(operation: &OperationId, attempt: u32) {
    metrics::counter!("retrysafe_unrecorded_total").increment(1);
    tracing::error!(
        target: "retrysafe::audit", %operation, attempt,
        "the outcome could not be recorded; a retry will find it unknown",
    );
}

pub(crate) fn escaped(operation: &OperationId, attempt: u32) {
    metrics::counter!("retrysafe_escaped_units_total").increment(1);
    tracing::error!(
        target: "retrysafe::audit", %operation, attempt,
        "the handler committed, rolled back or kept its transaction by itself: what it did is unknown",
    );
}

pub(crate) fn panicked(operation: &OperationId, attempt: u32) {
    metrics::counter!("retrysafe_panics_total").increment(1);
    tracing::error!(%operation, attempt, "the handler panicked");
}

pub(crate) fn kept(bytes: usize) {
    metrics::histogram!("retrysafe_kept_bytes").record(bytes as f64);
}

pub(crate) fn swept(records: usize) {
    metrics::counter!("retrysafe_swept_total").increment(records as u64);
}

/// An error and everything that caused it, on one line and each once: many errors name their cause.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let cause_text = error.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use retrysafe_core::{StoreError, StoreErrorKind};

    use super::chain;

    #[test]
    fn an_error_that_names_its_cause_says_it_once() {
        let refused = || std::io::Error::other("connection refused");
        let named = format!("the server can't be reached: {}", refused());
        let error = StoreError::with_source(StoreErrorKind::Unreachable, named, refused());
        assert_eq!(chain(&error), "the server can't be reached: connection refused");

        let error = StoreError::with_source(StoreErrorKind::Unreachable, "not sent", refused());
        assert_eq!(chain(&error), "not sent: connection refused");
    }
}
