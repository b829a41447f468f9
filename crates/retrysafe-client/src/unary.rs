//! The same policy for unary gRPC calls (Tonic).

mod journaled;

use std::{
    error::Error as StdError, fmt, future::Future, marker::PhantomData, sync::Arc, time::Duration,
};

use bytes::Bytes;
use http::{Extensions, Method, StatusCode};
use retrysafe_core::{
    ConfigError, IdempotencyKey,
    client::{Answer, AttemptEnd, KeyPlacement, NoKey},
};
use tonic::{
    Code, IntoRequest, Request, Response, Status,
    metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap},
};
use tonic_types::StatusExt as _;

pub use self::journaled::{JournaledUnaryClient, ResumedCall};
use crate::{
    CallDeadline, Error,
    calls::{Calls, Failure, GRPC, Logical},
    keying::{Keyed, Unkeyed},
    transport::{Answered, Last, OnEnd, Read, Reading, Transport, Whole},
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
    /// `grpc://` and the authority.
    origin: Arc<str>,
    metadata: AsciiMetadataKey,
}

impl UnaryClient {
    pub(crate) fn new(calls: Arc<Calls>, authority: &str) -> Result<Self, ConfigError> {
        let KeyPlacement::Header(name) = &calls.settings.dialect.placement else {
            let problem = "put the key into the message, and name it by an extension";
            return Err(ConfigError::new("key_in_body", problem));
        };
        if !calls.settings.dialect.methods.cover(&Method::POST) {
            let problem = "every gRPC call is a POST, and no key would be made for it";
            return Err(ConfigError::new("methods", problem));
        }
        let metadata = AsciiMetadataKey::from_bytes(name.as_str().as_bytes())
            .map_err(|_| ConfigError::new("header", "it can't be the name of gRPC metadata"))?;
        Ok(Self { origin: format!("{GRPC}{authority}").into(), metadata, calls })
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
        send: impl FnMut(Request<M>) -> F + Send,
    ) -> Result<Response<R>, Error>
    where
        M: Clone + Send,
        R: Send,
        F: Future<Output = Result<Response<R>, Status>> + Send,
    {
        // The message itself can be cloned, so these are for the journal alone, and there is none.
        let about = About { url: &self.origin, message: &Bytes::new(), resumed: None };
        self.make(about, request.into_request(), send).await
    }

    async fn make<M, R, F>(
        &self,
        about: About<'_>,
        request: Request<M>,
        send: impl FnMut(Request<M>) -> F + Send,
    ) -> Result<Response<R>, Error>
    where
        M: Clone + Send,
        R: Send,
        F: Future<Output = Result<Response<R>, Status>> + Send,
    {
        let (mut metadata, extensions, message) = request.into_parts();
        let key = self.put_key(&mut metadata, &extensions)?;
        let headers = metadata.clone();
        let mut logical = Logical {
            key: Some(key),
            of_content: false,
            method: &Method::POST,
            url: about.url,
            authority: &self.origin[GRPC.len()..],
            headers: headers.as_ref(),
            body: Some(about.message),
            deadline: extensions.get::<CallDeadline>().map(|it| it.0),
            resumed: about.resumed,
        };
        let answer = PhantomData;
        let mut transport = Unary { metadata, extensions, message, send, answer };
        match self.calls.make(&mut logical, &mut transport).await {
            Ok(Answered::Whole(response, _) | Answered::Stream(response)) => Ok(response),
            Ok(Answered::Shared(_)) => Err(Error::not_shared()),
            Err(Failure::Inner(status)) => Err(Error::inner(status)),
            Err(Failure::Ours(error)) => Err(error),
        }
    }

    /// The caller's own key, or a new one that is put where keys go.
    fn put_key(
        &self,
        metadata: &mut MetadataMap,
        extensions: &Extensions,
    ) -> Result<IdempotencyKey, NoKey> {
        let keyed = self.calls.key(&Unkeyed {
            method: &Method::POST,
            url: &self.origin,
            headers: metadata.as_ref(),
            body: None,
            named: extensions.get(),
        });
        match keyed? {
            Keyed::Own(key) => Ok(key),
            Keyed::Header(key, _, value) => {
                let value =
                    value.to_str().ok().and_then(|it| AsciiMetadataValue::try_from(it).ok());
                let Some(value) = value else {
                    unreachable!("a key is visible ASCII and spaces");
                };
                metadata.insert(self.metadata.clone(), value);
                Ok(key)
            }
            // The settings were checked: into a header, on every POST.
            Keyed::No | Keyed::Body(..) => Err(NoKey::NotAnObject),
        }
    }
}

/// What the journal has to know of a call.
struct About<'a> {
    url: &'a str,
    message: &'a Bytes,
    resumed: Option<Duration>,
}

/// Sends by a client of generated code, or by a channel.
struct Unary<M, S, R> {
    metadata: MetadataMap,
    extensions: Extensions,
    message: M,
    send: S,
    answer: PhantomData<fn() -> R>,
}

impl<M, S, F, R> Transport for Unary<M, S, R>
where
    M: Clone + Send,
    S: FnMut(Request<M>) -> F + Send,
    F: Future<Output = Result<Response<R>, Status>> + Send,
    R: Send,
{
    type Response = Response<R>;
    type Error = Status;

    async fn attempt(
        &mut self,
        _: Reading<'_>,
        last: &mut Last<Response<R>, Status>,
    ) -> AttemptEnd {
        let request = Request::from_parts(
            self.metadata.clone(),
            self.extensions.clone(),
            self.message.clone(),
        );
        match (self.send)(request).await {
            Ok(response) => {
                last.answer = Some(Read { response, whole: Some(Bytes::new()) });
                AttemptEnd::Answered(Answer::of(StatusCode::OK))
            }
            Err(status) => {
                let end = end_of(&status);
                last.error = Some(status);
                end
            }
        }
    }

    fn extensions(response: &mut Response<R>) -> &mut Extensions {
        response.extensions_mut()
    }

    fn share(_: &Response<R>, _: Bytes) -> Option<Whole> {
        None
    }

    fn at_end(response: Response<R>, tell: OnEnd) -> Response<R> {
        tell();
        response
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
        let mut cause: Option<&(dyn StdError + 'static)> = Some(self);
        while let Some(error) = cause {
            if let Some(status) = error.downcast_ref() {
                return Some(status);
            }
            cause = error.source();
        }
        None
    }
}

/// A status that has a cause was made on this side, of a connection that broke: whatever its code is,
/// the server has not answered.
fn end_of(status: &Status) -> AttemptEnd {
    match StdError::source(status) {
        Some(_) => AttemptEnd::Broken,
        None => AttemptEnd::Answered(read(status)),
    }
}

/// What a status says, in the words of the policy, which are HTTP's.
fn read(status: &Status) -> Answer {
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
        None => {}
        Some(None) => answer.stop = true,
        Some(Some(milliseconds)) => answer.retry_after = Some(Duration::from_millis(milliseconds)),
    }
    answer
}
