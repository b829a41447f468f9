//! The middleware for reqwest.

use std::{
    future::{Future, ready},
    mem,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use http::{Extensions, HeaderMap, Method, StatusCode, Version, header};
use http_body_util::BodyExt as _;
use reqwest::{Body, Request, Response, ResponseBuilderExt as _, Url};
use reqwest_middleware::{Middleware, Next};
use retrysafe_core::{IdempotencyKey, client::AttemptEnd};

use crate::{
    CallDeadline, Error,
    body::EndingBody,
    calls::{Calls, Failure, Logical},
    keying::{Keyed, Unkeyed},
    redirect::{self, Redirected},
    transport::{Answered, Beginning, HttpTransport, OnEnd, Whole},
};

/// Gives every operation its key, and retries it under it: a middleware for `reqwest-middleware`.
///
/// Made by [`ClientBuilder::middleware`](crate::ClientBuilder::middleware), for those who have a stack
/// of their own; [`Client`](crate::Client) has it built in. It belongs outside of what acts once for
/// each attempt (signatures, tokens, per-attempt traces), and inside of what acts once for each call.
///
/// The `reqwest::Client` below it has to follow redirects by [`same_origin_redirects`] (C6), or not at
/// all, and in the task of the call: a middleware does not see redirects. Under another policy a
/// connection that is refused after one looks like a request that was never sent, and **what was
/// executed is sent again**.
///
/// [`same_origin_redirects`]: crate::same_origin_redirects
#[derive(Clone, Debug)]
pub struct IdempotencyMiddleware {
    pub(crate) calls: Arc<Calls>,
}

/// A request that is made again for the journal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resumed {
    pub(crate) first_sent: Duration,
}

// As `async_trait` has it, but for what is done before the future is made: that would move the request
// from one of its places to the next.
impl Middleware for IdempotencyMiddleware {
    fn handle<'c, 'e, 'n, 'f>(
        &'c self,
        mut request: Request,
        extensions: &'e mut Extensions,
        next: Next<'n>,
    ) -> Pin<Box<dyn Future<Output = reqwest_middleware::Result<Response>> + Send + 'f>>
    where
        'c: 'f,
        'e: 'f,
        'n: 'f,
        Self: 'f,
    {
        let (key, of_content) = match put_key(&self.calls, &mut request, extensions) {
            Ok(put) => put,
            Err(error) => return Box::pin(ready(Err(error))),
        };
        let template = Template::of(&mut request);
        let mut first = Some(request);
        Box::pin(async move {
            let mut logical = Logical {
                key,
                of_content,
                method: &template.method,
                url: template.url.as_str(),
                authority: template.url.authority(),
                headers: &template.headers,
                body: template.content.bytes(),
                deadline: extensions.get::<CallDeadline>().map(|it| it.0),
                resumed: extensions.get::<Resumed>().map(|it| it.first_sent),
            };
            let mut transport =
                Reqwest { template: &template, first: &mut first, extensions, next };
            match self.calls.make(&mut logical, &mut transport).await {
                // Nothing was taken out of it.
                Ok(Answered::Whole(response, body)) if body.is_empty() => Ok(response),
                Ok(Answered::Whole(response, body)) => Ok(with_body(response, body, template.url)),
                Ok(Answered::Stream(response)) => Ok(response),
                Ok(Answered::Shared(answer)) => Ok(repeated(&answer, template.url)),
                Err(Failure::Inner(error)) => Err(error),
                Err(Failure::Ours(error)) => Err(reqwest_middleware::Error::middleware(error)),
            }
        })
    }
}

fn put_key(
    calls: &Calls,
    request: &mut Request,
    extensions: &Extensions,
) -> reqwest_middleware::Result<(Option<IdempotencyKey>, bool)> {
    let keyed = calls.key(&Unkeyed {
        method: request.method(),
        url: request.url().as_str(),
        headers: request.headers(),
        body: request.body().map_or(Some(&[]), Body::as_bytes),
        named: extensions.get(),
    });
    let keyed = keyed.map_err(|error| reqwest_middleware::Error::middleware(Error::from(error)))?;
    let of_content = keyed.is_of_content(calls, extensions.get());
    let key = match keyed {
        Keyed::No => None,
        Keyed::Own(key) => Some(key),
        Keyed::Header(key, name, value) => {
            request.headers_mut().insert(name, value);
            Some(key)
        }
        Keyed::Body(key, body) => {
            request.headers_mut().remove(header::CONTENT_LENGTH);
            *request.body_mut() = Some(Body::from(body));
            Some(key)
        }
    };
    Ok((key, of_content))
}

/// What later attempts are made of. The first is the caller's own request, so this costs a call that
/// succeeds at once a copy of URL and headers. (`Request::try_clone` makes extensions, too.)
struct Template {
    method: Method,
    url: Url,
    headers: HeaderMap,
    version: Version,
    timeout: Option<Duration>,
    content: Content,
}

enum Content {
    Nothing,
    Bytes(Bytes),
    Stream,
}

impl Template {
    fn of(request: &mut Request) -> Self {
        Self {
            content: Content::of(request),
            method: request.method().clone(),
            url: request.url().clone(),
            headers: request.headers().clone(),
            version: request.version(),
            timeout: request.timeout().copied(),
        }
    }

    /// Another request of the kind; none if its body was a stream.
    fn request(&self) -> Option<Request> {
        let mut request = Request::new(self.method.clone(), self.url.clone());
        *request.body_mut() = match &self.content {
            Content::Nothing => None,
            Content::Bytes(bytes) => Some(Body::from(bytes.clone())),
            Content::Stream => return None,
        };
        request.headers_mut().clone_from(&self.headers);
        *request.version_mut() = self.version;
        if let Some(timeout) = self.timeout {
            *request.timeout_mut() = Some(timeout);
        }
        Some(request)
    }
}

impl Content {
    /// Shares the body of a request, which stays as it is.
    fn of(request: &mut Request) -> Self {
        let Some(body) = request.body_mut() else { return Self::Nothing };
        if body.as_bytes().is_none() {
            return Self::Stream;
        }
        // reqwest lends a body's bytes, and gives them away only as the frame that they are.
        let frame = body.frame().now_or_never().flatten();
        let bytes = frame.and_then(Result::ok).and_then(|it| it.into_data().ok());
        let bytes = bytes.unwrap_or_default();
        *body = Body::from(bytes.clone());
        Self::Bytes(bytes)
    }

    /// None if it is a stream.
    fn bytes(&self) -> Option<&Bytes> {
        static NOTHING: Bytes = Bytes::new();
        match self {
            Self::Nothing => Some(&NOTHING),
            Self::Bytes(bytes) => Some(bytes),
            Self::Stream => None,
        }
    }
}

/// Sends by the rest of the middleware stack.
struct Reqwest<'a> {
    template: &'a Template,
    first: &'a mut Option<Request>,
    extensions: &'a mut Extensions,
    next: Next<'a>,
}

impl HttpTransport for Reqwest<'_> {
    type Response = Response;
    type Error = reqwest_middleware::Error;

    async fn send(&mut self) -> Result<Response, (reqwest_middleware::Error, AttemptEnd)> {
        let Some(request) = self.first.take().or_else(|| self.template.request()) else {
            unreachable!("a body that is a stream is sent once");
        };
        let sending = self.next.clone().run(request, self.extensions);
        let (sent, redirected) = redirect::watched(sending).await;
        let sent = sent.map(|mut response| {
            if redirected.answered {
                response.extensions_mut().insert(redirected);
            }
            response
        });
        sent.map_err(|error| match error {
            // A connection that fails after a redirect is not the first one.
            reqwest_middleware::Error::Reqwest(error) if !redirected.at_all => {
                let (end, without_tls) = (end_of(&error), is_without_tls(&error));
                let error = match without_tls {
                    true => reqwest_middleware::Error::middleware(Error::no_tls(error)),
                    false => error.into(),
                };
                (error, end)
            }
            // What another middleware says, nobody knows.
            error => (error, AttemptEnd::Broken),
        })
    }

    fn status(response: &Response) -> StatusCode {
        response.status()
    }

    fn headers(response: &Response) -> &HeaderMap {
        response.headers()
    }

    fn extensions(response: &mut Response) -> &mut Extensions {
        response.extensions_mut()
    }

    fn is_of_another(response: &Response) -> bool {
        response.extensions().get::<Redirected>().is_some()
    }

    async fn read(
        response: &mut Response,
        most: usize,
    ) -> Result<Beginning, reqwest_middleware::Error> {
        if response.content_length().is_some_and(|it| it > most as u64) {
            return Ok(Beginning::Part(Bytes::new()));
        }
        let mut read = response.chunk().await?.unwrap_or_default();
        while read.len() <= most
            && let Some(chunk) = response.chunk().await?
        {
            // Of an answer in one piece, which most are, nothing is copied.
            let mut all = BytesMut::from(read);
            all.extend_from_slice(&chunk);
            read = all.freeze();
        }
        Ok(if read.len() > most { Beginning::Part(read) } else { Beginning::Whole(read) })
    }

    fn unread(response: Response, read: Bytes) -> Response {
        if read.is_empty() {
            return response;
        }
        map_body(response, |rest| Body::wrap(EndingBody::after(read, rest)))
    }

    fn at_end(response: Response, tell: OnEnd) -> Response {
        map_body(response, |body| Body::wrap(EndingBody::telling(body, tell)))
    }
}

/// How an attempt ended that reqwest has no answer to, and that was not redirected.
fn end_of(error: &reqwest::Error) -> AttemptEnd {
    match error {
        // A scheme that it does not know, a header that can't be: the same the next time.
        _ if error.is_builder() || is_without_tls(error) => AttemptEnd::Unsendable,
        _ if error.is_connect() => AttemptEnd::NotSent,
        _ => AttemptEnd::Broken,
    }
}

/// Whether the URL is `https:` and reqwest was built without TLS. It has no other way to say so.
fn is_without_tls(error: &reqwest::Error) -> bool {
    const SAYS: &str = "invalid URL, scheme is not http";
    let error: &(dyn std::error::Error + 'static) = error;
    std::iter::successors(Some(error), |error| error.source()).any(|it| it.to_string() == SAYS)
}

/// The same response with the body that has been read of it. `asked` is the URL of the request,
/// which is used up: mostly it is the response's.
fn with_body(mut response: Response, body: Bytes, asked: Url) -> Response {
    let url = if *response.url() == asked { asked } else { response.url().clone() };
    let mut parts = http::Response::builder().status(response.status()).version(response.version());
    if let Some(headers) = parts.headers_mut() {
        mem::swap(headers, response.headers_mut());
    }
    if let Some(extensions) = parts.extensions_mut() {
        mem::swap(extensions, response.extensions_mut());
    }
    finished(parts.url(url).body(Body::from(body)))
}

/// The answer of another call.
fn repeated(answer: &Whole, url: Url) -> Response {
    let mut parts = http::Response::builder().status(answer.status);
    if let Some(headers) = parts.headers_mut() {
        headers.clone_from(&answer.headers);
    }
    finished(parts.url(url).body(Body::from(answer.body.clone())))
}

/// The same response with another body in the place of its own.
fn map_body(response: Response, change: impl FnOnce(Body) -> Body) -> Response {
    let url = response.url().clone();
    let (mut parts, body) = http::Response::<Body>::from(response).into_parts();
    let mut builder = http::Response::builder().status(parts.status).version(parts.version);
    if let Some(headers) = builder.headers_mut() {
        mem::swap(headers, &mut parts.headers);
    }
    if let Some(extensions) = builder.extensions_mut() {
        mem::swap(extensions, &mut parts.extensions);
    }
    finished(builder.url(url).body(change(body)))
}

fn finished(response: http::Result<http::Response<Body>>) -> Response {
    match response {
        Ok(response) => Response::from(response),
        Err(_) => unreachable!("these are the parts of a response"),
    }
}
