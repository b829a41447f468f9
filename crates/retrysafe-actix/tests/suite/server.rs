//! A server with workers, and clients that come over real connections.

use std::{io, net::SocketAddr, sync::Arc};

use actix_web::{
    App, Error, HttpResponse, HttpServer,
    body::MessageBody,
    dev::{ServerHandle, ServiceRequest, ServiceResponse},
    middleware::{Next, from_fn},
    web,
};
use retrysafe_actix::{Idempotency, Store};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};

use crate::support::{KEY, Runs};

/// A handler that says when it has started, and goes on when it is told.
pub(crate) struct Payment {
    pub(crate) runs: Runs,
    started: mpsc::UnboundedSender<()>,
    pub(crate) go_on: Semaphore,
    requests_dropped: mpsc::UnboundedSender<()>,
}

async fn pay(payment: web::Data<Payment>) -> HttpResponse {
    let run = payment.runs.count();
    payment.started.send(()).unwrap();
    payment.go_on.acquire().await.unwrap().forget();
    HttpResponse::Created().body(format!("paid {run}"))
}

async fn upload(payment: web::Data<Payment>, body: web::Bytes) -> HttpResponse {
    HttpResponse::Created().body(format!("{} bytes, run {}", body.len(), payment.runs.count()))
}

/// Outside of the middleware: sees the request's future being dropped.
async fn watch<B: MessageBody>(
    payment: web::Data<Payment>,
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, Error> {
    struct Dropped(web::Data<Payment>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            let _ = self.0.requests_dropped.send(());
        }
    }
    let _dropped = Dropped(payment);
    next.call(request).await
}

pub(crate) struct Served<S> {
    pub(crate) address: SocketAddr,
    pub(crate) payment: Arc<Payment>,
    pub(crate) started: mpsc::UnboundedReceiver<()>,
    pub(crate) dropped: mpsc::UnboundedReceiver<()>,
    pub(crate) idempotency: Idempotency<S>,
    pub(crate) handle: ServerHandle,
    pub(crate) running: JoinHandle<io::Result<()>>,
}

impl<S: Store> Served<S> {
    pub(crate) fn start(workers: usize, idempotency: Idempotency<S>) -> Self {
        let (started_sender, started) = mpsc::unbounded_channel();
        let (dropped_sender, dropped) = mpsc::unbounded_channel();
        let payment = web::Data::new(Payment {
            runs: Runs::default(),
            started: started_sender,
            go_on: Semaphore::new(0),
            requests_dropped: dropped_sender,
        });
        let (data, guarded) = (payment.clone(), idempotency.clone());
        let server = HttpServer::new(move || {
            App::new()
                .app_data(data.clone())
                .app_data(web::PayloadConfig::new(8 * 1024 * 1024))
                .route("/pay", web::post().to(pay))
                .route("/upload", web::post().to(upload))
                .wrap(guarded.clone())
                .wrap(from_fn(watch))
        })
        .workers(workers)
        .disable_signals()
        // A client that hangs up is noticed at once, not when it is written to.
        .h1_allow_half_closed(false)
        .bind(("127.0.0.1", 0))
        .unwrap();
        let address = server.addrs()[0];
        let server = server.run();
        let handle = server.handle();
        let running = tokio::spawn(server);
        let payment = payment.into_inner();
        Self { address, payment, started, dropped, idempotency, handle, running }
    }

    pub(crate) async fn connect(&self) -> Client {
        Client::connect(self.address).await
    }
}

/// One connection.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    received: Vec<u8>,
}

/// What came over it.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Received {
    pub(crate) fn is_replay(&self) -> bool {
        self.head.contains("\r\nidempotent-replayed: true\r\n")
    }
}

/// The head of a POST with a key.
pub(crate) fn head(path: &str, length: usize) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: test\r\nIdempotency-Key: {KEY}\r\n\
         Content-Length: {length}\r\n\r\n"
    )
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.unwrap(), received: Vec::new() }
    }

    pub(crate) async fn send(&mut self, path: &str, body: &[u8]) {
        self.stream.write_all(head(path, body.len()).as_bytes()).await.unwrap();
        self.stream.write_all(body).await.unwrap();
    }

    /// One response. It says how long it is.
    pub(crate) async fn receive(&mut self) -> Received {
        let end = loop {
            let end = self.received.windows(4).position(|it| it == b"\r\n\r\n");
            match end {
                Some(end) => break end + 4,
                None => self.more().await,
            }
        };
        let head: Vec<u8> = self.received.drain(..end).collect();
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        let length = head.split_once("\r\ncontent-length: ").expect(&head).1;
        let length: usize = length.split_once("\r\n").unwrap().0.parse().unwrap();
        while self.received.len() < length {
            self.more().await;
        }
        let body = String::from_utf8(self.received.drain(..length).collect()).unwrap();
        let status = head["http/1.1 ".len()..][..3].parse().unwrap();
        Received { status, head, body }
    }

    pub(crate) async fn ask(&mut self, path: &str, body: &[u8]) -> Received {
        self.send(path, body).await;
        self.receive().await
    }

    async fn more(&mut self) {
        let read = self.stream.read_buf(&mut self.received).await.unwrap();
        assert_ne!(read, 0, "the connection ended: {}", String::from_utf8_lossy(&self.received));
    }
}
