//! What a handle has last written or read, so that the next write need not read first.
//!
//! Never trusted for what it says: a record from here is good for a write, which the server lets
//! pass only if nothing was written since, or for an answer if the server has just named its
//! sequence. Forgetting one costs a read.

use std::{
    collections::HashMap,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use retrysafe_core::{OperationId, lifecycle::Record};
use tokio::time::Instant;

/// How many records a generation holds; two are kept.
const GENERATION: usize = 16 * 1024;

/// A record as it was written, its times counted from then.
#[derive(Clone)]
pub(crate) struct Sighting {
    pub(crate) sequence: u64,
    pub(crate) record: Record,
    /// Not later than it was written.
    pub(crate) written: Instant,
}

impl Sighting {
    /// How old the record is at most. What is live or unexpired at that age is so in truth.
    pub(crate) fn age_at_most(&self) -> Duration {
        self.written.elapsed()
    }
}

#[derive(Default)]
pub(crate) struct Sightings(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    young: HashMap<OperationId, Sighting>,
    old: HashMap<OperationId, Sighting>,
}

impl Sightings {
    pub(crate) fn get(&self, id: &OperationId) -> Option<Sighting> {
        let all = self.lock();
        all.young.get(id).or_else(|| all.old.get(id)).cloned()
    }

    /// Keeps the newer of what is known and this.
    pub(crate) fn keep(&self, sighting: Sighting) {
        let id = sighting.record.id;
        let mut all = self.lock();
        let known = all.young.get(&id).or_else(|| all.old.get(&id));
        if known.is_some_and(|known| known.sequence > sighting.sequence) {
            return;
        }
        all.old.remove(&id);
        all.young.insert(id, sighting);
        if all.young.len() >= GENERATION {
            all.old = mem::take(&mut all.young);
        }
    }

    /// Forgets a record, unless a newer one than this sequence is known.
    pub(crate) fn forget(&self, id: &OperationId, up_to: u64) {
        let mut all = self.lock();
        let Generations { young, old } = &mut *all;
        for generation in [young, old] {
            if generation.get(id).is_some_and(|known| known.sequence <= up_to) {
                generation.remove(id);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Generations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use retrysafe_core::{Algorithm, Fingerprint, lifecycle::Phase};

    use super::*;

    fn sighting(number: u64, sequence: u64) -> Sighting {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&number.to_be_bytes());
        Sighting {
            sequence,
            record: Record {
                id: OperationId::from_bytes(id),
                owner: None,
                fence: 1,
                previous_vanished: false,
                fingerprint: Fingerprint {
                    algorithm: Algorithm::from_u32(1),
                    head: [0; 32],
                    body: None,
                },
                expires: Duration::from_secs(1),
                phase: Phase::Released,
            },
            written: Instant::now(),
        }
    }

    #[test]
    fn the_newest_stays_and_memory_is_bounded() {
        let sightings = Sightings::default();
        let id = sighting(0, 0).record.id;
        sightings.keep(sighting(0, 5));
        sightings.keep(sighting(0, 4));
        assert_eq!(sightings.get(&id).unwrap().sequence, 5);
        sightings.forget(&id, 4);
        assert_eq!(sightings.get(&id).unwrap().sequence, 5);
        sightings.forget(&id, 5);
        assert!(sightings.get(&id).is_none());

        for number in 0..3 * GENERATION as u64 {
            sightings.keep(sighting(number, number));
        }
        let all = sightings.lock();
        assert!(all.young.len() + all.old.len() <= 2 * GENERATION);
    }
}
