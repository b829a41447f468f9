//! The policy for unary gRPC calls.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use prost::Message as _;
use retrysafe_client::{
    ConfigError, ContentKey, Dialect, Error, ErrorKind, FileJournal, IdempotencyKey, KeySource,
    OutcomeUnknown, ShareAnswers, Unknown,
};
use tonic::{Code, Request, Response, Status, body::Body, client::GrpcService};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::support::builder;

/// Makes a call that is answered so, the last answer for ever, and says which keys it had.
async fn call(answers: Vec<Result<(), Status>>) -> (Result<Response<String>, Error>, Vec<String>) {
    let keys = Mutex::new(Vec::new());
    let client = builder().unary("orders.example").unwrap();
    let made = client
        .call(Request::new("book".to_owned()), |request: Request<String>| {
            let key = request.metadata().get("idempotency-key").unwrap().to_str().unwrap();
            let mut keys = keys.lock().unwrap();
            let answer = answers[keys.len().min(answers.len() - 1)].clone();
            keys.push(key.to_owned());
            async move { answer.map(|()| Response::new(request.into_inner())) }
        })
        .await;
    (made, keys.into_inner().unwrap())
}

fn with_reason(code: Code, reason: &str) -> Status {
    let details =
        ErrorDetails::with_error_info(reason, "retrysafe", [("a".to_owned(), "b".to_owned())]);
    Status::with_error_details(code, "-", details)
}

fn pushed_back(code: Code, value: &'static str) -> Status {
    let mut status = Status::new(code, "-");
    status.metadata_mut().insert("grpc-retry-pushback-ms", value.parse().unwrap());
    status
}

#[tokio::test]
async fn g4_what_leaves_the_outcome_open_is_retried_with_the_same_key() {
    for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Internal, Code::Unknown] {
        let fault = Err(Status::new(code, "-"));
        let (made, keys) = call(vec![fault.clone(), fault.clone(), Ok(())]).await;
        assert_eq!(made.unwrap().into_inner(), "book");
        assert!(keys.len() == 3 && keys.iter().all(|it| *it == keys[0]));
        let (made, keys) = call(vec![fault]).await;
        let error = made.unwrap_err();
        assert_eq!(error.grpc_status().unwrap().code(), code);
        let unknown = OutcomeUnknown::of(&error).unwrap();
        assert_eq!((unknown.why(), unknown.key().as_str()), (Unknown::Attempts, keys[0].as_str()));
    }
    for code in [Code::InvalidArgument, Code::NotFound, Code::AlreadyExists, Code::Aborted] {
        let (made, keys) = call(vec![Err(Status::new(code, "-"))]).await;
        let error = made.unwrap_err();
        assert_eq!((error.kind(), keys.len()), (ErrorKind::Inner, 1));
        assert_eq!(error.grpc_status().unwrap().code(), code);
    }
}

#[tokio::test]
async fn g4_what_was_made_here_of_a_broken_connection_is_no_answer() {
    // As tonic makes them of h2's ENHANCE_YOUR_CALM and INADEQUATE_SECURITY.
    for code in [Code::ResourceExhausted, Code::PermissionDenied] {
        let mut status = Status::new(code, "h2 protocol error");
        status.set_source(Arc::new(std::io::Error::other("the connection broke")));
        let (made, keys) = call(vec![Err(status.clone()), Ok(())]).await;
        assert_eq!(made.unwrap().into_inner(), "book");
        assert!(keys.len() == 2 && keys[0] == keys[1], "{code}");
        let error = call(vec![Err(status)]).await.0.unwrap_err();
        assert_eq!(OutcomeUnknown::of(&error).unwrap().why(), Unknown::Attempts, "{code}");
        assert_eq!(error.grpc_status().unwrap().code(), code);
    }
}

#[tokio::test(start_paused = true)]
async fn g3_what_retrysafe_says_is_understood() {
    let retry_info = |code| {
        let mut details = ErrorDetails::with_retry_info(Some(Duration::from_secs(1)));
        details.set_error_info("IN_PROGRESS", "retrysafe", [("a".to_owned(), "b".to_owned())]);
        Status::with_error_details(code, "-", details)
    };
    let mut waits = vec![Err(retry_info(Code::Aborted)); 20];
    waits.push(Ok(()));
    let before = tokio::time::Instant::now();
    let (made, keys) = call(waits).await;
    assert!(made.is_ok() && keys.len() == 21, "waiting uses no attempt");
    assert!(before.elapsed() >= Duration::from_secs(20), "RetryInfo is honoured");

    let (made, keys) = call(vec![Err(with_reason(Code::Aborted, "OUTCOME_UNKNOWN"))]).await;
    let error = made.unwrap_err();
    assert_eq!(OutcomeUnknown::of(&error).unwrap().why(), Unknown::Reported);
    assert_eq!(keys.len(), 1);
    let reused = with_reason(Code::FailedPrecondition, "KEY_REUSED");
    assert_eq!(call(vec![Err(reused)]).await.0.unwrap_err().kind(), ErrorKind::Inner);
}

#[tokio::test(start_paused = true)]
async fn g3_pushback_says_when_and_whether() {
    let before = tokio::time::Instant::now();
    let (made, keys) = call(vec![Err(pushed_back(Code::Unavailable, "3000")), Ok(())]).await;
    assert!(made.is_ok() && keys.len() == 2 && before.elapsed() >= Duration::from_secs(3));
    for no in ["-1", "soon"] {
        let (made, keys) = call(vec![Err(pushed_back(Code::Unavailable, no)), Ok(())]).await;
        let error = made.unwrap_err();
        assert_eq!(OutcomeUnknown::of(&error).unwrap().why(), Unknown::Stopped);
        assert_eq!(keys.len(), 1);
        let (made, _) = call(vec![Err(pushed_back(Code::ResourceExhausted, no)), Ok(())]).await;
        assert_eq!(made.unwrap_err().kind(), ErrorKind::Inner, "refused is refused");
    }
}

#[tokio::test]
async fn c1_the_callers_own_key_stays() {
    let client = builder().unary("orders.example").unwrap();
    let mut own = Request::new(());
    own.metadata_mut().insert("idempotency-key", "mine".parse().unwrap());
    let mut named = Request::new(());
    named.extensions_mut().insert(IdempotencyKey::new("mine").unwrap());
    for request in [own, named] {
        let echo = |request: Request<()>| async move {
            Ok(Response::new(request.metadata().get("idempotency-key").unwrap().clone()))
        };
        assert_eq!(client.call(request, echo).await.unwrap().into_inner(), "mine");
    }
}

/// What a server of gRPC saw of a request.
#[derive(Clone, Debug, PartialEq)]
struct Asked {
    path: String,
    headers: http::HeaderMap,
    body: Bytes,
}

/// A channel to a server that answers so, the last answer for ever, and keeps what it saw.
fn channel(
    answers: Vec<Result<&'static str, Code>>,
    asked: Arc<Mutex<Vec<Asked>>>,
) -> impl GrpcService<Body, ResponseBody = Body, Error = Infallible, Future: Send> + Clone + Send + Sync
{
    tower::service_fn(move |request: http::Request<Body>| {
        let (answers, asked) = (answers.clone(), asked.clone());
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let number = {
                let mut asked = asked.lock().unwrap();
                asked.push(Asked { path: head.uri.path().to_owned(), headers: head.headers, body });
                asked.len() - 1
            };
            Ok(match answers[number.min(answers.len() - 1)] {
                Err(code) => Status::new(code, "-").into_http(),
                Ok(text) => {
                    let message = text.to_owned().encode_to_vec();
                    let mut framed = vec![0, 0, 0, 0, u8::try_from(message.len()).unwrap()];
                    framed.extend(message);
                    let mut trailers = http::HeaderMap::new();
                    trailers.insert("grpc-status", "0".parse().unwrap());
                    let body = Full::from(framed).with_trailers(async { Some(Ok(trailers)) });
                    http::Response::new(Body::new(body))
                }
            })
        }
    })
}

#[tokio::test]
async fn resume_finds_out_what_became_of_a_unary_call() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let with_journal = || builder().journal(FileJournal::open(&path).unwrap());
    // Three attempts end without an answer; then the server is well again.
    let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
    let failed = Err(Code::Unavailable);
    let channel = channel(vec![failed, failed, failed, Ok("placed")], asked.clone());
    let orders = with_journal().journaled_unary("orders.example:443", channel.clone()).unwrap();
    let mut request = Request::new("book".to_owned());
    request.metadata_mut().insert("authorization", "Bearer secret".parse().unwrap());
    request.metadata_mut().insert("x-tenant", "7".parse().unwrap());
    let placed = orders.call::<String, String>("/shop.Orders/Place", request).await;
    let error = placed.unwrap_err();
    let key = OutcomeUnknown::of(&error).unwrap().key().clone();
    drop(orders);

    let raw = std::fs::read_to_string(&path).unwrap();
    assert!(!raw.contains("secret"), "credentials are not on the disk");
    // It is nobody else's to ask for.
    assert!(with_journal().build().unwrap().resume().await.unwrap().is_empty());
    let other = with_journal().journaled_unary("orders.example:4430", channel.clone()).unwrap();
    assert!(other.resume().await.unwrap().is_empty());
    drop(other);

    let orders = with_journal().journaled_unary("orders.example:443", channel).unwrap();
    let mut resumed = orders.resume().await.unwrap();
    assert_eq!(resumed.len(), 1);
    let resumed = resumed.remove(0);
    assert_eq!(resumed.key(), &key);
    assert_eq!(resumed.request().url, "grpc://orders.example:443/shop.Orders/Place");
    let answer = resumed.into_outcome().unwrap().into_inner();
    assert_eq!(String::decode(answer).unwrap(), "placed");
    let asked = asked.lock().unwrap().clone();
    let (first, last) = (&asked[0], &asked[3]);
    assert_eq!((&last.path, &last.body), (&first.path, &first.body));
    assert_eq!(
        (&last.headers["idempotency-key"], &last.headers["x-tenant"]),
        (&first.headers["idempotency-key"], &"7".parse().unwrap(),)
    );
    assert_eq!(asked.len(), 4);
    assert!(orders.resume().await.unwrap().is_empty(), "it is known now");
}

#[tokio::test]
async fn a_journaled_call_is_answered_as_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let journal = FileJournal::open(folder.path().join("journal")).unwrap();
    let channel = channel(vec![Err(Code::Unavailable), Ok("placed")], Arc::default());
    let orders = builder().journal(journal).journaled_unary("orders.example", channel).unwrap();
    let call = |path| orders.call::<String, String>(path, "book".to_owned());
    assert_eq!(call("/shop.Orders/Place").await.unwrap().into_inner(), "placed");
    assert!(orders.resume().await.unwrap().is_empty());
    for no_path in ["no path", "shop.Orders/Place", ""] {
        assert_eq!(call(no_path).await.unwrap_err().kind(), ErrorKind::Inner, "{no_path}");
    }
}

#[test]
fn what_could_not_work_is_found_when_it_is_built() {
    let folder = tempfile::tempdir().unwrap();
    let journal = FileJournal::open(folder.path().join("journal")).unwrap();
    let setting = |refused: ConfigError| refused.setting();
    assert_eq!(setting(builder().journal(journal).unary("a").unwrap_err()), "journal");
    assert_eq!(setting(builder().journaled_unary("a", ()).unwrap_err()), "journal");
    let shared = builder().share_answers(ShareAnswers::default());
    assert_eq!(setting(shared.unary("a").unwrap_err()), "share_answers");
    let mut dialect = Dialect::draft07();
    dialect.methods = [http::Method::PATCH].into_iter().collect();
    assert_eq!(setting(builder().dialect(dialect).unary("a").unwrap_err()), "methods");
    let content = KeySource::Content(ContentKey::builder().build().unwrap());
    assert_eq!(setting(builder().keys(content).unary("a").unwrap_err()), "key");
}
