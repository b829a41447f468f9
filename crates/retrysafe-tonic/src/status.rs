//! Problems as gRPC statuses (G3).

use std::collections::HashMap;

use retrysafe::{
    Problem,
    grpc::{Answer, ERROR_DOMAIN, GRPC_RETRY_PUSHBACK_MS, Pushback, reason},
};
use tonic::{
    Code, Status,
    metadata::{AsciiMetadataKey, MetadataMap},
};
use tonic_types::{ErrorDetails, StatusExt as _};

/// A problem as gRPC says it: a status with `google.rpc.ErrorInfo`, whose reason is the code in
/// upper case, and, where a retry helps, `google.rpc.RetryInfo`. Retrying clients are told when, or
/// not to, by `grpc-retry-pushback-ms`.
///
/// ```
/// use retrysafe_tonic::{Problem, to_status};
/// use tonic_types::StatusExt;
///
/// let status = to_status(&Problem::missing_key());
/// assert_eq!(status.code(), tonic::Code::InvalidArgument);
/// let details = status.get_error_details();
/// assert_eq!(details.error_info().map(|it| &*it.reason), Some("MISSING_KEY"));
/// ```
pub fn to_status(problem: &Problem) -> Status {
    let answer = Answer::to(problem);
    let mut more = HashMap::new();
    if let Some(reason) = problem.reason {
        more.insert("reason".to_owned(), reason.to_owned());
    }
    if let Some(attempt) = problem.attempt {
        more.insert("attempt".to_owned(), attempt.to_string());
    }
    let mut details = ErrorDetails::with_error_info(reason(problem.code), ERROR_DOMAIN, more);
    let mut metadata = MetadataMap::new();
    if let Some(pushback) = answer.pushback {
        if let Pushback::After(after) = pushback {
            details.set_retry_info(Some(after));
        }
        let name = AsciiMetadataKey::from_static(GRPC_RETRY_PUSHBACK_MS.as_str());
        metadata.insert(name, pushback.millis().into());
    }
    let code = Code::from(i32::from(answer.status.number()));
    Status::with_error_details_and_metadata(code, problem.detail.as_ref(), details, metadata)
}
