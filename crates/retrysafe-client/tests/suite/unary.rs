//! The policy for unary gRPC calls.

use std::{sync::Mutex, time::Duration};

use retrysafe_client::{Error, ErrorKind, IdempotencyKey, OutcomeUnknown, Unknown};
use tonic::{Code, Request, Response, Status};
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
