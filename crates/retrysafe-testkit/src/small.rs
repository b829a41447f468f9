//! A store that is small enough to be read in one go, and the ways to get it wrong.

mod flaw;

use std::{
    collections::BTreeMap,
    fmt,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use retrysafe_core::{
    About, Begin, Claim, Clock, Counts, Entry, Fingerprint, Held, Inspect, Lease, Operated,
    OperationId, Resolution, Store, StoreError, StoreErrorKind, Swept,
};
use tokio::sync::watch;

pub use self::flaw::Flaw;
use crate::model::{Answer, Call, Model, Phase};

/// A correct store in two hundred lines: a [`Model`] for every operation, under one lock. With a
/// [`Flaw`] it is wrong in that one way, which the suite must catch.
///
/// Clones share their records.
#[derive(Clone)]
pub struct SmallStore {
    shared: Arc<Shared>,
}

struct Shared {
    flaw: Option<Flaw>,
    capacity: usize,
    clock: Arc<dyn Clock>,
    records: Mutex<Records>,
    /// Counts the changes, of any record.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct Records {
    models: BTreeMap<OperationId, Model>,
    unreadable: Vec<OperationId>,
}

/// The largest payload.
const MAX_PAYLOAD: usize = 1 << 20;

impl SmallStore {
    /// A store that holds at most so many records.
    pub fn new(clock: Arc<dyn Clock>, capacity: usize) -> Self {
        Self::build(clock, capacity, None)
    }

    /// A store that is wrong in one way.
    pub fn with_flaw(clock: Arc<dyn Clock>, capacity: usize, flaw: Flaw) -> Self {
        Self::build(clock, capacity, Some(flaw))
    }

    /// Makes a record unreadable, if there is one.
    pub fn spoil(&self, id: &OperationId) {
        self.records().unreadable.push(*id);
    }

    fn build(clock: Arc<dyn Clock>, capacity: usize, flaw: Option<Flaw>) -> Self {
        let records = Mutex::default();
        let changes = watch::Sender::new(0);
        Self { shared: Arc::new(Shared { flaw, capacity, clock, records, changes }) }
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.shared.flaw == Some(flaw)
    }

    fn now(&self) -> Duration {
        self.shared.clock.monotonic()
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        self.shared.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The record that a call finds.
    fn look(&self, records: &Records, id: &OperationId) -> Result<Model, StoreError> {
        if records.unreadable.contains(id) {
            if self.has(Flaw::UnreadableIsAbsent) {
                return Ok(Model::default());
            }
            let why = "the record was spoilt by the test";
            return Err(StoreError::new(StoreErrorKind::Unreadable, why));
        }
        Ok(records.models.get(id).cloned().unwrap_or_default())
    }

    /// Writes what a call made of the record.
    fn write(
        &self,
        records: &mut Records,
        id: OperationId,
        model: Model,
    ) -> Result<(), StoreError> {
        if model.record.is_none() {
            records.models.remove(&id);
        } else {
            if !records.models.contains_key(&id) {
                self.make_room(records)?;
            }
            records.models.insert(id, model);
        }
        if !self.has(Flaw::NobodyIsWoken) {
            self.shared.changes.send_modify(|changes| *changes += 1);
        }
        Ok(())
    }

    fn make_room(&self, records: &mut Records) -> Result<(), StoreError> {
        let now = self.now();
        if records.models.len() >= self.shared.capacity {
            records.models.retain(|_, model| !model.is_expired(now));
        }
        if records.models.len() >= self.shared.capacity && self.has(Flaw::EvictsLive) {
            records.models.pop_first();
        }
        if records.models.len() >= self.shared.capacity {
            return Err(StoreError::new(StoreErrorKind::Full, "the store is full"));
        }
        Ok(())
    }

    async fn call(&self, call: Call) -> Result<Answer, StoreError> {
        if matches!(call, Call::Begin(_)) && self.has(Flaw::CheckThenSet) {
            let mut model = self.look(&self.records(), &call.id())?;
            let answer = self.apply(&mut model, &call);
            tokio::task::yield_now().await;
            if matches!(answer, Answer::Begin(Begin::Acquired(_))) {
                self.write(&mut self.records(), call.id(), model)?;
            }
            return Ok(answer);
        }
        if self.has(Flaw::StaleTakeOver)
            && let Call::Begin(claim) = &call
        {
            let mut model = self.look(&self.records(), &claim.id)?;
            let now = self.now();
            let is_lapsed = model.record.as_ref().is_some_and(|record| {
                let phase = &record.phase;
                record.lease_left(now).is_none()
                    && matches!(phase, Phase::InFlight { .. } | Phase::GivenUp)
            });
            if is_lapsed && claim.take_over {
                let answer = self.apply(&mut model, &call);
                tokio::task::yield_now().await;
                // The other take-overs are noticed, an outcome is not.
                let mut records = self.records();
                let seen = self.look(&records, &claim.id)?;
                if seen.record.as_ref().map(|record| record.attempt) != Some(1) {
                    drop(records);
                    return self.locked(&call);
                }
                self.write(&mut records, claim.id, model)?;
                return Ok(answer);
            }
        }
        self.locked(&call)
    }

    fn locked(&self, call: &Call) -> Result<Answer, StoreError> {
        let mut records = self.records();
        let before = self.look(&records, &call.id())?;
        let mut model = before.clone();
        let answer = self.apply(&mut model, call);
        if model != before {
            self.write(&mut records, call.id(), model)?;
        }
        Ok(answer)
    }

    /// The model's own answer, but for the flaw.
    fn apply(&self, model: &mut Model, call: &Call) -> Answer {
        let now = self.now();
        match self.shared.flaw {
            None => model.apply(call, now),
            Some(flaw) => flaw.apply(model, call, now),
        }
    }
}

impl fmt::Debug for SmallStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SmallStore").field("flaw", &self.shared.flaw).finish_non_exhaustive()
    }
}

impl Store for SmallStore {
    fn about(&self) -> About {
        About { engine: "small", max_payload: MAX_PAYLOAD }
    }

    async fn begin(&self, claim: &Claim) -> Result<Begin, StoreError> {
        match self.call(Call::Begin(claim.clone())).await? {
            Answer::Begin(begun) => Ok(begun),
            other => unreachable!("a claim is answered as one: {other:?}"),
        }
    }

    async fn renew(&self, lease: &Lease, lease_for: Duration) -> Result<Held, StoreError> {
        self.call(Call::Renew(lease.clone(), lease_for)).await.map(held)
    }

    async fn complete(
        &self,
        lease: &Lease,
        fingerprint: &Fingerprint,
        payload: Bytes,
        retention: Duration,
    ) -> Result<Held, StoreError> {
        check_size(&payload)?;
        let (lease, print) = (lease.clone(), fingerprint.clone());
        self.call(Call::Complete(lease, print, payload, retention)).await.map(held)
    }

    async fn release(
        &self,
        lease: &Lease,
        keep_counters_for: Duration,
    ) -> Result<Held, StoreError> {
        self.call(Call::Release(lease.clone(), keep_counters_for)).await.map(held)
    }

    async fn changed(
        &self,
        id: &OperationId,
        seen: u32,
        within: Duration,
    ) -> Result<(), StoreError> {
        let mut changes = self.shared.changes.subscribe();
        let model = self.look(&self.records(), id)?;
        let record = model.record.filter(|record| record.attempt == seen);
        if let Some(lease_left) = record.and_then(|record| record.lease_left(self.now())) {
            // Any record's change: early, for most, which the contract allows.
            let _ = tokio::time::timeout(within.min(lease_left), changes.changed()).await;
        }
        Ok(())
    }

    async fn sweep(&self, limit: usize) -> Result<Swept, StoreError> {
        let now = self.now();
        let mut records = self.records();
        let expired = |model: &Model| match &model.record {
            Some(record) if self.has(Flaw::SweepsLive) => record.expires <= now,
            _ => model.is_expired(now),
        };
        let limit = if self.has(Flaw::SweepsAll) { usize::MAX } else { limit };
        let ids: Vec<_> =
            records.models.iter().filter(|(_, model)| expired(model)).map(|(id, _)| *id).collect();
        for id in ids.iter().take(limit) {
            records.models.remove(id);
        }
        Ok(Swept { removed: ids.len().min(limit), more: ids.len() > limit })
    }
}

impl Inspect for SmallStore {
    async fn get(&self, id: &OperationId) -> Result<Option<Entry>, StoreError> {
        match self.call(Call::Get(*id)).await? {
            Answer::Entry(entry) => Ok(entry),
            other => unreachable!("a look is answered as one: {other:?}"),
        }
    }

    async fn page(
        &self,
        after: Option<&OperationId>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let now = self.now();
        let from = after.map_or(Bound::Unbounded, |id| Bound::Excluded(*id));
        let records = self.records();
        let models = records.models.range((from, Bound::Unbounded));
        let entry = |(id, model): (&OperationId, &Model)| {
            let record = model.record.as_ref().filter(|record| record.expires_at() > now);
            record.map(|record| record.entry(*id, now))
        };
        Ok(models.filter_map(entry).take(limit).collect())
    }

    async fn count(&self) -> Result<Counts, StoreError> {
        let mut counts = Counts::default();
        for model in self.records().models.values() {
            model.count(&mut counts, self.now());
        }
        Ok(counts)
    }

    async fn forget(&self, id: &OperationId) -> Result<Operated, StoreError> {
        self.call(Call::Forget(*id)).await.map(operated)
    }

    async fn resolve(
        &self,
        id: &OperationId,
        seen: u32,
        resolution: Resolution,
    ) -> Result<Operated, StoreError> {
        if let Resolution::Happened { payload, .. } = &resolution {
            check_size(payload)?;
        }
        self.call(Call::Resolve(*id, seen, resolution)).await.map(operated)
    }
}

fn held(answer: Answer) -> Held {
    match answer {
        Answer::Held(held) => held,
        other => unreachable!("a verb that needs the lease is answered as one: {other:?}"),
    }
}

fn operated(answer: Answer) -> Operated {
    match answer {
        Answer::Operated(operated) => operated,
        other => unreachable!("an operator's change is answered as one: {other:?}"),
    }
}

fn check_size(payload: &Bytes) -> Result<(), StoreError> {
    if payload.len() <= MAX_PAYLOAD {
        return Ok(());
    }
    Err(StoreError::new(StoreErrorKind::TooLarge, "the payload is over 1 MiB"))
}
