//! What happens to a request that owns its operation: the handler runs, and the outcome is written
//! before the answer leaves (R1). What is not done at its first poll goes on as a task of its own, so
//! a client that hangs up changes nothing (E1).

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, Request, Response, header, response};
use http_body::Body;
use pin_project_lite::pin_project;
use retrysafe_core::{
    Acquired, Attempt, Code, Disposition, Ending, Fingerprint, Found, KeptHeaders, Likeness,
    OnUnknownOutcome, OperationId, Outcome, OutcomeOverrule, Overrule, Problem, Reconciled,
    ResponseHead, Store, Trace, Unknown, Work, grpc,
    headers::{IDEMPOTENCY_STATUS, NOT_RECORDED},
};
use tower_service::Service;
use tracing::{Instrument as _, Span};

use crate::{
    answers::{escaped, in_progress, store_unavailable, undone},
    body::{BoxError, Pieces, RequestBody, ResponseBody, Tap, next_frame},
    door::Door,
    engine::{BeginError, Begun},
    execution::{Completion, End, Ended, Execution},
    guard::{Answer, Guard, Prepared, Received},
    observe::{self, RequestOutcome},
    stream::{self, Broken, LiveSender, NotWhole, Whole},
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
    Found { found: Found, inner: I, request: Box<Prepared<B>>, turn: Option<Box<Turn>> },
    /// The store was not asked or did not answer.
    Refused { error: BeginError, inner: I, request: Box<Prepared<B>> },
}

/// Claims an operation and runs what was granted.
///
/// This future and those in it are carried by every request, so they are kept small: above 1,032
/// bytes glibc's malloc takes its slow path. They are not `async fn`s, which carry what they are given
/// twice; what needs no await is done before them; and what is lent or taken apart ends with its
/// block, before the next await, because until then there is room for it.
#[expect(clippy::manual_async_fn, reason = "see above")]
pub(crate) fn claim_and_run<S, I, B, R>(
    guard: Arc<Guard<S>>,
    mut inner: I,
    mut request: Box<Prepared<B>>,
    take_over: bool,
    turn: Option<Box<Turn>>,
) -> impl Future<Output = Claimed<I, B, R, I::Error>> + Send
where
    S: Store,
    I: Service<Request<RequestBody<B>>, Response = Response<R>, Future: Send, Error: Send>
        + Send
        + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
    R: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
{
    async move {
        // E6: before any store call.
        let Some(permit) = request.place.take().or_else(|| guard.engine.permit()) else {
            return Claimed::Refused { error: BeginError::Overloaded, inner, request };
        };
        let (mut conclusion, mut request, previous_vanished) = {
            let (acquired, mut execution) = {
                let (settings, wanted) = (&guard.settings, &request.fingerprint);
                let begun =
                    guard.engine.begin(settings, request.id, wanted, take_over, permit).await;
                match begun {
                    Ok(Begun::Acquired(acquired, execution)) => (acquired, execution),
                    Ok(Begun::Found(found)) => {
                        let turn = match (turn, &found) {
                            (Some(turn), Found::Finished { .. }) => {
                                turn.publish(found.clone());
                                None
                            }
                            (turn, _) => turn,
                        };
                        return Claimed::Found { found, inner, request, turn };
                    }
                    Err(error) => return Claimed::Refused { error, inner, request },
                }
            };
            execution.carry(turn);
            if !execution.start().await {
                // Nothing has run: dropping the execution frees the key.
                let (problem, outcome) = (store_unavailable(), RequestOutcome::Rejected);
                let answer = guard.refuse(&problem, outcome, Some(&request.id), None);
                return Claimed::Answered(Ok(answer));
            }
            let previous_vanished = acquired.previous_vanished;
            let (conclusion, request) = started(guard, request, acquired, execution);
            (conclusion, request, previous_vanished)
        };
        // What is rare is boxed, and awaited where there need be no room for a response beside it.
        let fallen = 'fallen: {
            if previous_vanished {
                (conclusion, request) = match Box::pin(conclusion.reconcile(request)).await {
                    Ok(may_run) => *may_run,
                    Err(answer) => return Claimed::Answered(Ok(*answer)),
                };
            }
            let response = match Handling::of(&mut inner, request).await {
                Ok(response) => response,
                Err(fallen) => break 'fallen Box::pin(conclusion.fallen(fallen)),
            };
            return Claimed::Answered(Ok(conclusion.conclude(response).await));
        };
        Claimed::Answered(fallen.await)
    }
}

/// A request that is about to be handled, and the attempt that it is.
fn started<S: Store, B>(
    guard: Arc<Guard<S>>,
    request: Box<Prepared<B>>,
    acquired: Acquired,
    execution: Execution<S>,
) -> (Conclusion<S>, Request<RequestBody<B>>)
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    let Prepared { received, key, scope, id, trace, .. } = *request;
    let Received { mut parts, body } = *received;
    guard.door.strip(&mut parts);
    let attempt = Attempt::new(id, key, scope, acquired)
        .claimed_in(guard.engine.about().engine)
        .with_unit(execution.unit());
    guard.door.introduce(&mut parts, attempt);
    // F3: the body part is hashed like the head part, which a take-over may have taken from the
    // record that it found.
    let fingerprinter = &guard.settings.fingerprinter;
    let (body, tap) =
        body.into_body(|| match fingerprinter.for_algorithm(execution.fingerprint().algorithm) {
            Some(known) => known.hasher(),
            None => fingerprinter.hasher(),
        });
    let ran = Ran { id, number: acquired.attempt };
    (Conclusion { guard, execution, ran, trace, tap }, Request::from_parts(parts, body))
}

pin_project! {
    /// The handler at work. E5: a panic is caught, whether it happens in the call or in its future.
    struct Handling<F> {
        // `None` if the call panicked.
        #[pin]
        handler: Option<F>,
    }
}

/// Why there is no response of the handler.
enum Fallen<E> {
    /// The inner service failed.
    Failed(E),
    /// It panicked.
    Panicked,
}

impl<F> Handling<F> {
    fn of<I, Q>(inner: &mut I, request: Q) -> Self
    where
        I: Service<Q, Future = F>,
    {
        Self { handler: catch_unwind(AssertUnwindSafe(|| inner.call(request))).ok() }
    }
}

impl<F, T, E> Future for Handling<F>
where
    F: Future<Output = Result<T, E>>,
{
    type Output = Result<T, Fallen<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut handler = self.project().handler;
        let polled = catch_unwind(AssertUnwindSafe(|| {
            let polled = handler.as_mut().as_pin_mut()?.poll(cx);
            if polled.is_ready() {
                // What it drops at its end is its work, too.
                handler.set(None);
            }
            Some(polled)
        }));
        match polled {
            Ok(Some(polled)) => polled.map_err(Fallen::Failed),
            Ok(None) => Poll::Ready(Err(Fallen::Panicked)),
            Err(_) => {
                let _ = catch_unwind(AssertUnwindSafe(|| handler.set(None)));
                Poll::Ready(Err(Fallen::Panicked))
            }
        }
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
    trailers: Option<&'a HeaderMap>,
    stream: bool,
    retention: Option<Duration>,
}

impl<S: Store> Conclusion<S> {
    /// D3: an earlier attempt vanished; the user's function looks at the real world first, under
    /// the lease of this one.
    async fn reconcile<B, R>(
        self,
        request: Request<RequestBody<B>>,
    ) -> Result<Box<(Self, Request<RequestBody<B>>)>, Box<Answer<R>>>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
    {
        let OnUnknownOutcome::Reconcile(look) = &self.guard.settings.on_unknown_outcome else {
            return Ok(Box::new((self, request)));
        };
        let look = look.clone();
        let Some(attempt) = request.extensions().get::<Attempt>() else {
            unreachable!("a handler is told of its attempt")
        };
        let unknown = Unknown { context: attempt.clone() };
        let looked = AssertUnwindSafe(async { look(unknown).await }).catch_unwind().await;
        match looked {
            // Looking may have taken long: nothing has run here, and somebody else may run it now.
            Ok(Reconciled::DidNotHappen) if !self.execution.is_fresh() => {
                let (guard, ran, _) = self.parts();
                let _ = self.execution.end(End::Release).await;
                Err(Box::new(guard.in_progress(&ran.id, ran.number)))
            }
            Ok(Reconciled::DidNotHappen) => Ok(Box::new((self, request))),
            Ok(Reconciled::Happened(response)) => {
                Err(Box::new(self.happened(response, request.into_body()).await))
            }
            Ok(Reconciled::StillUnknown) | Err(_) => {
                let (guard, ran, _) = self.parts();
                let _ = self.execution.end(End::GiveUp).await;
                Err(Box::new(guard.outcome_unknown(&ran.id, ran.number)))
            }
        }
    }

    /// An earlier attempt did it after all: its response is kept and given, as a replay.
    async fn happened<B, R>(
        self,
        mut response: Response<Bytes>,
        mut body: RequestBody<B>,
    ) -> Answer<R>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
    {
        // F4: nobody reads the request's body, and a retry is compared with all of it.
        while let Some(Ok(_)) = next_frame(&mut body).await {}
        let (guard, ran, trace) = self.parts();
        let (id, number) = (&ran.id, ran.number);
        if self.request_broke_off() {
            let _ = self.execution.end(End::GiveUp).await;
            return guard.outcome_unknown(id, number);
        }
        // E4. It happened, so what becomes of its record is no question; with what, and for how long, is.
        let Overrule { outcome, retention } = guard.door.take_overrule(&mut response);
        let (mut head, data) = response.into_parts();
        // G4: a client looks for how it ended behind the message.
        let trailers = (guard.door == Door::Grpc && !data.is_empty())
            .then(|| Box::new(grpc::take_end(&mut head.headers)));
        let data = [data];
        let fits = data[0].len() <= guard.settings.max_kept_body;
        let kept = fits && outcome != Some(OutcomeOverrule::OmitBody);
        let written = Written {
            head: &head,
            data: kept.then_some(&data[..]),
            trailers: trailers.as_deref(),
            stream: false,
            retention,
        };
        let end = self.end(Disposition::Keep, &written);
        let again = || self.guard.payload(&written, self.trace);
        let ended = self.execution.end_with(end, again).await;
        let status = match ended {
            Ended::Recorded => None,
            Ended::NotRecorded => Some(HeaderValue::from_static(NOT_RECORDED)),
            ended => return guard.fenced(ran, trace, ended),
        };
        let mut response = Response::from_parts(head, ResponseBody::kept(data, trailers));
        let headers = response.headers_mut();
        headers.insert(&guard.settings.replay_marker, HeaderValue::from_static("true"));
        if let Some(status) = status {
            headers.insert(&IDEMPOTENCY_STATUS, status);
        }
        guard.decided(RequestOutcome::Replayed, Some(id), Some(number), trace, None);
        response
    }

    /// The handler answered.
    fn conclude<R>(self, mut response: Response<R>) -> impl Future<Output = Answer<R>> + Send
    where
        R: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
    {
        let settings = &self.guard.settings;
        let overrule = self.guard.door.take_overrule(&mut response);
        // R2: only a replay carries the marker, whatever the inner service sent. It hardly ever does,
        // and a look at its few names is faster than two removals.
        let ours = [&settings.replay_marker, &IDEMPOTENCY_STATUS];
        if response.headers().keys().any(|name| ours.contains(&name)) {
            ours.into_iter().for_each(|name| drop(response.headers_mut().remove(name)));
        }
        let (head, mut body) = response.into_parts();
        async move {
            if is_stream(&head) {
                return self.stream(head, Pieces::new(), body, overrule);
            }
            if overrule.outcome == Some(OutcomeOverrule::OmitBody) {
                // Boxed, as all that is rare: there is room for the usual way only.
                return Box::pin(self.answer_long(head, Pieces::new(), body, overrule)).await;
            }
            // The body is the handler's work too: a panic in it is a panic of the handler (E5).
            let (data, trailers) = {
                let waits = self.guard.door != Door::Grpc;
                let read = stream::read(&mut body, self.guard.settings.max_kept_body, waits);
                let read = AssertUnwindSafe(read).catch_unwind();
                match read.await.unwrap_or(Err(NotWhole::Panicked)) {
                    Ok(Whole { data, trailers }) => (data, trailers),
                    Err(why) => return Box::pin(self.not_whole(why, head, body, overrule)).await,
                }
            };
            if catch_unwind(AssertUnwindSafe(|| drop(body))).is_err() {
                return Box::pin(self.panicked()).await;
            }
            let disposition = self.disposition(&head, trailers.as_deref(), overrule);
            let ended = {
                let written = Written {
                    head: &head,
                    data: Some(&data),
                    trailers: trailers.as_deref(),
                    stream: false,
                    retention: overrule.retention,
                };
                let end = self.end(disposition, &written);
                let again = || self.guard.payload(&written, self.trace);
                self.execution.end_with(end, again).await
            };
            let response = Response::from_parts(head, ResponseBody::kept(data, trailers));
            self.guard.respond(self.ran, self.trace, disposition, ended, response)
        }
    }

    /// The response is longer than what is kept, or it broke off, or reading it panicked.
    async fn not_whole<R>(
        self,
        why: NotWhole,
        head: response::Parts,
        body: R,
        overrule: Overrule,
    ) -> Answer<R>
    where
        R: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
    {
        let data = match why {
            NotWhole::Long { data } => data,
            NotWhole::BrokeOff => return self.broke_off(),
            NotWhole::Panicked => return Box::pin(self.panicked()).await,
        };
        // G4: nobody knows yet how it ends. And a method that turns out to stream must not keep its
        // client waiting for the end.
        if self.guard.door == Door::Grpc {
            return self.stream(head, data, body, overrule);
        }
        match self.disposition(&head, None, overrule) {
            Disposition::Keep => Box::pin(self.answer_long(head, data, body, overrule)).await,
            // What is freed must be over first.
            _ => self.stream(head, data, body, overrule),
        }
    }

    /// The response broke off before any of it was passed on.
    fn broke_off<R>(self) -> Answer<R> {
        let (guard, ran, trace) = self.parts();
        self.execution.abandon();
        guard.decided(RequestOutcome::Executed, Some(&ran.id), Some(ran.number), trace, None);
        let detail = "The response broke off. A retry with the same key finds out more.";
        guard.problem(&Problem::new(guard.door.broken_body(), detail))
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
        let end = self.end(disposition, &written);
        let again = || self.guard.payload(&written, self.trace);
        let ended = self.execution.end_with(end, again).await;
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
        // E5: who knows the length takes the last byte for the end, which has to wait for the record.
        response.headers_mut().remove(header::CONTENT_LENGTH);
        *response.extensions_mut() = head.extensions.clone();
        let engine = self.guard.engine.clone();
        let span = Span::current();
        let tasks = self.guard.tasks;
        engine.detach(self.forward(head, data, rest, overrule, sender).instrument(span), tasks);
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
            let _ = self.execution.end(End::GiveUp).await;
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
        let disposition = self.disposition(&head, streamed.trailers.as_deref(), overrule);
        let written = Written {
            head: &head,
            data: streamed.data.as_deref().filter(|_| !omitted),
            trailers: streamed.trailers.as_deref(),
            stream: true,
            retention: overrule.retention,
        };
        let end = self.end(disposition, &written);
        let again = || self.guard.payload(&written, self.trace);
        let ended = self.execution.end_with(end, again).await;
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
            // Nor must what has not happened.
            Ended::Undone | Ended::Escaped => {
                guard.decided(RequestOutcome::Executed, Some(id), Some(number), trace, None);
                client.break_off(None);
            }
        }
    }

    /// There is no response of the handler.
    async fn fallen<R, E>(self, fallen: Fallen<E>) -> Result<Answer<R>, E> {
        match fallen {
            Fallen::Failed(error) => self.failed(error).await,
            Fallen::Panicked => Ok(self.panicked().await),
        }
    }

    /// The inner service failed: its error is the answer, unless the lease was lost.
    async fn failed<R, E>(self, error: E) -> Result<Answer<R>, E> {
        let (guard, ran, trace) = self.parts();
        let ended = self.execution.end(End::GiveUp).await;
        match ended {
            Ended::Recorded | Ended::NotRecorded => {
                let outcome = RequestOutcome::Executed;
                let (id, number) = (&ran.id, ran.number);
                guard.decided(outcome, Some(id), Some(number), trace, None);
                Err(error)
            }
            ended => Ok(guard.fenced(ran, trace, ended)),
        }
    }

    async fn panicked<R>(self) -> Answer<R> {
        let (guard, ran, trace) = self.parts();
        observe::panicked(&ran.id, ran.number);
        let ended = self.execution.end(End::GiveUp).await;
        let detail = "The handler failed. A retry with the same key finds out more.";
        let response = guard.problem(&Problem::new(Code::HandlerFailed, detail));
        guard.respond(ran, trace, Disposition::GiveUp, ended, response)
    }

    /// How the attempt ends, by what the handler answered and what it said of it (PROTOCOL 5, E4).
    fn disposition(
        &self,
        head: &response::Parts,
        trailers: Option<&HeaderMap>,
        overrule: Overrule,
    ) -> Disposition {
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
            // PROTOCOL 5: 1xx are never kept, whatever is said of them.
            (Some(OutcomeOverrule::Store | OutcomeOverrule::OmitBody), _)
                if !head.status.is_informational() =>
            {
                Disposition::Keep
            }
            (Some(OutcomeOverrule::Release), _) => Disposition::Release,
            (Some(OutcomeOverrule::Unknown), _) => Disposition::GiveUp,
            (_, Ending::BrokeOff) => Disposition::Abandon,
            (_, Ending::Failed) => Disposition::GiveUp,
            (_, Ending::Answered(_) | Ending::NeverStarted) => {
                let head = ResponseHead { status: head.status, headers: &head.headers, trailers };
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

    /// What the store is told.
    fn end(&self, disposition: Disposition, written: &Written<'_>) -> End {
        match disposition {
            Disposition::Keep => self.kept(written).map_or(End::GiveUp, End::Complete),
            Disposition::Release => End::Release,
            Disposition::GiveUp => End::GiveUp,
            Disposition::Abandon => End::Abandon,
        }
    }

    /// `None` if the request's body has broken off by now (F4).
    fn kept(&self, written: &Written<'_>) -> Option<Completion> {
        let claimed = self.execution.fingerprint();
        // F4: exactly the bytes that the handler was given.
        let fingerprint = match &self.tap {
            Some(tap) if claimed.body.is_none() => {
                let body = Some(tap.part()?);
                Some(Box::new(Fingerprint { body, ..claimed.clone() }))
            }
            _ => None,
        };
        let head = written.head;
        let head = ResponseHead {
            status: head.status,
            headers: &head.headers,
            trailers: written.trailers,
        };
        self.execution.undo_work_if(|| head.work() == Work::Undone);
        let settings = &self.guard.settings;
        let mut retention = written.retention.unwrap_or(settings.retention);
        if self.ran.number > 1 {
            // An older attempt may still be alive, and must not meet a fence that starts anew.
            retention = retention.max(settings.keep_counters_for());
        }
        let payload = self.guard.payload(written, self.trace);
        observe::kept(payload.len());
        Some(Completion { fingerprint, payload, retention })
    }

    fn parts(&self) -> (Arc<Guard<S>>, Ran, Option<Trace>) {
        (self.guard.clone(), self.ran, self.trace)
    }
}

impl<S: Store> Guard<S> {
    /// What the store can hold of a response: all of it, or without its body, or its status (R4).
    fn payload(&self, written: &Written<'_>, trace: Option<Trace>) -> Bytes {
        let settings = &self.settings;
        let mut outcome = Outcome {
            status: written.head.status,
            headers: &written.head.headers,
            body: written.data,
            trailers: written.trailers,
            stream: written.stream,
            trailers_only: false,
            recorded: self.engine.clock().wall(),
            trace,
        };
        let fits = |payload: &Bytes| payload.len() <= self.engine.about().max_payload;
        let whole = outcome.encode(&settings.kept_headers);
        if fits(&whole) {
            return whole;
        }
        (outcome.body, outcome.trailers) = (None, None);
        let head = outcome.encode(&settings.kept_headers);
        if fits(&head) {
            return head;
        }
        let nothing = HeaderMap::new();
        outcome.headers = &nothing;
        outcome.encode(&KeptHeaders::default())
    }

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

    /// E5: the loser never answers with its own result, nor does who has lost what was done.
    fn fenced<R>(&self, ran: Ran, trace: Option<Trace>, ended: Ended) -> Answer<R> {
        let (id, number) = (&ran.id, ran.number);
        let outcome = match ended {
            Ended::Undone | Ended::Escaped => RequestOutcome::Executed,
            _ => RequestOutcome::Fenced,
        };
        self.decided(outcome, Some(id), Some(number), trace, None);
        match ended {
            Ended::Lost(found @ Found::Finished { .. }) => {
                self.told(id, found, Likeness::Same).answer
            }
            Ended::Undone => self.problem(&undone()),
            Ended::Escaped => self.problem(&escaped()),
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
