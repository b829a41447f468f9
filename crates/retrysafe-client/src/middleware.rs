//! The middleware for reqwest.

use std::{mem, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::{Extensions, HeaderMap, StatusCode, header};
use reqwest::{Body, Request, Response, ResponseBuilderExt as _};
use reqwest_middleware::{Middleware, Next};
use retrysafe_core::{
    IdempotencyKey,
    client::{AttemptEnd, KeyPlacement, NoKey, Operation, Placed},
};

use crate::{
    Error,
    body::EndingBody,
    calls::{Calls, Failure, Logical, OnEnd, Transport, Whole},
    observe::{self, CallOutcome},
};

/// Gives every operation its key, and retries it under it: a middleware for `reqwest-middleware`.
///
/// Made by [`ClientBuilder::middleware`](crate::ClientBuilder::middleware), for those who have a stack
/// of their own; [`Client`](crate::Client) has it built in. It belongs outside of what acts once for
/// each attempt (signatures, tokens, per-attempt traces), and inside of what acts once for each call.
///
/// The `reqwest::Client` below it should follow redirects by [`same_origin_redirects`] only (C6): a
/// middleware does not see them.
///
/// [`same_origin_redirects`]: crate::same_origin_redirects
#[derive(Clone, Debug)]
pub struct IdempotencyMiddleware {
    pub(crate) calls: Arc<Calls>,
}

/// How long one call may take, all in all: an extension of a request.
///
/// ```
/// # use std::time::Duration;
/// use retrysafe_client::{CallDeadline, Client};
///
/// # async fn order(client: &Client) -> reqwest_middleware::Result<reqwest::Response> {
/// let deadline = CallDeadline(Duration::from_secs(5));
/// client.post("https://api.example/orders").with_extension(deadline).send().await
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallDeadline(pub Duration);

/// A request that is made again for the journal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resumed {
    pub(crate) first_sent: Duration,
}

#[async_trait]
impl Middleware for IdempotencyMiddleware {
    async fn handle(
        &self,
        mut request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        let calls = &*self.calls;
        let key = prepare(calls, &mut request, extensions).map_err(|error| {
            observe::call_ended(CallOutcome::Refused, 0);
            reqwest_middleware::Error::middleware(Error::from(error))
        })?;
        let template = request.try_clone();
        // What the call is about is read from the request that stays here.
        let (about, first) = match &template {
            Some(template) => (template, Some(request)),
            None => return self.once(request, key, extensions, next).await,
        };
        let logical = Logical {
            key,
            method: about.method(),
            url: about.url().as_str(),
            origin: origin_of(about.url().as_str()),
            authority: about.url().authority(),
            headers: about.headers(),
            body: Some(about.body().and_then(Body::as_bytes).unwrap_or_default()),
            deadline: extensions.get::<CallDeadline>().map(|it| it.0),
            resumed: extensions.get::<Resumed>().map(|it| it.first_sent),
        };
        let mut transport = Reqwest { template: Some(about), first, extensions, next };
        finish(calls.make(logical, &mut transport).await)
    }
}

impl IdempotencyMiddleware {
    /// A request whose body is a stream: it is sent once.
    async fn once(
        &self,
        request: Request,
        key: Option<IdempotencyKey>,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        let (method, url) = (request.method().clone(), request.url().clone());
        let headers = request.headers().clone();
        let logical = Logical {
            key,
            method: &method,
            url: url.as_str(),
            origin: origin_of(url.as_str()),
            authority: url.authority(),
            headers: &headers,
            body: None,
            deadline: extensions.get::<CallDeadline>().map(|it| it.0),
            resumed: None,
        };
        let mut transport = Reqwest { template: None, first: Some(request), extensions, next };
        finish(self.calls.make(logical, &mut transport).await)
    }
}

fn finish(
    made: Result<Response, Failure<reqwest_middleware::Error>>,
) -> reqwest_middleware::Result<Response> {
    made.map_err(|failure| match failure {
        Failure::Inner(error) => error,
        Failure::Ours(error) => reqwest_middleware::Error::middleware(error),
    })
}

/// Sees to it that a request which should have a key has one, before anything is sent (C1).
fn prepare(
    calls: &Calls,
    request: &mut Request,
    extensions: &Extensions,
) -> Result<Option<IdempotencyKey>, NoKey> {
    let dialect = &calls.settings.dialect;
    // The caller's own key stays, on a request of any method.
    if let Some(own) = dialect.own_key(request.headers())? {
        return Ok(Some(own));
    }
    let named = extensions.get::<IdempotencyKey>();
    if named.is_none() && !dialect.methods.cover(request.method()) {
        return Ok(None);
    }
    let make = |request: &Request| -> Result<IdempotencyKey, NoKey> {
        if let Some(key) = named {
            dialect.check(key)?;
            return Ok(key.clone());
        }
        let operation = Operation {
            method: request.method().as_str(),
            url: request.url().as_str(),
            content_type: request.headers().get(header::CONTENT_TYPE),
            body: request.body().map_or(Some(&[][..]), Body::as_bytes),
        };
        calls.settings.keys.key(&operation, || calls.clock.wall(), &*calls.entropy)
    };
    match &dialect.placement {
        KeyPlacement::Header(name) => {
            let key = make(request)?;
            let value = key.to_header_value(dialect.quoting);
            request.headers_mut().insert(name.clone(), value);
            Ok(Some(key))
        }
        KeyPlacement::Body(pointer) => {
            let body = request.body().map_or(Some(&[][..]), Body::as_bytes);
            let body = body.ok_or(NoKey::StreamedBody)?;
            let (key, placed) = dialect.place_in_body(pointer, body, || make(request))?;
            if let Placed::Put(body) = placed {
                request.headers_mut().remove(header::CONTENT_LENGTH);
                *request.body_mut() = Some(Body::from(body));
            }
            Ok(Some(key))
        }
        _ => Err(NoKey::NotAnObject),
    }
}

/// Scheme and authority of a URL.
pub(crate) fn origin_of(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    &url[..end]
}

/// Sends by the rest of the middleware stack.
struct Reqwest<'a> {
    /// What later attempts are cloned from; none if the body is a stream.
    template: Option<&'a Request>,
    first: Option<Request>,
    extensions: &'a mut Extensions,
    next: Next<'a>,
}

impl Transport for Reqwest<'_> {
    type Response = Response;
    type Error = reqwest_middleware::Error;

    async fn send(&mut self) -> Result<Response, (reqwest_middleware::Error, AttemptEnd)> {
        let request = self.first.take().or_else(|| self.template?.try_clone());
        let Some(request) = request else {
            unreachable!("a request that can't be cloned is sent once");
        };
        let sent = self.next.clone().run(request, self.extensions).await;
        sent.map_err(|error| {
            let end = match &error {
                reqwest_middleware::Error::Reqwest(error) if self.sent_nothing(error) => {
                    AttemptEnd::NotSent
                }
                // What another middleware says, nobody knows.
                _ => AttemptEnd::Broken,
            };
            (error, end)
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

    async fn read(
        &mut self,
        mut response: Response,
        most: usize,
    ) -> Result<(Response, Option<Bytes>), reqwest_middleware::Error> {
        if response.content_length().is_some_and(|it| it > most as u64) {
            return Ok((response, None));
        }
        let Some(mut read) = response.chunk().await? else {
            return Ok((response, Some(Bytes::new())));
        };
        let mut more = response.chunk().await?;
        if let Some(chunk) = more.take() {
            let mut all = BytesMut::from(read);
            all.extend_from_slice(&chunk);
            while all.len() <= most
                && let Some(chunk) = response.chunk().await?
            {
                all.extend_from_slice(&chunk);
            }
            read = all.freeze();
        }
        if read.len() > most {
            let response = map_body(response, |rest| Body::wrap(EndingBody::after(read, rest)));
            return Ok((response, None));
        }
        Ok((with_body(response, read.clone()), Some(read)))
    }

    fn repeat(&self, answer: &Whole) -> Response {
        let mut builder = http::Response::builder().status(answer.status);
        if let Some(headers) = builder.headers_mut() {
            headers.clone_from(&answer.headers);
        }
        if let Some(request) = self.template.or(self.first.as_ref()) {
            builder = builder.url(request.url().clone());
        }
        finished(builder.body(Body::from(answer.body.clone())))
    }

    fn at_end(response: Response, tell: OnEnd) -> Response {
        map_body(response, |body| Body::wrap(EndingBody::telling(body, tell)))
    }
}

impl Reqwest<'_> {
    /// Whether a failed request was not sent at all.
    fn sent_nothing(&self, error: &reqwest::Error) -> bool {
        let asked = self.template.map(|it| it.url());
        // A connection that fails after a redirect is not the first one.
        let redirected = match (error.url(), asked) {
            (Some(failed), Some(asked)) => failed != asked,
            _ => false,
        };
        error.is_builder() || (error.is_connect() && !redirected)
    }
}

/// The same response with a body that has been read.
fn with_body(mut response: Response, body: Bytes) -> Response {
    let url = response.url().clone();
    let mut parts = http::Response::builder().status(response.status()).version(response.version());
    if let Some(headers) = parts.headers_mut() {
        mem::swap(headers, response.headers_mut());
    }
    if let Some(extensions) = parts.extensions_mut() {
        mem::swap(extensions, response.extensions_mut());
    }
    finished(parts.url(url).body(Body::from(body)))
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
