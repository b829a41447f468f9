//! The memory store.

mod record;
mod shard;
mod slab;

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;

use self::{
    record::Moment,
    shard::{Pass, Shard},
};
use crate::{
    About, Begin, Claim, Clock, ConfigError, Counts, Entry, Fingerprint, Found, Held, Inspect,
    Lease, Operated, OperationId, Resolution, State, Store, StoreError, StoreErrorKind, Swept,
    SystemClock,
};

/// Shards are chosen by the first bits of the id, so that going through them in turn goes through
/// the ids in order.
const SHARDS: usize = 64;

/// A store in the memory of this process: the oracle for every other store, and the right one for
/// tests and for a single process that may forget its keys when it ends.
///
/// Handles are cheap to clone and share their records. Leases and retention are judged by the
/// clock's [monotonic](Clock::monotonic) time (ST7). Nothing survives the process (ST9).
///
/// The number of records is bounded, and the bound is hard: a full store removes what is past its
/// retention, and refuses with [`StoreErrorKind::Full`] if nothing is. It never drops a live claim
/// or an outcome that still answers (ST8). Replays share the payload by reference count.
///
/// [`Store::changed`] sleeps on tokio's timer; the other verbs never wait.
///
/// ```
/// use std::time::Duration;
/// use retrysafe_core::{
///     Algorithm, Begin, Claim, Fingerprint, Found, IdempotencyKey, Lease, MemoryStore,
///     OperationId, Owner, Scope, Store, SystemEntropy,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::new();
/// let key = IdempotencyKey::new("order-17").expect("a short key of plain letters");
/// let claim = |owner| Claim {
///     id: OperationId::new("default", &Scope::shared(), &key),
///     owner,
///     fingerprint: Fingerprint { algorithm: Algorithm::from_u32(0), head: [7; 32], body: None },
///     lease: Duration::from_secs(30),
///     retention: Duration::from_secs(24 * 60 * 60),
///     take_over: true,
/// };
///
/// let first = claim(Owner::new(&SystemEntropy));
/// let Begin::Acquired(acquired) = store.begin(&first).await? else { panic!("the key was free") };
/// let lease = Lease {
///     id: first.id,
///     owner: first.owner,
///     attempt: acquired.attempt,
///     fence: acquired.fence,
/// };
/// let _ = store.complete(&lease, &first.fingerprint, "201".into(), first.retention).await?;
///
/// let retry = store.begin(&claim(Owner::new(&SystemEntropy))).await?;
/// assert!(matches!(retry, Begin::Found(Found::Finished { payload, .. }) if payload == "201"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

struct Shared {
    shards: [Mutex<Shard>; SHARDS],
    /// How many records there are, expired ones included. Never over the capacity.
    records: AtomicUsize,
    /// Where the next sweep starts, so that a small limit reaches every shard in time.
    hand: AtomicUsize,
    capacity: usize,
    max_payload: usize,
    clock: Arc<dyn Clock>,
}

/// Sets up a [`MemoryStore`].
pub struct MemoryStoreBuilder {
    capacity: usize,
    max_payload: usize,
    clock: Arc<dyn Clock>,
}

impl MemoryStore {
    /// A store for 1,000,000 records with payloads of up to 64 MiB, on the machine's clock.
    pub fn new() -> Self {
        Self::from_settings(MemoryStoreBuilder::default())
    }

    /// Sets up a store.
    ///
    /// ```
    /// let store = retrysafe_core::MemoryStore::builder().capacity(10_000).build()?;
    /// # Ok::<(), retrysafe_core::ConfigError>(())
    /// ```
    pub fn builder() -> MemoryStoreBuilder {
        MemoryStoreBuilder::default()
    }

    fn from_settings(settings: MemoryStoreBuilder) -> Self {
        Self {
            shared: Arc::new(Shared {
                shards: std::array::from_fn(|_| Mutex::default()),
                records: AtomicUsize::new(0),
                hand: AtomicUsize::new(0),
                capacity: settings.capacity,
                max_payload: settings.max_payload,
                clock: settings.clock,
            }),
        }
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("records", &self.shared.records.load(Ordering::Relaxed))
            .field("capacity", &self.shared.capacity)
            .finish_non_exhaustive()
    }
}

impl MemoryStoreBuilder {
    /// How many records the store holds at most; 1,000,000 by default. What a released key leaves
    /// behind for its counters is a record too.
    pub fn capacity(mut self, records: usize) -> Self {
        self.capacity = records;
        self
    }

    /// The largest payload in bytes; 64 MiB by default.
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.max_payload = bytes;
        self
    }

    /// What tells the time; [`SystemClock`] by default.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// The store.
    ///
    /// # Errors
    ///
    /// If the capacity is zero.
    pub fn build(self) -> Result<MemoryStore, ConfigError> {
        if self.capacity == 0 {
            return Err(ConfigError::new("capacity", "a store must hold at least one record"));
        }
        Ok(MemoryStore::from_settings(self))
    }
}

impl Default for MemoryStoreBuilder {
    fn default() -> Self {
        Self {
            capacity: 1_000_000,
            max_payload: 64 * 1024 * 1024,
            clock: Arc::new(SystemClock::new()),
        }
    }
}

impl fmt::Debug for MemoryStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStoreBuilder")
            .field("capacity", &self.capacity)
            .field("max_payload", &self.max_payload)
            .finish_non_exhaustive()
    }
}

impl Store for MemoryStore {
    fn about(&self) -> About {
        About { engine: "memory", max_payload: self.shared.max_payload }
    }

    async fn begin(&self, claim: &Claim) -> Result<Begin, StoreError> {
        if let Some(begun) = self.shared.try_begin(claim) {
            return Ok(begun);
        }
        // The shard's lock is free again: make room in any shard, then ask afresh.
        self.shared.sweep(SHARDS);
        self.shared.try_begin(claim).ok_or_else(|| self.shared.full())
    }

    async fn renew(&self, lease: &Lease, lease_for: Duration) -> Result<Held, StoreError> {
        Ok(self.shared.held(lease, |record, now| record.renew(lease, lease_for, now)))
    }

    async fn complete(
        &self,
        lease: &Lease,
        fingerprint: &Fingerprint,
        payload: Bytes,
        retention: Duration,
    ) -> Result<Held, StoreError> {
        self.shared.check_size(&payload)?;
        Ok(self.shared.held(lease, |record, now| {
            record.complete(lease, fingerprint, payload, retention, now)
        }))
    }

    async fn release(
        &self,
        lease: &Lease,
        keep_counters_for: Duration,
    ) -> Result<Held, StoreError> {
        Ok(self.shared.held(lease, |record, now| record.release(lease, keep_counters_for, now)))
    }

    async fn changed(
        &self,
        id: &OperationId,
        seen: u32,
        within: Duration,
    ) -> Result<(), StoreError> {
        let watched = {
            let mut shard = self.shared.shard(id);
            let now = self.shared.now();
            shard.watch(id, seen, now)
        };
        if let Some((notified, lease_left)) = watched {
            let _watching = Watching { shared: &self.shared, id };
            // Woken or timed out: either way the caller asks again.
            let _ = tokio::time::timeout(within.min(lease_left), notified).await;
        }
        Ok(())
    }

    async fn sweep(&self, limit: usize) -> Result<Swept, StoreError> {
        Ok(self.shared.sweep(limit))
    }
}

impl Inspect for MemoryStore {
    async fn get(&self, id: &OperationId) -> Result<Option<Entry>, StoreError> {
        let shard = self.shared.shard(id);
        let now = self.shared.now();
        Ok(shard.get(id, now).map(|record| record.entry(now)))
    }

    async fn page(
        &self,
        after: Option<&OperationId>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let mut page = Vec::new();
        for shard in &self.shared.shards[after.map_or(0, shard_of)..] {
            if page.len() == limit {
                break;
            }
            let shard = lock(shard);
            let now = self.shared.now();
            let mut records: Vec<_> =
                shard.iter(now).filter(|record| after.is_none_or(|id| record.id > *id)).collect();
            records.sort_unstable_by_key(|record| record.id);
            records.truncate(limit - page.len());
            page.extend(records.into_iter().map(|record| record.entry(now)));
        }
        Ok(page)
    }

    async fn count(&self) -> Result<Counts, StoreError> {
        let mut counts = Counts::default();
        for shard in &self.shared.shards {
            let shard = lock(shard);
            let now = self.shared.now();
            for record in shard.iter(now) {
                match record.entry(now).state {
                    State::InFlight { .. } => counts.in_flight += 1,
                    State::Lapsed => counts.lapsed += 1,
                    State::Finished { .. } => counts.finished += 1,
                    State::Released => counts.released += 1,
                }
            }
        }
        Ok(counts)
    }

    async fn forget(&self, id: &OperationId) -> Result<Operated, StoreError> {
        let mut shard = self.shared.shard(id);
        let now = self.shared.now();
        Ok(shard.change(id, now, |record| record.forget(now)).unwrap_or(Operated::NotFound))
    }

    async fn resolve(
        &self,
        id: &OperationId,
        seen: u32,
        resolution: Resolution,
    ) -> Result<Operated, StoreError> {
        if let Resolution::Happened { payload, .. } = &resolution {
            self.shared.check_size(payload)?;
        }
        let mut shard = self.shared.shard(id);
        let now = self.shared.now();
        Ok(shard
            .change(id, now, |record| record.resolve(seen, resolution, now))
            .unwrap_or(Operated::NotFound))
    }
}

impl Shared {
    /// `None` if the operation has no record and the store is full.
    fn try_begin(&self, claim: &Claim) -> Option<Begin> {
        let mut shard = self.shard(&claim.id);
        let now = self.now();
        shard.begin(claim, now, || self.reserve())
    }

    fn held(&self, lease: &Lease, verb: impl FnOnce(&mut record::Record, Moment) -> Held) -> Held {
        let mut shard = self.shard(&lease.id);
        let now = self.now();
        shard.change(&lease.id, now, |record| verb(record, now)).unwrap_or(Held::Lost(Found::Free))
    }

    /// Removes expired records, a short pass under one shard's lock at a time (ST12).
    fn sweep(&self, limit: usize) -> Swept {
        let start = self.hand.fetch_add(1, Ordering::Relaxed);
        let mut swept = Swept::default();
        for turn in 0..SHARDS {
            let shard = &self.shards[start.wrapping_add(turn) % SHARDS];
            loop {
                let mut removed = Vec::new();
                let pass = {
                    let mut shard = lock(shard);
                    let now = self.now();
                    shard.sweep(now, limit - swept.removed, &mut removed)
                };
                swept.removed += removed.len();
                self.records.fetch_sub(removed.len(), Ordering::Relaxed);
                match pass {
                    Pass::Unfinished => continue,
                    Pass::Clean => break,
                    Pass::Left => {
                        return Swept { more: true, ..swept };
                    }
                }
            }
        }
        swept
    }

    /// Takes the room for one more record, if there is any.
    fn reserve(&self) -> bool {
        self.records
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |records| {
                (records < self.capacity).then_some(records + 1)
            })
            .is_ok()
    }

    fn full(&self) -> StoreError {
        let capacity = self.capacity;
        StoreError::new(
            StoreErrorKind::Full,
            format!(
                "the memory store holds {capacity} records and none is past its retention: raise \
                 its capacity or shorten the retention"
            ),
        )
    }

    fn check_size(&self, payload: &Bytes) -> Result<(), StoreError> {
        if payload.len() <= self.max_payload {
            return Ok(());
        }
        let (is, most) = (payload.len(), self.max_payload);
        Err(StoreError::new(
            StoreErrorKind::TooLarge,
            format!("a payload of {is} bytes is over the memory store's {most}"),
        ))
    }

    fn shard(&self, id: &OperationId) -> MutexGuard<'_, Shard> {
        lock(&self.shards[shard_of(id)])
    }

    /// Asked under a shard's lock, so that what happens to one operation is in the order of time.
    fn now(&self) -> Moment {
        Moment::new(self.clock.monotonic())
    }
}

/// Ends a wait, however it ends (ST11).
struct Watching<'a> {
    shared: &'a Shared,
    id: &'a OperationId,
}

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        self.shared.shard(self.id).unwatch(self.id);
    }
}

fn shard_of(id: &OperationId) -> usize {
    usize::from(id.as_bytes()[0]) * SHARDS / 256
}

/// A panic under a lock can only come from a clock or from dropping a payload; the records are
/// whole either way.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
