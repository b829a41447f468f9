//! A request on its way into the engine, and out of it to the handler.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use actix_web::{
    HttpMessage as _,
    dev::{Payload, ServiceRequest},
    error::PayloadError,
};
use bytes::Bytes;
use fragile::Fragile;
use futures_util::Stream;
use http::{Request, request::Parts, uri::InvalidUri};
use http_body::{Body, Frame, SizeHint};
use retrysafe::{Attempt, IdempotencyKey, RequestBody};

use crate::{aside::Aside, head};

/// Hands a request to the engine. What is Actix's own stays aside.
///
/// # Errors
///
/// If its URI is none for our `http`.
pub(crate) fn incoming(request: ServiceRequest) -> Result<(Request<Incoming>, Aside), InvalidUri> {
    let uri = head::uri(request.uri())?;
    let (request, payload) = request.into_parts();
    let mut ours = Request::new(Incoming(Fragile::new(payload)));
    *ours.uri_mut() = uri;
    *ours.version_mut() = head::version(request.version());
    *ours.headers_mut() = head::headers(request.headers());
    if let Some(method) = head::method(request.method()) {
        *ours.method_mut() = method;
    }
    // A layer outside may have claimed this very operation.
    if let Some(attempt) = request.extensions().get::<Attempt>() {
        ours.extensions_mut().insert(attempt.clone());
    }
    let aside = Aside::new(request);
    ours.extensions_mut().insert(aside.clone());
    Ok((ours, aside))
}

/// Makes the handler's request of its own [`HttpRequest`](actix_web::HttpRequest), which knows what
/// has matched, the app's data and the connection.
pub(crate) fn outgoing(request: Request<RequestBody<Incoming>>) -> Option<(ServiceRequest, Aside)> {
    let (mut parts, body) = request.into_parts();
    let aside: Aside = parts.extensions.remove()?;
    let own = aside.take_request()?;
    tell(&own, &mut parts);
    let mut request = ServiceRequest::from_parts(own, payload(body));
    // K7: the engine may have taken an upgrade away.
    if !head::same(request.headers(), &parts.headers) {
        head::set_headers(request.headers_mut(), &parts.headers);
    }
    Some((request, aside))
}

/// What the engine tells the handler: the attempt, or the key of a request without one (D4).
fn tell(request: &actix_web::HttpRequest, parts: &mut Parts) {
    let mut extensions = request.extensions_mut();
    if let Some(attempt) = parts.extensions.remove::<Attempt>() {
        extensions.insert(attempt);
    }
    if let Some(key) = parts.extensions.remove::<IdempotencyKey>() {
        extensions.insert(key);
    }
}

fn payload(body: RequestBody<Incoming>) -> Payload {
    match body.into_passed() {
        Ok(Incoming(payload)) => payload.into_inner(),
        Err(body) if body.is_end_stream() => Payload::None,
        Err(body) => Payload::Stream { payload: Box::pin(Read(body)) },
    }
}

/// The body of a request as Actix receives it.
pub(crate) struct Incoming(Fragile<Payload>);

impl Body for Incoming {
    type Data = Bytes;
    type Error = PayloadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, PayloadError>>> {
        let data = ready!(Pin::new(self.0.get_mut()).poll_next(cx));
        Poll::Ready(data.map(|data| data.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.0.get(), Payload::None)
    }

    fn size_hint(&self) -> SizeHint {
        match self.0.get() {
            Payload::None => SizeHint::with_exact(0),
            _ => SizeHint::default(),
        }
    }
}

/// The body of a request as the handler is given it.
struct Read(RequestBody<Incoming>);

impl Stream for Read {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let frame = match ready!(Pin::new(&mut self.0).poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    // F4: what is not Actix's error is a body that ended before its end.
                    let error = error.downcast().map_or(PayloadError::Incomplete(None), |it| *it);
                    return Poll::Ready(Some(Err(error)));
                }
            };
            if let Ok(data) = frame.into_data() {
                return Poll::Ready(Some(Ok(data)));
            }
        }
    }
}
