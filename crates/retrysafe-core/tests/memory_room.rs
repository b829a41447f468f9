//! What the memory store takes up, and gives back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use retrysafe_core::{
    Acquired, Algorithm, Begin, Claim, Clock, Entropy as _, Fingerprint, Found, Held, Inspect as _,
    Lease, MemoryStore, OperationId, Owner, Store as _, StoreErrorKind, Swept, SystemEntropy,
};

const LONG: Duration = Duration::from_secs(24 * 60 * 60);
const SECOND: Duration = Duration::from_secs(1);

#[derive(Clone, Default)]
struct Seconds(Arc<AtomicU64>);

impl Seconds {
    fn pass(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }
}

impl Clock for Seconds {
    fn wall(&self) -> Duration {
        self.monotonic()
    }

    fn monotonic(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::SeqCst))
    }
}

fn store(capacity: usize) -> (MemoryStore, Seconds) {
    let clock = Seconds::default();
    let settings = MemoryStore::builder().capacity(capacity).clock(Arc::new(clock.clone()));
    (settings.build().expect("valid settings"), clock)
}

fn claim() -> Claim {
    let mut id = [0; 32];
    id[..16].copy_from_slice(&SystemEntropy.next_u128().to_be_bytes());
    id[16..].copy_from_slice(&SystemEntropy.next_u128().to_be_bytes());
    Claim {
        id: OperationId::from_bytes(id),
        owner: Owner::new(&SystemEntropy),
        fingerprint: Fingerprint { algorithm: Algorithm::from_u32(1), head: [1; 32], body: None },
        lease: 30 * SECOND,
        retention: LONG,
        take_over: false,
    }
}

fn lease(claim: &Claim) -> Lease {
    Lease { id: claim.id, owner: claim.owner, attempt: 1, fence: 1 }
}

async fn acquire(store: &MemoryStore, claim: &Claim) -> Acquired {
    match store.begin(claim).await.expect("begin") {
        Begin::Acquired(acquired) => acquired,
        found => panic!("{found:?}"),
    }
}

async fn finish(store: &MemoryStore, claim: &Claim, retention: Duration) {
    acquire(store, claim).await;
    let print = &claim.fingerprint;
    let held = store.complete(&lease(claim), print, "done".into(), retention).await;
    assert_eq!(held.expect("complete"), Held::Applied);
}

#[tokio::test]
async fn st12_sweep_removes_exactly_what_expired() {
    let (store, clock) = store(100_000);
    for n in 0..1000 {
        let retention = if n % 4 == 0 { LONG } else { 60 * SECOND };
        finish(&store, &claim(), retention).await;
    }
    assert_eq!(store.sweep(usize::MAX).await.unwrap(), Swept::default(), "nothing has expired");
    clock.pass(61);
    assert_eq!(store.sweep(100).await.unwrap(), Swept { removed: 100, more: true });
    assert_eq!(
        store.sweep(650).await.unwrap(),
        Swept { removed: 650, more: false },
        "no more left"
    );
    assert_eq!(store.sweep(1).await.unwrap(), Swept::default());
    assert_eq!(store.count().await.unwrap().finished, 250);
}

#[tokio::test]
async fn st12_a_sweep_of_nothing_says_whether_there_is_more() {
    let (store, clock) = store(10);
    finish(&store, &claim(), SECOND).await;
    assert_eq!(store.sweep(0).await.unwrap(), Swept::default());
    clock.pass(31);
    assert_eq!(store.sweep(0).await.unwrap(), Swept { removed: 0, more: true });
}

#[tokio::test]
async fn st8_every_end_of_a_record_is_found_in_time() {
    // Whatever moved the end, forth or back, since the expiry index last looked.
    let (store, clock) = store(1000);
    let short = 10 * SECOND;

    let kept_short = claim();
    finish(&store, &kept_short, short).await;

    let released_short = claim();
    acquire(&store, &released_short).await;
    let held = store.release(&lease(&released_short), short).await.unwrap();
    assert_eq!(held, Held::Applied);

    let given_up = Claim { retention: short, ..claim() };
    acquire(&store, &given_up).await;
    let held = store.renew(&lease(&given_up), Duration::ZERO).await.unwrap();
    assert_eq!(held, Held::Applied);

    let shortened = Claim { lease: LONG, retention: short, ..claim() };
    acquire(&store, &shortened).await;
    let held = store.renew(&lease(&shortened), SECOND).await.unwrap();
    assert_eq!(held, Held::Applied);

    let renewed = Claim { retention: short, ..claim() };
    acquire(&store, &renewed).await;
    let held = store.renew(&lease(&renewed), 60 * SECOND).await.unwrap();
    assert_eq!(held, Held::Applied);

    clock.pass(10);
    assert_eq!(store.sweep(100).await.unwrap(), Swept { removed: 4, more: false });
    clock.pass(49);
    assert_eq!(store.sweep(100).await.unwrap().removed, 0, "its lease is live");
    clock.pass(1);
    assert_eq!(store.sweep(100).await.unwrap().removed, 1);
    assert_eq!(store.sweep(100).await.unwrap().removed, 0);
}

#[tokio::test]
async fn st8_a_full_store_makes_room_of_every_shard() {
    let (store, clock) = store(500);
    for _ in 0..500 {
        finish(&store, &claim(), 60 * SECOND).await;
    }
    let refused = store.begin(&claim()).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Full);
    assert!(!refused.is_ambiguous(), "nothing was claimed");
    clock.pass(60);
    for _ in 0..500 {
        acquire(&store, &claim()).await;
    }
    assert_eq!(store.begin(&claim()).await.unwrap_err().kind(), StoreErrorKind::Full);
    assert_eq!(store.count().await.unwrap().in_flight, 500, "ST8: no live claim made room");
}

#[tokio::test]
async fn a_full_store_still_answers_what_it_knows() {
    let (store, _) = store(1);
    let first = claim();
    finish(&store, &first, LONG).await;
    let retry = Claim { owner: Owner::new(&SystemEntropy), ..first };
    let found = store.begin(&retry).await.unwrap();
    assert!(matches!(found, Begin::Found(Found::Finished { .. })));
    assert_eq!(store.begin(&claim()).await.unwrap_err().kind(), StoreErrorKind::Full);
}

#[test]
fn a_store_without_room_is_a_configuration_error() {
    let error = MemoryStore::builder().capacity(0).build().unwrap_err();
    assert_eq!(error.setting(), "capacity");
}

#[tokio::test]
async fn replays_share_the_payload() {
    let (store, _) = store(10);
    let first = claim();
    finish(&store, &first, LONG).await;
    let mut payloads = Vec::new();
    for _ in 0..2 {
        let retry = Claim { owner: Owner::new(&SystemEntropy), ..first.clone() };
        match store.begin(&retry).await.unwrap() {
            Begin::Found(Found::Finished { payload, .. }) => payloads.push(payload.as_ptr()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(payloads[0], payloads[1]);
}

#[tokio::test]
async fn handles_share_the_records() {
    let store = MemoryStore::new();
    let other = store.clone();
    let first = claim();
    acquire(&store, &first).await;
    let held = other.release(&lease(&first), LONG).await.unwrap();
    assert_eq!(held, Held::Applied);
    drop(store);
    assert_eq!(other.count().await.unwrap().released, 1);
}

#[test]
fn s3_debug_shows_no_record() {
    let shown = format!("{:?}", MemoryStore::new());
    assert_eq!(shown, "MemoryStore { records: 0, capacity: 1000000, .. }");
}
