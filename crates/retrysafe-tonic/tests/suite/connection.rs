//! Over a real HTTP/2 connection.

use std::{
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{
    Code, Status,
    body::Body,
    transport::{Channel, Server, server::TcpIncoming},
};
use tower::layer::layer_fn;

use crate::support::{ledger::ledger_client::LedgerClient, *};

/// A served ledger. It is gone when this drops.
pub(crate) struct Served {
    pub(crate) address: SocketAddr,
    /// How many calls were dropped before they were answered.
    pub(crate) cancelled: Count,
    server: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server.abort();
    }
}

pub(crate) async fn serve(server: Server, layer: &TestLayer, ledger: &TestLedger) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let cancelled = Count::default();
    let seen = cancelled.clone();
    let router = server
        .layer(layer_fn(move |inner| Watched { inner, cancelled: seen.clone() }))
        .layer(layer.clone())
        .add_service(ledger.server());
    let serving = async move {
        router.serve_with_incoming(TcpIncoming::from(listener)).await.unwrap();
    };
    Served { address, cancelled, server: tokio::spawn(serving) }
}

impl Served {
    async fn client(&self) -> LedgerClient<Channel> {
        let channel = Channel::from_shared(format!("http://{}", self.address)).unwrap();
        LedgerClient::new(channel.connect().await.unwrap())
    }
}

/// Sees calls being cancelled.
#[derive(Clone)]
struct Watched<I> {
    inner: I,
    cancelled: Count,
}

impl<I> tower::Service<http::Request<Body>> for Watched<I>
where
    I: tower::Service<http::Request<Body>, Future: Send + 'static>,
{
    type Response = I::Response;
    type Error = I::Error;
    type Future = Pin<Box<dyn Future<Output = Result<I::Response, I::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), I::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let unanswered = Unanswered(Some(self.cancelled.clone()));
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            unanswered.answered();
            answer
        })
    }
}

struct Unanswered(Option<Count>);

impl Unanswered {
    fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(cancelled) = &self.0 {
            cancelled.more();
        }
    }
}

/// A ledger whose handlers wait at a gate.
pub(crate) fn gated() -> (TestLedger, Gate) {
    let gate = Gate::closed();
    let held = gate.clone();
    let ledger = TestLedger::new(move |run, _| {
        let held = held.clone();
        async move {
            held.pass().await;
            transferred(run)
        }
    });
    (ledger, gate)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e1_a_client_that_cancels_changes_nothing() {
    let (_, layer) = default_layer();
    let (ledger, gate) = gated();
    let served = serve(Server::builder(), &layer, &ledger).await;
    let client = served.client().await;
    let mut first = client.clone();
    let call = tokio::spawn(async move { first.transfer(keyed("k", 1)).await });
    ledger.runs.reaches(1).await;
    call.abort(); // RST_STREAM
    served.cancelled.reaches(1).await;
    let status = client.clone().transfer(keyed("k", 1)).await.unwrap_err();
    assert_problem(&status, Code::Aborted, "IN_PROGRESS");
    gate.open();
    layer.engine().drain().await;
    assert_replay(&client.clone().transfer(keyed("k", 1)).await, "transfer 1");
    assert_eq!(ledger.runs.get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e1_a_deadline_of_the_client_ends_its_wait_only() {
    // `grpc-timeout`: Tonic's own time-out is outside of the layer.
    let (_, layer) = default_layer();
    let (ledger, gate) = gated();
    let served = serve(Server::builder(), &layer, &ledger).await;
    let mut client = served.client().await;
    // On a busy machine a deadline may pass before the call arrives.
    while ledger.runs.get() == 0 {
        let mut request = keyed("k", 1);
        request.set_timeout(Duration::from_millis(200));
        assert!(client.transfer(request).await.is_err());
    }
    gate.open();
    layer.engine().drain().await;
    assert_replay(&client.transfer(keyed("k", 1)).await, "transfer 1");
    assert_eq!(ledger.runs.get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e1_a_time_out_of_the_server_ends_the_clients_wait_only() {
    let (_, layer) = default_layer();
    let (ledger, gate) = gated();
    let server = Server::builder().timeout(Duration::from_millis(200));
    let served = serve(server, &layer, &ledger).await;
    let mut client = served.client().await;
    assert!(client.transfer(keyed("k", 1)).await.is_err());
    ledger.runs.reaches(1).await;
    gate.open();
    layer.engine().drain().await;
    assert_replay(&client.transfer(keyed("k", 1)).await, "transfer 1");
    assert_eq!(ledger.runs.get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g4_both_shapes_survive_a_replay_on_the_wire() {
    let (_, layer) = default_layer();
    let ledger = TestLedger::new(|run, request| async move {
        match request.get_ref().amount {
            1 => transferred(run),
            _ => Err(Status::not_found("no such account")),
        }
    });
    let served = serve(Server::builder(), &layer, &ledger).await;
    let mut client = served.client().await;
    assert_first(&client.transfer(keyed("one", 1)).await, "transfer 1");
    assert_replay(&client.transfer(keyed("one", 1)).await, "transfer 1");
    for replayed in [false, true] {
        let status = client.transfer(keyed("two", 2)).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::NotFound, "no such account"));
        assert_eq!(status.metadata().contains_key("idempotent-replayed"), replayed);
    }
    assert_eq!(ledger.runs.get(), 2);
    // And what the layer itself answers.
    let status = client.transfer(keyed("one", 2)).await.unwrap_err();
    assert_problem(&status, Code::FailedPrecondition, "KEY_REUSED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g1_a_stream_goes_out_as_it_is_made() {
    let (_, layer) = default_layer();
    let ledger = TestLedger::counting().watching(|_| {
        let one = ledger::TransferReply { transfer_id: "one".to_owned() };
        let open = futures_util::stream::pending();
        Box::pin(futures_util::StreamExt::chain(futures_util::stream::iter([Ok(one)]), open))
    });
    let served = serve(Server::builder(), &layer, &ledger).await;
    let mut client = served.client().await;
    let mut items = client.watch(ledger::WatchRequest {}).await.unwrap().into_inner();
    assert_eq!(items.message().await.unwrap().unwrap().transfer_id, "one");
}
