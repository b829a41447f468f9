//! An orders API whose clients may retry, with actix-web: the idempotency middleware is inside the
//! service.
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
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use actix_web::{
    App, Error, HttpMessage as _, HttpRequest, HttpResponse, HttpServer, Responder,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    error::{ErrorNotFound, ErrorUnauthorized, ErrorUnprocessableEntity, JsonPayloadError},
    http::header,
    middleware::{Next, from_fn},
    rt, web,
};
use clap::Parser;
use retrysafe_actix::{CurrentAttempt, Idempotency, ScopeFrom};
use serde::{Deserialize, Serialize};
use tokio::time;
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

#[actix_web::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, line)) => {
            eprintln!("actix-orders: {line}");
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
    let idempotency = Idempotency::builder(opened.store, scope)
        .namespace("orders")
        .require_key()
        .build()
        .map_err(|error| (2, error.to_string()))?;

    let (shop, guarded) = (web::Data::new(Shop::default()), idempotency.clone());
    let app = move || {
        // Once for each worker: they share the shop and the middleware's engine.
        let place = web::resource("").route(web::post().to(place_order)).wrap(guarded.clone());
        let orders = web::scope("/orders")
            .service(place)
            .route("/{id}", web::get().to(show_order))
            // Outside of the idempotency middleware, which takes the scope from the user.
            .wrap(from_fn(authenticate));
        App::new()
            .app_data(shop.clone())
            .app_data(web::JsonConfig::default().error_handler(refuse))
            .route("/orders/count", web::get().to(count))
            .service(orders)
    };

    let listen = arguments.listen;
    let server = HttpServer::new(app)
        .disable_signals()
        .bind(listen)
        .map_err(|error| failed(&format!("can't listen on {listen}"), &error))?;
    let stop = stop_signal();
    for address in server.addrs() {
        println!("listening on http://{address}, keeping records in {}", opened.url);
    }
    let server = server.run();
    let handle = server.handle();
    let running = rt::spawn(server);

    stop.await;
    handle.pause().await;
    // A handler goes on when its client has hung up, so some may still be at work. A worker would
    // end without them.
    let engine = idempotency.engine();
    if time::timeout(DRAIN, engine.drain()).await.is_err() {
        eprintln!("actix-orders: stopped with {} unfinished", engine.in_flight());
    }
    handle.stop(true).await;
    let ended = running.await.map_err(|error| failed("the server failed", &error))?;
    ended.map_err(|error| failed("the server failed", &error))
}

/// Whoever the request is from.
#[derive(Clone)]
struct User {
    id: String,
}

/// A stand-in for real authentication: it believes what the header says, so anybody can be anyone.
/// A real service verifies a token or a session here.
async fn authenticate<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, Error> {
    let id = request.headers().get("x-user-id").and_then(|value| value.to_str().ok());
    let Some(id) = id.filter(|id| !id.is_empty()) else {
        return Err(ErrorUnauthorized("send X-User-ID"));
    };
    let user = User { id: id.to_owned() };
    request.extensions_mut().insert(user);
    next.call(request).await
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
    shop: web::Data<Shop>,
    attempt: CurrentAttempt,
    new: web::Json<NewOrder>,
) -> impl Responder {
    shop.book().executions += 1;

    // If this process dies now, the next attempt of this order comes here again. It has the same
    // key for the charge, so the card is charged once.
    let charge_id = shop.processor.charge(&attempt.derive_key("charge"), new.amount).await;

    let NewOrder { item, amount } = new.into_inner();
    let order_id = format!("ord_{}", Uuid::new_v4().simple());
    let order = Order { order_id, item, amount, charge_id };
    shop.book().orders.insert(order.order_id.clone(), order.clone());
    let location = format!("/orders/{}", order.order_id);
    HttpResponse::Created().insert_header((header::LOCATION, location)).json(order)
}

/// JSON that is no order is a 422, as it is with Axum. actix-web says 400 of both.
fn refuse(error: JsonPayloadError, _: &HttpRequest) -> Error {
    match &error {
        JsonPayloadError::Deserialize(why) if why.is_data() => {
            ErrorUnprocessableEntity(error.to_string())
        }
        _ => error.into(),
    }
}

async fn show_order(
    shop: web::Data<Shop>,
    id: web::Path<String>,
) -> Result<web::Json<Order>, Error> {
    let order = shop.book().orders.get(&*id).cloned();
    order.map(web::Json).ok_or_else(|| ErrorNotFound("no such order"))
}

#[derive(Serialize)]
struct Count {
    executions: u64,
    charges: usize,
}

async fn count(shop: web::Data<Shop>) -> web::Json<Count> {
    let executions = shop.book().executions;
    web::Json(Count { executions, charges: shop.processor.charges() })
}

/// The shop's own data. A real one has a database; this one forgets when it stops, which shows that
/// a replay needs none of it.
#[derive(Default)]
struct Shop {
    book: Mutex<Book>,
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
#[derive(Default)]
struct Processor(Mutex<HashMap<String, String>>);

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
