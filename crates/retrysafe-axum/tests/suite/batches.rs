//! A batch endpoint and its 207.

use std::sync::{Arc, Mutex};

use axum::{Json, Router, extract::State, http::StatusCode, response::IntoResponse, routing::post};
use retrysafe_axum::{MemoryStore, MultiStatus, Once, OnceError, ProblemStyle, Scope};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::support::*;

#[derive(Clone)]
struct App {
    once: Once<MemoryStore>,
    /// What is failing just now.
    broken: Arc<Mutex<bool>>,
    runs: Runs,
}

#[derive(Serialize, Deserialize)]
struct Order {
    key: String,
    item: String,
}

#[derive(Serialize, Deserialize)]
enum Refusal {
    SoldOut,
    Secret(String),
}

async fn create(State(app): State<App>, Json(orders): Json<Vec<Order>>) -> impl IntoResponse {
    let (runs, broken) = (app.runs.clone(), *app.broken.lock().unwrap());
    let batch = app.once.run_each(
        "create",
        &Scope::shared(),
        orders,
        |order| order.key.clone(),
        move |order, _| {
            let run = runs.count();
            async move {
                match order.item.as_str() {
                    "unicorn" => Err(Refusal::SoldOut),
                    "lamp" if broken => Err(Refusal::Secret("password".to_owned())),
                    _ => Ok(json!({ "order": run })),
                }
            }
        },
    );
    let report = batch.concurrency(1).keep_if(|it| matches!(it, Refusal::SoldOut)).await;
    MultiStatus::new(report).problems(ProblemStyle::default().base("https://e.test/"))
}

#[tokio::test]
async fn each_item_has_its_own_status() {
    let once = Once::builder(MemoryStore::new()).build().unwrap();
    let broken = Arc::new(Mutex::new(true));
    let app = App { once, broken: broken.clone(), runs: Runs::default() };
    let router = Router::new().route("/orders", post(create)).with_state(app.clone());
    let send = |orders: Value| {
        let mut request = crate::support::post("/orders", orders.to_string());
        request.headers_mut().remove("idempotency-key");
        request.headers_mut().insert("content-type", "application/json".parse().unwrap());
        call(&router, request)
    };
    let orders = json!([
        { "key": "1", "item": "book" },
        { "key": "2", "item": "unicorn" },
        { "key": "3", "item": "lamp" },
        { "key": "1", "item": "chair" },
        { "key": "", "item": "table" },
    ]);
    let answer = send(orders.clone()).await;
    assert_eq!(answer.status, StatusCode::MULTI_STATUS);
    let body = answer.json();
    assert_eq!(
        (&body["executed"], &body["replayed"], &body["failed"]),
        (&json!(1), &json!(0), &json!(4))
    );
    let items = body["items"].as_array().unwrap();
    assert_eq!(items[0], json!({ "status": 200, "value": { "order": 1 } }));
    assert_eq!(items[1], json!({ "status": 422, "error": "SoldOut" }));
    // What was not kept is nobody's to see.
    assert_eq!(
        (&items[2]["status"], &items[2]["problem"]["code"]),
        (&json!(500), &json!("handler_failed"))
    );
    assert!(!String::from_utf8_lossy(&answer.body).contains("password"));
    assert_eq!(
        (&items[3]["status"], &items[3]["problem"]["code"]),
        (&json!(422), &json!("key_reused"))
    );
    assert_eq!(items[3]["problem"]["type"], "https://e.test/key_reused");
    assert_eq!(
        (&items[4]["status"], &items[4]["problem"]["reason"]),
        (&json!(400), &json!("empty"))
    );

    *broken.lock().unwrap() = false;
    let body = send(orders).await.json();
    assert_eq!(
        (&body["executed"], &body["replayed"], &body["failed"]),
        (&json!(1), &json!(1), &json!(3))
    );
    let items = &body["items"];
    assert_eq!(items[0], json!({ "status": 200, "value": { "order": 1 }, "replayed": true }));
    assert_eq!(items[1], json!({ "status": 422, "error": "SoldOut", "replayed": true }));
    assert_eq!(items[2], json!({ "status": 200, "value": { "order": 4 } }));
    assert_eq!(app.runs.so_far(), 4);
}

/// Kept, the first answer would be that of the items too, whatever has become of them since.
#[tokio::test]
async fn e4_behind_a_layer_a_batch_is_kept_when_its_items_are_settled() {
    let once = Once::builder(MemoryStore::new()).build().unwrap();
    let broken = Arc::new(Mutex::new(true));
    let app = App { once, broken: broken.clone(), runs: Runs::default() };
    let router = Router::new()
        .route("/orders", post(create))
        .with_state(app.clone())
        .layer(crate::support::layer());
    let send = || {
        let orders = json!([
            { "key": "1", "item": "book" },
            { "key": "2", "item": "unicorn" },
            { "key": "3", "item": "lamp" },
        ]);
        let mut request = crate::support::post("/orders", orders.to_string());
        request.headers_mut().insert("content-type", "application/json".parse().unwrap());
        call(&router, request)
    };
    let lamp = |answer: Answer| answer.json()["items"][2]["status"].clone();
    assert_eq!(lamp(send().await), 500);
    assert_eq!(lamp(send().await), 500);

    *broken.lock().unwrap() = false;
    assert_eq!(lamp(send().await), 200);
    let replay = send().await;
    assert_eq!(replay.headers["idempotent-replayed"], "true");
    assert_eq!(lamp(replay), 200);
    // Three orders, and two tries more of the one that failed.
    assert_eq!(app.runs.so_far(), 5);
}

#[tokio::test]
async fn an_item_in_progress_says_when_to_try_again() {
    let once = Once::builder(MemoryStore::new()).build().unwrap();
    let started = Arc::new(tokio::sync::Notify::new());
    let (running, at_work) = (once.clone(), started.clone());
    tokio::spawn(async move {
        let first = running.run("create", &Scope::shared(), "1", "book", move |_| async move {
            at_work.notify_one();
            std::future::pending::<Result<(), String>>().await
        });
        first.await
    });
    started.notified().await;
    let report = once.run_each(
        "create",
        &Scope::shared(),
        ["book"],
        |_| "1",
        |_, _| async { Ok::<(), String>(()) },
    );
    let report = report.await;
    assert!(matches!(&report.items[0], Err(error) if !error.is_definite()));
    let response = MultiStatus::new(report).into_response();
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let item = serde_json::from_slice::<Value>(&body).unwrap()["items"][0].clone();
    assert_eq!((&item["status"], &item["retry_after"]), (&json!(409), &json!(1)));
    assert_eq!(item["problem"]["code"], "in_progress");
}

#[test]
fn an_error_stands_for_one_status() {
    let style = ProblemStyle::default();
    let kept = OnceError::<()>::Undecodable(serde_json::from_str::<()>("x").unwrap_err());
    assert_eq!(kept.status(&style).as_u16(), 409);
}

/// A value is kept as JSON's text, and some have no other that is as exact.
#[tokio::test]
async fn an_item_is_shown_as_it_is_kept() {
    const WEI: u128 = u64::MAX as u128 + 1;
    let once = Once::builder(MemoryStore::new()).build().unwrap();
    for flag in ["", "\"replayed\":true,"] {
        let prices = once.run_each(
            "price",
            &Scope::shared(),
            ["book"],
            |item| *item,
            |_, _| async { Ok::<(u128, f32), ()>((WEI, 0.1)) },
        );
        let response = MultiStatus::new(prices.await).into_response();
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let shown = format!("[{{{flag}\"status\":200,\"value\":[{WEI},0.1]}}]");
        let body = String::from_utf8_lossy(&body);
        assert!(body.contains(&shown), "{body}");
    }
}

/// It was done, and there is no way to say with what result.
#[tokio::test]
async fn r4_an_item_that_json_can_not_write_is_unavailable() {
    let once = Once::builder(MemoryStore::new()).build().unwrap();
    let prices = once.run_each(
        "price",
        &Scope::shared(),
        ["book"],
        |item| *item,
        |_, _| async { Ok::<_, ()>(std::collections::BTreeMap::from([((1, 2), 3)])) },
    );
    let response = MultiStatus::new(prices.await).into_response();
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let item = serde_json::from_slice::<Value>(&body).unwrap()["items"][0].clone();
    assert_eq!((&item["status"], &item["value"]), (&json!(409), &Value::Null));
    assert_eq!(item["problem"]["code"], "response_unavailable");
}
