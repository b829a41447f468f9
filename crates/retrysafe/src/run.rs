//! What happens to a request that owns its operation: the handler runs, and the outcome is written
//! before the answer leaves (R1). What is not done at its first poll goes on as a task of its own, so
//! a client that hangs up changes nothing (E1).

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderValue, Request, Response, response};
use http_body::Body;
use retrysafe_core::{
    Acquired, Attempt, Code, Disposition, Ending, Fingerprint, Found, KeptHeaders, Likeness,
    OnUnknownOutcome, OperationId, Outcome, OutcomeOverrule, Overrule, Problem, Reconciled,
    ResponseHead, Store, Trace, Unknown,
    headers::{IDEMPOTENCY_STATUS, NOT_RECORDED},
};
use tower_service::Service;
use tracing::{Instrument as _, Span};

use crate::{
    body::{BoxError, Pieces, RequestBody, ResponseBody, Tap, next_frame},
    engine::{BeginError, Begun},
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
    Found { found: Found, inner: I, request: Box<Prepared<B>>, turn: Option<Turn> },
    /// The store was not asked or did not answer.
    Refused { error: BeginError, inner: I, request: Box<Prepared<B>> },
}

/// Claims an operation and runs what was granted.
pub(crate) async fn claim_and_run<S, I, B, R>(
    guard: Arc<Guard<S>>,
    inner: I,
    request: Box<Prepared<B>>,
    take_over: bool,
    turn: Option<Turn>,
) -> Claimed<I, B, R, I::Error>
where
    S: Store,
    I: Service<Request<RequestBody<B>>, Response = Response<R>, Future: Send> + Send + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
    R: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
{
    // E6: before any store call.
    let Some(permit) = guard.engine.permit() else {
        return Claimed::Refused { error: BeginError::Overloaded, inner, request };
    };
    let (settings, fingerprint) = (&guard.settings, &request.fingerprint);
    let begun = guard.engine.begin(settings, request.id, fingerprint, take_over, permit).await;
    match begun {
        Ok(Begun::Acquired(acquired, mut execution)) => {
            execution.carry(turn);
            Claimed::Answered(run(guard, inner, request, acquired, execution).await)
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
    request: Box<Prepared<B>>,
    acquired: Acquired,
    mut execution: Execution<S>,
) -> Result<Answer<R>, I::Error>
where
    S: Store,
    I: Service<Request<RequestBody<B>>, Response = Response<R>, Future: Send>,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
    R: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
{
    let Prepared { mut parts, body, key, scope, id, trace, .. } = *request;
    if !execution.start().await {
        // Nothing has run: dropping the execution frees the key.
        return Ok(guard.refuse(&store_unavailable(), RequestOutcome::Rejected, Some(&id), None));
    }
    let attempt = Attempt::new(id, key, scope, acquired);
    // F3: the body part is hashed like the head part, which a take-over may have taken from the
    // record that it found.
    let fingerprinter = &guard.settings.fingerprinter;
    let algorithm = execution.fingerprint().algorithm;
    let (mut body, tap) = body.into_body(|| match fingerprinter.for_algorithm(algorithm) {
        Some(known) => known.hasher(),
        None => fingerprinter.hasher(),
    });
    let ran = Ran { id, number: acquired.attempt };
    let mut conclusion = Conclusion { guard, execution, ran, trace, tap };
    if acquired.previous_vanished {
        conclusion = match Box::pin(conclusion.reconcile(&attempt, &mut body)).await {
            Ok(conclusion) => conclusion,
            Err(answer) => return Ok(*answer),
        };
    }
    conclusion.guard.door.strip(&mut parts);
    conclusion.guard.door.introduce(&mut parts, attempt);
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
    ran: Ran,
    trace: Option<Trace>,
    tap: Option<Arc<Tap>>,
}

/// Which attempt it was.
#[derive(Clone, Copy)]
pub(crate) struct Ran {
    id: OperationId,
    number: u32,
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
    async fn reconcile<B, R>(
        self,
        attempt: &Attempt,
        body: &mut RequestBody<B>,
    ) -> Result<Self, Box<Answer<R>>>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
    {
        let OnUnknownOutcome::Reconcile(look) = &self.guard.settings.on_unknown_outcome else {
            return Ok(self);
        };
        let look = look.clone();
        let unknown = Unknown { context: attempt.clone() };
        let looked = AssertUnwindSafe(async { look(unknown).await }).catch_unwind().await;
        match looked {
            // Looking may have taken long: nothing has run here, and somebody else may run it now.
            Ok(Reconciled::DidNotHappen) if !self.execution.is_fresh() => {
                let (guard, ran, _) = self.parts();
                let _ = self.execution.release().await;
                Err(Box::new(guard.in_progress(&ran.id, ran.number)))
            }
            Ok(Reconciled::DidNotHappen) => Ok(self),
            Ok(Reconciled::Happened(response)) => {
                Err(Box::new(self.happened(response, body).await))
            }
            Ok(Reconciled::StillUnknown) | Err(_) => {
                let (guard, ran, _) = self.parts();
                let _ = self.execution.give_up().await;
                Err(Box::new(guard.outcome_unknown(&ran.id, ran.number)))
            }
        }
    }

    /// An earlier attempt did it after all: its response is kept and given, as a replay.
    async fn happened<B, R>(self, response: Response<Bytes>, body: &mut RequestBody<B>) -> Answer<R>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
    {
        // F4: nobody reads the request's body, and a retry is compared with all of it.
        while let Some(Ok(_)) = next_frame(body).await {}
        let (guard, ran, trace) = self.parts();
        let (id, number) = (&ran.id, ran.number);
        if self.request_broke_off() {
            let _ = self.execution.give_up().await;
            return guard.outcome_unknown(id, number);
        }
        let (head, data) = response.into_parts();
        let data = [data];
        let written = Written {
            head: &head,
            data: Some(&data[..]).filter(|it| it[0].len() <= guard.settings.max_kept_body),
            trailers: None,
            stream: false,
            retention: None,
        };
        let ended = self.end(Disposition::Keep, written).await;
        let status = match ended {
            Ended::Recorded => None,
            Ended::NotRecorded => Some(HeaderValue::from_static(NOT_RECORDED)),
            ended => return guard.fenced(ran, trace, ended),
        };
        let mut response = Response::from_parts(head, ResponseBody::kept(data, None));
        let headers = response.headers_mut();
        headers.insert(&guard.settings.replay_marker, HeaderValue::from_static("true"));
        if let Some(status) = status {
            headers.insert(&IDEMPOTENCY_STATUS, status);
        }
        guard.decided(RequestOutcome::Replayed, Some(id), Some(number), trace, None);
        response
    }

    /// The handler answered.
    async fn conclude<R>(self, mut response: Response<R>) -> Answer<R>
    where
        R: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
    {
        let settings = &self.guard.settings;
        let overrule = self.guard.door.take_overrule(&mut response);
        // R2: only a replay carries the marker, whatever the inner service sent.
        response.headers_mut().remove(&settings.replay_marker);
        response.headers_mut().remove(&IDEMPOTENCY_STATUS);
        let (head, body) = response.into_parts();
        let max_kept_body = settings.max_kept_body;
        if is_stream(&head) {
            return self.stream(head, Pieces::new(), body, overrule);
        }
        if overrule.outcome == Some(OutcomeOverrule::OmitBody) {
            // Boxed, as all that is rare: the task has room for the usual way only.
            return Box::pin(self.answer_long(head, Pieces::new(), body, overrule)).await;
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
                let (guard, ran, trace) = self.parts();
                let ended = self.end(disposition, written).await;
                let body = ResponseBody::kept(data, trailers);
                guard.respond(ran, trace, disposition, ended, Response::from_parts(head, body))
            }
            Ok(Read::Long { data, rest }) => match self.disposition(&head, overrule) {
                Disposition::Keep => Box::pin(self.answer_long(head, data, rest, overrule)).await,
                // What is freed must be over first.
                _ => self.stream(head, data, rest, overrule),
            },
            Ok(Read::BrokeOff) => {
                let (guard, ran, trace) = self.parts();
                self.execution.abandon();
                let id = &ran.id;
                let outcome = RequestOutcome::Executed;
                guard.decided(outcome, Some(id), Some(ran.number), trace, None);
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
        data: Pieces,
        rest: R,
        overrule: Overrule,
    ) -> Answer<R> {
        let disposition = match self.request_broke_off() {
            true => Disposition::GiveUp,
            false => Disposition::Keep,
        };
        let retention = overrule.retention;
        let written = Written { head: &head, data: None, trailers: None, stream: false, retention };
        let (guard, ran, trace) = self.parts();
        let ended = self.end(disposition, written).await;
        let response = Response::from_parts(head, ResponseBody::resumed(data, rest));
        guard.respond(ran, trace, disposition, ended, response)
    }

    /// R5: the response goes out while it is being made.
    fn stream<R>(
        self,
        head: response::Parts,
        data: Pieces,
        rest: R,
        overrule: Overrule,
    ) -> Answer<R>
    where
        R: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
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
        data: Pieces,
        rest: R,
        overrule: Overrule,
        client: LiveSender,
    ) where
        R: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
    {
        let (guard, ran, trace) = self.parts();
        let max_kept_body = guard.settings.max_kept_body;
        let forwarded = stream::forward(data, rest, max_kept_body, client, &self.execution);
        let (id, number) = (&ran.id, ran.number);
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
                guard.decided(outcome_of(disposition), Some(id), Some(number), trace, None);
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
        let (guard, ran, trace) = self.parts();
        let ended = self.execution.give_up().await;
        match ended {
            Ended::Recorded | Ended::NotRecorded => {
                let outcome = RequestOutcome::Executed;
                let (id, number) = (&ran.id, ran.number);
                guard.decided(outcome, Some(id), Some(number), trace, None);
                None
            }
            ended => Some(guard.fenced(ran, trace, ended)),
        }
    }

    async fn panicked<R>(self) -> Answer<R> {
        let (guard, ran, trace) = self.parts();
        observe::panicked(&ran.id, ran.number);
        let ended = self.execution.give_up().await;
        let detail = "The handler failed. A retry with the same key finds out more.";
        let response = guard.problem(&Problem::new(Code::HandlerFailed, detail));
        guard.respond(ran, trace, Disposition::GiveUp, ended, response)
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
                let judge = || self.guard.settings.outcomes.judge(head);
                catch_unwind(AssertUnwindSafe(judge)).unwrap_or_else(|_| {
                    tracing::error!("the outcome policy panicked: the outcome is unknown");
                    Disposition::GiveUp
                })
            }
        }
    }

    fn request_broke_off(&self) -> bool {
        self.tap.as_ref().is_some_and(|tap| tap.part().is_none())
    }

    async fn end(self, disposition: Disposition, written: Written<'_>) -> Ended {
        match disposition {
            Disposition::Keep => {
                let (fingerprint, payload, retention) = self.kept(&written);
                self.execution.complete(fingerprint, payload, retention).await
            }
            Disposition::Release => self.execution.release().await,
            Disposition::GiveUp => self.execution.give_up().await,
            Disposition::Abandon => {
                self.execution.abandon();
                Ended::Recorded
            }
        }
    }

    fn kept(&self, written: &Written<'_>) -> (Fingerprint, Bytes, Duration) {
        let mut fingerprint = self.execution.fingerprint().clone();
        if fingerprint.body.is_none() {
            // F4: exactly the bytes that the handler was given.
            fingerprint.body = self.tap.as_ref().and_then(|tap| tap.part());
        }
        let settings = &self.guard.settings;
        let mut retention = written.retention.unwrap_or(settings.retention);
        if self.ran.number > 1 {
            // An older attempt may still be alive, and must not meet a fence that starts anew.
            retention = retention.max(settings.keep_counters_for());
        }
        let payload = self.payload(written);
        observe::kept(payload.len());
        (fingerprint, payload, retention)
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

    fn parts(&self) -> (Arc<Guard<S>>, Ran, Option<Trace>) {
        (self.guard.clone(), self.ran, self.trace)
    }
}

impl<S: Store> Guard<S> {
    /// Gives the handler's answer, if it is still ours to give.
    fn respond<R>(
        &self,
        ran: Ran,
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
            ended => return self.fenced(ran, trace, ended),
        }
        let (id, number) = (&ran.id, ran.number);
        self.decided(outcome_of(disposition), Some(id), Some(number), trace, None);
        response
    }

    /// E5: the loser never answers with its own result.
    fn fenced<R>(&self, ran: Ran, trace: Option<Trace>, ended: Ended) -> Answer<R> {
        let (id, number) = (&ran.id, ran.number);
        self.decided(RequestOutcome::Fenced, Some(id), Some(number), trace, None);
        match ended {
            Ended::Lost(found @ Found::Finished { .. }) => {
                self.told(id, found, Likeness::Same).answer
            }
            _ => self.problem(&in_progress()),
        }
    }
}

fn outcome_of(disposition: Disposition) -> RequestOutcome {
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
