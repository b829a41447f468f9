//! What the tests share: a store, a guarded service, requests for it, and what came back.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt,
    future::Future,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use metrics_util::debugging::{DebugValue, Snapshotter};
use retrysafe::{
    BoxError, Entry, IdempotencyKey, IdempotencyLayer, IdempotencyLayerBuilder, Inspect as _,
    MemoryStore, OperationId, RequestBody, ResponseBody, Scope, State, Store,
};
use retrysafe_testkit::{Faulty, TokioClock};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinHandle,
};
use tower::{Layer as _, Service, ServiceExt as _, service_fn, util::BoxCloneSyncService};

pub(crate) type Body = UnsyncBoxBody<Bytes, Failure>;
pub(crate) type Given = Request<RequestBody<Body>>;
pub(crate) type TestStore = Faulty<MemoryStore>;
pub(crate) type TestLayer = IdempotencyLayer<TestStore>;

/// Why a body, a handler or a service failed.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

pub(crate) fn failure(error: impl Into<BoxError>) -> Failure {
    Failure(error.into().to_string())
}

/// A memory store on tokio's clock, which tests pause, behind faults that they inject.
pub(crate) fn store() -> TestStore {
    Faulty::new(MemoryStore::builder().clock(Arc::new(TokioClock::new())).build().unwrap())
}

/// A layer for one trusted client.
pub(crate) fn layer(store: &TestStore) -> IdempotencyLayerBuilder<TestStore> {
    IdempotencyLayer::builder(store.clone(), Scope::shared())
}

/// A layer with every default, and its store.
pub(crate) fn default_layer() -> (TestStore, TestLayer) {
    let store = store();
    let layer = layer(&store).build().unwrap();
    (store, layer)
}

/// The id that a layer for one trusted client gives a key.
pub(crate) fn id(key: &str) -> OperationId {
    OperationId::new("default", &Scope::shared(), &IdempotencyKey::new(key).unwrap())
}

pub(crate) async fn entry(store: &TestStore, key: &str) -> Option<Entry> {
    store.get(&id(key)).await.unwrap()
}

/// The state of a key's record, as one word.
pub(crate) async fn state(store: &TestStore, key: &str) -> &'static str {
    match entry(store, key).await.map(|entry| entry.state) {
        None => "absent",
        Some(State::InFlight { .. }) => "in flight",
        Some(State::Lapsed) => "lapsed",
        Some(State::Finished { .. }) => "finished",
        Some(State::Released) => "released",
    }
}

/// A guarded service whose executions are counted.
#[derive(Clone)]
pub(crate) struct Guarded {
    service: BoxCloneSyncService<Request<Body>, Response<ResponseBody<Body>>, Failure>,
    runs: Count,
}

impl Guarded {
    /// A handler behind a layer. It is told how many executions there were, this one included.
    pub(crate) fn new<S, F, R>(layer: &IdempotencyLayer<S>, handler: F) -> Self
    where
        S: Store,
        F: Fn(usize, Given) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::failing(layer, move |run, request| {
            let answer = handler(run, request);
            async { Ok(answer.await) }
        })
    }

    /// The same, of a handler that may fail without an answer.
    pub(crate) fn failing<S, F, R>(layer: &IdempotencyLayer<S>, handler: F) -> Self
    where
        S: Store,
        F: Fn(usize, Given) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Result<Response<Body>, Failure>> + Send + 'static,
    {
        let runs = Count::default();
        let counted = runs.clone();
        let inner = service_fn(move |request| handler(counted.more(), request));
        Self { runs, ..Self::around(layer.layer(inner)) }
    }

    /// A service that was guarded already.
    pub(crate) fn around<I>(service: I) -> Self
    where
        I: Service<Request<Body>, Response = Response<ResponseBody<Body>>>
            + Clone
            + Send
            + Sync
            + 'static,
        I::Error: Into<BoxError>,
        I::Future: Send,
    {
        let service = BoxCloneSyncService::new(service.map_err(failure));
        Self { service, runs: Count::default() }
    }

    /// Answers every request with 201 and the number of the execution.
    pub(crate) fn orders<S: Store>(layer: &IdempotencyLayer<S>) -> Self {
        Self::new(layer, |run, _| async move { created(run) })
    }

    /// Answers with 201 once the gate is open.
    pub(crate) fn gated<S: Store>(layer: &IdempotencyLayer<S>, gate: &Gate) -> Self {
        let gate = gate.clone();
        Self::new(layer, move |run, _| {
            let gate = gate.clone();
            async move {
                gate.pass().await;
                created(run)
            }
        })
    }

    pub(crate) async fn try_call(
        &self,
        request: Request<Body>,
    ) -> Result<Response<ResponseBody<Body>>, Failure> {
        self.service.clone().oneshot(request).await
    }

    pub(crate) async fn call(&self, request: Request<Body>) -> Response<ResponseBody<Body>> {
        self.try_call(request).await.unwrap()
    }

    /// Sends a request and reads the whole answer.
    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        Answer::read(self.call(request).await).await
    }

    /// The same, on a task of its own.
    pub(crate) fn spawn(&self, request: Request<Body>) -> JoinHandle<Answer> {
        let guarded = self.clone();
        tokio::spawn(async move { guarded.send(request).await })
    }

    /// How often the handler has started.
    pub(crate) fn runs(&self) -> usize {
        self.runs.now()
    }

    /// Waits until the handler has started so often.
    pub(crate) async fn ran(&self, times: usize) {
        self.runs.reached(times).await;
    }
}

/// A count that can be waited for.
#[derive(Clone, Default)]
pub(crate) struct Count(Arc<watch::Sender<usize>>);

impl Count {
    /// One more; says how many there are.
    pub(crate) fn more(&self) -> usize {
        let mut count = 0;
        self.0.send_modify(|it| {
            *it += 1;
            count = *it;
        });
        count
    }

    pub(crate) fn now(&self) -> usize {
        *self.0.borrow()
    }

    pub(crate) async fn reached(&self, times: usize) {
        self.0.subscribe().wait_for(|it| *it >= times).await.unwrap();
    }
}

/// Stops handlers until it is opened.
#[derive(Clone)]
pub(crate) struct Gate(Arc<Semaphore>);

impl Gate {
    pub(crate) fn closed() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    pub(crate) async fn pass(&self) {
        self.0.acquire().await.unwrap().forget();
    }

    /// Lets one through.
    pub(crate) fn admit(&self) {
        self.0.add_permits(1);
    }

    pub(crate) fn open(&self) {
        self.0.add_permits(Semaphore::MAX_PERMITS / 2);
    }
}

pub(crate) fn body(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

pub(crate) fn empty() -> Body {
    body(Bytes::new())
}

/// A body in these pieces, which are asked for one by one.
pub(crate) fn pieces<P>(pieces: P) -> Body
where
    P: IntoIterator<Item = Result<Frame<Bytes>, Failure>, IntoIter: Send + 'static>,
{
    StreamBody::new(futures_util::stream::iter(pieces)).boxed_unsync()
}

pub(crate) fn data(bytes: impl Into<Bytes>) -> Result<Frame<Bytes>, Failure> {
    Ok(Frame::data(bytes.into()))
}

pub(crate) fn broken() -> Result<Frame<Bytes>, Failure> {
    Err(failure("connection reset"))
}

/// The other end of a body that a test sends piece by piece. Dropped, the body ends.
pub(crate) struct Pipe(mpsc::UnboundedSender<Result<Frame<Bytes>, Failure>>);

pub(crate) fn pipe() -> (Pipe, Body) {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let frames = futures_util::stream::poll_fn(move |cx: &mut Context<'_>| -> Poll<_> {
        receiver.poll_recv(cx)
    });
    (Pipe(sender), StreamBody::new(frames).boxed_unsync())
}

impl Pipe {
    pub(crate) fn data(&self, bytes: impl Into<Bytes>) {
        let _ = self.0.send(data(bytes));
    }

    pub(crate) fn break_off(self) {
        let _ = self.0.send(broken());
    }
}

pub(crate) fn order(key: &str, content: impl Into<Bytes>) -> Request<Body> {
    with_body(key, body(content))
}

pub(crate) fn with_body(key: &str, body: Body) -> Request<Body> {
    Request::post("/orders").header("idempotency-key", key).body(body).unwrap()
}

pub(crate) fn keyless() -> Request<Body> {
    Request::post("/orders").body(body("{}")).unwrap()
}

pub(crate) fn created(number: usize) -> Response<Body> {
    Response::builder()
        .status(201)
        .header("location", format!("/orders/{number}"))
        .body(body(format!("order {number}")))
        .unwrap()
}

pub(crate) fn status(status: u16) -> Response<Body> {
    Response::builder().status(status).body(body("answer")).unwrap()
}

/// What a client gets.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
    pub(crate) broke_off: bool,
}

impl Answer {
    pub(crate) async fn read(response: Response<ResponseBody<Body>>) -> Self {
        let (head, mut body) = response.into_parts();
        let (mut whole, mut trailers, mut broke_off) = (Vec::new(), None, false);
        while let Some(frame) = body.frame().await {
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) => whole.extend_from_slice(&data),
                Ok(Err(frame)) => trailers = frame.into_trailers().ok(),
                Err(_) => {
                    broke_off = true;
                    break;
                }
            }
        }
        let (status, headers) = (head.status.as_u16(), head.headers);
        Self { status, headers, body: whole.into(), trailers, broke_off }
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn is_replay(&self) -> bool {
        self.headers.get("idempotent-replayed").is_some_and(|value| value == "true")
    }

    /// A member of a problem.
    pub(crate) fn member(&self, name: &str) -> serde_json::Value {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{self:?}");
        assert_eq!(self.headers["cache-control"], "no-store");
        serde_json::from_slice::<serde_json::Value>(&self.body).unwrap()[name].clone()
    }

    #[track_caller]
    pub(crate) fn assert_problem(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.member("code"), code);
    }

    #[track_caller]
    pub(crate) fn assert_first(&self, status: u16, text: &str) {
        assert_eq!((self.status, self.text()), (status, text), "{self:?}");
        assert!(!self.headers.contains_key("idempotent-replayed"), "{self:?}");
    }

    #[track_caller]
    pub(crate) fn assert_replay(&self, status: u16, text: &str) {
        assert_eq!((self.status, self.text()), (status, text), "{self:?}");
        assert!(self.is_replay(), "{self:?}");
    }
}

/// The whole body of a request that a handler was given.
pub(crate) async fn read(request: Given) -> Result<Bytes, Failure> {
    Ok(request.into_body().collect().await.map_err(failure)?.to_bytes())
}

/// Lets everything that can go on do so: for what must *not* happen.
pub(crate) async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// How often each outcome was counted.
#[track_caller]
pub(crate) fn assert_outcomes(snapshots: &Snapshotter, expected: &[(&str, u64)]) {
    let mut counts = BTreeMap::new();
    for (key, _, _, value) in snapshots.snapshot().into_vec() {
        if let ("retrysafe_requests_total", DebugValue::Counter(count)) = (key.key().name(), value)
        {
            let outcome = key.key().labels().find(|it| it.key() == "outcome").unwrap();
            *counts.entry(outcome.value().to_owned()).or_default() += count;
        }
    }
    let counts: Vec<_> = counts.iter().map(|(name, count)| (name.as_str(), *count)).collect();
    assert_eq!(counts, expected);
}

/// What a counter without labels has come to.
pub(crate) fn counted(snapshots: &Snapshotter, name: &str) -> u64 {
    let all = snapshots.snapshot().into_vec().into_iter();
    all.filter_map(|(key, _, _, value)| match value {
        DebugValue::Counter(count) if key.key().name() == name => Some(count),
        _ => None,
    })
    .sum()
}
