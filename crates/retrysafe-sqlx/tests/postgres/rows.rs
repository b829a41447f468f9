//! What the table keeps, byte for byte, and what is removed from it.

use std::time::Duration;

use bytes::Bytes;
use retrysafe_core::{
    Begin, BodyPart, Claim, Extent, Fingerprint, Found, Held, Inspect as _, State, Store as _,
    StoreErrorKind,
};

use crate::{LONG, Table, acquire, claim, numbered, operation};

const BRIEF: Duration = Duration::from_millis(1);

#[tokio::test]
async fn st10_every_byte_comes_back_at_every_size() {
    let table = Table::new().await;
    let sizes = [0, 1, 255, 4096, 100_000, 5 * 1024 * 1024];
    let payload = |size: usize| -> Bytes {
        (0..size).map(|byte| (byte.wrapping_mul(31) >> 3) as u8).collect()
    };
    let fingerprint = Fingerprint {
        body: Some(BodyPart { digest: [9; 32], length: u64::MAX, extent: Extent::Prefix }),
        ..claim(operation()).fingerprint
    };
    for handle in 0..2 {
        let store = table.open().await;
        for (number, size) in (0..).zip(sizes) {
            let claim = claim(numbered(number));
            if handle == 0 {
                let lease = acquire(&store, &claim).await;
                let done = store.complete(&lease, &fingerprint, payload(size), LONG).await;
                assert_eq!(done.unwrap(), Held::Applied);
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
    let table = Table::new().await;
    let store = table.open().await;
    let spoilt = [
        // The first two are what a newer version would write.
        "layout = 2",
        "state = 4",
        "fingerprint = '\\x00'",
        "owner = '\\x01'",
        "fence = -1",
        "state = 1, payload = NULL",
        "lease_until = NULL",
        "retention = NULL",
    ];
    for (number, spoil) in (0..).zip(spoilt) {
        let claim = claim(numbered(number));
        acquire(&store, &claim).await;
        table.run(&format!("UPDATE {{table}} SET {spoil} WHERE {}", id(&claim))).await;
        let kinds = [
            store.begin(&Claim { take_over: true, ..claim.clone() }).await.unwrap_err().kind(),
            store.get(&claim.id).await.unwrap_err().kind(),
            store.forget(&claim.id).await.unwrap_err().kind(),
        ];
        assert_eq!(kinds, [StoreErrorKind::Unreadable; 3], "{spoil}");
    }
    assert_eq!(store.count().await.unwrap_err().kind(), StoreErrorKind::Unreadable);

    table.run("UPDATE {table} SET expires_at = now() - interval '1 day'").await;
    while store.sweep(100).await.unwrap().more {}
    for number in 0..2 {
        let claim = claim(numbered(number));
        let lease = crate::lease(
            &claim,
            retrysafe_core::Acquired { attempt: 1, fence: 1, previous_vanished: false },
        );
        let kinds = [
            store.begin(&claim).await.unwrap_err().kind(),
            store.renew(&lease, LONG).await.unwrap_err().kind(),
            store.complete(&lease, &claim.fingerprint, "x".into(), LONG).await.unwrap_err().kind(),
            store.release(&lease, LONG).await.unwrap_err().kind(),
        ];
        assert_eq!(kinds, [StoreErrorKind::Unreadable; 4], "expired, and still not ours to touch");
    }
}

#[tokio::test]
async fn st12_a_sweep_of_many_is_one_call() {
    let table = Table::new().await;
    let store = table.open().await;
    fill(&table, 3_000).await;
    let swept = store.sweep(2_999).await.unwrap();
    assert_eq!((swept.removed, swept.more), (2_999, true));
    let swept = store.sweep(2_999).await.unwrap();
    assert_eq!((swept.removed, swept.more), (1, false));
}

#[tokio::test]
async fn st12_a_sweep_waits_for_nobody_and_nobody_for_a_sweep() {
    let table = Table::new().await;
    let store = table.open().await;
    fill(&table, 5_000).await;
    // Somebody is at two of the records: one is locked, and stays so.
    let mut other = sqlx::PgPool::connect(&table.url).await.unwrap().begin().await.unwrap();
    let lock = format!("SELECT 1 FROM {} ORDER BY expires_at LIMIT 2 FOR UPDATE", table.name);
    sqlx::query(sqlx::AssertSqlSafe(lock)).execute(&mut *other).await.unwrap();

    let sweeper = tokio::spawn({
        let store = store.clone();
        async move { store.sweep(10_000).await.unwrap() }
    });
    let mut claims = 0_u64;
    while !sweeper.is_finished() {
        // Of new keys, and of keys that are being swept.
        acquire(&store, &claim(operation())).await;
        acquire(&store, &claim(number_in_sql(claims % 5_000 + 10))).await;
        claims += 1;
    }
    let swept = sweeper.await.unwrap();
    assert!(swept.removed <= 4_998 && !swept.more, "{swept:?}");
    other.rollback().await.unwrap();

    while store.sweep(100).await.unwrap().removed > 0 {}
    assert_eq!(store.count().await.unwrap().in_flight, claims * 2, "every claim is there");
}

#[tokio::test]
async fn st8_a_claim_that_is_renewed_meanwhile_is_not_swept() {
    let table = Table::new().await;
    let store = table.open().await;
    let claim = Claim { lease: BRIEF, retention: BRIEF, ..claim(operation()) };
    let lease = acquire(&store, &claim).await;
    let kept = store.renew(&lease, LONG).await.unwrap();
    let swept = store.sweep(10).await.unwrap();
    // Either the record was over before it was renewed, or it is live and stays.
    assert_eq!(kept == Held::Applied, swept.removed == 0, "{kept:?} {swept:?}");
}

/// What the server can say, said by a trigger on claims.
#[tokio::test]
async fn the_servers_errors_are_told_apart() {
    use StoreErrorKind::{Full, Misconfigured, Timeout, TooLarge, Unavailable, Unreadable};
    let table = Table::new().await;
    let patient = table.open().await;
    let hasty = table.builder().timeout(Duration::from_millis(300)).open().await.unwrap();
    for (code, kind, says) in [
        ("53100", Full, "its disk is full"),
        ("54000", TooLarge, ""),
        ("57014", Timeout, ""),
        // Tried again for as long as the call may take.
        ("40001", Timeout, ""),
        ("40P01", Timeout, ""),
        ("XX001", Unreadable, ""),
        ("25006", Misconfigured, "name the primary"),
        ("42501", Misconfigured, "grant this user"),
        ("42P10", Misconfigured, "not as `PostgresStore::schema` prints it"),
        ("57P01", Unavailable, ""),
        ("53200", Unavailable, ""),
        ("XX000", Unavailable, ""),
    ] {
        let function = format!("refuse_{}_{code}", table.name);
        table
            .run(&format!(
                "CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '{code}'; END $$"
            ))
            .await;
        table
            .run(&format!(
                "CREATE TRIGGER refuse BEFORE INSERT ON {{table}}
                FOR EACH ROW EXECUTE FUNCTION {function}()"
            ))
            .await;
        let store = if code.starts_with("40") { &hasty } else { &patient };
        let error = store.begin(&claim(operation())).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{code}: {error}");
        assert!(error.to_string().contains(says), "{code}: {error}");
        table.run("DROP TRIGGER refuse ON {table}").await;
        acquire(&patient, &claim(operation())).await;
    }
}

#[tokio::test]
async fn the_rows_are_read_by_anybody() {
    let table = Table::new().await;
    let store = table.open().await;
    let lease = acquire(&store, &claim(operation())).await;
    let _ = store.complete(&lease, &claim(lease.id).fingerprint, "done".into(), LONG).await;
    let rows = table.run("SELECT 1 FROM {table} WHERE state = 1 AND expires_at > now()").await;
    assert_eq!(rows.len(), 1);
    let entry = store.get(&lease.id).await.unwrap().unwrap();
    assert!(matches!(entry.state, State::Finished { payload } if payload == "done"));
    assert!(entry.expires_in <= LONG && entry.expires_in > LONG - Duration::from_secs(60));
}

fn id(claim: &Claim) -> String {
    let digits: String = claim.id.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("id = '\\x{digits}'")
}

/// The operation that [`fill`] has written with this number.
fn number_in_sql(number: u64) -> retrysafe_core::OperationId {
    let mut id = [0; 32];
    id[24..].copy_from_slice(&number.to_be_bytes());
    retrysafe_core::OperationId::from_bytes(id)
}

/// Writes so many records that are past their retention.
async fn fill(table: &Table, records: u32) {
    let fingerprint = "0".repeat(72);
    table
        .run(&format!(
            "INSERT INTO {{table}} (id, owner, fence, layout, state, previous_vanished,
                fingerprint, expires_at, payload)
            SELECT decode(repeat('00', 24), 'hex') || int8send(n), NULL, 1, 1, 1, false,
                '\\x{fingerprint}', now() - interval '1 hour' + n * interval '1 ms', '\\x00'
            FROM generate_series(1, {records}) n"
        ))
        .await;
}
