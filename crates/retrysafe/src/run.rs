//! What happens to a request that owns its operation: the handler runs, and the outcome is written
//! before the answer leaves (R1). All of it is on a task of its own: a client that hangs up changes
//! nothing (E1).

use std::{panic::AssertUnwindSafe, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderValue, Request, Response, response};
use http_body::Body;
use retrysafe_core::{
    Acquired, Attempt, Code, Disposition, Ending, Found, KeptHeaders, Likeness, OnUnknownOutcome,
    Outcome, OutcomeOverrule, Overrule, Problem, Reconciled, ResponseHead, Store, Trace, Unknown,
    headers::{IDEMPOTENCY_STATUS, NOT_RECORDED},
};
use tower_service::Service;
use tracing::{Instrument as _, Span};

use crate::{
    body::{BoxError, RequestBody, ResponseBody, Tap},
    engine::{BeginError, Begun, Permit},
    execution::{Ended, Execution},
    guard::{Answer, Guard, Prepared, in_progress, store_unavailable},
    observe::{self, RequestOutcome},
    stream::{self, Broken, LiveSender, Read},
    waiting::Turn,
};

/// Marks a response as a stream (R5): it goes out while it is being made, and its record is
/// finished at its clean end. A handler puts it into the response's extensions.
/// `text/event-stream` and `application/x-ndjson` need no mark.
#[derive(Clone, Copy, Debug, Default)]
pub struct StreamedResponse;

/// What came of a claim.
pub(crate) enum Claimed<I, B, R, E> {
    /// It was granted, and this is the answer.
    Answered(Result<Answer<R>, E>),
    /// It was not, and this is what is true.
    Found { found: Found, inner: I, request: Prepared<B>, turn: Option<Turn> },
    /// The store was not asked or did not answer.
    Refused { error: BeginError, inner: I, request: Prepared<B> },
}

/// Claims an operation and runs what was granted.
pub(crate) async fn claim_and_run<S, I, B, R>(
    guard: Arc<Guard<S>>,
    inner: I,
    request: Prepared<B>,
    take_over: bool,
    turn: Option<Turn>,
) -> Claimed<I, B, R, I::Error>
where
    S: Store,
    I: Service<Request<RequestBody<B>>, Response = Response<R>, Future: Send> + Send + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
    R: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    // E6: before any store call.
    let Some(permit) = guard.engine.permit() else {
        return Claimed::Refused { error: BeginError::Overloaded, inner, request };
    };
    let engine = &guard.engine;
    let begun =
        engine.begin(&guard.settings, request.id, &request.fingerprint, take_over).await;
    match begun {
        Ok(Begun::Acquired(acquired, mut execution)) => {
            execution.carry(turn);
            Claimed::Answered(run(guard, inner, request, acquired, execution, permit).await)
        }
        Ok(Begun::Found(found)) => {
            let turn = match (turn, &found) {
                (Some(turn), Found::Finished { .. }) => {
                    turn.publish(found.clone());
                    None
                }
                (turn, _) => turn,
            };
            Claimed::Found { found, inner, request, turn }
        }
        Err(error) => Claimed::Refused { error, inner, request },
    }
}

async fn run<S, I, B, R>(
    guard: Arc<Guard<S>>,
    mut inner: I,
    request: Prepared<B>,
    acquired: Acquired,
    mut execution: Execution<S>,
    permit: Permit,
) -> Result<Answer<R>, I::Error>
where
    S: Store,
    I: Service<Request<RequestBody<B>>, Response = Response<R>, Future: Send>,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
    R: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let Prepared { mut parts, body, key, scope, id, trace, .. } = request;
    if !execution.start().await {
        // Nothing has run: dropping the execution frees the key.
        return Ok(guard.refuse(&store_unavailable(), RequestOutcome::Rejected, Some(&id), None));
    }
    let attempt = Attempt::new(id, key, scope, acquired);
    let (body, tap) = body.into_body(guard.settings.fingerprinter.hasher());
    let mut conclusion = Conclusion { guard, execution, attempt, trace, tap, _permit: permit };
    if acquired.previous_vanished {
        conclusion = match conclusion.reconcile().await {
            Ok(conclusion) => conclusion,
            Err(answer) => return Ok(*answer),
        };
    }
    conclusion.guard.door.strip(&mut parts);
    conclusion.guard.door.introduce(&mut parts, &conclusion.attempt);
    let request = Request::from_parts(parts, body);
    // E5: a panic is caught, whether it happens in the call or in its future.
    match AssertUnwindSafe(async { inner.call(request).await }).catch_unwind().await {
        Ok(Ok(response)) => Ok(conclusion.conclude(response).await),
        Ok(Err(error)) => match conclusion.failed().await {
            None => Err(error),
            Some(fenced) => Ok(fenced),
        },
        Err(_) => Ok(conclusion.panicked().await),
    }
}

/// An attempt whose handler has started, on its way to its answer.
struct Conclusion<S: Store> {
    guard: Arc<Guard<S>>,
    execution: Execution<S>,
    attempt: Attempt,
    trace: Option<Trace>,
    tap: Option<Arc<Tap>>,
    /// Given back when the attempt has ended (E6).
    _permit: Permit,
}

/// What is written of a response.
struct Written<'a> {
    head: &'a response::Parts,
    data: Option<&'a [Bytes]>,
    trailers: Option<&'a http::HeaderMap>,
    stream: bool,
    retention: Option<Duration>,
}

impl<S: Store> Conclusion<S> {
    /// D3: an earlier attempt vanished; the user's function looks at the real world first, under
    /// the lease of this one.
    async fn reconcile<R>(self) -> Result<Self, Box<Answer<R>>> {
        let OnUnknownOutcome::Reconcile(look) = &self.guard.settings.on_unknown_outcome else {
            return Ok(self);
        };
        let look = look.clone();
        let unknown = Unknown { context: self.attempt.clone() };
        let looked = AssertUnwindSafe(async { look(unknown).await }).catch_unwind().await;
        let (id, number) = (*self.attempt.operation(), self.attempt.number());
        match looked {
            Ok(Reconciled::DidNotHappen) => Ok(self),
            Ok(Reconciled::Happened(response)) => {
                let (head, body) = response.into_parts();
                let data = [body];
                let written = Written {
                    head: &head,
                    data: Some(&data),
                    trailers: None,
                    stream: false,
                    retention: None,
                };
                let (guard, trace) = (self.guard.clone(), self.trace);
                let fingerprint = self.execution.fingerprint().clone();
                let payload = self.payload(&written);
                let ended = self.keep(written).await;
                let found = match ended {
                    Ended::Recorded | Ended::NotRecorded => {
                        Found::Finished { fingerprint, payload }
                    }
                    Ended::Stale => return Err(Box::new(guard.in_progress(&id, number))),
                    Ended::Lost(found) => found,
                };
                Err(Box::new(guard.answer_found(&id, found, Likeness::Same, trace)))
            }
            Ok(Reconciled::StillUnknown) | Err(_) => {
                let guard = self.guard.clone();
                let _ = self.execution.give_up().await;
                Err(Box::new(guard.outcome_unknown(&id, number)))
            }
        }
    }

    /// The handler answered.
    async fn conclude<R>(self, mut response: Response<R>) -> Answer<R>
    where
        R: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let settings = &self.guard.settings;
        let overrule = self.guard.door.take_overrule(&mut response);
        // R2: only a replay carries the marker, whatever the inner service sent.
        response.headers_mut().remove(&settings.replay_marker);
        response.headers_mut().remove(&IDEMPOTENCY_STATUS);
        let (head, body) = response.into_parts();
        let max_kept_body = settings.max_kept_body;
        if is_stream(&head) {
            return self.stream(head, Vec::new(), Box::pin(body), overrule);
        }
        if overrule.outcome == Some(OutcomeOverrule::OmitBody) {
            return self.answer_long(head, Vec::new(), Box::pin(body), overrule).await;
        }
        // The body is the handler's work too: a panic in it is a panic of the handler (E5).
        let read = stream::read(body, max_kept_body);
        match AssertUnwindSafe(read).catch_unwind().await {
            Ok(Read::Whole { data, trailers }) => {
                let disposition = self.disposition(&head, overrule);
                let written = Written {
                    head: &head,
                    data: Some(&data),
                    trailers: trailers.as_ref(),
                    stream: false,
                    retention: overrule.retention,
                };
                let (guard, attempt, trace) = self.parts();
                let ended = self.end(disposition, written).await;
                let body = ResponseBody::kept(data, trailers);
                guard.respond(&attempt, trace, disposition, ended, Response::from_parts(head, body))
            }
            Ok(Read::Long { data, rest }) => match self.disposition(&head, overrule) {
                Disposition::Keep => self.answer_long(head, data, rest, overrule).await,
                // What is freed must be over first.
                _ => self.stream(head, data, rest, overrule),
            },
            Ok(Read::BrokeOff) => {
                let (guard, attempt, trace) = self.parts();
                self.execution.abandon();
                let id = attempt.operation();
                let outcome = RequestOutcome::Executed;
                guard.decided(outcome, Some(id), Some(attempt.number()), trace, None);
                let detail = "The response broke off. A retry with the same key finds out more.";
                guard.problem(&Problem::new(guard.door.broken_body(), detail))
            }
            Err(_) => self.panicked().await,
        }
    }

    /// R4: the record is finished without the body, before the first byte. A later break changes
    /// nothing.
    async fn answer_long<R>(
        self,
        head: response::Parts,
        data: Vec<Bytes>,
        rest: Pin<Box<R>>,
        overrule: Overrule,
    ) -> Answer<R> {
        let disposition = match self.request_broke_off() {
            true => Disposition::GiveUp,
            false => Disposition::Keep,
        };
        let retention = overrule.retention;
        let written =
            Written { head: &head, data: None, trailers: None, stream: false, retention };
        let (guard, attempt, trace) = self.parts();
        let ended = self.end(disposition, written).await;
        let response = Response::from_parts(head, ResponseBody::resumed(data, rest));
        guard.respond(&attempt, trace, disposition, ended, response)
    }

    /// R5: the response goes out while it is being made.
    fn stream<R>(
        self,
        head: response::Parts,
        data: Vec<Bytes>,
        rest: Pin<Box<R>>,
        overrule: Overrule,
    ) -> Answer<R>
    where
        R: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let (sender, live) = stream::live();
        let mut response = Response::new(ResponseBody::live(live));
        *response.status_mut() = head.status;
        *response.version_mut() = head.version;
        *response.headers_mut() = head.headers.clone();
        *response.extensions_mut() = head.extensions.clone();
        let engine = self.guard.engine.clone();
        let span = Span::current();
        engine.detach(self.forward(head, data, rest, overrule, sender).instrument(span));
        response
    }

    async fn forward<R>(
        self,
        head: response::Parts,
        data: Vec<Bytes>,
        rest: Pin<Box<R>>,
        overrule: Overrule,
        client: LiveSender,
    ) where
        R: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let (guard, attempt, trace) = self.parts();
        let max_kept_body = guard.settings.max_kept_body;
        let forwarded = stream::forward(data, rest, max_kept_body, client, &self.execution);
        let (id, number) = (attempt.operation(), attempt.number());
        let Ok(forwarded) = AssertUnwindSafe(forwarded).catch_unwind().await else {
            // E5: the client's response broke off when the panic dropped its sender.
            observe::panicked(id, number);
            let _ = self.execution.give_up().await;
            guard.decided(RequestOutcome::Executed, Some(id), Some(number), trace, None);
            return;
        };
        let (client, streamed) = match forwarded {
            Ok(forwarded) => forwarded,
            Err(broken) => {
                self.execution.abandon();
                let outcome = match broken {
                    Broken::Body => RequestOutcome::Executed,
                    Broken::Lease => RequestOutcome::Fenced,
                };
                guard.decided(outcome, Some(id), Some(number), trace, None);
                return;
            }
        };
        let omitted = overrule.outcome == Some(OutcomeOverrule::OmitBody);
        let disposition = self.disposition(&head, overrule);
        let written = Written {
            head: &head,
            data: streamed.data.as_deref().filter(|_| !omitted),
            trailers: streamed.trailers.as_ref(),
            stream: true,
            retention: overrule.retention,
        };
        let ended = self.end(disposition, written).await;
        match ended {
            Ended::Recorded | Ended::NotRecorded => {
                guard.decided(ran(disposition), Some(id), Some(number), trace, None);
                client.end(streamed.trailers);
            }
            // E5: the loser's answer must not look whole.
            Ended::Stale | Ended::Lost(_) => {
                guard.decided(RequestOutcome::Fenced, Some(id), Some(number), trace, None);
                client.break_off(None);
            }
        }
    }

    /// The inner service failed: its error is the answer, unless the lease was lost.
    async fn failed<R>(self) -> Option<Answer<R>> {
        let (guard, attempt, trace) = self.parts();
        let ended = self.execution.give_up().await;
        match ended {
            Ended::Recorded | Ended::NotRecorded => {
                let outcome = RequestOutcome::Executed;
                let (id, number) = (attempt.operation(), attempt.number());
                guard.decided(outcome, Some(id), Some(number), trace, None);
                None
            }
            ended => Some(guard.fenced(&attempt, trace, ended)),
        }
    }

    async fn panicked<R>(self) -> Answer<R> {
        let (guard, attempt, trace) = self.parts();
        observe::panicked(attempt.operation(), attempt.number());
        let ended = self.execution.give_up().await;
        let detail = "The handler failed. A retry with the same key finds out more.";
        let response = guard.problem(&Problem::new(Code::HandlerFailed, detail));
        guard.respond(&attempt, trace, Disposition::GiveUp, ended, response)
    }

    /// How the attempt ends, by what the handler answered and what it said of it (PROTOCOL 5, E4).
    fn disposition(&self, head: &response::Parts, overrule: Overrule) -> Disposition {
        let answered = Ending::Answered(head.status);
        let ending = head.extensions.get::<Ending>().copied().unwrap_or(answered);
        if ending == Ending::NeverStarted {
            return Disposition::Release;
        }
        // F4: a request whose body broke off is never kept.
        if self.request_broke_off() {
            return Disposition::GiveUp;
        }
        match (overrule.outcome, ending) {
            (Some(OutcomeOverrule::Store | OutcomeOverrule::OmitBody), _) => Disposition::Keep,
            (Some(OutcomeOverrule::Release), _) => Disposition::Release,
            (Some(OutcomeOverrule::Unknown), _) => Disposition::GiveUp,
            (None, Ending::BrokeOff) => Disposition::Abandon,
            (None, Ending::Failed) => Disposition::GiveUp,
            (None, Ending::Answered(_) | Ending::NeverStarted) => {
                let head = ResponseHead { status: head.status, headers: &head.headers };
                self.guard.settings.outcomes.judge(head)
            }
        }
    }

    fn request_broke_off(&self) -> bool {
        self.tap.as_ref().is_some_and(|tap| tap.part().is_none())
    }

    async fn end(self, disposition: Disposition, written: Written<'_>) -> Ended {
        match disposition {
            Disposition::Keep => self.keep(written).await,
            Disposition::Release => self.execution.release().await,
            Disposition::GiveUp => self.execution.give_up().await,
            Disposition::Abandon => {
                self.execution.abandon();
                Ended::Recorded
            }
        }
    }

    async fn keep(self, written: Written<'_>) -> Ended {
        let mut fingerprint = self.execution.fingerprint().clone();
        if fingerprint.body.is_none() {
            // F4: exactly the bytes that the handler was given.
            fingerprint.body = self.tap.as_ref().and_then(|tap| tap.part());
        }
        let retention = written.retention.unwrap_or(self.guard.settings.retention);
        let payload = self.payload(&written);
        observe::kept(payload.len());
        self.execution.complete(fingerprint, payload, retention).await
    }

    /// What the store can hold of a response: all of it, or without its body, or its status (R4).
    fn payload(&self, written: &Written<'_>) -> Bytes {
        let settings = &self.guard.settings;
        let mut outcome = Outcome {
            status: written.head.status,
            headers: &written.head.headers,
            body: written.data,
            trailers: written.trailers,
            stream: written.stream,
            trailers_only: false,
            recorded: self.guard.engine.clock().wall(),
            trace: self.trace,
        };
        let fits = |payload: &Bytes| payload.len() <= self.guard.engine.about().max_payload;
        let whole = outcome.encode(&settings.kept_headers);
        if fits(&whole) {
            return whole;
        }
        (outcome.body, outcome.trailers) = (None, None);
        let head = outcome.encode(&settings.kept_headers);
        if fits(&head) {
            return head;
        }
        let nothing = http::HeaderMap::new();
        outcome.headers = &nothing;
        outcome.encode(&KeptHeaders::default())
    }

    fn parts(&self) -> (Arc<Guard<S>>, Attempt, Option<Trace>) {
        (self.guard.clone(), self.attempt.clone(), self.trace)
    }
}

impl<S: Store> Guard<S> {
    /// Gives the handler's answer, if it is still ours to give.
    fn respond<R>(
        &self,
        attempt: &Attempt,
        trace: Option<Trace>,
        disposition: Disposition,
        ended: Ended,
        mut response: Answer<R>,
    ) -> Answer<R> {
        match ended {
            Ended::Recorded => {}
            Ended::NotRecorded => {
                let status = HeaderValue::from_static(NOT_RECORDED);
                response.headers_mut().insert(&IDEMPOTENCY_STATUS, status);
            }
            ended => return self.fenced(attempt, trace, ended),
        }
        let (id, number) = (attempt.operation(), attempt.number());
        self.decided(ran(disposition), Some(id), Some(number), trace, None);
        response
    }

    /// E5: the loser never answers with its own result.
    fn fenced<R>(&self, attempt: &Attempt, trace: Option<Trace>, ended: Ended) -> Answer<R> {
        let (id, number) = (attempt.operation(), attempt.number());
        self.decided(RequestOutcome::Fenced, Some(id), Some(number), trace, None);
        match ended {
            Ended::Lost(found @ Found::Finished { .. }) => {
                self.told(id, found, Likeness::Same).answer
            }
            _ => self.problem(&in_progress()),
        }
    }
}

fn ran(disposition: Disposition) -> RequestOutcome {
    match disposition {
        Disposition::Release => RequestOutcome::Released,
        _ => RequestOutcome::Executed,
    }
}

fn is_stream(head: &response::Parts) -> bool {
    if head.extensions.get::<StreamedResponse>().is_some() {
        return true;
    }
    let Some(content_type) = head.headers.get(http::header::CONTENT_TYPE) else { return false };
    let essence = content_type.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
    ["text/event-stream", "application/x-ndjson"]
        .iter()
        .any(|stream| essence.trim_ascii().eq_ignore_ascii_case(stream.as_bytes()))
}
