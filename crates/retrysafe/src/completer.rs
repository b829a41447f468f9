//! Goes on with what was abandoned: calls that were cut in phases, whose process died, and whose
//! callers never came back.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use retrysafe_core::{
    Abandoned, FindAbandoned, IdempotencyKey, KeyRules, OperationId, Scope, Store, StoreError,
    StoreErrorKind,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    Once,
    engine::CENTURY,
    guard::{Prepared, Received},
    once::asked::target,
    phases::CALL,
};

/// How many operations are looked up at a time.
const PAGE: usize = 100;

/// How long a look may take: it is about all records, and no request waits for it.
const DEADLINE: Duration = Duration::from_secs(30);

/// The longest time between two tries of one operation.
const LONGEST: Duration = Duration::from_secs(60 * 60);

/// Goes on with operations that were abandoned: they have kept something in
/// [phases](crate::Phases), their lease is over or was given up, and nobody has finished them. It is
/// for calls whose caller may never come back; without one, they stay where they are.
///
/// Only a call that said so is gone on with: [`completable`](crate::OnceRun::completable), and
/// [`phases`](crate::OnceContext::phases) from its context. Then its scope, key and input are kept in
/// the record while it is unfinished, and the completer hands them to a function of yours, which makes
/// the same call once more:
///
/// ```
/// # use retrysafe::{Attempt, Done, FindAbandoned, FromAttempt, NotLent, OnceError, PhaseError, Store};
/// # struct SqlTransaction;
/// # impl FromAttempt for SqlTransaction {
/// #     fn from_attempt(_: &Attempt) -> Result<Self, NotLent> { Err(NotLent::Absent) }
/// # }
/// # #[derive(Debug)] struct Failed;
/// # impl<E> From<PhaseError<E>> for Failed { fn from(_: PhaseError<E>) -> Self { Self } }
/// # impl From<NotLent> for Failed { fn from(_: NotLent) -> Self { Self } }
/// # async fn charge(key: String, cents: u64) -> Result<String, Failed> { Ok(key) }
/// use retrysafe::{Completer, Once, Scope};
///
/// /// However it is called, it is this call.
/// async fn pay<S: Store>(
///     once: &Once<S>,
///     scope: &Scope,
///     key: &str,
///     cents: u64,
/// ) -> Result<Done<String>, OnceError<Failed>> {
///     once.run("pay", scope, key, &cents, move |context| async move {
///         let mut phases = context.phases::<SqlTransaction>()?;
///         Ok(phases.phase("charge", |key| charge(key, cents)).await?)
///     })
///     .completable()
///     .await
/// }
///
/// async fn serve<S: Store + FindAbandoned>(once: Once<S>) {
///     let again = once.clone();
///     let completer = Completer::new(&once).on("pay", move |call| {
///         let once = again.clone();
///         async move { pay(&once, call.scope(), call.key(), call.input().ok()?).await.ok() }
///     });
///     tokio::spawn(completer.run());
/// }
/// ```
///
/// # What is promised
///
/// It is one more caller, and no more than that: the claim decides who runs, so an operation never
/// runs twice at a time, in whatever process completers and callers are. What was kept is not done
/// again. An operation that can't be finished is tried again later and later, up to once an hour, and
/// after [`attempts`](Self::attempts) of all processes it is left to an operator.
///
/// A look reads the whole table of records: don't look too often where that is large.
#[must_use = "it does nothing until it runs"]
pub struct Completer<S> {
    once: Once<S>,
    calls: HashMap<String, GoOn>,
    every: Duration,
    at_once: usize,
    attempts: u32,
    later: HashMap<OperationId, Later>,
    /// What is left to an operator, who was told once.
    left: HashSet<OperationId>,
}

type GoOn = Arc<dyn Fn(KeptCall) -> Pin<Box<dyn Future<Output = bool> + Send>> + Send + Sync>;

/// When an operation that could not be finished is tried again.
struct Later {
    tries: u32,
    not_before: Instant,
}

/// What a look at the abandoned operations came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Completed {
    /// How many there were that this completer knows how to go on with.
    pub found: usize,
    /// How many of these were gone on with, and have a result now.
    pub finished: usize,
    /// How many were gone on with, and have none.
    pub failed: usize,
}

/// A call that was abandoned. `Debug` shows nothing of it.
#[derive(Clone)]
pub struct KeptCall {
    scope: Scope,
    key: IdempotencyKey,
    input: String,
}

/// A call as it is kept, in JSON.
#[derive(Serialize, Deserialize)]
struct Kept {
    /// What its name stands for.
    operation: String,
    scope: Vec<u8>,
    key: String,
    input: String,
}

/// What is kept is no call that this build can read.
struct Unreadable;

impl KeptCall {
    /// A call, to be kept.
    pub(crate) fn of(asked: &Prepared<Full<Bytes>>) -> Option<Arc<str>> {
        let Received { parts, body } = &*asked.received;
        let kept = Kept {
            operation: parts.uri.path().to_owned(),
            scope: asked.scope.as_bytes().to_vec(),
            key: asked.key.as_str().to_owned(),
            input: String::from_utf8(body.whole()?.to_vec()).ok()?,
        };
        serde_json::to_string(&kept).ok().map(Arc::from)
    }

    /// Whose key it is.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Its key.
    pub fn key(&self) -> &str {
        self.key.as_str()
    }

    /// What it asks for. Call with all of it: the input of a retry is compared with the first one's.
    ///
    /// # Errors
    ///
    /// If it is not what this build can read.
    pub fn input<I: DeserializeOwned>(&self) -> Result<I, serde_json::Error> {
        serde_json::from_str(&self.input)
    }
}

// S3: neither key nor scope is shown.
impl fmt::Debug for KeptCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptCall").finish_non_exhaustive()
    }
}

impl<S: Store + FindAbandoned> Completer<S> {
    /// A completer of what this `Once` has begun, in whatever process.
    pub fn new(once: &Once<S>) -> Self {
        Self {
            once: once.clone(),
            calls: HashMap::new(),
            every: Duration::from_secs(60),
            at_once: 4,
            attempts: 20,
            later: HashMap::new(),
            left: HashSet::new(),
        }
    }

    /// How to go on with an operation of this name: by the same call. `None` means that it could not
    /// be finished.
    pub fn on<F, R, T>(mut self, operation: &str, call: F) -> Self
    where
        F: Fn(KeptCall) -> R + Send + Sync + 'static,
        R: Future<Output = Option<T>> + Send + 'static,
    {
        let go_on: GoOn = Arc::new(move |kept| {
            let called = call(kept);
            Box::pin(async move { called.await.is_some() })
        });
        self.calls.insert(target(operation).path().to_owned(), go_on);
        self
    }

    /// How often to look, on average: 60 s by default, and every 100 years at least. It is also how
    /// long an operation that could not be finished is left alone the first time.
    pub fn every(mut self, every: Duration) -> Self {
        self.every = every.clamp(Duration::from_millis(1), CENTURY);
        self
    }

    /// How many operations are gone on with at once; 4 by default, 1 at least.
    pub fn at_once(mut self, operations: usize) -> Self {
        self.at_once = operations.max(1);
        self
    }

    /// After how many attempts, whoever made them, an operation is left to an operator; 20 by default.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// Looks again and again, until it is dropped. Spawn it.
    ///
    /// # Cancel safety
    ///
    /// What was begun goes on (E1); nothing else is.
    pub async fn run(mut self) {
        loop {
            // With jitter, so that many processes don't look at the same time.
            sleep(self.every.mul_f64(rand::random_range(0.5..1.5))).await;
            match self.look().await {
                Ok(Completed { found: 0, .. }) => {}
                Ok(Completed { found, finished, failed }) => {
                    tracing::info!(found, finished, failed, "went on with what was abandoned");
                }
                Err(error) => tracing::warn!(%error, "what was abandoned can't be looked up"),
            }
        }
    }

    /// Looks once, goes on with what there is, and waits for that.
    ///
    /// # Errors
    ///
    /// If the store can't be asked; what was begun goes on.
    ///
    /// # Cancel safety
    ///
    /// As for [`run`](Self::run).
    pub async fn look(&mut self) -> Result<Completed, StoreError> {
        let (mut completed, mut going) = (Completed::default(), JoinSet::new());
        let (mut seen, mut after) = (HashSet::new(), None);
        let longest = self.once.settings().max_execution;
        loop {
            let page = self.once.engine().store().abandoned(after.as_ref(), PAGE);
            let Ok(page) = timeout(DEADLINE, page).await else {
                let context = "the store did not say in time what was abandoned";
                return Err(StoreError::new(StoreErrorKind::Timeout, context));
            };
            let page = page?;
            after = page.last().map(|last| last.id);
            for abandoned in &page {
                let id = abandoned.id;
                let (go_on, call) = match self.call_of(abandoned) {
                    Ok(Some(ours)) => ours,
                    Ok(None) => continue,
                    Err(Unreadable) => {
                        seen.insert(id);
                        if self.left.insert(id) {
                            tracing::error!(operation = %id, "a kept call can't be read: see to it");
                        }
                        continue;
                    }
                };
                let go_on = go_on.clone();
                completed.found += 1;
                seen.insert(id);
                if !self.is_due(abandoned) {
                    continue;
                }
                while going.len() >= self.at_once {
                    self.settle(&mut going, &mut completed).await;
                }
                // On a task of its own: a panic is one failure more, and so is one that takes longer than
                // any attempt may. That goes on (E1), and nobody waits for it.
                let called = tokio::spawn(async move { go_on(call).await });
                going.spawn(async move {
                    let finished = timeout(longest, called).await;
                    (id, matches!(finished, Ok(Ok(true))))
                });
            }
            if page.len() < PAGE {
                break;
            }
        }
        while !going.is_empty() {
            self.settle(&mut going, &mut completed).await;
        }
        self.later.retain(|id, _| seen.contains(id));
        self.left.retain(|id| seen.contains(id));
        Ok(completed)
    }

    async fn settle(
        &mut self,
        going: &mut JoinSet<(OperationId, bool)>,
        completed: &mut Completed,
    ) {
        let Some(Ok((id, finished))) = going.join_next().await else { return };
        if finished {
            completed.finished += 1;
            self.later.remove(&id);
            return;
        }
        completed.failed += 1;
        let later = self.later.entry(id).or_insert(Later { tries: 0, not_before: Instant::now() });
        let pause = self.every.saturating_mul(1 << later.tries.min(20)).min(LONGEST);
        later.not_before = Instant::now() + pause.mul_f64(rand::random_range(0.75..1.25));
        later.tries += 1;
    }

    fn is_due(&mut self, abandoned: &Abandoned) -> bool {
        let operation = abandoned.id;
        // A try that does not even get to its phases is counted by nobody else.
        let tries = self.later.get(&operation).map_or(0, |later| later.tries);
        let attempts = abandoned.attempt.max(tries);
        if attempts >= self.attempts {
            if self.left.insert(operation) {
                tracing::error!(%operation, attempts, "could not be finished: see to it");
            }
            return false;
        }
        let later = self.later.get(&operation);
        later.is_none_or(|later| later.not_before <= Instant::now())
    }

    /// The call that began an operation, if it was kept, and is one of ours.
    fn call_of(&self, abandoned: &Abandoned) -> Result<Option<(&GoOn, KeptCall)>, Unreadable> {
        let parts: BTreeMap<String, String> =
            serde_json::from_slice(&abandoned.points).map_err(|_| Unreadable)?;
        let Some(kept) = parts.get(CALL) else { return Ok(None) };
        let kept: Kept = serde_json::from_str(kept).map_err(|_| Unreadable)?;
        let Some(go_on) = self.calls.get(&kept.operation) else { return Ok(None) };
        let scope = Scope::from_encoded(&kept.scope).ok_or(Unreadable)?;
        // Whatever the rules for keys are by now: one that is too long for them, or tells an age that is
        // too old, is refused when it is called with, which is counted and told.
        let any = KeyRules::default().max_length(usize::MAX);
        let key = any.check(&kept.key, || Duration::ZERO).map_err(|_| Unreadable)?;
        // Of another namespace it is another's.
        let id = OperationId::new(&self.once.settings().namespace, &scope, &key);
        Ok((id == abandoned.id).then_some((go_on, KeptCall { scope, key, input: kept.input })))
    }
}

impl<S> fmt::Debug for Completer<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completer")
            .field("every", &self.every)
            .field("at_once", &self.at_once)
            .field("attempts", &self.attempts)
            .finish_non_exhaustive()
    }
}
