//! The journal: what was begun is known after a crash, and resumed.

use std::{path::Path, sync::Arc, time::Duration};

use retrysafe_client::{
    Client, FileJournal, IdempotencyKey, Journal, ResumedOutcome, Unknown,
    journal::{Entry, Known, Settled},
};
use retrysafe_core::OperationId;
use retrysafe_testkit::ManualClock;

use crate::support::{Reply, Server, answer, builder, closed, unknown};

type Open = fn(&Path) -> Arc<dyn Journal>;

fn file(path: &Path) -> Arc<dyn Journal> {
    Arc::new(FileJournal::open(path).unwrap())
}

#[cfg(feature = "sqlite")]
fn sqlite(path: &Path) -> Arc<dyn Journal> {
    Arc::new(retrysafe_client::SqliteJournal::open(path).unwrap())
}

fn journals() -> Vec<Open> {
    vec![
        file,
        #[cfg(feature = "sqlite")]
        sqlite,
    ]
}

fn entry(number: u8) -> Entry {
    let headers = [
        ("content-type", "application/json".parse().unwrap()),
        ("x-bytes", http::HeaderValue::from_bytes(b"\xff\xfe").unwrap()),
        ("authorization", "Bearer secret".parse().unwrap()),
        ("cookie", "session=secret".parse().unwrap()),
    ];
    let headers = headers.into_iter().map(|(name, value)| (name.parse().unwrap(), value)).collect();
    Entry::new(
        OperationId::from_bytes([number; 32]),
        IdempotencyKey::new(&format!("key \"{number}\"")).unwrap(),
        http::Method::POST,
        "http://orders.example/orders",
        &headers,
        vec![0, 255, number].into(),
        Duration::from_millis(1_000 + u64::from(number)),
    )
}

fn answered(at: u64) -> Settled {
    Settled::Answered { status: http::StatusCode::CREATED, at: Duration::from_millis(at) }
}

#[tokio::test]
async fn what_was_begun_is_there_after_a_crash() {
    for open in journals() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let journal = open(&path);
        for number in 0..4 {
            let begun = journal.begin(Arc::new(entry(number))).await.unwrap();
            assert_eq!(begun.first_sent, entry(number).first_sent);
        }
        journal.settle(OperationId::from_bytes([1; 32]), answered(2_000));
        journal.settle(OperationId::from_bytes([2; 32]), Settled::NotDone);
        // Again: it keeps its first time.
        let mut again = entry(3);
        again.first_sent = Duration::from_millis(9_000);
        let begun = journal.begin(Arc::new(again)).await.unwrap();
        assert_eq!(begun.first_sent, entry(3).first_sent);
        for round in 0..2 {
            let unknown = journal.unknown().await.unwrap();
            assert_eq!(unknown.iter().map(|it| &**it).collect::<Vec<_>>(), [&entry(0), &entry(3)]);
            assert!(unknown[0].headers.contains_key("x-bytes") && unknown[0].headers.len() == 2);
            let known = |number| journal.find(OperationId::from_bytes([number; 32]));
            assert!(matches!(known(0).await, Ok(Some(Known::Unknown(_)))));
            assert!(matches!(known(1).await, Ok(Some(Known::Answered(status))) if status == 201));
            assert!(matches!(known(2).await, Ok(None)));
            if round == 0 {
                break;
            }
        }
        drop(journal);
        let journal = open(&path);
        let unknown = journal.unknown().await.unwrap();
        assert_eq!(unknown.iter().map(|it| &**it).collect::<Vec<_>>(), [&entry(0), &entry(3)]);
        let known = journal.find(OperationId::from_bytes([1; 32])).await.unwrap();
        assert!(matches!(known, Some(Known::Answered(status)) if status == 201));
        // What is done and begun again is unknown again.
        journal.begin(Arc::new(entry(1))).await.unwrap();
        assert_eq!(journal.unknown().await.unwrap().len(), 3);
    }
}

#[tokio::test]
async fn what_was_settled_long_ago_is_forgotten_when_it_is_opened() {
    for open in journals() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let journal = open(&path);
        let week = 7 * 24 * 3600 * 1_000;
        for (number, at) in [(0, 1_000), (1, 10 + week), (2, 2_000 + week)] {
            journal.begin(Arc::new(entry(number))).await.unwrap();
            journal.settle(entry(number).operation, answered(at));
        }
        journal.begin(Arc::new(entry(3))).await.unwrap();
        drop(journal);
        let journal = open(&path);
        let known = |number: u8| journal.find(OperationId::from_bytes([number; 32]));
        assert!(known(0).await.unwrap().is_none());
        assert!(known(1).await.unwrap().is_some() && known(2).await.unwrap().is_some());
        assert_eq!(journal.unknown().await.unwrap().len(), 1, "what is unknown never is");
    }
}

#[tokio::test]
async fn a_line_that_was_cut_off_was_never_sent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let journal = FileJournal::open(&path).unwrap();
    journal.begin(Arc::new(entry(0))).await.unwrap();
    journal.begin(Arc::new(entry(1))).await.unwrap();
    drop(journal);
    let whole = std::fs::read(&path).unwrap();
    let second = whole.iter().rposition(|byte| *byte == b'{').unwrap();
    for cut in [second, second + 1, whole.len() - 1] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let journal = FileJournal::open(&path).unwrap();
        assert_eq!(journal.unknown().await.unwrap().len(), 1);
        journal.begin(Arc::new(entry(2))).await.unwrap();
        drop(journal);
        let journal = FileJournal::open(&path).unwrap();
        assert_eq!(journal.unknown().await.unwrap().len(), 2);
    }
}

#[tokio::test]
async fn what_is_no_journal_or_in_use_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    for text in ["hello\n", "hello", "{\"begin\":1}\n"] {
        std::fs::write(&path, text).unwrap();
        let refused = FileJournal::open(&path).unwrap_err().to_string();
        assert!(refused.contains("journal"), "{refused}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "it is left as it is");
    }
    std::fs::remove_file(&path).unwrap();
    let journal = FileJournal::open(&path).unwrap();
    let refused = FileJournal::open(&path).unwrap_err().to_string();
    assert!(refused.contains("is in use"), "{refused}");
    drop(journal);
    assert!(FileJournal::open(&path).is_ok());
    let nowhere = FileJournal::open(folder.path().join("no/such/folder")).unwrap_err();
    assert!(nowhere.to_string().contains("no/such/folder"));

    #[cfg(feature = "sqlite")]
    {
        let path = folder.path().join("table");
        let journal = retrysafe_client::SqliteJournal::open(&path).unwrap();
        assert!(retrysafe_client::SqliteJournal::open(&path).is_err());
        drop(journal);
        assert!(retrysafe_client::SqliteJournal::open(&path).is_ok());
    }
}

fn with(journal: &Arc<dyn Journal>) -> Client {
    builder().shared_journal(journal.clone()).build().unwrap()
}

#[tokio::test]
async fn resume_finds_out_what_became_of_it() {
    for open in journals() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        // Three attempts end without an answer; then the server is well again.
        let replies = vec![Reply::Reset, Reply::Truncated, answer(500)];
        let replay = answer(201).with("idempotent-replayed", "true").saying("order 1");
        let server = Server::replying([replies, vec![replay]].concat()).await;
        let journal = open(&path);
        let order = with(&journal).post(server.url("/orders?a=b")).header("x-tenant", "7");
        let order = order.bearer_auth("secret").body("book");
        let key = unknown(order.send().await).key().clone();
        drop(journal);

        let raw = std::fs::read(&path).unwrap();
        assert!(!raw.windows(6).any(|it| it == b"secret"), "credentials are not on the disk");
        let journal = open(&path);
        let client = builder()
            .shared_journal(journal.clone())
            .before_resuming(|request| {
                request.headers_mut().insert("authorization", "Bearer new".parse().unwrap());
            })
            .build()
            .unwrap();
        let mut resumed = client.resume().await.unwrap();
        assert_eq!(resumed.len(), 1);
        let resumed = resumed.remove(0);
        assert_eq!(resumed.key(), &key);
        assert_eq!(resumed.request().url, server.url("/orders?a=b"));
        let ResumedOutcome::Answered(response) = resumed.into_outcome() else { panic!() };
        assert_eq!(response.text().await.unwrap(), "order 1");
        let seen = server.seen();
        let last = seen.last().unwrap();
        assert_eq!((last.body.as_str(), last.path.as_str()), ("book", "/orders?a=b"));
        assert_eq!(
            (last.header("x-tenant"), last.header("authorization")),
            (Some("7"), Some("Bearer new"))
        );
        assert_eq!(last.key(), key.as_str());
        assert!(client.resume().await.unwrap().is_empty(), "it is known now");
    }
}

#[tokio::test]
async fn resume_leaves_alone_what_is_being_made() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::replying(vec![Reply::Silence, answer(201)]).await;
    let journal = file(&folder.path().join("journal"));
    let client = with(&journal);
    let call = tokio::spawn(client.post(server.url("/")).send());
    server.is_asked().await;
    assert!(client.resume().await.unwrap().is_empty());
    // A caller that hangs up leaves an operation that nobody knows the outcome of.
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    let resumed = client.resume().await.unwrap();
    assert!(matches!(resumed[0].outcome(), ResumedOutcome::Answered(it) if it.status() == 201));
    let seen = server.seen();
    assert_eq!(seen[0].key(), seen[1].key());
}

#[tokio::test]
async fn what_was_surely_not_done_is_not_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let journal = file(&folder.path().join("journal"));
    let client = with(&journal);
    client.post(closed().await).send().await.unwrap_err();
    let server = Server::replying(vec![answer(429)]).await;
    assert_eq!(client.post(server.url("/")).send().await.unwrap().status(), 429);
    assert!(client.resume().await.unwrap().is_empty());
}

#[tokio::test]
async fn c5_resume_does_not_ask_for_what_the_server_may_have_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let server =
        Server::replying(vec![Reply::Reset, Reply::Reset, Reply::Reset, answer(201)]).await;
    let client = builder()
        .clock(Arc::new(clock.clone()))
        .journal(FileJournal::open(folder.path().join("journal")).unwrap())
        .build()
        .unwrap();
    unknown(client.post(server.url("/")).send().await);
    clock.advance(Duration::from_secs(24 * 3600));
    let resumed = client.resume().await.unwrap();
    let ResumedOutcome::Unknown(unknown) = resumed[0].outcome() else { panic!("{resumed:?}") };
    assert_eq!(unknown.why(), Unknown::Retention);
    assert_eq!(server.asked(), 3);
    // It stays in the journal: somebody has to look.
    assert_eq!(client.resume().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_stream_is_settled_at_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let stream = answer(200).with("content-type", "text/event-stream");
    let server = Server::replying(vec![stream]).await;
    let client = with(&file(&folder.path().join("journal")));
    // Cut off by the caller.
    drop(client.post(server.url("/")).send().await.unwrap());
    let resumed = client.resume().await.unwrap();
    let [resumed] = resumed.try_into().unwrap();
    let ResumedOutcome::Answered(response) = resumed.into_outcome() else { panic!() };
    assert_eq!(response.text().await.unwrap(), "done");
    assert!(client.resume().await.unwrap().is_empty());
}
