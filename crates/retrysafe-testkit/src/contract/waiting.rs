//! `changed`: who waits is told.

use std::{future::Future, time::Duration};

use retrysafe_core::{Held, Store as _};

use super::{Case, LONG};
use crate::Fixture;

/// Real time within which anything that need not wait has happened. The slower a store, the longer
/// its tick, and the short lease that some of these wait for.
fn soon<F: Fixture>(fixture: &F) -> Duration {
    Duration::from_secs(10) + fixture.tick() * 6
}

/// No record, another attempt, and every state but in flight.
pub async fn changed_returns_at_once_if_there_is_nothing_to_wait_for<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    ends(fixture, "no record", case.store.changed(&case.id, 1, LONG)).await;

    let owner = case.acquire(&case.claim()).await;
    ends(fixture, "another attempt", case.store.changed(&case.id, 2, LONG)).await;
    assert_eq!(case.give_up(&owner).await, Held::Applied);
    ends(fixture, "given up", case.store.changed(&case.id, 1, LONG)).await;
    let owner = case.acquire(&case.take_over()).await;
    ends(fixture, "an earlier attempt", case.store.changed(&case.id, 1, LONG)).await;
    assert_eq!(case.release(&owner).await, Held::Applied);
    ends(fixture, "released", case.store.changed(&case.id, 2, LONG)).await;
    let owner = case.acquire(&case.claim()).await;
    assert_eq!(case.complete(&owner, "done").await, Held::Applied);
    ends(fixture, "finished", case.store.changed(&case.id, 3, LONG)).await;

    let case = case.another();
    case.acquire(&case.short_claim()).await;
    case.lapse().await;
    ends(fixture, "lapsed", case.store.changed(&case.id, 1, LONG)).await;
}

/// By an outcome, a release, and an attempt that gives up, from any handle, many times over: a wait
/// that begins while the change happens must not miss it. A wait that is dropped is nobody's loss.
pub async fn changed_is_woken<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let other = fixture.handle().await;
    for round in 0..fixture.rounds().min(60) {
        let case = case.another();
        let owner = case.acquire(&case.claim()).await;
        let waits: Vec<_> = (0..3)
            .map(|_| {
                let (store, id) = (case.store.clone(), case.id);
                tokio::spawn(async move { store.changed(&id, 1, LONG).await })
            })
            .collect();
        let dropped = other.changed(&case.id, 1, LONG);
        let _ = tokio::time::timeout(Duration::ZERO, dropped).await;
        if round % 2 == 0 {
            // Half of the time the waiters are likely to wait already, half of the time not.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
        }
        let from = if round % 4 < 2 { &other } else { &*case.store };
        let print = super::fingerprint(1);
        let held = match round % 3 {
            0 => from.complete(&owner, &print, "done".into(), LONG).await,
            1 => from.release(&owner, LONG).await,
            _ => from.renew(&owner, Duration::ZERO).await,
        };
        assert_eq!(held.expect("a change"), Held::Applied);
        for wait in waits {
            ends(fixture, "a waiter", async { wait.await.expect("no panic") }).await;
        }
    }
}

/// At the latest when the lease ends, nobody having changed anything.
pub async fn changed_ends_with_the_lease<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    case.acquire(&case.short_claim()).await;
    ends(fixture, "the lease's end", case.store.changed(&case.id, 1, LONG)).await;
}

/// At the latest when the time that it was given is over, and after it begins anew.
pub async fn changed_ends_within<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    case.acquire(&case.claim()).await;
    for within in [Duration::ZERO, Duration::from_millis(1), Duration::from_millis(50)] {
        ends(fixture, "its time", case.store.changed(&case.id, 1, within)).await;
    }
}

async fn ends<F: Fixture>(
    fixture: &F,
    what: &str,
    changed: impl Future<Output = Result<(), retrysafe_core::StoreError>>,
) {
    match tokio::time::timeout(soon(fixture), changed).await {
        Ok(answer) => answer.expect("changed"),
        Err(_) => panic!("changed should have ended: {what}"),
    }
}
