//! A part of the store under one lock: records, the index of when they expire, and who waits.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    sync::Arc,
    time::Duration,
};

use hashbrown::{HashTable, hash_table::Entry};
use tokio::sync::{Notify, futures::OwnedNotified};

use super::{
    record::{Moment, Record},
    slab::{Place, Slab},
};
use crate::{Begin, Claim, OperationId};

/// How many entries of the expiry index are looked at before the lock is let go (ST12).
const PASS: usize = 256;

#[derive(Default)]
pub(super) struct Shard {
    /// By id. The half of the hash that is kept here tells most records apart without a look at
    /// them, and lets the table grow without one.
    table: HashTable<(u32, Place)>,
    records: Slab,
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
        let Self { table, records, expiries, watches } = self;
        let hash = hash_of(&claim.id);
        let is_it = |&(half, place): &(u32, Place)| {
            half == half_of(hash) && records.get(place).id == claim.id
        };
        match table.entry(spread(half_of(hash)), is_it, |&(half, _)| spread(half)) {
            Entry::Occupied(entry) => {
                let record = records.get_mut(entry.get().1);
                Some(change(record, expiries, watches, |record| record.begin(claim, now)))
            }
            Entry::Vacant(entry) => reserve().then(|| {
                let mut record = Record::new(claim, now);
                expiries.push(Reverse((record.indexed, hash)));
                // The first attempt's own answer is what a repeated call gets (ST4).
                let begun = record.begin(claim, now);
                entry.insert((half_of(hash), records.insert(record)));
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
        let place = self.place(id)?;
        let Self { records, expiries, watches, .. } = self;
        let record = Some(records.get_mut(place)).filter(|record| !record.is_expired(now))?;
        Some(change(record, expiries, watches, verb))
    }

    pub(super) fn get(&self, id: &OperationId, now: Moment) -> Option<&Record> {
        let record = self.records.get(self.place(id)?);
        Some(record).filter(|record| !record.is_expired(now))
    }

    /// Every record that is not past its retention, in no order.
    pub(super) fn iter(&self, now: Moment) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(move |record| !record.is_expired(now))
    }

    fn place(&self, id: &OperationId) -> Option<Place> {
        let half = half_of(hash_of(id));
        self.table
            .find(spread(half), |&(it, place)| it == half && self.records.get(place).id == *id)
            .map(|&(_, place)| place)
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
            let half = half_of(hash);
            let Self { table, records, .. } = self;
            let found = table.find_entry(spread(half), |&(it, place)| {
                it == half && {
                    let record = records.get(place);
                    record.indexed == due && hash_of(&record.id) == hash
                }
            });
            let Ok(entry) = found else {
                self.expiries.pop();
                continue;
            };
            let place = entry.get().1;
            let record = records.get_mut(place);
            if !record.is_expired(now) {
                record.indexed = record.next_look(now);
                let later = Reverse((record.indexed, hash));
                self.expiries.pop();
                self.expiries.push(later);
            } else if removed.len() == room {
                return Pass::Left;
            } else {
                entry.remove();
                removed.push(records.remove(place));
                self.expiries.pop();
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

/// What the table keeps of a hash.
fn half_of(hash: u64) -> u32 {
    hash as u32
}

/// The half as a hash of its own: a table chooses by its low bits and compares its highest seven.
fn spread(half: u32) -> u64 {
    u64::from(half) << 32 | u64::from(half)
}

/// The id is a digest already. These bytes are not the one that chooses the shard.
fn hash_of(id: &OperationId) -> u64 {
    let mut hash = [0; 8];
    hash.copy_from_slice(&id.as_bytes()[8..16]);
    u64::from_ne_bytes(hash)
}
