//! Batches: what is done is not sent again.

use std::{sync::Arc, time::Duration};

use retrysafe_client::{BatchItem, Client, FileJournal, ItemOutcome};
use retrysafe_testkit::ManualClock;

use crate::support::{Reply, Server, answer, builder};

fn open(folder: &tempfile::TempDir) -> Client {
    let journal = FileJournal::open(folder.path().join("journal")).unwrap();
    builder().journal(journal).build().unwrap()
}

fn items(server: &Server, ids: &[&'static str]) -> Vec<(&'static str, reqwest::Request)> {
    let request = |id: &&'static str| {
        let mut request =
            reqwest::Request::new(reqwest::Method::POST, server.url("/payouts").parse().unwrap());
        *request.body_mut() = Some(format!("pay {id}").into());
        (*id, request)
    };
    ids.iter().map(request).collect()
}

fn told(items: &[BatchItem]) -> Vec<(&str, &'static str)> {
    let word = |item: &BatchItem| match &item.outcome {
        ItemOutcome::Done(_) => "done",
        ItemOutcome::DoneBefore(_) => "before",
        ItemOutcome::Refused(_) => "refused",
        ItemOutcome::Unknown(_) => "unknown",
        ItemOutcome::Failed(_) => "failed",
    };
    items.iter().map(|item| (item.id.as_str(), word(item))).collect()
}

#[tokio::test]
async fn only_the_rest_is_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    // `c` breaks and `d` is refused, in the first run.
    let server = Server::start(|number, seen| match seen.body.as_str() {
        "pay c" if number < 8 => Reply::Reset,
        "pay d" if number < 8 => answer(400),
        _ => answer(201),
    })
    .await;
    let client = open(&folder);
    let batch = client.batch("2026-11").unwrap().at_once(1);
    let sent = batch.send(items(&server, &["a", "b", "c", "d", "a"])).await.unwrap();
    assert_eq!(
        told(&sent),
        [("a", "done"), ("b", "done"), ("c", "unknown"), ("d", "refused"), ("a", "before")]
    );
    let asked = server.asked();
    drop((batch, client));

    // Another process.
    let client = open(&folder);
    while server.asked() < 8 {
        client.http().get(server.url("/")).send().await.unwrap();
    }
    let before = server.asked();
    assert!(before >= asked);
    let batch = client.batch("2026-11").unwrap();
    let again = batch.send(items(&server, &["a", "b", "c", "d", "e"])).await.unwrap();
    assert_eq!(
        told(&again),
        [("a", "before"), ("b", "before"), ("c", "done"), ("d", "done"), ("e", "done")]
    );
    let seen = server.seen();
    let mut bodies: Vec<_> = seen[before..].iter().map(|it| it.body.as_str()).collect();
    bodies.sort_unstable();
    assert_eq!(bodies, ["pay c", "pay d", "pay e"]);
    // An item has one key in every run, and another batch other keys.
    for item in sent.iter().take(4) {
        let body = format!("pay {}", item.id);
        let keys = seen.iter().filter(|it| it.body == body).map(|it| it.key());
        assert!(keys.into_iter().all(|it| it == item.key.as_str()));
    }
    let other = client.batch("2026-12").unwrap().send(items(&server, &["a"])).await.unwrap();
    assert_ne!(other[0].key, sent[0].key);
    assert_eq!(told(&other), [("a", "done")]);
}

#[tokio::test]
async fn a_batch_needs_a_journal() {
    let client = builder().build().unwrap();
    assert_eq!(client.batch("b").unwrap_err().setting(), "journal");
}

#[tokio::test]
async fn a_batch_of_last_year_is_not_paid_again() {
    // What was done was forgotten after a week, and what is not known is sent.
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let open = || {
        let journal = FileJournal::open(folder.path().join("journal")).unwrap();
        builder().clock(Arc::new(clock.clone())).journal(journal).build().unwrap()
    };
    let server = Server::replying(vec![answer(201)]).await;
    let send = async |client: Client, name: &str| {
        let sent = client.batch(name).unwrap().send(items(&server, &["a", "b"])).await.unwrap();
        sent.iter().map(|it| matches!(it.outcome, ItemOutcome::DoneBefore(_))).collect::<Vec<_>>()
    };
    assert_eq!(send(open(), "2026-11").await, [false, false]);
    clock.advance(Duration::from_secs(365 * 24 * 3600));
    assert_eq!(send(open(), "2027-11").await, [false, false]);
    assert_eq!(send(open(), "2026-11").await, [true, true]);
    assert_eq!(server.asked(), 4);
}

#[tokio::test]
async fn a_batch_that_was_refused_for_want_of_credentials_is_sent_later() {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let journal = FileJournal::open(folder.path().join("journal")).unwrap();
    let client = builder().clock(Arc::new(clock.clone())).journal(journal).build().unwrap();
    let server = Server::replying(vec![answer(401), answer(201)]).await;
    let batch = client.batch("2026-11").unwrap();
    assert_eq!(told(&batch.send(items(&server, &["a"])).await.unwrap()), [("a", "refused")]);
    // Longer than the server remembers keys: nothing was done under this one.
    clock.advance(Duration::from_secs(3 * 24 * 3600));
    assert_eq!(told(&batch.send(items(&server, &["a"])).await.unwrap()), [("a", "done")]);
}
