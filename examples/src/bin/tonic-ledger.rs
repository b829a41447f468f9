//! A ledger over gRPC whose clients may retry: see `proto/ledger.proto`.
//!
//! ```text
//! ledger.v1.Ledger/Transfer   books a transfer (about 200 ms) and answers a fresh transfer_id
//! ledger.v1.Ledger/Count      how often the handler above has run
//! ledger.v1.Ledger/Watch      transfers as they are booked: a stream, which is not covered
//! ```

use std::{
    collections::HashMap,
    fmt::Display,
    net::SocketAddr,
    pin::Pin,
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use clap::Parser;
use futures_util::{Stream, StreamExt as _};
use retrysafe_tonic::{IdempotencyLayer, IdempotentRequest as _, ScopeFrom, UnaryMethods};
use tokio::{net::TcpListener, sync::broadcast, time};
use tokio_stream::wrappers::BroadcastStream;
use tonic::{
    Request, Response, Status,
    service::InterceptorLayer,
    transport::{Server, server::TcpIncoming},
};
use uuid::Uuid;

use ledger::{
    CountReply, CountRequest, TransferReply, TransferRequest, WatchRequest,
    ledger_server::{Ledger, LedgerServer},
};

/// What `build.rs` generates.
mod ledger {
    tonic::include_proto!("ledger.v1");
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ledger.v1.bin"));
}

/// A ledger over gRPC whose clients may retry.
#[derive(Parser)]
struct Arguments {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:50051")]
    listen: SocketAddr,

    /// Where records are kept: memory:, sqlite:PATH, redis://HOST, redis-cluster://HOST,HOST,
    /// postgres://HOST/DATABASE, mysql://HOST/DATABASE or nats://HOST,HOST.
    #[arg(long, default_value = "memory:")]
    store: String,
}

/// How long handlers whose clients have gone may go on after the server has stopped.
const DRAIN: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, line)) => {
            eprintln!("tonic-ledger: {line}");
            ExitCode::from(code)
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), (u8, String)> {
    let failed = |what: &str, error: &dyn Display| (1, format!("{what}: {error}"));

    let opened = match retrysafe_stores::open(&arguments.store).await {
        Ok(opened) => opened,
        Err(error) if error.is_config() => return Err((2, format!("--store: {error}"))),
        Err(error) => return Err(failed("the store can't be opened", &error)),
    };

    // What runs once. The descriptor set knows that `Watch` streams, and would refuse it.
    let methods = UnaryMethods::described(ledger::DESCRIPTORS, ["ledger.v1.Ledger/Transfer"])
        .and_then(|methods| methods.key_field("request_id"))
        .map_err(|error| (2, error.to_string()))?;
    // A key belongs to the user that sent it: nobody gets the answer to someone else's transfer.
    let scope = ScopeFrom::extension(|user: &User| user.id.clone());
    let idempotency = IdempotencyLayer::builder(opened.store, scope, methods)
        .namespace("ledger")
        .require_key()
        .build()
        .map_err(|error| (2, error.to_string()))?;

    let listen = arguments.listen;
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|error| failed(&format!("can't listen on {listen}"), &error))?;
    let address = listener.local_addr().map_err(|error| failed("no address", &error))?;
    let signal = stop_signal();
    println!("listening on http://{address}, keeping records in {}", opened.url);

    let (stop, stopped) = broadcast::channel(1);
    Server::builder()
        // What is added first is outside: the idempotency layer takes the scope from the user.
        .layer(InterceptorLayer::new(authenticate))
        .layer(idempotency.clone())
        .add_service(LedgerServer::new(Bank::new(stopped)))
        .serve_with_incoming_shutdown(TcpIncoming::from(listener), async {
            signal.await;
            drop(stop); // else a watcher would keep the server from stopping
        })
        .await
        .map_err(|error| failed("the server failed", &error))?;
    // A handler goes on when its client has hung up, so some may still be at work.
    let engine = idempotency.engine();
    if time::timeout(DRAIN, engine.drain()).await.is_err() {
        eprintln!("tonic-ledger: stopped with {} unfinished", engine.in_flight());
    }
    Ok(())
}

/// Whoever the request is from.
#[derive(Clone)]
struct User {
    id: String,
}

/// A stand-in for real authentication: it believes what the metadata says, so anybody can be anyone,
/// and nobody in particular is a guest. A real service verifies a token or a certificate here.
fn authenticate(mut request: Request<()>) -> Result<Request<()>, Status> {
    let id = request.metadata().get("x-user-id").map(|it| it.to_str().map(str::to_owned));
    let id = id.unwrap_or_else(|| Ok("guest".to_owned()));
    let id = id.map_err(|_| Status::unauthenticated("x-user-id can't be read"))?;
    request.extensions_mut().insert(User { id });
    Ok(request)
}

/// The ledger's own data. A real one has a database; this one forgets when it stops, which shows
/// that a replay needs none of it.
struct Bank {
    executions: AtomicU64,
    booked: broadcast::Sender<TransferReply>,
    backend: Backend,
    /// Says when the server stops, by closing.
    stopped: broadcast::Receiver<()>,
}

impl Bank {
    fn new(stopped: broadcast::Receiver<()>) -> Self {
        let (executions, backend) = (AtomicU64::new(0), Backend::default());
        Self { executions, booked: broadcast::channel(64).0, backend, stopped }
    }
}

#[tonic::async_trait]
impl Ledger for Bank {
    async fn transfer(
        &self,
        request: Request<TransferRequest>,
    ) -> Result<Response<TransferReply>, Status> {
        self.executions.fetch_add(1, Ordering::Relaxed);
        // If this process dies now, the next attempt of this transfer comes here again. It has the
        // same key for the booking, so the money moves once.
        let key = request.attempt()?.derive_key("book");
        let reply = TransferReply { transfer_id: self.backend.book(&key).await };
        let _ = self.booked.send(reply.clone()); // nobody may be watching
        Ok(Response::new(reply))
    }

    async fn count(&self, _: Request<CountRequest>) -> Result<Response<CountReply>, Status> {
        Ok(Response::new(CountReply { count: self.executions.load(Ordering::Relaxed) }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<TransferReply, Status>> + Send>>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let booked = BroadcastStream::new(self.booked.subscribe())
            .map(|it| it.map_err(|_| Status::data_loss("the watcher was too slow")));
        let mut stopped = self.stopped.resubscribe();
        let stop = async move { drop(stopped.recv().await) };
        Ok(Response::new(Box::pin(booked.take_until(stop))))
    }
}

/// A pretended bank behind the ledger. Like real ones it takes a while, and books once per key.
#[derive(Default)]
struct Backend(Arc<Mutex<HashMap<String, String>>>);

impl Backend {
    async fn book(&self, key: &str) -> String {
        time::sleep(Duration::from_millis(200)).await;
        let mut booked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || format!("tr_{}", Uuid::new_v4().simple());
        booked.entry(key.to_owned()).or_insert_with(fresh).clone()
    }
}

/// Ends with the first SIGINT, or the first SIGTERM from this call on.
fn stop_signal() -> impl Future<Output = ()> {
    #[cfg(unix)]
    let terminated = {
        use tokio::signal::unix::{SignalKind, signal};
        let signal = signal(SignalKind::terminate());
        async move {
            match signal {
                Ok(mut signal) => signal.recv().await,
                Err(_) => std::future::pending().await,
            }
        }
    };
    #[cfg(not(unix))]
    let terminated = std::future::pending::<Option<()>>();

    async move {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminated => {}
        }
    }
}
