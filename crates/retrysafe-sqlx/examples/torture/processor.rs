//! A card processor, a service of somebody else's: it charges once for each key that it is sent, it is
//! slow now and then, and its answers get lost. It lives in the process that kills, and is not killed.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::post,
};
use futures_util::stream;
use tokio::{net::TcpListener, time::sleep};

/// Longer than a service's lease.
const SLOW: Duration = Duration::from_millis(700);

/// A charge that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Charge {
    pub(crate) number: i64,
    /// The transfer that it is for.
    pub(crate) request: String,
    pub(crate) amount: i64,
}

/// Its books, which its own idempotency is part of.
#[derive(Clone, Default)]
pub(crate) struct Processor(Arc<Mutex<Books>>);

#[derive(Default)]
struct Books {
    /// By key: what was asked for, and the charge, unless the card was declined.
    by_key: HashMap<String, (String, Option<Charge>)>,
    /// The number of the last charge.
    last: i64,
    asked: u64,
    /// How often a key came with something else than before.
    misused: usize,
}

impl Processor {
    /// Opens it for business.
    pub(crate) async fn listen(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/charges", post(charge)).with_state(self.clone());
        tokio::spawn(async { axum::serve(listener, router).await.unwrap() });
        address
    }

    pub(crate) fn charges(&self) -> Vec<Charge> {
        let books = self.0.lock().unwrap();
        books.by_key.values().filter_map(|(_, charge)| charge.clone()).collect()
    }

    pub(crate) fn asked(&self) -> u64 {
        self.0.lock().unwrap().asked
    }

    pub(crate) fn misused(&self) -> usize {
        self.0.lock().unwrap().misused
    }

    fn charge(&self, key: &str, order: &str) -> Option<Charge> {
        let (request, amount) = order.split_once(' ').unwrap();
        let amount: i64 = amount.parse().unwrap();
        let mut books = self.0.lock().unwrap();
        books.asked += 1;
        if let Some((before, charge)) = books.by_key.get(key) {
            let (is_other, charge) = (before != order, charge.clone());
            books.misused += usize::from(is_other);
            return charge;
        }
        // Some amounts are declined, for good.
        let charge = (amount % 7 != 0).then(|| {
            books.last += 1;
            Charge { number: books.last, request: request.to_owned(), amount }
        });
        books.by_key.insert(key.to_owned(), (order.to_owned(), charge.clone()));
        charge
    }
}

/// `POST /charges` with `REQUEST AMOUNT`.
async fn charge(State(processor): State<Processor>, request: Request) -> Response {
    if rand::random_ratio(1, 16) {
        return broken_off();
    }
    let (head, body) = request.into_parts();
    // Who asks may die while he does.
    let Ok(order) = axum::body::to_bytes(body, 1024).await else { return broken_off() };
    let order = str::from_utf8(&order).unwrap();
    let charge = processor.charge(head.headers["idempotency-key"].to_str().unwrap(), order);
    let is_slow = rand::random_ratio(1, 32);
    sleep(if is_slow { SLOW } else { Duration::from_millis(rand::random_range(0..5)) }).await;
    if rand::random_ratio(1, 16) {
        return broken_off();
    }
    match charge {
        Some(charge) => (StatusCode::CREATED, charge.number.to_string()).into_response(),
        None => (StatusCode::PAYMENT_REQUIRED, "declined").into_response(),
    }
}

/// An answer in the middle of which the connection ends.
fn broken_off() -> Response {
    let broken = stream::once(async { Err::<Bytes, _>(io::Error::other("broken off")) });
    Response::new(Body::from_stream(broken))
}
