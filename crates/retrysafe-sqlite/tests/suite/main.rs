//! What only a store in a file has to prove; the rest is the contract's.

#![expect(clippy::unwrap_used, reason = "a test says what failed by where it panics")]

mod contract;
mod durability;
mod file;
mod lock_file;
mod open;
mod processes;
mod turns;

use std::time::Duration;

use retrysafe_core::{
    Acquired, Algorithm, Begin, Claim, Entropy as _, Fingerprint, Lease, OperationId, Owner, Store,
    SystemEntropy,
};

const LONG: Duration = Duration::from_secs(60 * 60);

fn claim(id: OperationId) -> Claim {
    Claim {
        id,
        owner: Owner::new(&SystemEntropy),
        fingerprint: Fingerprint { algorithm: Algorithm::from_u32(1), head: [1; 32], body: None },
        lease: LONG,
        retention: LONG * 24,
        take_over: false,
    }
}

/// The operation with this number.
fn numbered(number: u64) -> OperationId {
    let mut id = [7; 32];
    id[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    id[8..16].copy_from_slice(&number.to_be_bytes());
    OperationId::from_bytes(id)
}

fn operation() -> OperationId {
    let half = SystemEntropy.next_u128().to_be_bytes();
    OperationId::from_bytes([half, half].concat().try_into().unwrap())
}

fn lease(claim: &Claim, acquired: Acquired) -> Lease {
    Lease { id: claim.id, owner: claim.owner, attempt: acquired.attempt, fence: acquired.fence }
}

async fn acquire(store: &impl Store, claim: &Claim) -> Lease {
    match store.begin(claim).await.unwrap() {
        Begin::Acquired(acquired) => lease(claim, acquired),
        found => panic!("the claim should have been granted: {found:?}"),
    }
}
