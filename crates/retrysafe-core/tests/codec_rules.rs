//! Payloads that are kept compressed and encrypted: what comes back, and what never does.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use retrysafe_core::{
    Algorithm, Begin, BodyPart, Claim, Encoded, Encryption, EncryptionKeys, Entropy, Extent,
    Fingerprint, Found, Held, Inspect, Lease, MemoryStore, Operated, OperationId, Owner,
    Resolution, State, Store, StoreError, StoreErrorKind, SystemEntropy,
};

const LONG: Duration = Duration::from_secs(3600);
const NEW: [u8; 32] = [0x4e; 32];
const OLD: [u8; 32] = [0x0d; 32];

fn operation(number: u8) -> OperationId {
    OperationId::from_bytes([number; 32])
}

fn request(number: u8) -> Fingerprint {
    Fingerprint {
        algorithm: Algorithm::from_u32(1),
        head: [number; 32],
        body: Some(BodyPart { digest: [number; 32], length: 9, extent: Extent::Whole }),
    }
}

fn keys(id: u8, key: &[u8; 32]) -> EncryptionKeys {
    EncryptionKeys::new(id, key).expect("a valid ring")
}

fn encrypted(store: &MemoryStore, keys: EncryptionKeys) -> Encoded<MemoryStore> {
    Encoded::new(store.clone()).with_encryption(Encryption::new(keys))
}

/// A claim by a new owner.
fn claim(id: OperationId, fingerprint: &Fingerprint) -> Claim {
    Claim {
        id,
        owner: Owner::new(&SystemEntropy),
        fingerprint: fingerprint.clone(),
        lease: LONG,
        retention: LONG,
        take_over: true,
    }
}

/// Claims a free operation and returns its lease.
async fn acquire(store: &impl Store, id: OperationId, fingerprint: &Fingerprint) -> Lease {
    let claim = claim(id, fingerprint);
    let Begin::Acquired(acquired) = store.begin(&claim).await.expect("begin") else {
        panic!("the operation is free")
    };
    Lease { id, owner: claim.owner, attempt: acquired.attempt, fence: acquired.fence }
}

/// Runs an operation to its end.
async fn keep(store: &impl Store, number: u8, payload: impl Into<Bytes>) -> Lease {
    let lease = acquire(store, operation(number), &request(number)).await;
    let held = store.complete(&lease, &request(number), payload.into(), LONG).await;
    assert_eq!(held.expect("complete"), Held::Applied);
    lease
}

/// What a retry is answered with.
async fn replay(store: &impl Store, number: u8) -> Result<Bytes, StoreError> {
    match store.begin(&claim(operation(number), &request(number))).await? {
        Begin::Found(Found::Finished { payload, .. }) => Ok(payload),
        other => panic!("the operation is finished: {other:?}"),
    }
}

async fn assert_unreadable(store: &impl Store, number: u8, why: &str) {
    let problem = replay(store, number).await.expect_err(why);
    assert_eq!(problem.kind(), StoreErrorKind::Unreadable, "{why}");
}

/// A response of JSON: compresses well.
fn json(length: usize) -> Bytes {
    let line = br#"{"order_id":"8e03978e","amount":100,"currency":"EUR"},"#;
    [1].into_iter().chain(line.iter().copied().cycle()).take(length).collect()
}

fn noise(length: usize) -> Bytes {
    std::iter::repeat_with(|| SystemEntropy.next_u128().to_be_bytes())
        .flatten()
        .take(length)
        .collect()
}

#[tokio::test]
async fn st10_payloads_come_back_exactly() {
    type Wrap = fn(MemoryStore) -> Encoded<MemoryStore>;
    let wraps: [Wrap; 4] = [
        Encoded::new,
        |store| Encoded::new(store).with_compression(),
        |store| Encoded::new(store).with_encryption(Encryption::new(keys(1, &NEW))),
        |store| {
            Encoded::new(store).with_encryption(Encryption::new(keys(1, &NEW))).with_compression()
        },
    ];
    let mut payloads = vec![Bytes::new(), json(1023), json(1024), json(100_000), noise(5000)];
    // Every first byte, the codecs' own marks among them.
    payloads.extend((0..=u8::MAX).map(|first| Bytes::from(vec![first; 3])));
    payloads.extend((0xc0..=u8::MAX).map(|first| [&[first], &noise(2000)[..]].concat().into()));
    for wrap in wraps {
        for payload in &payloads {
            let raw = MemoryStore::new();
            let store = wrap(raw.clone());
            keep(&store, 1, payload.clone()).await;
            assert!(replay(&store, 1).await.unwrap() == payload, "{store:?}: {}", payload.len());
            let finished = State::Finished { payload: payload.clone() };
            assert!(store.get(&operation(1)).await.unwrap().unwrap().state == finished);
            assert!(store.page(None, 10).await.unwrap().remove(0).state == finished);
        }
    }
}

#[tokio::test]
async fn st3_a_loser_is_handed_the_decoded_payload() {
    let store = encrypted(&MemoryStore::new(), keys(1, &NEW)).with_compression();
    let winner = keep(&store, 1, json(5000)).await;
    let late = Lease { owner: Owner::new(&SystemEntropy), ..winner.clone() };
    let is_lost =
        |held| matches!(held, Held::Lost(Found::Finished { payload, .. }) if payload == json(5000));
    assert!(is_lost(store.renew(&late, LONG).await.unwrap()));
    assert!(is_lost(store.release(&late, LONG).await.unwrap()));
    assert!(is_lost(store.complete(&late, &request(1), json(9), LONG).await.unwrap()));

    // ST4: the same call again, though its nonce is another one.
    let again = store.complete(&winner, &request(1), json(5000), LONG).await.unwrap();
    assert_eq!(again, Held::Applied);
}

#[tokio::test]
async fn compression_comes_before_encryption() {
    let raw = MemoryStore::new();
    let encryption = Encryption::new(keys(1, &NEW));
    let store = Encoded::new(raw.clone()).with_encryption(encryption).with_compression();
    keep(&store, 1, json(64 * 1024)).await;
    let kept = replay(&raw, 1).await.unwrap();
    assert!(kept.len() < 1024, "{}", kept.len());
}

#[tokio::test]
async fn compression_can_be_turned_on_and_off() {
    let raw = MemoryStore::new();
    let (off, on) = (Encoded::new(raw.clone()), Encoded::new(raw.clone()).with_compression());
    keep(&raw, 1, json(5000)).await;
    keep(&off, 2, json(5000)).await;
    keep(&on, 3, json(5000)).await;
    assert!(replay(&raw, 3).await.unwrap().len() < 500);
    for number in [1, 2, 3] {
        assert_eq!(replay(&on, number).await.unwrap(), json(5000));
        assert_eq!(replay(&off, number).await.unwrap(), json(5000));
    }
}

#[tokio::test]
async fn p9_a_payload_grows_by_43_bytes_at_most() {
    let raw = MemoryStore::new();
    let store = encrypted(&raw, keys(1, &NEW)).with_compression();
    for (number, payload) in (1..).zip([Bytes::new(), json(100), noise(5000), vec![0xff; 9].into()])
    {
        keep(&store, number, payload.clone()).await;
        let kept = replay(&raw, number).await.unwrap();
        assert!(kept.len() - payload.len() <= 43, "{} of {}", kept.len(), payload.len());
    }
    let (about, inside) = (Store::about(&store), Store::about(&raw));
    assert_eq!(about.max_payload, inside.max_payload - 43);
    assert_eq!(about.engine, inside.engine);
}

#[tokio::test]
async fn st10_too_large_is_judged_before_encoding() {
    let raw = MemoryStore::builder().max_payload(10_000).build().unwrap();
    let store = encrypted(&raw, keys(1, &NEW)).with_compression();
    let most = Store::about(&store).max_payload;
    let lease = acquire(&store, operation(1), &request(1)).await;

    // It would fit once it is compressed; whether a response is kept must not depend on that.
    let refused = store.complete(&lease, &request(1), json(most + 1), LONG).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::TooLarge);
    let held = store.complete(&lease, &request(1), noise(most), LONG).await.unwrap();
    assert_eq!(held, Held::Applied);

    let lease = acquire(&store, operation(2), &request(2)).await;
    assert_eq!(store.renew(&lease, Duration::ZERO).await.unwrap(), Held::Applied);
    let happened = Resolution::Happened { payload: json(most + 1), retention: LONG };
    let refused = store.resolve(&operation(2), 1, happened).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::TooLarge);
}

#[tokio::test]
async fn encrypted_payloads_show_nothing_and_are_never_the_same() {
    let raw = MemoryStore::new();
    let store = encrypted(&raw, keys(1, &NEW));
    let mut kept = Vec::new();
    for _ in 0..3 {
        keep(&store, 1, json(500)).await;
        kept.push(replay(&raw, 1).await.unwrap());
        assert_eq!(raw.forget(&operation(1)).await.unwrap(), Operated::Applied);
    }
    for one in &kept {
        assert!(!one.windows(5).any(|part| part == b"order"));
        assert_eq!(kept.iter().filter(|it| it[2..26] == one[2..26]).count(), 1, "nonces");
    }
}

#[tokio::test]
async fn a_payload_is_bound_to_its_operation_and_request() {
    let raw = MemoryStore::new();
    let store = encrypted(&raw, keys(1, &NEW));
    keep(&store, 1, json(500)).await;
    let kept = replay(&raw, 1).await.unwrap();

    keep(&raw, 2, kept.clone()).await;
    assert_unreadable(&store, 2, "in another operation's record").await;

    for changed in [
        Fingerprint { algorithm: Algorithm::from_u32(2), ..request(1) },
        Fingerprint { head: [9; 32], ..request(1) },
        Fingerprint { body: None, ..request(1) },
        Fingerprint { body: request(9).body, ..request(1) },
    ] {
        let raw = MemoryStore::new();
        let store = encrypted(&raw, keys(1, &NEW));
        let lease = acquire(&raw, operation(1), &request(1)).await;
        let _ = raw.complete(&lease, &changed, kept.clone(), LONG).await.unwrap();
        let problem = store.begin(&claim(operation(1), &request(1))).await.unwrap_err();
        assert_eq!(problem.kind(), StoreErrorKind::Unreadable, "with another fingerprint");
    }

    let raw = MemoryStore::new();
    keep(&raw, 1, kept).await;
    assert_eq!(replay(&encrypted(&raw, keys(1, &NEW)), 1).await.unwrap(), json(500));
}

#[tokio::test]
async fn every_byte_of_an_encrypted_payload_is_protected() {
    let raw = MemoryStore::new();
    let store = encrypted(&raw, keys(1, &NEW).and(2, &OLD).unwrap());
    keep(&store, 1, json(40)).await;
    let kept = replay(&raw, 1).await.unwrap();
    let cut = (0..kept.len()).map(|length| kept.slice(..length));
    let changed = (0..kept.len()).flat_map(|at| {
        [0x01, 0x80, 0x03].map(|bit| {
            let mut changed = kept.to_vec();
            changed[at] ^= bit;
            changed.into()
        })
    });
    let longer = [&kept[..], &[0]].concat().into();
    for (number, spoiled) in cut.chain(changed).chain([longer]).enumerate() {
        let raw = MemoryStore::new();
        keep(&raw, 1, spoiled).await;
        let store = encrypted(&raw, keys(1, &NEW).and(2, &OLD).unwrap());
        assert_unreadable(&store, 1, &format!("spoiled {number}")).await;
    }
}

#[tokio::test]
async fn st10_a_damaged_compressed_payload_is_never_another_one() {
    let raw = MemoryStore::new();
    let store = Encoded::new(raw.clone()).with_compression();
    keep(&store, 1, json(5000)).await;
    let kept = replay(&raw, 1).await.unwrap();
    for at in 1..kept.len() {
        let mut changed = kept.to_vec();
        changed[at] ^= 0x10;
        for spoiled in [changed.into(), kept.slice(..at)] {
            let raw = MemoryStore::new();
            keep(&raw, 1, spoiled).await;
            match replay(&Encoded::new(raw), 1).await {
                // A bit that zstd does not look at.
                Ok(payload) => assert!(payload == json(5000), "at {at}"),
                Err(problem) => assert_eq!(problem.kind(), StoreErrorKind::Unreadable, "at {at}"),
            }
        }
    }
}

#[tokio::test]
async fn keys_are_changed_without_losing_an_answer() {
    let raw = MemoryStore::new();
    keep(&encrypted(&raw, keys(1, &OLD)), 1, json(500)).await;
    // The new key is known everywhere before it is used anywhere.
    keep(&encrypted(&raw, keys(1, &OLD).and(2, &NEW).unwrap()), 2, json(500)).await;
    let rotated = encrypted(&raw, keys(2, &NEW).and(1, &OLD).unwrap());
    keep(&rotated, 3, json(500)).await;
    for number in [1, 2, 3] {
        assert_eq!(replay(&rotated, number).await.unwrap(), json(500));
    }
    let without_old = encrypted(&raw, keys(2, &NEW));
    assert_eq!(replay(&without_old, 3).await.unwrap(), json(500));
    assert_unreadable(&without_old, 1, "the old key was taken away").await;
    assert_unreadable(&encrypted(&raw, keys(2, &OLD)), 3, "another key of that id").await;
}

#[tokio::test]
async fn an_unknown_key_fails_closed_in_every_verb() {
    let raw = MemoryStore::new();
    let winner = keep(&encrypted(&raw, keys(1, &OLD)), 1, json(500)).await;
    let late = Lease { owner: Owner::new(&SystemEntropy), ..winner };
    let with_other_key = encrypted(&raw, keys(2, &NEW));
    let without_keys = Encoded::new(raw.clone());
    for store in [with_other_key, without_keys] {
        let id = operation(1);
        let problems = [
            replay(&store, 1).await.unwrap_err(),
            store.renew(&late, LONG).await.unwrap_err(),
            store.release(&late, LONG).await.unwrap_err(),
            store.complete(&late, &request(1), json(9), LONG).await.unwrap_err(),
            store.get(&id).await.unwrap_err(),
            store.page(None, 10).await.unwrap_err(),
            store.forget(&id).await.unwrap_err(),
        ];
        for problem in problems {
            assert_eq!(problem.kind(), StoreErrorKind::Unreadable);
            assert!(problem.to_string().contains(&id.to_string()), "{problem}");
        }
        assert_eq!(store.count().await.unwrap().finished, 1);
    }
    // Nobody has touched it.
    assert_eq!(replay(&encrypted(&raw, keys(1, &OLD)), 1).await.unwrap(), json(500));
}

#[tokio::test]
async fn plain_payloads_are_read_only_if_asked_for() {
    let raw = MemoryStore::new();
    keep(&raw, 1, json(5000)).await;
    keep(&Encoded::new(raw.clone()).with_compression(), 2, json(5000)).await;
    keep(&raw, 3, Bytes::new()).await;
    let strict = encrypted(&raw, keys(1, &NEW));
    let encryption = Encryption::new(keys(1, &NEW)).accept_plain();
    let lenient = Encoded::new(raw.clone()).with_encryption(encryption);
    for (number, payload) in [(1, json(5000)), (2, json(5000)), (3, Bytes::new())] {
        assert_unreadable(&strict, number, "plain").await;
        assert_eq!(replay(&lenient, number).await.unwrap(), payload);
    }
    keep(&lenient, 4, json(5000)).await;
    assert_eq!(replay(&strict, 4).await.unwrap(), json(5000), "new ones are encrypted");
}

#[tokio::test]
async fn st10_a_newer_encoding_is_unreadable() {
    for mark in (0xc2..=u8::MAX).filter(|mark| *mark != 0xe1) {
        let raw = MemoryStore::new();
        keep(&raw, 1, [&[mark], &json(500)[..]].concat()).await;
        let encryption = Encryption::new(keys(1, &NEW)).accept_plain();
        let lenient = Encoded::new(raw.clone()).with_encryption(encryption);
        for store in [lenient, encrypted(&raw, keys(1, &NEW)), Encoded::new(raw)] {
            let problem = replay(&store, 1).await.unwrap_err();
            assert_eq!(problem.kind(), StoreErrorKind::Unreadable);
            assert!(problem.to_string().contains("newer version"), "{problem}");
        }
    }
}

#[tokio::test]
async fn what_an_operator_resolves_is_encoded_and_read_back() {
    let raw = MemoryStore::new();
    let store = encrypted(&raw, keys(1, &NEW)).with_compression();
    let happened = || Resolution::Happened { payload: json(5000), retention: LONG };
    let resolved = store.resolve(&operation(1), 1, happened()).await.unwrap();
    assert_eq!(resolved, Operated::NotFound);

    let lease = acquire(&store, operation(1), &request(1)).await;
    assert_eq!(store.renew(&lease, Duration::ZERO).await.unwrap(), Held::Applied);
    let resolved = store.resolve(&operation(1), 2, happened()).await.unwrap();
    assert_eq!(resolved, Operated::Refused, "not the attempt that was seen");
    let resolved = store.resolve(&operation(1), 1, happened()).await.unwrap();
    assert_eq!(resolved, Operated::Applied);
    assert_eq!(replay(&store, 1).await.unwrap(), json(5000));
    assert_eq!(replay(&raw, 1).await.unwrap()[0], 0xe1, "it is encrypted");

    assert_eq!(store.forget(&operation(1)).await.unwrap(), Operated::Applied);
    let lease = acquire(&store, operation(1), &request(1)).await;
    assert_eq!(store.renew(&lease, Duration::ZERO).await.unwrap(), Held::Applied);
    let resolved = store.resolve(&operation(1), 2, Resolution::DidNotHappen).await.unwrap();
    assert_eq!(resolved, Operated::Applied);
}

#[test]
fn a_ring_of_keys_is_checked() {
    assert!(EncryptionKeys::new(0, &NEW).is_err());
    assert!(keys(1, &NEW).and(0, &OLD).is_err());
    let twice = keys(1, &NEW).and(1, &OLD).unwrap_err();
    assert_eq!(twice.setting(), "encryption_keys");
}

#[test]
fn s3_debug_shows_no_key() {
    let store = encrypted(&MemoryStore::new(), keys(3, &[0xab; 32]).and(4, &[0xcd; 32]).unwrap());
    let shown = format!("{store:?}").to_lowercase();
    assert!(shown.contains("ids: [3, 4]"), "{shown}");
    for secret in ["ab, ", "171", "0xab", "205", "0xcd"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

/// Always the same, so that a golden payload can be made again.
struct Fixed;

impl Entropy for Fixed {
    fn next_u128(&self) -> u128 {
        0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f
    }
}

#[tokio::test]
async fn st10_the_golden_encodings_are_still_read() {
    // Written by the first release. A later version MUST go on reading them: never write them anew.
    const SEALED: &[u8] = include_bytes!("golden/encrypted-v1.bin");
    const COMPRESSED: &[u8] = include_bytes!("golden/compressed-v1.bin");
    let raw = MemoryStore::new();
    let encryption = Encryption::new(keys(1, &NEW)).entropy(Arc::new(Fixed));
    let store = Encoded::new(raw.clone()).with_encryption(encryption);
    keep(&store, 1, json(40)).await;
    assert_eq!(replay(&raw, 1).await.unwrap(), SEALED);

    let raw = MemoryStore::new();
    keep(&raw, 1, COMPRESSED).await;
    assert_eq!(replay(&Encoded::new(raw), 1).await.unwrap(), json(2000));
}
