//! Which faults the calls of a store meet, where they are held, and how many there were.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use super::{Fault, Point, Verb};
use crate::{SeededEntropy, model::Call};

/// What a [`Faulty`](super::Faulty) store does to its calls. Clones are one script.
#[derive(Clone)]
pub struct Script {
    shared: Arc<Shared>,
}

struct Shared {
    plan: Mutex<Plan>,
    /// Every change of a count is told.
    counts: watch::Sender<HashMap<Verb, usize>>,
}

#[derive(Default)]
struct Plan {
    next: HashMap<Verb, VecDeque<Option<Fault>>>,
    always: HashMap<Verb, Fault>,
    random: Option<Random>,
    holds: HashMap<(Verb, Point), Arc<Gate>>,
    late: Vec<Call>,
}

struct Random {
    entropy: SeededEntropy,
    one_in: usize,
    faults: Vec<Fault>,
}

struct Gate {
    open: watch::Sender<bool>,
    held: watch::Sender<usize>,
}

impl Script {
    /// The next call of a verb meets a fault. Faults for one verb are met in the order in which
    /// they were asked for, one call each.
    pub fn next(&self, verb: Verb, fault: Fault) {
        self.plan().next.entry(verb).or_default().push_back(Some(fault));
    }

    /// The next call of a verb meets none: for plans such as *the second one fails*.
    pub fn next_is_well(&self, verb: Verb) {
        self.plan().next.entry(verb).or_default().push_back(None);
    }

    /// Every call of a verb meets a fault, if it was asked for no other.
    pub fn always(&self, verb: Verb, fault: Fault) {
        self.plan().always.insert(verb, fault);
    }

    /// The store is well again: no fault is met that was not asked for since.
    pub fn heal(&self) {
        let mut plan = self.plan();
        plan.next.clear();
        plan.always.clear();
        plan.random = None;
    }

    /// One in so many calls, of whatever verb, meets one of the faults, as a seed says.
    pub fn random(&self, seed: u64, one_in: usize, faults: &[Fault]) {
        let entropy = SeededEntropy::new(seed);
        self.plan().random = Some(Random { entropy, one_in, faults: faults.to_vec() });
    }

    /// Stops every call of a verb at a point until the hold is released or dropped. One verb has
    /// one hold at a point: a new one takes the place of the old.
    pub fn hold(&self, verb: Verb, point: Point) -> Hold {
        let gate = Arc::new(Gate { open: watch::Sender::new(false), held: watch::Sender::new(0) });
        self.plan().holds.insert((verb, point), gate.clone());
        Hold { script: self.clone(), at: (verb, point), gate }
    }

    /// How many calls of a verb there were, those that met a fault included.
    pub fn calls(&self, verb: Verb) -> usize {
        self.shared.counts.borrow().get(&verb).copied().unwrap_or(0)
    }

    /// How many calls there were, of all verbs: the round trips.
    pub fn all_calls(&self) -> usize {
        self.shared.counts.borrow().values().sum()
    }

    /// Waits until there were at least so many calls of a verb.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops waiting.
    pub async fn called(&self, verb: Verb, times: usize) {
        let enough =
            |counts: &HashMap<Verb, usize>| counts.get(&verb).is_some_and(|calls| *calls >= times);
        // The sender lives as long as this borrow of it.
        let _ = self.shared.counts.subscribe().wait_for(enough).await;
    }

    pub(super) fn enter(&self, verb: Verb) -> Option<Fault> {
        self.shared.counts.send_modify(|counts| *counts.entry(verb).or_default() += 1);
        let mut plan = self.plan();
        if let Some(asked_for) = plan.next.get_mut(&verb).and_then(VecDeque::pop_front) {
            return asked_for;
        }
        let always = plan.always.get(&verb).copied();
        always.or_else(|| {
            let random = plan.random.as_ref()?;
            let met = random.entropy.below(random.one_in) == 0 && !random.faults.is_empty();
            met.then(|| *random.entropy.choose(&random.faults))
        })
    }

    pub(super) async fn pass(&self, verb: Verb, point: Point) {
        let gate = self.plan().holds.get(&(verb, point)).cloned();
        if let Some(gate) = gate {
            gate.held.send_modify(|held| *held += 1);
            // An error says that the gate is gone, which opens it as well.
            let _ = gate.open.subscribe().wait_for(|open| *open).await;
        }
    }

    pub(super) fn keep_for_later(&self, call: Option<Call>) {
        self.plan().late.extend(call);
    }

    pub(super) fn take_late(&self) -> Vec<Call> {
        std::mem::take(&mut self.plan().late)
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.shared.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Script {
    fn default() -> Self {
        let counts = watch::Sender::new(HashMap::new());
        Self { shared: Arc::new(Shared { plan: Mutex::default(), counts }) }
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Script")
            .field("calls", &*self.shared.counts.borrow())
            .finish_non_exhaustive()
    }
}

/// Stops the calls of one verb at one point for as long as it lives.
#[must_use = "dropping it lets the calls go on"]
pub struct Hold {
    script: Script,
    at: (Verb, Point),
    gate: Arc<Gate>,
}

impl Hold {
    /// Waits until at least so many calls have been stopped.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops waiting.
    pub async fn reached(&self, calls: usize) {
        let _ = self.gate.held.subscribe().wait_for(|held| *held >= calls).await;
    }

    /// Lets the calls go on, those that come later too.
    pub fn release(self) {}
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut plan = self.script.plan();
        if plan.holds.get(&self.at).is_some_and(|gate| Arc::ptr_eq(gate, &self.gate)) {
            plan.holds.remove(&self.at);
        }
        drop(plan);
        self.gate.open.send_replace(true);
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").field("at", &self.at).finish_non_exhaustive()
    }
}
