//! The example `axum-handler`, run as a user runs it.

#![allow(clippy::unwrap_used, reason = "all of this is tests")]

#[path = "../../crates/retrysafe-cli/tests/suite/support/readme.rs"]
mod readme;

use std::process::Stdio;

use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    task::JoinSet,
};

/// A running example.
struct Service {
    process: Child,
    address: String,
    client: Client,
}

impl Service {
    async fn start(store: &str) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_axum-handler"))
            .args(["--listen", "127.0.0.1:0", "--store", store])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let line = lines.next_line().await.unwrap().expect("it says where it listens");
        let address = line.strip_prefix("listening on http://").unwrap();
        let address = address.split(',').next().unwrap().to_owned();
        Self { process, address, client: Client::new() }
    }

    fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        let url = format!("http://{}{path}", self.address);
        self.client.post(url).header("x-user-id", "alice").json(body)
    }

    fn order(&self, key: &str, item: &str) -> RequestBuilder {
        let order = json!({ "item": item, "amount": 1999 });
        self.post("/orders", &order).header("idempotency-key", key)
    }

    async fn count(&self) -> Value {
        let url = format!("http://{}/orders/count", self.address);
        self.client.get(url).send().await.unwrap().json().await.unwrap()
    }
}

/// Status, whether it is a replay, and body.
async fn answer(request: RequestBuilder) -> (StatusCode, bool, Value) {
    let response = request.send().await.unwrap();
    let replayed = response.headers().contains_key("idempotent-replayed");
    let (status, text) = (response.status(), response.text().await.unwrap());
    (status, replayed, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

#[tokio::test]
async fn it_prints_what_the_documents_show() {
    for document in [
        include_str!("../README.md"),
        include_str!("../../docs/guides/once.md"),
        include_str!("../../docs/guides/batches.md"),
    ] {
        let steps = readme::steps(document, "axum-handler");
        assert!(!steps.is_empty(), "a document has lost its example");
        let service = Service::start("memory:").await;
        for step in steps {
            step.run("127.0.0.1:3000", &service.address);
        }
    }
}

#[tokio::test]
async fn first_retry_and_changed() {
    let service = Service::start("memory:").await;
    let first = answer(service.order("1", "book")).await;
    assert_eq!((first.0, first.1), (StatusCode::CREATED, false));
    let retry = answer(service.order("1", "book")).await;
    assert_eq!((retry.0, retry.1, &retry.2), (StatusCode::CREATED, true, &first.2));
    let changed = answer(service.order("1", "lamp")).await;
    assert_eq!((changed.0.as_u16(), &changed.2["code"]), (422, &json!("key_reused")));
    let other = answer(service.order("1", "book").header("x-user-id", "bob")).await;
    assert_eq!(other.0, StatusCode::CREATED);
    let keyless = service.post("/orders", &json!({ "item": "book", "amount": 1 }));
    assert_eq!(answer(keyless).await.2["code"], "missing_key");
}

#[tokio::test]
async fn fifty_at_once_run_once() {
    let service = Service::start("memory:").await;
    let mut requests = JoinSet::new();
    for _ in 0..50 {
        requests.spawn(answer(service.order("1", "book")));
    }
    let answers = requests.join_all().await;
    let first = |it: &&(StatusCode, bool, Value)| it.0 == StatusCode::CREATED && !it.1;
    assert_eq!(answers.iter().filter(first).count(), 1);
    assert!(answers.iter().all(|it| it.0 == StatusCode::CREATED || it.2["code"] == "in_progress"));
    assert_eq!(service.count().await, json!({ "placed": 1, "charges": 1 }));
}

#[tokio::test]
async fn a_kill_loses_nothing_that_was_answered() {
    let directory = tempfile::tempdir().unwrap();
    let store = format!("sqlite:{}", directory.path().join("orders.db").display());
    let mut service = Service::start(&store).await;
    let batch = json!([
        { "key": "1", "item": "book", "amount": 1 },
        { "key": "2", "item": "lamp", "amount": 2 },
        { "key": "3", "item": "lamp", "amount": 0 },
    ]);
    let first = answer(service.order("1", "book")).await;
    let (status, _, report) = answer(service.post("/orders/batch", &batch)).await;
    assert_eq!(status, StatusCode::MULTI_STATUS);
    // One key may be used for an order and for an item of a batch: of two operations, one is refused.
    assert_eq!((&report["executed"], &report["failed"]), (&json!(1), &json!(2)));
    assert_eq!(report["items"][2], json!({ "status": 422, "error": "nothing_to_pay" }));
    service.process.kill().await.unwrap();

    let service = Service::start(&store).await;
    let retry = answer(service.order("1", "book")).await;
    assert_eq!((retry.1, &retry.2), (true, &first.2));
    let (_, _, again) = answer(service.post("/orders/batch", &batch)).await;
    assert_eq!((&again["replayed"], &again["failed"]), (&json!(1), &json!(2)));
    assert_eq!(again["items"][1]["value"], report["items"][1]["value"]);
    assert_eq!(service.count().await, json!({ "placed": 0, "charges": 0 }));
}
