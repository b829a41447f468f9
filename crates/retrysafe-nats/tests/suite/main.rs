//! The whole contract on a server and on a cluster, and what only a store on NATS has to prove.

#![expect(clippy::unwrap_used, reason = "a test says what failed by where it panics")]

mod contract;
mod drills;
mod expiry;
mod inspect;
mod limits;
mod open;
mod processes;
mod raw;
mod requests;
mod waiting;

use std::{future::Future, time::Duration};

use retrysafe_core::{
    Acquired, Algorithm, Begin, Claim, Entropy as _, Fingerprint, Held, Lease, OperationId, Owner,
    Store, SystemEntropy,
};
use retrysafe_nats::{NatsStore, NatsStoreBuilder};
use retrysafe_testkit::servers::NatsServer;

const LONG: Duration = Duration::from_secs(60 * 60);

/// Longer than a machine that is busy with other things stands still.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is not about time-outs must not fail by one.
fn patient(url: impl Into<String>) -> NatsStoreBuilder {
    NatsStore::builder(url).timeout(PATIENCE)
}

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

async fn complete(store: &impl Store, claim: &Claim, lease: &Lease, payload: &'static str) {
    let done = store.complete(lease, &claim.fingerprint, payload.into(), LONG).await;
    assert_eq!(done.unwrap(), Held::Applied);
}

/// A stream's name that no other test uses.
fn stream() -> String {
    format!("test_{:032x}", SystemEntropy.next_u128())
}

/// A handle on a stream of its own, on the server that the tests share.
async fn store() -> NatsStore {
    let server = NatsServer::shared().await;
    patient(server.url()).stream(stream()).open().await.unwrap()
}

/// Asks until there is an answer: a server that starts again takes its time.
async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let answer = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(answer) => answer,
        Err(_) => panic!("in {PATIENCE:?} this should have come to pass: {what}"),
    }
}
