//! The client's side: an interceptor that sets the key.

use retrysafe::{Entropy as _, IdempotencyKey, KeyRules, Problem, SystemEntropy};
use tonic::{Request, Status, service::Interceptor};
use uuid::Builder;

use crate::{IdempotentRequest as _, status::to_status};

/// Sets the key of every call: the caller's own, from its metadata or from an [`IdempotencyKey`] in
/// its extensions, or else a fresh UUID.
///
/// ```
/// use retrysafe_tonic::KeyInterceptor;
/// # mod ledger { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/ledger.v1.rs")); }
/// use ledger::ledger_client::LedgerClient;
/// use tonic::transport::Channel;
///
/// # fn connect(channel: Channel) {
/// let client = LedgerClient::with_interceptor(channel, KeyInterceptor::new());
/// # }
/// ```
///
/// A fresh key is one per *call*. It serves whatever retries below: a proxy, a service mesh, a layer
/// of the channel. A loop that makes the call again is above: give it a key of its own, made before
/// the first try, with [`with_key`](crate::IdempotentRequest::with_key), or every try is another
/// operation (C1). [`required`](Self::required) makes that mistake impossible.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeyInterceptor {
    required: bool,
}

impl KeyInterceptor {
    /// Makes a key for a call that has none.
    pub fn new() -> Self {
        Self { required: false }
    }

    /// Refuses a call that has none, with `MISSING_KEY`; nothing is sent.
    pub fn required() -> Self {
        Self { required: true }
    }
}

impl Interceptor for KeyInterceptor {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        // C1: the caller's own key stays as it is.
        if request.metadata().contains_key(KeyRules::default().header_name().as_str()) {
            return Ok(request);
        }
        let key = match request.extensions().get::<IdempotencyKey>() {
            Some(key) => key.clone(),
            None if self.required => return Err(to_status(&Problem::missing_key())),
            None => fresh()?,
        };
        Ok(request.with_key(&key))
    }
}

fn fresh() -> Result<IdempotencyKey, Status> {
    let random = SystemEntropy.next_u128().to_be_bytes();
    let text = Builder::from_random_bytes(random).into_uuid().to_string();
    IdempotencyKey::new(&text).map_err(|error| Status::internal(error.to_string()))
}
