//! The same policy for unary gRPC calls (Tonic).

use std::{fmt, future::Future, sync::Arc, time::Duration};

use http::{Extensions, Method, StatusCode};
use retrysafe_core::{
    ConfigError, IdempotencyKey,
    client::{Answer, AttemptEnd, Call, KeyPlacement, Next, NoKey, Operation, RetryBudget},
};
use tokio::time::{sleep, timeout};
use tonic::{
    Code, IntoRequest, Request, Response, Status,
    metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap},
};
use tonic_types::StatusExt as _;

use crate::{
    Error, OutcomeUnknown,
    calls::{Calls, operation_id},
    observe::{self, CallOutcome},
};

/// Makes unary calls under a key, and retries them under it. Cloning it is cheap.
///
/// It honours `grpc-retry-pushback-ms` (a negative one ends retrying), `RetryInfo`, and the `ErrorInfo`
/// by which retrysafe says what it means. A request that was streamed is not retried: only unary calls
/// can be made with it. Whether a failed connection was reached is not to be seen from a `Status`, so
/// every `UNAVAILABLE` counts as one after which the request may have been received.
///
/// ```
/// use retrysafe_client::Client;
/// use tonic::{Request, Response, Status};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # async fn create(request: Request<String>) -> Result<Response<String>, Status> {
/// #     assert!(request.metadata().contains_key("idempotency-key"));
/// #     Ok(Response::new(request.into_inner()))
/// # }
/// let orders = Client::builder().unary("orders.example:443")?;
/// // `|request| client.clone().create_order(request)`, with a client of generated code.
/// let placed = orders.call("book".to_owned(), |request| create(request)).await?;
/// # assert_eq!(placed.into_inner(), "book");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct UnaryClient {
    calls: Arc<Calls>,
    authority: Arc<str>,
    metadata: AsciiMetadataKey,
    budget: Arc<RetryBudget>,
}

impl UnaryClient {
    pub(crate) fn new(calls: Arc<Calls>, authority: String) -> Result<Self, ConfigError> {
        let KeyPlacement::Header(name) = &calls.settings.dialect.placement else {
            let problem = "put the key into the message, and name it by an extension";
            return Err(ConfigError::new("key_in_body", problem));
        };
        let metadata = AsciiMetadataKey::from_bytes(name.as_str().as_bytes())
            .map_err(|_| ConfigError::new("header", "it can't be the name of gRPC metadata"))?;
        let budget = calls.budget(&authority);
        Ok(Self { budget, authority: authority.into(), metadata, calls })
    }

    /// Makes a call. `send` makes one attempt of it; each gets the same message, metadata and key. The
    /// key is the caller's own, from the metadata or an [`IdempotencyKey`] among the extensions, or a
    /// new one.
    ///
    /// # Errors
    ///
    /// [`Error`]: the status of the last attempt ([`Error::grpc_status`]), or that the outcome is unknown.
    ///
    /// # Cancel safety
    ///
    /// What was sent is not taken back.
    pub async fn call<M, R, F>(
        &self,
        request: impl IntoRequest<M>,
        mut send: impl FnMut(Request<M>) -> F,
    ) -> Result<Response<R>, Error>
    where
        M: Clone,
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let (mut metadata, extensions, message) = request.into_request().into_parts();
        let key = self.key(&mut metadata, &extensions).inspect_err(|_| {
            observe::call_ended(CallOutcome::Refused, 0);
        })?;
        let calls = &*self.calls;
        let (retries, dialect) = (&calls.settings.retries, &calls.settings.dialect);
        let safety = calls.safety(&Method::POST, true);
        let mut call = Call::start(retries, dialect, safety, calls.now());
        loop {
            let request = Request::from_parts(
                metadata.clone(),
                Extensions::clone(&extensions),
                message.clone(),
            );
            let sent = timeout(call.attempt_timeout(calls.now()), send(request)).await;
            let sent = sent.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")));
            let end = match &sent {
                Ok(_) => AttemptEnd::Answered(Answer::of(StatusCode::OK)),
                Err(status) => {
                    let (answer, stop) = read(status);
                    if stop {
                        call.stop();
                    }
                    AttemptEnd::Answered(answer)
                }
            };
            observe::attempt_ended("answered");
            let next = call.judge(&end, &self.budget, calls.now(), &*calls.entropy);
            if call.budget_refused() {
                observe::budget_refused();
            }
            match (next, sent) {
                (Next::Again { after, retry }, _) => {
                    observe::retrying(retry);
                    sleep(after).await;
                }
                (Next::Unknown(why), sent) => {
                    observe::outcome_unknown(why);
                    observe::call_ended(CallOutcome::Unknown, call.attempts());
                    let operation = operation_id(&self.authority, &key);
                    let source = sent.err().map(Into::into);
                    let (attempts, status) = (call.attempts(), None);
                    let unknown = OutcomeUnknown { key, operation, attempts, why, status, source };
                    return Err(unknown.into());
                }
                (_, sent) => {
                    observe::call_ended(CallOutcome::Answered, call.attempts());
                    return sent.map_err(Error::inner);
                }
            }
        }
    }

    /// The caller's own key, or a new one that is put where keys go.
    fn key(
        &self,
        metadata: &mut MetadataMap,
        extensions: &Extensions,
    ) -> Result<IdempotencyKey, NoKey> {
        let (calls, dialect) = (&*self.calls, &self.calls.settings.dialect);
        if let Some(own) = dialect.own_key(&metadata.clone().into_headers())? {
            return Ok(own);
        }
        let key = match extensions.get::<IdempotencyKey>() {
            Some(named) => {
                dialect.check(named)?;
                named.clone()
            }
            None => {
                let operation =
                    Operation { method: "POST", url: "", content_type: None, body: None };
                calls.settings.keys.key(&operation, || calls.clock.wall(), &*calls.entropy)?
            }
        };
        let value = key.to_header_value(dialect.quoting);
        let value = value.to_str().ok().and_then(|it| AsciiMetadataValue::try_from(it).ok());
        let Some(value) = value else { unreachable!("a key is visible ASCII and spaces") };
        metadata.insert(self.metadata.clone(), value);
        Ok(key)
    }
}

impl fmt::Debug for UnaryClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnaryClient").field("calls", &self.calls).finish_non_exhaustive()
    }
}

impl Error {
    /// The status by which the last attempt ended, if it is known.
    pub fn grpc_status(&self) -> Option<&Status> {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            if let Some(status) = error.downcast_ref() {
                return Some(status);
            }
            cause = error.source();
        }
        None
    }
}

/// What a status says, in the words of the policy, which are HTTP's; and whether the server asks not
/// to be asked again.
fn read(status: &Status) -> (Answer, bool) {
    // G4: which of them leave the outcome open.
    let as_http = match status.code() {
        Code::Ok => 200,
        Code::Unavailable => 503,
        Code::DeadlineExceeded => 504,
        Code::Cancelled | Code::Unknown | Code::Internal | Code::DataLoss => 500,
        Code::ResourceExhausted => 429,
        Code::Aborted => 409,
        Code::Unauthenticated => 401,
        Code::PermissionDenied => 403,
        Code::NotFound => 404,
        Code::AlreadyExists | Code::FailedPrecondition => 422,
        Code::Unimplemented => 501,
        Code::InvalidArgument | Code::OutOfRange => 400,
    };
    let mut answer = Answer::of(StatusCode::from_u16(as_http).unwrap_or_default());
    // G3: the reason is the code in upper case.
    let reason = status.get_details_error_info().map(|it| it.reason.to_ascii_lowercase());
    let ours =
        |reason: String| retrysafe_core::Code::ALL.into_iter().find(|code| code.as_str() == reason);
    answer.code = reason.and_then(ours);
    answer.retry_after = status.get_details_retry_info().and_then(|it| it.retry_delay);
    let pushback = status.metadata().get("grpc-retry-pushback-ms").map(|it| it.to_str());
    // gRFC A6: one that is no number is as good as a negative one.
    match pushback.map(|it| it.ok().and_then(|it| it.parse::<u64>().ok())) {
        None => (answer, false),
        Some(None) => (answer, true),
        Some(Some(milliseconds)) => {
            answer.retry_after = Some(Duration::from_millis(milliseconds));
            (answer, false)
        }
    }
}
