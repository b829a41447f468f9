//! Random calls, one after the other and all at once, from seeds that are told when they fail.

use std::{sync::Arc, time::Duration};

use retrysafe_core::{
    Begin, Claim, Entropy as _, Fingerprint, Inspect, Lease, Owner, Resolution, Store,
    SystemEntropy,
};
use tokio::{sync::Barrier, task::JoinSet};

use super::{LONG, claim, fingerprint, operation};
use crate::{
    Answer, Call, Fixture, History, SeededEntropy,
    walk::{Step, walk},
};

/// One call after the other, time passing in between: every answer is the
/// [`Model`](crate::Model)'s.
pub async fn random_walks_agree_with_the_model<F: Fixture>(fixture: &F) {
    let store = fixture.handle().await;
    for _ in 0..fixture.rounds().min(200) {
        let entropy = SeededEntropy::new(new_seed());
        let steps: Vec<_> = (0..80).map(|_| Step::random(&entropy)).collect();
        walk(fixture, &store, &steps).await;
    }
}

/// All verbs at once, by several callers on several handles: what they saw could have happened one
/// call after the other.
pub async fn random_histories_are_linearizable<F: Fixture>(fixture: &F) {
    let handles = [Arc::new(fixture.handle().await), Arc::new(fixture.handle().await)];
    for _ in 0..fixture.rounds().min(100) {
        let seed = new_seed();
        let history = workload(&handles, seed, Workload::default()).await;
        if let Err(unexplained) = history.check() {
            panic!("ST1 (seed {seed}): {unexplained}");
        }
    }
}

/// How much happens at once in a [`workload`].
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// How many callers there are.
    pub callers: usize,
    /// How many calls each makes.
    pub calls: usize,
    /// How many operations they share.
    pub operations: usize,
    /// How long a call is waited for: one that does not answer is dropped and may have happened.
    pub deadline: Duration,
}

impl Default for Workload {
    fn default() -> Self {
        Self { callers: 6, calls: 12, operations: 2, deadline: Duration::from_secs(30) }
    }
}

/// Lets callers make random calls of every verb at once, and returns what happened. Calls that
/// fail, as those of a [`Faulty`](crate::Faulty) store do, are part of it.
pub async fn workload<S: Store + Inspect>(
    handles: &[Arc<S>],
    seed: u64,
    workload: Workload,
) -> Arc<History> {
    let history = Arc::new(History::new());
    let entropy = SeededEntropy::new(seed);
    let claims: Arc<[Vec<Claim>]> = (0..workload.operations)
        .map(|_| {
            let id = operation();
            // Few owners: what one call leaves behind, another caller's call with the same owner
            // goes on with.
            (0..4).map(|n| Claim { take_over: n > 0, ..claim(id) }).collect()
        })
        .collect();
    let start = Arc::new(Barrier::new(workload.callers));
    let mut callers = JoinSet::new();
    for caller in 0..workload.callers {
        let store = handles[caller % handles.len()].clone();
        let entropy = SeededEntropy::new(entropy.next_u64());
        let (history, claims, start) = (history.clone(), claims.clone(), start.clone());
        callers.spawn(async move {
            start.wait().await;
            for n in 0..workload.calls {
                let of_one_operation: &Vec<_> = entropy.choose(&claims[..]);
                let claim = entropy.choose(of_one_operation).clone();
                let call = random_call(&entropy, claim, format!("{caller}/{n}"));
                let call = history.record(&*store, call);
                if let Ok(Ok(Answer::Begin(Begin::Acquired(_)))) =
                    tokio::time::timeout(workload.deadline, call).await
                {
                    tokio::task::yield_now().await;
                }
            }
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended.expect("a caller does not panic");
    }
    history
}

fn random_call(entropy: &SeededEntropy, claim: Claim, payload: String) -> Call {
    let lease = Lease { id: claim.id, owner: claim.owner, attempt: 1, fence: 1 };
    match entropy.below(16) {
        0..=4 => Call::Begin(claim),
        5 => Call::Begin(Claim { owner: Owner::new(entropy), ..claim }),
        6 => Call::Begin(Claim {
            fingerprint: Fingerprint { body: None, ..fingerprint(2) },
            ..claim
        }),
        7 => Call::Renew(lease, LONG),
        8 | 9 => Call::Renew(lease, Duration::ZERO),
        10 => Call::Complete(lease, fingerprint(1), payload.into(), LONG),
        11 | 12 => Call::Release(lease, LONG),
        13 => Call::Get(claim.id),
        14 => Call::Forget(claim.id),
        _ => {
            let seen = u32::try_from(entropy.below(5)).unwrap_or(0);
            let resolution = match entropy.below(2) {
                0 => Resolution::DidNotHappen,
                _ => Resolution::Happened { payload: payload.into(), retention: LONG },
            };
            Call::Resolve(claim.id, seen, resolution)
        }
    }
}

fn new_seed() -> u64 {
    u64::try_from(SystemEntropy.next_u128() >> 64).unwrap_or(0)
}
