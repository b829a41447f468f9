//! The engine: what every front door goes through. It asks the store, decides, keeps the lease of
//! what runs, and writes the outcome; it knows nothing of HTTP bodies.

use std::{
    fmt,
    future::Future,
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::CatchUnwind};
use pin_project_lite::pin_project;
use retrysafe_core::{
    About, Acquired, Begin, Claim, Clock, ConfigError, Entropy, Fingerprint, Found, Held, Lease,
    OperationId, Owner, Settings, Store, StoreError, StoreErrorKind, Swept, SystemClock,
    SystemEntropy,
};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
    time::{Instant, Sleep, sleep, sleep_until, timeout},
};
use tokio_util::task::{TaskTracker, task_tracker::TrackedFuture};
use tracing::{Instrument as _, Span};

use crate::{
    execution::Execution,
    keeper::{Granted, Keeper},
    observe::{self, StoreCalls},
    waiting::WaitingRoom,
};

/// The longest time between two looks at a store. With jitter, longer ones would overflow.
pub(crate) const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// One store and everything in this process that works on it: leases being renewed, duplicates
/// that wait, executions in flight, the sweeper. Layers that share an engine share all of these.
///
/// ```
/// use retrysafe::{Engine, MemoryStore};
///
/// let engine = Engine::builder(MemoryStore::new()).max_in_flight(1024).build()?;
/// # Ok::<(), retrysafe::ConfigError>(())
/// ```
pub struct Engine<S>(Arc<Inner<S>>);

struct Inner<S> {
    store: S,
    about: About,
    calls: StoreCalls,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    executions: Option<Arc<Semaphore>>,
    keeper: Keeper,
    background: Option<Handle>,
    room: Arc<WaitingRoom>,
    tasks: TaskTracker,
    sweep_every: Option<Duration>,
    sweeping: AtomicBool,
}

impl<S> Clone for Engine<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: Store> Engine<S> {
    /// Starts an engine on a store.
    pub fn builder(store: S) -> EngineBuilder<S> {
        EngineBuilder {
            store,
            clock: Arc::new(SystemClock::new()),
            entropy: Arc::new(SystemEntropy),
            max_in_flight: None,
            sweep_every: Some(Duration::from_secs(60)),
            background: None,
        }
    }

    /// The store.
    pub fn store(&self) -> &S {
        &self.0.store
    }

    /// Waits until nothing is in flight: executions, their records, and what is being released in
    /// the background (E1). Stop accepting requests first. New requests are still served.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops waiting and changes nothing.
    pub async fn drain(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// How many tasks a [`drain`](Self::drain) would wait for now.
    pub fn in_flight(&self) -> usize {
        self.0.tasks.len()
    }

    /// Whether leases are renewed where no handler can block that.
    pub(crate) fn renews_elsewhere(&self) -> bool {
        self.0.background.is_some()
    }

    pub(crate) fn downgrade(&self) -> WeakEngine<S> {
        WeakEngine(Arc::downgrade(&self.0))
    }

    pub(crate) fn about(&self) -> About {
        self.0.about
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.0.clock
    }

    pub(crate) fn entropy(&self) -> &dyn Entropy {
        &*self.0.entropy
    }

    pub(crate) fn room(&self) -> &Arc<WaitingRoom> {
        &self.0.room
    }

    /// Runs something that no client can stop, and that a drain waits for (E1).
    pub(crate) fn detach<F>(&self, task: F, tasks: Tasks)
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        tasks.spawn(self.0.tasks.track_future(task));
    }

    /// The same for something that is waited for. Nobody can drop a future while it is being
    /// polled, so what is over at once has needed no task; what is not goes on as one. `None` if it
    /// was interrupted: a runtime that is shutting down, or a mistake of ours.
    pub(crate) fn see_through<F>(&self, work: F, tasks: Tasks) -> SeenThrough<F>
    where
        F: Future<Output: Send + 'static> + Unpin + Send + 'static,
    {
        let work = self.0.tasks.track_future(AssertUnwindSafe(work).catch_unwind());
        SeenThrough::Here(Some((work, tasks)))
    }

    /// The right to run one more handler; `None` when the bound is reached (E6).
    pub(crate) fn permit(&self) -> Option<Permit> {
        let semaphore = match &self.0.executions {
            None => None,
            Some(executions) => Some(executions.clone().try_acquire_owned().ok()?),
        };
        Some(Permit { _semaphore: semaphore })
    }

    /// The same for what queues anyway: it waits until it has it. Whoever does that bounds it, because
    /// those that hold all places may be waiting for it: handlers that await a batch.
    pub(crate) async fn place(&self) -> Permit {
        let semaphore = match &self.0.executions {
            None => None,
            // It is never closed.
            Some(executions) => executions.clone().acquire_owned().await.ok(),
        };
        Permit { _semaphore: semaphore }
    }

    /// Claims an operation. A claim whose answer was lost is repeated with the same owner; if that
    /// does not help it is released in the background, because no handler has started (D5). The
    /// permit is kept for as long as anything of the claim is left to do.
    pub(crate) async fn begin(
        &self,
        settings: &Arc<Settings>,
        id: OperationId,
        fingerprint: &Fingerprint,
        take_over: bool,
        permit: Permit,
    ) -> Result<Begun<S>, BeginError> {
        self.start_sweeping();
        let claim = Claim {
            id,
            owner: Owner::new(&*self.0.entropy),
            fingerprint: fingerprint.clone(),
            lease: settings.lease,
            retention: settings.retention,
            take_over,
        };
        let deadline = settings.store_deadline;
        // D5: dropped here, or the answer lost, the claim may stand. The guard releases it.
        let guard = Unanswered { engine: self, settings, claim: &claim, permit: Some(permit) };
        // R7: a claim holds for a lease from when it was *first* sent; a repeated one that is
        // granted may have been granted then.
        let (sent, (mut answer, mut answered)) = {
            let call = pin!(self.at_home(self.0.store.begin(&claim)));
            let first = self.call("begin", deadline, call);
            (first.sent, first.await)
        };
        let mut lost = false;
        if let Err(error) = &answer
            && error.is_ambiguous()
        {
            lost = true;
            let mut call = Box::pin(self.at_home(self.0.store.begin(&claim)));
            (answer, answered) = self.call("begin", deadline, call.as_mut()).await;
        }
        match answer {
            Ok(Begin::Acquired(acquired)) => {
                let permit = guard.answered();
                let lease = lease_of(&claim, acquired);
                let unit = self.0.store.unit(&lease);
                let Claim { fingerprint, .. } = claim;
                let granted = Granted { lease, fingerprint, sent, answered };
                let hold = self.0.keeper.hold(self, granted, settings.clone());
                let vanished = acquired.previous_vanished;
                let execution = Execution::new(self.clone(), hold, vanished, permit, unit);
                Ok(Begun::Acquired(acquired, execution))
            }
            Ok(Begin::Found(found)) => {
                // A lost first try may still be under way: then the guard goes on watching for it.
                if !lost {
                    guard.answered();
                }
                Ok(Begun::Found(found))
            }
            Err(error) if lost || error.is_ambiguous() => Err(BeginError::Lost),
            Err(error) => {
                guard.answered();
                Err(match error.kind() {
                    StoreErrorKind::Unreachable => BeginError::Unreachable,
                    _ => BeginError::Refused,
                })
            }
        }
    }

    pub(crate) async fn renew(
        &self,
        lease: &Lease,
        lease_for: Duration,
        deadline: Duration,
    ) -> Result<Held, StoreError> {
        let call = pin!(self.at_home(self.0.store.renew(lease, lease_for)));
        self.call("renew", deadline, call).await.0
    }

    pub(crate) async fn complete(
        &self,
        lease: &Lease,
        fingerprint: &Fingerprint,
        payload: Bytes,
        retention: Duration,
        deadline: Duration,
    ) -> Result<Held, StoreError> {
        let call = self.0.store.complete(lease, fingerprint, payload, retention);
        let call = pin!(self.at_home(call));
        self.call("complete", deadline, call).await.0
    }

    pub(crate) async fn release(
        &self,
        lease: &Lease,
        keep_counters_for: Duration,
        deadline: Duration,
    ) -> Result<Held, StoreError> {
        let call = pin!(self.at_home(self.0.store.release(lease, keep_counters_for)));
        self.call("release", deadline, call).await.0
    }

    /// Waits until attempt `seen` may no longer be in flight.
    pub(crate) async fn changed(
        &self,
        id: &OperationId,
        seen: u32,
        within: Duration,
        deadline: Duration,
    ) -> Result<(), StoreError> {
        // Not a call that is measured: it is meant to take long.
        let longest = within.saturating_add(deadline);
        let change = self.at_home(self.0.store.changed(id, seen, within));
        match timeout(longest, change).await {
            Ok(answer) => answer,
            Err(_) => Err(late("changed", deadline)),
        }
    }

    /// Releases a claim whose handler never ran, for as long as it may matter. A claim that was
    /// never answered may still be under way to the store, so for a while no answer is the last.
    pub(crate) fn release_in_background(&self, unrun: Unrun, permit: Permit) {
        let engine = self.clone();
        self.in_background(async move {
            let Unrun { lease, settings, keep_counters_for, answered } = unrun;
            let under_way = match answered {
                true => Duration::ZERO,
                false => settings.store_deadline * 2,
            };
            let since = Instant::now();
            let mut pause = Pause::new(settings.max_execution);
            loop {
                match engine.release(&lease, keep_counters_for, settings.store_deadline).await {
                    Ok(Held::Applied) => break,
                    Ok(Held::Lost(_)) if since.elapsed() >= under_way => break,
                    Ok(Held::Lost(_)) | Err(_) => {}
                }
                if !pause.again().await {
                    break;
                }
            }
            drop(permit);
        });
    }

    /// Does what is left to do of an attempt, which a drain waits for: where its lease is renewed,
    /// because the runtime that served the request may end before (a worker of Actix does).
    pub(crate) fn in_background(&self, rest: impl Future<Output = ()> + Send + 'static) {
        let here = || Handle::try_current().ok();
        // A process that is going down has no runtime any more; the lease runs out then.
        let Some(runtime) = self.0.background.clone().or_else(here) else { return };
        self.0.tasks.spawn_on(rest, &runtime);
    }

    /// Pinned where it is made: a store's future may be large, and a wrapper would move it.
    fn call<'a, F>(
        &'a self,
        verb: &'static str,
        deadline: Duration,
        call: Pin<&'a mut F>,
    ) -> Call<'a, F> {
        Call { calls: &self.0.calls, verb, sent: Instant::now(), deadline, timer: None, call }
    }

    fn at_home<F>(&self, call: F) -> AtHome<'_, F> {
        AtHome { home: self.0.background.as_ref(), call: Some(call) }
    }

    /// R8: the engine sweeps by itself, from its first request on, until it is dropped.
    fn start_sweeping(&self) {
        let Some(every) = self.0.sweep_every else { return };
        if self.0.sweeping.swap(true, Ordering::Relaxed) {
            return;
        }
        let sweeper = Sweeper(self.downgrade());
        let sweep = async move {
            loop {
                sleep(every.mul_f64(rand::random_range(0.5..1.5))).await;
                let Some(engine) = sweeper.0.upgrade() else { return };
                engine.sweep().await;
            }
        };
        match &self.0.background {
            Some(runtime) => runtime.spawn(sweep),
            None => tokio::spawn(sweep),
        };
    }

    async fn sweep(&self) {
        const BATCH: usize = 1000;
        const DEADLINE: Duration = Duration::from_secs(30);
        loop {
            let call = pin!(self.at_home(self.0.store.sweep(BATCH)));
            match self.call("sweep", DEADLINE, call).await.0 {
                Ok(Swept { removed, more }) => {
                    observe::swept(removed);
                    if !more {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
                Err(_) => return,
            }
        }
    }
}

impl<S> fmt::Debug for Engine<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("store", &self.0.about.engine).finish_non_exhaustive()
    }
}

/// The sweeping task. A runtime that ends takes it with it; the next request starts another.
struct Sweeper<S>(WeakEngine<S>);

impl<S> Drop for Sweeper<S> {
    fn drop(&mut self) {
        if let Some(engine) = self.0.upgrade() {
            engine.0.sweeping.store(false, Ordering::Relaxed);
        }
    }
}

/// Where the tasks of a front door run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tasks {
    /// On any thread of the runtime.
    #[default]
    Anywhere,
    /// On this thread, in its `LocalSet`: what they hold must not leave it.
    Local,
}

impl Tasks {
    fn spawn<F>(self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        match self {
            Self::Anywhere => tokio::spawn(task),
            Self::Local => tokio::task::spawn_local(task),
        }
    }
}

/// Work that is seen through.
pub(crate) enum SeenThrough<F: Future> {
    /// It has not been polled yet.
    Here(Option<(TrackedFuture<CatchUnwind<AssertUnwindSafe<F>>>, Tasks)>),
    /// It goes on as a task.
    There(JoinHandle<std::thread::Result<F::Output>>),
}

impl<F> Future for SeenThrough<F>
where
    F: Future<Output: Send + 'static> + Unpin + Send + 'static,
{
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Self::Here(work) = &mut *self {
            let Some((mut work, tasks)) = work.take() else { return Poll::Ready(None) };
            if let Poll::Ready(done) = Pin::new(&mut work).poll(cx) {
                return Poll::Ready(done.ok());
            }
            *self = Self::There(tasks.spawn(work.instrument(Span::current())));
        }
        match &mut *self {
            Self::There(task) => Pin::new(task).poll(cx).map(|done| done.ok()?.ok()),
            Self::Here(_) => Poll::Ready(None),
        }
    }
}

/// A call to the store: measured, and given up at its deadline (D5).
struct Call<'a, F> {
    calls: &'a StoreCalls,
    verb: &'static str,
    sent: Instant,
    deadline: Duration,
    /// Only for an answer that does not come at once, and boxed because it is large: a store in
    /// this process needs none.
    timer: Option<Pin<Box<Sleep>>>,
    call: Pin<&'a mut F>,
}

pin_project! {
    /// What a store does, wherever it is polled, in the runtime that the leases are renewed on. A
    /// connection that it opens lives there: on the runtime of who asked first, a handler that blocks
    /// that would block the connection with it, and the renewals that need it (E2).
    struct AtHome<'a, F> {
        home: Option<&'a Handle>,
        // `None` once it is dropped.
        #[pin]
        call: Option<F>,
    }

    // What is given up gives its connection back, which takes a task.
    impl<F> PinnedDrop for AtHome<'_, F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            let _entered = this.home.map(Handle::enter);
            this.call.set(None);
        }
    }
}

impl<F: Future> Future for AtHome<'_, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _entered = this.home.map(Handle::enter);
        match this.call.as_pin_mut() {
            Some(call) => call.poll(cx),
            None => unreachable!("what is dropped is not polled"),
        }
    }
}

/// The answer, and when it came.
impl<T, F: Future<Output = Result<T, StoreError>>> Future for Call<'_, F> {
    type Output = (Result<T, StoreError>, Instant);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let call = &mut *self;
        let answer = match call.call.as_mut().poll(cx) {
            Poll::Ready(answer) => answer,
            Poll::Pending => {
                let due = call.sent + call.deadline;
                let timer = call.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
                ready!(timer.as_mut().poll(cx));
                Err(late(call.verb, call.deadline))
            }
        };
        let answered = Instant::now();
        call.calls.call(call.verb, answered - call.sent, answer.as_ref().err());
        Poll::Ready((answer, answered))
    }
}

/// An engine that does not keep itself alive.
pub(crate) struct WeakEngine<S>(Weak<Inner<S>>);

impl<S> WeakEngine<S> {
    pub(crate) fn upgrade(&self) -> Option<Engine<S>> {
        self.0.upgrade().map(Engine)
    }
}

/// Builds an [`Engine`].
pub struct EngineBuilder<S> {
    store: S,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    max_in_flight: Option<usize>,
    sweep_every: Option<Duration>,
    background: Option<Handle>,
}

impl<S: Store> EngineBuilder<S> {
    /// Bounds the executions in flight in this process; the next one is answered 503 before any
    /// store call (E6). Only an item of a [`Batch`](crate::Batch) waits for its place. Unbounded by
    /// default.
    ///
    /// A handler has its place until it is done, and what it awaits on the same engine, such as a step
    /// by [`Once::sharing`](crate::Once::sharing), needs another. Handlers that have all of them wait
    /// for each other: give their steps an engine of their own, on the same store.
    pub fn max_in_flight(mut self, bound: usize) -> Self {
        self.max_in_flight = Some(bound);
        self
    }

    /// How often expired records are swept, with jitter; `None` leaves it to somebody else (R8).
    /// 60 s by default.
    pub fn sweep_every(mut self, every: Option<Duration>) -> Self {
        self.sweep_every = every;
        self
    }

    /// Renews leases and sweeps on a runtime of its own, instead of the one that serves requests, and
    /// calls the store in its context: there live the connections that the store opens. For runtimes
    /// of one thread: a handler that blocks it would stop the renewals with it (E2). What is left to
    /// write or to release after an answer (R7, D5) is seen to there as well, so it does not end with
    /// the runtime that served the request.
    pub fn renew_on(mut self, runtime: Handle) -> Self {
        self.background = Some(runtime);
        self
    }

    /// What tells the time that keys are aged by and records are stamped with.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// What owners are drawn from.
    pub fn entropy(mut self, entropy: Arc<dyn Entropy>) -> Self {
        self.entropy = entropy;
        self
    }

    /// The engine.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if a bound or an interval is zero, or the interval is over 100 years.
    pub fn build(self) -> Result<Engine<S>, ConfigError> {
        if self.max_in_flight == Some(0) {
            return Err(ConfigError::new("max_in_flight", "must be 1 or more"));
        }
        if self.sweep_every.is_some_and(|every| every.is_zero() || every > CENTURY) {
            let problem = "must be longer than zero and at most 100 years";
            return Err(ConfigError::new("sweep_every", problem));
        }
        Ok(Engine(Arc::new(Inner {
            about: self.store.about(),
            calls: StoreCalls::new(self.store.about().engine),
            store: self.store,
            clock: self.clock,
            entropy: self.entropy,
            executions: self
                .max_in_flight
                .map(|bound| Arc::new(Semaphore::new(bound.min(Semaphore::MAX_PERMITS)))),
            keeper: Keeper::new(self.background.clone()),
            background: self.background,
            room: Arc::default(),
            tasks: TaskTracker::new(),
            sweep_every: self.sweep_every,
            sweeping: AtomicBool::new(false),
        })))
    }
}

impl<S> fmt::Debug for EngineBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineBuilder").finish_non_exhaustive()
    }
}

/// The answer to a claim.
pub(crate) enum Begun<S: Store> {
    /// It is ours to run.
    Acquired(Acquired, Execution<S>),
    /// It is not, and this is what is true.
    Found(Found),
}

/// Why a claim was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BeginError {
    /// Nothing was sent: the only case in which a request may be let through unprotected (D4).
    Unreachable,
    /// The store said no: it is full, or the record can't be read.
    Refused,
    /// It may have been granted. It is being released in the background.
    Lost,
    /// The store was not asked: too many executions are in flight (E6).
    Overloaded,
}

/// Bounds the executions in flight, and counts them.
pub(crate) struct Permit {
    _semaphore: Option<OwnedSemaphorePermit>,
}

/// A claim whose handler never ran, on its way back.
pub(crate) struct Unrun {
    pub(crate) lease: Lease,
    pub(crate) settings: Arc<Settings>,
    pub(crate) keep_counters_for: Duration,
    /// Whether the store has answered the claim.
    pub(crate) answered: bool,
}

/// A claim that was sent and not yet answered. Dropped unanswered, it is released (D5).
struct Unanswered<'a, S: Store> {
    engine: &'a Engine<S>,
    settings: &'a Arc<Settings>,
    claim: &'a Claim,
    permit: Option<Permit>,
}

impl<S: Store> Unanswered<'_, S> {
    fn answered(mut self) -> Permit {
        self.permit.take().unwrap_or_else(|| unreachable!("a claim is answered once"))
    }
}

impl<S: Store> Drop for Unanswered<'_, S> {
    fn drop(&mut self) {
        let Some(permit) = self.permit.take() else { return };
        // The owner alone says whose claim it is; nobody knows attempt and fence.
        let unknown = Acquired { attempt: 0, fence: 0, previous_vanished: false };
        let unrun = Unrun {
            lease: lease_of(self.claim, unknown),
            settings: self.settings.clone(),
            // It may have been a take-over, whose doubt must not be forgotten.
            keep_counters_for: self.settings.keep_doubt_for(),
            answered: false,
        };
        self.engine.release_in_background(unrun, permit);
    }
}

/// Pauses between tries, doubling up to five seconds, for a bounded time in all.
pub(crate) struct Pause {
    next: Duration,
    until: Instant,
}

impl Pause {
    pub(crate) fn new(in_all: Duration) -> Self {
        Self { next: Duration::from_millis(50), until: Instant::now() + in_all }
    }

    /// Sleeps; `false` once the time is up.
    pub(crate) async fn again(&mut self) -> bool {
        if Instant::now() >= self.until {
            return false;
        }
        // With jitter, so that what failed together does not come back together.
        sleep(self.next.mul_f64(rand::random_range(0.75..1.25))).await;
        self.next = (self.next * 2).min(Duration::from_secs(5));
        true
    }
}

fn lease_of(claim: &Claim, acquired: Acquired) -> Lease {
    Lease { id: claim.id, owner: claim.owner, attempt: acquired.attempt, fence: acquired.fence }
}

fn late(verb: &'static str, deadline: Duration) -> StoreError {
    StoreError::new(
        StoreErrorKind::Timeout,
        format!("the store did not answer `{verb}` within {deadline:?}"),
    )
}
