//! P5: how often a request asks the store.

use std::{convert::Infallible, sync::Arc};

use axum::{Router, routing::post};
use http::StatusCode;
use retrysafe_axum::{IdempotencyLayer, MemoryStore, Scope};
use tokio::sync::Semaphore;
use tower::ServiceExt as _;

use crate::{
    Outcome,
    counting::Counting,
    measure::Effort,
    orders,
    report::{Number, Row},
};

pub(crate) fn measure(_: Effort) -> Outcome<Vec<Row>> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(count())
}

async fn count() -> Outcome<Vec<Row>> {
    let store = Counting::new(MemoryStore::new());
    let layer = IdempotencyLayer::builder(store.clone(), Scope::shared()).build()?;
    let (started, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (starts, waits) = (started.clone(), gate.clone());
    let place = move || async move {
        starts.add_permits(1);
        let _ = waits.acquire().await;
        StatusCode::CREATED
    };
    let service = Router::new().route("/orders", post(place)).layer(layer);
    let key = orders::fresh_key();
    let answer = || service.clone().oneshot(orders::request(Some(&key)));
    let status = |answer: Result<axum::response::Response, Infallible>| match answer {
        Ok(response) => response.status(),
        Err(never) => match never {},
    };

    let first = tokio::spawn(answer());
    let _ = started.acquire().await?;
    let claim = store.calls();
    let in_flight_status = status(answer().await);
    let in_flight = store.calls() - claim;
    gate.add_permits(1);
    let first_status = status(first.await?);
    let first = store.calls() - in_flight;
    let replay_status = status(answer().await);
    let replay = store.calls() - in_flight - first;

    let statuses = [first_status, in_flight_status, replay_status];
    if statuses != [StatusCode::CREATED, StatusCode::CONFLICT, StatusCode::CREATED] {
        return Err(format!("unexpected answers: {statuses:?}").into());
    }
    let calls = |calls: usize| Number::count(calls as f64);
    Ok(vec![
        Row::exactly("P5", "first: round trips to the store", calls(first), 2.0),
        Row::exactly("P5", "replay: round trips to the store", calls(replay), 1.0),
        Row::exactly("P5", "in flight: round trips to the store", calls(in_flight), 1.0),
    ])
}
