//! How an attempt ended, and what that means (C4).

use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::Value;

use super::{Conflict, Dialect, Retry};
use crate::Code;

/// How one attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttemptEnd {
    /// Nothing was sent: the name was not found, the connection or its TLS failed.
    NotSent,
    /// Nothing was sent, and nothing ever will be: this client can't send such a request.
    Unsendable,
    /// The request, or a part of it, may have been received, and there is no whole answer: a reset, a
    /// time-out, an answer that was cut off.
    Broken,
    /// There is an answer.
    Answered(Answer),
}

/// What a client has to know of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// What retrysafe says went wrong, or what another server's words for it stand for.
    pub code: Option<Code>,
    /// Whether the answer is marked as a replay.
    pub replayed: bool,
    /// When to try again.
    pub retry_after: Option<Duration>,
    /// Whether the server says in a header of its own that a retry makes sense.
    pub advice: Option<bool>,
    /// Whether the server asks not to be asked again, whatever its answer means (gRPC's pushback).
    pub stop: bool,
    /// Whether it answers another request, to which the operation's own was redirected: whatever it says,
    /// the operation may have been executed.
    pub of_another: bool,
}

impl Answer {
    /// An answer of which only the status is known.
    pub fn of(status: StatusCode) -> Self {
        Self {
            status,
            code: None,
            replayed: false,
            retry_after: None,
            advice: None,
            stop: false,
            of_another: false,
        }
    }

    /// Reads an answer as a server of this dialect means it. `body` is needed where
    /// [`wants_body`](Self::wants_body) says so; `now` is the wall clock's time, and asked for only
    /// where the answer names a date.
    pub fn read(
        dialect: &Dialect,
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        now: impl FnOnce() -> Duration,
    ) -> Self {
        if status.is_success() {
            let replayed = dialect.is_replay(headers);
            return Self { replayed, ..Self::of(status) };
        }
        let says = |name| match headers.get(name)?.as_bytes() {
            b"true" => Some(true),
            b"false" => Some(false),
            _ => None,
        };
        Self {
            status,
            code: Self::wants_body(status, headers).then(|| dialect.code(status, body)).flatten(),
            replayed: dialect.is_replay(headers),
            retry_after: headers.get(header::RETRY_AFTER).and_then(|it| retry_after(it, now())),
            advice: dialect.advice.as_ref().and_then(says),
            stop: false,
            of_another: false,
        }
    }

    /// Whether the body of such an answer says more than its head.
    pub fn wants_body(status: StatusCode, headers: &HeaderMap) -> bool {
        let status = matches!(status.as_u16(), 400 | 409 | 422 | 502 | 503);
        status && is_json(headers.get(header::CONTENT_TYPE))
    }
}

impl Answer {
    /// Whether it refuses the request before anybody has looked what became of the operation.
    pub(super) fn is_at_the_door(&self) -> bool {
        let by_status = matches!(self.status.as_u16(), 401 | 403 | 407 | 426);
        // A key that is too old by now, a caller that is not known any more, another request.
        let by_code = matches!(
            self.code,
            Some(
                Code::MissingKey
                    | Code::InvalidKey
                    | Code::MissingScope
                    | Code::IncompleteBody
                    | Code::KeyReused
            )
        );
        !self.replayed && (by_status || by_code)
    }
}

/// Whether a `Content-Type` is of JSON.
pub(super) fn is_json(content_type: Option<&HeaderValue>) -> bool {
    let essence = content_type.and_then(|it| it.to_str().ok()).unwrap_or_default();
    let essence = essence.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || essence.ends_with("+json")
}

impl Dialect {
    fn is_replay(&self, headers: &HeaderMap) -> bool {
        let Some(marker) = &self.replay_marker else { return false };
        headers.get(marker).is_some_and(|it| it.as_bytes().eq_ignore_ascii_case(b"true"))
    }

    /// What the body says went wrong: `code` of our own problems, or the words of this dialect.
    fn code(&self, status: StatusCode, body: &[u8]) -> Option<Code> {
        let body: Value = serde_json::from_slice(body).ok()?;
        let ours = |text| Code::ALL.into_iter().find(|it| it.as_str() == text);
        if let Some(code) = body["code"].as_str().and_then(ours) {
            return Some(code);
        }
        let in_progress = status == StatusCode::CONFLICT
            && self
                .in_progress
                .iter()
                .any(|(pointer, text)| body.pointer(pointer).and_then(Value::as_str) == Some(text));
        in_progress.then_some(Code::InProgress)
    }
}

/// What follows from the end of an attempt, were there no limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// This is the answer.
    Final,
    /// It may help to try again. `done` is whether the operation may have been executed.
    Again { retry: Retry, done: bool },
    /// The server says that nobody knows what became of the operation.
    Unknown,
}

impl AttemptEnd {
    /// C4.
    pub(super) fn meaning(&self, dialect: &Dialect) -> Meaning {
        let again = |retry, done| Meaning::Again { retry, done };
        let answer = match self {
            Self::NotSent => return again(Retry::Transient, false),
            Self::Unsendable => return Meaning::Final,
            Self::Broken => return again(Retry::Transient, true),
            Self::Answered(answer) => answer,
        };
        // C4: what was kept is said again, however often one asks.
        if answer.replayed || answer.advice == Some(false) {
            return Meaning::Final;
        }
        match (answer.status.as_u16(), answer.code) {
            (409, Some(Code::InProgress)) => again(Retry::InProgress, true),
            (409, Some(Code::OutcomeUnknown)) => Meaning::Unknown,
            (409, Some(_)) => Meaning::Final,
            (409, None) => match dialect.conflict {
                _ if answer.advice == Some(true) => again(Retry::InProgress, true),
                Conflict::InProgress => again(Retry::InProgress, true),
                // A conflict of the application's own says nothing of trying again.
                Conflict::InProgressIfToldWhen if answer.retry_after.is_some() => {
                    again(Retry::InProgress, true)
                }
                _ => Meaning::Final,
            },
            (429 | 529, _) => again(Retry::Throttled, false),
            (425, _) => again(Retry::Transient, false),
            // Our own words for: it was not executed.
            (503, Some(Code::StoreUnavailable | Code::Overloaded))
            | (502, Some(Code::UpstreamUnreachable)) => again(Retry::Transient, false),
            (408 | 500 | 502 | 503 | 504, _) => again(Retry::Transient, true),
            _ if answer.advice == Some(true) => again(Retry::Transient, true),
            _ => Meaning::Final,
        }
    }
}

/// How long to wait, from a `Retry-After` of either form: seconds, or a date (RFC 9110). `now` is
/// the wall clock's time since 1970. A date in the past is no time at all; what is neither is `None`.
///
/// ```
/// use std::time::Duration;
/// use http::HeaderValue;
/// use retrysafe_core::client::retry_after;
///
/// let now = Duration::from_secs(1_780_000_000); // Thu, 28 May 2026 20:26:40 GMT
/// let seconds = |text| retry_after(&HeaderValue::from_static(text), now);
/// assert_eq!(seconds("120"), Some(Duration::from_secs(120)));
/// assert_eq!(seconds("Thu, 28 May 2026 20:27:10 GMT"), Some(Duration::from_secs(30)));
/// assert_eq!(seconds("soon"), None);
/// ```
pub fn retry_after(value: &HeaderValue, now: Duration) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit()) {
        // More digits than fit is longer than anybody waits.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    let date = date.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Some(date.saturating_sub(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_780_000_000);

    fn answer(
        dialect: &Dialect,
        status: u16,
        headers: &[(&'static str, &'static str)],
        body: &str,
    ) -> AttemptEnd {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_static(value));
        }
        let status = StatusCode::from_u16(status).unwrap();
        AttemptEnd::Answered(Answer::read(dialect, status, &map, body.as_bytes(), || NOW))
    }

    const PROBLEM: (&str, &str) = ("content-type", "application/problem+json");

    #[test]
    fn c4_what_each_status_means() {
        let dialect = Dialect::draft07();
        let again = |retry, done| Meaning::Again { retry, done };
        for (status, meaning) in [
            (200, Meaning::Final),
            (201, Meaning::Final),
            (303, Meaning::Final),
            (400, Meaning::Final),
            (401, Meaning::Final),
            (404, Meaning::Final),
            (408, again(Retry::Transient, true)),
            (409, Meaning::Final),
            (422, Meaning::Final),
            (425, again(Retry::Transient, false)),
            (429, again(Retry::Throttled, false)),
            (500, again(Retry::Transient, true)),
            (501, Meaning::Final),
            (502, again(Retry::Transient, true)),
            (503, again(Retry::Transient, true)),
            (504, again(Retry::Transient, true)),
            (529, again(Retry::Throttled, false)),
        ] {
            assert_eq!(answer(&dialect, status, &[], "").meaning(&dialect), meaning, "{status}");
            let replayed = answer(&dialect, status, &[("idempotent-replayed", "true")], "");
            assert_eq!(replayed.meaning(&dialect), Meaning::Final, "a replayed {status}");
        }
        assert_eq!(AttemptEnd::NotSent.meaning(&dialect), again(Retry::Transient, false));
        assert_eq!(AttemptEnd::Broken.meaning(&dialect), again(Retry::Transient, true));
    }

    #[test]
    fn c4_what_each_of_our_codes_means() {
        let dialect = Dialect::draft07();
        let again = |retry, done| Meaning::Again { retry, done };
        for code in Code::ALL {
            let meaning = match code {
                Code::InProgress => again(Retry::InProgress, true),
                Code::OutcomeUnknown => Meaning::Unknown,
                Code::StoreUnavailable | Code::Overloaded | Code::UpstreamUnreachable => {
                    again(Retry::Transient, false)
                }
                Code::HandlerFailed | Code::UpstreamFailed | Code::UpstreamTimeout => {
                    again(Retry::Transient, true)
                }
                _ => Meaning::Final,
            };
            let body = format!(r#"{{"code":"{code}","status":{}}}"#, code.status().as_u16());
            let end = answer(&dialect, code.status().as_u16(), &[PROBLEM], &body);
            assert_eq!(end.meaning(&dialect), meaning, "{code}");
        }
    }

    #[test]
    fn client_ignores_409() {
        // The lesson: 409 in progress was fatal instead of *wait and ask again*.
        let waits = Meaning::Again { retry: Retry::InProgress, done: true };
        let draft = Dialect::draft07();
        let title = r#"{"title":"A request is outstanding for this Idempotency-Key"}"#;
        assert_eq!(answer(&draft, 409, &[PROBLEM], title).meaning(&draft), waits);
        assert_eq!(answer(&draft, 409, &[("retry-after", "1")], "").meaning(&draft), waits);
        // A conflict of the application's own is an answer.
        let taken = answer(&draft, 409, &[PROBLEM], r#"{"title":"This name is taken"}"#);
        assert_eq!(taken.meaning(&draft), Meaning::Final);

        let stripe = Dialect::stripe();
        let json = ("content-type", "application/json");
        let in_use = r#"{"error":{"code":"idempotency_key_in_use"}}"#;
        assert_eq!(answer(&stripe, 409, &[json], in_use).meaning(&stripe), waits);
        let told_not_to = answer(&stripe, 409, &[json, ("stripe-should-retry", "false")], in_use);
        assert_eq!(told_not_to.meaning(&stripe), Meaning::Final);
    }

    #[test]
    fn c4_a_servers_own_advice_outranks_the_status() {
        let stripe = Dialect::stripe();
        let advised = |status, advice| {
            answer(&stripe, status, &[("stripe-should-retry", advice)], "").meaning(&stripe)
        };
        assert_eq!(advised(500, "false"), Meaning::Final);
        assert_eq!(advised(400, "true"), Meaning::Again { retry: Retry::Transient, done: true });
        assert_eq!(advised(429, "true"), Meaning::Again { retry: Retry::Throttled, done: false });
        assert_eq!(advised(500, "maybe"), Meaning::Again { retry: Retry::Transient, done: true });
    }

    #[test]
    fn c3_retry_after_in_both_forms() {
        for (text, expected) in [
            ("0", Some(0)),
            ("1", Some(1)),
            (" 7 ", Some(7)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("Thu, 28 May 2026 20:26:40 GMT", Some(0)),
            ("Thu, 28 May 2026 20:27:40 GMT", Some(60)),
            ("Thursday, 28-May-26 20:27:40 GMT", Some(60)),
            ("Thu May 28 20:27:40 2026", Some(60)),
            ("Wed, 21 Oct 2015 07:28:00 GMT", Some(0)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
        ] {
            let value = HeaderValue::from_static(text);
            assert_eq!(retry_after(&value, NOW), expected.map(Duration::from_secs), "{text:?}");
        }
    }
}
