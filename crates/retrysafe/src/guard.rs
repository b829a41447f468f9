//! How a guarded request flows: key, scope, body and fingerprint, claim, decision.
//!
//! What is read of the request and what is answered to it happens in the client's future: nothing
//! is lost if it is dropped. A claim and everything that follows from it does not depend on that
//! future, from before `begin` is sent (D5): see [`run`](crate::run) and `Engine::see_through`.

use std::{borrow::Cow, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderValue, Request, Response, Uri, header, request::Parts};
use http_body::Body;
use retrysafe_core::{
    Attempt, Begin, BodyHasher, BodyPart, Code, Comparison, Decision, Fingerprint, Fingerprinter,
    Found, IdempotencyKey, Kept, KeySource, Likeness, OnInFlight, OnStoreFailure, OnUnknownOutcome,
    OperationId, Problem, Record, RequestHead, Scope, Settings, Store, Trace, decide,
    headers::{BYPASSED, IDEMPOTENCY_STATUS},
};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, timeout_at};
use tower_service::Service;
use tracing::{Instrument as _, Span, field::Empty};

use crate::{
    body::{self, BoxError, Pieces, ReadAhead, RequestBody, ResponseBody},
    door::Door,
    engine::{BeginError, Engine},
    observe::{self, RequestCounter, RequestOutcome},
    run::{Claimed, claim_and_run},
    scope::ScopeFrom,
    waiting::{Turn, Waited, Waiter},
};

/// What the services of one layer share.
pub(crate) struct Guard<S> {
    pub(crate) engine: Engine<S>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) scope: ScopeFrom,
    pub(crate) original_uri: Option<fn(&Parts) -> Option<&Uri>>,
    pub(crate) door: Door,
    pub(crate) requests: RequestCounter,
}

/// A response of a guarded service.
pub(crate) type Answer<B> = Response<ResponseBody<B>>;

/// A request that can be claimed. It goes from future to future, so it is boxed.
pub(crate) struct Prepared<B> {
    pub(crate) parts: Parts,
    pub(crate) body: ReadAhead<B>,
    pub(crate) key: IdempotencyKey,
    pub(crate) scope: Scope,
    pub(crate) id: OperationId,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) trace: Option<Trace>,
}

/// What there is to do with a request that has been read.
enum Ready<B> {
    Guarded(Box<Prepared<B>>),
    /// It names no operation (K6).
    Unnamed(Box<(Parts, ReadAhead<B>)>),
}

impl<S: Store> Guard<S> {
    /// Whether a request is guarded at all. One that is not keeps its inner future, unboxed.
    pub(crate) fn covers<B>(&self, request: &Request<B>) -> bool {
        let settings = &*self.settings;
        let named = settings.require_key
            || !matches!(settings.key_source, KeySource::Header)
            || request.headers().contains_key(settings.key.header_name());
        named && settings.methods.cover(request.method())
    }

    /// Answers a guarded request. `inner` is ready.
    #[expect(clippy::manual_async_fn, reason = "an `async fn` carries what it is given twice")]
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
        async move {
            let request = match self.prepare(request).await {
                Ok(Ready::Guarded(request)) => request,
                Ok(Ready::Unnamed(request)) => {
                    let (parts, body) = *request;
                    let body = body.into_body(|| self.settings.fingerprinter.hasher()).0;
                    let response = Box::pin(inner.call(Request::from_parts(parts, body))).await?;
                    return Ok(response.map(ResponseBody::passed));
                }
                Err(problem) => {
                    return Ok(self.refuse(&problem, RequestOutcome::Rejected, None, None));
                }
            };
            let span = tracing::info_span!(
                "idempotency",
                operation = %request.id,
                store = self.engine.about().engine,
                route = &*self.settings.route,
                outcome = Empty,
                attempt = Empty,
                first_trace = Empty,
            );
            self.settle(inner, request).instrument(span).await
        }
    }

    /// Claims, and answers what can be answered at once: the handler's response or a replay.
    #[expect(clippy::manual_async_fn, reason = "an `async fn` carries what it is given twice")]
    fn settle<I, B, R>(
        self: Arc<Self>,
        inner: I,
        request: Box<Prepared<B>>,
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
        async move {
            // A body that is not known yet may still turn out to differ: look before taking over.
            let take_over = self.may_take_over() && request.fingerprint.body.is_some();
            let claimed = match self.claim_and_run(inner, request, take_over, None).await {
                Claimed::Answered(answer) => return answer,
                Claimed::Found { found: found @ Found::Finished { .. }, inner, request, turn } => {
                    match self.answer_finished(&request, found) {
                        Ok(answer) => return Ok(answer),
                        Err(found) => Claimed::Found { found, inner, request, turn },
                    }
                }
                claimed => claimed,
            };
            // Boxed, as all that is rare: there is room for the usual ways only.
            Box::pin(self.settle_later(claimed, take_over)).await
        }
    }

    /// Claims, and sees through what was granted, whether or not the client does.
    fn claim_and_run<I, B, R>(
        self: &Arc<Self>,
        inner: I,
        request: Box<Prepared<B>>,
        take_over: bool,
        turn: Option<Box<Turn>>,
    ) -> impl Future<Output = Claimed<I, B, R, I::Error>> + Send + use<I, B, R, S>
    where
        I: Service<Request<RequestBody<B>>, Response = Response<R>, Future: Send, Error: Send>
            + Send
            + 'static,
        I::Error: 'static,
        B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
        R: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
    {
        let id = request.id;
        let work = claim_and_run(self.clone(), inner, request, take_over, turn);
        // Boxed before anything is wrapped around it: it is large, and every wrapper moves it.
        let work = Box::pin(work).instrument(Span::current());
        let guard = self.clone();
        self.engine.see_through(work).map(move |claimed| {
            // Only a runtime that is shutting down, or a mistake of ours, ends a task early. Its
            // execution, if there was one, has been abandoned.
            claimed.unwrap_or_else(|| {
                let problem = Problem::new(Code::HandlerFailed, "The request was interrupted.");
                let outcome = RequestOutcome::Rejected;
                Claimed::Answered(Ok(guard.refuse(&problem, outcome, Some(&id), None)))
            })
        })
    }

    fn may_take_over(&self) -> bool {
        !matches!(self.settings.on_unknown_outcome, OnUnknownOutcome::Refuse)
    }

    /// Decides, waits, and claims again, until there is an answer.
    async fn settle_later<I, B, R>(
        self: Arc<Self>,
        mut claimed: Claimed<I, B, R, I::Error>,
        mut take_over: bool,
    ) -> Result<Answer<R>, I::Error>
    where
        I: Service<Request<RequestBody<B>>, Response = Response<R>, Future: Send, Error: Send>
            + Clone
            + Send
            + 'static,
        I::Error: 'static,
        B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
        R: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
    {
        let may_take_over = self.may_take_over();
        let mut waiting: Option<Waiting> = None;
        let mut superseded = false;
        loop {
            let (found, mut inner, mut request, my_turn) = match claimed {
                Claimed::Answered(answer) => return answer,
                Claimed::Refused { error, inner, request } => {
                    return Box::pin(self.without_store(error, inner, request)).await;
                }
                Claimed::Found { found, inner, request, turn } => (found, inner, request, turn),
            };
            let id = request.id;
            let found = match self.answer_finished(&request, found) {
                Ok(answer) => return Ok(answer),
                Err(found @ Found::Finished { .. }) => {
                    return Ok(Box::pin(self.answer_long_duplicate(request, found)).await);
                }
                Err(found) => found,
            };
            let likeness = match self.compare(&request, &found) {
                Ok(likeness) => likeness,
                // The record's body was known up front, so it was short, and this one is longer
                // than that: another request.
                Err(_) => Likeness::Differs,
            };
            let turn = match decide(Begin::Found(found.clone()), likeness, Kept::Response) {
                Decision::InFlight { attempt, .. } => {
                    // A ready service may hold what others need, such as a place under a limit: it
                    // must not be held while waiting (`waiters_eat_pool`).
                    inner = inner.clone();
                    let may_wait = request.fingerprint.body.is_some();
                    let waited = self.wait_for(&mut waiting, &id, may_wait, attempt, my_turn);
                    match Box::pin(waited).await {
                        WaitEnd::MyTurn(turn) => {
                            std::future::poll_fn(|cx| inner.poll_ready(cx)).await?;
                            Some(turn)
                        }
                        WaitEnd::Outcome(found) => match self.answer_finished(&request, found) {
                            Ok(answer) => return Ok(answer),
                            // A waiter's body is at hand and an outcome is finished, so it can be
                            // compared; claim again if that should ever not be so.
                            Err(_) => None,
                        },
                        WaitEnd::Timeout => return Ok(self.in_progress(&id, attempt)),
                        WaitEnd::StoreFailed => {
                            let (problem, outcome) =
                                (store_unavailable(), RequestOutcome::Rejected);
                            return Ok(self.refuse(&problem, outcome, Some(&id), None));
                        }
                    }
                }
                Decision::OutcomeUnknown { .. } if may_take_over && !take_over => {
                    take_over = true;
                    my_turn
                }
                Decision::OutcomeUnknown { .. }
                    if may_take_over && self.adopt_algorithm(&mut request, &found) =>
                {
                    my_turn
                }
                Decision::Superseded if !superseded => {
                    superseded = true;
                    None
                }
                _ => return Ok(self.answer_found(&id, found, likeness, request.trace)),
            };
            claimed = self.claim_and_run(inner, request, take_over, turn).await;
        }
    }

    /// Waits for the attempt in flight, if duplicates wait and there is room.
    async fn wait_for(
        &self,
        waiting: &mut Option<Waiting>,
        id: &OperationId,
        may_wait: bool,
        attempt: u32,
        my_turn: Option<Box<Turn>>,
    ) -> WaitEnd {
        let OnInFlight::Wait { timeout, max_waiters } = self.settings.on_in_flight else {
            return WaitEnd::Timeout;
        };
        // F4: the unread rest of a long body would stall the owner's upload.
        if !may_wait {
            return WaitEnd::Timeout;
        }
        let waiting = match waiting {
            Some(waiting) => waiting,
            None => match self.engine.room().enter(*id, max_waiters) {
                Some(waiter) => waiting.insert(Waiting { waiter, until: Instant::now() + timeout }),
                None => return WaitEnd::Timeout,
            },
        };
        self.wait(waiting, id, attempt, my_turn).await
    }

    /// Answers by a finished record, unless the rest of a long body has to be read to compare it.
    #[expect(clippy::result_large_err, reason = "the error is what was found, which goes on")]
    fn answer_finished<B, R>(
        &self,
        request: &Prepared<B>,
        found: Found,
    ) -> Result<Answer<R>, Found> {
        if !matches!(found, Found::Finished { .. }) {
            return Err(found);
        }
        match self.compare(request, &found) {
            Ok(likeness) => Ok(self.answer_found(&request.id, found, likeness, request.trace)),
            Err(_) => Err(found),
        }
    }

    /// Answers a long duplicate by a finished record, after as much of it as the record covers has
    /// been read (F4).
    async fn answer_long_duplicate<B, R>(
        &self,
        request: Box<Prepared<B>>,
        found: Found,
    ) -> Answer<R>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let compared = self.compare(&request, &found);
        let Prepared { body, id, trace, .. } = *request;
        let likeness = match compared {
            Ok(likeness) => likeness,
            Err(unread) => match body.matches(unread.hasher, &unread.part).await {
                Ok(matches) => likeness_of(matches),
                Err(_) => {
                    let (problem, outcome) = (incomplete_body(), RequestOutcome::Rejected);
                    return self.refuse(&problem, outcome, Some(&id), None);
                }
            },
        };
        self.answer_found(&id, found, likeness, trace)
    }

    /// Waits for the turn, and with it until attempt `seen` may be over.
    async fn wait(
        &self,
        waiting: &mut Waiting,
        id: &OperationId,
        seen: u32,
        my_turn: Option<Box<Turn>>,
    ) -> WaitEnd {
        let until = waiting.until;
        let turn = match my_turn {
            Some(turn) => turn,
            None => match timeout_at(until, waiting.waiter.wait()).await {
                Ok(Waited::Turn(turn)) => Box::new(turn),
                Ok(Waited::Outcome(found)) => return WaitEnd::Outcome(found),
                Err(_) => return WaitEnd::Timeout,
            },
        };
        let within = until.saturating_duration_since(Instant::now());
        if within.is_zero() {
            // A store may call back early, for no reason: `timeout_at` alone would never look.
            return WaitEnd::Timeout;
        }
        let deadline = self.settings.store_deadline;
        match timeout_at(until, self.engine.changed(id, seen, within, deadline)).await {
            Ok(Ok(())) => WaitEnd::MyTurn(turn),
            Ok(Err(_)) => WaitEnd::StoreFailed,
            Err(_) => WaitEnd::Timeout,
        }
    }

    fn prepare<B>(
        &self,
        request: Request<B>,
    ) -> impl Future<Output = Result<Ready<B>, Box<Problem>>> + Send
    where
        B: Body<Data = Bytes> + Unpin + Send,
    {
        let (parts, body) = request.into_parts();
        async move {
            let settings = &*self.settings;
            let now = || self.engine.clock().wall();
            // Before anything is waited for: a bad key costs nothing.
            let early_key = match &settings.key_source {
                KeySource::Header => {
                    settings.key.read(&parts.headers, now).map_err(Problem::from)?
                }
                KeySource::Function(find) => match find(&parts) {
                    Some(text) => Some(settings.key.check(&text, now).map_err(Problem::from)?),
                    None => None,
                },
                _ => None,
            };
            let from_body = matches!(settings.key_source, KeySource::Json(_) | KeySource::Content);
            if early_key.is_none() && !from_body && settings.require_key {
                return Err(Box::new(Problem::missing_key()));
            }
            // Known before the body is read, where it can be: nobody's body is not worth reading.
            let early_scope = match early_key {
                Some(_) => Some(self.scope.find(&parts).await?),
                None => None,
            };
            let body = ReadAhead::read(body, &parts.headers, settings.inline_body)
                .await
                .map_err(|_| incomplete_body())?;
            let fingerprint = self.fingerprint(&settings.fingerprinter, &parts, &body);
            let key = match &settings.key_source {
                KeySource::Json(pointer) => {
                    let body = body.whole().ok_or_else(body_too_long_for_key)?;
                    match pointer.key_text(body).map_err(Problem::from)? {
                        Some(text) => Some(settings.key.check(&text, now).map_err(Problem::from)?),
                        None => None,
                    }
                }
                KeySource::Content => {
                    body.whole().ok_or_else(body_too_long_for_key)?;
                    Some(content_key(&fingerprint)?)
                }
                _ => early_key,
            };
            let Some(key) = key else {
                return if settings.require_key {
                    Err(Box::new(Problem::missing_key()))
                } else {
                    Ok(Ready::Unnamed(Box::new((parts, body))))
                };
            };
            let scope = match early_scope {
                Some(scope) => scope,
                None => Box::pin(self.scope.find(&parts)).await?,
            };
            let id = OperationId::new(&settings.namespace, &scope, &key);
            let outer = parts.extensions.get::<Attempt>();
            if outer.is_some_and(|outer| *outer.operation() == id) {
                // A layer outside has claimed this very operation for this request.
                return Ok(Ready::Unnamed(Box::new((parts, body))));
            }
            let trace = Trace::from_headers(&parts.headers);
            let prepared = Prepared { parts, body, key, scope, id, fingerprint, trace };
            Ok(Ready::Guarded(Box::new(prepared)))
        }
    }

    fn fingerprint<B>(
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

    /// Compares a request with what was found, by the record's own algorithm (F3). An error if more
    /// of its body has to be read for that.
    fn compare<B>(&self, request: &Prepared<B>, found: &Found) -> Result<Likeness, Box<Unread>> {
        let Some(record) = fingerprint_of(found) else { return Ok(Likeness::Same) };
        let Some(claimed) = self.fingerprint_like(request, record) else {
            // Nobody can tell whether it is the same request, so it does not run.
            return Ok(Likeness::Differs);
        };
        match claimed.compare(record) {
            Comparison::Same => Ok(Likeness::Same),
            Comparison::Differs => Ok(Likeness::Differs),
            Comparison::Unread(part) => {
                let Some(known) = self.settings.fingerprinter.for_algorithm(record.algorithm)
                else {
                    return Ok(Likeness::Differs);
                };
                let hasher = known.hasher();
                match request.body.whole() {
                    Some(body) => Ok(likeness_of(body::covers(body, hasher, &part))),
                    None => Err(Box::new(Unread { hasher, part })),
                }
            }
        }
    }

    /// The fingerprint of a request by a record's algorithm; `None` if that is unknown here.
    fn fingerprint_like<'a, B>(
        &self,
        request: &'a Prepared<B>,
        record: &Fingerprint,
    ) -> Option<Cow<'a, Fingerprint>> {
        if request.fingerprint.algorithm == record.algorithm {
            return Some(Cow::Borrowed(&request.fingerprint));
        }
        let known = self.settings.fingerprinter.for_algorithm(record.algorithm)?;
        Some(Cow::Owned(self.fingerprint(&known, &request.parts, &request.body)))
    }

    /// Fingerprints a request by the algorithm of the lapsed record it is about to take over, which
    /// the store compares it with (ST6). `false` if it is that already: the store has refused.
    fn adopt_algorithm<B>(&self, request: &mut Prepared<B>, found: &Found) -> bool {
        let Some(record) = fingerprint_of(found) else { return false };
        match self.fingerprint_like(request, record) {
            Some(Cow::Owned(fingerprint)) => {
                request.fingerprint = fingerprint;
                true
            }
            _ => false,
        }
    }

    /// The store did not answer a claim (D4, D5).
    async fn without_store<I, B, R>(
        &self,
        error: BeginError,
        mut inner: I,
        request: Box<Prepared<B>>,
    ) -> Result<Answer<R>, I::Error>
    where
        I: Service<Request<RequestBody<B>>, Response = Response<R>>,
        B: Body<Data = Bytes> + Unpin,
    {
        let bypass = self.settings.on_store_failure == OnStoreFailure::Bypass
            && error == BeginError::Unreachable;
        if !bypass {
            let problem = match error {
                BeginError::Overloaded => overloaded(),
                _ => store_unavailable(),
            };
            let outcome = RequestOutcome::Rejected;
            return Ok(self.refuse(&problem, outcome, Some(&request.id), None));
        }
        self.decided(RequestOutcome::Bypassed, Some(&request.id), None, request.trace, None);
        let mut parts = request.parts;
        self.door.strip(&mut parts);
        // There is no attempt; a handler may still want to know the key.
        parts.extensions.insert(request.key);
        let body = request.body.into_body(|| self.settings.fingerprinter.hasher()).0;
        let mut response = inner.call(Request::from_parts(parts, body)).await?;
        self.door.take_overrule(&mut response);
        let headers = response.headers_mut();
        headers.remove(&self.settings.replay_marker);
        headers.insert(&IDEMPOTENCY_STATUS, HeaderValue::from_static(BYPASSED));
        Ok(response.map(ResponseBody::passed))
    }

    /// Answers by what the store holds, without running anything, and counts it.
    pub(crate) fn answer_found<R>(
        &self,
        id: &OperationId,
        found: Found,
        likeness: Likeness,
        trace: Option<Trace>,
    ) -> Answer<R> {
        let Told { answer, outcome, attempt, first } = self.told(id, found, likeness);
        self.decided(outcome, Some(id), attempt, trace, first);
        answer
    }

    /// What the store holds, as an answer.
    pub(crate) fn told<R>(&self, id: &OperationId, found: Found, likeness: Likeness) -> Told<R> {
        let kept = match &found {
            Found::Finished { payload, .. } => Record::kept(payload),
            _ => Ok(Kept::Response),
        };
        let decision = match kept {
            Ok(kept) => decide(Begin::Found(found), likeness, kept),
            Err(error) => return self.unreadable(id, error),
        };
        let told = |outcome, attempt, problem: &Problem| {
            let answer = self.problem(problem);
            Told { answer, outcome, attempt, first: None }
        };
        match decision {
            Decision::Replay(payload) => match Record::decode(payload) {
                Ok(record) => {
                    let (outcome, first) = (RequestOutcome::Replayed, record.trace);
                    Told { answer: self.replay(record), outcome, attempt: None, first }
                }
                Err(error) => self.unreadable(id, error),
            },
            Decision::Unavailable(payload) => match Record::decode(payload) {
                Ok(record) => {
                    let mut problem = Problem::new(
                        Code::ResponseUnavailable,
                        "The operation was done. Its response was too large, or not to be kept; \
                         it will not run again.",
                    );
                    problem.original_status = Some(record.status);
                    told(RequestOutcome::ResponseUnavailable, None, &problem)
                }
                Err(error) => self.unreadable(id, error),
            },
            Decision::Mismatch => {
                let problem = Problem::new(
                    Code::KeyReused,
                    "The key belongs to another request. Send a retry exactly as the original \
                     was, and a new operation with a new key.",
                );
                told(RequestOutcome::KeyReused, None, &problem)
            }
            Decision::InFlight { attempt, .. } => {
                told(RequestOutcome::InProgress, Some(attempt), &in_progress())
            }
            Decision::OutcomeUnknown { attempt } => {
                told(RequestOutcome::OutcomeUnknown, Some(attempt), &outcome_unknown(attempt))
            }
            // Nothing was granted to this request, so nothing runs for it.
            Decision::Execute(_) | Decision::Superseded => {
                told(RequestOutcome::Rejected, None, &store_unavailable())
            }
        }
    }

    fn replay<R>(&self, record: Record) -> Answer<R> {
        let Record { status, mut headers, body, trailers, .. } = record;
        headers.insert(&self.settings.replay_marker, HeaderValue::from_static("true"));
        // R6: HTTP/1.1 sends only trailers that it has announced.
        if let Some(trailers) = &trailers {
            let names: Vec<_> = trailers.keys().map(|name| name.as_str()).collect();
            if let Ok(names) = HeaderValue::from_str(&names.join(", ")) {
                headers.insert(header::TRAILER, names);
            }
        }
        let mut response =
            Response::new(ResponseBody::kept(Pieces::from_iter(body), trailers.map(Box::new)));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }

    pub(crate) fn in_progress<R>(&self, id: &OperationId, attempt: u32) -> Answer<R> {
        self.refuse(&in_progress(), RequestOutcome::InProgress, Some(id), Some(attempt))
    }

    pub(crate) fn outcome_unknown<R>(&self, id: &OperationId, attempt: u32) -> Answer<R> {
        let problem = outcome_unknown(attempt);
        self.refuse(&problem, RequestOutcome::OutcomeUnknown, Some(id), Some(attempt))
    }

    // ST10: a record that can't be read is an error, never a free key.
    fn unreadable<R>(&self, id: &OperationId, error: retrysafe_core::RecordError) -> Told<R> {
        tracing::error!(operation = %id, %error, "a kept record can't be read");
        let answer = self.problem(&store_unavailable());
        Told { answer, outcome: RequestOutcome::Rejected, attempt: None, first: None }
    }

    /// Answers with a problem, and counts it.
    pub(crate) fn refuse<R>(
        &self,
        problem: &Problem,
        outcome: RequestOutcome,
        id: Option<&OperationId>,
        attempt: Option<u32>,
    ) -> Answer<R> {
        self.decided(outcome, id, attempt, None, None);
        self.problem(problem)
    }

    pub(crate) fn problem<R>(&self, problem: &Problem) -> Answer<R> {
        self.settings.problems.render(problem).map(|body| ResponseBody::kept([body], None))
    }

    pub(crate) fn decided(
        &self,
        outcome: RequestOutcome,
        id: Option<&OperationId>,
        attempt: Option<u32>,
        trace: Option<Trace>,
        first: Option<Trace>,
    ) {
        self.requests.count(outcome);
        observe::decided(&self.settings, outcome, id, attempt, trace, first);
    }
}

/// An answer that runs nothing, and what it is counted as.
pub(crate) struct Told<R> {
    pub(crate) answer: Answer<R>,
    outcome: RequestOutcome,
    attempt: Option<u32>,
    first: Option<Trace>,
}

/// A duplicate's place, and until when it stays.
struct Waiting {
    waiter: Waiter,
    until: Instant,
}

enum WaitEnd {
    MyTurn(Box<Turn>),
    Outcome(Found),
    Timeout,
    StoreFailed,
}

/// The heads agree; the request's body has to be read to tell more.
struct Unread {
    hasher: BodyHasher,
    part: BodyPart,
}

fn likeness_of(matches: bool) -> Likeness {
    if matches { Likeness::Same } else { Likeness::Differs }
}

fn fingerprint_of(found: &Found) -> Option<&Fingerprint> {
    match found {
        Found::Free => None,
        Found::InFlight { fingerprint, .. }
        | Found::Lapsed { fingerprint, .. }
        | Found::Finished { fingerprint, .. } => Some(fingerprint),
    }
}

fn content_key(fingerprint: &Fingerprint) -> Result<IdempotencyKey, Problem> {
    let digest: [u8; 32] = Sha256::digest(fingerprint.encode()).into();
    let text: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(IdempotencyKey::new(&text)?)
}

// K3: running unprotected is the worst answer, and the key may be in what was not read.
fn body_too_long_for_key() -> Problem {
    Problem::new(Code::MissingKey, "The body is longer than what is read to find the key in it.")
}

fn incomplete_body() -> Problem {
    Problem::new(Code::IncompleteBody, "The body ended before its end. Nothing was done.")
}

pub(crate) fn in_progress() -> Problem {
    Problem::new(
        Code::InProgress,
        "The first request with this key has not been answered yet. Try again with the same key.",
    )
    .retry_after(Duration::from_secs(1))
}

fn outcome_unknown(attempt: u32) -> Problem {
    let mut problem = Problem::new(
        Code::OutcomeUnknown,
        "An earlier attempt ended and nobody knows what it did. It will not run again until an \
         operator has resolved it.",
    );
    problem.attempt = Some(attempt);
    problem
}

pub(crate) fn store_unavailable() -> Problem {
    Problem::new(
        Code::StoreUnavailable,
        "No handler ran for this request. Try again with the same key.",
    )
    .retry_after(Duration::from_secs(1))
}

fn overloaded() -> Problem {
    Problem::new(Code::Overloaded, "No handler ran for this request. Try again with the same key.")
        .retry_after(Duration::from_secs(1))
}
