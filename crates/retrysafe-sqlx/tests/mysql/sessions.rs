//! A server whose defaults are all against us, and what a pool of the user's is used for.

use std::time::Duration;

use retrysafe_core::{Claim, Held, Inspect as _, State, Store as _};
use retrysafe_sqlx::MySqlStore;
use retrysafe_testkit::{contract, servers::MariadbServer};
use sqlx::{Connection as _, mysql::MySqlPoolOptions};
use tokio::time::Instant;

use crate::{LONG, PATIENCE, Table, acquire, claim, contract::Database, operation};

/// Sessions that are serializable, do not commit, bend values instead of refusing them, read `"` and
/// `||` in another way, wait for locks for ever, and are half a day away from UTC.
const HOSTILE: [&str; 6] = [
    "--transaction-isolation=SERIALIZABLE",
    "--autocommit=0",
    "--sql-mode=ANSI_QUOTES,NO_BACKSLASH_ESCAPES,SIMULTANEOUS_ASSIGNMENT,PAD_CHAR_TO_FULL_LENGTH",
    "--innodb-lock-wait-timeout=100000",
    "--default-time-zone=-11:30",
    "--character-set-server=latin1",
];

/// ST7: by the server's clock, which is half a day off ours.
async fn a_lease_ends_in_time(table: Table) {
    const LEASE: Duration = Duration::from_millis(200);
    let store = table.open().await;
    let owned = Claim { lease: LEASE, ..claim(operation()) };
    let begun = Instant::now();
    acquire(&store, &owned).await;
    let lapses =
        async { while store.get(&owned.id).await.unwrap().unwrap().state != State::Lapsed {} };
    tokio::time::timeout(PATIENCE, lapses).await.expect("the lease ends");
    assert!(begun.elapsed() >= LEASE, "and not early");
}

async fn keeps_the_contract(settings: &[&str]) {
    let server = MariadbServer::with(settings).await;
    let url = server.fresh_database().await;
    a_lease_ends_in_time(Table::at(&url)).await;
    let database = || Database::of(Table::at(&url), 4);
    contract::race_begin_of_a_free_key(&database().await).await;
    contract::race_begin_of_an_expired_key(&database().await).await;
    contract::race_begin_of_a_released_key(&database().await).await;
    contract::race_take_over_of_a_lapsed_lease(&database().await).await;
    contract::race_complete_against_take_over(&database().await).await;
    contract::race_sweep_against_claims(&database().await).await;
    contract::random_histories_are_linearizable(&database().await).await;
    contract::random_walks_agree_with_the_model(&database().await).await;
    contract::st7_every_handle_judges_alike(&database().await).await;
    contract::st7_a_renewal_counts_from_now(&database().await).await;
    contract::st10_payloads_come_back_exactly(&database().await).await;
    contract::st10_fingerprints_come_back_exactly(&database().await).await;
    contract::inspect_pages_in_order(&database().await).await;
    contract::missing_deadline(&database().await).await;
}

#[test]
fn st1_the_servers_defaults_do_not_matter() {
    contract::run(keeps_the_contract(&HOSTILE));
}

#[test]
fn st1_nothing_uncommitted_is_read() {
    contract::run(async {
        let settings = ["--transaction-isolation=READ-UNCOMMITTED"];
        let server = MariadbServer::with(&settings).await;
        let table = Table::at(&server.fresh_database().await);
        let store = table.open().await;
        let owned = claim(operation());
        let lease = acquire(&store, &owned).await;

        // Somebody finishes the record by hand, and takes it back.
        let mut hand = sqlx::MySqlConnection::connect(&table.url).await.unwrap();
        let finish = format!(
            "START TRANSACTION; UPDATE {} SET state = 1, payload = 'no', lease_until = NULL",
            table.name
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(finish)).execute(&mut hand).await.unwrap();
        let entry = store.get(&owned.id).await.unwrap().unwrap();
        assert!(matches!(entry.state, State::InFlight { .. }), "{entry:?}");
        sqlx::raw_sql("ROLLBACK").execute(&mut hand).await.unwrap();
        let held = store.complete(&lease, &owned.fingerprint, "yes".into(), LONG).await.unwrap();
        assert_eq!(held, Held::Applied);
    });
}

#[test]
fn a_pool_says_where_to_connect_and_is_not_used_up() {
    contract::run(async {
        let table = Table::new().await;
        let pool = MySqlPoolOptions::new().max_connections(1).connect(&table.url).await.unwrap();
        // waiters_eat_pool: the application holds every connection that it has.
        let _all = pool.acquire().await.unwrap();
        let builder = MySqlStore::from_pool(pool).table(&table.name).migrate();
        let store = builder.timeout(PATIENCE).open().await.unwrap();
        let owned = claim(operation());
        let lease = acquire(&store, &owned).await;
        let done = store.complete(&lease, &owned.fingerprint, "done".into(), LONG).await;
        assert_eq!(done.unwrap(), Held::Applied);
    });
}
