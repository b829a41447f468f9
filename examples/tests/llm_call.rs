//! The example `llm-call`, against a server of OpenAI's shape that counts what it charges for, with a
//! wire in between that fails.

#![allow(clippy::unwrap_used, reason = "all of this is tests")]

use std::{
    net::SocketAddr,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
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
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    net::TcpListener,
    process::Command,
    sync::watch,
};

/// The server behind the wire.
#[derive(Clone)]
struct Model {
    /// How often it was paid.
    paid: Arc<AtomicU64>,
    /// Whether it goes on in the middle of an answer.
    goes_on: watch::Sender<bool>,
}

impl Model {
    fn paid(&self) -> u64 {
        self.paid.load(Ordering::SeqCst)
    }
}

/// Answers with the words of the prompt, one event for each.
async fn complete(State(model): State<Model>, Json(question): Json<Value>) -> Response {
    model.paid.fetch_add(1, Ordering::SeqCst);
    assert_eq!(question["stream"], true);
    let prompt = question["messages"][0]["content"].as_str().unwrap().to_owned();
    let words: Vec<_> = prompt.split_inclusive(' ').map(str::to_owned).collect();
    let words = words.into_iter().map(|word| {
        let event = json!({ "choices": [{ "delta": { "content": word } }] });
        format!("data: {event}\n\n")
    });
    let words: Vec<_> = words.chain(["data: [DONE]\n\n".to_owned()]).collect();
    let half = words.len() / 2;
    let events = stream::iter(words.into_iter().enumerate()).then(move |(number, event)| {
        let mut goes_on = model.goes_on.subscribe();
        async move {
            if number == half {
                goes_on.wait_for(|it| *it).await.map_err(std::io::Error::other)?;
            }
            Ok::<_, std::io::Error>(event)
        }
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response()
}

async fn start(model: Model) -> SocketAddr {
    let layer = IdempotencyLayer::builder(MemoryStore::new(), Scope::shared()).build().unwrap();
    let app = Router::new().route("/v1/chat/completions", post(complete)).idempotent(layer);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app.with_state(model)).await.unwrap() });
    address
}

fn example(url: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llm-call"));
    command.arg(url).args(arguments).stdout(Stdio::piped()).kill_on_drop(true);
    command
}

async fn ask(url: &str, prompt: &str) -> String {
    let output = example(url, &["--prompt", prompt]).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Reads until so many bytes have been printed.
async fn read(printed: &mut (impl AsyncRead + Unpin), bytes: usize) -> String {
    let mut text = vec![0; bytes];
    printed.read_exact(&mut text).await.unwrap();
    String::from_utf8(text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_prompt_is_paid_for_once() {
    let model = Model { paid: Arc::default(), goes_on: watch::Sender::new(true) };
    let wire = Wire::to(start(model.clone()).await).await;
    let url = wire.url_for("http://127.0.0.1:1/v1/chat/completions");
    let prompt = "one two three four five six seven eight nine ten ".repeat(20);
    let answer = format!("{prompt}\n");

    // The answer is swallowed when it begins.
    wire.cut_after();
    assert_eq!(ask(&url, &prompt).await, answer);
    assert_eq!(model.paid(), 1);
    // Another run, another process: the same prompt is answered from the record.
    assert_eq!(ask(&url, &prompt).await, answer);
    assert_eq!(model.paid(), 1);

    // The stream breaks off in the middle.
    model.goes_on.send_replace(false);
    let flags = ["--prompt", &prompt, "--conversation", "another"];
    let mut other = example(&url, &flags).spawn().unwrap();
    let mut printed = other.stdout.take().unwrap();
    // It has said half of its words, and prints them at once.
    let half = read(&mut printed, prompt.len() / 2).await;
    wire.reset().await;
    model.goes_on.send_replace(true);
    let mut rest = String::new();
    printed.read_to_string(&mut rest).await.unwrap();
    assert_eq!(half + &rest, answer, "nothing is printed twice, nothing is missing");
    assert!(other.wait().await.unwrap().success());
    assert_eq!(model.paid(), 2, "what is meant to be asked anew is paid for anew");
}
