//! Where duplicates wait for the outcome of the first (D2).
//!
//! All duplicates of one key in one process share one *watch*. One of them at a time has the
//! *turn*: it alone watches the store, and it alone claims again. When it finds the outcome it is
//! published to the others, which never ask the store themselves. A turn that ends without an
//! outcome (a timeout, a client that left, an outcome that was released or is unknown) passes on to
//! the next.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use retrysafe_core::{Found, OperationId};
use tokio::sync::{OwnedMutexGuard, watch};

use crate::observe;

#[derive(Default)]
pub(crate) struct WaitingRoom {
    watches: Mutex<HashMap<OperationId, Watched>>,
    waiters: AtomicUsize,
}

struct Watched {
    watch: Arc<Watch>,
    waiters: usize,
}

struct Watch {
    turn: Arc<tokio::sync::Mutex<()>>,
    outcome: watch::Sender<Option<Outcome>>,
}

/// What all that wait are given. The turn ends with it: to pass it on from one to the next, none of
/// whom needs it any more, would take as long as to answer them.
struct Outcome {
    found: Found,
    _turn: OwnedMutexGuard<()>,
}

/// A duplicate that waits. Leaves the room when dropped.
pub(crate) struct Waiter {
    room: Arc<WaitingRoom>,
    id: OperationId,
    watch: Arc<Watch>,
    outcome: watch::Receiver<Option<Outcome>>,
    /// Whether it was given the outcome. Who published that has closed the watch.
    told: bool,
}

/// The right to watch the store for all that wait, and to claim for oneself.
pub(crate) struct Turn {
    room: Arc<WaitingRoom>,
    id: OperationId,
    watch: Arc<Watch>,
    turn: OwnedMutexGuard<()>,
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
        let watched = watches.entry(id).or_insert_with(|| Watched {
            watch: Arc::new(Watch { turn: Arc::default(), outcome: watch::Sender::new(None) }),
            waiters: 0,
        });
        watched.waiters += 1;
        let watch = watched.watch.clone();
        let outcome = watch.outcome.subscribe();
        Some(Waiter { room: self.clone(), id, watch, outcome, told: false })
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
    pub(crate) async fn wait(&mut self) -> Waited {
        let turn = self.watch.turn.clone().lock_owned();
        tokio::select! {
            biased;
            outcome = self.outcome.wait_for(Option::is_some) => {
                // The sender lives in the watch, which this waiter holds.
                match outcome.ok().and_then(|it| Some(it.as_ref()?.found.clone())) {
                    Some(found) => {
                        self.told = true;
                        Waited::Outcome(found)
                    }
                    None => unreachable!("the watch outlives its waiters"),
                }
            }
            turn = turn => Waited::Turn(Turn {
                room: self.room.clone(),
                id: self.id,
                watch: self.watch.clone(),
                turn,
            }),
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.room.waiters.fetch_sub(1, Ordering::Relaxed);
        observe::waiters(-1.0);
        if self.told {
            return;
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
        let Self { room, id, watch, turn } = self;
        let mut watches = room.watches();
        if watches.get(&id).is_some_and(|it| Arc::ptr_eq(&it.watch, &watch)) {
            watches.remove(&id);
        }
        drop(watches);
        watch.outcome.send_replace(Some(Outcome { found, _turn: turn }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn d2_the_turn_ends_with_the_outcome() {
        let room = Arc::<WaitingRoom>::default();
        let enter = || room.enter(OperationId::from_bytes([1; 32]), 10).unwrap();
        let (mut first, mut second) = (enter(), enter());
        let Waited::Turn(turn) = first.wait().await else { panic!("nobody else has it") };
        turn.publish(Found::Free);
        assert!(matches!(second.wait().await, Waited::Outcome(Found::Free)));
        assert!(matches!(first.wait().await, Waited::Outcome(Found::Free)));
        // Whoever comes later waits for somebody else's outcome.
        let mut late = enter();
        assert!(matches!(late.wait().await, Waited::Turn(_)));
        drop((first, second, late));
        assert!(room.watches().is_empty());
        assert_eq!(room.waiters.load(Ordering::Relaxed), 0);
    }
}
