//! Batches: what is done is not sent again.

use retrysafe_client::{BatchItem, Client, FileJournal, ItemOutcome};

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
