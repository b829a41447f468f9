//! ACTIX: the time of the middleware in process, against the same Actix service without it.

use std::{hint::black_box, time::Duration};

use actix_http::Request;
use actix_web::{
    App, Error, HttpResponse,
    body::{MessageBody, to_bytes},
    dev::{Service, ServiceResponse},
    http::header,
    test::{TestRequest, init_service},
    web::{self, ServiceConfig},
};
use retrysafe_actix::{Idempotency, MemoryStore, Scope};
use tokio::{
    runtime::{Builder, Runtime},
    task::LocalSet,
};

use crate::{
    Outcome,
    in_process::{BATCH, Key, processor_time},
    measure::{Effort, in_turn},
    orders::{self, HEADERS, ORDER, Order},
    report::{Number, Row},
};

const BARE: usize = 0;
const KEYLESS: usize = 1;
const FIRST: usize = 2;
const REPLAY: usize = 3;
/// Only the making and dropping of a request, which every variant has in it.
const NOTHING: usize = 4;

const NAMES: [&str; 5] = ["bare", "keyless", "first", "replay", "nothing"];

pub(crate) fn measure(effort: Effort) -> Outcome<Vec<Row>> {
    let services = services()?;
    let rounds = in_turn::<5>(effort.rounds(300), |variant| {
        Ok(services.drive(variant)?.as_secs_f64() * 1e6 / BATCH as f64)
    })?;
    let ratio =
        |this: usize| rounds.median(|it| (it[this] - it[NOTHING]) / (it[BARE] - it[NOTHING]));
    let bare = rounds.median(|it| it[BARE] - it[NOTHING]);
    let (first, replay) = (Number::ratio(ratio(FIRST)), Number::ratio(ratio(REPLAY)));
    Ok(vec![
        Row::at_most("ACTIX", "first: time against the bare service", first, 1.8),
        Row::at_most("ACTIX", "replay: time against the bare service", replay, 1.0),
        Row::shown("ACTIX", "no key: time against the bare service", Number::ratio(ratio(KEYLESS))),
        Row::shown("ACTIX", "time of the bare service", Number::of(bare, 2, "µs")),
    ])
}

/// Answers many requests of a variant by its name, for whoever counts.
pub(crate) fn drive_many(variant: &str, requests: usize) -> Outcome<()> {
    let variant = NAMES.iter().position(|name| *name == variant).ok_or("no such variant")?;
    let services = services()?;
    (0..requests.div_ceil(BATCH)).try_for_each(|_| services.drive(variant).map(drop))
}

/// The same service bare and with the middleware, on one thread.
struct Services<S, O> {
    runtime: Runtime,
    local: LocalSet,
    bare: S,
    ours: O,
    /// Of an operation that is finished.
    finished: String,
}

fn services() -> Outcome<Services<impl Orders, impl Orders>> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    let store = MemoryStore::builder().capacity(10_000_000).build()?;
    let idempotency = Idempotency::builder(store, Scope::shared()).build()?;
    let (bare, ours) = local.block_on(&runtime, async {
        let guarded = App::new().configure(routes).wrap(idempotency);
        (init_service(App::new().configure(routes)).await, init_service(guarded).await)
    });
    let services = Services { runtime, local, bare, ours, finished: orders::fresh_key() };
    services.drive(REPLAY)?;
    Ok(services)
}

impl<S: Orders, O: Orders> Services<S, O> {
    /// Answers a batch of requests one after the other, and says how long that took.
    fn drive(&self, variant: usize) -> Outcome<Duration> {
        let key = |_| match variant {
            KEYLESS => None,
            REPLAY => Some(self.finished.clone()),
            _ => Some(orders::fresh_key()),
        };
        let keys: Vec<Key> = (0..BATCH).map(key).collect();
        match variant {
            BARE => self.local.block_on(&self.runtime, answer_all(&self.bare, keys)),
            NOTHING => make_all(&keys),
            _ => self.local.block_on(&self.runtime, answer_all(&self.ours, keys)),
        }
    }
}

/// A service of these orders.
trait Orders: Service<Request, Response = ServiceResponse<Self::Body>, Error = Error> {
    type Body: MessageBody;
}

impl<S, B: MessageBody> Orders for S
where
    S: Service<Request, Response = ServiceResponse<B>, Error = Error>,
{
    type Body = B;
}

fn routes(config: &mut ServiceConfig) {
    config.route("/orders", web::post().to(place));
}

async fn place(order: web::Json<Order>) -> HttpResponse {
    let (location, placed) = orders::placed(order.into_inner());
    HttpResponse::Created().insert_header((header::LOCATION, location)).json(placed)
}

fn request(key: Option<&str>) -> TestRequest {
    let mut request = TestRequest::post().uri("/orders").set_payload(ORDER);
    for header in HEADERS {
        request = request.insert_header(header);
    }
    request = request.insert_header((header::CONTENT_LENGTH, ORDER.len()));
    match key {
        Some(key) => request.insert_header(("idempotency-key", key)),
        None => request,
    }
}

/// Answers requests one after the other, and says how long this thread has worked on them.
async fn answer_all(service: &impl Orders, keys: Vec<Key>) -> Outcome<Duration> {
    let started = processor_time()?;
    for key in &keys {
        let response = service.call(request(key.as_deref()).to_request()).await;
        let response = response.map_err(|error| error.to_string())?;
        if response.status().as_u16() != 201 {
            return Err(format!("an order was answered {}", response.status()).into());
        }
        let body = to_bytes(response.into_body()).await;
        drop(body.map_err(|_| "a body broke off")?);
    }
    Ok(processor_time()? - started)
}

fn make_all(keys: &[Key]) -> Outcome<Duration> {
    let started = processor_time()?;
    for key in keys {
        drop(black_box(request(key.as_deref()).to_request()));
    }
    Ok(processor_time()? - started)
}
