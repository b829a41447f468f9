//! How a guarded request flows: key, scope, body and fingerprint, claim, decision.
//!
//! What is read of the request and what is answered to it happens in the client's future: nothing
//! is lost if it is dropped. A claim and everything that follows from it does not depend on that
//! future, from before `begin` is sent (D5): see [`run`](crate::run) and `Engine::see_through`.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header, request::Parts};
use http_body::Body;
use retrysafe_core::{
    Attempt, Begin, Code, Comparison, Decision, Fingerprint, Fingerprinter, Found, IdempotencyKey,
    Kept, KeySource, Likeness, OnInFlight, OnStoreFailure, OnUnknownOutcome, OperationId, Problem,
    Record, RequestHead, Scope, Settings, Store, Trace, decide,
    headers::{BYPASSED, IDEMPOTENCY_STATUS},
};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, timeout_at};
use tower_service::Service;
use tracing::{Instrument as _, Span, field::Empty};

use crate::{
    body::{BoxError, Pieces, ReadAhead, RequestBody, ResponseBody},
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
#[expect(clippy::large_enum_variant, reason = "it is taken apart at once")]
enum Ready<B> {
    Guarded(Box<Prepared<B>>),
    /// It names no operation (K6).
    Unnamed(Parts, ReadAhead<B>),
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
    pub(crate) async fn answer<I, B, R>(
        self: Arc<Self>,
        mut inner: I,
        request: Request<B>,
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
        let request = match self.prepare(request).await {
            Ok(Ready::Guarded(request)) => request,
            Ok(Ready::Unnamed(parts, body)) => {
                let body = body.into_body(|| self.settings.fingerprinter.hasher()).0;
                let response = inner.call(Request::from_parts(parts, body)).await?;
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

    /// Claims, decides, waits, and claims again, until there is an answer.
    async fn settle<I, B, R>(
        self: Arc<Self>,
        mut inner: I,
        mut request: Box<Prepared<B>>,
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
        let may_take_over = !matches!(self.settings.on_unknown_outcome, OnUnknownOutcome::Refuse);
        // A body that is not known yet may still turn out to differ: look before taking over.
        let mut take_over = may_take_over && request.fingerprint.body.is_some();
        let mut waiting: Option<Waiting> = None;
        let mut turn = None;
        let mut superseded = false;
        loop {
            let id = request.id;
            let work = claim_and_run(self.clone(), inner, request, take_over, turn.take());
            // Boxed before anything is wrapped around it: it is large, and every wrapper moves it.
            let work = Box::pin(work).instrument(Span::current());
            let claimed = self.engine.see_through(work).await;
            let (found, my_turn);
            match claimed {
                Some(Claimed::Answered(answer)) => return answer,
                Some(Claimed::Refused { error, inner, request }) => {
                    return Box::pin(self.without_store(error, inner, request)).await;
                }
                Some(Claimed::Found { found: it, inner: i, request: r, turn: t }) => {
                    (found, inner, request, my_turn) = (it, i, r, t);
                }
                // Only a runtime that is shutting down, or a mistake of ours, ends a task early.
                // Its execution, if there was one, has been abandoned.
                None => {
                    let problem = Problem::new(Code::HandlerFailed, "The request was interrupted.");
                    return Ok(self.refuse(&problem, RequestOutcome::Rejected, Some(&id), None));
                }
            }
            let likeness = match self.compare(&request, &found) {
                Ok(likeness) => likeness,
                Err(unread) => match found {
                    Found::Finished { .. } => {
                        let Unread { fingerprinter, part } = *unread;
                        let hasher = fingerprinter.hasher();
                        let matches = match Box::pin(request.body.matches(hasher, &part)).await {
                            Ok(true) => Likeness::Same,
                            Ok(false) => Likeness::Differs,
                            Err(_) => {
                                let problem = incomplete_body();
                                let outcome = RequestOutcome::Rejected;
                                return Ok(self.refuse(&problem, outcome, Some(&id), None));
                            }
                        };
                        return Ok(self.answer_found(&id, found, matches, request.trace));
                    }
                    // The record's body was known up front, so it was short, and this one is
                    // longer than that: another request.
                    _ => Likeness::Differs,
                },
            };
            let attempt = match decide(Begin::Found(found.clone()), likeness, Kept::Response) {
                Decision::InFlight { attempt, .. } => attempt,
                Decision::OutcomeUnknown { .. } if may_take_over && !take_over => {
                    take_over = true;
                    turn = my_turn;
                    continue;
                }
                Decision::OutcomeUnknown { .. }
                    if may_take_over && self.adopt_algorithm(&mut request, &found) =>
                {
                    turn = my_turn;
                    continue;
                }
                Decision::Superseded if !superseded => {
                    superseded = true;
                    continue;
                }
                _ => return Ok(self.answer_found(&id, found, likeness, request.trace)),
            };
            let OnInFlight::Wait { timeout, max_waiters } = self.settings.on_in_flight else {
                return Ok(self.in_progress(&id, attempt));
            };
            // F4: the unread rest of a long body would stall the owner's upload.
            if request.fingerprint.body.is_none() {
                return Ok(self.in_progress(&id, attempt));
            }
            let waiting = match &mut waiting {
                Some(waiting) => waiting,
                None => match self.engine.room().enter(id, max_waiters) {
                    Some(waiter) => {
                        waiting.insert(Waiting { waiter, until: Instant::now() + timeout })
                    }
                    None => return Ok(self.in_progress(&id, attempt)),
                },
            };
            // A ready service may hold what others need, such as a place under a limit: it must not
            // be held while waiting (`waiters_eat_pool`).
            inner = inner.clone();
            match Box::pin(self.wait(waiting, &id, attempt, my_turn)).await {
                WaitEnd::MyTurn(mine) => {
                    std::future::poll_fn(|cx| inner.poll_ready(cx)).await?;
                    turn = Some(mine);
                }
                WaitEnd::Outcome(found) => {
                    let likeness = match self.compare(&request, &found) {
                        Ok(likeness) => likeness,
                        // A waiter's body is short and at hand.
                        Err(unread) => {
                            let Unread { fingerprinter, part } = *unread;
                            match Box::pin(request.body.matches(fingerprinter.hasher(), &part))
                                .await
                            {
                                Ok(true) => Likeness::Same,
                                _ => Likeness::Differs,
                            }
                        }
                    };
                    return Ok(self.answer_found(&id, found, likeness, request.trace));
                }
                WaitEnd::Timeout => return Ok(self.in_progress(&id, attempt)),
                WaitEnd::StoreFailed => {
                    let problem = store_unavailable();
                    return Ok(self.refuse(&problem, RequestOutcome::Rejected, Some(&id), None));
                }
            }
        }
    }

    /// Waits for the turn, and with it until attempt `seen` may be over.
    async fn wait(
        &self,
        waiting: &mut Waiting,
        id: &OperationId,
        seen: u32,
        my_turn: Option<Turn>,
    ) -> WaitEnd {
        let until = waiting.until;
        let turn = match my_turn {
            Some(turn) => turn,
            None => match timeout_at(until, waiting.waiter.wait()).await {
                Ok(Waited::Turn(turn)) => turn,
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

    async fn prepare<B>(&self, request: Request<B>) -> Result<Ready<B>, Problem>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let (parts, body) = request.into_parts();
        let settings = &*self.settings;
        let now = || self.engine.clock().wall();
        // Before anything is waited for: a bad key costs nothing.
        let early_key = match &settings.key_source {
            KeySource::Header => settings.key.read(&parts.headers, now())?,
            KeySource::Function(find) => match find(&parts) {
                Some(text) => Some(settings.key.check(&text, now())?),
                None => None,
            },
            _ => None,
        };
        let from_body = matches!(settings.key_source, KeySource::Json(_) | KeySource::Content);
        if early_key.is_none() && !from_body && settings.require_key {
            return Err(Problem::missing_key());
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
                match pointer.key_text(body)? {
                    Some(text) => Some(settings.key.check(&text, now())?),
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
                Err(Problem::missing_key())
            } else {
                Ok(Ready::Unnamed(parts, body))
            };
        };
        let scope = match early_scope {
            Some(scope) => scope,
            None => self.scope.find(&parts).await?,
        };
        let id = OperationId::new(&settings.namespace, &scope, &key);
        let outer = parts.extensions.get::<Attempt>();
        if outer.is_some_and(|outer| *outer.operation() == id) {
            // A layer outside has claimed this very operation for this request.
            return Ok(Ready::Unnamed(parts, body));
        }
        let trace = Trace::from_headers(&parts.headers);
        let prepared = Prepared { parts, body, key, scope, id, fingerprint, trace };
        Ok(Ready::Guarded(Box::new(prepared)))
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

    /// Compares a request with what was found, by the record's own algorithm (F3).
    fn compare<B>(&self, request: &Prepared<B>, found: &Found) -> Result<Likeness, Box<Unread>> {
        let Some(record) = fingerprint_of(found) else { return Ok(Likeness::Same) };
        let Some((fingerprinter, claimed)) = self.fingerprint_like(request, record) else {
            // Nobody can tell whether it is the same request, so it does not run.
            return Ok(Likeness::Differs);
        };
        match claimed.compare(record) {
            Comparison::Same => Ok(Likeness::Same),
            Comparison::Differs => Ok(Likeness::Differs),
            Comparison::Unread(part) => Err(Box::new(Unread { fingerprinter, part })),
        }
    }

    fn fingerprint_like<B>(
        &self,
        request: &Prepared<B>,
        record: &Fingerprint,
    ) -> Option<(Fingerprinter, Fingerprint)> {
        let fingerprinter = self.settings.fingerprinter.for_algorithm(record.algorithm)?;
        let claimed = if request.fingerprint.algorithm == record.algorithm {
            request.fingerprint.clone()
        } else {
            self.fingerprint(&fingerprinter, &request.parts, &request.body)
        };
        Some((fingerprinter, claimed))
    }

    /// Fingerprints a request by the algorithm of the lapsed record it is about to take over, which
    /// the store compares it with (ST6). `false` if it is that already: the store has refused.
    fn adopt_algorithm<B>(&self, request: &mut Prepared<B>, found: &Found) -> bool {
        let Some(record) = fingerprint_of(found) else { return false };
        if record.algorithm == request.fingerprint.algorithm {
            return false;
        }
        match self.fingerprint_like(request, record) {
            Some((_, fingerprint)) => {
                request.fingerprint = fingerprint;
                true
            }
            None => false,
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
        let mut response = Response::new(ResponseBody::kept(Pieces::from_iter(body), trailers));
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
    MyTurn(Turn),
    Outcome(Found),
    Timeout,
    StoreFailed,
}

/// The heads agree; the request's body has to be read to tell more.
struct Unread {
    fingerprinter: Fingerprinter,
    part: retrysafe_core::BodyPart,
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
