//! Over a real connection, as clients come.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Extension, Router,
    extract::Request,
    http::StatusCode,
    middleware::{self, Next},
    response::Response,
    routing::post,
};
use retrysafe_axum::{Engine, IdempotencyLayer, IdempotentRouter, MemoryStore};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, oneshot},
    task::JoinHandle,
};

use crate::support::{KEY, Runs, layer};

/// A handler that says when it has started, and goes on when it is told.
struct Payment {
    runs: Runs,
    started: mpsc::UnboundedSender<()>,
    go_on: Semaphore,
    requests_dropped: mpsc::UnboundedSender<()>,
}

async fn pay(Extension(payment): Extension<Arc<Payment>>) -> (StatusCode, String) {
    let run = payment.runs.count();
    payment.started.send(()).unwrap();
    payment.go_on.acquire().await.unwrap().forget();
    (StatusCode::CREATED, format!("paid {run}"))
}

/// Outside of the layer: sees the request's future being dropped.
async fn watch(request: Request, next: Next) -> Response {
    struct Dropped(Arc<Payment>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            let _ = self.0.requests_dropped.send(());
        }
    }
    let payment = request.extensions().get::<Arc<Payment>>().unwrap().clone();
    let _dropped = Dropped(payment);
    next.run(request).await
}

struct Served {
    address: SocketAddr,
    payment: Arc<Payment>,
    started: mpsc::UnboundedReceiver<()>,
    dropped: mpsc::UnboundedReceiver<()>,
    engine: Engine<MemoryStore>,
    stop: oneshot::Sender<()>,
    server: JoinHandle<std::io::Result<()>>,
}

async fn serve() -> Served {
    let layer: IdempotencyLayer<MemoryStore> = layer();
    let engine = layer.engine().clone();
    let (started_sender, started) = mpsc::unbounded_channel();
    let (dropped_sender, dropped) = mpsc::unbounded_channel();
    let payment = Arc::new(Payment {
        runs: Runs::default(),
        started: started_sender,
        go_on: Semaphore::new(0),
        requests_dropped: dropped_sender,
    });
    let app: Router = Router::new()
        .route("/pay", post(pay))
        .idempotent(layer)
        .layer(middleware::from_fn(watch))
        .layer(Extension(payment.clone()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let serving = axum::serve(listener, app).with_graceful_shutdown(async {
        let _ = stopped.await;
    });
    let server = tokio::spawn(async { serving.await });
    Served { address, payment, started, dropped, engine, stop, server }
}

async fn send(address: SocketAddr) -> TcpStream {
    let mut connection = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "POST /pay HTTP/1.1\r\nHost: test\r\nConnection: close\r\nIdempotency-Key: {KEY}\r\n\
         Content-Length: 3\r\n\r\n100"
    );
    connection.write_all(request.as_bytes()).await.unwrap();
    connection
}

async fn receive(mut connection: TcpStream) -> String {
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn first_and_replay_over_a_connection() {
    let served = serve().await;
    served.payment.go_on.add_permits(1);
    let first = receive(send(served.address).await).await;
    assert!(first.starts_with("HTTP/1.1 201 ") && first.ends_with("paid 1"), "{first}");
    assert!(!first.contains("idempotent-replayed"));
    let retry = receive(send(served.address).await).await;
    assert!(retry.starts_with("HTTP/1.1 201 ") && retry.ends_with("paid 1"), "{retry}");
    assert!(retry.contains("idempotent-replayed: true"), "{retry}");
    assert!(retry.contains("content-length: 6"), "{retry}");
}

#[tokio::test]
async fn disconnect_frees() {
    let mut served = serve().await;
    let connection = send(served.address).await;
    served.started.recv().await.unwrap();
    drop(connection);
    // The server has noticed, and the request's future is gone.
    served.dropped.recv().await.unwrap();

    let early = receive(send(served.address).await).await;
    assert!(early.starts_with("HTTP/1.1 409 "), "{early}");
    assert!(early.contains("retry-after: 1") && early.contains("in_progress"), "{early}");

    served.payment.go_on.add_permits(1);
    served.engine.drain().await;
    let retry = receive(send(served.address).await).await;
    assert!(retry.starts_with("HTTP/1.1 201 ") && retry.ends_with("paid 1"), "{retry}");
    assert!(retry.contains("idempotent-replayed: true"), "{retry}");
    assert_eq!(served.payment.runs.so_far(), 1);
}

#[tokio::test]
async fn e1_a_drain_waits_for_what_outlives_the_server() {
    let mut served = serve().await;
    let connection = send(served.address).await;
    served.started.recv().await.unwrap();
    drop(connection);
    served.dropped.recv().await.unwrap();
    served.stop.send(()).unwrap();
    served.server.await.unwrap().unwrap();
    assert_eq!(served.engine.in_flight(), 1);
    served.payment.go_on.add_permits(1);
    served.engine.drain().await;
    assert_eq!(served.engine.in_flight(), 0);
}
