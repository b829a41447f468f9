//! What the one loop of calls asks of those that send: reqwest, a Tower service, Tonic.

use std::{future::Future, sync::Arc};

use bytes::Bytes;
use http::{Extensions, HeaderMap, StatusCode, header};
use retrysafe_core::{
    Clock,
    client::{Answer, AttemptEnd, Dialect},
};

use crate::BoxError;

/// How requests are sent.
pub(crate) trait Transport: Send {
    type Response: Send;
    type Error: Into<BoxError> + Send;

    /// Sends the request once, and reads what has to be read of the answer. What the caller gets, if
    /// this was the last attempt, is put where `last` is.
    fn attempt(
        &mut self,
        reading: Reading<'_>,
        last: &mut Last<Self::Response, Self::Error>,
    ) -> impl Future<Output = AttemptEnd> + Send;

    fn extensions(response: &mut Self::Response) -> &mut Extensions;

    /// What others of this process can be given, where answers are shared.
    fn share(response: &Self::Response, body: Bytes) -> Option<Whole>;

    /// Has somebody told when the body of a response has ended as it should.
    fn at_end(response: Self::Response, tell: OnEnd) -> Self::Response;
}

/// What the last attempt gave. It stays in one place: a response is large, and many futures would hand
/// it on. There is neither after an attempt that was not waited for to its end.
pub(crate) struct Last<R, E> {
    pub(crate) answer: Option<Read<R>>,
    pub(crate) error: Option<E>,
}

impl<R, E> Last<R, E> {
    pub(crate) const NOTHING: Self = Self { answer: None, error: None };

    pub(crate) fn change(&mut self, change: impl FnOnce(R) -> R) {
        let changed = |read: Read<R>| Read { response: change(read.response), whole: read.whole };
        self.answer = self.answer.take().map(changed);
    }
}

/// How answers are read.
#[derive(Clone, Copy)]
pub(crate) struct Reading<'a> {
    pub(crate) dialect: &'a Dialect,
    pub(crate) clock: &'a dyn Clock,
    /// How much is read of one before it is handed on, in bytes.
    pub(crate) most: usize,
}

/// A response, and its body if it was read whole: then the response has none.
pub(crate) struct Read<R> {
    pub(crate) response: R,
    pub(crate) whole: Option<Bytes>,
}

/// What a call ends with, if it ends with an answer.
pub(crate) enum Answered<R> {
    /// Its body has been read, and has to be put back.
    Whole(R, Bytes),
    /// It is handed on as it comes.
    Stream(R),
    /// The answer of another call.
    Shared(Arc<Whole>),
}

impl<R> From<Read<R>> for Answered<R> {
    fn from(Read { response, whole }: Read<R>) -> Self {
        match whole {
            Some(body) => Self::Whole(response, body),
            None => Self::Stream(response),
        }
    }
}

/// An answer that can be given to several calls.
pub(crate) struct Whole {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// What is done when a body has ended as it should.
pub(crate) type OnEnd = Box<dyn FnOnce() + Send + Sync>;

/// How HTTP requests are sent.
pub(crate) trait HttpTransport: Send {
    type Response: Send;
    type Error: Into<BoxError> + Send;

    /// Sends the request once.
    fn send(
        &mut self,
    ) -> impl Future<Output = Result<Self::Response, (Self::Error, AttemptEnd)>> + Send;

    fn status(response: &Self::Response) -> StatusCode;

    fn headers(response: &Self::Response) -> &HeaderMap;

    fn extensions(response: &mut Self::Response) -> &mut Extensions;

    /// Whether it answers another request, to which the one that was sent was redirected.
    fn is_of_another(_: &Self::Response) -> bool {
        false
    }

    /// Reads the body of a response to its end, if that is within so many bytes.
    fn read(
        response: &mut Self::Response,
        most: usize,
    ) -> impl Future<Output = Result<Beginning, Self::Error>> + Send;

    /// The response as it was before so much was read of its body.
    fn unread(response: Self::Response, read: Bytes) -> Self::Response;

    fn at_end(response: Self::Response, tell: OnEnd) -> Self::Response;
}

/// What was read of a body.
pub(crate) enum Beginning {
    /// All of it.
    Whole(Bytes),
    /// It goes on.
    Part(Bytes),
}

impl<T: HttpTransport> Transport for T {
    type Response = T::Response;
    type Error = T::Error;

    async fn attempt(
        &mut self,
        reading: Reading<'_>,
        last: &mut Last<T::Response, T::Error>,
    ) -> AttemptEnd {
        let read = match self.send().await {
            Ok(response) => last.answer.insert(Read { response, whole: None }),
            Err((error, end)) => {
                last.error = Some(error);
                return end;
            }
        };
        let (status, headers) = (T::status(&read.response), T::headers(&read.response));
        let most = match Answer::wants_body(status, headers) {
            true => reading.most.max(MOST_OF_A_PROBLEM),
            false if is_stream(headers) => 0,
            false => reading.most,
        };
        if most > 0 {
            match T::read(&mut read.response, most).await {
                Ok(Beginning::Whole(body)) => read.whole = Some(body),
                Ok(Beginning::Part(body)) => last.change(|response| T::unread(response, body)),
                // C4: an answer that was cut off is no answer.
                Err(error) => {
                    *last = Last { answer: None, error: Some(error) };
                    return AttemptEnd::Broken;
                }
            }
        }
        let Some(read) = &last.answer else { return AttemptEnd::Broken };
        let (status, headers) = (T::status(&read.response), T::headers(&read.response));
        let body = read.whole.as_deref().unwrap_or_default();
        let now = || reading.clock.wall();
        let mut answer = Answer::read(reading.dialect, status, headers, body, now);
        answer.of_another = T::is_of_another(&read.response);
        AttemptEnd::Answered(answer)
    }

    fn extensions(response: &mut T::Response) -> &mut Extensions {
        T::extensions(response)
    }

    fn share(response: &T::Response, body: Bytes) -> Option<Whole> {
        let (status, headers) = (T::status(response), T::headers(response).clone());
        Some(Whole { status, headers, body })
    }

    fn at_end(response: T::Response, tell: OnEnd) -> T::Response {
        T::at_end(response, tell)
    }
}

/// How much is read of an answer to learn what went wrong.
const MOST_OF_A_PROBLEM: usize = 64 * 1024;

/// Whether an answer is handed on while it is being made (R5).
fn is_stream(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|it| it.to_str().ok());
    let essence = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("text/event-stream")
        || essence.eq_ignore_ascii_case("application/x-ndjson")
}
