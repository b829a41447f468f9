//! What is counted of a call. What its spans show is in a test binary of its own, `spans.rs`.

use metrics_util::debugging::{DebugValue, DebuggingRecorder};

use crate::support::{Server, answer, builder};

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
