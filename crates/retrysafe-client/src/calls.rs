//! What all calls of a client share, and the one loop that makes a call.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method};
use retrysafe_core::{
    Clock, Entropy, IdempotencyKey, OperationId, Scope, Trace,
    client::{AttemptEnd, Call, Moment, Next, Safety, Unknown},
};
use tokio::time::{sleep, timeout};
use tracing::{Instrument as _, field::Empty};

use crate::{
    Error, OutcomeUnknown, Settings,
    budgets::Budgets,
    journal::{Before, Journal, Settled},
    journaling::{Journaling, Noted},
    observe::{self, CallOutcome},
    secrets::is_secret,
    shared::{Place, SharedAnswers},
    transport::{Answered, Attempted, Read, Reading, Transport},
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

    fn now(&self) -> Moment {
        Moment::of(&*self.clock)
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
        mut logical: Logical<'_>,
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
        let nobody_looks = span.is_disabled();
        let made = self.make_or_share(&mut logical, transport);
        // An instrumented future is larger.
        if nobody_looks { made.await } else { made.instrument(span).await }
    }

    async fn make_or_share<T: Transport>(
        &self,
        logical: &mut Logical<'_>,
        transport: &mut T,
    ) -> Result<Answered<T::Response>, Failure<T::Error>> {
        let (Some(shared), Some(key)) = (&self.shared, &logical.key) else {
            return self.make_alone(logical, transport).await.map(|made| made.read.into());
        };
        // C7: concurrent calls with one key share one request.
        // C3: there is a deadline always, and waiting is a part of the call.
        let (within, began) =
            (logical.deadline.unwrap_or(self.settings.retries.deadline), self.now());
        let mut place = match timeout(within, shared.enter(logical.sharing_of(key))).await {
            Ok(Place::First(place)) => place,
            Ok(Place::Answered(answer)) => {
                observe::call_ended(CallOutcome::Shared, 0);
                return Ok(Answered::Shared(answer));
            }
            Ok(Place::NotShared) => {
                observe::call_ended(CallOutcome::Refused, 0);
                return Err(Error::not_shared().into());
            }
            Ok(Place::Unknown(why)) => return Err(unknown(logical, why, 0, None, None)),
            Err(_) => return Err(unknown(logical, Unknown::Deadline, 0, None, None)),
        };
        let now = self.now();
        logical.deadline =
            Some(within.saturating_sub(now.monotonic.saturating_sub(began.monotonic)));
        if place.after_unknown() {
            logical.resumed.get_or_insert(began.wall);
        }
        place.may_be_sent();
        let made = self.make_alone(logical, transport).await;
        match &made {
            Ok(made) if made.not_done => place.free(),
            Ok(Made { read: Read { response, whole }, .. }) => {
                match whole.clone().and_then(|body| T::share(response, body)) {
                    Some(answer) => place.answered(answer),
                    None => place.streamed(),
                }
            }
            Err(Failure::Ours(error)) => match OutcomeUnknown::of(error) {
                Some(unknown) => place.unknown(unknown.why()),
                None => place.free(),
            },
            Err(Failure::Inner(_)) => place.free(),
        }
        made.map(|made| made.read.into())
    }

    /// The loop.
    async fn make_alone<T: Transport>(
        &self,
        logical: &Logical<'_>,
        transport: &mut T,
    ) -> Result<Made<T::Response>, Failure<T::Error>> {
        let mut now = self.now();
        let mut call = self.start(logical, now);
        let (mut noted, mut before) = (None, None);
        if let (Some(journaling), Some(key)) = (&self.journaling, &logical.key) {
            let begun = journaling.begin(logical, key, now.wall).await;
            let (entered, begun) = begun.inspect_err(|_| {
                observe::call_ended(CallOutcome::Refused, 0);
            })?;
            // What the journal knows, and not the clock: it may have been set back.
            if begun.before.is_some() {
                call = call.resumed(begun.first_sent);
            }
            before = begun.before;
            noted = Some(entered);
            now = self.now();
        }
        if let Err(why) = call.may_begin(now) {
            // What was answered once is not made unknown by a request that is not sent.
            if let (Some(noted), Some(Before::Answered(status))) = (noted, before) {
                noted.settle(Settled::Answered { status, at: now.wall });
            }
            return Err(unknown(logical, why, 0, None, None));
        }

        let budget = self.budgets.of(logical.authority);
        loop {
            let Attempted { end, result } = self.attempt(logical, &call, now, transport).await;
            now = self.now();
            let next = call.judge(&end, &budget, now, &*self.entropy);
            if call.budget_refused() {
                observe::budget_refused();
            }
            match next {
                Next::Again { after, retry } => {
                    // Its connection is of use to others meanwhile.
                    drop(result);
                    observe::retrying(retry);
                    sleep(after).await;
                    now = self.now();
                }
                Next::Unknown(why) => {
                    return Err(unknown(logical, why, call.attempts(), Some(end), result.err()));
                }
                Next::Answer | Next::Failed => {
                    let result = settle::<T>(&call, &end, result, noted, now);
                    let answered = matches!(end, AttemptEnd::Answered(_));
                    let outcome =
                        if answered { CallOutcome::Answered } else { CallOutcome::Failed };
                    observe::call_ended(outcome, call.attempts());
                    let not_done = call.surely_not_done();
                    return match result {
                        Ok(read) => Ok(Made { read, not_done }),
                        Err(Late::Failed(error)) => Err(Failure::Inner(error)),
                        Err(Late::TimedOut) => Err(Error::timed_out().into()),
                    };
                }
            }
        }
    }

    fn start(&self, logical: &Logical<'_>, now: Moment) -> Call<'_> {
        let Settings { retries, dialect, .. } = &self.settings;
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
        call
    }

    /// Makes one attempt, in its time.
    async fn attempt<T: Transport>(
        &self,
        logical: &Logical<'_>,
        call: &Call<'_>,
        now: Moment,
        transport: &mut T,
    ) -> Attempted<T::Response, Late<T::Error>> {
        let Settings { dialect, max_whole_answer, .. } = &self.settings;
        let most = if logical.key.is_some() { *max_whole_answer } else { 0 };
        let attempt = transport.attempt(Reading { dialect, clock: &*self.clock, most });
        let within = call.attempt_timeout(now);
        let span = tracing::info_span!("attempt", number = call.attempts() + 1, end = Empty);
        let ended = match span.is_disabled() {
            true => timeout(within, attempt).await,
            false => timeout(within, attempt).instrument(span.clone()).await,
        };
        let attempted = match ended {
            Ok(Attempted { end, result }) => {
                Attempted { end, result: result.map_err(Late::Failed) }
            }
            // Whatever was sent until then may have been received.
            Err(_) => Attempted { end: AttemptEnd::Broken, result: Err(Late::TimedOut) },
        };
        span.in_scope(|| observe::attempt_ended(&attempted.end));
        attempted
    }
}

/// An answer.
struct Made<R> {
    read: Read<R>,
    /// It says that nothing was done.
    not_done: bool,
}

/// Why an attempt has no answer.
enum Late<E> {
    Failed(E),
    TimedOut,
}

/// Tells the journal what became of a call, and its caller what it took.
fn settle<T: Transport>(
    call: &Call<'_>,
    end: &AttemptEnd,
    result: Result<Read<T::Response>, Late<T::Error>>,
    noted: Option<Noted<'_>>,
    now: Moment,
) -> Result<Read<T::Response>, Late<T::Error>> {
    let settled = match end {
        AttemptEnd::Answered(answer) if !call.surely_not_done() => {
            Settled::Answered { status: answer.status, at: now.wall }
        }
        _ => Settled::NotDone,
    };
    if matches!(end, AttemptEnd::Answered(answer) if answer.replayed) {
        observe::replay_seen();
    }
    let mut read = match result {
        Ok(read) => read,
        Err(error) => {
            if let Some(noted) = noted {
                noted.settle(settled);
            }
            return Err(error);
        }
    };
    match noted {
        // A stream is an answer when it has come to its end; a refusal is one at once.
        Some(noted) if read.whole.is_none() && settled != Settled::NotDone => {
            read.response = T::at_end(read.response, Box::new(noted.settle_later(settled)));
        }
        Some(noted) => noted.settle(settled),
        None => {}
    }
    if call.attempts() > 1 {
        let report = CallReport { attempts: call.attempts() };
        T::extensions(&mut read.response).insert(report);
    }
    Ok(read)
}

/// The end of a call of which nobody knows what became; without a key there is nothing to find out.
fn unknown<E: Into<crate::BoxError>>(
    logical: &Logical<'_>,
    why: Unknown,
    attempts: u32,
    end: Option<AttemptEnd>,
    error: Option<Late<E>>,
) -> Failure<E> {
    observe::outcome_unknown(why);
    observe::call_ended(CallOutcome::Unknown, attempts);
    let Some(key) = logical.key.clone() else { return Error::timed_out().into() };
    let operation = logical.operation_of(&key);
    let (status, source) = match (end, error) {
        (_, Some(Late::Failed(error))) => (None, Some(error.into())),
        (Some(AttemptEnd::Answered(answer)), None) => (Some(answer.status), None),
        _ => (None, None),
    };
    let unknown = OutcomeUnknown { key, operation, attempts, why, status, source };
    Failure::Ours(unknown.into())
}

fn trace_id(trace: &Trace) -> tracing::field::DisplayValue<String> {
    tracing::field::display(trace.trace_id().to_string())
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
