//! A response on its way from the handler into the engine, and out of it to the client.

use std::{
    error::Error as StdError,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use actix_web::{
    Error, HttpResponse,
    body::{BodySize, BoxBody, EitherBody, MessageBody},
    dev::ServiceResponse,
    error::InternalError,
};
use bytes::Bytes;
use fragile::Fragile;
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use retrysafe::BoxError;

use crate::{
    aside::Aside,
    head,
    respond::{Overrule, StreamedResponse},
};

/// Hands the handler's response to the engine. Its head is returned as well: only that one carries
/// what Actix knows of it.
pub(crate) fn incoming(response: HttpResponse) -> (Response<HandlerBody>, HttpResponse<()>) {
    let (mut own, body) = response.into_parts();
    let mut ours = Response::new(HandlerBody::new(body));
    // Both versions accept the same numbers.
    if let Ok(status) = StatusCode::from_u16(own.status().as_u16()) {
        *ours.status_mut() = status;
    }
    *ours.headers_mut() = head::headers(own.headers());
    let mut said = own.extensions_mut();
    if let Some(Overrule(overrule)) = said.remove() {
        ours.extensions_mut().insert::<retrysafe::Overrule>(overrule);
    }
    if let Some(StreamedResponse) = said.remove() {
        ours.extensions_mut().insert(retrysafe::StreamedResponse);
    }
    drop(said);
    (ours, own)
}

/// Gives the engine's answer. One that nobody's request is left for (a panic, or a middleware inside
/// that failed) is an error that is rendered as the answer.
///
/// # Errors
///
/// See above.
pub(crate) fn outgoing<B>(
    response: Response<retrysafe::ResponseBody<HandlerBody>>,
    aside: &Aside,
) -> Result<ServiceResponse<EitherBody<B, ResponseBody>>, Error> {
    let (parts, body) = response.into_parts();
    let status = head::status(parts.status);
    // The handler's own response keeps what only Actix knows of it. Any other says at least one
    // thing in its headers that the handler's did not.
    let own = aside.take_response();
    let own = own.filter(|it| it.status() == status && head::same(it.headers(), &parts.headers));
    let response = match own {
        Some(own) => own,
        None => {
            let mut fresh = HttpResponse::new(status).drop_body();
            head::set_headers(fresh.headers_mut(), &parts.headers);
            fresh
        }
    };
    let response = response.set_body(ResponseBody(body));
    match aside.take_request() {
        Some(request) => Ok(ServiceResponse::new(request, response.map_into_right_body())),
        None => {
            let response = response.map_into_boxed_body();
            Err(match aside.take_error() {
                Some(error) => InternalError::from_response(error, response).into(),
                None => InternalError::from_response(HandlerFailed, response).into(),
            })
        }
    }
}

/// There is no request left to answer to.
#[derive(Debug)]
struct HandlerFailed;

impl fmt::Display for HandlerFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the handler failed")
    }
}

/// The body of a response as the handler gives it.
pub(crate) struct HandlerBody {
    body: Fragile<BoxBody>,
    /// What is left of a body that has said how long it is.
    left: Option<u64>,
}

impl HandlerBody {
    fn new(body: BoxBody) -> Self {
        let left = match body.size() {
            BodySize::None => Some(0),
            BodySize::Sized(length) => Some(length),
            BodySize::Stream => None,
        };
        Self { body: Fragile::new(body), left }
    }
}

impl Body for HandlerBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        Poll::Ready(match ready!(Pin::new(this.body.get_mut()).poll_next(cx)) {
            Some(Ok(data)) => {
                this.left = this.left.map(|left| left.saturating_sub(data.len() as u64));
                Some(Ok(Frame::data(data)))
            }
            Some(Err(error)) => Some(Err(BrokeOff(error.to_string()).into())),
            // Actix would break the connection off.
            None if this.left.is_some_and(|left| left > 0) => {
                this.left = None;
                Some(Err(BrokeOff("it is shorter than it said".to_owned()).into()))
            }
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Errors of Actix's bodies stay on their thread; what they say does not have to.
#[derive(Debug)]
struct BrokeOff(String);

impl fmt::Display for BrokeOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the response broke off: {}", self.0)
    }
}

impl StdError for BrokeOff {}

/// The body of a guarded response. One that is not guarded keeps its own.
pub struct ResponseBody(retrysafe::ResponseBody<HandlerBody>);

impl MessageBody for ResponseBody {
    type Error = Box<dyn StdError>;

    fn size(&self) -> BodySize {
        self.0.size_hint().exact().map_or(BodySize::Stream, BodySize::Sized)
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        loop {
            let frame = match ready!(Pin::new(&mut self.0).poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            };
            // Actix sends no trailers (R6: where the version allows).
            if let Ok(data) = frame.into_data() {
                return Poll::Ready(Some(Ok(data)));
            }
        }
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
