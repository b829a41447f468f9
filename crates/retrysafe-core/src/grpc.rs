//! The statuses of gRPC, as far as the protocol has a say in them (PROTOCOL 7): what a problem is
//! answered with (G3) and which answers of a handler are kept (G4). Plain numbers, no gRPC library.

use std::{fmt, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::{Code, Disposition, Problem, ResponseHead};

/// Where a gRPC response says how it ended: in the trailers, or, Trailers-Only, in the headers.
pub static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// What a person is told of it, percent-encoded.
pub static GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// What a program is told of it: a `google.rpc.Status`, in base64.
pub static GRPC_STATUS_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
/// Which encodings of messages a caller understands.
pub static GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
/// Tells a retrying client how long to wait, or, negative, not to retry (gRFC A6).
pub static GRPC_RETRY_PUSHBACK_MS: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
/// The `domain` of `google.rpc.ErrorInfo` (G3).
pub const ERROR_DOMAIN: &str = "retrysafe";

/// A status of gRPC, by its number.
///
/// ```
/// use retrysafe_core::{Disposition, grpc::Status};
///
/// assert_eq!(Status::from_number(5), Some(Status::NotFound));
/// assert_eq!(Status::NotFound.disposition(), Disposition::Keep);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "gRPC documents its statuses")]
pub enum Status {
    Ok = 0,
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl Status {
    /// Every status, by its number.
    pub const ALL: [Self; 17] = [
        Self::Ok,
        Self::Cancelled,
        Self::Unknown,
        Self::InvalidArgument,
        Self::DeadlineExceeded,
        Self::NotFound,
        Self::AlreadyExists,
        Self::PermissionDenied,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Aborted,
        Self::OutOfRange,
        Self::Unimplemented,
        Self::Internal,
        Self::Unavailable,
        Self::DataLoss,
        Self::Unauthenticated,
    ];

    /// The status with this number, if there is one.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Its number.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// How a response ended: its trailers have the last word. `None` if they, or without any the
    /// headers, hold no status, more than one, or one that can't be read.
    pub fn of(head: ResponseHead<'_>) -> Option<Self> {
        Self::read(head.trailers.unwrap_or(head.headers))
    }

    fn read(headers: &HeaderMap) -> Option<Self> {
        let mut lines = headers.get_all(&GRPC_STATUS).iter();
        let number = lines.next()?.to_str().ok()?.parse().ok()?;
        lines.next().is_none().then(|| Self::from_number(number)).flatten()
    }

    /// What becomes of the record when the handler answered with this status (G4).
    pub fn disposition(self) -> Disposition {
        match self {
            Self::Ok
            | Self::InvalidArgument
            | Self::NotFound
            | Self::AlreadyExists
            | Self::FailedPrecondition
            | Self::OutOfRange => Disposition::Keep,
            Self::Unauthenticated
            | Self::PermissionDenied
            | Self::ResourceExhausted
            | Self::Aborted
            | Self::Unimplemented => Disposition::Release,
            // Ambiguous; the handler answered, so the lease is given up at once (PROTOCOL 5).
            Self::Cancelled
            | Self::Unknown
            | Self::DeadlineExceeded
            | Self::Unavailable
            | Self::Internal
            | Self::DataLoss => Disposition::GiveUp,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number())
    }
}

/// What becomes of the record, by the status of the response (G4). One that says nothing of its end
/// is ambiguous.
pub fn judge(head: ResponseHead<'_>) -> Disposition {
    Status::of(head).map_or(Disposition::GiveUp, Status::disposition)
}

/// Whether these are the headers of a gRPC message. gRPC-Web, which has its trailers in the body, is
/// something else.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).map_or(&[][..], |it| it.as_bytes());
    let rest = content_type.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest, [] | [b'+' | b';' | b' ', ..]))
}

/// How an answer with a message ends that no server has written (D3): what its headers say of that is
/// taken out of them and belongs into the trailers, because behind a message nobody looks for it
/// anywhere else. One that says nothing is [`Status::Ok`].
pub fn take_end(headers: &mut HeaderMap) -> HeaderMap {
    let ok = HeaderValue::from(u16::from(Status::Ok.number()));
    let mut trailers = HeaderMap::from_iter([(GRPC_STATUS.clone(), ok)]);
    for name in [&GRPC_STATUS, &GRPC_MESSAGE, &GRPC_STATUS_DETAILS] {
        if let Some(value) = headers.remove(name) {
            trailers.insert(name, value);
        }
    }
    trailers
}

/// What a retrying client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushback {
    /// Try again after this long.
    After(Duration),
    /// Don't: no retry could get another answer.
    Never,
}

impl Pushback {
    /// The value of [`GRPC_RETRY_PUSHBACK_MS`]: milliseconds, or -1.
    pub fn millis(self) -> i64 {
        match self {
            Self::After(after) => i64::try_from(after.as_millis()).unwrap_or(i64::MAX),
            Self::Never => -1,
        }
    }
}

/// How a problem is answered over gRPC (G3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: Status,
    /// What a retrying client is told, if it is told anything.
    pub pushback: Option<Pushback>,
}

impl Answer {
    /// How `problem` is answered.
    pub fn to(problem: &Problem) -> Self {
        let status = match problem.code {
            Code::MissingKey | Code::InvalidKey | Code::MissingScope | Code::IncompleteBody => {
                Status::InvalidArgument
            }
            Code::KeyReused | Code::ResponseUnavailable => Status::FailedPrecondition,
            Code::InProgress | Code::OutcomeUnknown => Status::Aborted,
            Code::StoreUnavailable | Code::Overloaded | Code::UpstreamUnreachable => {
                Status::Unavailable
            }
            Code::HandlerFailed => Status::Internal,
            Code::UpstreamFailed => Status::Unknown,
            Code::UpstreamTimeout => Status::DeadlineExceeded,
        };
        let pushback = match problem.code {
            Code::OutcomeUnknown | Code::ResponseUnavailable | Code::KeyReused => {
                Some(Pushback::Never)
            }
            _ => problem.retry_after.map(Pushback::After),
        };
        Self { status, pushback }
    }
}

/// The `reason` of `google.rpc.ErrorInfo` (G3): the code in upper case.
pub fn reason(code: Code) -> String {
    code.as_str().to_ascii_uppercase()
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, StatusCode};

    use super::*;

    fn headers(lines: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(GRPC_STATUS.clone(), HeaderValue::from_static(line));
        }
        headers
    }

    fn judged(headers: &HeaderMap, trailers: Option<&HeaderMap>) -> Disposition {
        judge(ResponseHead { status: StatusCode::OK, headers, trailers })
    }

    #[test]
    fn g4_numbers_are_those_of_grpc() {
        for (number, status) in (0..).zip(Status::ALL) {
            assert_eq!(status.number(), number);
            assert_eq!(Status::from_number(number), Some(status));
        }
        assert_eq!(Status::from_number(17), None);
    }

    #[test]
    fn g4_trailers_have_the_last_word() {
        let (ok, internal) = (headers(&["0"]), headers(&["13"]));
        assert_eq!(judged(&ok, None), Disposition::Keep);
        assert_eq!(judged(&ok, Some(&internal)), Disposition::GiveUp);
        assert_eq!(judged(&internal, Some(&ok)), Disposition::Keep);
        assert_eq!(judged(&ok, Some(&HeaderMap::new())), Disposition::GiveUp);
    }

    #[test]
    fn g4_no_status_that_can_be_read_is_ambiguous() {
        for lines in [&[][..], &["0", "0"], &["zero"], &["-1"], &["17"], &["256"], &[""]] {
            assert_eq!(judged(&headers(lines), None), Disposition::GiveUp, "{lines:?}");
        }
    }

    #[test]
    fn grpc_goes_by_its_content_type() {
        let is_grpc = |value| {
            let value = HeaderValue::from_static(value);
            super::is_grpc(&HeaderMap::from_iter([(header::CONTENT_TYPE, value)]))
        };
        for grpc in ["application/grpc", "application/grpc+proto", "application/grpc; a=b"] {
            assert!(is_grpc(grpc), "{grpc}");
        }
        for other in ["application/grpc-web", "application/grpc-web+proto", "application/json"] {
            assert!(!is_grpc(other), "{other}");
        }
        assert!(!super::is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn d3_an_answer_with_a_message_ends_in_its_trailers() {
        let (name, value) = (header::CONTENT_TYPE, "application/grpc");
        let mut head = headers(&[]);
        head.insert(&name, HeaderValue::from_static(value));
        assert_eq!(take_end(&mut head), headers(&["0"]));

        let mut refused = headers(&["5"]);
        refused.insert(&GRPC_MESSAGE, HeaderValue::from_static("no%20account"));
        refused.insert(&GRPC_STATUS_DETAILS, HeaderValue::from_static("CAU"));
        head.extend(refused.clone());
        assert_eq!(take_end(&mut head), refused);
        assert_eq!((head.len(), &head[name]), (1, &HeaderValue::from_static(value)));
    }

    #[test]
    fn g3_an_answer_for_every_code() {
        use Status as S;
        let after = Some(Pushback::After(Duration::from_secs(1)));
        let never = Some(Pushback::Never);
        for (code, status, pushback) in [
            (Code::MissingKey, S::InvalidArgument, after),
            (Code::InvalidKey, S::InvalidArgument, after),
            (Code::MissingScope, S::InvalidArgument, after),
            (Code::KeyReused, S::FailedPrecondition, never),
            (Code::InProgress, S::Aborted, after),
            (Code::OutcomeUnknown, S::Aborted, never),
            (Code::ResponseUnavailable, S::FailedPrecondition, never),
            (Code::StoreUnavailable, S::Unavailable, after),
            (Code::Overloaded, S::Unavailable, after),
            (Code::IncompleteBody, S::InvalidArgument, after),
            (Code::HandlerFailed, S::Internal, after),
            (Code::UpstreamUnreachable, S::Unavailable, after),
            (Code::UpstreamFailed, S::Unknown, after),
            (Code::UpstreamTimeout, S::DeadlineExceeded, after),
        ] {
            let problem = Problem::new(code, "").retry_after(Duration::from_secs(1));
            assert_eq!(Answer::to(&problem), Answer { status, pushback }, "{code}");
        }
        assert_eq!(Answer::to(&Problem::missing_key()).pushback, None);
    }
}
