//! Leases, retention and room: ST7 and ST8.

use retrysafe_core::{
    Acquired, Begin, Claim, Found, Held, Inspect as _, State, Store as _, StoreErrorKind,
};

use super::{Case, LONG, WITH_LEASE, assert_is, claim, fingerprint, operation};
use crate::Fixture;

/// One clock judges for all handles.
pub async fn st7_every_handle_judges_alike<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let other = fixture.handle().await;
    let owner = case.acquire(&case.short_claim()).await;
    let seen = other.begin(&case.take_over()).await.expect("begin");
    assert_is!(seen, Begin::Found(Found::InFlight { .. }), "ST7: live for the other handle");
    case.lapse().await;
    let seen = other.begin(&case.claim()).await.expect("begin");
    assert_is!(seen, Begin::Found(Found::Lapsed { .. }), "ST7: lapsed for the other handle");
    assert_eq!(other.renew(&owner, LONG).await.expect("renew"), Held::Applied, "any handle");
    assert_is!(case.found(&case.take_over()).await, Found::InFlight { .. }, "ST7: live for both");
}

/// A renewed lease ends so long after the renewal, shorter or longer than before.
pub async fn st7_a_renewal_counts_from_now<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let owner = case.acquire(&Claim { lease: fixture.tick() * 4, ..case.claim() }).await;
    for _ in 0..3 {
        case.ticks(2).await;
        assert_eq!(case.renew(&owner, fixture.tick() * 4).await, Held::Applied);
    }
    assert_is!(case.found(&case.take_over()).await, Found::InFlight { .. }, "ST7: longer");
    assert_eq!(case.renew(&owner, LONG).await, Held::Applied);
    assert_eq!(case.renew(&owner, fixture.tick()).await, Held::Applied);
    case.lapse().await;
    assert_is!(case.found(&case.claim()).await, Found::Lapsed { .. }, "ST7: shorter");
}

/// Finished, lapsed and released records past their retention are as if they had never been.
pub async fn st8_expired_is_free_before_it_is_swept<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let finished = case.acquire(&case.claim()).await;
    let kept = case.store.complete(&finished, &fingerprint(1), "x".into(), fixture.tick()).await;
    assert_eq!(kept.expect("complete"), Held::Applied);

    let lapsed = case.another();
    let brief = Claim { retention: fixture.tick(), ..lapsed.short_claim() };
    let lapsed_owner = lapsed.acquire(&brief).await;

    let given_up = case.another();
    let brief = Claim { retention: fixture.tick(), ..given_up.claim() };
    let given_up_owner = given_up.acquire(&brief).await;
    assert_eq!(given_up.give_up(&given_up_owner).await, Held::Applied);

    let released = case.another();
    let released_owner = released.acquire(&released.claim()).await;
    let held = case.store.release(&released_owner, fixture.tick()).await;
    assert_eq!(held.expect("release"), Held::Applied);

    case.lapse().await;
    for (name, case, owner) in [
        ("finished", &case, finished),
        ("lapsed", &lapsed, lapsed_owner),
        ("given up", &given_up, given_up_owner),
        ("released", &released, released_owner),
    ] {
        assert_eq!(case.store.get(&case.id).await.expect("get"), None, "ST8 {name}: not shown");
        for verb in WITH_LEASE {
            let held = case.held(verb, &owner).await;
            assert_eq!(held, Held::Lost(Found::Free), "ST8 {name}: {verb:?}");
        }
        let anew = Claim { fingerprint: fingerprint(2), ..case.claim() };
        assert_is!(
            case.acquired(&anew).await,
            Acquired { attempt: 1, previous_vanished: false, .. },
            format!("ST8 {name}: any request may claim it, from the beginning")
        );
    }
}

/// A claim of what has expired, swept or not, holds for the whole of its own lease and retention.
pub async fn st8_a_claim_of_an_expired_record_is_whole<F: Fixture>(fixture: &F) {
    let mut expired = Vec::new();
    for name in ["finished", "lapsed", "given up", "released"] {
        let case = Case::new(fixture).await;
        let lease = if name == "lapsed" { fixture.tick() } else { LONG };
        let brief = Claim { lease, retention: fixture.tick(), ..case.claim() };
        let owner = case.acquire(&brief).await;
        let held = match name {
            "finished" => {
                let outcome = "x".into();
                case.store.complete(&owner, &fingerprint(1), outcome, fixture.tick()).await
            }
            "given up" => Ok(case.give_up(&owner).await),
            "released" => case.store.release(&owner, fixture.tick()).await,
            _ => Ok(Held::Applied),
        };
        assert_eq!(held.expect(name), Held::Applied, "{name}");
        expired.push((name, case));
    }
    fixture.pass(fixture.tick() * 2).await;
    for (name, case) in expired {
        let (lease, retention) = (fixture.tick() * 3, fixture.tick() * 6);
        case.acquire(&Claim { lease, retention, ..case.claim() }).await;
        let entry = case.store.get(&case.id).await.expect("get").expect("it was just claimed");
        // A tick is longer than it takes to ask.
        assert_is!(
            entry.state,
            State::InFlight { lease_left } if lease_left > lease - fixture.tick(),
            format!("ST8 {name}: the whole lease")
        );
        let left = entry.expires_in;
        assert!(left > retention - fixture.tick(), "ST8 {name}: the whole retention: {left:?}");
    }
}

/// A lease that is longer than the retention keeps its record.
pub async fn st8_a_live_claim_outlives_its_retention<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let owner = case.acquire(&Claim { retention: fixture.tick(), ..case.claim() }).await;
    case.lapse().await;
    while case.store.sweep(100).await.expect("sweep").more {}
    assert_is!(case.found(&case.take_over()).await, Found::InFlight { attempt: 1, .. }, "ST8");
    assert_eq!(case.renew(&owner, LONG).await, Held::Applied, "ST8");
    case.lapse().await;
    assert_eq!(case.complete(&owner, "done").await, Held::Applied, "ST8");
}

/// The counters of a released key stay as long as they were asked to, and no longer.
pub async fn st8_counters_last_as_long_as_asked<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let owner = case.acquire(&case.claim()).await;
    let held = case.store.release(&owner, fixture.tick() * 6).await.expect("release");
    assert_eq!(held, Held::Applied);
    case.ticks(3).await;
    let again = case.acquire(&case.claim()).await;
    assert!(again.attempt == 2 && again.fence > owner.fence, "ST5: within that time");
    let held = case.store.release(&again, fixture.tick()).await.expect("release");
    assert_eq!(held, Held::Applied);
    case.lapse().await;
    assert_is!(case.acquired(&case.claim()).await, Acquired { attempt: 1, .. }, "after that time");
}

/// R8: the retention of an attempt that never completes counts from its last claim or renewal.
pub async fn st8_an_unfinished_record_is_kept_from_its_last_renewal<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let claim = Claim { retention: fixture.tick() * 5, ..case.short_claim() };
    let owner = case.acquire(&claim).await;
    case.ticks(3).await;
    assert_eq!(case.renew(&owner, fixture.tick()).await, Held::Applied);
    case.ticks(3).await;
    assert_is!(case.found(&case.claim()).await, Found::Lapsed { .. }, "R8: from the renewal");
    assert_eq!(case.renew(&owner, fixture.tick()).await, Held::Applied);
    assert_eq!(case.give_up(&owner).await, Held::Applied);
    case.ticks(3).await;
    assert_is!(case.found(&case.claim()).await, Found::Lapsed { .. }, "R8: from giving up");
    case.ticks(4).await;
    assert_is!(case.acquired(&case.claim()).await, Acquired { attempt: 1, .. }, "R8: past it");
}

/// Room is made of what is past its retention, and of nothing else.
pub async fn st8_a_full_store_removes_only_what_expired<F: Fixture>(fixture: &F) {
    const ROOM: usize = 8;
    let Some(store) = fixture.small(ROOM).await else {
        return;
    };
    let mut claims = Vec::new();
    for n in 0..ROOM {
        let mut claim = claim(operation());
        if n == 0 {
            claim.lease = fixture.tick();
            claim.retention = fixture.tick();
        }
        assert_is!(store.begin(&claim).await, Ok(Begin::Acquired(_)), "ST8: there is room");
        claims.push(claim);
    }
    let refused = store.begin(&claim(operation())).await.expect_err("ST8: a full store refuses");
    assert_eq!(refused.kind(), StoreErrorKind::Full, "ST8");
    assert_is!(store.begin(&claims[3]).await, Ok(Begin::Acquired(_)), "ST8: what is there goes on");

    fixture.pass(fixture.tick() * 2).await;
    let newest = claim(operation());
    assert_is!(store.begin(&newest).await, Ok(Begin::Acquired(_)), "ST8: an expired one made room");
    let refused = store.begin(&claim(operation())).await.expect_err("ST8: full again");
    assert_eq!(refused.kind(), StoreErrorKind::Full, "ST8");
    for claim in claims[1..].iter().chain([&newest]) {
        let entry = store.get(&claim.id).await.expect("get").map(|entry| entry.state);
        assert_is!(entry, Some(State::InFlight { .. }), "ST8: a live claim stays");
    }
}
