//! What logs and metrics may hold (S3).

use std::{
    fmt::Debug,
    io,
    sync::{Arc, Mutex},
    thread::{self, ThreadId},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Response};
use metrics_util::debugging::DebuggingRecorder;
use retrysafe::{
    Begin, Decision, Fingerprinter, Found, Held, IdempotencyLayer, KeptHeaders, Outcome,
    Reconciled, Record, RequestHead, Resolution, Scope, State,
};
use retrysafe_testkit::{Fault, Verb};
use tracing_subscriber::fmt::{MakeWriter, format::FmtSpan};

use crate::common::*;

const KEY: &str = "key-4f1d-of-alice";
const SCOPE: &str = "tenant-of-alice";
const REQUEST: &str = "card=4242424242424242";
const RESPONSE: &str = "the-receipt-of-alice";

/// What one thread logs. The subscriber is everybody's: one that is set for a single thread misses
/// the callsites that other tests reach first.
#[derive(Clone)]
struct Log(Arc<Mutex<Vec<u8>>>, ThreadId);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if thread::current().id() == self.1 {
            self.0.lock().unwrap().extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// Every decision there is: executed, replayed, refused for each reason, a panic, a lost store.
async fn scenario() -> Vec<String> {
    let store = store();
    let scope = Scope::from_bytes(SCOPE);
    let layer = IdempotencyLayer::builder(store.clone(), scope).build().unwrap();
    let gate = Gate::closed();
    let at_gate = gate.clone();
    let orders = Guarded::new(&layer, move |_, request: Given| {
        let gate = at_gate.clone();
        async move {
            match request.headers().get("x-case").map(|it| it.as_bytes()) {
                Some(b"slow") => gate.pass().await,
                Some(b"panic") => panic!("the handler failed"),
                _ => {}
            }
            http::Response::new(body(RESPONSE))
        }
    });
    let request = |number: usize, case: &'static str, content: &'static str| {
        let mut request = order(&format!("{KEY}-{number}"), content);
        request.headers_mut().insert("x-case", case.parse().unwrap());
        request
    };
    let mut seen = vec![format!("{layer:?}"), format!("{:?}", layer.engine())];
    let mut see = |thing: &dyn Debug| seen.push(format!("{thing:?}"));
    see(&orders.call(request(1, "quick", REQUEST)).await.into_body());
    orders.send(request(1, "quick", REQUEST)).await.assert_replay(200, RESPONSE);
    let reused = orders.send(request(1, "quick", "other")).await;
    reused.assert_problem(422, "key_reused");
    see(&reused);
    let slow = orders.spawn(request(2, "slow", REQUEST));
    orders.ran(2).await;
    let in_progress = orders.send(request(2, "slow", REQUEST)).await;
    in_progress.assert_problem(409, "in_progress");
    see(&in_progress);
    gate.open();
    slow.await.unwrap();
    orders.send(request(3, "panic", REQUEST)).await.assert_problem(500, "handler_failed");
    store.script().next(Verb::Complete, Fault::FailBefore);
    assert_eq!(orders.send(request(4, "quick", REQUEST)).await.status, 200);
    store.script().always(Verb::Begin, Fault::FailBefore);
    orders.send(request(5, "quick", REQUEST)).await.assert_problem(503, "store_unavailable");
    let bad = order(&format!("{KEY} with a space"), REQUEST);
    let invalid = orders.send(bad).await;
    invalid.assert_problem(400, "invalid_key");
    see(&invalid);
    store.script().heal();
    layer.engine().drain().await;
    seen
}

#[tokio::test(start_paused = true)]
async fn s3_keys_scopes_and_bodies_never_reach_logs_or_metrics() {
    let log = Log(Arc::default(), thread::current().id());
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_span_events(FmtSpan::FULL)
        .with_ansi(false)
        .with_writer(log.clone())
        .finish();
    let recorder = DebuggingRecorder::new();
    let snapshots = recorder.snapshotter();
    let seen = {
        let _metrics = metrics::set_default_local_recorder(&recorder);
        tracing::subscriber::set_global_default(subscriber).unwrap();
        scenario().await
    };
    let logged = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let mut measured = String::new();
    for (key, ..) in snapshots.snapshot().into_vec() {
        let labels: Vec<_> =
            key.key().labels().map(|it| format!("{}={}", it.key(), it.value())).collect();
        measured.push_str(&format!("{}{{{}}}\n", key.key().name(), labels.join(",")));
    }
    for secret in [KEY, SCOPE, REQUEST, RESPONSE, "4242424242424242"] {
        assert!(!logged.contains(secret), "{secret} was logged:\n{logged}");
        assert!(!measured.contains(secret), "{secret} is in a metric:\n{measured}");
        assert!(!seen.iter().any(|it| it.contains(secret) && secret != RESPONSE), "{seen:?}");
    }
    // What does reach them: the operation's short name, and one word for what became of it.
    let key = retrysafe::IdempotencyKey::new(&format!("{KEY}-1")).unwrap();
    let operation = retrysafe::OperationId::new("default", &Scope::from_bytes(SCOPE), &key);
    assert!(logged.contains(&operation.to_string()), "{logged}");
    assert!(!logged.contains(&hex(operation.as_bytes())));
    for outcome in ["executed", "replayed", "key_reused", "in_progress", "rejected"] {
        assert!(measured.contains(&format!("outcome={outcome}")), "{measured}");
        assert!(logged.contains(outcome), "{logged}");
    }
}

#[test]
fn s3_debug_shows_nothing_of_what_is_kept() {
    let headers = HeaderMap::new();
    let head = RequestHead { method: "POST", target: "/orders", headers: &headers };
    let fingerprint = Fingerprinter::raw().whole(&head, REQUEST.as_bytes());
    let response = || {
        let receipt = Response::builder().header("x-receipt", RESPONSE);
        receipt.body(Bytes::from_static(RESPONSE.as_bytes())).unwrap()
    };
    let body = [response().into_body()];
    let payload = Outcome {
        status: response().status(),
        headers: response().headers(),
        body: Some(&body),
        trailers: None,
        stream: false,
        trailers_only: false,
        recorded: Duration::ZERO,
        trace: None,
    }
    .encode(&KeptHeaders::default());
    assert!(format!("{payload:?}").contains(RESPONSE), "it would be seen");
    let found = || Found::Finished { fingerprint: fingerprint.clone(), payload: payload.clone() };
    let digest = format!("{:?}", fingerprint.head);
    let shown = [
        format!("{:?}", Decision::Replay(payload.clone())),
        format!("{:?}", Decision::Unavailable(payload.clone())),
        format!("{:?}", Reconciled::Happened(response())),
        format!("{:?}", found()),
        format!("{:?}", Begin::Found(found())),
        format!("{:?}", Held::Lost(found())),
        format!("{:?}", State::Finished { payload: payload.clone() }),
        format!(
            "{:?}",
            Resolution::Happened { payload: payload.clone(), retention: Duration::ZERO }
        ),
        format!("{:?}", Record::decode(payload.clone()).unwrap()),
    ];
    for shown in shown {
        assert!(!shown.contains(RESPONSE) && !shown.contains(&digest), "{shown}");
        assert!(shown.len() < 200, "{shown}");
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
