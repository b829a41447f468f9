//! The service behind the proxy.
//!
//! What matters here is how a request can fail: whether provably nothing was sent, or the service
//! may have acted on it (PROTOCOL 5). The client below never sends a request twice that it may have
//! sent once: hyper hands a request back only if its connection ended before the request was begun,
//! and only such a one is put on another connection.

use std::{
    error::Error as StdError,
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Request, Response, StatusCode, Uri, Version,
    header::{HOST, TRANSFER_ENCODING},
    uri::Scheme,
};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{
        Client, Error as ClientError,
        connect::{HttpConnector, capture_connection},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use pin_project_lite::pin_project;
use retrysafe::{Attempt, BoxError, Code, Ending, Problem};
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_util::task::TaskTracker;
use tower::Service;

use super::forward;
use crate::config::{ConfigError, UpstreamConfig};

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The service behind the proxy. A clone shares its connections.
#[derive(Clone)]
pub(crate) struct Upstream {
    client: Client<Connector, SentBody>,
    uri: Uri,
    /// HTTP/2 may be spoken: the client's `Host` becomes the `:authority`.
    may_be_h2: bool,
    silence: Duration,
    tunnels: TaskTracker,
}

impl Upstream {
    /// A client of the service. Nothing is connected to yet.
    ///
    /// # Errors
    ///
    /// If the system's certificates can't be used.
    pub(crate) fn new(config: &UpstreamConfig, tunnels: TaskTracker) -> Result<Self, ConfigError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(Duration::from_secs(60)));
        let tls = HttpsConnectorBuilder::new()
            .try_with_platform_verifier()
            .map_err(|error| {
                ConfigError::new(format!("the system's certificates can't be used: {error}"))
            })?
            .https_or_http()
            .enable_all_versions()
            .wrap_connector(tcp);
        let connector =
            Connector { tls, upstream: config.uri.clone(), within: config.connect_timeout };
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .pool_idle_timeout(config.idle)
            .http2_only(config.h2c && config.uri.scheme() == Some(&Scheme::HTTP))
            .build(connector);
        Ok(Self {
            client,
            may_be_h2: config.h2c || config.uri.scheme() == Some(&Scheme::HTTPS),
            uri: config.uri.clone(),
            silence: Duration::from_secs(600),
            tunnels,
        })
    }

    /// The same service, given up after so long a silence.
    pub(crate) fn silent_for_at_most(&self, silence: Duration) -> Self {
        Self { silence, ..self.clone() }
    }

    /// Where a request goes. Over HTTP/2 the `Host` that came is the authority; over HTTP/1.1 it is
    /// the `Host` header, and one pool serves all of them.
    fn target(&self, parts: &http::request::Parts) -> Result<Uri, http::Error> {
        let mut target = self.uri.clone().into_parts();
        target.path_and_query = parts.uri.path_and_query().cloned();
        if self.may_be_h2
            && let Some(host) = parts.headers.get(HOST)
            && let Ok(authority) = host.as_bytes().try_into()
        {
            target.authority = Some(authority);
        }
        Ok(Uri::from_parts(target)?)
    }

    /// Sends a request and answers with the service's response, headers as they are passed on.
    ///
    /// # Errors
    ///
    /// [`UpstreamError`] says whether the service may have acted.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the request's connection (HTTP/1.1) or stream; the service may have
    /// acted.
    pub(crate) async fn send<B>(
        &self,
        request: Request<B>,
    ) -> Result<Response<UpstreamBody>, UpstreamError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (mut parts, body) = request.into_parts();
        let ours = parts.extensions.remove::<OnUpgrade>();
        let guarded = parts.extensions.get::<Attempt>().is_some();
        let upgrade = forward::request(&mut parts, self.may_be_h2);
        let arrived = parts.version;
        parts.uri = self
            .target(&parts)
            .map_err(|error| UpstreamError::new(UpstreamErrorKind::Unreachable, error))?;
        parts.version = Version::HTTP_11;
        parts.extensions = http::Extensions::new();
        // Unless it is told to, hyper sends none of a GET's body if it does not know its length.
        if parts.method.is_safe() && !body.is_end_stream() && body.size_hint().exact().is_none() {
            parts.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }

        let progress = Arc::new(Progress::default());
        let body = SentBody {
            body: body.map_err(Into::into).boxed_unsync(),
            progress: Arc::clone(&progress),
        };
        let mut request = Request::from_parts(parts, body);
        // Set when the request is given a connection, before anything of it is sent.
        let connection = capture_connection(&mut request);
        let provably_unsent = || connection.connection_metadata().is_none();

        let mut answer = std::pin::pin!(self.client.request(request));
        let response = loop {
            let before = progress.frames.load(Ordering::Relaxed);
            match timeout(self.silence, &mut answer).await {
                Ok(answer) => break answer,
                // An upload that goes on is no silence.
                Err(_) if progress.frames.load(Ordering::Relaxed) != before => {}
                Err(_) if provably_unsent() => {
                    return Err(UpstreamError::new(UpstreamErrorKind::Unreachable, TimedOut));
                }
                Err(_) => return Err(UpstreamError::new(UpstreamErrorKind::TimedOut, TimedOut)),
            }
        };
        let mut response = response.map_err(|error| {
            let kind = if error.is_connect() || provably_unsent() || was_handed_back(&error) {
                UpstreamErrorKind::Unreachable
            } else if progress.broke.load(Ordering::Relaxed) {
                UpstreamErrorKind::RequestBroke
            } else {
                UpstreamErrorKind::BrokeOff
            };
            UpstreamError::new(kind, error)
        })?;

        let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if upgraded {
            let theirs = response.extensions_mut().remove::<OnUpgrade>();
            match (upgrade, ours, theirs) {
                (Some(_), Some(ours), Some(theirs)) => {
                    self.tunnels.spawn(tunnel(ours, theirs));
                }
                _ => {
                    return Err(UpstreamError::new(UpstreamErrorKind::BrokeOff, UnaskedUpgrade));
                }
            }
        }
        let (mut parts, body) = response.into_parts();
        forward::response(&mut parts, arrived, upgraded, guarded);
        let body = UpstreamBody { body, silence: self.silence, deadline: None };
        Ok(Response::from_parts(parts, body))
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("uri", &self.uri).finish_non_exhaustive()
    }
}

/// hyper hands a request back if its connection ended before it was begun, and says *canceled*: no
/// other error of a request that was sent is called that.
fn was_handed_back(error: &ClientError) -> bool {
    error
        .source()
        .and_then(|source| source.downcast_ref::<hyper::Error>())
        .is_some_and(hyper::Error::is_canceled)
}

/// How a request to the service failed.
#[derive(Debug)]
pub(crate) struct UpstreamError {
    kind: UpstreamErrorKind,
    source: BoxError,
}

/// What is known of a request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UpstreamErrorKind {
    /// There was no connection to send it on: provably nothing was done.
    Unreachable,
    /// It broke off after the request may have been sent: the work may go on.
    BrokeOff,
    /// Nothing came for too long after the request may have been sent: the work may go on.
    TimedOut,
    /// The client's own body broke off on the way.
    RequestBroke,
}

impl UpstreamError {
    fn new(kind: UpstreamErrorKind, source: impl Into<BoxError>) -> Self {
        Self { kind, source: source.into() }
    }

    /// How an attempt ends that failed this way (PROTOCOL 5).
    pub(crate) fn ending(&self) -> Ending {
        match self.kind {
            UpstreamErrorKind::Unreachable => Ending::NeverStarted,
            UpstreamErrorKind::BrokeOff | UpstreamErrorKind::TimedOut => Ending::BrokeOff,
            UpstreamErrorKind::RequestBroke => Ending::Failed,
        }
    }

    /// What the client is told.
    pub(crate) fn problem(&self) -> Problem {
        match self.kind {
            UpstreamErrorKind::Unreachable => Problem::new(
                Code::UpstreamUnreachable,
                "The service could not be connected to. Nothing was done.",
            ),
            UpstreamErrorKind::BrokeOff => Problem::new(
                Code::UpstreamFailed,
                "The connection to the service ended before it answered. It may have acted.",
            ),
            UpstreamErrorKind::TimedOut => Problem::new(
                Code::UpstreamTimeout,
                "The service did not answer in time. It may have acted, or may still do so.",
            ),
            UpstreamErrorKind::RequestBroke => Problem::new(
                Code::IncompleteBody,
                "The request's body broke off while it was passed on.",
            ),
        }
    }
}

impl fmt::Display for UpstreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            UpstreamErrorKind::Unreachable => "the service could not be connected to",
            UpstreamErrorKind::BrokeOff => "the service broke off",
            UpstreamErrorKind::TimedOut => "the service did not answer in time",
            UpstreamErrorKind::RequestBroke => "the request's body broke off",
        })
    }
}

impl StdError for UpstreamError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.source)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("nothing came in time")]
struct TimedOut;

#[derive(Debug, thiserror::Error)]
#[error("the service switched protocols without being asked")]
struct UnaskedUpgrade;

/// Connects to the service whatever the request's authority says, within a time.
#[derive(Clone)]
struct Connector {
    tls: HttpsConnector<HttpConnector>,
    upstream: Uri,
    within: Duration,
}

type Connection = <HttpsConnector<HttpConnector> as Service<Uri>>::Response;

impl Service<Uri> for Connector {
    type Response = Connection;
    type Error = BoxError;
    type Future = BoxFuture<Result<Connection, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tls.poll_ready(context)
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (connect, within) = (self.tls.call(self.upstream.clone()), self.within);
        Box::pin(async move {
            timeout(within, connect)
                .await
                .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
        })
    }
}

/// What is known of a request's body on its way to the service.
#[derive(Default)]
struct Progress {
    frames: AtomicUsize,
    broke: AtomicBool,
}

/// A request's body that says how far it got.
struct SentBody {
    body: UnsyncBoxBody<Bytes, BoxError>,
    progress: Arc<Progress>,
}

impl Body for SentBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        match &frame {
            Some(Err(_)) => self.progress.broke.store(true, Ordering::Relaxed),
            _ => {
                self.progress.frames.fetch_add(1, Ordering::Relaxed);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

pin_project! {
    /// The service's response body. One that ends too early, or is silent for too long, is an
    /// error.
    pub(crate) struct UpstreamBody {
        #[pin]
        body: Incoming,
        silence: Duration,
        deadline: Option<Pin<Box<Sleep>>>,
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = UpstreamError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        let this = self.project();
        if let Poll::Ready(frame) = this.body.poll_frame(context) {
            *this.deadline = None;
            return Poll::Ready(frame.map(|frame| {
                frame.map_err(|error| UpstreamError::new(UpstreamErrorKind::BrokeOff, error))
            }));
        }
        let deadline = this
            .deadline
            .get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + *this.silence)));
        ready!(deadline.as_mut().poll(context));
        Poll::Ready(Some(Err(UpstreamError::new(UpstreamErrorKind::TimedOut, TimedOut))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Passes bytes both ways until both ends are done.
async fn tunnel(ours: OnUpgrade, theirs: OnUpgrade) {
    match tokio::try_join!(ours, theirs) {
        Ok((ours, theirs)) => {
            let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
            if let Err(error) = tokio::io::copy_bidirectional(&mut ours, &mut theirs).await {
                tracing::debug!(%error, "a tunnel broke off");
            }
        }
        Err(error) => tracing::debug!(%error, "a connection was not upgraded"),
    }
}
