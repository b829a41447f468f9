//! C3: a server that fails everything is not drowned in retries.

use retrysafe_client::OutcomeUnknown;

use crate::support::{Server, answer, builder, impatient};

#[tokio::test]
async fn c3_the_extra_load_on_a_server_that_fails_everything() {
    for (calls, status) in [(300, 500), (2_000, 500), (2_000, 429)] {
        let server = Server::replying(vec![answer(status)]).await;
        let client = builder().retries(impatient()).build().unwrap();
        for _ in 0..calls {
            let sent = client.post(server.url("/")).send().await;
            match status {
                500 => assert!(OutcomeUnknown::of(&sent.unwrap_err()).is_some()),
                _ => assert_eq!(sent.unwrap().status(), status),
            }
        }
        let extra = server.asked() - calls;
        let share = extra as f64 / calls as f64;
        println!("{calls} calls, all answered {status}: {extra} retries, {:.1} %", share * 100.0);
        // Five hundred tokens, fourteen or five for a retry, and nothing is earned.
        assert_eq!(extra, if status == 500 { 500 / 14 } else { 500 / 5 });
        assert!(share <= 0.22);
    }
}

#[tokio::test]
async fn c3_half_of_all_calls_fail() {
    // Every second call is answered 500, whatever is tried.
    let server = Server::start(|_, seen| match seen.body.as_str() {
        "bad" => answer(500),
        _ => answer(201),
    })
    .await;
    let client = builder().retries(impatient()).build().unwrap();
    let calls = 4_000;
    for number in 0..calls {
        let body = if number % 2 == 0 { "bad" } else { "good" };
        let _ = client.post(server.url("/")).body(body).send().await;
    }
    let extra = server.asked() - calls;
    let share = extra as f64 / calls as f64;
    println!("{calls} calls, half of them answered 500: {extra} retries, {:.1} %", share * 100.0);
    assert!(share <= 0.22, "{share}");
}

#[tokio::test]
async fn c3_each_authority_has_a_budget_of_its_own() {
    let bad = Server::replying(vec![answer(500)]).await;
    let good = Server::replying(vec![answer(500), answer(201)]).await;
    let client = builder().retries(impatient()).build().unwrap();
    for _ in 0..100 {
        let _ = client.post(bad.url("/")).send().await;
    }
    assert_eq!(bad.asked(), 135, "its budget is spent");
    assert_eq!(client.post(good.url("/")).send().await.unwrap().status(), 201);
}
