//! Who waits for which operation in this process, and whether its server would tell.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use redis::{PushInfo, PushKind, Value};
use retrysafe_core::OperationId;
use tokio::sync::Notify;

/// The operations that somebody of this process waits for.
#[derive(Default)]
pub(crate) struct Watches(Mutex<HashMap<OperationId, Arc<Watched>>>);

#[derive(Default)]
struct Watched {
    notify: Notify,
    /// Whether a server has confirmed that it will tell. Written only in the order in which servers
    /// say so.
    heard: AtomicBool,
}

impl Watches {
    pub(crate) fn watch(self: &Arc<Self>, id: &OperationId) -> Watch {
        let watched = Arc::clone(self.lock().entry(*id).or_default());
        Watch { watches: Arc::clone(self), id: *id, watched }
    }

    /// Wakes whoever waits for an operation.
    pub(crate) fn wake(&self, id: &OperationId) {
        if let Some(watched) = self.lock().get(id) {
            watched.notify.notify_waiters();
        }
    }

    /// What a server said without being asked. `read` finds the operation in a channel's name.
    pub(crate) fn on_push(&self, push: &PushInfo, read: impl Fn(&[u8]) -> Option<OperationId>) {
        let channel = match push.data.first() {
            Some(Value::BulkString(channel)) => read(channel),
            _ => None,
        };
        match (&push.kind, channel) {
            (PushKind::SMessage, Some(id)) => self.wake(&id),
            (PushKind::SSubscribe, Some(id)) => self.set_heard(&id, true),
            // Ours that came late, or the slot has moved to another node.
            (PushKind::SUnsubscribe, Some(id)) => self.set_heard(&id, false),
            // What happens from now on is not told: everybody looks, and subscribes anew.
            (PushKind::Disconnection, _) => {
                for watched in self.lock().values() {
                    watched.heard.store(false, Ordering::Release);
                    watched.notify.notify_waiters();
                }
            }
            _ => {}
        }
    }

    fn set_heard(&self, id: &OperationId, heard: bool) {
        if let Some(watched) = self.lock().get(id) {
            watched.heard.store(heard, Ordering::Release);
            if !heard {
                watched.notify.notify_waiters();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<OperationId, Arc<Watched>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who waits. Dropping it ends the wait (ST11).
pub(crate) struct Watch {
    watches: Arc<Watches>,
    id: OperationId,
    watched: Arc<Watched>,
}

impl Watch {
    pub(crate) fn stirred(&self) -> tokio::sync::futures::Notified<'_> {
        self.watched.notify.notified()
    }

    pub(crate) fn is_heard(&self) -> bool {
        self.watched.heard.load(Ordering::Acquire)
    }

    /// Ends the wait, and says whether the server need no longer tell: this was the last of those
    /// who wait.
    pub(crate) fn end(&mut self) -> bool {
        let mut watches = self.watches.lock();
        // Let go of under the lock: who ends at the same moment must not count ours.
        drop(std::mem::take(&mut self.watched));
        let last = watches.get(&self.id).is_some_and(|it| Arc::strong_count(it) == 1);
        if last {
            watches.remove(&self.id);
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(kind: PushKind) -> PushInfo {
        PushInfo { kind, data: vec![Value::BulkString(vec![1; 32])] }
    }

    fn read(channel: &[u8]) -> Option<OperationId> {
        channel.try_into().ok().map(OperationId::from_bytes)
    }

    #[test]
    fn the_last_to_wait_leaves_nothing_behind() {
        let watches = Arc::new(Watches::default());
        let id = OperationId::from_bytes([1; 32]);
        let (mut one, mut other) = (watches.watch(&id), watches.watch(&id));
        watches.on_push(&push(PushKind::SSubscribe), read);
        assert!(one.is_heard() && other.is_heard());
        // As two that end at once: what they have counted with is dropped after both.
        assert!(!one.end());
        assert!(other.end());
        assert_eq!(watches.lock().len(), 0);
    }

    #[test]
    fn whoever_is_no_longer_told_knows() {
        for kind in [PushKind::SUnsubscribe, PushKind::Disconnection] {
            let watches = Arc::new(Watches::default());
            let watch = watches.watch(&OperationId::from_bytes([1; 32]));
            watches.on_push(&push(PushKind::SSubscribe), read);
            watches.on_push(&push(kind), read);
            assert!(!watch.is_heard());
        }
    }
}
