//! What all calls of a client share, and the one loop that makes a call.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Extensions, HeaderMap, Method, StatusCode, header};
use retrysafe_core::{
    Clock, Entropy, IdempotencyKey, OperationId, Scope, Trace,
    client::{Answer, AttemptEnd, Call, Moment, Next, NoKey, RetryBudget, Safety},
};
use tokio::time::{sleep, timeout};
use tracing::{Instrument as _, field::Empty};

use crate::{
    BoxError, Error, OutcomeUnknown, Settings,
    journal::{Entry, Journal, Settled},
    observe::{self, CallOutcome},
    shared::{Place, SharedAnswers},
};

/// What all calls of a client share.
pub(crate) struct Calls {
    pub(crate) settings: Settings,
    pub(crate) journal: Option<Arc<dyn Journal>>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    shared: Option<SharedAnswers>,
    budgets: Budgets,
    /// What this process is in the middle of, so that nobody resumes it.
    in_flight: Mutex<HashSet<OperationId>>,
}

/// One budget for each authority.
struct Budgets {
    known: Mutex<HashMap<Box<str>, Arc<RetryBudget>>>,
    /// For all authorities after the first thousand.
    others: Arc<RetryBudget>,
}

const MOST_AUTHORITIES: usize = 1024;

impl Calls {
    pub(crate) fn new(
        settings: Settings,
        journal: Option<Arc<dyn Journal>>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        let others = Arc::new(RetryBudget::new(settings.retries.budget));
        Self {
            shared: settings.shared_answers.map(SharedAnswers::new),
            budgets: Budgets { known: Mutex::default(), others },
            in_flight: Mutex::default(),
            settings,
            journal,
            clock,
            entropy,
        }
    }

    pub(crate) fn now(&self) -> Moment {
        Moment::of(&*self.clock)
    }

    pub(crate) fn budget(&self, authority: &str) -> Arc<RetryBudget> {
        let mut known = lock(&self.budgets.known);
        if let Some(budget) = known.get(authority) {
            return budget.clone();
        }
        if known.len() >= MOST_AUTHORITIES {
            return self.budgets.others.clone();
        }
        let budget = Arc::new(RetryBudget::new(self.settings.retries.budget));
        known.insert(authority.into(), budget.clone());
        budget
    }

    /// What makes it safe to send a request of this method again.
    pub(crate) fn safety(&self, method: &Method, keyed: bool) -> Safety {
        match keyed {
            true if self.settings.dialect.keeps_keys => Safety::Keyed,
            true => Safety::NamedOnly,
            false if method.is_idempotent() => Safety::Idempotent,
            false => Safety::Bare,
        }
    }

    pub(crate) fn is_in_flight(&self, operation: &OperationId) -> bool {
        lock(&self.in_flight).contains(operation)
    }
}

impl fmt::Debug for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Calls").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// What it took to get an answer: an extension of a response for which more than one request was sent.
///
/// ```
/// use retrysafe_client::CallReport;
///
/// fn attempts(response: &reqwest::Response) -> u32 {
///     response.extensions().get::<CallReport>().map_or(1, |report| report.attempts)
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CallReport {
    /// How many requests were sent.
    pub attempts: u32,
}

/// The digest of a key and the origin that it is sent to.
pub(crate) fn operation_id(origin: &str, key: &IdempotencyKey) -> OperationId {
    OperationId::new("client", &Scope::from_bytes(origin), key)
}

/// One logical call, before its first attempt.
pub(crate) struct Logical<'a> {
    pub(crate) key: Option<IdempotencyKey>,
    pub(crate) method: &'a Method,
    pub(crate) url: &'a str,
    /// Scheme, host and port.
    pub(crate) origin: &'a str,
    pub(crate) authority: &'a str,
    pub(crate) headers: &'a HeaderMap,
    /// None if it is a stream.
    pub(crate) body: Option<&'a [u8]>,
    pub(crate) deadline: Option<Duration>,
    /// It was first sent at this time, perhaps by another process.
    pub(crate) resumed: Option<Duration>,
}

/// How requests are sent, and what their answers are made of.
pub(crate) trait Transport: Send {
    type Response: Send;
    type Error: Into<BoxError> + Send;

    /// Sends the request once.
    fn send(
        &mut self,
    ) -> impl Future<Output = Result<Self::Response, (Self::Error, AttemptEnd)>> + Send;

    fn status(response: &Self::Response) -> StatusCode;

    fn headers(response: &Self::Response) -> &HeaderMap;

    fn extensions(response: &mut Self::Response) -> &mut Extensions;

    /// Reads a response to its end, if that is within so many bytes. It comes back whole; with what
    /// was read, if that is everything.
    fn read(
        &mut self,
        response: Self::Response,
        most: usize,
    ) -> impl Future<Output = Result<(Self::Response, Option<Bytes>), Self::Error>> + Send;

    /// The same answer for another call.
    fn repeat(&self, answer: &Whole) -> Self::Response;

    /// Has somebody told when the body of a response has ended as it should.
    fn at_end(response: Self::Response, tell: OnEnd) -> Self::Response;
}

/// An answer that can be given to several calls.
pub(crate) struct Whole {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// What is done when a body has ended as it should.
pub(crate) type OnEnd = Box<dyn FnOnce() + Send + Sync>;

/// Why a call has no answer.
pub(crate) enum Failure<E> {
    /// What the transport said; nothing has to be found out.
    Inner(E),
    Ours(Error),
}

impl<E> From<Error> for Failure<E> {
    fn from(error: Error) -> Self {
        Self::Ours(error)
    }
}

impl Calls {
    /// Makes a call, to its end.
    ///
    /// # Cancel safety
    ///
    /// A request that was sent is not taken back. What is in the journal stays unknown, and is resumed.
    pub(crate) async fn make<T: Transport>(
        &self,
        logical: Logical<'_>,
        transport: &mut T,
    ) -> Result<T::Response, Failure<T::Error>> {
        let digest = logical.key.as_ref().map(|key| operation_id(logical.origin, key));
        let span = tracing::info_span!(
            "idempotent_call",
            operation = digest.as_ref().map(tracing::field::display),
            method = %logical.method,
            trace = Trace::from_headers(logical.headers).as_ref().map(trace_id),
            outcome = Empty,
            attempts = Empty,
        );
        let span_is_disabled = span.is_disabled();
        let made = self.make_within(logical, digest, transport);
        // An instrumented future is larger, and few look at it.
        if span_is_disabled { made.await } else { made.instrument(span).await }
    }

    async fn make_within<T: Transport>(
        &self,
        logical: Logical<'_>,
        digest: Option<OperationId>,
        transport: &mut T,
    ) -> Result<T::Response, Failure<T::Error>> {
        let (Some(shared), Some(operation)) = (&self.shared, digest) else {
            return self.make_alone(logical, digest, transport).await.map(|made| made.response);
        };
        // C7: concurrent calls with one key share one request.
        let mut place = match shared.enter(operation).await {
            Place::First(place) => place,
            Place::Answered(answer) => {
                observe::call_ended(CallOutcome::Shared, 0);
                return Ok(transport.repeat(&answer));
            }
            Place::NotShared => {
                observe::call_ended(CallOutcome::Refused, 0);
                return Err(Error::not_shared().into());
            }
            Place::Unknown(why) => {
                let key = logical.key.unwrap_or_else(|| unreachable!("there is a digest of it"));
                let (status, source) = (None, None);
                let unknown = OutcomeUnknown { key, operation, attempts: 0, why, status, source };
                observe::outcome_unknown(why);
                observe::call_ended(CallOutcome::Unknown, 0);
                return Err(Failure::Ours(unknown.into()));
            }
        };
        place.may_be_sent();
        let made = self.make_alone(logical, digest, transport).await;
        match made {
            Ok(Made { response, not_done: true, .. }) => {
                place.free();
                Ok(response)
            }
            Ok(Made { response, whole: Some(body), .. }) => {
                place.answered(Whole {
                    status: T::status(&response),
                    headers: T::headers(&response).clone(),
                    body,
                });
                Ok(response)
            }
            Ok(Made { response, whole: None, .. }) => {
                place.streamed();
                Ok(response)
            }
            Err(Failure::Ours(error)) => {
                match OutcomeUnknown::of(&error) {
                    Some(unknown) => place.unknown(unknown.why()),
                    None => place.free(),
                }
                Err(Failure::Ours(error))
            }
            Err(failure) => {
                place.free();
                Err(failure)
            }
        }
    }

    /// Makes the call.
    async fn make_alone<T: Transport>(
        &self,
        logical: Logical<'_>,
        digest: Option<OperationId>,
        transport: &mut T,
    ) -> Result<Made<T::Response>, Failure<T::Error>> {
        let Settings { retries, dialect, .. } = &self.settings;
        let now = self.now();
        let safety = self.safety(logical.method, logical.key.is_some());
        let mut call = Call::start(retries, dialect, safety, now);
        if logical.body.is_none() {
            call = call.unrepeatable();
        }
        if let Some(deadline) = logical.deadline {
            call = call.within(deadline, now);
        }
        if let Some(first_sent) = logical.resumed {
            call = call.resumed(first_sent);
        }
        let mut journal = None;
        if let (Some(kept), Some(operation), Some(key)) = (&self.journal, digest, &logical.key) {
            let Some(body) = logical.body.map(Bytes::copy_from_slice) else {
                observe::call_ended(CallOutcome::Refused, 0);
                return Err(Failure::Ours(NoKey::StreamedBody.into()));
            };
            let in_flight = InFlight::enter(self, operation);
            let (method, headers) = (logical.method.clone(), logical.headers);
            let key = key.clone();
            let entry = Entry::new(operation, key, method, logical.url, headers, body, now.wall);
            let begun = kept.begin(Arc::new(entry)).await.map_err(|error| {
                observe::call_ended(CallOutcome::Refused, 0);
                Failure::Ours(error.into())
            })?;
            if begun.first_sent < now.wall {
                call = call.resumed(begun.first_sent);
            }
            journal = Some((kept, operation, in_flight));
        }
        let settle = |settled| {
            if let Some((journal, operation, _)) = &journal {
                journal.settle(*operation, settled);
            }
        };
        let unknown = |why, attempts, status, source| {
            observe::outcome_unknown(why);
            observe::call_ended(CallOutcome::Unknown, attempts);
            let key = logical.key.clone();
            let (Some(key), Some(operation)) = (key, digest) else {
                return Failure::Ours(Error::timed_out());
            };
            let unknown = OutcomeUnknown { key, operation, attempts, why, status, source };
            Failure::Ours(unknown.into())
        };
        if let Err(why) = call.may_begin(self.now()) {
            return Err(unknown(why, 0, None, None));
        }

        let budget = self.budget(logical.authority);
        loop {
            let most = if logical.key.is_some() { self.settings.max_whole_answer } else { 0 };
            let attempt = attempt(transport, self, most);
            let within = call.attempt_timeout(self.now());
            let span = tracing::info_span!("attempt", number = call.attempts() + 1, end = Empty);
            let ended = if span.is_disabled() {
                timeout(within, attempt).await
            } else {
                timeout(within, attempt).instrument(span.clone()).await
            };
            let entered = span.enter();
            let (ended, end) = match ended {
                Ok(Ok((response, whole, answer))) => {
                    (Ok((response, whole)), AttemptEnd::Answered(answer))
                }
                Ok(Err((error, end))) => (Err(Some(error)), end),
                // Whatever was sent until then may have been received.
                Err(_) => (Err(None), AttemptEnd::Broken),
            };
            observe::attempt_ended(match &end {
                AttemptEnd::Answered(_) => "answered",
                AttemptEnd::Broken => "broken",
                AttemptEnd::NotSent => "not_sent",
            });
            drop(entered);
            let next = call.judge(&end, &budget, self.now(), &*self.entropy);
            if call.budget_refused() {
                observe::budget_refused();
            }
            match (next, ended) {
                (Next::Again { after, retry }, _) => {
                    observe::retrying(retry);
                    sleep(after).await;
                }
                (Next::Unknown(why), Ok((response, _))) => {
                    let status = Some(T::status(&response));
                    return Err(unknown(why, call.attempts(), status, None));
                }
                (Next::Unknown(why), Err(error)) => {
                    let source = error.map(Into::into);
                    return Err(unknown(why, call.attempts(), None, source));
                }
                (_, Ok((mut response, whole))) => {
                    if let AttemptEnd::Answered(answer) = &end {
                        let (status, at) = (answer.status, self.now().wall);
                        if answer.replayed {
                            observe::replay_seen();
                        }
                        let settled = match call.surely_not_done() {
                            true => Settled::NotDone,
                            false => Settled::Answered { status, at },
                        };
                        match &journal {
                            // A stream is an answer when it has come to its end.
                            Some((journal, operation, _)) if whole.is_none() => {
                                let (journal, operation) = (Arc::clone(journal), *operation);
                                let tell = Box::new(move || journal.settle(operation, settled));
                                response = T::at_end(response, tell);
                            }
                            _ => settle(settled),
                        }
                    }
                    observe::call_ended(CallOutcome::Answered, call.attempts());
                    if call.attempts() > 1 {
                        T::extensions(&mut response)
                            .insert(CallReport { attempts: call.attempts() });
                    }
                    return Ok(Made { response, whole, not_done: call.surely_not_done() });
                }
                (_, Err(error)) => {
                    settle(Settled::NotDone);
                    observe::call_ended(CallOutcome::Failed, call.attempts());
                    return Err(match error {
                        Some(error) => Failure::Inner(error),
                        None => Failure::Ours(Error::timed_out()),
                    });
                }
            }
        }
    }
}

/// An answer.
struct Made<R> {
    response: R,
    /// Its body, if it was read whole.
    whole: Option<Bytes>,
    /// It says that nothing was done.
    not_done: bool,
}

/// Sends the request once, and reads what has to be read of the answer.
async fn attempt<T: Transport>(
    transport: &mut T,
    calls: &Calls,
    most: usize,
) -> Result<(T::Response, Option<Bytes>, Answer), (T::Error, AttemptEnd)> {
    let response = transport.send().await?;
    let (status, headers) = (T::status(&response), T::headers(&response));
    let wanted = match Answer::wants_body(status, headers) {
        true => most.max(MOST_OF_A_PROBLEM),
        false if is_stream(headers) => 0,
        false => most,
    };
    let (response, whole) = match wanted {
        0 => (response, None),
        most => {
            let read = transport.read(response, most).await;
            // C4: an answer that was cut off is no answer.
            read.map_err(|error| (error, AttemptEnd::Broken))?
        }
    };
    let (body, now) = (whole.as_deref().unwrap_or_default(), calls.clock.wall());
    let (status, headers) = (T::status(&response), T::headers(&response));
    let answer = Answer::read(&calls.settings.dialect, status, headers, body, now);
    Ok((response, whole, answer))
}

/// How much is read of an answer to learn what went wrong.
const MOST_OF_A_PROBLEM: usize = 64 * 1024;

/// Whether an answer is handed on while it is being made (R5).
fn is_stream(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|it| it.to_str().ok());
    let essence = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("text/event-stream")
        || essence.eq_ignore_ascii_case("application/x-ndjson")
}

fn trace_id(trace: &Trace) -> tracing::field::DisplayValue<String> {
    tracing::field::display(trace.trace_id().to_string())
}

/// An operation that this process is in the middle of.
struct InFlight<'a> {
    calls: &'a Calls,
    operation: OperationId,
    entered: bool,
}

impl<'a> InFlight<'a> {
    fn enter(calls: &'a Calls, operation: OperationId) -> Self {
        let entered = lock(&calls.in_flight).insert(operation);
        Self { calls, operation, entered }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if self.entered {
            lock(&self.calls.in_flight).remove(&self.operation);
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
