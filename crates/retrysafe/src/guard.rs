//! How a guarded request is read: key, scope, body and fingerprint.
//!
//! What is read of the request and what is answered to it happens in the client's future: nothing
//! is lost if it is dropped. A claim and everything that follows from it does not depend on that
//! future, from before `begin` is sent (D5): see `settle.rs`, `run.rs` and `Engine::see_through`.

use std::{mem, sync::Arc};

use bytes::Bytes;
use http::{HeaderName, Method, Request, Response, Uri, request::Parts};
use http_body::Body;
use retrysafe_core::{
    Attempt, Fingerprint, Fingerprinter, IdempotencyKey, KeySource, OperationId, Problem,
    RequestHead, Scope, Settings, Store, Trace,
};
use sha2::{Digest as _, Sha256};
use tower_service::Service;
use tracing::{Instrument as _, Span, field::Empty};

use crate::{
    answers::incomplete_body,
    body::{BoxError, ReadAhead, RequestBody, ResponseBody},
    door::Door,
    engine::{Engine, Permit, Tasks},
    observe::{RequestCounter, RequestOutcome},
    scope::ScopeFrom,
};

/// What the services of one layer share.
pub(crate) struct Guard<S> {
    pub(crate) engine: Engine<S>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) scope: ScopeFrom,
    pub(crate) original_uri: Option<fn(&Parts) -> Option<&Uri>>,
    pub(crate) door: Door,
    pub(crate) tasks: Tasks,
    /// Which URIs are covered; all, unless a front door knows better.
    pub(crate) covered: Option<Arc<Covered>>,
    pub(crate) requests: RequestCounter,
}

impl<S> Clone for Guard<S> {
    fn clone(&self) -> Self {
        Self {
            engine: self.engine.clone(),
            settings: self.settings.clone(),
            scope: self.scope.clone(),
            original_uri: self.original_uri,
            door: self.door,
            tasks: self.tasks,
            covered: self.covered.clone(),
            requests: self.requests.clone(),
        }
    }
}

pub(crate) type Covered = dyn Fn(&Uri) -> bool + Send + Sync;

/// A response of a guarded service.
pub(crate) type Answer<B> = Response<ResponseBody<B>>;

/// A request on its way to its operation. It goes from future to future, so it is boxed as soon as
/// it comes.
pub(crate) struct Received<B> {
    pub(crate) parts: Parts,
    pub(crate) body: ReadAhead<B>,
}

/// A request that can be claimed. Boxed as well.
pub(crate) struct Prepared<B> {
    pub(crate) received: Box<Received<B>>,
    pub(crate) key: IdempotencyKey,
    pub(crate) scope: Scope,
    pub(crate) id: OperationId,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) trace: Option<Trace>,
    pub(crate) place: Place,
}

/// A request's place among the executions (E6).
pub(crate) enum Place {
    /// It takes one when it claims, or is refused.
    Free,
    /// It waits for one.
    Queued,
    /// It waits for one, and has it.
    Taken(Permit),
}

impl Place {
    /// The place that it has, to claim with.
    pub(crate) fn take(&mut self) -> Option<Permit> {
        match mem::replace(self, Self::Queued) {
            Self::Taken(permit) => Some(permit),
            other => {
                *self = other;
                None
            }
        }
    }
}

/// What there is to do with a request that has been read.
enum Ready<B> {
    Guarded(Box<Prepared<B>>),
    /// It names no operation (K6).
    Unnamed(Box<Received<B>>),
}

impl<S: Store> Guard<S> {
    /// Whether a request is guarded at all. One that is not keeps its inner future, unboxed.
    pub(crate) fn covers<B>(&self, request: &Request<B>) -> bool {
        self.may_cover(request.method(), |name| request.headers().contains_key(name))
            && self.covered.as_ref().is_none_or(|covered| covered(request.uri()))
    }

    /// The same without the URI.
    pub(crate) fn may_cover(
        &self,
        method: &Method,
        carries: impl FnOnce(&HeaderName) -> bool,
    ) -> bool {
        let settings = &*self.settings;
        let named = settings.require_key
            || !matches!(settings.key_source, KeySource::Header)
            || carries(settings.key.header_name());
        named && settings.methods.cover(method)
    }

    /// Answers a guarded request. `inner` is ready.
    pub(crate) fn answer<I, B, R>(
        self: Arc<Self>,
        mut inner: I,
        request: Request<B>,
    ) -> impl Future<Output = Result<Answer<R>, I::Error>> + Send
    where
        I: Service<Request<RequestBody<B>>, Response = Response<R>, Future: Send, Error: Send>
            + Clone
            + Send
            + 'static,
        I::Error: 'static,
        B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
        R: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
    {
        let (parts, body) = request.into_parts();
        let received = Box::new(Received { parts, body: ReadAhead::unread(body) });
        async move {
            let request = match self.prepare(received).await {
                Ok(Ready::Guarded(request)) => request,
                Ok(Ready::Unnamed(request)) => {
                    let Received { parts, body } = *request;
                    let body = body.into_body(|| self.settings.fingerprinter.hasher()).0;
                    let response = Box::pin(inner.call(Request::from_parts(parts, body))).await?;
                    return Ok(response.map(ResponseBody::passed));
                }
                Err(problem) => {
                    return Ok(self.refuse(&problem, RequestOutcome::Rejected, None, None));
                }
            };
            let span = self.span(&request.id);
            self.settle(inner, request).instrument(span).await
        }
    }

    /// The span of one guarded request, or of one call of a function.
    pub(crate) fn span(&self, id: &OperationId) -> Span {
        tracing::info_span!(
            "idempotency",
            operation = %id,
            store = self.engine.about().engine,
            route = &*self.settings.route,
            outcome = Empty,
            attempt = Empty,
            first_trace = Empty,
        )
    }

    async fn prepare<B>(&self, mut received: Box<Received<B>>) -> Result<Ready<B>, Box<Problem>>
    where
        B: Body<Data = Bytes> + Unpin + Send,
    {
        let Received { parts, body } = &mut *received;
        let settings = &*self.settings;
        let now = || self.engine.clock().wall();
        // Before anything is waited for: a bad key costs nothing.
        let early_key = match &settings.key_source {
            KeySource::Header | KeySource::HeaderOrField(_) => {
                settings.key.read(&parts.headers, now).map_err(Problem::from)?
            }
            KeySource::Function(find) => match find(parts) {
                Some(text) => Some(settings.key.check(&text, now).map_err(Problem::from)?),
                None => None,
            },
            _ => None,
        };
        let from_body = matches!(
            settings.key_source,
            KeySource::Json(_) | KeySource::Content | KeySource::HeaderOrField(_)
        );
        if early_key.is_none() && !from_body && settings.require_key {
            return Err(Box::new(Problem::missing_key()));
        }
        // Known before the body is read, where it can be: nobody's body is not worth reading.
        let early_scope = match early_key {
            Some(_) => Some(self.scope.find(parts).await?),
            None => None,
        };
        let read = body.read(&parts.headers, settings.inline_body).await;
        read.map_err(|_| incomplete_body())?;
        let fingerprint = self.fingerprint(&settings.fingerprinter, parts, body);
        let key = match &settings.key_source {
            KeySource::Json(pointer) => {
                let body = body.whole().ok_or_else(Problem::key_out_of_reach)?;
                match pointer.key_text(body).map_err(Problem::from)? {
                    Some(text) => Some(settings.key.check(&text, now).map_err(Problem::from)?),
                    None => None,
                }
            }
            KeySource::Content => {
                body.whole().ok_or_else(Problem::key_out_of_reach)?;
                Some(content_key(&fingerprint)?)
            }
            KeySource::HeaderOrField(find) => {
                let field = match find(parts, body.whole())? {
                    Some(text) => Some(settings.key.check(&text, now).map_err(Problem::from)?),
                    None => None,
                };
                match (early_key, field) {
                    (Some(key), Some(field)) if key != field => {
                        return Err(Box::new(Problem::keys_differ()));
                    }
                    (key, field) => key.or(field),
                }
            }
            _ => early_key,
        };
        let Some(key) = key else {
            return if settings.require_key {
                Err(Box::new(Problem::missing_key()))
            } else {
                Ok(Ready::Unnamed(received))
            };
        };
        let scope = match early_scope {
            Some(scope) => scope,
            None => Box::pin(self.scope.find(parts)).await?,
        };
        let id = OperationId::new(&settings.namespace, &scope, &key);
        let outer = parts.extensions.get::<Attempt>();
        if outer.is_some_and(|outer| outer.is_claim_of(&id, self.engine.about().engine)) {
            // A layer outside has claimed this very operation for this request.
            return Ok(Ready::Unnamed(received));
        }
        let trace = Trace::from_headers(&parts.headers);
        let place = Place::Free;
        let prepared = Prepared { received, key, scope, id, fingerprint, trace, place };
        Ok(Ready::Guarded(Box::new(prepared)))
    }

    pub(crate) fn fingerprint<B>(
        &self,
        fingerprinter: &Fingerprinter,
        parts: &Parts,
        body: &ReadAhead<B>,
    ) -> Fingerprint {
        let original = self.original_uri.and_then(|of| of(parts)).unwrap_or(&parts.uri);
        let head = RequestHead {
            method: parts.method.as_str(),
            target: original.path_and_query().map_or("/", |it| it.as_str()),
            headers: &parts.headers,
        };
        match body.whole() {
            Some(body) => fingerprinter.whole(&head, body),
            None => fingerprinter.open(&head),
        }
    }
}

fn content_key(fingerprint: &Fingerprint) -> Result<IdempotencyKey, Problem> {
    let digest: [u8; 32] = Sha256::digest(fingerprint.encode()).into();
    let text: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(IdempotencyKey::new(&text)?)
}
