//! What operators see and change: `Inspect`.

use std::time::Duration;

use retrysafe_core::{
    Acquired, Claim, Counts, Found, Held, Inspect as _, Operated, OperationId, Resolution, State,
};

use super::{Case, LONG, WITH_LEASE, assert_is, fingerprint};
use crate::Fixture;

/// In flight, lapsed, given up, finished, released, and none.
pub async fn inspect_shows_every_state<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    assert_eq!(case.store.get(&case.id).await.expect("get"), None);

    let owner = case.acquire(&case.short_claim()).await;
    let entry = case.store.get(&case.id).await.expect("get").expect("in flight");
    assert_is!(
        entry.state,
        State::InFlight { lease_left } if !lease_left.is_zero() && lease_left <= fixture.tick(),
        "in flight"
    );
    assert_eq!((entry.id, entry.attempt, entry.fence), (case.id, 1, owner.fence));
    assert_eq!(entry.fingerprint, fingerprint(1));
    assert!(!entry.previous_vanished);
    assert!(entry.expires_in > Duration::ZERO && entry.expires_in <= LONG);

    case.lapse().await;
    assert_is!(case.state().await, Some(State::Lapsed), "lapsed");

    let owner = case.acquire(&case.take_over()).await;
    let entry = case.store.get(&case.id).await.expect("get").expect("taken over");
    assert_eq!((entry.attempt, entry.previous_vanished), (2, true));
    assert_eq!(case.give_up(&owner).await, Held::Applied);
    assert_is!(case.state().await, Some(State::Lapsed), "given up");

    let owner = case.acquire(&case.take_over()).await;
    assert_eq!(case.complete(&owner, "done").await, Held::Applied);
    assert_is!(
        case.state().await,
        Some(State::Finished { payload }) if payload == "done",
        "finished"
    );

    let case = case.another();
    let owner = case.acquire(&case.claim()).await;
    assert_eq!(case.release(&owner).await, Held::Applied);
    let entry = case.store.get(&case.id).await.expect("get").expect("released");
    assert_is!(entry.state, State::Released, "released");
    assert_eq!((entry.attempt, entry.fence), (1, owner.fence));
}

/// Every record once, in the order of the ids, however large the pages.
pub async fn inspect_pages_in_order<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let mut ids = Vec::new();
    for n in 0..40_u8 {
        let mut id = *case.another().id.as_bytes();
        // Some differ in the first byte, from 0x00 to 0xff, and some only in the last.
        match n % 4 {
            0 => id[0] = n.wrapping_mul(13),
            1 => id[0] = 0xff - n / 4,
            2 => {
                id = *case.id.as_bytes();
                id[31] = n;
            }
            _ => id[0] = n / 4,
        }
        let case = Case { id: OperationId::from_bytes(id), ..case.another() };
        case.acquire(&case.claim()).await;
        ids.push(case.id);
    }
    ids.sort_unstable();
    for limit in [1, 7, 1000] {
        let mut seen: Vec<OperationId> = Vec::new();
        loop {
            let page = case.store.page(seen.last(), limit).await.expect("page");
            assert!(page.len() <= limit, "a page is bounded");
            if page.is_empty() {
                break;
            }
            seen.extend(page.into_iter().map(|entry| entry.id));
        }
        assert!(seen.is_sorted(), "in the order of the ids");
        seen.retain(|id| ids.contains(id));
        assert_eq!(seen, ids, "every record once, in pages of {limit}");
    }
    assert!(case.store.page(None, 0).await.expect("page").is_empty());
}

/// Expired records are not counted.
pub async fn inspect_counts_by_state<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let before = case.store.count().await.expect("count");
    for n in 0..10 {
        let case = case.another();
        let owner = case.acquire(&case.claim()).await;
        let held = match n {
            0..4 => Held::Applied,
            4..7 => case.give_up(&owner).await,
            7..9 => case.complete(&owner, "done").await,
            _ => case.release(&owner).await,
        };
        assert_eq!(held, Held::Applied);
    }
    let counts = Counts {
        in_flight: before.in_flight + 4,
        lapsed: before.lapsed + 3,
        finished: before.finished + 2,
        released: before.released + 1,
    };
    assert_eq!(case.store.count().await.expect("count"), counts);

    let case = case.another();
    case.acquire(&Claim { retention: fixture.tick(), ..case.short_claim() }).await;
    case.lapse().await;
    assert_eq!(case.store.count().await.expect("count"), counts, "expired records are not counted");
}

/// A live lease is not touched; an unknown or kept outcome is gone, its counters are not.
pub async fn inspect_forget_frees_what_is_over<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    assert_is!(case.store.forget(&case.id).await, Ok(Operated::NotFound), "nothing to forget");

    let claim = case.claim();
    let owner = case.acquire(&claim).await;
    assert_is!(case.store.forget(&case.id).await, Ok(Operated::Refused), "a live lease");
    assert_eq!(case.complete(&owner, "done").await, Held::Applied, "it was not touched");
    assert_is!(case.store.forget(&case.id).await, Ok(Operated::Applied), "finished");
    assert_is!(case.store.forget(&case.id).await, Ok(Operated::NotFound), "forgotten already");
    assert_is!(case.state().await, Some(State::Released), "its counters stay");
    let next = case.acquire(&case.claim()).await;
    assert!(next.attempt == 2 && next.fence > owner.fence, "ST5: the counters stay");
    assert_eq!(case.release(&next).await, Held::Applied);
    assert_is!(case.store.forget(&case.id).await, Ok(Operated::NotFound), "released");

    // An unknown outcome; its owner is still somewhere.
    let case = case.another();
    let owner = case.acquire(&case.short_claim()).await;
    case.lapse().await;
    assert_is!(case.store.forget(&case.id).await, Ok(Operated::Applied), "lapsed");
    for verb in WITH_LEASE {
        let held = case.held(verb, &owner).await;
        assert_eq!(held, Held::Lost(Found::Free), "the late owner's {verb:?}");
    }
    assert_is!(case.acquired(&case.claim()).await, Acquired { attempt: 2, .. }, "ST5");
}

/// It did not happen: the key is free, and the attempt is over.
pub async fn inspect_resolve_frees_what_did_not_happen<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let owner = case.acquire(&case.short_claim()).await;
    case.lapse().await;
    let resolved = case.store.resolve(&case.id, 1, Resolution::DidNotHappen).await;
    assert_is!(resolved, Ok(Operated::Applied), "lapsed");
    assert_eq!(case.complete(&owner, "late").await, Held::Lost(Found::Free), "it is over");
    assert_eq!(case.release(&owner).await, Held::Lost(Found::Free), "it is over");
    let next = case.acquired(&case.claim()).await;
    assert!(next.attempt == 2 && next.fence > owner.fence, "ST5: the counters stay");
}

/// It happened: the payload answers retries, and the attempt is over.
pub async fn inspect_resolve_keeps_what_happened<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let owner = case.acquire(&case.claim()).await;
    assert_eq!(case.give_up(&owner).await, Held::Applied);
    let happened = |retention| Resolution::Happened { payload: "it did".into(), retention };
    let resolved = case.store.resolve(&case.id, 1, happened(LONG)).await;
    assert_is!(resolved, Ok(Operated::Applied), "given up");
    case.assert_finished_with("it did", "resolved").await;
    assert_is!(
        case.complete(&owner, "late").await,
        Held::Lost(Found::Finished { payload, .. }) if payload == "it did",
        "the late owner's completion"
    );
    assert_is!(
        case.found(&case.claim()).await,
        Found::Finished { fingerprint: kept, .. } if kept == fingerprint(1),
        "the request's fingerprint stays"
    );

    let case = case.another();
    let owner = case.acquire(&case.claim()).await;
    assert_eq!(case.give_up(&owner).await, Held::Applied);
    let resolved = case.store.resolve(&case.id, 1, happened(fixture.tick())).await;
    assert_is!(resolved, Ok(Operated::Applied), "given up");
    case.lapse().await;
    assert_is!(case.acquired(&case.claim()).await, Acquired { attempt: 1, .. }, "its retention");
}

/// Only an unknown outcome, and only that of the attempt that the operator saw.
pub async fn inspect_resolve_needs_an_unknown_outcome<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let resolve = async |seen| {
        let happened = Resolution::Happened { payload: "guess".into(), retention: LONG };
        case.store.resolve(&case.id, seen, happened).await.expect("resolve")
    };
    assert_eq!(resolve(1).await, Operated::NotFound, "no record");
    let owner = case.acquire(&case.claim()).await;
    assert_eq!(resolve(1).await, Operated::Refused, "a live lease");
    assert_eq!(case.give_up(&owner).await, Held::Applied);
    assert_eq!(resolve(2).await, Operated::Refused, "an attempt that was not seen");
    assert_eq!(resolve(0).await, Operated::Refused, "an attempt that was not seen");
    let second = case.acquire(&case.take_over()).await;
    assert_eq!(case.give_up(&second).await, Held::Applied);
    assert_eq!(resolve(1).await, Operated::Refused, "an earlier attempt");
    let third = case.acquire(&case.take_over()).await;
    assert_eq!(case.release(&third).await, Held::Applied);
    assert_eq!(resolve(3).await, Operated::Refused, "released");
    let fourth = case.acquire(&case.claim()).await;
    assert_eq!(case.complete(&fourth, "done").await, Held::Applied);
    assert_eq!(resolve(4).await, Operated::Refused, "finished");
    case.assert_finished_with("done", "nothing changed").await;
}
