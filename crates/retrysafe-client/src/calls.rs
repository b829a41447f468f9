//! What all calls of a client share, and the one loop that makes a call.

use std::{
    fmt,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method};
use retrysafe_core::{
    Clock, Entropy, IdempotencyKey, OperationId, Scope, Trace,
    client::{AttemptEnd, Call, Next, Safety, Unknown},
};
use tokio::time::{sleep, timeout};
use tracing::{Instrument as _, field::Empty};

use crate::{
    BoxError, Error, OutcomeUnknown, Settings,
    budgets::Budgets,
    journal::{Before, Journal, Settled},
    journaling::{Journaling, Noted},
    observe::{self, CallOutcome},
    secrets::is_secret,
    shared::{Asked, Place, SharedAnswers},
    transport::{Answered, Last, Read, Reading, Transport, Whole},
};

/// What all calls of a client share.
pub(crate) struct Calls {
    pub(crate) settings: Settings,
    pub(crate) journaling: Option<Journaling>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    shared: Option<SharedAnswers>,
    budgets: Budgets,
}

impl Calls {
    pub(crate) fn new(
        settings: Settings,
        journal: Option<Arc<dyn Journal>>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        Self {
            shared: settings
                .shared_answers
                .map(|share| SharedAnswers::new(share, settings.dialect.keeps_keys)),
            budgets: Budgets::new(settings.retries.budget),
            journaling: journal.map(Journaling::new),
            settings,
            clock,
            entropy,
        }
    }

    /// What makes it safe to send a request of this method again.
    fn safety(&self, method: &Method, keyed: bool) -> Safety {
        match keyed {
            true if self.settings.dialect.keeps_keys => Safety::Keyed,
            true => Safety::NamedOnly,
            false if method.is_idempotent() => Safety::Idempotent,
            false => Safety::Bare,
        }
    }
}

impl fmt::Debug for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Calls").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// How long one call may take, all in all: an extension of a request.
///
/// ```
/// # use std::time::Duration;
/// use retrysafe_client::{CallDeadline, Client};
///
/// # async fn order(client: &Client) -> reqwest_middleware::Result<reqwest::Response> {
/// let deadline = CallDeadline(Duration::from_secs(5));
/// client.post("https://api.example/orders").with_extension(deadline).send().await
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallDeadline(pub Duration);

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

/// One logical call, before its first attempt.
pub(crate) struct Logical<'a> {
    pub(crate) key: Option<IdempotencyKey>,
    /// The key is made of what the request says: who has the same key asks the same.
    pub(crate) of_content: bool,
    pub(crate) method: &'a Method,
    pub(crate) url: &'a str,
    pub(crate) authority: &'a str,
    pub(crate) headers: &'a HeaderMap,
    /// None if it is a stream.
    pub(crate) body: Option<&'a Bytes>,
    pub(crate) deadline: Option<Duration>,
    /// It was first sent at this time, perhaps by another process.
    pub(crate) resumed: Option<Duration>,
}

impl Logical<'_> {
    /// Made when it is asked for: most calls need none.
    fn operation(&self) -> Option<OperationId> {
        self.key.as_ref().map(|key| self.operation_of(key))
    }

    pub(crate) fn operation_of(&self, key: &IdempotencyKey) -> OperationId {
        operation_id(origin_of(self.url), key)
    }

    /// Whose answer this call may be given: that of the same caller, method and URL, under the same key
    /// (cross_tenant_replay, other_path_replays).
    fn sharing_of(&self, key: &IdempotencyKey) -> OperationId {
        let secrets = self.headers.iter().filter(|(name, value)| is_secret(name, value));
        let mut secrets: Vec<_> =
            secrets.map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        secrets.sort_by_key(|(name, _)| *name);
        let mut asked = Vec::new();
        let mut part = |bytes: &[u8]| {
            asked.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
            asked.extend_from_slice(bytes);
        };
        part(self.method.as_str().as_bytes());
        part(self.url.as_bytes());
        for (name, value) in secrets {
            part(name.as_bytes());
            part(value);
        }
        OperationId::new("shared", &Scope::digest_of(asked), key)
    }

    /// What is asked under the key, for whoever shares the answer (other_path_replays).
    fn asked_of(&self, key: &IdempotencyKey) -> Asked {
        let body = self.body.filter(|_| !self.of_content)?;
        Some(OperationId::new("asked", &Scope::digest_of(body), key))
    }
}

/// The digest of a key and the origin that it is sent to.
pub(crate) fn operation_id(origin: &str, key: &IdempotencyKey) -> OperationId {
    OperationId::new("client", &Scope::from_bytes(origin), key)
}

/// What the URL of a gRPC call begins with.
pub(crate) const GRPC: &str = "grpc://";

/// Scheme and authority of a URL.
pub(crate) fn origin_of(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    &url[..end]
}

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
        logical: &mut Logical<'_>,
        transport: &mut T,
    ) -> Result<Answered<T::Response>, Failure<T::Error>> {
        // What is written into it is made only if somebody looks.
        let span = tracing::info_span!(
            "idempotent_call",
            operation = logical.operation().as_ref().map(tracing::field::display),
            method = %logical.method,
            trace = Trace::from_headers(logical.headers).as_ref().map(trace_id),
            outcome = Empty,
            attempts = Empty,
        );
        let mut last = Last::NOTHING;
        // Two calls, so that neither future is built in one place and moved to another.
        let made = match span.is_disabled() {
            true => self.make_or_share(logical, transport, &mut last).await,
            false => self.make_or_share(logical, transport, &mut last).instrument(span).await,
        };
        match made? {
            Made::Shared(answer) => Ok(Answered::Shared(answer)),
            Made::Sent { .. } => match last {
                Last { answer: Some(read), .. } => Ok(read.into()),
                Last { error: Some(error), .. } => Err(Failure::Inner(error)),
                Last { .. } => Err(Error::timed_out().into()),
            },
        }
    }

    async fn make_or_share<T: Transport>(
        &self,
        logical: &mut Logical<'_>,
        transport: &mut T,
        last: &mut Last<T::Response, T::Error>,
    ) -> Result<Made, Error> {
        match (&self.shared, &logical.key) {
            (Some(shared), Some(key)) => {
                let sharing = (logical.sharing_of(key), logical.asked_of(key));
                // It is large, and most calls share nothing.
                Box::pin(self.share(shared, sharing, logical, transport, last)).await
            }
            _ => self.make_alone(logical, transport, last).await,
        }
    }

    /// C7: concurrent calls with one key share one request.
    async fn share<T: Transport>(
        &self,
        shared: &SharedAnswers,
        (sharing, asked): (OperationId, Asked),
        logical: &mut Logical<'_>,
        transport: &mut T,
        last: &mut Last<T::Response, T::Error>,
    ) -> Result<Made, Error> {
        // C3: there is a deadline always, and waiting is a part of the call.
        let within = logical.deadline.unwrap_or(self.settings.retries.deadline);
        let (began, began_wall) = (self.clock.monotonic(), self.clock.wall());
        let mut place = match timeout(within, shared.enter(sharing, asked)).await {
            Ok(Place::First(place)) => place,
            Ok(Place::Answered(answer)) => {
                observe::call_ended(CallOutcome::Shared, 0);
                return Ok(Made::Shared(answer));
            }
            Ok(Place::NotShared) => {
                observe::call_ended(CallOutcome::Refused, 0);
                return Err(Error::not_shared());
            }
            Ok(Place::Reused) => {
                observe::call_ended(CallOutcome::Refused, 0);
                return Err(Error::key_reused());
            }
            Ok(Place::Unknown(why)) => return Err(unknown(logical, why, 0, None, last)),
            Err(_) => return Err(unknown(logical, Unknown::Deadline, 0, None, last)),
        };
        let waited = self.clock.monotonic().saturating_sub(began);
        logical.deadline = Some(within.saturating_sub(waited));
        if place.after_unknown() {
            logical.resumed.get_or_insert(began_wall);
        }
        place.may_be_sent();
        let made = self.make_alone(logical, transport, last).await;
        match (&made, &last.answer) {
            (Ok(Made::Sent { not_done: false }), Some(Read { response, whole })) => {
                match whole.clone().and_then(|body| T::share(response, body)) {
                    Some(answer) => place.answered(answer),
                    None => place.streamed(),
                }
            }
            (Err(error), _) if let Some(unknown) = OutcomeUnknown::of(error) => {
                place.unknown(unknown.why());
            }
            _ => place.free(),
        }
        made
    }

    /// The loop.
    async fn make_alone<T: Transport>(
        &self,
        logical: &Logical<'_>,
        transport: &mut T,
        last: &mut Last<T::Response, T::Error>,
    ) -> Result<Made, Error> {
        let clock = &*self.clock;
        let mut call = self.start(logical);
        let (mut noted, mut before) = (None, None);
        if let (Some(journaling), Some(key)) = (&self.journaling, &logical.key) {
            // Boxed, as calls without a journal are to be small.
            let begun = Box::pin(journaling.begin(logical, key, clock.wall())).await;
            let (entered, begun) = begun.inspect_err(|_| {
                observe::call_ended(CallOutcome::Refused, 0);
            })?;
            // What the journal knows, and not the clock: it may have been set back.
            if begun.before.is_some() {
                call = call.resumed(begun.first_sent);
            }
            before = begun.before;
            noted = Some(entered);
        }
        if let Err(why) = call.may_begin(clock) {
            // What was answered once is not made unknown by a request that is not sent.
            if let (Some(noted), Some(Before::Answered(status))) = (noted, before) {
                noted.settle(Settled::Answered { status, at: clock.wall() });
            }
            return Err(unknown(logical, why, 0, None, last));
        }

        let budget = self.budgets.of(logical.authority);
        loop {
            let end = self.attempt(logical, &call, transport, last).await;
            let next = call.judge(&end, &budget, clock, &*self.entropy);
            if call.budget_refused() {
                observe::budget_refused();
            }
            match next {
                Next::Again { after, retry } => {
                    // Its connection is of use to others meanwhile.
                    *last = Last::NOTHING;
                    observe::retrying(retry);
                    sleep(after).await;
                }
                Next::Unknown(why) => {
                    return Err(unknown(logical, why, call.attempts(), Some(end), last));
                }
                Next::Answer | Next::Failed => {
                    settle::<T>(&call, &end, last, noted, clock);
                    let answered = matches!(end, AttemptEnd::Answered(_));
                    let outcome =
                        if answered { CallOutcome::Answered } else { CallOutcome::Failed };
                    observe::call_ended(outcome, call.attempts());
                    return Ok(Made::Sent { not_done: call.surely_not_done() });
                }
            }
        }
    }

    fn start(&self, logical: &Logical<'_>) -> Call<'_> {
        let Settings { retries, dialect, .. } = &self.settings;
        let safety = self.safety(logical.method, logical.key.is_some());
        let mut call = Call::start(retries, dialect, safety, &*self.clock);
        if logical.body.is_none() {
            call = call.unrepeatable();
        }
        if let Some(deadline) = logical.deadline {
            call = call.within(deadline, &*self.clock);
        }
        if let Some(first_sent) = logical.resumed {
            call = call.resumed(first_sent);
        }
        call
    }

    /// Makes one attempt, in its time.
    async fn attempt<T: Transport>(
        &self,
        logical: &Logical<'_>,
        call: &Call<'_>,
        transport: &mut T,
        last: &mut Last<T::Response, T::Error>,
    ) -> AttemptEnd {
        let Settings { dialect, max_whole_answer, .. } = &self.settings;
        let most = if logical.key.is_some() { *max_whole_answer } else { 0 };
        let reading = Reading { dialect, clock: &*self.clock, most };
        let within = call.attempt_timeout(&*self.clock);
        let span = tracing::info_span!("attempt", number = call.attempts() + 1, end = Empty);
        let ended = {
            let attempt = pin!(transport.attempt(reading, last));
            let attempt = timeout(within, attempt);
            match span.is_disabled() {
                true => attempt.await,
                false => attempt.instrument(span.clone()).await,
            }
        };
        let end = match ended {
            Ok(end) => end,
            // Whatever was sent until then may have been received.
            Err(_) => {
                *last = Last::NOTHING;
                AttemptEnd::Broken
            }
        };
        observe::attempt_ended(&span, &end);
        end
    }
}

/// What became of a call that is not unknown.
enum Made {
    /// What the last attempt gave is its end.
    Sent {
        /// And that says that nothing was done.
        not_done: bool,
    },
    /// It got the answer of another call.
    Shared(Arc<Whole>),
}

/// Tells the journal what became of a call, and its caller what it took.
fn settle<T: Transport>(
    call: &Call<'_>,
    end: &AttemptEnd,
    last: &mut Last<T::Response, T::Error>,
    noted: Option<Noted<'_>>,
    clock: &dyn Clock,
) {
    if matches!(end, AttemptEnd::Answered(answer) if answer.replayed) {
        observe::replay_seen();
    }
    if let Some(noted) = noted {
        let settled = match end {
            AttemptEnd::Answered(answer) if !call.surely_not_done() => {
                Settled::Answered { status: answer.status, at: clock.wall() }
            }
            _ => Settled::NotDone,
        };
        match &last.answer {
            // A stream is an answer when it has come to its end; a refusal is one at once.
            Some(Read { whole: None, .. }) if settled != Settled::NotDone => {
                let tell = Box::new(noted.settle_later(settled));
                last.change(|response| T::at_end(response, tell));
            }
            _ => noted.settle(settled),
        }
    }
    if call.attempts() > 1
        && let Some(Read { response, .. }) = &mut last.answer
    {
        let report = CallReport { attempts: call.attempts() };
        T::extensions(response).insert(report);
    }
}

/// The end of a call of which nobody knows what became; without a key there is nothing to find out.
fn unknown<R, E: Into<BoxError>>(
    logical: &Logical<'_>,
    why: Unknown,
    attempts: u32,
    end: Option<AttemptEnd>,
    last: &mut Last<R, E>,
) -> Error {
    observe::outcome_unknown(why);
    observe::call_ended(CallOutcome::Unknown, attempts);
    let Some(key) = logical.key.clone() else { return Error::timed_out() };
    let operation = logical.operation_of(&key);
    let source = last.error.take().map(Into::into);
    let status = match end {
        Some(AttemptEnd::Answered(answer)) if source.is_none() => Some(answer.status),
        _ => None,
    };
    OutcomeUnknown { key, operation, attempts, why, status, source }.into()
}

fn trace_id(trace: &Trace) -> tracing::field::DisplayValue<String> {
    tracing::field::display(trace.trace_id().to_string())
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
