//! What is seen of a call, and what never is (S3). Alone in its binary: whether a span is enabled is
//! remembered for the whole process, so other tests at the same time could turn it off.

#![expect(clippy::unwrap_used, reason = "a test says what failed by where it panics")]

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use retrysafe_client::IdempotencyKey;
use tracing_subscriber::fmt::format::FmtSpan;

#[allow(dead_code, reason = "the suite uses the rest of it")]
#[path = "suite/support.rs"]
mod support;

use support::{Server, answer, client};

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
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let server = Server::replying(vec![answer(503), answer(201)]).await;
    let key = IdempotencyKey::new("a-secret-key").unwrap();
    let request = client().post(server.url("/orders")).body("a-secret-body");
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    request.header("traceparent", trace).with_extension(key).send().await.unwrap();
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
