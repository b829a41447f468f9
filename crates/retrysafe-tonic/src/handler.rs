//! What a handler asks of its request, and what it says of its own answer.

use std::{error::Error, fmt, sync::Arc};

use retrysafe::{Attempt, IdempotencyKey, KeyRules, Overrule, Problem, Quoting};
use tonic::{Request, Response, Status, metadata::MetadataMap};

use crate::status::to_status;

/// The key of a request, on both of its ends.
pub trait IdempotentRequest {
    /// In a handler: the attempt that it runs for (E3).
    ///
    /// ```
    /// use retrysafe_tonic::IdempotentRequest;
    /// use tonic::{Request, Response, Status};
    ///
    /// # struct TransferRequest; struct TransferReply;
    /// async fn transfer(
    ///     request: Request<TransferRequest>,
    /// ) -> Result<Response<TransferReply>, Status> {
    ///     // The same in every attempt of this transfer, so the bank books it once.
    ///     let booking_key = request.attempt()?.derive_key("book");
    ///     # let _ = booking_key;
    ///     Ok(Response::new(TransferReply))
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// A request without a key has none: the status says `MISSING_KEY`. For one *with* a key a
    /// missing attempt means that no layer covers this method, which is `HANDLER_FAILED`, or that the
    /// layer has let it through because the store can't be reached
    /// ([`OnStoreFailure::Bypass`](retrysafe::OnStoreFailure)), which is `STORE_UNAVAILABLE`. Both
    /// are logged as an error. A handler that goes on without asks
    /// `request.extensions().get::<Attempt>()`.
    fn attempt(&self) -> Result<&Attempt, Status>;

    /// In a client: sets the key, in place of any that is there. Set the same one in every retry of
    /// one operation.
    ///
    /// ```
    /// use retrysafe_tonic::{IdempotencyKey, IdempotentRequest};
    /// use tonic::Request;
    ///
    /// let key = IdempotencyKey::new("8e03978e-40d5-43e8-bc93-6894a57f9324")?;
    /// # struct TransferRequest;
    /// let request = Request::new(TransferRequest).with_key(&key);
    /// assert!(request.metadata().contains_key("idempotency-key"));
    /// # Ok::<(), retrysafe_tonic::InvalidKey>(())
    /// ```
    fn with_key(self, key: &IdempotencyKey) -> Self;
}

impl<T> IdempotentRequest for Request<T> {
    fn attempt(&self) -> Result<&Attempt, Status> {
        if let Some(attempt) = self.extensions().get::<Attempt>() {
            return Ok(attempt);
        }
        let let_through = self.extensions().get::<IdempotencyKey>();
        let keyed = let_through.is_some()
            || self.metadata().contains_key(KeyRules::default().header_name().as_str());
        if !keyed {
            return Err(to_status(&Problem::missing_key()));
        }
        let problem = Problem::no_attempt(let_through);
        tracing::error!("a handler asks for its attempt, and there is none: {}", problem.detail);
        Err(to_status(&problem))
    }

    fn with_key(mut self, key: &IdempotencyKey) -> Self {
        set_key(self.metadata_mut(), key);
        self
    }
}

pub(crate) fn set_key(metadata: &mut MetadataMap, key: &IdempotencyKey) {
    let mut headers = std::mem::take(metadata).into_headers();
    let name = KeyRules::default().header_name().clone();
    headers.insert(name, key.to_header_value(Quoting::WhenNeeded));
    *metadata = MetadataMap::from_headers(headers);
}

/// Overrules for one answer what its status says of the record (E4).
///
/// ```
/// use retrysafe_tonic::{OutcomeOverrule, Overrule, Overruled};
/// use tonic::Status;
///
/// // By its status alone a NOT_FOUND would be the answer to every retry.
/// let release = Overrule { outcome: Some(OutcomeOverrule::Release), retention: None };
/// let status = Status::not_found("no such account yet").overruled(release);
/// ```
///
/// Without a layer, or for a request without a key, it says nothing to anybody.
pub trait Overruled {
    /// This answer, overruled.
    fn overruled(self, overrule: Overrule) -> Self;
}

impl<T> Overruled for Response<T> {
    fn overruled(mut self, overrule: Overrule) -> Self {
        self.extensions_mut().insert(overrule);
        self
    }
}

impl Overruled for Status {
    /// It becomes the status's source, in front of the one that it has.
    fn overruled(mut self, overrule: Overrule) -> Self {
        let source = self.source().is_some().then(|| self.clone());
        self.set_source(Arc::new(Overruling { overrule, source }));
        self
    }
}

/// What a status carries, because it has no extensions.
#[derive(Debug)]
struct Overruling {
    overrule: Overrule,
    source: Option<Status>,
}

impl fmt::Display for Overruling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the handler overrules what becomes of the record")
    }
}

impl Error for Overruling {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().and_then(Error::source)
    }
}

/// Tonic leaves a status that the handler failed with in the response; what overrules is taken out
/// of it to where the engine looks.
pub(crate) fn find_overrule<R>(response: &mut http::Response<R>) {
    let status = response.extensions().get::<Status>();
    let overruling = status.and_then(Error::source).and_then(|it| it.downcast_ref::<Overruling>());
    if let Some(overrule) = overruling.map(|it| it.overrule) {
        response.extensions_mut().insert(overrule);
    }
}
