//! Keeps the leases of what runs: renews each every third of it, from a task of its own that no
//! handler can block (E2). One task and one timer for all leases of an engine.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use retrysafe_core::{Fingerprint, Held, Lease, Settings, Store};
use tokio::{
    runtime::Handle,
    sync::Notify,
    task::{JoinHandle, yield_now},
    time::{Instant, sleep_until},
};

use crate::{engine::Engine, observe};

/// The leases of one engine, by when they are due to be renewed.
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    /// Where the task runs, if not on the runtime of who asks first.
    runtime: Option<Handle>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    earlier: Notify,
}

#[derive(Default)]
struct Queue {
    due: BTreeMap<(Instant, u64), Arc<Watched>>,
    next: u64,
    /// When the task wakes up by itself. Leases come and go much faster than they are renewed, so
    /// the task is told only of one that is due before that.
    sleeps_until: Option<Instant>,
    task: Option<JoinHandle<()>>,
}

/// A lease to keep.
pub(crate) struct Granted {
    pub(crate) lease: Lease,
    pub(crate) fingerprint: Fingerprint,
    /// When the claim was first sent: it may have been granted then (R7).
    pub(crate) sent: Instant,
    pub(crate) answered: Instant,
}

/// A lease that is being kept. Dropped, it is no longer renewed.
pub(crate) struct Hold {
    watched: Arc<Watched>,
    shared: Arc<Shared>,
    /// Whether this lease is due before all others, so that the task had to be told of it.
    woke_keeper: bool,
    /// Whether the lease was still fresh when the claim was answered.
    came_in_time: bool,
}

struct Watched {
    lease: Lease,
    settings: Arc<Settings>,
    /// As it was claimed. Here because the futures of an attempt carry it: they move a pointer.
    fingerprint: Fingerprint,
    number: u64,
    started: Instant,
    times: Mutex<Times>,
    ending: AtomicBool,
    over: AtomicBool,
    lost: AtomicBool,
    noticed_lost: Notify,
}

impl Watched {
    /// Counted once, whoever finds it: a renewal, the end, or both.
    fn lost_now(&self) {
        if !self.lost.swap(true, Ordering::AcqRel) {
            observe::lease_lost(&self.lease.id, self.lease.attempt);
            self.noticed_lost.notify_waiters();
        }
    }
}

struct Times {
    due: Instant,
    /// When the last claim or renewal that was acknowledged was sent (R7).
    sent: Instant,
}

impl Keeper {
    pub(crate) fn new(runtime: Option<Handle>) -> Self {
        Self { shared: Arc::default(), runtime }
    }

    /// Renews a lease until the hold is dropped or `max_execution` is over.
    pub(crate) fn hold<S: Store>(
        &self,
        engine: &Engine<S>,
        granted: Granted,
        settings: Arc<Settings>,
    ) -> Hold {
        let Granted { lease, fingerprint, sent, answered } = granted;
        let came_in_time = answered - sent < settings.lease;
        let due = sent + settings.lease / 3;
        let mut queue = locked(&self.shared.queue);
        let number = queue.next;
        queue.next += 1;
        let watched = Arc::new(Watched {
            lease,
            settings,
            fingerprint,
            number,
            started: sent,
            times: Mutex::new(Times { due, sent }),
            ending: AtomicBool::new(false),
            over: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            noticed_lost: Notify::new(),
        });
        queue.due.insert((due, number), watched.clone());
        // A runtime that ended took its task with it; an engine may outlive it.
        if queue.task.as_ref().is_none_or(JoinHandle::is_finished) {
            let engine = engine.downgrade();
            queue.sleeps_until = None;
            let task = run(engine, self.shared.clone());
            queue.task = Some(match &self.runtime {
                Some(runtime) => runtime.spawn(task),
                None => tokio::spawn(task),
            });
        }
        // Another runtime's thread is not this one's to block.
        let woke_keeper = self.shared.wake_for(&mut queue, due) && self.runtime.is_none();
        drop(queue);
        Hold { watched, shared: self.shared.clone(), woke_keeper, came_in_time }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(task) = locked(&self.shared.queue).task.take() {
            task.abort();
        }
    }
}

impl Shared {
    /// Tells the task of a lease that is due before it wakes up by itself.
    fn wake_for(&self, queue: &mut Queue, due: Instant) -> bool {
        let earlier = queue.sleeps_until.is_none_or(|until| due < until);
        if earlier {
            queue.sleeps_until = Some(due);
            self.earlier.notify_one();
        }
        earlier
    }
}

impl Hold {
    pub(crate) fn lease(&self) -> &Lease {
        &self.watched.lease
    }

    pub(crate) fn settings(&self) -> &Arc<Settings> {
        &self.watched.settings
    }

    pub(crate) fn fingerprint(&self) -> &Fingerprint {
        &self.watched.fingerprint
    }

    /// Lets the keeper take note of this lease, and says whether it is still fresh. What a task
    /// wakes up runs next on the same thread, and no other takes it from there: a handler that then
    /// blocks the thread would block the keeper with it (E2).
    pub(crate) async fn noticed(&self) -> bool {
        if self.woke_keeper {
            yield_now().await;
            return self.is_fresh();
        }
        self.came_in_time
    }

    /// Whether nobody can have taken over yet: the last acknowledged claim or renewal was sent less
    /// than a lease ago by this process's monotonic clock (R7), and no renewal has found the lease
    /// lost: a store may lose what it has acknowledged (ST9).
    pub(crate) fn is_fresh(&self) -> bool {
        !self.watched.lost.load(Ordering::Acquire)
            && locked(&self.watched.times).sent.elapsed() < self.watched.settings.lease
    }

    /// The attempt's end is being written. The lease is still renewed, in case that takes long, but
    /// a renewal that finds it gone has only come after the end.
    pub(crate) fn ending(&self) {
        self.watched.ending.store(true, Ordering::Release);
    }

    /// The lease was found to be lost.
    pub(crate) fn lost_now(&self) {
        self.watched.lost_now();
    }

    /// Waits until a renewal has found that the lease is lost.
    pub(crate) async fn lost(&self) {
        let noticed = self.watched.noticed_lost.notified();
        if !self.watched.lost.load(Ordering::Acquire) {
            noticed.await;
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.watched.over.store(true, Ordering::Release);
        let mut queue = locked(&self.shared.queue);
        let due = locked(&self.watched.times).due;
        queue.due.remove(&(due, self.watched.number));
    }
}

async fn run<S: Store>(engine: crate::engine::WeakEngine<S>, shared: Arc<Shared>) {
    loop {
        let (due, next) = {
            let mut queue = locked(&shared.queue);
            let later = queue.due.split_off(&(Instant::now(), u64::MAX));
            let due = std::mem::replace(&mut queue.due, later);
            queue.sleeps_until = queue.due.first_key_value().map(|((at, _), _)| *at);
            (due, queue.sleeps_until)
        };
        for watched in due.into_values() {
            let Some(engine) = engine.upgrade() else { return };
            // Each on its own: a store that answers one late must not delay the others.
            tokio::spawn(renew(engine, watched, shared.clone()));
        }
        match next {
            Some(at) => {
                tokio::select! {
                    () = sleep_until(at) => {}
                    () = shared.earlier.notified() => {}
                }
            }
            None => shared.earlier.notified().await,
        }
    }
}

async fn renew<S: Store>(engine: Engine<S>, watched: Arc<Watched>, shared: Arc<Shared>) {
    let settings = &watched.settings;
    if watched.started.elapsed() >= settings.max_execution {
        return; // E2: from here on the lease runs out; the handler goes on.
    }
    let sent = Instant::now();
    let answer = engine.renew(&watched.lease, settings.lease, settings.store_deadline).await;
    // A renewal that crossed the end of its attempt changed nothing and says nothing (ST4).
    let due = match answer {
        _ if watched.over.load(Ordering::Acquire) => return,
        Ok(Held::Applied) => {
            locked(&watched.times).sent = sent;
            sent + settings.lease / 3
        }
        Ok(Held::Lost(_)) if watched.ending.load(Ordering::Acquire) => return,
        Ok(Held::Lost(_)) => {
            watched.lost_now();
            return;
        }
        Err(_) => Instant::now() + (settings.lease / 10).min(Duration::from_secs(1)),
    };
    let mut queue = locked(&shared.queue);
    if watched.over.load(Ordering::Acquire) {
        return;
    }
    locked(&watched.times).due = due;
    queue.due.insert((due, watched.number), watched.clone());
    shared.wake_for(&mut queue, due);
}

/// Nothing is left half done under these locks, so a panic elsewhere does not matter.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
