//! `retrysafe proxy`: clients → the layer of the route → the service.

mod forward;
mod server;
mod upstream;

use std::{
    convert::Infallible,
    future::Future,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{ALLOW, HOST, TRANSFER_ENCODING},
};
use http_body::Body;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use retrysafe::{
    BoxError, Engine, IdempotencyLayer, IdempotencyService, ProblemStyle, ResponseBody, SharedStore,
};
use tokio::time::{Instant, sleep_until};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::{Layer as _, Service};

pub(crate) use self::server::{Listener, Running};
use self::upstream::{Upstream, UpstreamBody};
use crate::{
    Failure, admin,
    config::{AdminAddress, ConfigError, ProxyConfig, Route, RouteSettings},
    say, store,
};

/// Where operators connect to if nobody says.
const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);

/// Runs the proxy until `stop`, then drains. `ready` is called once it listens, with where and with the
/// store's URL as it may be shown.
///
/// # Errors
///
/// If the store can't be opened or an address can't be listened on.
pub(crate) async fn run(
    config: ProxyConfig,
    stop: CancellationToken,
    ready: impl FnOnce(SocketAddr, &str),
) -> Result<(), Failure> {
    let store = store::open(&config.store_url).await?;
    let tunnels = TaskTracker::new();
    let upstream = Upstream::new(&config.upstream, tunnels.clone())?;
    let engine = Engine::builder(store.store)
        .max_in_flight(config.max_in_flight)
        .sweep_every(config.sweep)
        .build()
        .map_err(ConfigError::from)?;
    let proxy = Proxy::new(&config, &upstream, &engine)?;
    let listener = Listener::bind(config.listen).await.map_err(Failure::Listen)?;
    let running = Running::default();
    let operators = CancellationToken::new();
    if let Some(listener) = bind_admin(config.admin).await? {
        say(&format!("admin on http://{}", listener.address()));
        let admin = admin::Admin::new(store.inspect.clone(), stop.clone())?;
        let answer = move |request| admin.clone().answer(request);
        tokio::spawn(listener.serve(answer, Running::default(), operators.clone()));
    }
    let address = listener.address();
    say(&format!("listening on http://{address}"));
    ready(address, &store.url);

    let answer = move |request| proxy.clone().answer(request);
    let finished = async {
        listener.serve(answer, running.clone(), stop.clone()).await;
        tunnels.close();
        tunnels.wait().await;
        // E1: executions whose clients have gone.
        engine.drain().await;
    };
    let too_late = async {
        stop.cancelled().await;
        sleep_until(Instant::now() + config.drain).await;
    };
    tokio::select! {
        biased;
        () = finished => tracing::info!("stopped; nothing was left running"),
        () = too_late => tracing::warn!(
            requests = running.count(),
            executions = engine.in_flight(),
            tunnels = tunnels.len(),
            "stopped with this still running after {}",
            humantime::format_duration(config.drain),
        ),
    }
    operators.cancel();
    Ok(())
}

/// Where operators connect to. An address that nobody asked for may be taken: by another proxy on
/// this machine, say.
async fn bind_admin(said: Option<AdminAddress>) -> Result<Option<Listener>, Failure> {
    match said {
        Some(AdminAddress(None)) => Ok(None),
        Some(AdminAddress(Some(address))) => Ok(Some(Listener::bind(address).await?)),
        None => match Listener::bind(DEFAULT_ADMIN).await {
            Ok(listener) => Ok(Some(listener)),
            Err(error) => {
                tracing::warn!("no admin address: {error}; give --admin, or `--admin off`");
                Ok(None)
            }
        },
    }
}

/// What answers requests: an endpoint for each route.
#[derive(Clone)]
struct Proxy(Arc<Endpoints>);

struct Endpoints {
    routes: Vec<(Route, Endpoint)>,
    default: Endpoint,
}

/// The service as one route sees it.
#[derive(Clone)]
enum Endpoint {
    Protected(IdempotencyService<Behind, SharedStore>),
    Open(Behind),
}

type ProxyBody = Either<ResponseBody<ServiceBody>, ServiceBody>;

impl Proxy {
    fn new(
        config: &ProxyConfig,
        upstream: &Upstream,
        engine: &Engine<SharedStore>,
    ) -> Result<Self, ConfigError> {
        let routes = config
            .routes
            .iter()
            .map(|route| Ok((route.clone(), protect(&route.settings, upstream, engine)?)))
            .collect::<Result<_, ConfigError>>()?;
        let default = protect(&config.default, upstream, engine)?;
        Ok(Self(Arc::new(Endpoints { routes, default })))
    }

    async fn answer(self, request: Request<Incoming>) -> Response<ProxyBody> {
        if request.method() == Method::CONNECT {
            return refuse_connect().map(Either::Right);
        }
        if let Some(status) = refused_by_its_head(&request) {
            let mut response = Response::new(whole(Bytes::new()));
            *response.status_mut() = status;
            return response.map(Either::Right);
        }
        let (method, path) = (request.method(), request.uri().path());
        let endpoint = self
            .0
            .routes
            .iter()
            .find(|(route, _)| route.matches(method, path))
            .map_or(&self.0.default, |(_, endpoint)| endpoint);
        // The service behind is always ready, and so is the layer around it.
        let answered = match endpoint.clone() {
            Endpoint::Protected(mut service) => {
                service.call(request).await.map(|response| response.map(Either::Left))
            }
            Endpoint::Open(mut service) => {
                service.call(request).await.map(|response| response.map(Either::Right))
            }
        };
        answered.unwrap_or_else(|never| match never {})
    }
}

/// The layer of a route around the service.
fn protect(
    settings: &RouteSettings,
    upstream: &Upstream,
    engine: &Engine<SharedStore>,
) -> Result<Endpoint, ConfigError> {
    let behind = Behind {
        upstream: upstream.silent_for_at_most(settings.upstream_timeout),
        problems: settings.layer.problems.clone(),
    };
    if !settings.protect {
        return Ok(Endpoint::Open(behind));
    }
    let layer: IdempotencyLayer<_> = IdempotencyLayer::sharing(engine, settings.scope.clone())
        .settings(|layer| *layer = settings.layer.clone())
        .forwarding()
        .build()?;
    Ok(Endpoint::Protected(layer.layer(behind)))
}

/// The service, which always answers: if it fails, with a problem that says how (and with the
/// `Ending` of the attempt, for the layer).
#[derive(Clone)]
struct Behind {
    upstream: Upstream,
    problems: ProblemStyle,
}

type ServiceBody = Either<UpstreamBody, Full<Bytes>>;

impl<B> Service<Request<B>> for Behind
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<ServiceBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Self { upstream, problems } = self.clone();
        Box::pin(async move {
            let error = match upstream.send(request).await {
                Ok(response) => return Ok(response.map(Either::Left)),
                Err(error) => error,
            };
            tracing::warn!(error = %crate::chain(&error), "the service failed");
            let mut response = problems.render(&error.problem()).map(whole);
            response.extensions_mut().insert(error.ending());
            Ok(response)
        })
    }
}

/// A proxy that opens tunnels for whoever asks would be an open relay.
fn refuse_connect() -> Response<ServiceBody> {
    let mut response = Response::new(whole(Bytes::new()));
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
    response
}

/// What the service would read otherwise than it is read here.
fn refused_by_its_head<B>(request: &Request<B>) -> Option<StatusCode> {
    // RFC 9112, section 3.2: of two hosts one would be read here, and the other by the service.
    let hosts = request.headers().get_all(HOST).iter().count();
    if hosts > 1 || (hosts == 0 && request.version() == Version::HTTP_11) {
        return Some(StatusCode::BAD_REQUEST);
    }
    // Section 6.1: the body is passed on without the coding that it has beside `chunked`.
    let mut codings = request.headers().get_all(TRANSFER_ENCODING).iter();
    codings
        .any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
        .then_some(StatusCode::NOT_IMPLEMENTED)
}

fn whole(bytes: Bytes) -> ServiceBody {
    Either::Right(Full::new(bytes))
}
