//! The journal: what was begun is known after a crash, and resumed.

use std::{
    error::Error as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use retrysafe_client::{
    Client, Dialect, FileJournal, IdempotencyKey, Journal, OutcomeUnknown, ResumedOutcome, Unknown,
    journal::{Before, Begun, Entry, JournalError, Known, Settled},
};
use retrysafe_core::OperationId;
use retrysafe_testkit::ManualClock;

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use crate::support::{Reply, Server, answer, builder, closed, problem, unknown};

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
            assert_eq!((begun.first_sent, begun.before), (entry(number).first_sent, None));
        }
        journal.settle(OperationId::from_bytes([1; 32]), answered(2_000));
        journal.settle(OperationId::from_bytes([2; 32]), Settled::NotDone);
        // Again: it keeps its first time.
        let mut again = entry(3);
        again.first_sent = Duration::from_millis(9_000);
        let begun = journal.begin(Arc::new(again)).await.unwrap();
        assert_eq!((begun.first_sent, begun.before), (entry(3).first_sent, Some(Before::Unknown)));
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
        let begun = journal.begin(Arc::new(entry(1))).await.unwrap();
        assert_eq!(begun.before, Some(Before::Answered(http::StatusCode::CREATED)));
        assert_eq!(journal.unknown().await.unwrap().len(), 3);
    }
}

#[tokio::test]
async fn what_was_settled_long_ago_is_forgotten_when_it_is_opened() {
    for open in journals() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let journal = open(&path);
        let limit = 400 * 24 * 3600 * 1_000;
        for (number, at) in [(0, 1_000), (1, 10 + limit), (2, 2_000 + limit)] {
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

/// An error and its causes: each says something that the others do not.
fn told(error: &JournalError) -> (String, String) {
    let (alone, mut chain) = (error.to_string(), error.to_string());
    let mut cause = error.source();
    while let Some(error) = cause {
        assert!(!chain.contains(&error.to_string()), "{chain}: {error}");
        chain = format!("{chain}: {error}");
        cause = error.source();
    }
    (alone, chain)
}

#[tokio::test]
async fn an_error_printed_alone_names_the_journal_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let refused = |path: &Path| told(&FileJournal::open(path).unwrap_err());

    let (alone, chain) = refused(&folder.path().join("no/journal"));
    assert!(alone.contains("no/journal") && alone.contains("make it"), "{alone}");
    assert!(chain.contains("os error"), "{chain}");
    let (alone, _) = refused(folder.path());
    assert!(alone.contains("name a file"), "{alone}");
    let journal = FileJournal::open(&path).unwrap();
    let (alone, _) = refused(&path);
    assert!(alone.contains("is in use") && alone.contains("of its own"), "{alone}");
    drop(journal);

    #[cfg(feature = "sqlite")]
    {
        use retrysafe_client::SqliteJournal;

        let refused = |path: &Path| told(&SqliteJournal::open(path).unwrap_err());
        let (alone, chain) = refused(&folder.path().join("no/table"));
        assert!(alone.contains("no/table") && alone.contains("make it"), "{alone}");
        assert!(chain.contains("os error"), "{chain}");
        let (alone, _) = refused(folder.path());
        assert!(alone.contains("name a file"), "{alone}");
        let (alone, chain) = refused(&path);
        assert!(alone.contains("damaged") && alone.contains("move it away"), "{alone}");
        assert!(chain.contains("not a database"), "{chain}");
        let path = folder.path().join("table");
        let _journal = SqliteJournal::open(&path).unwrap();
        let (alone, _) = refused(&path);
        assert!(alone.contains("is in use") && alone.contains("of its own"), "{alone}");
    }
}

#[tokio::test]
async fn a_damaged_line_is_named_and_the_rest_is_there_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let journal = FileJournal::open(&path).unwrap();
    for number in 0..3 {
        journal.begin(Arc::new(entry(number))).await.unwrap();
    }
    drop(journal);
    let mut whole = std::fs::read(&path).unwrap();
    let third =
        whole.split(|byte| *byte == b'\n').take(2).map(|line| line.len() + 1).sum::<usize>();
    whole[third] = 0;
    std::fs::write(&path, &whole).unwrap();

    let (alone, _) = told(&FileJournal::open(&path).unwrap_err());
    for says in ["line 3", "Keep a copy", "delete the line", "executed twice"] {
        assert!(alone.contains(says), "{alone}");
    }
    assert_eq!(std::fs::read(&path).unwrap(), whole, "it is left as it is");

    let lines = whole.split_inclusive(|byte| *byte == b'\n').enumerate();
    let kept: Vec<_> = lines.filter(|(number, _)| *number != 2).flat_map(|(_, it)| it).collect();
    std::fs::write(&path, kept.into_iter().copied().collect::<Vec<_>>()).unwrap();
    let unknown = FileJournal::open(&path).unwrap().unknown().await.unwrap();
    assert_eq!(unknown.iter().map(|it| &**it).collect::<Vec<_>>(), [&entry(0), &entry(2)]);
}

#[tokio::test]
async fn a_journal_whose_first_line_a_crash_cut_off_is_a_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    drop(FileJournal::open(&path).unwrap());
    let whole = std::fs::read(&path).unwrap();
    for cut in 0..whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        drop(FileJournal::open(&path).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }
}

/// Fails to keep anything, as a full disk does.
struct Full;

impl Journal for Full {
    fn begin(&self, _: Arc<Entry>) -> BoxFuture<'_, Result<Begun, JournalError>> {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        Box::pin(async { Err(JournalError::new("the journal orders can't be written", full)) })
    }

    fn settle(&self, _: OperationId, _: Settled) {}

    fn find(&self, _: OperationId) -> BoxFuture<'_, Result<Option<Known>, JournalError>> {
        Box::pin(async { Ok(None) })
    }

    fn unknown(&self) -> BoxFuture<'_, Result<Vec<Arc<Entry>>, JournalError>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

#[tokio::test]
async fn what_the_journal_can_t_keep_is_not_sent_and_the_error_says_so_once() {
    let server = Server::replying(vec![answer(201)]).await;
    let client = builder().journal(Full).build().unwrap();
    let error = client.post(server.url("/")).send().await.unwrap_err();
    assert_eq!(server.asked(), 0);
    let alone = "nothing was sent: the journal orders can't be written";
    assert_eq!(error.to_string(), alone);
    let reqwest_middleware::Error::Middleware(error) = error else { panic!("{error}") };
    let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
    assert_eq!(format!("{error:#}"), format!("{alone}: {full}"));
}

/// A journal that the test looks into as well.
struct Watched(Arc<dyn Journal>);

impl Journal for Watched {
    fn begin(&self, entry: Arc<Entry>) -> BoxFuture<'_, Result<Begun, JournalError>> {
        self.0.begin(entry)
    }

    fn settle(&self, operation: OperationId, settled: Settled) {
        self.0.settle(operation, settled);
    }

    fn find(&self, operation: OperationId) -> BoxFuture<'_, Result<Option<Known>, JournalError>> {
        self.0.find(operation)
    }

    fn unknown(&self) -> BoxFuture<'_, Result<Vec<Arc<Entry>>, JournalError>> {
        self.0.unknown()
    }
}

fn with(journal: &Arc<dyn Journal>) -> Client {
    builder().journal(Watched(journal.clone())).build().unwrap()
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
        let order = order.header("x-api-key", "secret").bearer_auth("secret").body("book");
        let key = unknown(order.send().await).key().clone();
        drop(journal);

        let raw = std::fs::read(&path).unwrap();
        assert!(!raw.windows(6).any(|it| it == b"secret"), "credentials are not on the disk");
        let journal = open(&path);
        let client = builder()
            .journal(Watched(journal.clone()))
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
    for open in journals() {
        let folder = tempfile::tempdir().unwrap();
        let client = with(&open(&folder.path().join("journal")));
        let error = client.post(closed().await).send().await.unwrap_err();
        assert!(OutcomeUnknown::of(&error).is_none(), "{error:?}");
        for status in [401, 429] {
            let server = Server::replying(vec![answer(status)]).await;
            assert_eq!(client.post(server.url("/")).send().await.unwrap().status(), status);
        }
        assert!(client.resume().await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_clock_that_is_set_back_makes_nothing_new() {
    for open in journals() {
        let folder = tempfile::tempdir().unwrap();
        let journal = open(&folder.path().join("journal"));
        let clock = ManualClock::new();
        let client = builder().clock(Arc::new(clock.clone())).journal(Watched(journal.clone()));
        let client = client.build().unwrap();
        let server = Server::replying(vec![Reply::Reset]).await;
        let url = server.url("/");
        let key = unknown(client.post(&url).send().await).key().clone();
        // Now nobody is there any more.
        drop(server);
        clock.set_wall(Duration::from_secs(1_000_000_000));
        unknown(client.post(&url).with_extension(key).send().await);
        assert_eq!(journal.unknown().await.unwrap().len(), 1, "it may have been executed");
    }
}

#[tokio::test]
async fn c5_what_was_answered_is_not_made_unknown_by_what_is_not_sent() {
    for open in journals() {
        let folder = tempfile::tempdir().unwrap();
        let journal = open(&folder.path().join("journal"));
        let clock = ManualClock::new();
        let client = builder().clock(Arc::new(clock.clone())).journal(Watched(journal.clone()));
        let client = client.build().unwrap();
        let server = Server::replying(vec![answer(201)]).await;
        let key = IdempotencyKey::new("order-7").unwrap();
        let order = || client.post(server.url("/")).with_extension(key.clone()).send();
        order().await.unwrap();
        clock.advance(Duration::from_secs(24 * 3600));
        let unknown = unknown(order().await);
        assert_eq!((unknown.why(), server.asked()), (Unknown::Retention, 1));
        let known = journal.find(*unknown.operation()).await.unwrap();
        assert!(matches!(known, Some(Known::Answered(status)) if status == 201), "{known:?}");
    }
}

#[tokio::test]
async fn c4_what_a_server_that_keeps_no_keys_may_have_executed_is_not_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let journal = file(&folder.path().join("journal"));
    let client = builder().dialect(Dialect::openai_compatible()).journal(Watched(journal));
    let client = client.build().unwrap();
    let server = Server::replying(vec![Reply::Reset, answer(200)]).await;
    unknown(client.post(server.url("/")).send().await);
    for _ in 0..2 {
        let resumed = client.resume().await.unwrap();
        let ResumedOutcome::Unknown(unknown) = resumed[0].outcome() else { panic!("{resumed:?}") };
        assert_eq!(unknown.why(), Unknown::NoKeysKept);
    }
    assert_eq!(server.asked(), 1);
}

#[tokio::test]
async fn resume_leaves_alone_what_was_not_done_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let client = with(&file(&folder.path().join("journal")));
    // As many as are asked for at a time are unknown; another call is refused while they are.
    let ((go, wait), (refuse, until)) = (watch::channel(false), watch::channel(false));
    let well = Arc::new(AtomicBool::new(false));
    let server = Server::start({
        let well = well.clone();
        move |_, seen| match (seen.path.as_str(), well.load(Ordering::SeqCst)) {
            ("/old", false) => problem(409, "outcome_unknown"),
            ("/old", true) => Reply::Once(wait.clone(), Box::new(answer(201))),
            _ => Reply::Once(until.clone(), Box::new(answer(429))),
        }
    })
    .await;
    for _ in 0..16 {
        unknown(client.post(server.url("/old")).send().await);
    }
    well.store(true, Ordering::SeqCst);
    let new = tokio::spawn(client.post(server.url("/new")).send());
    server.is_asked_times(17).await;
    let resumed = tokio::spawn({
        let client = client.clone();
        async move { client.resume().await.unwrap() }
    });
    server.is_asked_times(17 + 16).await;
    refuse.send(true).unwrap();
    // Its caller is told that nothing was done, and may order anew.
    assert_eq!(new.await.unwrap().unwrap().status(), 429);
    go.send(true).unwrap();
    assert_eq!(resumed.await.unwrap().len(), 16);
    assert_eq!(server.seen().iter().filter(|it| it.path == "/new").count(), 3);
}

#[tokio::test]
async fn loser_frees_owner() {
    // The first of two calls with one key did nothing: that says nothing of the second.
    for open in journals() {
        let folder = tempfile::tempdir().unwrap();
        let journal = open(&folder.path().join("journal"));
        let client = with(&journal);
        let (refuse, until) = watch::channel(false);
        let server = Server::start(move |_, seen| match seen.body.as_str() {
            "refused" => Reply::Once(until.clone(), Box::new(answer(429))),
            _ => Reply::Silence,
        })
        .await;
        let key = IdempotencyKey::new("order-7").unwrap();
        let order = |body: &'static str| {
            client.post(server.url("/")).with_extension(key.clone()).body(body).send()
        };
        let first = tokio::spawn(order("refused"));
        server.is_asked_times(1).await;
        let second = tokio::spawn(order("received"));
        server.is_asked_times(2).await;
        refuse.send(true).unwrap();
        assert_eq!(first.await.unwrap().unwrap().status(), 429);
        second.abort();
        assert!(second.await.unwrap_err().is_cancelled());
        let unknown = journal.unknown().await.unwrap();
        assert_eq!((unknown.len(), &unknown[0].key), (1, &key));
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_journal_is_its_owners_alone() {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    for open in journals() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let journal = open(&path);
        journal.begin(Arc::new(entry(0))).await.unwrap();
        for file in fs::read_dir(folder.path()).unwrap() {
            let file = file.unwrap();
            let mode = file.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", file.path().display());
        }
    }
    // What the operator has set stays when the file is written anew.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let journal = FileJournal::open(&path).unwrap();
    for _ in 0..1_100 {
        let begun = journal.begin(Arc::new(entry(0)));
        journal.settle(entry(0).operation, Settled::NotDone);
        drop(begun);
    }
    drop(journal);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let length = fs::metadata(&path).unwrap().len();
    drop(FileJournal::open(&path).unwrap());
    let now = fs::metadata(&path).unwrap();
    assert!(now.len() < length, "it was written anew");
    assert_eq!(now.permissions().mode() & 0o777, 0o640);
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

#[cfg(unix)]
#[tokio::test]
async fn a_journal_behind_a_link_is_written_anew_where_it_is() {
    use std::{fs, os::unix::fs::symlink};

    let folder = tempfile::tempdir().unwrap();
    let (volume, path) = (folder.path().join("volume"), folder.path().join("journal"));
    fs::create_dir(&volume).unwrap();
    let real = volume.join("journal");
    symlink(&real, &path).unwrap();
    let journal = FileJournal::open(&path).unwrap();
    for _ in 0..1_100 {
        drop(journal.begin(Arc::new(entry(0))));
        journal.settle(entry(0).operation, Settled::NotDone);
    }
    drop(journal);
    let length = fs::metadata(&real).unwrap().len();
    let journal = FileJournal::open(&path).unwrap();
    journal.begin(Arc::new(entry(1))).await.unwrap();
    drop(journal);
    assert!(fs::metadata(&real).unwrap().len() < length, "it was written anew");
    // The link may be gone with what it was on; the file is where the operator wanted it.
    let journal = FileJournal::open(&real).unwrap();
    let unknown = journal.unknown().await.unwrap();
    assert_eq!(unknown.iter().map(|it| it.operation).collect::<Vec<_>>(), [entry(1).operation]);
}
