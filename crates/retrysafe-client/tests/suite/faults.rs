//! Thousands of logical calls to an Axum service, with faults at every stage: each is executed exactly
//! once, and none is lost. `make calls` makes ten thousand, here and through the proxy.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::post,
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use retrysafe_axum::{IdempotencyLayer, IdempotentRouter as _, MemoryStore, Scope};
use retrysafe_client::{
    Client, FileJournal, KeySource, OutcomeUnknown, ResumedOutcome, RetryPolicy,
};
use retrysafe_testkit::{SeededEntropy, servers::Wire};
use tokio::net::TcpListener;

/// A shop that counts how often it executed each order.
#[derive(Clone, Default)]
struct Shop {
    executed: Arc<Mutex<HashMap<String, u32>>>,
    /// Whether something goes wrong, and what went wrong so far.
    troubled: Arc<AtomicBool>,
    faults: Arc<[AtomicU64; 6]>,
    chance: Arc<Mutex<Option<SeededEntropy>>>,
}

const FAULTS: [&str; 6] = [
    "answered 500 before",
    "answered 503 before",
    "answered 500 after",
    "truncated",
    "reset after",
    "slow",
];

impl Shop {
    /// What goes wrong with this request, if anything does: one in ten.
    fn fault(&self) -> Option<usize> {
        if !self.troubled.load(Ordering::SeqCst) {
            return None;
        }
        let mut chance = self.chance.lock().unwrap();
        let drawn = chance.get_or_insert_with(|| SeededEntropy::new(7)).below(FAULTS.len() * 10);
        let fault = Some(drawn).filter(|it| *it < FAULTS.len())?;
        self.faults[fault].fetch_add(1, Ordering::SeqCst);
        Some(fault)
    }
}

async fn place_order(State(shop): State<Shop>, order: String) -> (StatusCode, String) {
    *shop.executed.lock().unwrap().entry(order.clone()).or_default() += 1;
    (StatusCode::CREATED, format!("placed {order}"))
}

/// What stands between the client and the layer, and fails.
async fn trouble(State(shop): State<Shop>, request: Request, next: Next) -> Response {
    let fault = shop.fault();
    match fault {
        Some(0) => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Some(1) => {
            return (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "0")]).into_response();
        }
        _ => {}
    }
    let response = next.run(request).await;
    match fault {
        Some(2) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        // The head of the answer, half of its body, and then a reset.
        Some(3) => {
            let (head, _) = response.into_parts();
            let broken = stream::iter([Ok(Bytes::from("pl")), Err(std::io::Error::other("cut"))]);
            Response::from_parts(head, Body::from_stream(broken))
        }
        Some(4) => panic!("the connection is dropped"),
        Some(5) => {
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            response
        }
        _ => response,
    }
}

async fn start(shop: Shop) -> SocketAddr {
    let layer = IdempotencyLayer::builder(MemoryStore::new(), Scope::shared()).build().unwrap();
    let app = Router::new()
        .route("/orders", post(place_order))
        .idempotent(layer)
        .layer(middleware::from_fn_with_state(shop.clone(), trouble))
        .with_state(shop);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    address
}

/// What becomes of the connections meanwhile.
async fn disturb(wire: &Wire, chance: &SeededEntropy) {
    loop {
        tokio::time::sleep(Duration::from_millis(200 + chance.below(600) as u64)).await;
        match chance.below(5) {
            0 => wire.cut_before(),
            1 => wire.cut_after(),
            2 => wire.reset().await,
            3 => {
                wire.refuse().await;
                tokio::time::sleep(Duration::from_millis(10)).await;
                wire.accept().await;
            }
            _ => {
                wire.stall_answers();
                tokio::time::sleep(Duration::from_millis(50)).await;
                wire.unstall();
            }
        }
    }
}

/// How many calls are made: as many as the environment says, or some.
fn calls() -> usize {
    let named = std::env::var("RETRYSAFE_TEST_CALLS").ok();
    named.map_or(2_000, |it| it.parse().expect("RETRYSAFE_TEST_CALLS is a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_call_is_executed_exactly_once_and_none_is_lost() {
    let calls = calls();
    std::panic::set_hook(Box::new(|info| {
        // Those of the trouble above are meant.
        if !info.to_string().contains("the connection is dropped") {
            eprintln!("{info}");
        }
    }));
    let shop = Shop::default();
    let wire = Arc::new(Wire::to(start(shop.clone()).await).await);
    let folder = tempfile::tempdir().unwrap();
    let mut retries = RetryPolicy::default();
    retries.attempt_timeout = Duration::from_secs(1);
    retries.deadline = Duration::from_secs(30);
    retries.attempts = 6;
    let client = Client::builder()
        .retries(retries)
        .keys(KeySource::UuidV4)
        .journal(FileJournal::open(folder.path().join("journal")).unwrap())
        .build()
        .unwrap();

    shop.troubled.store(true, Ordering::SeqCst);
    let disturbed = tokio::spawn({
        let wire = wire.clone();
        async move { disturb(&wire, &SeededEntropy::new(11)).await }
    });
    let url = wire.url_for("http://127.0.0.1:1/orders");
    let placed = stream::iter(0..calls).map(|number| {
        let request = client.post(&url).body(format!("order {number}"));
        async move {
            match request.send().await {
                Ok(response) => {
                    assert_eq!(response.status(), 201);
                    assert_eq!(response.text().await.unwrap(), format!("placed order {number}"));
                    Ended::Answered
                }
                // It names the key, and stays in the journal.
                Err(error) => match OutcomeUnknown::from_error(error) {
                    Ok(unknown) => Ended::Unknown(unknown.key().clone()),
                    Err(_) => Ended::NotDone(number),
                },
            }
        }
    });
    let ended: Vec<_> = placed.buffer_unordered(64).collect().await;
    disturbed.abort();
    let _ = disturbed.await;
    wire.unstall();
    wire.accept().await;
    shop.troubled.store(false, Ordering::SeqCst);

    let (mut answered, mut unknown, mut not_done) = (0, Vec::new(), Vec::new());
    for end in ended {
        match end {
            Ended::Answered => answered += 1,
            Ended::Unknown(key) => unknown.push(key),
            Ended::NotDone(number) => not_done.push(number),
        }
    }
    for (fault, count) in FAULTS.iter().zip(shop.faults.iter()) {
        let count = count.load(Ordering::SeqCst);
        println!("{fault}: {count}");
        assert!(count > 0, "{fault} was not tried");
    }
    println!("answered {answered}, unknown {}, not done {}", unknown.len(), not_done.len());

    // What is unknown is found out, once the server is well.
    let mut resumed = Vec::new();
    while resumed.len() < unknown.len() {
        for one in client.resume().await.unwrap() {
            if let ResumedOutcome::Answered(response) = one.outcome() {
                assert_eq!(response.status(), 201);
                resumed.push(one.key().clone());
            }
        }
    }
    let sorted = |mut keys: Vec<retrysafe_client::IdempotencyKey>| {
        keys.sort_by(|one, other| one.as_str().cmp(other.as_str()));
        keys
    };
    assert!(
        sorted(resumed) == sorted(unknown.clone()),
        "the journal knows exactly the unknown ones"
    );
    assert!(client.resume().await.unwrap().is_empty());

    // What was not done may be asked for anew: its caller was told that nothing was sent.
    for number in &not_done {
        let request = client.post(&url).body(format!("order {number}"));
        assert_eq!(request.send().await.unwrap().status(), 201);
    }
    let executed = shop.executed.lock().unwrap();
    assert_eq!(executed.len(), calls);
    for (order, times) in &*executed {
        assert_eq!(*times, 1, "{order}");
    }
    assert_eq!(answered + unknown.len() + not_done.len(), calls);
    assert!(answered > calls / 2, "most of them had their answer at once");
}

enum Ended {
    Answered,
    Unknown(retrysafe_client::IdempotencyKey),
    NotDone(usize),
}
