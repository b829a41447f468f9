//! The client layer for Tower: the same calls over any service that sends HTTP requests.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http::{Extensions, HeaderMap, Request, Response, StatusCode, header, request};
use http_body::Body;
use http_body_util::BodyExt as _;
use retrysafe_core::{
    IdempotencyKey,
    client::{AttemptEnd, NoKey},
};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    BoxError, CallDeadline, Error,
    body::ReadBody,
    calls::{Calls, Failure, Logical},
    keying::{Keyed, Unkeyed},
    observe::{self, CallOutcome},
    transport::{Answered, Beginning, HttpTransport, OnEnd},
};

/// Gives every operation its key, and retries it under it: a layer for services that *send* requests,
/// such as `hyper_util`'s client.
///
/// The URI of a request has to be absolute. A request body that ends within
/// [`max_repeatable_body`](crate::Settings::max_repeatable_body) is read first, so that it can be sent
/// again; a longer one is sent as it comes, and once. The layer follows no redirects (C6). Trailers are
/// passed on behind a body that is sent, or given, as it comes; what has been read first loses them.
///
/// What says that nothing was sent is the service's to know: tell the layer with
/// [`nothing_sent_if`](Self::nothing_sent_if). Without it every failure counts as one after which the
/// request may have been received.
///
/// ```
/// use bytes::Bytes;
/// use http::{Request, Response, StatusCode};
/// use http_body_util::Full;
/// use retrysafe_client::{Client, ReadBody};
/// use tower::{Service as _, ServiceBuilder, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // Answers 503 at first: the layer asks again, with the same key.
/// let mut asked = 0;
/// let server = service_fn(move |request: Request<ReadBody<Full<Bytes>>>| {
///     assert!(request.headers().contains_key("idempotency-key"));
///     asked += 1;
///     let status = if asked == 1 { 503 } else { 201 };
///     let response = Response::builder().status(status).body(Full::new(Bytes::new()));
///     async move { response }
/// });
/// # #[derive(Clone)] struct Shared<S>(std::sync::Arc<tokio::sync::Mutex<S>>);
/// # impl<S, R> tower::Service<R> for Shared<S>
/// # where S: tower::Service<R, Future: Send> + Send + 'static, R: Send + 'static {
/// #     type Response = S::Response; type Error = S::Error;
/// #     type Future = std::pin::Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;
/// #     fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), S::Error>> {
/// #         std::task::Poll::Ready(Ok(()))
/// #     }
/// #     fn call(&mut self, request: R) -> Self::Future {
/// #         let inner = self.0.clone();
/// #         Box::pin(async move { let call = inner.lock().await.call(request); call.await })
/// #     }
/// # }
/// # let server = Shared(std::sync::Arc::new(tokio::sync::Mutex::new(server)));
/// let mut client = ServiceBuilder::new().layer(Client::builder().layer()?).service(server);
/// let order = Request::post("http://orders.example/orders").body(Full::new(Bytes::from("book")))?;
/// assert_eq!(client.call(order).await?.status(), StatusCode::CREATED);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ClientLayer {
    calls: Arc<Calls>,
    nothing_sent: Option<Arc<NothingSent>>,
}

type NothingSent = dyn Fn(&(dyn std::error::Error + 'static)) -> bool + Send + Sync;

impl ClientLayer {
    pub(crate) fn new(calls: Arc<Calls>) -> Self {
        Self { calls, nothing_sent: None }
    }

    /// Which errors of the service, or of their causes, say that nothing was sent. For `hyper_util`'s
    /// client that is its error's `is_connect`.
    pub fn nothing_sent_if(
        mut self,
        says_so: impl Fn(&(dyn std::error::Error + 'static)) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.nothing_sent = Some(Arc::new(says_so));
        self
    }
}

impl fmt::Debug for ClientLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientLayer").field("calls", &self.calls).finish_non_exhaustive()
    }
}

impl<S> Layer<S> for ClientLayer {
    type Service = ClientService<S>;

    fn layer(&self, inner: S) -> ClientService<S> {
        ClientService { inner, layer: self.clone() }
    }
}

/// A service that sends requests and keeps their keys. Made by [`ClientLayer`].
#[derive(Clone, Debug)]
pub struct ClientService<S> {
    inner: S,
    layer: ClientLayer,
}

/// The future of a call.
type CallFuture<R> = Pin<Box<dyn Future<Output = Result<Response<ReadBody<R>>, Error>> + Send>>;

impl<S, B, R> Service<Request<B>> for ClientService<S>
where
    S: Service<Request<ReadBody<B>>, Response = Response<R>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
    R: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    type Response = Response<ReadBody<R>>;
    type Error = Error;
    type Future = CallFuture<R>;

    /// Always ready: every attempt waits for the inner service by itself.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (inner, layer) = (self.inner.clone(), self.layer.clone());
        Box::pin(async move { call(inner, &layer, request).await })
    }
}

async fn call<S, B, R>(
    inner: S,
    layer: &ClientLayer,
    request: Request<B>,
) -> Result<Response<ReadBody<R>>, Error>
where
    S: Service<Request<ReadBody<B>>, Response = Response<R>> + Clone + Send,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin,
    R: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin,
{
    let calls = &*layer.calls;
    let (mut head, mut body) = request.into_parts();
    let most = calls.settings.max_repeatable_body;
    let read = read_ahead(&mut body, most).await.map_err(|error| {
        observe::call_ended(CallOutcome::Refused, 0);
        Error::inner(error)
    })?;
    let (mut whole, stream) = match read {
        Beginning::Whole(bytes) => (Some(bytes), None),
        Beginning::Part(read) => (None, Some(ReadBody::untouched(body).unread(read))),
    };
    let url = head.uri.to_string();
    let (key, of_content) = put_key(calls, &url, &mut head, &mut whole)?;
    let about = head.clone();
    let mut logical = Logical {
        key,
        of_content,
        method: &about.method,
        url: &url,
        authority: about.uri.authority().map_or("", |it| it.as_str()),
        headers: &about.headers,
        body: whole.as_ref(),
        deadline: about.extensions.get::<CallDeadline>().map(|it| it.0),
        resumed: None,
    };
    let nothing_sent = layer.nothing_sent.as_deref();
    let mut transport = Tower { inner, head, whole: whole.clone(), stream, nothing_sent };
    match calls.make(&mut logical, &mut transport).await {
        Ok(Answered::Whole(response, body)) => Ok(response.map(|_| ReadBody::whole(body))),
        Ok(Answered::Stream(response)) => Ok(response),
        Ok(Answered::Shared(answer)) => {
            let mut response = Response::new(ReadBody::whole(answer.body.clone()));
            *response.status_mut() = answer.status;
            response.headers_mut().clone_from(&answer.headers);
            Ok(response)
        }
        Err(Failure::Inner(error)) => Err(Error::inner(error)),
        Err(Failure::Ours(error)) => Err(error),
    }
}

/// Reads a body to its end, if that is within so many bytes.
async fn read_ahead<B>(body: &mut B, most: usize) -> Result<Beginning, B::Error>
where
    B: Body<Data = Bytes> + Unpin,
{
    if body.size_hint().lower() > most as u64 {
        return Ok(Beginning::Part(Bytes::new()));
    }
    let mut read = BytesMut::new();
    let mut only = None;
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        let Ok(data) = frame.into_data() else { continue };
        match (only.take(), read.is_empty()) {
            (None, true) => only = Some(data),
            (Some(first), _) => {
                read.extend_from_slice(&first);
                read.extend_from_slice(&data);
            }
            (None, false) => read.extend_from_slice(&data),
        }
        if only.as_ref().map_or(read.len(), Bytes::len) > most {
            return Ok(Beginning::Part(only.unwrap_or_else(|| read.freeze())));
        }
    }
    Ok(Beginning::Whole(only.unwrap_or_else(|| read.freeze())))
}

fn put_key(
    calls: &Calls,
    url: &str,
    head: &mut request::Parts,
    body: &mut Option<Bytes>,
) -> Result<(Option<IdempotencyKey>, bool), NoKey> {
    let keyed = calls.key(&Unkeyed {
        method: &head.method,
        url,
        headers: &head.headers,
        body: body.as_deref(),
        named: head.extensions.get(),
    });
    let keyed = keyed?;
    let of_content = keyed.is_of_content(calls, head.extensions.get());
    let key = match keyed {
        Keyed::No => None,
        Keyed::Own(key) => Some(key),
        Keyed::Header(key, name, value) => {
            head.headers.insert(name, value);
            Some(key)
        }
        Keyed::Body(key, with_key) => {
            head.headers.remove(header::CONTENT_LENGTH);
            *body = Some(with_key.into());
            Some(key)
        }
    };
    Ok((key, of_content))
}

/// Sends by a Tower service.
struct Tower<'a, S, B> {
    inner: S,
    head: request::Parts,
    whole: Option<Bytes>,
    stream: Option<ReadBody<B>>,
    nothing_sent: Option<&'a NothingSent>,
}

impl<S, B, R> HttpTransport for Tower<'_, S, B>
where
    S: Service<Request<ReadBody<B>>, Response = Response<R>> + Clone + Send,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Send,
    R: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin,
{
    type Response = Response<ReadBody<R>>;
    type Error = BoxError;

    async fn send(&mut self) -> Result<Self::Response, (BoxError, AttemptEnd)> {
        let body = match (&self.whole, self.stream.take()) {
            (Some(whole), _) => ReadBody::whole(whole.clone()),
            (None, Some(stream)) => stream,
            (None, None) => unreachable!("a body that is a stream is sent once"),
        };
        let request = Request::from_parts(self.head.clone(), body);
        // bypass_poll_ready: what is called is what was ready.
        let mut inner = self.inner.clone();
        std::future::poll_fn(|cx| inner.poll_ready(cx))
            .await
            .map_err(|error| (error.into(), AttemptEnd::NotSent))?;
        let sent = inner.call(request).await;
        let response = sent.map_err(|error| {
            let error: BoxError = error.into();
            let end = match self.nothing_sent.is_some_and(|says_so| any(&*error, says_so)) {
                true => AttemptEnd::NotSent,
                false => AttemptEnd::Broken,
            };
            (error, end)
        })?;
        Ok(response.map(ReadBody::untouched))
    }

    fn status(response: &Self::Response) -> StatusCode {
        response.status()
    }

    fn headers(response: &Self::Response) -> &HeaderMap {
        response.headers()
    }

    fn extensions(response: &mut Self::Response) -> &mut Extensions {
        response.extensions_mut()
    }

    async fn read(response: &mut Self::Response, most: usize) -> Result<Beginning, BoxError> {
        let Some(body) = response.body_mut().given() else {
            unreachable!("an answer is read once");
        };
        read_ahead(body, most).await.map_err(Into::into)
    }

    fn unread(response: Self::Response, read: Bytes) -> Self::Response {
        response.map(|body| body.unread(read))
    }

    fn at_end(response: Self::Response, tell: OnEnd) -> Self::Response {
        response.map(|body| body.telling(tell))
    }
}

/// Whether an error or one of its causes is one of those.
fn any(error: &(dyn std::error::Error + 'static), one: &NothingSent) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(one)
}
