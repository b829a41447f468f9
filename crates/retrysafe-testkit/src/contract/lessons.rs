//! Mistakes that released systems made, each under the name it has among ours.

use std::time::Duration;

use bytes::Bytes;
use retrysafe_core::{
    Acquired, Begin, Claim, Found, Held, Inspect as _, State, Store as _, StoreErrorKind,
};

use super::{Case, assert_is, claim, fingerprint, operation, races::race};
use crate::{Fixture, Verb};

/// Get, run, set: eight concurrent requests, eight executions.
pub async fn check_then_set<F: Fixture>(fixture: &F) {
    for _ in 0..fixture.rounds().min(50) {
        let case = Case::new(fixture).await;
        let begun = race(std::slice::from_ref(&case.store), 8, |_, store| async move {
            store.begin(&claim(case.id)).await.expect("begin")
        })
        .await;
        let granted = begun.iter().filter(|begun| matches!(begun, Begin::Acquired(_))).count();
        assert_eq!(granted, 1, "check_then_set: executions");
    }
}

/// An expired-lease take-over overwrote a record that had completed in between.
pub async fn stale_takeover<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let owner = case.acquire(&case.short_claim()).await;
    case.lapse().await;
    let observer = case.claim();
    assert_is!(case.found(&observer).await, Found::Lapsed { .. }, "observed");
    assert_eq!(case.complete(&owner, "done").await, Held::Applied);
    let late = Claim { take_over: true, ..observer };
    assert_is!(case.found(&late).await, Found::Finished { .. }, "stale_takeover");
    case.assert_finished_with("done", "stale_takeover").await;
}

/// A rejected duplicate's error path deleted the running owner's record.
pub async fn loser_frees_owner<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let owner = case.acquire(&case.claim()).await;
    let duplicate = case.claim();
    assert_is!(case.found(&duplicate).await, Found::InFlight { .. }, "rejected");
    let of_duplicate = retrysafe_core::Lease { owner: duplicate.owner, ..owner.clone() };
    assert_is!(
        case.release(&of_duplicate).await,
        Held::Lost(Found::InFlight { attempt: 1, .. }),
        "loser_frees_owner"
    );
    assert_is!(case.found(&case.claim()).await, Found::InFlight { .. }, "loser_frees_owner");
    assert_eq!(case.complete(&owner, "done").await, Held::Applied, "loser_frees_owner");
}

/// An owner that outlived its lease overwrote, or deleted, its successor's record.
pub async fn unfenced_complete<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let outlived = case.acquire(&case.short_claim()).await;
    case.lapse().await;
    let successor = case.acquire(&case.take_over()).await;
    for verb in [Verb::Complete, Verb::Release, Verb::GiveUp] {
        assert_is!(
            case.held(verb, &outlived).await,
            Held::Lost(Found::InFlight { attempt: 2, .. }),
            format!("unfenced_complete: {verb:?}")
        );
    }
    assert_eq!(case.complete(&successor, "second").await, Held::Applied, "unfenced_complete");
    for verb in [Verb::Complete, Verb::Release] {
        assert_is!(
            case.held(verb, &outlived).await,
            Held::Lost(Found::Finished { payload, .. }) if payload == "second",
            format!("unfenced_complete: {verb:?} after the outcome")
        );
    }
    case.assert_finished_with("second", "unfenced_complete").await;
}

/// An absent lease was read as an expired one: two ran at once. No lease is absent here, but one
/// can be so long that its end can't be written.
pub async fn missing_deadline<F: Fixture>(fixture: &F) {
    const EVER: [Duration; 4] = [
        Duration::MAX,
        Duration::from_nanos(u64::MAX),
        Duration::from_millis(i64::MAX as u64),
        Duration::from_secs(i64::MAX as u64),
    ];
    let case = Case::new(fixture).await;
    for ever in EVER {
        let case = case.another();
        let claim = Claim { lease: ever, retention: ever, ..case.claim() };
        let owner = case.acquire(&claim).await;
        case.ticks(1).await;
        assert_is!(
            case.found(&case.take_over()).await,
            Found::InFlight { .. },
            format!("missing_deadline: a lease of {ever:?}")
        );
        assert_eq!(case.renew(&owner, ever).await, Held::Applied);
        assert_is!(case.state().await, Some(State::InFlight { .. }), "missing_deadline: renewed");
        let held = case.store.complete(&owner, &fingerprint(1), "done".into(), ever).await;
        assert_eq!(held.expect("complete"), Held::Applied);
        case.assert_finished_with("done", "missing_deadline: a retention").await;

        let case = case.another();
        let owner = case.acquire(&case.claim()).await;
        let held = case.store.release(&owner, ever).await.expect("release");
        assert_eq!(held, Held::Applied);
        let next = case.acquired(&case.claim()).await;
        assert_is!(next, Acquired { attempt: 2, .. }, "missing_deadline: counters");
    }
}

/// A crash left a key in progress for three days.
pub async fn crash_wedges<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    case.acquire(&case.short_claim()).await;
    case.lapse().await;
    let taken = case.acquired(&case.take_over()).await;
    let expected = Acquired { previous_vanished: true, ..taken };
    assert_eq!(taken, expected, "crash_wedges: the key is usable once the lease is over");

    // Where nobody may take over, it is usable once the retention is over.
    let case = case.another();
    case.acquire(&Claim { retention: fixture.tick() * 3, ..case.short_claim() }).await;
    case.lapse().await;
    assert_is!(case.found(&case.claim()).await, Found::Lapsed { .. }, "crash_wedges");
    case.lapse().await;
    assert_is!(case.begin(&case.claim()).await, Begin::Acquired(_), "crash_wedges");
}

/// The cache evicted a live claim: double execution.
pub async fn capacity_evicts<F: Fixture>(fixture: &F) {
    const ROOM: usize = 4;
    let Some(store) = fixture.small(ROOM).await else {
        return;
    };
    let claims: Vec<_> = (0..ROOM).map(|_| claim(operation())).collect();
    for claim in &claims {
        assert_is!(store.begin(claim).await, Ok(Begin::Acquired(_)), "there is room");
    }
    for _ in 0..20 {
        let refused = store.begin(&claim(operation())).await.expect_err("capacity_evicts");
        assert_eq!(refused.kind(), StoreErrorKind::Full, "capacity_evicts");
    }
    for held in &claims {
        let other = store.begin(&claim(held.id)).await.expect("begin");
        assert_is!(other, Begin::Found(Found::InFlight { .. }), "capacity_evicts");
    }
}

/// After the stored response expired the key answered 409 for ever.
pub async fn expired_answers_409<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let owner = case.acquire(&case.claim()).await;
    let brief = fixture.tick();
    let held = case.store.complete(&owner, &fingerprint(1), "done".into(), brief).await;
    assert_eq!(held.expect("complete"), Held::Applied);
    case.lapse().await;
    let anew = case.acquired(&case.claim()).await;
    assert_is!(anew, Acquired { attempt: 1, .. }, "expired_answers_409");
}

/// A record of another version was deleted and run again during an upgrade.
pub async fn undecodable_deleted<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let owner = case.acquire(&case.claim()).await;
    assert_eq!(case.complete(&owner, "done").await, Held::Applied);
    if !fixture.spoil(&case.id).await {
        return;
    }
    for _ in 0..2 {
        let refused = case.store.begin(&case.take_over()).await.expect_err("undecodable_deleted");
        assert_eq!(refused.kind(), StoreErrorKind::Unreadable, "undecodable_deleted: begin");
        let refused = case.store.get(&case.id).await.expect_err("undecodable_deleted");
        assert_eq!(refused.kind(), StoreErrorKind::Unreadable, "undecodable_deleted: get");
        // Whatever else touches it leaves it there for the version that can read it.
        let _ = case.store.release(&owner, Duration::ZERO).await;
        let _ = case.store.forget(&case.id).await;
        let _ = case.store.sweep(1000).await;
    }
}

/// The body went through a string.
pub async fn binary_body_lost<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let owner = case.acquire(&case.claim()).await;
    let body = Bytes::from_static(&[0xff, 0x00, 0xc3, 0x28, 0x0d, 0x0a, 0xed, 0xa0, 0x80]);
    assert_eq!(case.complete(&owner, body.clone()).await, Held::Applied);
    assert_is!(
        case.found(&case.claim()).await,
        Found::Finished { payload, .. } if payload == body,
        "binary_body_lost"
    );
}
