//! Callers at once, each of which waits for its own answers.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::join_all;
use retrysafe_axum::{Begin, Claim, Held, Lease, Store};

use super::RETENTION;
use crate::{Outcome, size};

/// What a caller does an operation with: a store, or its driver by hand.
pub(super) trait Side: Send + 'static {
    /// What is made before the clock starts.
    type Operation: Send + Sync + 'static;
    /// What beginning it earned.
    type Held: Send;

    fn operation(&self) -> Self::Operation;

    fn begin(
        &mut self,
        operation: &Self::Operation,
    ) -> impl Future<Output = Outcome<Self::Held>> + Send;

    fn complete(
        &mut self,
        operation: &Self::Operation,
        held: Self::Held,
    ) -> impl Future<Output = Outcome<()>> + Send;
}

/// What is done of each operation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    Claim,
    Operation,
}

/// What a round took.
#[derive(Clone, Copy, Default)]
pub(super) struct Took {
    pub(super) per_second: f64,
    pub(super) begin: Latency,
    pub(super) complete: Latency,
}

/// In microseconds.
#[derive(Clone, Copy, Default)]
pub(super) struct Latency {
    pub(super) median: f64,
    pub(super) p99: f64,
}

/// Lets some of the callers do so many operations each.
pub(super) async fn drive<S: Side>(
    sides: &mut Vec<S>,
    callers: usize,
    turns: usize,
    work: Work,
) -> Outcome<Took> {
    let ready: Vec<_> = sides
        .drain(..callers)
        .map(|side| {
            let operations: Vec<_> = (0..turns).map(|_| side.operation()).collect();
            (side, operations)
        })
        .collect();
    let started = Instant::now();
    let running: Vec<_> =
        ready.into_iter().map(|it| tokio::spawn(call(it.0, it.1, work))).collect();
    let called = join_all(running).await;
    let took = started.elapsed();
    let (mut begins, mut completes) = (Vec::new(), Vec::new());
    for caller in called {
        let caller = caller??;
        sides.push(caller.side);
        begins.extend(caller.begins);
        completes.extend(caller.completes);
    }
    Ok(Took {
        per_second: begins.len() as f64 / took.as_secs_f64(),
        begin: Latency::of(begins),
        complete: Latency::of(completes),
    })
}

struct Called<S> {
    side: S,
    begins: Vec<Duration>,
    completes: Vec<Duration>,
}

async fn call<S: Side>(
    mut side: S,
    operations: Vec<S::Operation>,
    work: Work,
) -> Outcome<Called<S>> {
    let mut begins = Vec::with_capacity(operations.len());
    let mut completes = Vec::with_capacity(operations.len());
    for operation in &operations {
        let started = Instant::now();
        let held = side.begin(operation).await?;
        let begun = Instant::now();
        begins.push(begun - started);
        if work == Work::Operation {
            side.complete(operation, held).await?;
            completes.push(begun.elapsed());
        }
    }
    Ok(Called { side, begins, completes })
}

impl Latency {
    fn of(mut latencies: Vec<Duration>) -> Self {
        latencies.sort_unstable();
        let at = |part: f64| {
            let last = latencies.len().saturating_sub(1) as f64;
            latencies.get((last * part).round() as usize).map_or(0.0, |it| it.as_secs_f64() * 1e6)
        };
        Self { median: at(0.5), p99: at(0.99) }
    }
}

/// A caller of a store.
pub(super) struct OfStore<S> {
    pub(super) store: S,
    pub(super) payload: Bytes,
}

impl<S: Store + Clone> OfStore<S> {
    pub(super) fn callers(store: &S, payload: &Bytes, callers: usize) -> Vec<Self> {
        let caller = |_| Self { store: store.clone(), payload: payload.clone() };
        (0..callers).map(caller).collect()
    }
}

impl<S: Store> Side for OfStore<S> {
    type Operation = Claim;
    type Held = Lease;

    fn operation(&self) -> Claim {
        size::claim()
    }

    async fn begin(&mut self, claim: &Claim) -> Outcome<Lease> {
        match self.store.begin(claim).await? {
            Begin::Acquired(acquired) => Ok(Lease {
                id: claim.id,
                owner: claim.owner,
                attempt: acquired.attempt,
                fence: acquired.fence,
            }),
            Begin::Found(found) => Err(format!("a fresh key was not free: {found:?}").into()),
        }
    }

    async fn complete(&mut self, claim: &Claim, lease: Lease) -> Outcome<()> {
        let payload = self.payload.clone();
        match self.store.complete(&lease, &claim.fingerprint, payload, RETENTION).await? {
            Held::Applied => Ok(()),
            Held::Lost(found) => Err(format!("a lease was lost: {found:?}").into()),
        }
    }
}
