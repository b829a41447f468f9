//! What the layer adds to a gRPC method: Tonic's generated server, in process, on one thread.

use std::{
    hint::black_box,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderValue, Request, Uri};
use http_body_util::{BodyExt as _, Full};
use prost::Message as _;
use retrysafe_tonic::{IdempotencyLayer, IdempotencyService, MemoryStore, Scope, UnaryMethods};
use tokio::runtime::{Builder, Runtime};
use tonic::{Response, Status, body::Body, server::NamedService};
use tower::{Layer as _, Service};

use self::ledger::{
    CountReply, CountRequest, TransferReply, TransferRequest, WatchRequest,
    ledger_server::{Ledger, LedgerServer},
};
use crate::{
    Outcome,
    in_process::{BATCH, processor_time},
    measure::{Effort, in_turn},
    orders,
    report::{Number, Row},
};

#[expect(unreachable_pub, reason = "it is generated")]
mod ledger {
    include!("../../crates/retrysafe-tonic/tests/generated/ledger.v1.rs");
}

const BARE: usize = 0;
const FIRST: usize = 1;
const REPLAY: usize = 2;
/// Only the requests are made.
const NOTHING: usize = 3;
const VARIANTS: usize = 4;

const NAMES: [&str; VARIANTS] = ["bare", "first", "replay", "nothing"];

struct Bank;

#[tonic::async_trait]
impl Ledger for Bank {
    async fn transfer(
        &self,
        request: tonic::Request<TransferRequest>,
    ) -> Result<Response<TransferReply>, Status> {
        static TRANSFERS: AtomicU64 = AtomicU64::new(1);
        black_box(request.into_inner());
        let number = TRANSFERS.fetch_add(1, Ordering::Relaxed);
        Ok(Response::new(TransferReply { transfer_id: format!("tr_{number:032x}") }))
    }

    async fn count(&self, _: tonic::Request<CountRequest>) -> Result<Response<CountReply>, Status> {
        Err(Status::unimplemented(""))
    }

    type WatchStream = tokio_stream::Empty<Result<TransferReply, Status>>;

    async fn watch(
        &self,
        _: tonic::Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

struct Services {
    runtime: Runtime,
    bare: LedgerServer<Bank>,
    ours: IdempotencyService<LedgerServer<Bank>, MemoryStore>,
    message: Bytes,
    finished: String,
}

impl Services {
    fn start() -> Outcome<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let _entered = runtime.enter();
        let store = MemoryStore::builder().capacity(10_000_000).build()?;
        let methods = UnaryMethods::of::<LedgerServer<Bank>>(["Transfer"])?;
        let layer = IdempotencyLayer::builder(store, Scope::shared(), methods).build()?;
        let (bare, finished) = (LedgerServer::new(Bank), orders::fresh_key());
        let ours = layer.layer(LedgerServer::new(Bank));
        let mut services = Self { runtime, bare, ours, message: message(), finished };
        services.drive(REPLAY)?;
        Ok(services)
    }

    /// Answers a batch of requests one after the other, and says how long that took.
    fn drive(&mut self, variant: usize) -> Outcome<Duration> {
        let requests: Vec<_> = (0..BATCH)
            .map(|_| match variant {
                REPLAY => request(&self.message, &self.finished),
                _ => request(&self.message, &orders::fresh_key()),
            })
            .collect();
        let started = processor_time()?;
        match variant {
            BARE => self.runtime.block_on(answer_all(&mut self.bare, requests))?,
            FIRST | REPLAY => self.runtime.block_on(answer_all(&mut self.ours, requests))?,
            _ => drop(black_box(requests)),
        }
        Ok(processor_time()? - started)
    }
}

/// A transfer of about 80 bytes, with its prefix.
fn message() -> Bytes {
    let request = TransferRequest {
        request_id: String::new(),
        from_account: "acc_5d538a5fb8a64945a98ab478c6af85a9".to_owned(),
        to_account: "acc_cea7e60859c64c1589dc82f9f7aff250".to_owned(),
        amount: 12_999,
    };
    let mut message = BytesMut::new();
    message.put_u8(0);
    message.put_u32(request.encoded_len() as u32);
    message.put_slice(&request.encode_to_vec());
    message.freeze()
}

/// A call, as hyper would hand it to the service.
fn request(message: &Bytes, key: &str) -> Request<Body> {
    let mut request = Request::new(Body::new(Full::new(message.clone())));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = Uri::from_static("http://ledger.example/ledger.v1.Ledger/Transfer");
    *request.version_mut() = http::Version::HTTP_2;
    let headers = request.headers_mut();
    for (name, value) in [
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "bench"),
        ("grpc-accept-encoding", "identity,gzip"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if let Ok(key) = HeaderValue::from_str(key) {
        headers.insert("idempotency-key", key);
    }
    request
}

async fn answer_all<S>(service: &mut S, requests: Vec<Request<Body>>) -> Outcome<()>
where
    S: Service<Request<Body>, Response = http::Response<Body>, Error = std::convert::Infallible>
        + NamedService,
{
    for request in requests {
        let response = match service.call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let answer = response.into_body().collect().await?;
        let status = answer.trailers().and_then(|it| it.get("grpc-status"));
        if status.is_none_or(|it| it != "0") {
            return Err(format!("a transfer ended with {status:?}").into());
        }
    }
    Ok(())
}

/// Answers many requests of a variant by its name, for whoever counts.
pub(crate) fn drive_many(variant: &str, requests: usize) -> Outcome<()> {
    let variant = NAMES.iter().position(|name| *name == variant).ok_or("no such variant")?;
    let mut services = Services::start()?;
    (0..requests.div_ceil(BATCH)).try_for_each(|_| services.drive(variant).map(drop))
}

pub(crate) fn measure(effort: Effort) -> Outcome<Vec<Row>> {
    let mut services = Services::start()?;
    let rounds = in_turn::<VARIANTS>(effort.rounds(300), |variant| {
        Ok(services.drive(variant)?.as_secs_f64() * 1e6 / BATCH as f64)
    })?;
    let time = |variant: usize| rounds.median(|it| it[variant] - it[NOTHING]);
    let ratio = |this: usize| {
        let ratio = rounds.median(|it| (it[this] - it[NOTHING]) / (it[BARE] - it[NOTHING]));
        Number::ratio(ratio)
    };
    let micros = |value| Number::of(value, 2, "µs");
    Ok(vec![
        Row::at_most("TONIC", "first: time against the bare server", ratio(FIRST), 1.8),
        Row::at_most("TONIC", "replay: time against the bare server", ratio(REPLAY), 1.0),
        Row::shown("TONIC", "time of the bare server", micros(time(BARE))),
        Row::shown("TONIC", "first: added", micros(time(FIRST) - time(BARE))),
    ])
}
