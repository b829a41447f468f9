//! Sweeping takes room from nobody (ST12).

use std::sync::Arc;

use retrysafe_core::{Begin, Found, OperationId, Store as _, Swept};
use sqlx::{Connection as _, MySqlConnection};

use crate::{Table, acquire, claim, literal, numbered};

const EXPIRED: u64 = 3_000;

/// Fills a table with records that are past their retention.
async fn expired(table: &Table, numbers: impl Iterator<Item = u64>) {
    let numbers: Vec<_> = numbers.collect();
    for numbers in numbers.chunks(500) {
        let rows: Vec<_> = numbers
            .iter()
            .map(|number| {
                format!(
                    "({}, REPEAT('o', 16), 1, 1, 1, 0, NULL, NULL,
                    UTC_TIMESTAMP(6) - INTERVAL 1 HOUR, REPEAT('f', 36), 'old')",
                    literal(&numbered(*number))
                )
            })
            .collect();
        let columns = "id, owner, fence, layout, state, previous_vanished, lease_until, retention,
            expires_at, fingerprint, payload";
        let insert = format!("INSERT INTO {{table}} ({columns}) VALUES {}", rows.join(", "));
        table.run(&insert).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn st12_claims_go_on_while_thousands_are_swept() {
    let table = Table::new().await;
    let store = Arc::new(table.open().await);
    expired(&table, 0..EXPIRED).await;

    let sweep = tokio::spawn({
        let store = store.clone();
        async move {
            let (mut removed, mut calls) = (0, 0);
            loop {
                let swept = store.sweep(250).await.unwrap();
                assert!(swept.removed <= 250);
                (removed, calls) = (removed + swept.removed, calls + 1);
                if !swept.more {
                    return (removed, calls);
                }
            }
        }
    });
    // Free keys, and keys that the sweep is about to remove.
    let mut claimed = 0;
    for number in (EXPIRED..EXPIRED + 100).chain((0..EXPIRED).step_by(30)) {
        let lease = acquire(&*store, &claim(numbered(number))).await;
        assert_eq!(lease.attempt, 1, "ST8: expired, swept or not");
        claimed += 1;
    }
    let (removed, calls) = sweep.await.unwrap();
    assert!(removed > 0 && removed as u64 <= EXPIRED && calls >= 3, "{removed} in {calls} calls");
    // Whatever was claimed is there, and nothing else.
    let rows = table.run("SELECT id FROM {table} WHERE state = 0").await;
    assert_eq!(rows.len(), claimed);
    assert_eq!(store.sweep(10).await.unwrap(), Swept { removed: 0, more: false });
    assert_eq!(table.run("SELECT id FROM {table}").await.len(), claimed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn st12_a_sweep_that_waits_holds_up_no_other_key() {
    let table = Table::new().await;
    let store = Arc::new(table.open().await);
    expired(&table, (0..100).map(|number| number * 2)).await;

    // Somebody holds the last of them.
    let mut hand = MySqlConnection::connect(&table.url).await.unwrap();
    let mut ids: Vec<_> = (0..100).map(|number| numbered(number * 2)).collect();
    ids.sort_by_key(|id| *id.as_bytes());
    let last: &OperationId = ids.last().unwrap();
    let hold = format!(
        "START TRANSACTION; SELECT 1 FROM {} WHERE id = {} FOR UPDATE",
        table.name,
        literal(last)
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(hold)).execute(&mut hand).await.unwrap();
    let sweep = tokio::spawn({
        let store = store.clone();
        async move { store.sweep(1_000).await }
    });
    // It locks the others, and waits for the last.
    let sweeping = format!(
        "SELECT 1 FROM information_schema.PROCESSLIST WHERE INFO LIKE 'DELETE record FROM%{}%'",
        table.name
    );
    let begins = async {
        while table.run(&sweeping).await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::PATIENCE, begins).await.expect("the sweep begins");
    // Keys between those that are locked: no gap is.
    for number in 0..100 {
        acquire(&*store, &claim(numbered(number * 2 + 1))).await;
        let begun = store.begin(&claim(numbered(number * 2 + 1))).await.unwrap();
        assert!(matches!(begun, Begin::Found(Found::InFlight { .. })), "{begun:?}");
    }
    sqlx::raw_sql("ROLLBACK").execute(&mut hand).await.unwrap();
    let swept = sweep.await.unwrap().unwrap();
    assert_eq!(swept, Swept { removed: 100, more: false });
}

#[tokio::test]
async fn st10_a_newer_builds_record_is_not_swept() {
    let table = Table::new().await;
    let store = table.open().await;
    expired(&table, 0..10).await;
    table.run("UPDATE {table} SET layout = 2 ORDER BY id LIMIT 4").await;
    assert_eq!(store.sweep(100).await.unwrap(), Swept { removed: 6, more: false });
    assert_eq!(table.run("SELECT id FROM {table}").await.len(), 4);
}
