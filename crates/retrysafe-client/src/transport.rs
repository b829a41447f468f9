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

    /// Sends the request once, and reads what has to be read of the answer.
    fn attempt(
        &mut self,
        reading: Reading<'_>,
    ) -> impl Future<Output = Attempted<Self::Response, Self::Error>> + Send;

    fn extensions(response: &mut Self::Response) -> &mut Extensions;

    /// What others of this process can be given, where answers are shared.
    fn share(response: &Self::Response, body: Bytes) -> Option<Whole>;

    /// Has somebody told when the body of a response has ended as it should.
    fn at_end(response: Self::Response, tell: OnEnd) -> Self::Response;
}

/// How answers are read.
#[derive(Clone, Copy)]
pub(crate) struct Reading<'a> {
    pub(crate) dialect: &'a Dialect,
    pub(crate) clock: &'a dyn Clock,
    /// How much is read of one before it is handed on, in bytes.
    pub(crate) most: usize,
}

/// How an attempt ended: for the policy, and for the caller if it was the last.
pub(crate) struct Attempted<R, E> {
    pub(crate) end: AttemptEnd,
    pub(crate) result: Result<Read<R>, E>,
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

    /// Reads a response to its end, if that is within so many bytes. A longer one comes back whole.
    fn read(
        response: Self::Response,
        most: usize,
    ) -> impl Future<Output = Result<Read<Self::Response>, Self::Error>> + Send;

    fn at_end(response: Self::Response, tell: OnEnd) -> Self::Response;
}

impl<T: HttpTransport> Transport for T {
    type Response = T::Response;
    type Error = T::Error;

    async fn attempt(&mut self, reading: Reading<'_>) -> Attempted<T::Response, T::Error> {
        match send_and_read(self, reading).await {
            Ok((read, answer)) => Attempted { end: AttemptEnd::Answered(answer), result: Ok(read) },
            Err((error, end)) => Attempted { end, result: Err(error) },
        }
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

async fn send_and_read<T: HttpTransport>(
    transport: &mut T,
    reading: Reading<'_>,
) -> Result<(Read<T::Response>, Answer), (T::Error, AttemptEnd)> {
    let response = transport.send().await?;
    let (status, headers) = (T::status(&response), T::headers(&response));
    let wanted = match Answer::wants_body(status, headers) {
        true => reading.most.max(MOST_OF_A_PROBLEM),
        false if is_stream(headers) => 0,
        false => reading.most,
    };
    let read = match wanted {
        0 => Read { response, whole: None },
        // C4: an answer that was cut off is no answer.
        most => T::read(response, most).await.map_err(|error| (error, AttemptEnd::Broken))?,
    };
    let (status, headers) = (T::status(&read.response), T::headers(&read.response));
    let body = read.whole.as_deref().unwrap_or_default();
    let now = || reading.clock.wall();
    let answer = Answer::read(reading.dialect, status, headers, body, now);
    Ok((read, answer))
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
