//! What is seen of a call, and what never is (S3).

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use retrysafe_client::IdempotencyKey;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::support::{Server, answer, builder, client};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_span_for_the_call_and_one_for_each_attempt() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_span_events(FmtSpan::CLOSE)
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let server = Server::replying(vec![answer(503), answer(201)]).await;
    let key = IdempotencyKey::new("a-secret-key").unwrap();
    let request = client().post(server.url("/orders")).body("a-secret-body");
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    request.header("traceparent", trace).with_extension(key).send().await.unwrap();
    drop(guard);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let ours: String =
        text.lines().filter(|it| it.contains("idempotent_call")).collect::<Vec<_>>().join("\n");
    assert!(ours.contains("operation=idem_"), "{text}");
    assert!(ours.contains("trace=0af7651916cd43dd8448eb211c80319c"), "{text}");
    assert!(ours.contains("attempt{number=1") && ours.contains("attempt{number=2"), "{text}");
    assert!(ours.contains("outcome=\"answered\"") && ours.contains("attempts=2"), "{text}");
    for secret in ["a-secret-key", "a-secret-body"] {
        assert!(!ours.contains(secret), "{ours}");
    }
}

#[test]
fn replay_burns_quota() {
    // Replays were counted as fresh executions. Here each thing has a counter of its own.
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            let replay = answer(201).with("idempotent-replayed", "true");
            let server = Server::replying(vec![answer(503), replay, answer(500)]).await;
            let mut policy = crate::support::impatient();
            policy.budget.capacity = 20;
            let client = builder().retries(policy).build().unwrap();
            client.post(server.url("/")).send().await.unwrap();
            client.post(server.url("/")).send().await.unwrap_err();
        });
    });
    let counters: Vec<_> = snapshotter
        .snapshot()
        .into_vec()
        .into_iter()
        .map(|(key, _, _, value)| {
            let labels = key.key().labels().map(|it| it.value().to_owned()).collect::<Vec<_>>();
            let DebugValue::Counter(count) = value else { panic!() };
            (key.key().name().to_owned(), labels.join(","), count)
        })
        .collect();
    let count = |name: &str, label: &str| {
        let name = format!("retrysafe_client_{name}");
        counters.iter().find(|it| it.0 == name && it.1 == label).map_or(0, |it| it.2)
    };
    assert_eq!(count("calls_total", "answered"), 1);
    assert_eq!(count("calls_total", "unknown"), 1);
    assert_eq!(count("attempts_total", "answered"), 4);
    assert_eq!(count("retries_total", "transient"), 2);
    assert_eq!(count("replays_total", ""), 1);
    assert_eq!(count("budget_refusals_total", ""), 1);
    assert_eq!(count("unknown_outcomes_total", "budget"), 1);
}
