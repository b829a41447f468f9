//! Records what concurrent callers did and saw, and checks that it could have happened one call
//! after the other (linearizability, ST1).

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use retrysafe_core::{Begin, Inspect, OperationId, Store, StoreError};

use crate::model::{Answer, Call, Model};

/// How many calls of one operation can be checked.
const MOST: usize = 128;

/// The calls of concurrent callers, in real time.
///
/// A call that failed ambiguously, or whose future was dropped, may have had its effect at any time
/// since, or never. The store's time must stand still meanwhile, as far as leases and retention go.
///
/// ```
/// # use std::time::Duration;
/// # use retrysafe_core::{Algorithm, Claim, Fingerprint, MemoryStore, OperationId, Owner, SystemEntropy};
/// use retrysafe_testkit::{Call, History};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let claim = Claim {
/// #     id: OperationId::from_bytes([7; 32]),
/// #     owner: Owner::new(&SystemEntropy),
/// #     fingerprint: Fingerprint { algorithm: Algorithm::from_u32(0), head: [7; 32], body: None },
/// #     lease: Duration::from_secs(30),
/// #     retention: Duration::from_secs(60),
/// #     take_over: true,
/// # };
/// let store = MemoryStore::new();
/// let history = History::new();
/// let call = Call::Begin(claim);
/// let (_one, _other) = tokio::join!(
///     history.record(&store, call.clone()),
///     history.record(&store, call.clone()),
/// );
/// history.check().expect("a history that a store with one lock could have");
/// # }
/// ```
#[derive(Debug, Default)]
pub struct History {
    clock: AtomicU64,
    calls: Mutex<Vec<Recorded>>,
}

#[derive(Clone, Debug)]
struct Recorded {
    call: Call,
    invoked: u64,
    /// `None`: it may have had its effect at any time since, or never.
    answered: Option<(Answer, u64)>,
    /// It certainly had no effect.
    void: bool,
}

/// A history that no order of its calls explains.
#[derive(Clone, Debug)]
pub struct NotLinearizable {
    id: OperationId,
    calls: Vec<Recorded>,
}

impl History {
    /// An empty history.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a call and records when it was made and what it was answered with.
    ///
    /// # Errors
    ///
    /// Those of the store; they are part of the history.
    ///
    /// # Cancel safety
    ///
    /// A call whose future is dropped is recorded as one that may have had its effect.
    pub async fn record<S: Store + Inspect>(
        &self,
        store: &S,
        call: Call,
    ) -> Result<Answer, StoreError> {
        let invoked = self.clock.fetch_add(1, Ordering::SeqCst);
        let index = {
            let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
            calls.push(Recorded { call: call.clone(), invoked, answered: None, void: false });
            calls.len() - 1
        };
        let answer = call.send(store).await;
        let returned = self.clock.fetch_add(1, Ordering::SeqCst);
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        match &answer {
            Ok(answer) => calls[index].answered = Some((answer.clone(), returned)),
            Err(error) => calls[index].void = !error.is_ambiguous(),
        }
        answer
    }

    /// Checks every operation's calls against the [`Model`], and that fences grow (ST5).
    ///
    /// # Errors
    ///
    /// The calls of an operation that no order explains.
    ///
    /// # Panics
    ///
    /// If an operation has more than 128 calls: the check would take too long.
    pub fn check(&self) -> Result<(), NotLinearizable> {
        let mut by_id: HashMap<OperationId, Vec<Recorded>> = HashMap::new();
        for recorded in self.calls.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if !recorded.void {
                by_id.entry(recorded.call.id()).or_default().push(recorded.clone());
            }
        }
        for (id, calls) in by_id {
            assert!(calls.len() <= MOST, "at most {MOST} calls of one operation can be checked");
            if !fences_grow(&calls) || !is_linearizable(&calls) {
                return Err(NotLinearizable { id, calls });
            }
        }
        Ok(())
    }
}

/// Looks for an order that explains the answers (Wing and Gong), by depth, never trying the same
/// set of calls on the same state twice (Lowe).
fn is_linearizable(calls: &[Recorded]) -> bool {
    let answered = (0..calls.len()).filter(|n| calls[*n].answered.is_some());
    let wanted: u128 = answered.map(|n| 1 << n).sum();
    let mut tried: HashSet<(u128, Model)> = HashSet::new();
    let mut open = vec![(0_u128, Model::default())];
    while let Some((done, model)) = open.pop() {
        if done & wanted == wanted {
            return true;
        }
        let is_left = |n: &usize| done & 1 << n == 0;
        let left = (0..calls.len()).filter(is_left);
        // Whatever was invoked after the first of the others had returned must come later.
        let horizon = left
            .clone()
            .filter_map(|n| calls[n].answered.as_ref().map(|(_, returned)| *returned))
            .min()
            .unwrap_or(u64::MAX);
        for n in left.filter(|n| calls[*n].invoked < horizon) {
            let mut next = model.clone();
            let answer = next.apply(&calls[n].call, Duration::ZERO);
            let explains = match &calls[n].answered {
                Some((seen, _)) => answer.comparable() == seen.clone().comparable(),
                // Nobody saw its answer: only its effect could explain anything.
                None => next != model,
            };
            let state = (done | 1 << n, next);
            if explains && tried.insert(state.clone()) {
                open.push(state);
            }
        }
    }
    false
}

/// ST5: one fence for one attempt, and a greater one for each later attempt.
fn fences_grow(calls: &[Recorded]) -> bool {
    let mut fences: Vec<(u32, u64)> = calls
        .iter()
        .filter_map(|recorded| match &recorded.answered {
            Some((Answer::Begin(Begin::Acquired(acquired)), _)) => {
                Some((acquired.attempt, acquired.fence))
            }
            _ => None,
        })
        .collect();
    fences.sort_unstable();
    fences.dedup();
    fences.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1)
}

impl fmt::Display for NotLinearizable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "no order of these calls of {} explains their answers:", self.id)?;
        for recorded in &self.calls {
            match &recorded.answered {
                Some((answer, returned)) => writeln!(
                    f,
                    "{:>4} to {returned:<4} {:?} -> {answer:?}",
                    recorded.invoked, recorded.call
                )?,
                None => writeln!(f, "{:>4} to ?    {:?}", recorded.invoked, recorded.call)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for NotLinearizable {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::claim;

    fn recorded(call: Call, invoked: u64, answered: Option<(Answer, u64)>) -> Recorded {
        Recorded { call, invoked, answered, void: false }
    }

    fn acquired(attempt: u32) -> Answer {
        Answer::Begin(Begin::Acquired(retrysafe_core::Acquired {
            attempt,
            fence: attempt.into(),
            previous_vanished: false,
        }))
    }

    #[test]
    fn two_grants_of_one_key_are_not_linearizable() {
        let id = OperationId::from_bytes([1; 32]);
        let one = recorded(Call::Begin(claim(id)), 0, Some((acquired(1), 2)));
        let other = recorded(Call::Begin(claim(id)), 1, Some((acquired(1), 3)));
        assert!(is_linearizable(std::slice::from_ref(&one)));
        assert!(!is_linearizable(&[one, other]));
    }

    #[test]
    fn an_outcome_that_is_seen_must_be_seen_from_then_on() {
        let id = OperationId::from_bytes([1; 32]);
        let first = claim(id);
        let begin = recorded(Call::Begin(first.clone()), 0, Some((acquired(1), 1)));
        let get = |from, entry, to| recorded(Call::Get(id), from, Some((Answer::Entry(entry), to)));
        assert!(!is_linearizable(&[begin.clone(), get(2, None, 3)]));
        assert!(is_linearizable(&[
            recorded(begin.call, 0, Some((acquired(1), 4))),
            get(2, None, 3)
        ]));
    }

    #[test]
    fn an_unanswered_call_may_have_happened_or_not() {
        let id = OperationId::from_bytes([1; 32]);
        let lost = recorded(Call::Begin(claim(id)), 0, None);
        let granted = recorded(Call::Begin(claim(id)), 1, Some((acquired(1), 2)));
        assert!(is_linearizable(&[lost.clone(), granted]), "it never happened");
        let mut model = Model::default();
        model.apply(&lost.call, Duration::ZERO);
        let other = Call::Begin(claim(id));
        let found = model.apply(&other, Duration::ZERO);
        let found = recorded(other, 1, Some((found, 2)));
        assert!(is_linearizable(&[lost, found.clone()]), "it happened");
        assert!(!is_linearizable(&[found]), "nothing was there to be found");
    }
}
