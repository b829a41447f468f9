//! P10: a thousand concurrent duplicates of one key that wait for the first.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, routing::post};
use futures_util::future::join_all;
use http::StatusCode;
use http_body_util::BodyExt as _;
use retrysafe_axum::{IdempotencyLayer, MemoryStore, OnInFlight, Scope};
use tokio::sync::{Notify, Semaphore};
use tower::{Layer as _, ServiceExt as _};

use crate::{
    Outcome,
    counting::Counting,
    measure::{Effort, median},
    orders,
    report::{Number, Row},
};

const DUPLICATES: usize = 1_000;

pub(crate) fn measure(effort: Effort) -> Outcome<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut executions = 0;
    let mut lags = Vec::new();
    for _ in 0..effort.rounds(30) {
        let seen = runtime.block_on(once())?;
        executions = executions.max(seen.executions);
        lags.push(seen.lag.as_secs_f64() * 1e3);
    }
    let millis = |value| Number::of(value, 2, "ms");
    let worst = lags.iter().copied().fold(0.0, f64::max);
    Ok(vec![
        Row::exactly("P10", "1,000 duplicates: executions", Number::count(executions as f64), 1.0),
        Row::at_most("P10", "completion to the last answer, median", millis(median(lags)), 5.0),
        Row::shown("P10", "completion to the last answer, worst", millis(worst)),
    ])
}

struct Seen {
    executions: usize,
    /// From the end of the handler to the last answer.
    lag: Duration,
}

async fn once() -> Outcome<Seen> {
    let store = Counting::new(MemoryStore::new());
    let layer = IdempotencyLayer::builder(store.clone(), Scope::shared())
        .on_in_flight(OnInFlight::wait(Duration::from_secs(30)))
        .build()?;
    let gate = Arc::new(Semaphore::new(0));
    let executions = Arc::new(AtomicUsize::new(0));
    let completed = Arc::new(Mutex::new(None));
    let place = {
        let (gate, executions, completed) = (gate.clone(), executions.clone(), completed.clone());
        move || async move {
            executions.fetch_add(1, Ordering::Relaxed);
            let _ = gate.acquire().await;
            *completed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            (StatusCode::CREATED, orders::ORDER)
        }
    };
    let service = layer.layer(Router::new().route("/orders", post(place)));
    let key = orders::fresh_key();
    // Told once by the last of them, so that nothing but the answers is timed.
    let answered = Arc::new((AtomicUsize::new(0), Notify::new()));
    let duplicates: Vec<_> = (0..DUPLICATES)
        .map(|_| {
            let answer = service.clone().oneshot(orders::request(Some(&key)));
            let answered = answered.clone();
            tokio::spawn(async move {
                let response = match answer.await {
                    Ok(response) => response,
                    Err(never) => match never {},
                };
                let status = response.status();
                let whole = response.into_body().collect().await?.to_bytes() == orders::ORDER;
                let at = Instant::now();
                if answered.0.fetch_add(1, Ordering::Relaxed) + 1 == DUPLICATES {
                    answered.1.notify_one();
                }
                Outcome::Ok((status == StatusCode::CREATED && whole, at))
            })
        })
        .collect();
    // All have asked the store; the one that has the turn asks once more, and watches it.
    while store.calls() < DUPLICATES + 1 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    gate.add_permits(1);
    // An answer that fails is found below.
    let _ = tokio::time::timeout(Duration::from_secs(30), answered.1.notified()).await;

    let mut last = None;
    for answer in join_all(duplicates).await {
        let (good, at) = answer??;
        if !good {
            return Err("a duplicate got another answer than the first".into());
        }
        last = last.max(Some(at));
    }
    let completed = *completed.lock().unwrap_or_else(PoisonError::into_inner);
    let lag = last.zip(completed).map(|(last, completed)| last.duration_since(completed));
    Ok(Seen {
        executions: executions.load(Ordering::Relaxed),
        lag: lag.ok_or("the handler never ran")?,
    })
}
