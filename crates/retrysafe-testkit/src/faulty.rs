//! A store that fails the way networks and servers do.

mod script;

use std::{fmt, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use retrysafe_core::{
    About, Begin, Claim, Counts, Entry, Fingerprint, Held, Inspect, Lease, Operated, OperationId,
    Resolution, Store, StoreError, StoreErrorKind, Swept, Unit,
};

pub use self::script::{Hold, Script};
use crate::model::Call;

/// A verb of [`Store`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// [`Store::begin`]
    Begin,
    /// [`Store::renew`], for longer than zero
    Renew,
    /// [`Store::renew`] for zero
    GiveUp,
    /// [`Store::complete`]
    Complete,
    /// [`Store::release`]
    Release,
    /// [`Store::changed`]
    Changed,
    /// [`Store::sweep`]
    Sweep,
}

/// What becomes of one call. `changed` and `sweep` have nothing that could arrive late: for them
/// [`Duplicate`](Self::Duplicate) is no fault, and [`Late`](Self::Late) is
/// [`FailBefore`](Self::FailBefore).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not sent: the store can't be reached ([`StoreErrorKind::Unreachable`]).
    Unreachable,
    /// It fails ([`StoreErrorKind::Unavailable`]) and has no effect.
    FailBefore,
    /// It has its effect, and fails all the same.
    FailAfter,
    /// It is never answered and has no effect.
    HangBefore,
    /// It has its effect and is never answered.
    HangAfter,
    /// It is late.
    Delay(Duration),
    /// It is answered as ever, and a copy of it arrives again at [`Faulty::deliver_late`].
    Duplicate,
    /// It fails and has no effect, until it arrives at [`Faulty::deliver_late`].
    Late,
}

/// Where in a call a [`Hold`] stops it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Point {
    /// Before its effect.
    Before,
    /// After its effect, before the answer.
    After,
}

/// A store whose calls meet the faults that a [`Script`] or a seed says. Clones share both.
///
/// ```
/// use retrysafe_core::{MemoryStore, Store as _};
/// use retrysafe_testkit::{Fault, Faulty, Verb};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let store = Faulty::new(MemoryStore::new());
/// store.script().next(Verb::Sweep, Fault::FailBefore);
/// assert!(store.sweep(10).await.is_err());
/// assert!(store.sweep(10).await.is_ok());
/// assert_eq!(store.script().calls(Verb::Sweep), 2);
/// # }
/// ```
pub struct Faulty<S> {
    store: Arc<S>,
    script: Script,
}

impl<S> Faulty<S> {
    /// A store without faults as yet.
    pub fn new(store: S) -> Self {
        Self { store: Arc::new(store), script: Script::default() }
    }

    /// What says which faults its calls meet, and counts them.
    pub fn script(&self) -> &Script {
        &self.script
    }

    /// The store behind the faults.
    pub fn inner(&self) -> &S {
        &self.store
    }

    async fn meet<T>(
        &self,
        verb: Verb,
        copy: impl Fn() -> Option<Call>,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let fault = self.script.enter(verb);
        match fault {
            Some(Fault::Unreachable) => {
                let context = format!("injected: {verb:?} was not sent");
                return Err(StoreError::new(StoreErrorKind::Unreachable, context));
            }
            Some(Fault::FailBefore) => return Err(unavailable(verb, "before")),
            Some(Fault::HangBefore) => std::future::pending().await,
            Some(Fault::Delay(time)) => tokio::time::sleep(time).await,
            Some(Fault::Duplicate | Fault::Late) => self.script.keep_for_later(copy()),
            Some(Fault::FailAfter | Fault::HangAfter) | None => {}
        }
        if fault == Some(Fault::Late) {
            return Err(unavailable(verb, "before"));
        }
        self.script.pass(verb, Point::Before).await;
        let answer = call.await;
        self.script.pass(verb, Point::After).await;
        match fault {
            Some(Fault::FailAfter) => Err(unavailable(verb, "after")),
            Some(Fault::HangAfter) => std::future::pending().await,
            _ => answer,
        }
    }
}

impl<S: Store + Inspect> Faulty<S> {
    /// Delivers what was kept back by [`Fault::Duplicate`] and [`Fault::Late`], in the order of the
    /// calls, and says how many there were. Nobody hears their answers.
    ///
    /// # Cancel safety
    ///
    /// What was not delivered yet is lost.
    pub async fn deliver_late(&self) -> usize {
        let late = self.script.take_late();
        for call in &late {
            let _ = call.send(&*self.store).await;
        }
        late.len()
    }
}

impl<S> Clone for Faulty<S> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), script: self.script.clone() }
    }
}

impl<S> fmt::Debug for Faulty<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty").field("script", &self.script).finish_non_exhaustive()
    }
}

fn unavailable(verb: Verb, when: &str) -> StoreError {
    let context = format!("injected: {verb:?} failed {when} its effect");
    StoreError::new(StoreErrorKind::Unavailable, context)
}

impl<S: Store> Store for Faulty<S> {
    fn about(&self) -> About {
        self.store.about()
    }

    async fn begin(&self, claim: &Claim) -> Result<Begin, StoreError> {
        let copy = || Some(Call::Begin(claim.clone()));
        self.meet(Verb::Begin, copy, self.store.begin(claim)).await
    }

    async fn renew(&self, lease: &Lease, lease_for: Duration) -> Result<Held, StoreError> {
        let verb = if lease_for.is_zero() { Verb::GiveUp } else { Verb::Renew };
        let copy = || Some(Call::Renew(lease.clone(), lease_for));
        self.meet(verb, copy, self.store.renew(lease, lease_for)).await
    }

    async fn complete(
        &self,
        lease: &Lease,
        fingerprint: &Fingerprint,
        payload: Bytes,
        retention: Duration,
    ) -> Result<Held, StoreError> {
        let copy = || {
            let (lease, print) = (lease.clone(), fingerprint.clone());
            Some(Call::Complete(lease, print, payload.clone(), retention))
        };
        let call = self.store.complete(lease, fingerprint, payload.clone(), retention);
        self.meet(Verb::Complete, copy, call).await
    }

    async fn release(
        &self,
        lease: &Lease,
        keep_counters_for: Duration,
    ) -> Result<Held, StoreError> {
        let copy = || Some(Call::Release(lease.clone(), keep_counters_for));
        self.meet(Verb::Release, copy, self.store.release(lease, keep_counters_for)).await
    }

    async fn changed(
        &self,
        id: &OperationId,
        seen: u32,
        within: Duration,
    ) -> Result<(), StoreError> {
        self.meet(Verb::Changed, || None, self.store.changed(id, seen, within)).await
    }

    async fn sweep(&self, limit: usize) -> Result<Swept, StoreError> {
        self.meet(Verb::Sweep, || None, self.store.sweep(limit)).await
    }

    fn unit(&self, lease: &Lease) -> Option<Arc<dyn Unit>> {
        self.store.unit(lease)
    }
}

/// Operators' calls meet no faults.
impl<S: Inspect> Inspect for Faulty<S> {
    async fn get(&self, id: &OperationId) -> Result<Option<Entry>, StoreError> {
        self.store.get(id).await
    }

    async fn page(
        &self,
        after: Option<&OperationId>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        self.store.page(after, limit).await
    }

    async fn count(&self) -> Result<Counts, StoreError> {
        self.store.count().await
    }

    async fn forget(&self, id: &OperationId) -> Result<Operated, StoreError> {
        self.store.forget(id).await
    }

    async fn resolve(
        &self,
        id: &OperationId,
        seen: u32,
        resolution: Resolution,
    ) -> Result<Operated, StoreError> {
        self.store.resolve(id, seen, resolution).await
    }
}
