//! What can be wrong with a server, a user or a table: one clear error each, and no record touched.

use std::time::Duration;

use retrysafe_core::{Inspect as _, Store as _, StoreError, StoreErrorKind};
use retrysafe_sqlx::{OpenError, OpenErrorKind, PostgresStore, PostgresStoreBuilder};
use retrysafe_testkit::servers::{PostgresPair, PostgresServer, Wire};
use sqlx::postgres::PgPoolOptions;

use crate::{LONG, Table, acquire, claim, operation, run};

/// Opens what can't be opened; checks that the error is a line without the password.
async fn refused(builder: PostgresStoreBuilder) -> OpenError {
    let error = builder.open().await.unwrap_err();
    let line = error.to_string();
    assert!(line.contains("PostgreSQL") && !line.contains('\n'), "{line}");
    assert!(!line.contains("secret") && !format!("{error:?}").contains("secret"), "{line}");
    error
}

fn assert_says(error: &OpenError, kind: OpenErrorKind, what: &str) {
    assert!(error.kind() == kind && error.to_string().contains(what), "{kind:?} {what}: {error}");
}

/// A user of its own with a password, who may connect to the table's database.
async fn user(table: &Table) -> (String, Table) {
    let name = table.name.replace("record", "user");
    table.run(&format!("CREATE ROLE {name} LOGIN PASSWORD 'secret'")).await;
    let url = table.url.replacen("postgres:retrysafe@", &format!("{name}:secret@"), 1);
    assert_ne!(url, table.url);
    (name, Table { url, ..table.clone() })
}

#[tokio::test]
async fn a_url_that_is_none_is_refused() {
    let error = refused(PostgresStore::builder("postgres://u:secret@host:port/d")).await;
    assert_says(&error, OpenErrorKind::Setting, "postgres://USER:PASSWORD@HOST");
    let error = refused(PostgresStore::builder("nonsense")).await;
    assert_says(&error, OpenErrorKind::Setting, "url");
}

#[tokio::test]
async fn bad_settings_are_named() {
    let builder = || PostgresStore::builder("postgres://host/d");
    for (builder, setting) in [
        (builder().table("Robert'); DROP TABLE"), "table"),
        (builder().timeout(Duration::ZERO), "timeout"),
        (builder().poll_interval(Duration::ZERO), "poll_interval"),
        (builder().max_connections(0), "max_connections"),
        (builder().max_payload(usize::MAX), "max_payload"),
    ] {
        assert_says(&refused(builder).await, OpenErrorKind::Setting, setting);
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable() {
    let wire = Wire::to(PostgresServer::shared().await.addr()).await;
    wire.refuse().await;
    let url = wire.url_for(&PostgresServer::shared().await.url());
    let error = refused(PostgresStore::builder(&url)).await;
    assert_says(&error, OpenErrorKind::Unreachable, &wire.addr().to_string());
    assert_eq!(StoreError::from(error).kind(), StoreErrorKind::Unreachable);

    // Opened later, it is the verb that says so, and the store recovers by itself.
    let table = Table { url: wire.url_for(&Table::new().await.url), ..Table::new().await };
    let store = table.builder().open_later().unwrap();
    let claim = claim(operation());
    let error = store.begin(&claim).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unreachable, "{error}");
    wire.accept().await;
    acquire(&store, &claim).await;
}

#[tokio::test]
async fn a_wrong_password_is_denied() {
    let table = Table::new().await;
    let (_, table) = user(&table).await;
    let url = table.url.replacen(":secret@", ":secret2@", 1);
    let error = refused(PostgresStore::builder(url)).await;
    assert_says(&error, OpenErrorKind::Denied, "check user and password");
    assert_eq!(StoreError::from(error).kind(), StoreErrorKind::Misconfigured);
}

#[tokio::test]
async fn a_wrong_database_is_missing() {
    let url = Table::new().await.url.replace("/retrysafe_", "/no_retrysafe_");
    let error = refused(PostgresStore::builder(url)).await;
    assert_says(&error, OpenErrorKind::Missing, "create the database");
}

#[tokio::test]
async fn a_missing_table_is_named_with_what_creates_it() {
    let table = Table::new().await;
    let store = PostgresStore::builder(&table.url).table(&table.name);
    let error = refused(store).await;
    assert_says(&error, OpenErrorKind::Missing, &table.name);
    assert_says(&error, OpenErrorKind::Missing, "open the store with `migrate()`");
    assert_eq!(StoreError::from(error).kind(), StoreErrorKind::Misconfigured);

    // One that goes away later.
    let store = table.open().await;
    table.run("DROP TABLE {table}").await;
    let error = store.begin(&claim(operation())).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Misconfigured, "{error}");
    assert!(error.to_string().contains("does not exist; open the store with"), "{error}");
}

#[tokio::test]
async fn no_right_to_create_the_table_is_denied() {
    let table = Table::new().await;
    let (name, of_user) = user(&table).await;
    table.run("REVOKE CREATE ON SCHEMA public FROM public").await;
    let error = refused(of_user.builder()).await;
    assert_says(&error, OpenErrorKind::Denied, "takes CREATE on its schema");

    // With a table that somebody else has made, fewer rights do.
    table.open().await;
    let error = refused(of_user.builder()).await;
    assert_says(&error, OpenErrorKind::Denied, "SELECT, INSERT, UPDATE and DELETE");
    table.run(&format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {{table}} TO {name}")).await;
    let store = of_user.open().await;
    acquire(&store, &claim(operation())).await;
    table.run(&format!("REVOKE UPDATE ON {{table}} FROM {name}")).await;
    let error = store.begin(&claim(operation())).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Misconfigured, "{error}");
}

#[tokio::test]
async fn a_table_of_another_shape_is_refused() {
    let table = Table::new().await;
    table.run("CREATE TABLE {table} (id bytea PRIMARY KEY, name text)").await;
    let error = refused(table.builder()).await;
    assert_says(&error, OpenErrorKind::Unsuitable, "is not as `PostgresStore::schema` prints");
}

#[tokio::test]
async fn a_standby_and_a_read_only_database_are_refused() {
    let pair = PostgresPair::start().await;
    let url = pair.primary.fresh_database().await;
    let table = Table::at(&url).await;
    let store = table.open().await;
    pair.standby_has_replayed().await;
    let error = refused(PostgresStore::builder(pair.on_standby(&url)).table(&table.name)).await;
    assert_says(&error, OpenErrorKind::Unsuitable, "it is a standby");
    let pool = PgPoolOptions::new().connect(&pair.on_standby(&url)).await.unwrap();
    let error = refused(PostgresStore::from_pool(pool).table(&table.name)).await;
    assert_says(&error, OpenErrorKind::Unsuitable, "it is a standby");

    // A role that becomes read-only while the store is open.
    let read_only = format!("{url}?options=-c%20default_transaction_read_only=on");
    let error = refused(PostgresStore::builder(&read_only).table(&table.name)).await;
    assert_says(&error, OpenErrorKind::Unsuitable, "read-only");
    acquire(&store, &claim(operation())).await;
}

#[tokio::test]
async fn many_may_create_the_table_at_once() {
    let table = Table::new().await;
    let opened: Vec<_> = (0..8)
        .map(|_| {
            let table = table.clone();
            tokio::spawn(async move { table.open().await })
        })
        .collect();
    let claim = claim(operation());
    let mut granted = 0;
    for store in opened {
        let begun = store.await.unwrap().begin(&claim).await.unwrap();
        granted += usize::from(matches!(begun, retrysafe_core::Begin::Acquired(_)));
    }
    assert_eq!(granted, 8, "one claim, repeated");
}

#[tokio::test]
async fn the_printed_schema_is_the_one_that_is_used() {
    let table = Table::new().await;
    let printed = PostgresStore::schema(&table.name).unwrap();
    for statement in printed.split_inclusive(';').filter(|it| !it.trim().is_empty()) {
        run(&table.url, statement).await;
    }
    let store = PostgresStore::builder(&table.url).table(&table.name).open().await.unwrap();
    acquire(&store, &claim(operation())).await;
    assert_eq!(store.count().await.unwrap().in_flight, 1);
}

#[tokio::test]
async fn a_table_in_a_schema_works_as_one_without() {
    let table = Table::new().await;
    let schema = table.name.replace("record", "schema");
    table.run(&format!("CREATE SCHEMA {schema}")).await;
    let table = Table { name: format!("{schema}.{}", table.name), ..table };
    let store = table.open().await;
    let lease = acquire(&store, &claim(operation())).await;
    assert_eq!(store.release(&lease, LONG).await.unwrap(), retrysafe_core::Held::Applied);
}

#[tokio::test]
async fn s3_debug_shows_no_password() {
    let url = "postgres://u:secret@host/d";
    let builder = PostgresStore::builder(url);
    assert!(!format!("{builder:?}").contains("secret"));
    let store = builder.open_later().unwrap();
    assert!(!format!("{store:?}").contains("secret"), "{store:?}");
    assert!(format!("{store:?}").contains("host:5432/d"), "{store:?}");
}
