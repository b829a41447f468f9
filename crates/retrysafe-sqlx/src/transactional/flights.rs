//! Who works on which operation in this process.
//!
//! A row that a transaction has claimed is not to be seen by anybody before it commits. So that the
//! duplicates of this process neither ask nor wait at the server, with a connection each, they wait
//! here.
//!
//! Between two parts nothing is open, and the row is there for everybody to see: then the server decides,
//! and who is granted the operation has its place here too.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use retrysafe_core::{Acquired, Begin, Claim, Comparison, Found, Lease, OperationId, Owner};
use sqlx::Database;
use tokio::{sync::watch, time::timeout};

use super::transaction::Slot;

pub(crate) struct Flights<DB: Database>(Arc<Mutex<HashMap<OperationId, Flight<DB>>>>);

/// An operation that is being claimed, or that is claimed.
struct Flight<DB: Database> {
    claim: Claim,
    granted: Option<(Acquired, Arc<Slot<DB>>)>,
    /// Dropped with the flight: then it is over.
    over: watch::Sender<()>,
}

/// An operation that a transaction holds, of which nothing can be seen before it commits. It is taken
/// for the same request: one that differs is refused when it has.
pub(crate) fn in_flight_elsewhere(claim: &Claim) -> Found {
    let fingerprint = claim.fingerprint.clone();
    Found::InFlight { fingerprint, attempt: 1, lease_left: claim.lease }
}

/// What a claim finds in this process.
pub(crate) enum Entered<DB: Database> {
    /// Nobody: it may be claimed at the server.
    Place(Place<DB>),
    /// Itself, granted already (ST4).
    Ours(Acquired),
    /// Another one.
    Taken(Seen),
}

/// The right to claim an operation at the server. Dropped before it is granted, it makes way for the
/// next.
pub(crate) struct Place<DB: Database> {
    flights: Flights<DB>,
    id: OperationId,
    owner: Owner,
    /// Whether it is an attempt that was granted, and ends.
    ending: bool,
    granted: bool,
}

/// An operation that somebody else works on.
pub(crate) struct Seen {
    found: Found,
    worth_waiting: bool,
    over: watch::Receiver<()>,
}

/// An attempt that this process holds, to be ended.
pub(crate) struct Granted<DB: Database> {
    pub(crate) claim: Claim,
    pub(crate) slot: Arc<Slot<DB>>,
    _ending: Place<DB>,
}

impl<DB: Database> Flights<DB> {
    /// What a claim finds without asking anybody: an attempt that this process holds.
    pub(crate) fn held(&self, claim: &Claim) -> Option<Entered<DB>> {
        let flights = self.lock();
        let flight = flights.get(&claim.id).filter(|flight| flight.granted.is_some())?;
        flight.decides_on(claim).then(|| flight.against(claim))
    }

    pub(crate) fn enter(&self, claim: &Claim) -> Entered<DB> {
        let mut flights = self.lock();
        match flights.get(&claim.id) {
            Some(flight) if flight.decides_on(claim) => return flight.against(claim),
            // It stays until the server has granted it to somebody else.
            Some(_) => {}
            None => {
                flights.insert(claim.id, Flight::of(claim));
            }
        }
        drop(flights);
        Entered::Place(self.place(claim.id, claim.owner, false))
    }

    fn place(&self, id: OperationId, owner: Owner, ending: bool) -> Place<DB> {
        Place { flights: self.clone(), id, owner, ending, granted: false }
    }

    /// What an attempt was lent.
    pub(crate) fn slot(&self, lease: &Lease) -> Option<Arc<Slot<DB>>> {
        self.attempt(lease).map(|(_, slot)| slot)
    }

    /// What an attempt has claimed, and what it was lent.
    pub(crate) fn attempt(&self, lease: &Lease) -> Option<(Claim, Arc<Slot<DB>>)> {
        let flights = self.lock();
        let flight = flights.get(&lease.id).filter(|it| it.claim.owner == lease.owner)?;
        flight.granted.as_ref().map(|(_, slot)| (flight.claim.clone(), slot.clone()))
    }

    /// An attempt, to be ended. Its duplicates go on when the value is dropped.
    pub(crate) fn end(&self, lease: &Lease) -> Option<Granted<DB>> {
        let (claim, slot) = self.attempt(lease)?;
        Some(Granted { claim, slot, _ending: self.place(lease.id, lease.owner, true) })
    }

    /// Waits until attempt `seen` is over, or may have been taken over; `false` if that can't be told
    /// in this process.
    pub(crate) async fn over(&self, id: &OperationId, seen: u32, within: Duration) -> bool {
        let watched = {
            let flights = self.lock();
            let seen = |flight: &&Flight<DB>| {
                !flight.is_between()
                    && flight.granted.as_ref().map_or(1, |(it, _)| it.attempt) == seen
            };
            let flight = flights.get(id).filter(seen);
            flight.map(|flight| (flight.over.subscribe(), flight.claim.lease))
        };
        let Some((mut over, lease)) = watched else { return false };
        // It may be between two parts by then, where only its lease holds it.
        let _ = timeout(within.min(lease), over.changed()).await;
        true
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<OperationId, Flight<DB>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<DB: Database> Flight<DB> {
    fn of(claim: &Claim) -> Self {
        Self { claim: claim.clone(), granted: None, over: watch::Sender::new(()) }
    }

    fn is_between(&self) -> bool {
        self.granted.as_ref().is_some_and(|(_, slot)| slot.is_between())
    }

    /// Whether this process can answer the claim. An attempt of others that is between two parts may
    /// have been taken over, or finished, by anybody.
    fn decides_on(&self, claim: &Claim) -> bool {
        self.claim.owner == claim.owner || !self.is_between()
    }

    fn against(&self, claim: &Claim) -> Entered<DB> {
        let over = self.over.subscribe();
        let Some((acquired, _)) = &self.granted else {
            // Whose operation it is has not been decided, so its request says nothing.
            let found = in_flight_elsewhere(claim);
            return Entered::Taken(Seen { found, worth_waiting: true, over });
        };
        if self.claim.owner == claim.owner {
            return Entered::Ours(*acquired);
        }
        let fingerprint = self.claim.fingerprint.clone();
        // Another request is refused, whatever becomes of this one; and F4: one whose body is not
        // known does not wait.
        let worth_waiting = claim.fingerprint.compare(&fingerprint) == Comparison::Same;
        let (attempt, lease_left) = (acquired.attempt, self.claim.lease);
        let found = Found::InFlight { fingerprint, attempt, lease_left };
        Entered::Taken(Seen { found, worth_waiting, over })
    }
}

impl<DB: Database> Default for Flights<DB> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<DB: Database> Clone for Flights<DB> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl Seen {
    /// Waits until it is over, and so long at most; then that it is in flight is the answer.
    pub(crate) async fn over(mut self, within: Duration) -> Result<(), Begin> {
        if !self.worth_waiting || timeout(within, self.over.changed()).await.is_err() {
            return Err(Begin::Found(self.found));
        }
        Ok(())
    }
}

impl<DB: Database> Place<DB> {
    /// The server has granted the claim: the place is held until the attempt is ended. Whose it was
    /// before has lost it.
    pub(crate) fn granted(mut self, claim: &Claim, acquired: Acquired, slot: Arc<Slot<DB>>) {
        let before = {
            let mut flights = self.flights.lock();
            let before = flights.remove(&self.id);
            let (mut flight, lost) = match before {
                Some(flight) if flight.claim.owner == self.owner => (flight, None),
                lost => (Flight::of(claim), lost),
            };
            flight.granted = Some((acquired, slot));
            flights.insert(self.id, flight);
            lost
        };
        self.granted = true;
        // Outside of the lock: it may be the last to know of a transaction, whose end takes time.
        drop(before);
    }
}

impl<DB: Database> Drop for Place<DB> {
    fn drop(&mut self) {
        if self.granted {
            return;
        }
        // Dropped outside of the lock: it may hold a transaction, whose end takes time.
        let over = {
            let mut flights = self.flights.lock();
            // ST4: of two calls of one owner, the one that was given up leaves the other's alone.
            let is_own = |it: &Flight<DB>| {
                it.claim.owner == self.owner && it.granted.is_some() == self.ending
            };
            if flights.get(&self.id).is_some_and(is_own) { flights.remove(&self.id) } else { None }
        };
        drop(over);
    }
}
