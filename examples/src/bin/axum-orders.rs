//! An orders API whose clients may retry: the idempotency layer is inside the service.
//!
//! ```text
//! POST /orders         places an order, and charges a card on the way (about 200 ms)
//! GET  /orders/{id}    an order
//! GET  /orders/count   how often the handler above has run, and how often the card was charged
//! ```

use std::{
    collections::HashMap,
    fmt::Display,
    net::SocketAddr,
    num::NonZeroU64,
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path, Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use clap::Parser;
use retrysafe_axum::{CurrentAttempt, IdempotencyLayer, IdempotentRouter as _, ScopeFrom};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, time};
use uuid::Uuid;

/// An orders API whose clients may retry.
#[derive(Parser)]
struct Arguments {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:3000")]
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
            eprintln!("axum-orders: {line}");
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

    // A key belongs to the user that sent it: nobody gets the answer to someone else's order.
    let scope = ScopeFrom::extension(|user: &User| user.id.clone());
    let idempotency = IdempotencyLayer::builder(opened.store, scope)
        .namespace("orders")
        .require_key()
        .build()
        .map_err(|error| (2, error.to_string()))?;

    let app = Router::new()
        .route("/orders", post(place_order))
        .idempotent(idempotency.clone())
        .route("/orders/{id}", get(show_order))
        // Outside of the idempotency layer, which takes the scope from the user.
        .layer(middleware::from_fn(authenticate))
        .route("/orders/count", get(count))
        .with_state(Shop::default());

    let listen = arguments.listen;
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|error| failed(&format!("can't listen on {listen}"), &error))?;
    let address = listener.local_addr().map_err(|error| failed("no address", &error))?;
    let stop = stop_signal();
    println!("listening on http://{address}, keeping records in {}", opened.url);

    axum::serve(listener, app)
        .with_graceful_shutdown(stop)
        .await
        .map_err(|error| failed("the server failed", &error))?;
    // A handler goes on when its client has hung up, so some may still be at work.
    let engine = idempotency.engine();
    if time::timeout(DRAIN, engine.drain()).await.is_err() {
        eprintln!("axum-orders: stopped with {} unfinished", engine.in_flight());
    }
    Ok(())
}

/// Whoever the request is from.
#[derive(Clone)]
struct User {
    id: String,
}

/// A stand-in for real authentication: it believes what the header says, so anybody can be anyone.
/// A real service verifies a token or a session here.
async fn authenticate(mut request: Request, next: Next) -> Response {
    let id = request.headers().get("x-user-id").and_then(|value| value.to_str().ok());
    let Some(id) = id.filter(|id| !id.is_empty()) else {
        return (StatusCode::UNAUTHORIZED, "send X-User-ID").into_response();
    };
    let user = User { id: id.to_owned() };
    request.extensions_mut().insert(user);
    next.run(request).await
}

#[derive(Deserialize)]
struct NewOrder {
    item: String,
    /// In cents; there is no order without something to pay.
    amount: NonZeroU64,
}

#[derive(Clone, Serialize)]
struct Order {
    order_id: String,
    item: String,
    amount: NonZeroU64,
    charge_id: String,
}

async fn place_order(
    State(shop): State<Shop>,
    attempt: CurrentAttempt,
    Json(new): Json<NewOrder>,
) -> impl IntoResponse {
    shop.book().executions += 1;

    // If this process dies now, the next attempt of this order comes here again. It has the same
    // key for the charge, so the card is charged once.
    let charge_id = shop.processor.charge(&attempt.derive_key("charge"), new.amount).await;

    let order = Order {
        order_id: format!("ord_{}", Uuid::new_v4().simple()),
        item: new.item,
        amount: new.amount,
        charge_id,
    };
    shop.book().orders.insert(order.order_id.clone(), order.clone());
    let location = format!("/orders/{}", order.order_id);
    (StatusCode::CREATED, [(header::LOCATION, location)], Json(order))
}

async fn show_order(
    State(shop): State<Shop>,
    Path(id): Path<String>,
) -> Result<Json<Order>, StatusCode> {
    shop.book().orders.get(&id).cloned().map(Json).ok_or(StatusCode::NOT_FOUND)
}

#[derive(Serialize)]
struct Count {
    executions: u64,
    charges: usize,
}

async fn count(State(shop): State<Shop>) -> Json<Count> {
    let executions = shop.book().executions;
    Json(Count { executions, charges: shop.processor.charges() })
}

/// The shop's own data. A real one has a database; this one forgets when it stops, which shows that
/// a replay needs none of it.
#[derive(Clone, Default)]
struct Shop {
    book: Arc<Mutex<Book>>,
    processor: Processor,
}

#[derive(Default)]
struct Book {
    executions: u64,
    orders: HashMap<String, Order>,
}

impl Shop {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pretended card processor. Like real ones it takes a while, and charges once per key.
#[derive(Clone, Default)]
struct Processor(Arc<Mutex<HashMap<String, String>>>);

impl Processor {
    async fn charge(&self, key: &str, _amount: NonZeroU64) -> String {
        time::sleep(Duration::from_millis(200)).await;
        let fresh = || format!("ch_{}", Uuid::new_v4().simple());
        self.book().entry(key.to_owned()).or_insert_with(fresh).clone()
    }

    fn charges(&self) -> usize {
        self.book().len()
    }

    fn book(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
