//! An orders API without a layer: one line in a handler makes it idempotent, and a batch of orders
//! answers for each of them.
//!
//! ```text
//! POST /orders         places an order, and charges a card on the way (about 200 ms)
//! POST /orders/batch   places many, each with a key of its own
//! GET  /orders/count   how often orders were placed, and how often the card was charged
//! ```

use std::{
    collections::HashMap,
    fmt::Display,
    net::SocketAddr,
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{FromRequestParts, State},
    http::{StatusCode, header, request::Parts},
    response::IntoResponse,
    routing::{get, post},
};
use clap::Parser;
use retrysafe_axum::{Key, MultiStatus, Once, OnceContext, Scope, SharedStore};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, time};
use uuid::Uuid;

/// An orders API whose clients may retry, without a layer.
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
            eprintln!("axum-handler: {line}");
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
    let once = Once::builder(opened.store)
        .namespace("orders")
        .build()
        .map_err(|error| (2, error.to_string()))?;

    let app = Router::new()
        .route("/orders", post(place_order))
        .route("/orders/batch", post(place_orders))
        .route("/orders/count", get(count))
        .with_state(AppState { once: once.clone(), shop: Shop::default() });

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
    if time::timeout(DRAIN, once.engine().drain()).await.is_err() {
        eprintln!("axum-handler: stopped with {} unfinished", once.engine().in_flight());
    }
    Ok(())
}

#[derive(Clone)]
struct AppState {
    once: Once<SharedStore>,
    shop: Shop,
}

/// Places an order. `respond` is the one line: the first answer is kept, and a retry gets it.
async fn place_order(
    State(app): State<AppState>,
    user: User,
    Key(key): Key,
    Json(new): Json<NewOrder>,
) -> impl IntoResponse {
    let placed = {
        let (shop, new) = (app.shop, new.clone());
        |context| async move {
            let order = match shop.place(new, context).await {
                Ok(order) => order,
                Err(refusal) => {
                    return (StatusCode::UNPROCESSABLE_ENTITY, Json(refusal)).into_response();
                }
            };
            let location = format!("/orders/{}", order.order_id);
            (StatusCode::CREATED, [(header::LOCATION, location)], Json(order)).into_response()
        }
    };
    app.once.respond("place_order", &user.scope(), key.as_str(), &new, placed).await
}

/// Places many. The keys are in the body, and the answer has a status for each.
async fn place_orders(
    State(app): State<AppState>,
    user: User,
    Json(new): Json<Vec<KeyedOrder>>,
) -> MultiStatus<Order, Refusal> {
    let shop = app.shop;
    let placed = app.once.run_each(
        "place_order_of_batch",
        &user.scope(),
        new,
        |keyed| keyed.key.clone(),
        move |keyed, context| {
            let shop = shop.clone();
            async move { shop.place(keyed.order, context).await }
        },
    );
    // A refusal is the answer to its item, for every retry.
    MultiStatus::new(placed.keep_if(|_| true).await)
}

async fn count(State(app): State<AppState>) -> Json<Count> {
    Json(Count { placed: *app.shop.placed(), charges: app.shop.processor.charges() })
}

/// Whoever the request is from.
struct User {
    id: String,
}

impl User {
    /// A key belongs to the user that sent it: nobody gets the answer to someone else's order.
    fn scope(&self) -> Scope {
        Scope::from_bytes(&self.id)
    }
}

/// A stand-in for real authentication: it believes what the header says, so anybody can be anyone.
/// A real service verifies a token or a session here.
impl<S: Send + Sync> FromRequestParts<S> for User {
    type Rejection = (StatusCode, &'static str);

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let id = parts.headers.get("x-user-id").and_then(|value| value.to_str().ok());
        match id.filter(|id| !id.is_empty()) {
            Some(id) => Ok(Self { id: id.to_owned() }),
            None => Err((StatusCode::UNAUTHORIZED, "send X-User-ID")),
        }
    }
}

#[derive(Clone, Serialize, Deserialize)]
struct NewOrder {
    item: String,
    /// In cents.
    amount: u64,
}

#[derive(Serialize, Deserialize)]
struct KeyedOrder {
    key: String,
    #[serde(flatten)]
    order: NewOrder,
}

#[derive(Serialize, Deserialize)]
struct Order {
    order_id: String,
    item: String,
    amount: u64,
    charge_id: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Refusal {
    NothingToPay,
}

#[derive(Serialize)]
struct Count {
    placed: u64,
    charges: usize,
}

/// The shop's own side of an order.
#[derive(Clone, Default)]
struct Shop {
    placed: Arc<Mutex<u64>>,
    processor: Processor,
}

impl Shop {
    async fn place(&self, new: NewOrder, context: OnceContext) -> Result<Order, Refusal> {
        if new.amount == 0 {
            return Err(Refusal::NothingToPay);
        }
        *self.placed() += 1;
        // If this process dies now, the next attempt of this order comes here again. It has the same
        // key for the charge, so the card is charged once.
        let charge_id = self.processor.charge(&context.derive_key("charge"), new.amount).await;
        let order_id = format!("ord_{}", Uuid::new_v4().simple());
        Ok(Order { order_id, item: new.item, amount: new.amount, charge_id })
    }

    fn placed(&self) -> MutexGuard<'_, u64> {
        self.placed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pretended card processor. Like real ones it takes a while, and charges once per key.
#[derive(Clone, Default)]
struct Processor(Arc<Mutex<HashMap<String, String>>>);

impl Processor {
    async fn charge(&self, key: &str, _amount: u64) -> String {
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
