//! The service behind the proxy. Of every request it knows the `Idempotency-Key` and who sends it, and
//! what it makes of the two is the key that it hands to its card processor.

use std::{
    collections::HashMap,
    ffi::OsString,
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use retrysafe::{Entropy as _, KeyRules, OperationId, Scope, SystemEntropy};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::journal::Journal;

type Answer = Response<Full<Bytes>>;

const LARGEST_ORDER: usize = 64 * 1024;

/// The service's book of orders and its card processor.
pub(super) struct Orders {
    book: Mutex<Book>,
    processor: CardProcessor,
}

struct Book {
    journal: Journal,
    executions: u64,
    orders: HashMap<String, Value>,
}

impl Orders {
    /// Reads what earlier runs left next to the store.
    pub(super) fn open(beside: &Path, payment: Duration) -> io::Result<Self> {
        let (journal, lines) = Journal::open(&named(beside, ".orders.jsonl"))?;
        let mut book = Book { journal, executions: 0, orders: HashMap::new() };
        for line in lines {
            book.learn(line);
        }
        let processor = CardProcessor::open(&named(beside, ".charges.jsonl"), payment)?;
        Ok(Self { book: Mutex::new(book), processor })
    }

    async fn place(&self, headers: &HeaderMap, order: &Value) -> Result<Answer, Fault> {
        let item = order["item"].as_str().ok_or(Fault::BadOrder)?;
        let amount = order["amount"].as_u64().ok_or(Fault::BadOrder)?;
        self.book().write(json!({ "event": "execution" }))?;

        // Each attempt of an order names the same charge, so the processor charges once.
        let key = charge_key(headers).unwrap_or_else(|| fresh("keyless"));
        let charge = self.processor.charge(&key, amount).await?;

        let order_id = fresh("ord");
        let order =
            json!({ "order_id": order_id, "item": item, "amount": amount, "charge_id": charge });
        self.book().write(json!({ "event": "order", "order": order }))?;
        let mut answer = json(StatusCode::CREATED, &order);
        let location = HeaderValue::try_from(format!("/orders/{order_id}"));
        answer.headers_mut().extend(location.ok().map(|it| (header::LOCATION, it)));
        Ok(answer)
    }

    fn count(&self) -> Answer {
        let charges = self.processor.charges();
        let book = self.book();
        json(
            StatusCode::OK,
            &json!({
                "executions": book.executions,
                "orders": book.orders.len(),
                "charges": charges,
            }),
        )
    }

    fn order(&self, id: &str) -> Answer {
        match self.book().orders.get(id) {
            Some(order) => json(StatusCode::OK, order),
            None => json(StatusCode::NOT_FOUND, &json!({ "error": "no such order" })),
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn write(&mut self, line: Value) -> io::Result<()> {
        self.journal.append(&line)?;
        self.learn(line);
        Ok(())
    }

    fn learn(&mut self, line: Value) {
        match line["event"].as_str() {
            Some("execution") => self.executions += 1,
            Some("order") => {
                let id = line["order"]["order_id"].as_str().unwrap_or_default().to_owned();
                self.orders.insert(id, line["order"].clone());
            }
            _ => {}
        }
    }
}

/// A pretended card processor that honours keys, as the real ones do: a charge that is asked for
/// again under its key is not made again.
struct CardProcessor {
    ledger: Mutex<Ledger>,
    takes: Duration,
}

struct Ledger {
    journal: Journal,
    charges: HashMap<String, String>,
}

impl CardProcessor {
    fn open(path: &Path, takes: Duration) -> io::Result<Self> {
        let (journal, lines) = Journal::open(path)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let charges = lines.iter().map(|it| (text(&it["key"]), text(&it["charge_id"]))).collect();
        Ok(Self { ledger: Mutex::new(Ledger { journal, charges }), takes })
    }

    /// Half of the time passes before the charge is made, half after: a kill can hit either.
    async fn charge(&self, key: &str, amount: u64) -> io::Result<String> {
        sleep(self.takes / 2).await;
        let charge_id = self.charge_now(key, amount)?;
        sleep(self.takes / 2).await;
        Ok(charge_id)
    }

    fn charge_now(&self, key: &str, amount: u64) -> io::Result<String> {
        let mut ledger = self.ledger();
        if let Some(made) = ledger.charges.get(key) {
            return Ok(made.clone());
        }
        let charge_id = fresh("ch");
        ledger.journal.append(&json!({ "key": key, "charge_id": charge_id, "amount": amount }))?;
        ledger.charges.insert(key.to_owned(), charge_id.clone());
        Ok(charge_id)
    }

    fn charges(&self) -> usize {
        self.ledger().charges.len()
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why an order is not placed.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("an order looks like {{\"item\": \"book\", \"amount\": 1250}}")]
    BadOrder,
    #[error("the order is too large")]
    TooLarge,
    #[error("the files of the demo can't be written: {0}")]
    Files(#[from] io::Error),
}

impl Fault {
    fn answer(&self) -> Answer {
        let status = match self {
            Self::BadOrder => StatusCode::BAD_REQUEST,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Files(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        json(status, &json!({ "error": self.to_string() }))
    }
}

/// Answers one request of the orders API.
pub(super) async fn answer<B>(orders: Arc<Orders>, request: Request<B>) -> Answer
where
    B: Body<Data: Send> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (parts, body) = request.into_parts();
    match (&parts.method, parts.uri.path()) {
        (&Method::POST, "/orders") => {
            let placed = match read(body).await {
                Ok(order) => orders.place(&parts.headers, &order).await,
                Err(fault) => Err(fault),
            };
            placed.unwrap_or_else(|fault| fault.answer())
        }
        (&Method::GET, "/orders/count") => orders.count(),
        (&Method::GET, path) if path.starts_with("/orders/") => {
            orders.order(path.trim_start_matches("/orders/"))
        }
        _ => json(
            StatusCode::NOT_FOUND,
            &json!({ "error": "POST /orders, GET /orders/ID or GET /orders/count" }),
        ),
    }
}

/// What an order's charge is called. A key is its caller's own, and so is the charge: another's order
/// under the same key is another order (`cross_tenant_replay`).
fn charge_key(headers: &HeaderMap) -> Option<String> {
    let key = KeyRules::default().read(headers, || Duration::ZERO).ok()??;
    let caller = match headers.get(header::AUTHORIZATION) {
        Some(credentials) => Scope::digest_of(credentials),
        None => Scope::shared(),
    };
    Some(OperationId::new("orders", &caller, &key).derive_key("charge"))
}

async fn read<B>(body: B) -> Result<Value, Fault>
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match Limited::new(body, LARGEST_ORDER).collect().await {
        Ok(body) => serde_json::from_slice(&body.to_bytes()).map_err(|_| Fault::BadOrder),
        Err(error) if error.is::<LengthLimitError>() => Err(Fault::TooLarge),
        Err(_) => Err(Fault::BadOrder),
    }
}

fn json(status: StatusCode, value: &Value) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(format!("{value}\n"))));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn fresh(kind: &str) -> String {
    format!("{kind}_{:016x}", SystemEntropy.next_u128() as u64)
}

fn named(beside: &Path, suffix: &str) -> std::path::PathBuf {
    let mut name: OsString = beside.into();
    name.push(suffix);
    name.into()
}
