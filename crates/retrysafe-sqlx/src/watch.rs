//! Who waits for which operation in this process.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use retrysafe_core::OperationId;
use tokio::sync::Notify;

/// The operations that somebody of this process waits for.
#[derive(Default)]
pub(crate) struct Watches(Mutex<HashMap<OperationId, Arc<Notify>>>);

impl Watches {
    /// Wakes whoever waits for this one. Called once the server has said that it is written.
    pub(crate) fn wake(&self, id: &OperationId) {
        if let Some(notify) = self.lock().get(id) {
            notify.notify_waiters();
        }
    }

    pub(crate) fn watch(&self, id: &OperationId) -> Watch<'_> {
        let notify = Arc::clone(self.lock().entry(*id).or_default());
        Watch { watches: self, id: *id, notify }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<OperationId, Arc<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who waits. Dropping it ends the wait (ST11).
pub(crate) struct Watch<'a> {
    watches: &'a Watches,
    id: OperationId,
    pub(crate) notify: Arc<Notify>,
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let mut watched = self.watches.lock();
        // Let go of under the lock: who ends at the same moment must not count ours.
        drop(std::mem::take(&mut self.notify));
        if watched.get(&self.id).is_some_and(|notify| Arc::strong_count(notify) == 1) {
            watched.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_to_wait_leaves_nothing_behind() {
        let watches = Watches::default();
        let id = OperationId::from_bytes([1; 32]);
        let (one, other) = (watches.watch(&id), watches.watch(&id));
        drop(one);
        assert_eq!(watches.lock().len(), 1);
        drop(other);
        assert_eq!(watches.lock().len(), 0);
    }

    #[test]
    fn two_that_end_at_once_leave_nothing_behind() {
        let watches = Watches::default();
        let id = OperationId::from_bytes([1; 32]);
        let start = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let watch = watches.watch(&id);
                        start.wait();
                        drop(watch);
                        start.wait();
                        assert_eq!(watches.lock().len(), 0);
                        start.wait();
                    }
                });
            }
        });
    }
}
