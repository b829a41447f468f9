//! What only a store in Redis has to prove; the rest is the contract's.

#![expect(clippy::unwrap_used, reason = "a test says what failed by where it panics")]

mod bad_input;
mod cluster;
mod contract;
mod drills;
mod full;
mod processes;
mod replicas;
mod round_trips;
mod times;
mod tls;
mod wakeups;

use std::time::Duration;

use retrysafe_core::{
    Acquired, Algorithm, Begin, BodyPart, Claim, Entropy as _, Extent, Fingerprint, Lease,
    OperationId, Owner, Store, StoreError, StoreErrorKind, SystemEntropy,
};
use retrysafe_redis::{RedisStore, RedisStoreBuilder};
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(60 * 60);
/// Real time within which anything that need not wait has happened.
const SOON: Duration = Duration::from_secs(30);

/// What is not about time-outs must not fail by one: the machine may be busy.
fn patient(url: impl Into<String>) -> RedisStoreBuilder {
    let patience = Duration::from_secs(60);
    RedisStore::builder(url).connection_timeout(patience).response_timeout(patience)
}

/// Repeats a call with the same owner until it is answered, as an engine does (ST4).
async fn until_answered<T, C>(call: impl Fn() -> C) -> T
where
    C: Future<Output = Result<T, StoreError>>,
{
    let answered = async {
        loop {
            match call().await {
                Ok(answer) => return answer,
                Err(error) => assert!(
                    error.is_ambiguous() || error.kind() == StoreErrorKind::Unreachable,
                    "{error}"
                ),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(4 * SOON, answered).await.unwrap()
}

/// A prefix that no other test has.
fn prefix() -> String {
    format!("test-{:032x}:", SystemEntropy.next_u128())
}

fn fingerprint() -> Fingerprint {
    let body = Some(BodyPart { digest: [9; 32], length: 17, extent: Extent::Whole });
    Fingerprint { algorithm: Algorithm::from_u32(1), head: [1; 32], body }
}

fn claim(id: OperationId) -> Claim {
    Claim {
        id,
        owner: Owner::new(&SystemEntropy),
        fingerprint: fingerprint(),
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

/// The key of an operation, as operators see it in Redis.
fn key(prefix: &str, id: &OperationId) -> String {
    let digits: String = id.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{prefix}{digits}")
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
