//! What can be wrong with a server, a database, a table or a user.

use retrysafe_core::{Held, Inspect as _, Store as _, StoreError, StoreErrorKind};
use retrysafe_sqlx::{MySqlStore, MySqlStoreBuilder, OpenError, OpenErrorKind};
use retrysafe_testkit::servers::{MariadbServer, Wire};

use crate::{LONG, Table, acquire, claim, operation};

/// Opens a store that can't be opened; checks that the error is a line that says nothing secret.
async fn refused(builder: MySqlStoreBuilder) -> OpenError {
    let error = builder.open().await.unwrap_err();
    let line = error.to_string();
    assert!(line.starts_with("cannot open ") && !line.contains('\n'), "{line}");
    assert!(!line.contains("retrysafe:retrysafe") && !line.contains("secret"), "{line}");
    error
}

/// The URL of a user of the shared server with some rights, on `*` or on the table.
async fn user(table: &Table, rights: &str, on: &str) -> String {
    let server = MariadbServer::shared().await;
    let name = table.name.replace("record", "user");
    let database = table.url.rsplit('/').next().unwrap();
    server.query(&format!("CREATE USER {name}@'%' IDENTIFIED BY 'secret'")).await;
    server.query(&format!("GRANT {rights} ON {database}.{on} TO {name}@'%'")).await;
    format!("mysql://{name}:secret@{}/{database}", server.addr())
}

#[tokio::test]
async fn a_url_that_can_not_be_meant_is_refused() {
    for url in [
        "",
        "retrysafe.db",
        "postgres://user:secret@127.0.0.1/orders",
        "mysql://user:secret@127.0.0.1",
        "mysql://user:sec/ret@127.0.0.1:99999999/orders",
    ] {
        let error = refused(MySqlStore::builder(url)).await;
        assert_eq!(error.kind(), OpenErrorKind::Setting, "{error}");
        assert_eq!(StoreError::from(error).kind(), StoreErrorKind::Misconfigured);
    }
    for name in ["", "a b", "a`b", "x; DROP TABLE y", "Records"] {
        let error = refused(MySqlStore::builder("mysql://u@127.0.0.1/d").table(name)).await;
        assert_eq!(error.kind(), OpenErrorKind::Setting, "{error}");
        assert!(MySqlStore::schema(name).is_err());
    }
}

#[tokio::test]
async fn s3_debug_shows_no_password() {
    let builder = MySqlStore::builder("mysql://user:secret@127.0.0.1/orders");
    let shown = format!("{builder:?}");
    assert!(shown.contains("127.0.0.1:3306/orders") && !shown.contains("secret"), "{shown}");
    let shown = format!("{:?}", Table::new().await.open().await);
    assert!(shown.contains("127.0.0.1:") && !shown.contains("retrysafe:"), "{shown}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable() {
    let table = Table::new().await;
    let wire = Wire::to(MariadbServer::shared().await.addr()).await;
    let through = MySqlStore::builder(wire.url_for(&table.url));
    wire.refuse().await;
    let error = refused(through).await;
    assert_eq!(error.kind(), OpenErrorKind::Unreachable, "{error}");
    assert_eq!(StoreError::from(error).kind(), StoreErrorKind::Unreachable);
}

#[tokio::test]
async fn a_wrong_password_is_said() {
    let table = Table::new().await;
    let error = refused(MySqlStore::builder(table.url.replace(":retrysafe@", ":secret@"))).await;
    assert_eq!(error.kind(), OpenErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("check the user and the password"), "{error}");
}

#[tokio::test]
async fn a_database_that_does_not_exist_is_said() {
    let table = Table::new().await;
    let (server, _) = table.url.rsplit_once('/').unwrap();
    let error = refused(MySqlStore::builder(format!("{server}/nowhere")).migrate()).await;
    assert_eq!(error.kind(), OpenErrorKind::Missing, "{error}");
    assert!(error.to_string().contains("name a database that exists"), "{error}");
}

#[tokio::test]
async fn a_missing_table_is_said() {
    let table = Table::new().await;
    let error = refused(MySqlStore::builder(&table.url).table(&table.name)).await;
    assert_eq!(error.kind(), OpenErrorKind::Missing, "{error}");
    assert!(error.to_string().contains("migrate()"), "{error}");

    // What schema() prints does as well.
    table.run(&MySqlStore::schema(&table.name).unwrap()).await;
    let store = MySqlStore::builder(&table.url).table(&table.name).open().await.unwrap();
    acquire(&store, &claim(operation())).await;

    // It goes away under an open store.
    table.run("DROP TABLE {table}").await;
    let error = store.begin(&claim(operation())).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Misconfigured, "{error}");
    assert!(error.to_string().contains("migrate()"), "{error}");
}

#[tokio::test]
async fn the_table_may_be_in_another_database() {
    let table = Table::new().await;
    let database = table.url.rsplit('/').next().unwrap();
    let elsewhere = MariadbServer::shared().await.fresh_database().await;
    let qualified = format!("{database}.{}", table.name);
    let store = MySqlStore::builder(elsewhere).table(qualified).migrate().open().await.unwrap();
    let owned = claim(operation());
    acquire(&store, &owned).await;
    let same = table.open().await.get(&owned.id).await.unwrap();
    assert!(same.is_some());
}

#[tokio::test]
async fn a_user_without_the_rights_is_said() {
    let table = Table::new().await;
    let url = user(&table, "SELECT", "*").await;
    let error = refused(MySqlStore::builder(&url).table(&table.name).migrate()).await;
    assert_eq!(error.kind(), OpenErrorKind::Denied, "may not create: {error}");
    table.open().await;
    let error = refused(MySqlStore::builder(&url).table(&table.name)).await;
    assert_eq!(error.kind(), OpenErrorKind::Denied, "may not insert: {error}");
    assert!(error.to_string().contains("grant this user SELECT, INSERT"), "{error}");

    let table = Table::new().await;
    table.open().await;
    let url = user(&table, "SELECT, INSERT, UPDATE, DELETE", &table.name).await;
    let store = MySqlStore::builder(&url).table(&table.name).open().await.unwrap();
    let owned = claim(operation());
    let lease = acquire(&store, &owned).await;

    // The rights go away under an open store.
    let (name, database) = (table.name.replace("record", "user"), table.url.rsplit('/').next());
    let revoke = format!("REVOKE UPDATE ON {}.{} FROM {name}@'%'", database.unwrap(), table.name);
    MariadbServer::shared().await.query(&revoke).await;
    let error = store.complete(&lease, &owned.fingerprint, "done".into(), LONG).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Misconfigured, "{error}");
}

#[tokio::test]
async fn a_table_that_is_not_ours_is_refused() {
    for (what, mend) in [
        ("is of the engine", "ALTER TABLE {table} ENGINE = MyISAM"),
        ("should have one unique index", "ALTER TABLE {table} DROP PRIMARY KEY"),
        (
            "should have one unique index",
            "ALTER TABLE {table} DROP PRIMARY KEY, ADD PRIMARY KEY (id (8))",
        ),
        ("should have one unique index", "ALTER TABLE {table} ADD UNIQUE KEY other (fingerprint)"),
        ("has no column id binary(32)", "ALTER TABLE {table} MODIFY id CHAR(32) NOT NULL"),
        ("has no column expires_at datetime(6)", "ALTER TABLE {table} MODIFY expires_at DATETIME"),
        ("has no column payload longblob", "ALTER TABLE {table} MODIFY payload TEXT"),
        ("has no column owner", "ALTER TABLE {table} DROP COLUMN owner"),
        ("is not as", "ALTER TABLE {table} DROP COLUMN state"),
        ("is not as", "ALTER TABLE {table} DROP KEY by_expiry"),
    ] {
        let table = Table::new().await;
        table.run(&MySqlStore::schema(&table.name).unwrap()).await;
        table.run(mend).await;
        let error = refused(table.builder()).await;
        assert_eq!(error.kind(), OpenErrorKind::Unsuitable, "{mend}: {error}");
        assert!(error.to_string().contains(what), "{mend}: {error}");
    }
}

#[tokio::test]
async fn a_server_that_may_not_be_written_is_refused() {
    let server = MariadbServer::start().await;
    let table = Table::at(&server.fresh_database().await);
    table.open().await;
    let database = table.url.rsplit('/').next().unwrap();
    server.query("CREATE USER clerk@'%' IDENTIFIED BY 'secret'").await;
    server
        .query(&format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {database}.* TO clerk@'%'"))
        .await;
    let wire = Wire::to(server.addr()).await;
    let url = format!("mysql://clerk:secret@{}/{database}", wire.addr());
    let clerk = || MySqlStore::builder(&url).table(&table.name).timeout(crate::PATIENCE);
    let store = clerk().open().await.unwrap();
    let owned = claim(operation());
    let lease = acquire(&store, &owned).await;

    // As a primary becomes a replica: under an open store, and for who comes later.
    server.query("SET GLOBAL read_only = 1").await;
    let error = store.begin(&claim(operation())).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Misconfigured, "{error}");
    assert!(error.to_string().contains("name the primary"), "{error}");
    // It connects anew: the address may lead to the new primary by now.
    let connections = wire.connections();
    let error = store.complete(&lease, &owned.fingerprint, "done".into(), LONG).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Misconfigured, "{error}");
    assert_eq!(wire.connections(), connections + 1);
    assert_eq!(refused(clerk()).await.kind(), OpenErrorKind::Unsuitable);
    assert_eq!(refused(table.builder()).await.kind(), OpenErrorKind::Unsuitable, "may write still");

    server.query("SET GLOBAL read_only = 0").await;
    let done = store.complete(&lease, &owned.fingerprint, "done".into(), LONG).await;
    assert_eq!(done.unwrap(), Held::Applied);
}

#[tokio::test]
async fn a_log_of_statements_is_refused() {
    let server = MariadbServer::with(&["--log-bin=log", "--binlog-format=STATEMENT"]).await;
    let error = refused(Table::at(&server.fresh_database().await).builder()).await;
    assert_eq!(error.kind(), OpenErrorKind::Unsuitable, "{error}");
    assert!(error.to_string().contains("ROW or MIXED"), "{error}");

    // It is set so under an open store, for connections to come.
    server.query("SET GLOBAL binlog_format = MIXED").await;
    let wire = Wire::to(server.addr()).await;
    let url = wire.url_for(&server.fresh_database().await);
    let store = Table::at(&url).open().await;
    acquire(&store, &claim(operation())).await;
    server.query("SET GLOBAL binlog_format = STATEMENT").await;
    wire.reset().await;
    let error = store.begin(&claim(operation())).await.unwrap_err();
    assert!(error.to_string().contains("ROW or MIXED"), "{error}");
}

#[tokio::test]
async fn st10_the_largest_packet_limits_the_payload() {
    let server = MariadbServer::with(&["--max-allowed-packet=40M"]).await;
    let table = Table::at(&server.fresh_database().await);
    let store = table.open().await;
    let most = store.about().max_payload;
    assert!(most < 40 << 20 && most > (40 << 20) - 4096, "{most}");
    let owned = claim(operation());
    let lease = acquire(&store, &owned).await;
    let complete = |bytes| store.complete(&lease, &owned.fingerprint, vec![7; bytes].into(), LONG);
    let error = complete(most + 1).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::TooLarge, "{error}");
    assert_eq!(complete(most).await.unwrap(), Held::Applied);
    let entry = store.get(&owned.id).await.unwrap().unwrap();
    assert!(entry.state == retrysafe_core::State::Finished { payload: vec![7; most].into() });

    let small = table.builder().max_payload(1000).open().await.unwrap();
    assert_eq!(small.about().max_payload, 1000);
}

#[tokio::test]
async fn st8_a_full_server_refuses_and_drops_nothing() {
    // A tablespace that can't grow.
    let settings = ["--innodb-data-file-path=ibdata1:12M", "--skip-innodb-file-per-table"];
    let server = MariadbServer::with(&settings).await;
    let store = Table::at(&server.fresh_database().await).open().await;
    let kept = claim(operation());
    let lease = acquire(&store, &kept).await;
    let done = store.complete(&lease, &kept.fingerprint, "kept".into(), LONG).await;
    assert_eq!(done.unwrap(), Held::Applied);
    let refused = loop {
        let filling = claim(operation());
        let lease = match store.begin(&filling).await {
            Ok(begun) => match begun {
                retrysafe_core::Begin::Acquired(acquired) => crate::lease(&filling, acquired),
                found => panic!("{found:?}"),
            },
            Err(error) => break error,
        };
        let payload = vec![7; 1 << 20];
        if let Err(error) = store.complete(&lease, &filling.fingerprint, payload.into(), LONG).await
        {
            break error;
        }
    };
    assert_eq!(refused.kind(), StoreErrorKind::Full, "{refused}");
    let begun = store.begin(&claim(kept.id)).await.unwrap();
    let retrysafe_core::Begin::Found(retrysafe_core::Found::Finished { payload, .. }) = begun
    else {
        panic!("ST8: {begun:?}")
    };
    assert_eq!(payload, "kept");
}
