//! From a request that has been read to its answer: claim, decide, wait, and claim again.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use retrysafe_core::{
    Begin, BodyHasher, BodyPart, Code, Comparison, Decision, Fingerprint, Found, Kept, Likeness,
    OnInFlight, OnStoreFailure, OnUnknownOutcome, OperationId, Problem, Store, decide,
    headers::{BYPASSED, IDEMPOTENCY_STATUS},
};
use tokio::time::{Instant, timeout_at};
use tower_service::Service;

use crate::{
    answers::{incomplete_body, overloaded, store_unavailable},
    body::{self, BoxError, IncompleteBody, RequestBody, ResponseBody},
    engine::BeginError,
    guard::{Answer, Guard, Place, Prepared, Received},
    observe::RequestOutcome,
    run::{Claimed, claim_and_run},
    waiting::{Turn, Waited, Waiter},
};

impl<S: Store> Guard<S> {
    /// Claims, and answers what can be answered at once: the handler's response or a replay.
    #[expect(clippy::manual_async_fn, reason = "an `async fn` carries what it is given twice")]
    pub(crate) fn settle<I, B, R>(
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
            let id = request.id;
            let claimed = match self.claim_and_run(inner, request, take_over, None).await {
                Some(Claimed::Answered(answer)) => return answer,
                Some(Claimed::Found { found, inner, request, turn }) => {
                    match self.answer_finished(&request, found) {
                        Ok(answer) => return Ok(answer),
                        Err(found) => Claimed::Found { found, inner, request, turn },
                    }
                }
                Some(claimed) => claimed,
                None => return Ok(self.interrupted(&id)),
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
    ) -> impl Future<Output = Option<Claimed<I, B, R, I::Error>>> + Send + use<I, B, R, S>
    where
        I: Service<Request<RequestBody<B>>, Response = Response<R>, Future: Send, Error: Send>
            + Send
            + 'static,
        I::Error: 'static,
        B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
        R: Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
    {
        let work = claim_and_run(self.clone(), inner, request, take_over, turn);
        // Boxed before anything is wrapped around it: it is large, and every wrapper moves it.
        self.engine.see_through(Box::pin(work), self.tasks)
    }

    /// Only a runtime that is shutting down, or a mistake of ours, ends a task early. Its execution,
    /// if there was one, has been abandoned.
    fn interrupted<R>(&self, id: &OperationId) -> Answer<R> {
        let problem = Problem::new(Code::HandlerFailed, "The request was interrupted.");
        self.refuse(&problem, RequestOutcome::Rejected, Some(id), None)
    }

    fn may_take_over(&self) -> bool {
        !matches!(self.settings.on_unknown_outcome, OnUnknownOutcome::Refuse)
    }

    /// Decides, waits, and claims again, until there is an answer.
    fn settle_later<I, B, R>(
        self: Arc<Self>,
        mut claimed: Claimed<I, B, R, I::Error>,
        mut take_over: bool,
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
        let mut waiting: Option<Waiting> = None;
        let mut superseded = false;
        let mut known = false;
        async move {
            loop {
                let (found, mut inner, mut request, my_turn) = match claimed {
                    Claimed::Answered(answer) => return answer,
                    // D4: nothing runs unprotected beside an attempt that the store has told of.
                    Claimed::Refused { error: BeginError::Unreachable, inner, request }
                        if known =>
                    {
                        let error = BeginError::Refused;
                        return Box::pin(self.without_store(error, inner, request)).await;
                    }
                    Claimed::Refused { error, inner, request } => {
                        return Box::pin(self.without_store(error, inner, request)).await;
                    }
                    Claimed::Found { found, inner, request, turn } => (found, inner, request, turn),
                };
                known = true;
                // What was found ends with this: a thousand duplicates may wait with what is left.
                let next = match self.answer_finished(&request, found) {
                    Ok(answer) => return Ok(answer),
                    Err(found @ Found::Finished { .. }) => {
                        return Ok(Box::pin(self.answer_long_duplicate(request, found)).await);
                    }
                    Err(found) => {
                        if let Err(unread) = self.compare(&request, &found)
                            && Box::pin(self.read_on(&mut request, &unread.part)).await.is_err()
                        {
                            return Ok(self.incomplete(&request.id));
                        }
                        match self.next(&mut request, found, &mut take_over, &mut superseded) {
                            Ok(next) => next,
                            Err(answer) => return Ok(*answer),
                        }
                    }
                };
                let turn = match next {
                    Next::Wait { attempt } => {
                        // A ready service may hold what others need, such as a place under a limit:
                        // it must not be held while waiting (`waiters_eat_pool`).
                        inner = inner.clone();
                        let may_wait = request.received.body.whole().is_some();
                        let id = &request.id;
                        match self.wait_for(&mut waiting, id, may_wait, attempt, my_turn).await {
                            WaitEnd::MyTurn(turn) => {
                                let ready = std::future::poll_fn(|cx| inner.poll_ready(cx));
                                let until =
                                    waiting.as_ref().map_or_else(Instant::now, |it| it.until);
                                match timeout_at(until, ready).await {
                                    Ok(ready) => ready?,
                                    Err(_) => return Ok(self.in_progress(id, attempt)),
                                }
                                Some(turn)
                            }
                            WaitEnd::Outcome(found) => {
                                match self.answer_finished(&request, found) {
                                    Ok(answer) => return Ok(answer),
                                    // A waiter's body is at hand and an outcome is finished, so it can
                                    // be compared; claim again if that should ever not be so.
                                    Err(_) => None,
                                }
                            }
                            WaitEnd::Timeout => return Ok(self.in_progress(id, attempt)),
                            WaitEnd::StoreFailed => {
                                let (problem, outcome) =
                                    (store_unavailable(), RequestOutcome::Rejected);
                                return Ok(self.refuse(&problem, outcome, Some(id), None));
                            }
                        }
                    }
                    Next::Claim => my_turn,
                    Next::ClaimAfresh => None,
                };
                // E6: the place that it had was that of its first claim.
                if let Place::Queued = request.place {
                    let longest = Instant::now() + self.settings.max_execution;
                    let until = waiting.as_ref().map_or(longest, |it| it.until);
                    let place = Box::pin(timeout_at(until, self.engine.place())).await;
                    request.place = place.map_or(Place::Queued, Place::Taken);
                }
                let id = request.id;
                claimed = match self.claim_and_run(inner, request, take_over, turn).await {
                    Some(claimed) => claimed,
                    None => return Ok(self.interrupted(&id)),
                };
            }
        }
    }

    /// What a request does next that has found an operation which is not finished.
    fn next<B, R>(
        &self,
        request: &mut Prepared<B>,
        found: Found,
        take_over: &mut bool,
        superseded: &mut bool,
    ) -> Result<Next, Box<Answer<R>>> {
        // Where more would have to be read to compare, this body is longer than the record's, which
        // was known whole when it was claimed: another request.
        let likeness = self.compare(request, &found).unwrap_or(Likeness::Differs);
        let may_take_over = self.may_take_over();
        match decide(Begin::Found(found.clone()), likeness, Kept::Response) {
            Decision::InFlight { attempt, .. } => Ok(Next::Wait { attempt }),
            Decision::OutcomeUnknown { .. } if may_take_over && !*take_over => {
                *take_over = true;
                Ok(Next::Claim)
            }
            Decision::OutcomeUnknown { .. }
                if may_take_over && self.adopt_algorithm(request, &found) =>
            {
                Ok(Next::Claim)
            }
            Decision::Superseded if !*superseded => {
                *superseded = true;
                Ok(Next::ClaimAfresh)
            }
            _ => {
                let answer = self.answer_found(&request.id, found, likeness, request.trace);
                Err(Box::new(answer))
            }
        }
    }

    /// Waits for attempt `seen`, if duplicates wait and there is room: for the turn, and with it until
    /// that attempt may be over.
    fn wait_for(
        &self,
        waiting: &mut Option<Waiting>,
        id: &OperationId,
        may_wait: bool,
        seen: u32,
        my_turn: Option<Box<Turn>>,
    ) -> impl Future<Output = WaitEnd> + Send {
        // F4: the unread rest of a long body would stall the owner's upload.
        let place = if may_wait { self.place(waiting, id) } else { None };
        async move {
            let Some(Waiting { waiter, until }) = place else { return WaitEnd::Timeout };
            let until = *until;
            let turn = match my_turn {
                Some(turn) => turn,
                None => match timeout_at(until, waiter.wait()).await {
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
            // Boxed: of all that wait, one does this.
            let changed = Box::pin(self.engine.changed(id, seen, within, deadline));
            match timeout_at(until, changed).await {
                Ok(Ok(())) => WaitEnd::MyTurn(turn),
                Ok(Err(_)) => WaitEnd::StoreFailed,
                Err(_) => WaitEnd::Timeout,
            }
        }
    }

    /// The place of a duplicate among those that wait; `None` if it does not wait.
    fn place<'a>(
        &self,
        waiting: &'a mut Option<Waiting>,
        id: &OperationId,
    ) -> Option<&'a mut Waiting> {
        let OnInFlight::Wait { timeout, max_waiters } = self.settings.on_in_flight else {
            return None;
        };
        if waiting.is_none() {
            let waiter = self.engine.room().enter(*id, max_waiters)?;
            *waiting = Some(Waiting { waiter, until: Instant::now() + timeout });
        }
        waiting.as_mut()
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
        let Prepared { received, id, trace, .. } = *request;
        let likeness = match compared {
            Ok(likeness) => likeness,
            Err(unread) => match received.body.matches(unread.hasher, &unread.part).await {
                Ok(matches) => likeness_of(matches),
                Err(_) => return self.incomplete(&id),
            },
        };
        self.answer_found(&id, found, likeness, trace)
    }

    /// Reads as far ahead as the body reaches that a record knows: where that was claimed, more may
    /// have been read ahead than here (`inline_body`).
    async fn read_on<B>(
        &self,
        request: &mut Prepared<B>,
        known: &BodyPart,
    ) -> Result<(), IncompleteBody>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let Received { parts, body } = &mut *request.received;
        let length = usize::try_from(known.length).unwrap_or(usize::MAX);
        body.read(&parts.headers, length).await?;
        if body.whole().is_some() {
            request.fingerprint = self.fingerprint(&self.settings.fingerprinter, parts, body);
        }
        Ok(())
    }

    /// The request's body broke off.
    fn incomplete<R>(&self, id: &OperationId) -> Answer<R> {
        self.refuse(&incomplete_body(), RequestOutcome::Rejected, Some(id), None)
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
                match request.received.body.whole() {
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
        let Received { parts, body } = &*request.received;
        Some(Cow::Owned(self.fingerprint(&known, parts, body)))
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
        let Received { mut parts, body } = *request.received;
        self.door.strip(&mut parts);
        // There is no attempt; a handler may still want to know the key.
        parts.extensions.insert(request.key);
        let body = body.into_body(|| self.settings.fingerprinter.hasher()).0;
        let mut response = inner.call(Request::from_parts(parts, body)).await?;
        self.door.take_overrule(&mut response);
        let headers = response.headers_mut();
        headers.remove(&self.settings.replay_marker);
        headers.insert(&IDEMPOTENCY_STATUS, HeaderValue::from_static(BYPASSED));
        Ok(response.map(ResponseBody::passed))
    }
}

/// What a request does next that can't be answered yet.
enum Next {
    /// It waits for the attempt in flight, if duplicates wait.
    Wait { attempt: u32 },
    /// It claims again.
    Claim,
    /// It claims again, without the turn that it may have had.
    ClaimAfresh,
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
