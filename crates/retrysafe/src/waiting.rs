//! Where duplicates wait for the outcome of the first (D2).
//!
//! All duplicates of one key in one process share one *watch*. One of them at a time has the
//! *turn*: it alone watches the store, and it alone claims again. When it finds the outcome it is
//! published to the others, which never ask the store themselves. An outcome that is written in this
//! process is published by who wrote it: the one who has the turn may not be polled. A turn that ends
//! without an outcome (a timeout, a client that left, an outcome that was released or is unknown)
//! passes on to the next.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use retrysafe_core::{Found, OperationId};
use tokio::sync::Notify;

use crate::observe;

#[derive(Default)]
pub(crate) struct WaitingRoom {
    watches: Mutex<HashMap<OperationId, Watched>>,
    waiters: AtomicUsize,
}

#[derive(Default)]
struct Watched {
    watch: Arc<Watch>,
    waiters: usize,
}

/// What those that wait for one outcome share. A thousand of them may be woken at once, on several
/// processors: a lock that each of them took would be what all of them wait for.
#[derive(Default)]
struct Watch {
    /// Once it is here, nobody needs the turn any more.
    outcome: OnceLock<Found>,
    /// Whether somebody has the turn.
    taken: AtomicBool,
    /// Tells all of the outcome, and one of a turn that ended without.
    told: Notify,
}

/// A duplicate that waits. Leaves the room when dropped.
pub(crate) struct Waiter {
    room: Arc<WaitingRoom>,
    id: OperationId,
    watch: Arc<Watch>,
}

/// The right to watch the store for all that wait, and to claim for oneself.
pub(crate) struct Turn {
    room: Arc<WaitingRoom>,
    id: OperationId,
    watch: Arc<Watch>,
}

/// What a waiter gets.
pub(crate) enum Waited {
    /// Somebody else found the outcome.
    Outcome(Found),
    /// It is this waiter's turn to look.
    Turn(Turn),
}

impl WaitingRoom {
    /// Enters the room, unless there are `most` in it already.
    pub(crate) fn enter(self: &Arc<Self>, id: OperationId, most: usize) -> Option<Waiter> {
        let entered = self.waiters.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiters| {
            (waiters < most).then_some(waiters + 1)
        });
        entered.ok()?;
        observe::waiters(1.0);
        let mut watches = self.watches();
        let watched = watches.entry(id).or_default();
        watched.waiters += 1;
        Some(Waiter { room: self.clone(), id, watch: watched.watch.clone() })
    }

    /// The right to publish an outcome that has just been written, beside whoever has the turn. `None`
    /// if nobody waits for it.
    pub(crate) fn told(self: &Arc<Self>, id: OperationId) -> Option<Turn> {
        // Who enters at this very moment is told by the store.
        if self.waiters.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let watch = self.watches().get(&id)?.watch.clone();
        Some(Turn { room: self.clone(), id, watch })
    }

    fn watches(&self) -> MutexGuard<'_, HashMap<OperationId, Watched>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter {
    /// Waits for the outcome or the turn, whichever is first.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives the place in the queue for the turn away, and nothing else.
    pub(crate) async fn wait(&self) -> Waited {
        loop {
            if let Some(waited) = self.look() {
                return waited;
            }
            let mut told = pin!(self.watch.told.notified());
            // In the queue first: a turn that ends while this one looks is not missed.
            told.as_mut().enable();
            if let Some(waited) = self.look() {
                return waited;
            }
            told.await;
        }
    }

    fn look(&self) -> Option<Waited> {
        let Watch { outcome, taken, .. } = &*self.watch;
        if let Some(found) = outcome.get() {
            return Some(Waited::Outcome(found.clone()));
        }
        if taken.swap(true, Ordering::AcqRel) {
            return None;
        }
        let (room, watch) = (self.room.clone(), self.watch.clone());
        Some(Waited::Turn(Turn { room, id: self.id, watch }))
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.room.waiters.fetch_sub(1, Ordering::Relaxed);
        observe::waiters(-1.0);
        if self.watch.outcome.get().is_some() {
            return; // Who published it had closed the watch.
        }
        let mut watches = self.room.watches();
        if let Some(watched) = watches.get_mut(&self.id)
            && Arc::ptr_eq(&watched.watch, &self.watch)
        {
            watched.waiters -= 1;
            if watched.waiters == 0 {
                watches.remove(&self.id);
            }
        }
    }
}

impl Turn {
    /// Gives the outcome to all that wait. Whoever comes from now on does not meet it.
    pub(crate) fn publish(self, found: Found) {
        let mut watches = self.room.watches();
        if watches.get(&self.id).is_some_and(|it| Arc::ptr_eq(&it.watch, &self.watch)) {
            watches.remove(&self.id);
        }
        drop(watches);
        // Whoever wrote it may have set it before who had the turn: they have found the same.
        let _ = self.watch.outcome.set(found);
        self.watch.told.notify_waiters();
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // With an outcome nobody needs it: to pass it on from one to the next would take as long as to
        // answer them.
        if self.watch.outcome.get().is_none() {
            self.watch.taken.store(false, Ordering::Release);
            self.watch.told.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn d2_the_turn_ends_with_the_outcome() {
        let room = Arc::<WaitingRoom>::default();
        let enter = || room.enter(OperationId::from_bytes([1; 32]), 10).unwrap();
        let (first, second) = (enter(), enter());
        let Waited::Turn(turn) = first.wait().await else { panic!("nobody else has it") };
        turn.publish(Found::Free);
        assert!(matches!(second.wait().await, Waited::Outcome(Found::Free)));
        assert!(matches!(first.wait().await, Waited::Outcome(Found::Free)));
        // Whoever comes later waits for somebody else's outcome.
        let late = enter();
        assert!(matches!(late.wait().await, Waited::Turn(_)));
        drop((first, second, late));
        assert!(room.watches().is_empty());
        assert_eq!(room.waiters.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn d2_who_wrote_the_outcome_tells_all_without_the_turn() {
        let room = Arc::<WaitingRoom>::default();
        let id = OperationId::from_bytes([1; 32]);
        assert!(room.told(id).is_none());
        let (first, second) = (room.enter(id, 10).unwrap(), room.enter(id, 10).unwrap());
        assert!(room.told(OperationId::from_bytes([2; 32])).is_none());
        let Waited::Turn(turn) = first.wait().await else { panic!("nobody else has it") };
        room.told(id).unwrap().publish(Found::Free);
        assert!(matches!(second.wait().await, Waited::Outcome(Found::Free)));
        // Who had the turn finds it as well. Meanwhile others wait for what comes next.
        let late = room.enter(id, 10).unwrap();
        turn.publish(Found::Free);
        assert!(matches!(late.wait().await, Waited::Turn(_)));
        drop((first, second, late));
        assert!(room.watches().is_empty());
        assert_eq!(room.waiters.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn d2_a_turn_without_an_outcome_passes_on() {
        let room = Arc::<WaitingRoom>::default();
        let enter = || room.enter(OperationId::from_bytes([1; 32]), 10).unwrap();
        let (first, second, third) = (enter(), enter(), enter());
        let Waited::Turn(turn) = first.wait().await else { panic!("nobody else has it") };
        let (mut second, mut third) = (Box::pin(second.wait()), Box::pin(third.wait()));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        drop(turn);
        let Waited::Turn(turn) = second.await else { panic!("there is no outcome") };
        assert!(third.as_mut().now_or_never().is_none());
        drop(turn);
        assert!(matches!(third.await, Waited::Turn(_)));
    }

    #[tokio::test]
    async fn d2_a_turn_does_not_get_lost_with_one_who_left() {
        let room = Arc::<WaitingRoom>::default();
        let enter = || room.enter(OperationId::from_bytes([1; 32]), 10).unwrap();
        let (first, second, third) = (enter(), enter(), enter());
        let Waited::Turn(turn) = first.wait().await else { panic!("nobody else has it") };
        let mut left = Box::pin(second.wait());
        let mut third = Box::pin(third.wait());
        assert!(left.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        // The one who waited first is told, and leaves before it looks.
        drop(turn);
        drop(left);
        assert!(matches!(third.await, Waited::Turn(_)));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn d2_each_of_many_gets_a_turn_of_its_own() {
        let room = Arc::<WaitingRoom>::default();
        let taken = Arc::new(AtomicBool::new(false));
        let waiting: Vec<_> = (0..300)
            .map(|number| {
                let waiter = room.enter(OperationId::from_bytes([1; 32]), 300).unwrap();
                let taken = taken.clone();
                tokio::spawn(async move {
                    if number % 3 == 0 {
                        // Leaves, whatever it was told.
                        return drop(waiter.wait().now_or_never());
                    }
                    let Waited::Turn(turn) = waiter.wait().await else {
                        panic!("there is no outcome")
                    };
                    assert!(!taken.swap(true, Ordering::AcqRel), "another one has the turn");
                    tokio::task::yield_now().await;
                    taken.store(false, Ordering::Release);
                    drop(turn);
                })
            })
            .collect();
        for waiter in waiting {
            tokio::time::timeout(Duration::from_secs(60), waiter).await.unwrap().unwrap();
        }
        assert!(room.watches().is_empty());
    }
}
