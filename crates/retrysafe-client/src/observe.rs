//! Spans and metrics. A key is never shown: the digest of its origin and it is.

use retrysafe_core::client::{AttemptEnd, Retry, Unknown};
use tracing::{Span, level_filters::LevelFilter};

/// How a logical call ended, in `retrysafe_client_calls_total`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum CallOutcome {
    Answered,
    /// There is no answer, and nothing was done.
    Failed,
    Unknown,
    /// It was not sent: it has no key, or the journal could not keep it.
    Refused,
    /// It got the answer of another call of this process.
    Shared,
}

impl CallOutcome {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
            Self::Refused => "refused",
            Self::Shared => "shared",
        }
    }
}

/// Counts something under one of a few labels. Each is a literal, so that counting allocates nothing.
macro_rules! count {
    ($name:literal, $label:literal => $value:expr, [$($known:literal),* $(,)?]) => {
        match $value {
            $($known => metrics::counter!($name, $label => $known).increment(1),)*
            other => metrics::counter!($name, $label => other).increment(1),
        }
    };
}

pub(crate) fn call_ended(outcome: CallOutcome, attempts: u32) {
    // Asked first, as it is cheaper than to ask for the span.
    if LevelFilter::current() >= LevelFilter::INFO {
        let span = Span::current();
        span.record("outcome", outcome.as_str());
        span.record("attempts", attempts);
    }
    count!("retrysafe_client_calls_total", "outcome" => outcome.as_str(), ["answered"]);
}

pub(crate) fn attempt_ended(span: &Span, end: &AttemptEnd) {
    let end = match end {
        AttemptEnd::Answered(_) => "answered",
        AttemptEnd::Broken => "broken",
        AttemptEnd::NotSent => "not_sent",
        AttemptEnd::Unsendable => "unsendable",
    };
    span.record("end", end);
    count!("retrysafe_client_attempts_total", "end" => end, ["answered", "broken", "not_sent"]);
}

pub(crate) fn retrying(retry: Retry) {
    metrics::counter!("retrysafe_client_retries_total", "reason" => retry.as_str()).increment(1);
}

pub(crate) fn budget_refused() {
    metrics::counter!("retrysafe_client_budget_refusals_total").increment(1);
}

// replay_burns_quota: an execution and a replay are counted apart.
pub(crate) fn replay_seen() {
    metrics::counter!("retrysafe_client_replays_total").increment(1);
}

pub(crate) fn outcome_unknown(why: Unknown) {
    metrics::counter!("retrysafe_client_unknown_outcomes_total", "reason" => why.as_str())
        .increment(1);
}
