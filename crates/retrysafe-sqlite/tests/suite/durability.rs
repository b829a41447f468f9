//! What is found again after a file was closed, and what it takes up.

use std::{fs, sync::Arc, time::Duration};

use bytes::Bytes;
use retrysafe_core::{
    Begin, BodyPart, Extent, Fingerprint, Found, Held, Inspect as _, State, Store as _,
    StoreErrorKind,
};
use retrysafe_sqlite::{SqliteStore, Synchronous};
use retrysafe_testkit::ManualClock;
use rusqlite::Connection;
use tempfile::TempDir;

use crate::{LONG, acquire, claim, file, numbered, operation, turns::sent};

#[tokio::test]
async fn st9_every_state_survives_a_restart() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("retrysafe.db");
    let clock = Arc::new(ManualClock::new());
    let open = || SqliteStore::builder(&path).clock(clock.clone()).open().unwrap();

    let store = open();
    let [in_flight, given_up, released, finished] =
        std::array::from_fn(|number| claim(numbered(number as u64)));
    let _ = acquire(&store, &in_flight).await;
    let lease = acquire(&store, &given_up).await;
    assert_eq!(store.renew(&lease, Duration::ZERO).await.unwrap(), Held::Applied);
    let lease = acquire(&store, &released).await;
    assert_eq!(store.release(&lease, LONG).await.unwrap(), Held::Applied);
    let lease = acquire(&store, &finished).await;
    let payload = Bytes::from_static(b"\0\xff\"binary\"\r\n");
    let done = store.complete(&lease, &finished.fingerprint, payload.clone(), LONG).await.unwrap();
    assert_eq!(done, Held::Applied);
    let before = store.page(None, 10).await.unwrap();
    assert_eq!(before.len(), 4);
    drop(store);

    // The last handle folds the log back into the file.
    assert!(!file::log_of(&path).exists());
    let store = open();
    assert_eq!(store.page(None, 10).await.unwrap(), before);
    assert_eq!(
        store.complete(&lease, &finished.fingerprint, "other".into(), LONG).await.unwrap(),
        Held::Applied
    );
    assert_eq!(store.get(&finished.id).await.unwrap().unwrap().state, State::Finished { payload });

    clock.advance(LONG * 48);
    drop(store);
    let swept = open().sweep(10).await.unwrap();
    assert_eq!((swept.removed, swept.more), (4, false));
}

#[tokio::test]
async fn st9_what_was_sent_is_kept_by_the_last_handle() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("retrysafe.db");
    let store = SqliteStore::open(&path).unwrap();
    let owned = claim(operation());
    let lease = acquire(&store, &owned).await;
    drop(sent(store.complete(&lease, &owned.fingerprint, "kept".into(), LONG)));
    drop(store);

    let retry = SqliteStore::open(&path).unwrap().begin(&claim(owned.id)).await.unwrap();
    assert!(matches!(retry, Begin::Found(Found::Finished { payload, .. }) if payload == "kept"));
}

#[tokio::test]
async fn st9_what_sqlite_keeps_beside_a_file_is_not_written_to_when_it_is_gone() {
    for suffix in ["", "-wal", "-shm"] {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("retrysafe.db");
        let store = SqliteStore::open(&path).unwrap();
        let owned = claim(operation());
        let lease = acquire(&store, &owned).await;

        let (gone, aside) = (file::beside(&path, suffix), directory.path().join("aside"));
        fs::rename(&gone, &aside).unwrap();
        let answer = store.complete(&lease, &owned.fingerprint, "kept".into(), LONG).await;
        let refused = answer.unwrap_err();
        assert_eq!(refused.kind(), StoreErrorKind::Misconfigured, "{suffix}: {refused}");
        assert!(refused.to_string().contains("was deleted while it was open"), "{refused}");
        // Another one in its place is not what it was.
        fs::write(&gone, "").unwrap();
        let refused = store.begin(&claim(numbered(2))).await.unwrap_err();
        assert_eq!(refused.kind(), StoreErrorKind::Misconfigured, "{suffix}: {refused}");

        fs::rename(&aside, &gone).unwrap();
        let applied = store.complete(&lease, &owned.fingerprint, "kept".into(), LONG).await;
        assert_eq!(applied.unwrap(), Held::Applied, "{suffix}");
    }
}

#[tokio::test]
async fn st10_every_byte_comes_back_at_every_size() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("retrysafe.db");
    let sizes = [0, 1, 255, 4096, 100_000, 5 * 1024 * 1024];
    let payload = |size: usize| -> Bytes {
        (0..size).map(|byte| (byte.wrapping_mul(31) >> 3) as u8).collect()
    };
    let fingerprint = Fingerprint {
        body: Some(BodyPart { digest: [9; 32], length: u64::MAX, extent: Extent::Prefix }),
        ..claim(operation()).fingerprint
    };
    for handle in 0..2 {
        let store = SqliteStore::open(&path).unwrap();
        for (number, size) in (0..).zip(sizes) {
            let claim = claim(numbered(number));
            if handle == 0 {
                let lease = acquire(&store, &claim).await;
                let done = store.complete(&lease, &fingerprint, payload(size), LONG).await.unwrap();
                assert_eq!(done, Held::Applied);
            } else {
                let expected =
                    Found::Finished { fingerprint: fingerprint.clone(), payload: payload(size) };
                assert!(store.begin(&claim).await.unwrap() == Begin::Found(expected), "{size}");
            }
        }
    }
}

#[tokio::test]
async fn st10_what_can_not_be_read_is_never_absent_and_never_removed() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("retrysafe.db");
    let clock = Arc::new(ManualClock::new());
    let store = SqliteStore::builder(&path).clock(clock.clone()).open().unwrap();
    let other = Connection::open(&path).unwrap();
    for (number, spoil) in (0..).zip([
        "state = 4",
        "fingerprint = x'00'",
        "owner = x'01'",
        "expires_at = -1",
        "state = 1, payload = NULL",
        "lease_until = NULL",
    ]) {
        let claim = claim(numbered(number));
        let lease = acquire(&store, &claim).await;
        let id = claim.id.as_bytes().as_slice();
        other.execute(&format!("UPDATE record SET {spoil} WHERE id = ?1"), [id]).unwrap();
        let kinds = [
            store.begin(&claim).await.unwrap_err().kind(),
            store.renew(&lease, LONG).await.unwrap_err().kind(),
            store.complete(&lease, &claim.fingerprint, "x".into(), LONG).await.unwrap_err().kind(),
            store.release(&lease, LONG).await.unwrap_err().kind(),
            store.get(&claim.id).await.unwrap_err().kind(),
            store.forget(&claim.id).await.unwrap_err().kind(),
        ];
        assert_eq!(kinds, [StoreErrorKind::Unreadable; 6], "{spoil}");
    }
    // The first two are what a newer version would write.
    clock.advance(LONG * 48);
    let _ = store.sweep(100).await.unwrap();
    for number in 0..2 {
        let error = store.begin(&claim(numbered(number))).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Unreadable);
    }
}

#[tokio::test]
async fn st12_a_sweep_of_many_is_one_call() {
    let directory = TempDir::new().unwrap();
    let clock = Arc::new(ManualClock::new());
    let store = SqliteStore::builder(directory.path().join("retrysafe.db"))
        .clock(clock.clone())
        .synchronous(Synchronous::Normal)
        .open()
        .unwrap();
    for number in 0..300 {
        let _ = acquire(&store, &claim(numbered(number))).await;
    }
    clock.advance(LONG * 48);
    let swept = store.sweep(299).await.unwrap();
    assert_eq!((swept.removed, swept.more), (299, true));
    let swept = store.sweep(299).await.unwrap();
    assert_eq!((swept.removed, swept.more), (1, false));
}

#[tokio::test]
async fn p9_what_a_record_takes_up() {
    const RECORDS: usize = 2_000;
    const BODY: usize = 300;
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("retrysafe.db");
    let store = SqliteStore::builder(&path).synchronous(Synchronous::Normal).open().unwrap();
    for number in 0..RECORDS {
        let mut claim = claim(numbered(number as u64));
        claim.fingerprint.body =
            Some(BodyPart { digest: [9; 32], length: 17, extent: Extent::Whole });
        let lease = acquire(&store, &claim).await;
        let payload = vec![b'x'; BODY].into();
        let _ = store.complete(&lease, &claim.fingerprint, payload, LONG).await.unwrap();
    }
    drop(store);

    let length = std::fs::metadata(&path).unwrap().len() as usize;
    let connection = Connection::open(&path).unwrap();
    let rows: usize = connection
        .query_row("SELECT sum(payload) FROM dbstat WHERE name = 'record'", [], |row| {
            row.get::<_, i64>(0).map(|bytes| bytes as usize)
        })
        .unwrap();
    // The operation's id is what names the record, not part of it.
    let record = rows / RECORDS - BODY - 32;
    assert!(record <= 128, "{record} bytes for each record");
    let file = length / RECORDS - BODY;
    assert!(file <= 256, "{file} bytes of the file for each record, indexes included");
}
