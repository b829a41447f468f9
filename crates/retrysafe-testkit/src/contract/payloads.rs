//! What is kept, exactly, and by a call that may be cut short: ST9 to ST12.

use std::time::Duration;

use bytes::Bytes;
use retrysafe_core::{
    Algorithm, Begin, BodyPart, Claim, Extent, Fingerprint, Found, Held, State, Store as _,
    StoreErrorKind, Swept,
};

use super::{Case, LONG, assert_is, fingerprint};
use crate::Fixture;

/// An outcome that was kept is there for a handle that is opened afterwards.
pub async fn st9_every_handle_sees_an_outcome<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let owner = case.acquire(&case.claim()).await;
    assert_eq!(case.complete(&owner, "done").await, Held::Applied);
    let later = Case { store: fixture.handle().await.into(), ..case };
    later.assert_finished_with("done", "ST9").await;
}

/// Empty, binary, not text, and large.
pub async fn st10_payloads_come_back_exactly<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let every_byte: Vec<u8> = (0..=255).cycle().take(1000).collect();
    let large = (case.store.about().max_payload).min(1 << 20);
    let payloads = [
        Bytes::new(),
        Bytes::from_static(b"\0"),
        Bytes::from_static(b"\xff\xfe\r\n'\";--\\"),
        Bytes::from_static("grüße, 世界 ".as_bytes()),
        every_byte.clone().into(),
        every_byte.into_iter().cycle().take(large).collect::<Vec<_>>().into(),
    ];
    for payload in payloads {
        let case = case.another();
        let owner = case.acquire(&case.claim()).await;
        assert_eq!(case.complete(&owner, payload.clone()).await, Held::Applied);
        let Found::Finished { payload: kept, .. } = case.found(&case.claim()).await else {
            panic!("ST10: the record is finished");
        };
        assert!(kept == payload, "ST10: {} bytes came back as {}", payload.len(), kept.len());
        let shown = case.state().await;
        assert!(shown == Some(State::Finished { payload }), "ST10: operators see the same");
    }
}

/// With and without a body part, at the ends of every number; `complete` writes its own (F4).
pub async fn st10_fingerprints_come_back_exactly<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let digest = std::array::from_fn(|n| 255 - u8::try_from(n).unwrap_or(0));
    let prints = [
        Fingerprint { algorithm: Algorithm::from_u32(0), head: [0; 32], body: None },
        Fingerprint {
            algorithm: Algorithm::from_u32(u32::MAX),
            head: digest,
            body: Some(BodyPart { digest, length: u64::MAX, extent: Extent::Prefix }),
        },
        Fingerprint {
            algorithm: Algorithm::from_u32(0x00ff_0a0d),
            head: [255; 32],
            body: Some(BodyPart { digest: [0; 32], length: 0, extent: Extent::Whole }),
        },
        Fingerprint {
            algorithm: Algorithm::from_u32(7),
            head: digest,
            body: Some(BodyPart::IGNORED),
        },
    ];
    for (print, outcome) in prints.iter().zip(prints.iter().cycle().skip(1)) {
        let case = case.another();
        let owner = case.acquire(&Claim { fingerprint: print.clone(), ..case.claim() }).await;
        assert_is!(
            case.found(&case.claim()).await,
            Found::InFlight { fingerprint: kept, .. } if kept == *print,
            "ST10: of the claim"
        );
        let held = case.store.complete(&owner, outcome, "x".into(), LONG).await;
        assert_eq!(held.expect("complete"), Held::Applied);
        assert_is!(
            case.found(&case.claim()).await,
            Found::Finished { fingerprint: kept, .. } if kept == *outcome,
            "ST10: of the outcome"
        );
    }
}

/// A payload over the store's limit is refused as such, and one at the limit is not.
///
/// # Panics
///
/// Also if the store says that it takes more than 256 MiB: give the fixture's store a lower limit.
pub async fn st10_too_large_changes_nothing<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    let most = case.store.about().max_payload;
    assert!(most <= 256 << 20, "the fixture's store must have a max_payload that can be tried");
    let owner = case.acquire(&case.claim()).await;
    let over = Bytes::from(vec![7; most + 1]);
    let refused = case.store.complete(&owner, &fingerprint(1), over.clone(), LONG).await;
    let refused = refused.expect_err("ST10: over the limit");
    assert_eq!(refused.kind(), StoreErrorKind::TooLarge, "ST10");
    assert_is!(case.state().await, Some(State::InFlight { .. }), "ST10: nothing changed");
    assert_eq!(case.complete(&owner, over.slice(1..)).await, Held::Applied, "ST10: at the limit");
}

/// A `begin` whose future is dropped at any moment was granted or not; its owner asks again.
pub async fn st11_a_dropped_begin_can_be_repeated<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    for wait in 0..30 {
        let case = case.another();
        let claim = case.claim();
        cut_short(wait, case.store.begin(&claim)).await;
        let acquired = case.acquired(&claim).await;
        assert_eq!(acquired.attempt, 1, "ST11: it is the same attempt");
        assert_is!(case.found(&case.claim()).await, Found::InFlight { attempt: 1, .. }, "ST11");
    }
}

/// A `complete` or `release` whose future is dropped at any moment applied or not; its owner
/// repeats it.
pub async fn st11_a_dropped_complete_can_be_repeated<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    for wait in 0..30 {
        let case = case.another();
        let owner = case.acquire(&case.claim()).await;
        let print = fingerprint(1);
        cut_short(wait, case.store.complete(&owner, &print, "done".into(), LONG)).await;
        assert_eq!(case.complete(&owner, "done").await, Held::Applied, "ST11");
        case.assert_finished_with("done", "ST11").await;

        let case = case.another();
        let owner = case.acquire(&case.claim()).await;
        cut_short(wait, case.store.release(&owner, LONG)).await;
        assert_eq!(case.release(&owner).await, Held::Applied, "ST11");
        let next = case.acquired(&case.claim()).await;
        assert_is!(next, retrysafe_core::Acquired { attempt: 2, .. }, "ST11");
    }
}

/// Polls a future once or for a few milliseconds, and drops it.
async fn cut_short<T>(wait: u64, future: impl Future<Output = T>) {
    let _ = tokio::time::timeout(Duration::from_millis(wait / 10), future).await;
}

/// Never more than the limit at once, `more` only as long as it is true, and an end.
pub async fn st12_sweep_is_bounded<F: Fixture>(fixture: &F) {
    let case = Case::new(fixture).await;
    while case.store.sweep(1000).await.expect("sweep").more {}
    let mut expired = Vec::new();
    for _ in 0..20 {
        let case = case.another();
        let brief = Claim { retention: fixture.tick(), ..case.short_claim() };
        case.acquire(&brief).await;
        expired.push(case);
    }
    case.lapse().await;
    let mut removed = 0;
    for turn in 0.. {
        let swept = case.store.sweep(3).await.expect("sweep");
        assert!(swept.removed <= 3, "ST12: {} over the limit", swept.removed);
        removed += swept.removed;
        if !swept.more {
            break;
        }
        assert_eq!(swept.removed, 3, "ST12: there is more only when the limit was reached");
        assert!(turn < 20, "ST12: it comes to an end");
    }
    assert!(removed <= 20, "ST12: nothing is counted twice");
    assert_eq!(case.store.sweep(3).await.expect("sweep"), Swept::default(), "ST12: clean");
    for case in expired {
        assert_is!(case.begin(&case.claim()).await, Begin::Acquired(_), "ST8");
    }
}

/// Live, lapsed, finished and released records within their retention stay.
pub async fn st12_sweep_leaves_what_answers<F: Fixture>(fixture: &F) {
    let live = Case::new(fixture).await;
    live.acquire(&live.claim()).await;
    let lapsed = live.another();
    lapsed.acquire(&lapsed.short_claim()).await;
    let finished = live.another();
    let owner = finished.acquire(&finished.claim()).await;
    assert_eq!(finished.complete(&owner, "done").await, Held::Applied);
    let released = live.another();
    let owner = released.acquire(&released.claim()).await;
    assert_eq!(released.release(&owner).await, Held::Applied);
    live.lapse().await;
    while live.store.sweep(1000).await.expect("sweep").more {}
    assert_is!(live.state().await, Some(State::InFlight { .. }), "ST12");
    assert_is!(lapsed.state().await, Some(State::Lapsed), "ST12");
    assert_is!(finished.state().await, Some(State::Finished { .. }), "ST12");
    assert_is!(released.state().await, Some(State::Released), "ST12");
}
