//! The error catalogue: every answer that retrysafe gives instead of the handler's (PROTOCOL 6).

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Map, Value};

use crate::{IdempotencyKey, InvalidKey, KeyReason};

/// What went wrong. Clients branch on its [name](Code::as_str).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
    /// A key is required and there is none.
    MissingKey,
    /// The key can't be used; [`Problem::reason`] says why.
    InvalidKey,
    /// The scope found nobody.
    MissingScope,
    /// The key was used with a different request.
    KeyReused,
    /// A request with this key is in progress.
    InProgress,
    /// An earlier attempt ended and nobody knows what it did.
    OutcomeUnknown,
    /// The operation is done, and its response was not kept.
    ResponseUnavailable,
    /// The store did not answer.
    StoreUnavailable,
    /// Too many executions in flight.
    Overloaded,
    /// The request's body ended before its end.
    IncompleteBody,
    /// The handler panicked.
    HandlerFailed,
    /// The service behind the proxy could not be connected to.
    UpstreamUnreachable,
    /// The service behind the proxy broke off.
    UpstreamFailed,
    /// The service behind the proxy did not answer in time.
    UpstreamTimeout,
}

impl Code {
    /// Every code, in the order of PROTOCOL 6.
    pub const ALL: [Self; 14] = [
        Self::MissingKey,
        Self::InvalidKey,
        Self::MissingScope,
        Self::KeyReused,
        Self::InProgress,
        Self::OutcomeUnknown,
        Self::ResponseUnavailable,
        Self::StoreUnavailable,
        Self::Overloaded,
        Self::IncompleteBody,
        Self::HandlerFailed,
        Self::UpstreamUnreachable,
        Self::UpstreamFailed,
        Self::UpstreamTimeout,
    ];

    /// The code as it stands in a problem: `key_reused`, `in_progress`, ...
    pub fn as_str(self) -> &'static str {
        self.row().0
    }

    /// The status, unless [`ProblemStyle`] changes it.
    pub fn status(self) -> StatusCode {
        self.row().1
    }

    /// The title.
    pub fn title(self) -> &'static str {
        self.row().2
    }

    fn row(self) -> (&'static str, StatusCode, &'static str) {
        use StatusCode as S;
        match self {
            Self::MissingKey => ("missing_key", S::BAD_REQUEST, "Idempotency-Key is missing"),
            Self::InvalidKey => ("invalid_key", S::BAD_REQUEST, "Idempotency-Key is invalid"),
            Self::MissingScope => {
                ("missing_scope", S::BAD_REQUEST, "The caller could not be identified")
            }
            Self::KeyReused => (
                "key_reused",
                S::UNPROCESSABLE_ENTITY,
                "Idempotency-Key was used with a different request",
            ),
            Self::InProgress => {
                ("in_progress", S::CONFLICT, "A request with this Idempotency-Key is in progress")
            }
            Self::OutcomeUnknown => {
                ("outcome_unknown", S::CONFLICT, "The outcome of the original request is unknown")
            }
            Self::ResponseUnavailable => {
                ("response_unavailable", S::CONFLICT, "The original response was not kept")
            }
            Self::StoreUnavailable => {
                ("store_unavailable", S::SERVICE_UNAVAILABLE, "Idempotency store is unavailable")
            }
            Self::Overloaded => {
                ("overloaded", S::SERVICE_UNAVAILABLE, "Too many requests in flight")
            }
            Self::IncompleteBody => {
                ("incomplete_body", S::BAD_REQUEST, "The request body ended early")
            }
            Self::HandlerFailed => {
                ("handler_failed", S::INTERNAL_SERVER_ERROR, "The request could not be completed")
            }
            Self::UpstreamUnreachable => {
                ("upstream_unreachable", S::BAD_GATEWAY, "The service could not be reached")
            }
            Self::UpstreamFailed => ("upstream_failed", S::BAD_GATEWAY, "The service broke off"),
            Self::UpstreamTimeout => {
                ("upstream_timeout", S::GATEWAY_TIMEOUT, "The service did not answer in time")
            }
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One answer from the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What went wrong.
    pub code: Code,
    /// A sentence for a person. Never echoes a key or what is stored.
    pub detail: Cow<'static, str>,
    /// Why a key is invalid.
    pub reason: Option<&'static str>,
    /// The attempt whose outcome is unknown.
    pub attempt: Option<u32>,
    /// The status of the response that was not kept.
    pub original_status: Option<StatusCode>,
    /// When to try again.
    pub retry_after: Option<Duration>,
}

impl Problem {
    /// A problem with its code and a sentence for a person.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            detail: detail.into(),
            reason: None,
            attempt: None,
            original_status: None,
            retry_after: None,
        }
    }

    /// A key is required and there is none.
    pub fn missing_key() -> Self {
        Self::new(
            Code::MissingKey,
            "This operation needs a key: a name of its own for each operation, such as a UUID, and \
             the same one in every retry.",
        )
    }

    /// The key may be in what was not read of a body. Running unprotected is the worst answer (K3).
    pub fn key_out_of_reach() -> Self {
        Self::new(Code::MissingKey, "The body is longer than what is read to find the key in it.")
    }

    /// There are two keys, and they are not the same (G2).
    pub fn keys_differ() -> Self {
        Self::from(InvalidKey::new(
            KeyReason::Duplicate,
            "The key in the header and the one in the body are not the same.",
        ))
    }

    /// A handler needs its attempt, and its request, which has a key, has none. Either a layer has let
    /// it through because the store can't be reached (D4): it has put the key among the request's
    /// extensions, where `let_through` was found. Or no layer guards the handler.
    pub fn no_attempt(let_through: Option<&IdempotencyKey>) -> Self {
        match let_through {
            Some(_) => Self::new(
                Code::StoreUnavailable,
                "The idempotency store can't be reached, and this operation needs it. Try again with \
                 the same key.",
            )
            .retry_after(Duration::from_secs(1)),
            None => Self::new(
                Code::HandlerFailed,
                "No idempotency layer guards this operation. Nothing was done.",
            ),
        }
    }

    /// Says when to try again.
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }
}

impl From<InvalidKey> for Problem {
    fn from(error: InvalidKey) -> Self {
        let reason = Some(error.reason().as_str());
        Self { reason, ..Self::new(Code::InvalidKey, error.detail().to_owned()) }
    }
}

/// How problems are rendered: as `application/problem+json` (RFC 9457), or by a function of one's
/// own.
#[derive(Clone)]
pub struct ProblemStyle {
    base: Arc<str>,
    key_reused: StatusCode,
    in_progress: StatusCode,
    render: Option<Arc<Renderer>>,
}

type Renderer = dyn Fn(&Problem, StatusCode) -> Response<Bytes> + Send + Sync;

impl ProblemStyle {
    /// What `type` starts with; the code is appended.
    pub fn base(mut self, base: &str) -> Self {
        self.base = base.into();
        self
    }

    /// The status of `key_reused`; some APIs use 422 for validation.
    pub fn key_reused_status(mut self, status: StatusCode) -> Self {
        self.key_reused = status;
        self
    }

    /// The status of `in_progress`.
    pub fn in_progress_status(mut self, status: StatusCode) -> Self {
        self.in_progress = status;
        self
    }

    /// Renders problems in a shape of one's own. `Cache-Control: no-store` and `Retry-After` are
    /// set afterwards where they belong.
    pub fn render_with(
        mut self,
        render: impl Fn(&Problem, StatusCode) -> Response<Bytes> + Send + Sync + 'static,
    ) -> Self {
        self.render = Some(Arc::new(render));
        self
    }

    /// The status that a problem is answered with.
    pub fn status(&self, code: Code) -> StatusCode {
        match code {
            Code::KeyReused => self.key_reused,
            Code::InProgress => self.in_progress,
            other => other.status(),
        }
    }

    /// The answer. The problem itself is among its extensions, for what does not speak HTTP.
    pub fn render(&self, problem: &Problem) -> Response<Bytes> {
        let status = self.status(problem.code);
        let mut response = match &self.render {
            Some(render) => render(problem, status),
            None => self.problem_json(problem, status),
        };
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(after) = problem.retry_after {
            // Whole seconds, rounded up: RFC 9110, section 10.2.3.
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response.extensions_mut().insert(problem.clone());
        response
    }

    fn problem_json(&self, problem: &Problem, status: StatusCode) -> Response<Bytes> {
        let mut members = Map::new();
        let mut put = |name: &str, value: Value| members.insert(name.to_owned(), value);
        put("type", format!("{}{}", self.base, problem.code).into());
        put("title", problem.code.title().into());
        put("status", status.as_u16().into());
        put("detail", problem.detail.as_ref().into());
        put("code", problem.code.as_str().into());
        if let Some(reason) = problem.reason {
            put("reason", reason.into());
        }
        if let Some(attempt) = problem.attempt {
            put("attempt", attempt.into());
        }
        if let Some(original) = problem.original_status {
            put("original_status", original.as_u16().into());
        }
        let mut response = Response::new(Bytes::from(Value::Object(members).to_string()));
        *response.status_mut() = status;
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }
}

impl Default for ProblemStyle {
    fn default() -> Self {
        Self {
            base: "urn:retrysafe:problem:".into(),
            key_reused: Code::KeyReused.status(),
            in_progress: Code::InProgress.status(),
            render: None,
        }
    }
}

impl fmt::Debug for ProblemStyle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProblemStyle").field("base", &self.base).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_as_rfc_9457_wants_it() {
        let problem = Problem {
            attempt: Some(3),
            ..Problem::new(Code::OutcomeUnknown, "An earlier attempt vanished.")
        };
        let response = ProblemStyle::default().base("https://e.test/p/").render(&problem);
        assert_eq!(response.status(), 409);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        assert_eq!(response.headers()["cache-control"], "no-store");
        let body: Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(body["type"], "https://e.test/p/outcome_unknown");
        assert_eq!(body["attempt"], 3);
        assert_eq!(body["status"], 409);
    }

    #[test]
    fn retry_after_is_rounded_up() {
        let problem = Problem::new(Code::InProgress, "").retry_after(Duration::from_millis(1));
        let response = ProblemStyle::default().render(&problem);
        assert_eq!(response.headers()["retry-after"], "1");
    }

    #[test]
    fn statuses_of_two_codes_can_be_changed() {
        let style = ProblemStyle::default().key_reused_status(StatusCode::CONFLICT);
        assert_eq!(style.render(&Problem::new(Code::KeyReused, "")).status(), 409);
    }

    #[test]
    fn codes_have_names_of_their_own() {
        let names: std::collections::HashSet<_> = Code::ALL.iter().map(|it| it.as_str()).collect();
        assert_eq!(names.len(), Code::ALL.len());
    }
}
