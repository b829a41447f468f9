//! Who holds an operation: ST1, ST3 to ST6, one call after the other.

use std::time::Duration;

use retrysafe_core::{
    Acquired, Begin, Claim, Fingerprint, Found, Held, Inspect as _, Lease, State,
};

use super::{Case, LONG, WITH_LEASE, assert_is, fingerprint};
use crate::{Fixture, Verb};

/// Of two claims the first is granted, as attempt 1.
pub async fn st1_a_free_key_is_granted<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let acquired = case.acquired(&case.claim()).await;
    assert_is!(acquired, Acquired { attempt: 1, previous_vanished: false, .. }, "ST1");
    assert_is!(
        case.found(&case.claim()).await,
        Found::InFlight { attempt: 1, lease_left, fingerprint: kept }
            if !lease_left.is_zero() && lease_left <= LONG && kept == fingerprint(1),
        "ST1: the second claim finds the first"
    );
}

/// A stranger's calls are lost and change nothing.
pub async fn st3_only_the_owner_holds<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let owner = case.acquire(&case.claim()).await;
    let stranger = Lease { owner: case.claim().owner, ..owner.clone() };
    for verb in WITH_LEASE {
        let rule = format!("ST3 {verb:?}");
        let held = case.held(verb, &stranger).await;
        assert_is!(held, Held::Lost(Found::InFlight { attempt: 1, .. }), rule);
        assert_is!(case.state().await, Some(State::InFlight { .. }), rule);
    }
    assert_eq!(case.complete(&owner, "own").await, Held::Applied, "ST3: the owner is undisturbed");
    for verb in WITH_LEASE {
        let rule = format!("ST3: {verb:?} after the outcome");
        assert_is!(case.held(verb, &stranger).await, Held::Lost(Found::Finished { .. }), rule);
        case.assert_finished_with("own", &rule).await;
    }
}

/// A lapsed lease that nobody took over: its owner renews and completes.
pub async fn st3_a_lapsed_attempt_is_still_its_owners<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let owner = case.acquire(&case.short_claim()).await;
    case.lapse().await;
    assert_is!(case.found(&case.claim()).await, Found::Lapsed { attempt: 1, .. }, "lapsed");
    assert_eq!(case.renew(&owner, fixture.tick()).await, Held::Applied, "ST3: renewed");
    assert_is!(case.found(&case.claim()).await, Found::InFlight { .. }, "live again");
    case.lapse().await;
    assert_eq!(case.complete(&owner, "late").await, Held::Applied, "ST3: completed");
    case.assert_finished_with("late", "ST3").await;

    let case = case.another();
    let owner = case.acquire(&case.short_claim()).await;
    case.lapse().await;
    assert_eq!(case.release(&owner).await, Held::Applied, "ST3: released");
    assert_is!(case.state().await, Some(State::Released), "ST3: released");
}

/// Who gave up holds nothing any more.
pub async fn st3_an_attempt_that_gave_up_is_over<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let claim = case.claim();
    let owner = case.acquire(&claim).await;
    assert_eq!(case.give_up(&owner).await, Held::Applied);
    for verb in [Verb::Renew, Verb::Complete, Verb::Release] {
        let held = case.held(verb, &owner).await;
        assert_is!(held, Held::Lost(Found::Lapsed { attempt: 1, .. }), format!("ST3 {verb:?}"));
    }
    assert_is!(case.state().await, Some(State::Lapsed), "ST3: given up");
    let taken = case.acquired(&case.take_over()).await;
    assert_is!(taken, Acquired { attempt: 2, previous_vanished: true, .. }, "ST6: at once");
}

/// Verbs that need a lease, on an operation that has no record.
pub async fn st3_what_is_not_there_is_lost<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let nobody = Lease { id: case.id, owner: case.claim().owner, attempt: 1, fence: 1 };
    for verb in WITH_LEASE {
        assert_eq!(case.held(verb, &nobody).await, Held::Lost(Found::Free), "ST3 {verb:?}");
    }
    assert_eq!(case.store.get(&case.id).await.expect("get"), None, "ST3: nothing came to be");
}

/// A repeated `begin` is the same call, and does not extend the lease.
pub async fn st4_same_owner_reclaims<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let claim = Claim { lease: fixture.tick() * 4, take_over: true, ..case.claim() };
    let first = case.begin(&claim).await;
    assert_eq!(case.begin(&claim).await, first, "ST4: repeated at once");
    case.ticks(2).await;
    assert_eq!(case.begin(&claim).await, first, "ST4: repeated later");
    assert_is!(
        case.found(&case.claim()).await,
        Found::InFlight { lease_left, .. } if lease_left <= fixture.tick() * 2,
        "ST4: the lease was not extended"
    );
    case.ticks(3).await;
    assert_eq!(case.begin(&claim).await, first, "ST4: repeated after the lapse");
    assert_is!(case.found(&case.claim()).await, Found::Lapsed { attempt: 1, .. }, "ST4: lapsed");

    let second = case.acquired(&case.take_over()).await;
    assert_is!(
        case.found(&Claim { take_over: false, ..claim }).await,
        Found::InFlight { attempt: 2, .. },
        "ST4: a later attempt has begun since"
    );
    assert_is!(second, Acquired { attempt: 2, .. }, "ST5");
}

/// `complete` again: applied, with the outcome that was kept first.
pub async fn st4_a_repeated_complete_changes_nothing<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let owner = case.acquire(&case.claim()).await;
    assert_eq!(case.complete(&owner, "first").await, Held::Applied);
    assert_eq!(case.complete(&owner, "first").await, Held::Applied, "ST4");
    assert_eq!(case.complete(&owner, "other").await, Held::Applied, "ST4");
    case.assert_finished_with("first", "ST4: nothing changed").await;
    assert_is!(case.release(&owner).await, Held::Lost(Found::Finished { .. }), "ST3: it is over");
    case.assert_finished_with("first", "ST3: nothing changed").await;
}

/// `release` again: applied, and a later attempt is not touched.
pub async fn st4_a_repeated_release_changes_nothing<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let owner = case.acquire(&case.claim()).await;
    assert_eq!(case.release(&owner).await, Held::Applied);
    assert_eq!(case.release(&owner).await, Held::Applied, "ST4");
    assert_eq!(case.complete(&owner, "late").await, Held::Lost(Found::Free), "ST3");
    assert_eq!(case.renew(&owner, LONG).await, Held::Lost(Found::Free), "ST3");
    let later = case.acquire(&case.claim()).await;
    assert_is!(
        case.release(&owner).await,
        Held::Lost(Found::InFlight { attempt: 2, .. }),
        "ST4: a later attempt has begun since"
    );
    assert_eq!(case.complete(&later, "second").await, Held::Applied);
    case.assert_finished_with("second", "ST4").await;
}

/// Giving up again: applied, and a later attempt is not touched.
pub async fn st4_a_repeated_give_up_changes_nothing<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let owner = case.acquire(&case.claim()).await;
    assert_eq!(case.give_up(&owner).await, Held::Applied);
    assert_eq!(case.give_up(&owner).await, Held::Applied, "ST4");
    case.acquire(&case.take_over()).await;
    assert_is!(
        case.give_up(&owner).await,
        Held::Lost(Found::InFlight { attempt: 2, .. }),
        "ST4: a later attempt has begun since"
    );
}

/// A `begin` that arrives late, after its owner released, gave up or completed.
pub async fn st4_a_late_begin_changes_nothing<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let claim = case.take_over();
    let owner = case.acquire(&claim).await;
    assert_eq!(case.release(&owner).await, Held::Applied);
    assert_eq!(case.begin(&claim).await, Begin::Found(Found::Free), "ST4: after its release");
    assert_is!(case.state().await, Some(State::Released), "ST4: nothing changed");
    assert_is!(case.acquired(&case.claim()).await, Acquired { attempt: 2, .. }, "ST4");

    let case = case.another();
    let claim = case.take_over();
    let owner = case.acquire(&claim).await;
    assert_eq!(case.give_up(&owner).await, Held::Applied);
    assert_is!(case.found(&claim).await, Found::Lapsed { attempt: 1, .. }, "ST4: after it gave up");
    assert_is!(case.state().await, Some(State::Lapsed), "ST4: nothing changed");

    let case = case.another();
    let claim = case.take_over();
    let owner = case.acquire(&claim).await;
    assert_eq!(case.complete(&owner, "done").await, Held::Applied);
    assert_is!(case.found(&claim).await, Found::Finished { .. }, "ST4: after it completed");
}

/// A `renew` that arrives late, after its owner released, gave up or completed.
pub async fn st4_a_late_renew_changes_nothing<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let owner = case.acquire(&case.claim()).await;
    assert_eq!(case.release(&owner).await, Held::Applied);
    assert_eq!(case.renew(&owner, LONG).await, Held::Lost(Found::Free), "ST4");
    assert_eq!(case.give_up(&owner).await, Held::Lost(Found::Free), "ST4");
    assert_is!(case.state().await, Some(State::Released), "ST4: nothing changed");

    let case = case.another();
    let owner = case.acquire(&case.claim()).await;
    assert_eq!(case.give_up(&owner).await, Held::Applied);
    assert_is!(case.renew(&owner, LONG).await, Held::Lost(Found::Lapsed { .. }), "ST4");
    assert_is!(case.state().await, Some(State::Lapsed), "ST4: nothing changed");

    let case = case.another();
    let owner = case.acquire(&case.claim()).await;
    assert_eq!(case.complete(&owner, "done").await, Held::Applied);
    assert_is!(case.renew(&owner, LONG).await, Held::Lost(Found::Finished { .. }), "ST4");
    assert_is!(case.give_up(&owner).await, Held::Lost(Found::Finished { .. }), "ST4");
    case.assert_finished_with("done", "ST4: nothing changed").await;
}

/// Who never heard whether its claim was granted knows neither attempt nor fence (D5).
pub async fn st4_a_claim_without_an_answer_can_be_released<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    case.acquire(&case.claim()).await;
    let case = case.another();
    let claim = case.claim();
    case.begin(&claim).await;
    let unanswered = Lease { id: claim.id, owner: claim.owner, attempt: 0, fence: 0 };
    assert_eq!(case.release(&unanswered).await, Held::Applied, "ST4");
    assert_is!(case.acquired(&case.claim()).await, Acquired { attempt: 2, .. }, "ST5");
}

/// Across take-overs, releases and what operators free.
pub async fn st5_the_fence_grows<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let mut last = case.acquire(&case.claim()).await;
    for round in 0..12 {
        match round % 4 {
            0 => assert_eq!(case.give_up(&last).await, Held::Applied),
            1 => assert_eq!(case.release(&last).await, Held::Applied),
            2 => {
                assert_eq!(case.complete(&last, "done").await, Held::Applied);
                let _ = case.store.forget(&case.id).await.expect("forget");
            }
            _ => {
                assert_eq!(case.renew(&last, fixture.tick()).await, Held::Applied);
                case.lapse().await;
            }
        }
        let next = case.acquire(&case.take_over()).await;
        assert!(next.fence > last.fence, "ST5: {} after {}", next.fence, last.fence);
        assert_eq!(next.attempt, last.attempt + 1, "ST5: attempts are counted one by one");
        last = next;
    }
}

/// Without leave a lapsed attempt is only found.
pub async fn st6_a_take_over_must_be_allowed<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    case.acquire(&case.short_claim()).await;
    case.lapse().await;
    for _ in 0..2 {
        assert_is!(case.found(&case.claim()).await, Found::Lapsed { attempt: 1, .. }, "ST6");
    }
    let taken = case.acquired(&case.take_over()).await;
    assert_is!(taken, Acquired { attempt: 2, previous_vanished: true, .. }, "ST6");
}

/// As far as both fingerprints are known; the claim's is the record's from then on.
pub async fn st6_a_take_over_must_be_of_the_same_request<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let unread = Fingerprint { body: None, ..fingerprint(1) };
    let first = case.acquire(&Claim { fingerprint: unread.clone(), ..case.claim() }).await;
    assert_eq!(case.give_up(&first).await, Held::Applied);
    let other = Claim { fingerprint: fingerprint(2), ..case.take_over() };
    assert_is!(
        case.found(&other).await,
        Found::Lapsed { attempt: 1, fingerprint: kept } if kept == unread,
        "ST6: another request"
    );
    let second = case.acquire(&case.take_over()).await;
    assert_is!(
        case.found(&case.claim()).await,
        Found::InFlight { fingerprint: kept, .. } if kept == fingerprint(1),
        "ST6: the claim's fingerprint is kept"
    );
    assert_eq!(case.give_up(&second).await, Held::Applied);
    let mut body = fingerprint(1);
    body.body = fingerprint(2).body;
    let other = Claim { fingerprint: body, ..case.take_over() };
    assert_is!(case.found(&other).await, Found::Lapsed { attempt: 2, .. }, "ST6: another body");
    case.acquire(&Claim { fingerprint: unread, ..case.take_over() }).await;

    // A released key is free for any request.
    let case = case.another();
    let first = case.acquire(&case.claim()).await;
    assert_eq!(case.release(&first).await, Held::Applied);
    case.acquire(&Claim { fingerprint: fingerprint(2), ..case.claim() }).await;
    assert_is!(
        case.found(&case.claim()).await,
        Found::InFlight { fingerprint: kept, .. } if kept == fingerprint(2),
        "the claim's fingerprint is kept"
    );
}

/// Whatever the claim allows.
pub async fn st6_a_live_lease_is_never_taken_over<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let owner = case.acquire(&case.claim()).await;
    assert_is!(case.found(&case.take_over()).await, Found::InFlight { .. }, "ST6");
    case.ticks(3).await;
    assert_is!(case.found(&case.take_over()).await, Found::InFlight { .. }, "ST6");
    assert_eq!(case.renew(&owner, fixture.tick() * 4).await, Held::Applied);
    case.ticks(1).await;
    assert_is!(case.found(&case.take_over()).await, Found::InFlight { .. }, "ST6: renewed");
    assert_eq!(case.complete(&owner, "own").await, Held::Applied);
}

/// `previous_vanished` outlives a release and ends with an outcome.
pub async fn st6_a_vanished_attempt_is_remembered_until_one_completes<F: Fixture>(fixture: &F) {
    let vanished = |acquired: Acquired| acquired.previous_vanished;
    let case = Case::new(fixture).await;
    let first = case.acquire(&case.claim()).await;
    assert_eq!(case.give_up(&first).await, Held::Applied);
    let second = case.acquire(&case.take_over()).await;
    assert_eq!(case.release(&second).await, Held::Applied);
    let claim = case.claim();
    assert!(vanished(case.acquired(&claim).await), "across a release");
    let third = case.acquire(&claim).await;
    assert!(vanished(case.acquired(&claim).await), "in a repeated claim");
    assert_eq!(case.complete(&third, "done").await, Held::Applied);
    let _ = case.store.forget(&case.id).await.expect("forget");
    assert!(!vanished(case.acquired(&case.claim()).await), "until one completes");

    // A release alone is not a vanished attempt.
    let case = case.another();
    let first = case.acquire(&case.claim()).await;
    assert_eq!(case.release(&first).await, Held::Applied);
    let claim = Claim { lease: Duration::from_secs(60), ..case.claim() };
    assert!(!vanished(case.acquired(&claim).await), "a released attempt did not vanish");
}
