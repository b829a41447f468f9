//! What the tests share: a guarded ledger, calls to it, and what came back.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use retrysafe_testkit::{Faulty, TokioClock};
use retrysafe_tonic::{
    IdempotencyKey, IdempotencyLayer, IdempotencyLayerBuilder, IdempotentRequest as _,
    Inspect as _, MemoryStore, OperationId, Scope, State, UnaryMethods,
};
use tokio::sync::{Semaphore, watch};
use tonic::{Request, Response, Status, body::Body};
use tonic_types::StatusExt as _;
use tower::{Layer as _, ServiceExt as _, service_fn, util::BoxCloneSyncService};

use self::ledger::{
    CountReply, CountRequest, TransferReply, TransferRequest, WatchRequest,
    ledger_client::LedgerClient,
    ledger_server::{Ledger, LedgerServer},
};

#[expect(unreachable_pub, reason = "it is generated")]
pub(crate) mod ledger {
    include!("../generated/ledger.v1.rs");
    pub(crate) const DESCRIPTORS: &[u8] = include_bytes!("../generated/ledger.v1.bin");
}

pub(crate) const TRANSFER: &str = "ledger.v1.Ledger/Transfer";
pub(crate) const WATCH: &str = "ledger.v1.Ledger/Watch";

pub(crate) type TestStore = Faulty<MemoryStore>;
pub(crate) type TestLayer = IdempotencyLayer<TestStore>;
pub(crate) type Reply = Result<Response<TransferReply>, Status>;
pub(crate) type Watched = Pin<Box<dyn Stream<Item = Result<TransferReply, Status>> + Send>>;
pub(crate) type Service =
    BoxCloneSyncService<http::Request<Body>, http::Response<Body>, Infallible>;

/// A memory store on tokio's clock, which tests pause, behind faults that they inject.
pub(crate) fn store() -> TestStore {
    Faulty::new(MemoryStore::builder().clock(Arc::new(TokioClock::new())).build().unwrap())
}

/// A layer for one trusted client that covers `Transfer`.
pub(crate) fn layer(store: &TestStore) -> IdempotencyLayerBuilder<TestStore, TestLayer> {
    covering(store, UnaryMethods::named([TRANSFER]).unwrap())
}

pub(crate) fn covering(
    store: &TestStore,
    methods: UnaryMethods,
) -> IdempotencyLayerBuilder<TestStore, TestLayer> {
    IdempotencyLayer::builder(store.clone(), Scope::shared(), methods)
}

/// A layer with every default, and its store.
pub(crate) fn default_layer() -> (TestStore, TestLayer) {
    let store = store();
    let layer = layer(&store).build().unwrap();
    (store, layer)
}

/// The state of a key's record, as one word.
pub(crate) async fn state(store: &TestStore, key: &str) -> &'static str {
    let id = OperationId::new("default", &Scope::shared(), &IdempotencyKey::new(key).unwrap());
    match store.get(&id).await.unwrap().map(|entry| entry.state) {
        None => "absent",
        Some(State::InFlight { .. }) => "in flight",
        Some(State::Lapsed) => "lapsed",
        Some(State::Finished { .. }) => "finished",
        Some(State::Released) => "released",
    }
}

type Handler = dyn Fn(usize, Request<TransferRequest>) -> Pin<Box<dyn Future<Output = Reply> + Send>>
    + Send
    + Sync;

/// A ledger that does what a test says, and counts.
#[derive(Clone)]
pub(crate) struct TestLedger {
    pub(crate) runs: Count,
    handler: Arc<Handler>,
    watched: Arc<dyn Fn(usize) -> Watched + Send + Sync>,
}

impl TestLedger {
    /// `handler` is told how many executions there were, this one included.
    pub(crate) fn new<F, R>(handler: F) -> Self
    where
        F: Fn(usize, Request<TransferRequest>) -> R + Send + Sync + 'static,
        R: Future<Output = Reply> + Send + 'static,
    {
        Self {
            runs: Count::default(),
            handler: Arc::new(move |run, request| Box::pin(handler(run, request))),
            watched: Arc::new(|_| Box::pin(stream::empty())),
        }
    }

    /// One that answers `transfer 1`, `transfer 2`, ...
    pub(crate) fn counting() -> Self {
        Self::new(|run, _| async move { transferred(run) })
    }

    pub(crate) fn watching(
        mut self,
        watched: impl Fn(usize) -> Watched + Send + Sync + 'static,
    ) -> Self {
        self.watched = Arc::new(watched);
        self
    }

    pub(crate) fn server(&self) -> LedgerServer<Self> {
        LedgerServer::new(self.clone())
    }

    /// The client of this ledger behind a layer, in process.
    pub(crate) fn behind(&self, layer: &TestLayer) -> Client {
        Client::of(BoxCloneSyncService::new(layer.layer(self.server())))
    }
}

#[tonic::async_trait]
impl Ledger for TestLedger {
    async fn transfer(&self, request: Request<TransferRequest>) -> Reply {
        (self.handler)(self.runs.more(), request).await
    }

    async fn count(&self, _: Request<CountRequest>) -> Result<Response<CountReply>, Status> {
        Ok(Response::new(CountReply { count: self.runs.get() as u64 }))
    }

    type WatchStream = Watched;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Watched>, Status> {
        Ok(Response::new((self.watched)(self.runs.more())))
    }
}

/// A client that is cloned for each call.
#[derive(Clone)]
pub(crate) struct Client(pub(crate) LedgerClient<Service>);

impl Client {
    pub(crate) fn of(service: Service) -> Self {
        Self(LedgerClient::new(service))
    }

    pub(crate) async fn transfer(&self, key: &str) -> Reply {
        self.send(keyed(key, 1)).await
    }

    pub(crate) async fn send(&self, request: Request<TransferRequest>) -> Reply {
        self.0.clone().transfer(request).await
    }

    pub(crate) async fn refused(&self, request: Request<TransferRequest>) -> Status {
        self.send(request).await.unwrap_err()
    }
}

pub(crate) fn transferred(run: usize) -> Reply {
    Ok(Response::new(TransferReply { transfer_id: format!("transfer {run}") }))
}

pub(crate) fn bare(amount: u64) -> Request<TransferRequest> {
    Request::new(TransferRequest { amount, ..Default::default() })
}

pub(crate) fn keyed(key: &str, amount: u64) -> Request<TransferRequest> {
    bare(amount).with_key(&IdempotencyKey::new(key).unwrap())
}

/// With a key that may be a bad one.
pub(crate) fn with_metadata(lines: &[(&'static str, &[u8])]) -> Request<TransferRequest> {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap());
    }
    let mut request = bare(1);
    *request.metadata_mut() = tonic::metadata::MetadataMap::from_headers(headers);
    request
}

#[track_caller]
pub(crate) fn assert_first(reply: &Reply, id: &str) {
    let reply = reply.as_ref().unwrap();
    assert_eq!(reply.get_ref().transfer_id, id);
    assert!(!reply.metadata().contains_key("idempotent-replayed"), "{reply:?}");
}

#[track_caller]
pub(crate) fn assert_replay(reply: &Reply, id: &str) {
    let reply = reply.as_ref().unwrap();
    assert_eq!(reply.get_ref().transfer_id, id);
    assert_eq!(reply.metadata().get("idempotent-replayed").unwrap(), "true");
}

#[track_caller]
pub(crate) fn assert_problem(status: &Status, code: tonic::Code, reason: &str) {
    assert_eq!(status.code(), code, "{status:?}");
    assert_eq!(reason_of(status), reason, "{status:?}");
    assert!(!status.metadata().contains_key("idempotent-replayed"), "{status:?}");
}

pub(crate) fn reason_of(status: &Status) -> String {
    let details = status.get_error_details();
    let info = details.error_info().map(|it| (it.reason.clone(), it.domain.clone()));
    let (reason, domain) = info.unwrap_or_default();
    assert_eq!(domain, "retrysafe", "{status:?}");
    reason
}

pub(crate) fn pushback(status: &Status) -> Option<&str> {
    status.metadata().get("grpc-retry-pushback-ms").map(|it| it.to_str().unwrap())
}

/// What a raw request came back as.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
    pub(crate) ends_with_head: bool,
}

pub(crate) async fn call(service: &Service, request: http::Request<Body>) -> Answer {
    let response = service.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let (head, body) = response.into_parts();
    let ends_with_head = http_body::Body::is_end_stream(&body);
    let collected = body.collect().await.unwrap();
    let trailers = collected.trailers().cloned();
    Answer { headers: head.headers, body: collected.to_bytes(), trailers, ends_with_head }
}

/// A service of one method that answers with these frames, and counts.
pub(crate) fn raw(
    layer: &TestLayer,
    answer: impl Fn(usize) -> http::Response<Body> + Clone + Send + Sync + 'static,
) -> (Service, Count) {
    let runs = Count::default();
    let counted = runs.clone();
    let inner = service_fn(move |request: http::Request<Body>| {
        let answer = answer.clone();
        let counted = counted.clone();
        async move {
            let _ = request.into_body().collect().await;
            Ok::<_, Infallible>(answer(counted.more()))
        }
    });
    (BoxCloneSyncService::new(layer.layer(inner)), runs)
}

pub(crate) fn raw_request(key: &str, body: Body) -> http::Request<Body> {
    http::Request::post(format!("/{TRANSFER}"))
        .header("content-type", "application/grpc")
        .header("idempotency-key", key)
        .body(body)
        .unwrap()
}

/// A body of these pieces, which come one by one.
pub(crate) fn pieces(pieces: impl IntoIterator<Item = Frame<Bytes>>) -> Body {
    let frames: Vec<_> = pieces.into_iter().map(Ok::<_, Status>).collect();
    Body::new(StreamBody::new(stream::iter(frames)))
}

/// The same, and then it stays open.
pub(crate) fn open(frames: impl IntoIterator<Item = Frame<Bytes>>) -> Body {
    let frames: Vec<_> = frames.into_iter().map(Ok::<_, Status>).collect();
    Body::new(StreamBody::new(stream::iter(frames).chain(stream::pending())))
}

/// A message with its prefix.
pub(crate) fn frame(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0][..], &length, message].concat().into()
}

pub(crate) fn data(bytes: impl Into<Bytes>) -> Frame<Bytes> {
    Frame::data(bytes.into())
}

pub(crate) fn trailers(lines: &[(&'static str, &'static str)]) -> Frame<Bytes> {
    let lines = lines.iter();
    Frame::trailers(
        lines
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect(),
    )
}

/// How often something happened; it can be waited for.
#[derive(Clone)]
pub(crate) struct Count(Arc<(AtomicUsize, watch::Sender<usize>)>);

impl Default for Count {
    fn default() -> Self {
        Self(Arc::new((AtomicUsize::new(0), watch::channel(0).0)))
    }
}

impl Count {
    pub(crate) fn more(&self) -> usize {
        let now = self.0.0.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.1.send_modify(|it| *it = now.max(*it));
        now
    }

    pub(crate) fn get(&self) -> usize {
        self.0.0.load(Ordering::SeqCst)
    }

    pub(crate) async fn reaches(&self, count: usize) {
        self.0.1.subscribe().wait_for(|it| *it >= count).await.unwrap();
    }
}

/// Handlers wait at it until it opens.
#[derive(Clone)]
pub(crate) struct Gate(Arc<Semaphore>);

impl Gate {
    pub(crate) fn closed() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    pub(crate) async fn pass(&self) {
        let _ = self.0.acquire().await;
    }

    /// Opens it for good.
    pub(crate) fn open(&self) {
        self.0.close();
    }
}
