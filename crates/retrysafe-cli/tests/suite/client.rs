//! The client and the proxy together: thousands of calls with faults at every stage, each executed
//! exactly once, none lost. `make calls` makes ten thousand.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::support::Running;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use retrysafe_client::{
    Client, FileJournal, IdempotencyKey, OutcomeUnknown, ResumedOutcome, RetryPolicy,
};
use retrysafe_testkit::{SeededEntropy, servers::Wire};
use tokio::{net::TcpListener, time::sleep};

/// How long an attempt of the client may take.
const ATTEMPT: Duration = Duration::from_secs(1);

/// A service behind the proxy that counts how often it executed each order. What it does badly, it
/// does before it executes: afterwards nobody but itself could tell.
#[derive(Default)]
struct Shop {
    executed: Mutex<HashMap<Bytes, u32>>,
    troubled: AtomicBool,
    faults: [AtomicU64; FAULTS.len()],
    chance: Mutex<Option<SeededEntropy>>,
}

const FAULTS: [&str; 3] = ["answered 500", "answered 503 with Retry-After", "slow"];

impl Shop {
    async fn listen(self: Arc<Self>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shop = self.clone();
                let service = hyper::service::service_fn(move |request| {
                    let shop = shop.clone();
                    async move { Ok::<_, Infallible>(shop.answer(request).await) }
                });
                let connection = hyper::server::conn::http1::Builder::new();
                tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
            }
        });
        address
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let Ok(order) = request.into_body().collect().await else {
            return response(StatusCode::BAD_REQUEST, "");
        };
        match self.fault() {
            Some(0) => return response(StatusCode::INTERNAL_SERVER_ERROR, ""),
            Some(1) => {
                let mut refused = response(StatusCode::SERVICE_UNAVAILABLE, "");
                refused.headers_mut().insert("retry-after", http::HeaderValue::from_static("0"));
                return refused;
            }
            // The client gives up meanwhile, asks again, and is told that it is in progress.
            Some(_) => sleep(ATTEMPT + ATTEMPT / 2).await,
            None => {}
        }
        let order = order.to_bytes();
        *self.executed.lock().unwrap().entry(order.clone()).or_default() += 1;
        response(StatusCode::CREATED, format!("placed {}", String::from_utf8_lossy(&order)))
    }

    /// What goes wrong with this request, if anything does.
    fn fault(&self) -> Option<usize> {
        if !self.troubled.load(Ordering::SeqCst) {
            return None;
        }
        let mut chance = self.chance.lock().unwrap();
        let drawn = chance.get_or_insert_with(|| SeededEntropy::new(7)).below(FAULTS.len() * 30);
        let fault = Some(drawn).filter(|it| *it < FAULTS.len())?;
        self.faults[fault].fetch_add(1, Ordering::SeqCst);
        Some(fault)
    }
}

fn response(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}

/// What becomes of the connections to the proxy meanwhile; counts how often what was done. A cut is
/// for one call; what is for all of them is rarer, so that the retry budget is not spent by it alone.
async fn disturb(wire: &Wire, done: &[AtomicU64; 6]) {
    for step in 0_usize.. {
        // By what was answered, not by the time: on a slow machine there are no more of them.
        let due = wire.round_trips() + 4;
        while wire.round_trips() < due {
            sleep(Duration::from_millis(1)).await;
        }
        let kind = match step % 24 {
            7 => 3,
            15 => 4,
            23 => 5,
            cut => cut % 3,
        };
        match kind {
            0 => wire.cut_before(),
            1 => wire.cut_within(),
            2 => wire.cut_after(),
            3 => wire.reset().await,
            4 => {
                wire.refuse().await;
                wire.accept().await;
            }
            _ => {
                wire.stall_answers();
                sleep(Duration::from_millis(20)).await;
                wire.unstall();
            }
        }
        done[kind].fetch_add(1, Ordering::SeqCst);
    }
}

/// How many calls are made: as many as the environment says, or some.
fn calls() -> usize {
    let named = std::env::var("RETRYSAFE_TEST_CALLS").ok();
    named.map_or(1_000, |it| it.parse().expect("RETRYSAFE_TEST_CALLS is a number"))
}

enum Ended {
    Answered,
    Unknown(IdempotencyKey),
    NotDone(usize),
}

async fn place(client: &Client, url: &str, number: usize) -> Ended {
    let sent = client.post(url).body(format!("order {number}")).send().await;
    match sent {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_call_through_the_proxy_is_executed_exactly_once_and_none_is_lost() {
    let calls = calls();
    let shop = Arc::new(Shop::default());
    let mut proxy = Running::proxy(shop.clone().listen().await, &["--scope", "shared"]);
    let _log = proxy.read_log();
    let wire = Arc::new(Wire::to(proxy.address).await);
    let folder = tempfile::tempdir().unwrap();
    let mut retries = RetryPolicy::default();
    retries.attempt_timeout = ATTEMPT;
    retries.deadline = Duration::from_secs(30);
    retries.attempts = 6;
    let journal = FileJournal::open(folder.path().join("journal")).unwrap();
    let client = Client::builder().retries(retries).journal(journal).build().unwrap();
    let url = wire.url_for("http://127.0.0.1:1/orders");

    shop.troubled.store(true, Ordering::SeqCst);
    let done: Arc<[AtomicU64; 6]> = Arc::default();
    let disturbed = tokio::spawn({
        let (wire, done) = (wire.clone(), done.clone());
        async move { disturb(&wire, &done).await }
    });
    let placed = stream::iter(0..calls).map(|number| place(&client, &url, number));
    let ended: Vec<_> = placed.buffer_unordered(32).collect().await;
    disturbed.abort();
    let _ = disturbed.await;
    wire.unstall();
    wire.accept().await;
    shop.troubled.store(false, Ordering::SeqCst);

    let (mut answered, mut unknown, mut not_done) = (0, Vec::new(), Vec::new());
    for end in ended {
        match end {
            Ended::Answered => answered += 1,
            Ended::Unknown(key) => unknown.push(key.as_str().to_owned()),
            Ended::NotDone(number) => not_done.push(number),
        }
    }
    let count = |counts: &[AtomicU64]| -> Vec<_> {
        counts.iter().map(|it| it.load(Ordering::SeqCst)).collect()
    };
    let (service, connections) = (count(&shop.faults), count(&*done));
    println!(
        "{FAULTS:?}: {service:?}; cuts before, within, after, resets, refusals, stalls: {connections:?}"
    );
    println!("answered {answered}, unknown {}, not done {}", unknown.len(), not_done.len());
    assert!(service.iter().chain(&connections).all(|it| *it > 0), "each was tried");

    // What is unknown is found out, once all is well.
    let mut resumed = Vec::new();
    while resumed.len() < unknown.len() {
        for one in client.resume().await.unwrap() {
            if let ResumedOutcome::Answered(response) = one.outcome() {
                assert_eq!(response.status(), 201);
                resumed.push(one.key().as_str().to_owned());
            }
        }
    }
    resumed.sort();
    unknown.sort();
    assert!(resumed == unknown, "the journal knows exactly the unknown ones");
    assert!(client.resume().await.unwrap().is_empty());
    // What was not done may be asked for anew: its caller was told that nothing was sent.
    for number in &not_done {
        assert!(matches!(place(&client, &url, *number).await, Ended::Answered));
    }
    let executed = shop.executed.lock().unwrap();
    assert_eq!(executed.len(), calls);
    for (order, times) in &*executed {
        assert_eq!(*times, 1, "{order:?}");
    }
    assert_eq!(answered + unknown.len() + not_done.len(), calls);
    assert!(answered > calls / 4, "many of them had their answer at once");
}
