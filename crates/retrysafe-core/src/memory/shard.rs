//! A part of the store under one lock: records, the index of when they expire, and who waits.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    sync::Arc,
    time::Duration,
};

use hashbrown::{HashTable, hash_table::Entry};
use tokio::sync::{Notify, futures::OwnedNotified};

use super::record::{Moment, Record};
use crate::{Begin, Claim, OperationId};

/// How many entries of the expiry index are looked at before the lock is let go (ST12).
const PASS: usize = 256;

#[derive(Default)]
pub(super) struct Shard {
    records: HashTable<Box<Record>>,
    /// Each record has one valid entry, at [`Record::indexed`]; the record may have been given
    /// more time since, and is then put back when its turn comes. Any other entry is void.
    expiries: BinaryHeap<Reverse<(Moment, u64)>>,
    watches: HashMap<OperationId, Watch>,
}

/// Exists only while somebody waits.
struct Watch {
    changed: Arc<Notify>,
    waiters: usize,
}

/// What one pass over the expiry index came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// No expired record is left.
    Clean,
    /// There may be more; nothing but the length of the pass ended it.
    Unfinished,
    /// As many were removed as were asked for, and at least one more is expired.
    Left,
}

impl Shard {
    /// `None` if the operation has no record and `reserve` finds no room for one.
    pub(super) fn begin(
        &mut self,
        claim: &Claim,
        now: Moment,
        reserve: impl FnOnce() -> bool,
    ) -> Option<Begin> {
        let Self { records, expiries, watches } = self;
        let hash = hash_of(&claim.id);
        match records.entry(hash, |record| record.id == claim.id, |record| hash_of(&record.id)) {
            Entry::Occupied(mut entry) => {
                Some(change(entry.get_mut(), expiries, watches, |record| record.begin(claim, now)))
            }
            Entry::Vacant(entry) => reserve().then(|| {
                let mut record = Box::new(Record::new(claim, now));
                expiries.push(Reverse((record.indexed, hash)));
                // The first attempt's own answer is what a repeated call gets (ST4).
                let begun = record.begin(claim, now);
                entry.insert(record);
                begun
            }),
        }
    }

    /// Applies a change to a record, if there is one that is not past its retention.
    pub(super) fn change<T>(
        &mut self,
        id: &OperationId,
        now: Moment,
        verb: impl FnOnce(&mut Record) -> T,
    ) -> Option<T> {
        let Self { records, expiries, watches } = self;
        let record = records
            .find_mut(hash_of(id), |record| record.id == *id)
            .filter(|record| !record.is_expired(now))?;
        Some(change(record, expiries, watches, verb))
    }

    pub(super) fn get(&self, id: &OperationId, now: Moment) -> Option<&Record> {
        self.records
            .find(hash_of(id), |record| record.id == *id)
            .map(|record| &**record)
            .filter(|record| !record.is_expired(now))
    }

    /// Every record that is not past its retention, in no order.
    pub(super) fn iter(&self, now: Moment) -> impl Iterator<Item = &Record> {
        self.records.iter().map(|record| &**record).filter(move |record| !record.is_expired(now))
    }

    /// Moves at most `room` expired records to `removed`.
    pub(super) fn sweep(&mut self, now: Moment, room: usize, removed: &mut Vec<Record>) -> Pass {
        for _ in 0..PASS {
            let Some(&Reverse((due, hash))) = self.expiries.peek() else {
                return Pass::Clean;
            };
            if due > now {
                return Pass::Clean;
            }
            let found = self
                .records
                .find_entry(hash, |record| record.indexed == due && hash_of(&record.id) == hash);
            match found {
                Err(_) => {
                    self.expiries.pop();
                }
                Ok(mut entry) if !entry.get().is_expired(now) => {
                    let record = entry.get_mut();
                    record.indexed = record.next_look(now);
                    let later = Reverse((record.indexed, hash));
                    self.expiries.pop();
                    self.expiries.push(later);
                }
                Ok(_) if removed.len() == room => return Pass::Left,
                Ok(entry) => {
                    removed.push(*entry.remove().0);
                    self.expiries.pop();
                }
            }
        }
        Pass::Unfinished
    }

    /// Starts to wait for a change of attempt `seen`, which must be told with
    /// [`unwatch`](Self::unwatch) when it ends; `None` if that attempt is not in flight.
    pub(super) fn watch(
        &mut self,
        id: &OperationId,
        seen: u32,
        now: Moment,
    ) -> Option<(OwnedNotified, Duration)> {
        let (attempt, lease_left) = self.get(id, now)?.live(now)?;
        if attempt != seen {
            return None;
        }
        let watch = self
            .watches
            .entry(*id)
            .or_insert_with(|| Watch { changed: Arc::default(), waiters: 0 });
        watch.waiters += 1;
        // Made under the lock: it hears of every change from here on, polled or not.
        Some((watch.changed.clone().notified_owned(), lease_left))
    }

    pub(super) fn unwatch(&mut self, id: &OperationId) {
        if let Some(watch) = self.watches.get_mut(id) {
            watch.waiters -= 1;
            if watch.waiters == 0 {
                self.watches.remove(id);
            }
        }
    }
}

/// Applies a change, wakes those who wait for it, and keeps the expiry index early enough.
fn change<T>(
    record: &mut Record,
    expiries: &mut BinaryHeap<Reverse<(Moment, u64)>>,
    watches: &HashMap<OperationId, Watch>,
    verb: impl FnOnce(&mut Record) -> T,
) -> T {
    let before = record.stage();
    let answer = verb(record);
    if record.expires() < record.indexed {
        record.indexed = record.expires();
        expiries.push(Reverse((record.indexed, hash_of(&record.id))));
    }
    if record.stage() != before
        && let Some(watch) = watches.get(&record.id)
    {
        watch.changed.notify_waiters();
    }
    answer
}

/// The id is a digest already. These bytes are not the one that chooses the shard.
fn hash_of(id: &OperationId) -> u64 {
    let mut hash = [0; 8];
    hash.copy_from_slice(&id.as_bytes()[8..16]);
    u64::from_ne_bytes(hash)
}
