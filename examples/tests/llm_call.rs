//! The example `llm-call`, against a server of OpenAI's shape that counts what it charges for, with a
//! wire in between that fails.

#![allow(clippy::unwrap_used, reason = "all of this is tests")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
    routing::post,
};
use futures_util::{StreamExt as _, stream};
use retrysafe_axum::{IdempotencyLayer, IdempotentRouter as _, MemoryStore, Scope};
use retrysafe_testkit::servers::Wire;
use serde_json::{Value, json};
use tokio::{net::TcpListener, process::Command};

/// What was paid for.
#[derive(Clone, Default)]
struct Paid(Arc<AtomicU64>);

/// Answers with the words of the prompt, one event for each.
async fn complete(State(paid): State<Paid>, Json(question): Json<Value>) -> Response {
    paid.0.fetch_add(1, Ordering::SeqCst);
    assert_eq!(question["stream"], true);
    let prompt = question["messages"][0]["content"].as_str().unwrap().to_owned();
    let words: Vec<_> = prompt.split_inclusive(' ').map(str::to_owned).collect();
    let words = words.into_iter().map(|word| {
        let event = json!({ "choices": [{ "delta": { "content": word } }] });
        format!("data: {event}\n\n")
    });
    let events = stream::iter(words.chain(["data: [DONE]\n\n".to_owned()])).then(|event| async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        Ok::<_, std::io::Error>(event)
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response()
}

async fn start(paid: Paid) -> SocketAddr {
    let layer = IdempotencyLayer::builder(MemoryStore::new(), Scope::shared()).build().unwrap();
    let app = Router::new().route("/v1/chat/completions", post(complete)).idempotent(layer);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app.with_state(paid)).await.unwrap() });
    address
}

async fn ask(url: &str, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_llm-call"))
        .arg(url)
        .args(arguments)
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_prompt_is_paid_for_once() {
    let paid = Paid::default();
    let wire = Wire::to(start(paid.clone()).await).await;
    let url = wire.url_for("http://127.0.0.1:1/v1/chat/completions");
    let prompt = "one two three four five six seven eight nine ten ".repeat(20);
    let answer = format!("{prompt}\n");

    // The answer is swallowed when it begins.
    wire.cut_after();
    assert_eq!(ask(&url, &["--prompt", &prompt]).await, answer);
    assert_eq!(paid.0.load(Ordering::SeqCst), 1);
    // Another run, another process: the same prompt is answered from the record.
    assert_eq!(ask(&url, &["--prompt", &prompt]).await, answer);
    assert_eq!(paid.0.load(Ordering::SeqCst), 1);

    // The stream breaks off in the middle.
    let (asked, others) = (url.clone(), prompt.clone());
    let other = tokio::spawn(async move {
        ask(&asked, &["--prompt", &others, "--conversation", "another"]).await
    });
    while paid.0.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    wire.reset().await;
    assert_eq!(other.await.unwrap(), answer, "nothing is printed twice, nothing is missing");
    assert_eq!(paid.0.load(Ordering::SeqCst), 2, "what is meant to be asked anew is paid for anew");
}
