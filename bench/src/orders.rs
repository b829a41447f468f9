//! The service that is measured: an orders API as a small Axum service would have it, with and
//! without a layer, and the requests to it.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicU64, Ordering},
};

use axum::{
    Json, Router,
    body::Body,
    response::{IntoResponse, Response},
    routing::post,
};
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use retrysafe_axum::{IdempotencyLayer, IdempotencyService, Scope, Store};
use serde::{Deserialize, Serialize};
use tower::{Layer as _, Service};

/// A typical order, about 300 bytes.
pub(crate) const ORDER: &str = r#"{"customer":"cus_9f2c81d7","currency":"EUR","lines":[{"sku":"BK-1021-BLUE","quantity":2,"unit_price":4999},{"sku":"LT-0007","quantity":1,"unit_price":1250},{"sku":"HM-2290-M","quantity":1,"unit_price":7900}],"ship_to":{"name":"Ada Lovelace","street":"12 St James's Square","city":"London"}}"#;

#[derive(Deserialize)]
pub(crate) struct Order {
    customer: String,
    currency: String,
    lines: Vec<Line>,
    ship_to: Address,
}

#[derive(Deserialize, Serialize)]
struct Line {
    sku: String,
    quantity: u32,
    unit_price: u64,
}

#[derive(Deserialize)]
struct Address {
    name: String,
    street: String,
    city: String,
}

/// What a client gets, about 300 bytes.
#[derive(Serialize)]
pub(crate) struct Placed {
    order_id: String,
    status: &'static str,
    customer: String,
    currency: String,
    total: u64,
    lines: Vec<Line>,
    ship_to: String,
}

async fn place(Json(order): Json<Order>) -> Response {
    let (location, placed) = placed(order);
    (StatusCode::CREATED, [(header::LOCATION, location)], Json(placed)).into_response()
}

/// Places an order: where it is, and what the client gets.
pub(crate) fn placed(order: Order) -> (String, Placed) {
    static ORDERS: AtomicU64 = AtomicU64::new(1);
    let order_id = format!("ord_{:016x}", ORDERS.fetch_add(1, Ordering::Relaxed));
    let location = format!("/orders/{order_id}");
    let Address { name, street, city } = order.ship_to;
    let placed = Placed {
        order_id,
        status: "placed",
        customer: order.customer,
        currency: order.currency,
        total: order.lines.iter().map(|it| u64::from(it.quantity) * it.unit_price).sum(),
        lines: order.lines,
        ship_to: format!("{name}, {street}, {city}"),
    };
    (location, placed)
}

/// The service alone.
pub(crate) fn bare() -> Router {
    Router::new().route("/orders", post(place))
}

/// The layer with its defaults on a store.
pub(crate) fn layer<S: Store>(store: S) -> crate::Outcome<IdempotencyLayer<S>> {
    Ok(IdempotencyLayer::builder(store, Scope::shared()).build()?)
}

/// The service in the layer. Around the whole of it: a layer on a `Router` is boxed by Axum, any
/// layer, and that is not what is measured.
pub(crate) fn guarded<S: Store>(store: S) -> crate::Outcome<IdempotencyService<Router, S>> {
    Ok(layer(store)?.layer(bare()))
}

/// The service in the peer's layer with its defaults on its memory store (P13).
pub(crate) fn with_peer() -> crate::Outcome<Peer> {
    let store = idempotent::memory::MemoryStore::builder().try_build()?;
    Ok(idempotent::middleware::IdempotencyLayer::new(store).layer(bare()))
}

pub(crate) type Peer =
    idempotent::middleware::IdempotencyService<idempotent::memory::MemoryStore, Router>;

/// Any of these services.
pub(crate) trait Orders:
    Service<Request<Body>, Response = Response, Error = Infallible, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> Orders for S where
    S: Service<Request<Body>, Response = Response, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// Has an order placed, and gives the body of the answer.
pub(crate) async fn answer(
    service: &mut impl Orders,
    request: Request<Body>,
) -> crate::Outcome<Bytes> {
    let response = match service.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    if response.status() != StatusCode::CREATED {
        return Err(format!("an order was answered {}", response.status()).into());
    }
    Ok(response.into_body().collect().await?.to_bytes())
}

/// A key that no other request of this process has: a UUID to look at.
pub(crate) fn fresh_key() -> String {
    static KEYS: AtomicU64 = AtomicU64::new(0);
    let number = KEYS.fetch_add(1, Ordering::Relaxed);
    // An odd factor: every number has another product, and the digits look drawn.
    let spread = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let (high, low) = (spread >> 32, spread & 0xffff_ffff);
    format!("{high:08x}-9fd0-4{:03x}-8a11-{low:08x}05d1", number >> 20 & 0xfff)
}

/// An order, as hyper would hand it to the service.
pub(crate) fn request(key: Option<&str>) -> Request<Body> {
    let mut request = Request::new(Body::from(ORDER));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = http::Uri::from_static("/orders");
    let headers = request.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert(header::CONTENT_LENGTH, ORDER.len().into());
    if let Some(key) = key.and_then(|key| HeaderValue::from_str(key).ok()) {
        headers.insert("idempotency-key", key);
    }
    request
}

pub(crate) const HEADERS: [(&str, &str); 4] = [
    ("host", "orders.example"),
    ("user-agent", "bench"),
    ("accept", "application/json"),
    ("content-type", "application/json"),
];

/// An order as it goes over the wire, with room for a key.
#[derive(Clone)]
pub(crate) struct Wire {
    bytes: Vec<u8>,
    key: std::ops::Range<usize>,
}

impl Wire {
    pub(crate) fn new(path: &str) -> Self {
        let mut bytes = format!("POST {path} HTTP/1.1\r\n").into_bytes();
        for (name, value) in HEADERS {
            bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        bytes.extend_from_slice(format!("content-length: {}\r\n", ORDER.len()).as_bytes());
        bytes.extend_from_slice(b"idempotency-key: ");
        let key = fresh_key();
        let start = bytes.len();
        bytes.extend_from_slice(key.as_bytes());
        let key = start..bytes.len();
        bytes.extend_from_slice(b"\r\n\r\n");
        bytes.extend_from_slice(ORDER.as_bytes());
        Self { bytes, key }
    }

    /// The request with a key of the length that every [`fresh_key`] has.
    pub(crate) fn with_key(&mut self, key: &str) -> &[u8] {
        self.bytes[self.key.clone()].copy_from_slice(key.as_bytes());
        &self.bytes
    }
}
