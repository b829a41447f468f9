//! Random walks: a sequence of calls and of time passing, made on a store and on the [`Model`] side
//! by side.

use std::time::Duration;

use bytes::Bytes;
use retrysafe_core::{
    Claim, Fingerprint, Lease, OperationId, Owner, Resolution, Store as _, SystemEntropy,
};

use crate::{
    Fixture, SeededEntropy,
    contract::{fingerprint, operation},
    model::{Call, Model},
};

/// One step of a walk, as a few small numbers, so that a failing walk can be made smaller. Every
/// combination of numbers is a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Which verb; one of them lets time pass.
    pub verb: u8,
    /// Which of two operations.
    pub operation: u8,
    /// Which of four owners.
    pub owner: u8,
    /// Which fingerprint or payload, and whether a take-over is allowed.
    pub what: u8,
    /// How long the lease is.
    pub lease: u8,
    /// How long the retention is.
    pub retention: u8,
}

impl Step {
    /// A random step.
    pub fn random(entropy: &SeededEntropy) -> Self {
        let [verb, operation, owner, what, lease, retention, ..] = entropy.next_u64().to_le_bytes();
        Self { verb, operation, owner, what, lease, retention }
    }

    fn call(self, ids: &[OperationId; 2], owners: &[Owner; 4], tick: Duration) -> Option<Call> {
        let id = ids[usize::from(self.operation % 2)];
        let owner = owners[usize::from(self.owner % 4)];
        let lease = Lease { id, owner, attempt: 1, fence: 1 };
        let lease_for = span(self.lease, tick);
        let retention = span(self.retention, tick);
        let payload = Bytes::copy_from_slice(&[self.what]);
        let print = match self.what % 4 {
            0 | 1 => fingerprint(1),
            2 => Fingerprint { body: None, ..fingerprint(1) },
            _ => fingerprint(2),
        };
        Some(match self.verb % 16 {
            0..=4 => Call::Begin(Claim {
                id,
                owner,
                fingerprint: print,
                lease: lease_for,
                retention,
                take_over: self.what >= 64,
            }),
            5 => Call::Renew(lease, lease_for),
            6 => Call::Renew(lease, Duration::ZERO),
            7 | 8 => Call::Complete(lease, print, payload, retention),
            9 | 10 => Call::Release(lease, retention),
            11 => Call::Get(id),
            12 => Call::Forget(id),
            13 => {
                let seen = u32::from(self.what % 4);
                let resolution = match self.owner % 2 {
                    0 => Resolution::DidNotHappen,
                    _ => Resolution::Happened { payload, retention },
                };
                Call::Resolve(id, seen, resolution)
            }
            _ => return None,
        })
    }
}

/// An odd number of ticks, or for ever: time passes by even numbers of them, so that nothing ends
/// at the very moment when it is looked at.
fn span(choice: u8, tick: Duration) -> Duration {
    match choice % 4 {
        0 => Duration::from_secs(60 * 60),
        1 => tick,
        2 => tick * 3,
        _ => tick * 5,
    }
}

/// Takes the steps on a store and on the model, on two new operations.
///
/// # Panics
///
/// At the first answer that differs.
pub async fn walk<F: Fixture>(fixture: &F, store: &F::Store, steps: &[Step]) {
    let ids = [operation(), operation()];
    let owners = std::array::from_fn(|_| Owner::new(&SystemEntropy));
    let mut models = [Model::default(), Model::default()];
    let mut now = Duration::ZERO;
    for (n, step) in steps.iter().enumerate() {
        match step.call(&ids, &owners, fixture.tick()) {
            Some(call) => {
                let expected = models[usize::from(step.operation % 2)].apply(&call, now);
                let answer = call.send(store).await.expect("a store without faults answers");
                assert_eq!(
                    answer.clone().comparable(),
                    expected.clone().comparable(),
                    "step {n} of {steps:?}: {call:?} was answered {answer:?}, not {expected:?}"
                );
            }
            None if step.verb % 16 == 14 => {
                let _ = store.sweep(1 + usize::from(step.what)).await.expect("sweep");
            }
            None => {
                fixture.pass(fixture.tick() * 2).await;
                now += fixture.tick() * 2;
            }
        }
    }
}
