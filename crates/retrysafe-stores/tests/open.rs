//! Stores by URL, through the public door.

#![expect(clippy::unwrap_used, reason = "a test says what failed by where it panics")]
#![allow(dead_code, unused_imports, reason = "which store is built in decides what is tested")]

use std::time::Duration;

use retrysafe_core::{
    Algorithm, Begin, Claim, Entropy as _, Fingerprint, OperationId, Owner, Store as _,
    SystemEntropy,
};
use retrysafe_stores::{OpenStore, open, open_existing};

fn claim_of(id: OperationId) -> Claim {
    Claim {
        id,
        owner: Owner::new(&SystemEntropy),
        fingerprint: Fingerprint { algorithm: Algorithm::from_u32(1), head: [1; 32], body: None },
        lease: Duration::from_secs(30),
        retention: Duration::from_secs(60),
        take_over: false,
    }
}

fn claim() -> Claim {
    claim_of(OperationId::from_bytes([1; 32]))
}

/// A name that no other test has.
fn fresh(start: &str) -> String {
    format!("{start}_{:016x}", SystemEntropy.next_u128() as u64)
}

async fn store_and_inspect_share_their_records(opened: &OpenStore) {
    assert!(matches!(opened.store.begin(&claim()).await.unwrap(), Begin::Acquired(_)));
    assert_eq!(opened.inspect.count().await.unwrap().in_flight, 1);
}

/// A server that can be used: what is not there is made, and is found again.
async fn is_opened(url: &str, engine: &str, shown: &str) {
    let opened = open(url).await.unwrap();
    assert_eq!(opened.store.about().engine, engine);
    assert_eq!(opened.url, shown, "S3: neither user nor password");
    store_and_inspect_share_their_records(&opened).await;
    let again = open_existing(url).await.unwrap();
    assert_eq!(again.inspect.count().await.unwrap().in_flight, 1);
}

/// One line that says what is wrong, without the password, and whether it is the URL itself.
#[track_caller]
fn is_refused(url: &str, opened: Result<OpenStore, retrysafe_stores::OpenError>) -> (bool, String) {
    let error = opened.expect_err(url);
    let line = error.to_string();
    assert!(!line.contains("secret") && !line.contains('\n'), "{url}: {line}");
    assert_eq!(line, format!("{error:?}"), "who unwraps reads the same");
    (error.is_config(), line)
}

/// The URL is fine; what it names is not.
async fn is_found_wanting(url: &str, says: &[&str]) {
    let (is_config, line) = is_refused(url, open(url).await);
    assert!(!is_config && says.iter().any(|says| line.contains(says)), "{url}: {line}");
}

/// The URL is wrong, which is known without asking a server.
async fn is_misspelt(url: &str, says: &str) {
    let (is_config, line) = is_refused(url, open(url).await);
    assert!(is_config && line.contains(says), "{url}: {line}");
}

/// Nobody listens there, and there is no such host.
async fn is_unreachable(scheme: &str, after: &str) {
    let nobody = format!("{scheme}://user:secret@127.0.0.1:1{after}");
    is_found_wanting(&nobody, &["127.0.0.1:1"]).await;
    let nowhere = format!("{scheme}://user:secret@no-such-host.invalid{after}");
    is_found_wanting(&nowhere, &["no-such-host.invalid"]).await;
}

#[tokio::test]
async fn memory() {
    let opened = open("memory:").await.unwrap();
    assert_eq!(opened.url, "memory:");
    assert_eq!(opened.store.about().engine, "memory");
    store_and_inspect_share_their_records(&opened).await;
    for same in ["memory://", "MEMORY:"] {
        assert_eq!(open(same).await.unwrap().url, "memory:");
    }
    let (is_config, line) = is_refused("memory:", open_existing("memory:").await);
    assert!(is_config && line.contains("its own process"), "{line}");
}

#[tokio::test]
async fn every_mistake_is_one_line_that_says_what_to_do() {
    for (url, says) in [
        ("", "memory:, sqlite:PATH, "),
        ("secret", "memory:, sqlite:PATH, "),
        ("retrysafe.db", "`sqlite:retrysafe.db`?"),
        ("memory:secret", "nothing"),
        ("sqllite:a.db", "`sqllite:`"),
        ("http://u:secret@h", "`http:`"),
        ("u/secret@h:1", "`...:`"),
    ] {
        is_misspelt(url, says).await;
    }
}

#[tokio::test]
async fn what_is_not_built_in_says_which_feature_it_needs() {
    for (built_in, feature, urls) in [
        (cfg!(feature = "sqlite"), "sqlite", &["sqlite:a.db"][..]),
        (
            cfg!(feature = "redis"),
            "redis",
            &["redis://u:secret@h", "rediss://h", "redis-cluster://h,i", "rediss-cluster://h"],
        ),
        (cfg!(feature = "postgres"), "postgres", &["postgres://u:secret@h/d", "postgresql://h/d"]),
        (cfg!(feature = "mysql"), "mysql", &["mysql://u:secret@h/d", "mariadb://h/d"]),
        (cfg!(feature = "nats"), "nats", &["nats://u:secret@h"]),
    ] {
        for url in urls.iter().filter(|_| !built_in) {
            is_misspelt(url, &format!("with the feature `{feature}`")).await;
        }
    }
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use super::*;

    #[tokio::test]
    async fn a_file_is_created_and_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("some orders.db");
        for (opening, url) in [
            format!("sqlite:{}", path.display()),
            format!(
                "sqlite://{}?synchronous=normal",
                path.display().to_string().replace(' ', "%20")
            ),
        ]
        .iter()
        .enumerate()
        {
            let opened = open(url).await.unwrap();
            assert_eq!(opened.store.about().engine, "sqlite");
            assert_eq!(opened.url, url.replace("sqlite://", "sqlite:").replace("%20", " "));
            if opening == 0 {
                store_and_inspect_share_their_records(&opened).await;
            } else {
                assert_eq!(opened.inspect.count().await.unwrap().in_flight, 1);
            }
        }
    }

    #[tokio::test]
    async fn a_file_that_can_not_be_opened_is_no_mistake_in_the_url() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("missing/orders.db");
        is_found_wanting(&format!("sqlite:{}", path.display()), &["missing"]).await;
    }

    #[tokio::test]
    async fn looking_creates_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("orders.db");
        let url = format!("sqlite:{}", path.display());
        let (is_config, line) = is_refused(&url, open_existing(&url).await);
        assert!(!is_config && line.contains("there is no store at"), "{line}");
        assert!(!path.exists());
    }
}

#[cfg(feature = "redis")]
mod redis {
    use retrysafe_testkit::servers::{RedisCluster, RedisServer};

    use super::*;

    #[tokio::test]
    async fn a_server_and_a_cluster_are_opened() {
        let server = RedisServer::with(&["--requirepass", "secret"]).await;
        let (url, address) = (server.url(), server.addr());
        let with = format!("{url}/1?prefix=shop%3A&durability=fast&timeout=30s");
        is_opened(&with, "redis", &format!("redis://{address}/1?{}", after_mark(&with))).await;
        // Another prefix, another store.
        let other = open(&format!("{url}/1?prefix=other:")).await.unwrap();
        assert_eq!(other.inspect.count().await.unwrap().in_flight, 0);

        is_found_wanting(&url.replace("secret", "secreter"), &["user or password"]).await;
        is_found_wanting(&format!("{url}/99"), &["no such database"]).await;
        let cluster = RedisCluster::shared().await;
        is_found_wanting(&cluster.urls()[0], &["redis-cluster://"]).await;
        let opened = open(&cluster.url()).await.unwrap();
        assert_eq!(opened.url, cluster.url());
    }

    #[tokio::test]
    async fn durability_waits_for_replicas() {
        let server = RedisServer::shared().await;
        let url = format!("{}?durability=replicas:1:20ms&prefix={}:", server.url(), fresh("none"));
        // There are none: nothing is granted.
        let opened = open(&url).await.unwrap();
        opened.store.begin(&claim()).await.unwrap_err();
    }

    #[tokio::test]
    async fn what_can_not_be_reached_is_said() {
        is_unreachable("redis", "").await;
    }

    #[tokio::test]
    async fn a_mistake_in_the_url_is_named() {
        is_misspelt("redis://u:secret@h?prefx=a", "no setting `prefx`; it has prefix, ").await;
        is_misspelt("redis://u:secret@h,i", "redis-cluster://").await;
        is_misspelt("redis://u:secret@h?durability=always", "replicas:1:500ms").await;
        is_misspelt("redis://u:secret@h?durability=replicas:0:1s", "durability").await;
        is_misspelt("redis://u:secret@h?timeout=2", "1500ms").await;
        is_misspelt("redis://u:secret@h?prefix=a&prefix=b", "twice").await;
        is_misspelt("redis://u:secret@h/db", "url").await;
    }
}

#[cfg(feature = "postgres")]
mod postgres {
    use retrysafe_core::StoreErrorKind;
    use retrysafe_testkit::servers::PostgresServer;

    use super::*;

    #[tokio::test]
    async fn a_database_is_opened() {
        let server = PostgresServer::shared().await;
        let url = server.fresh_database().await;
        let with = format!("{url}?table=shop_record&max-connections=4&timeout=30s&sslmode=prefer");
        is_opened(&with, "postgres", &without_user(&with)).await;
        assert_eq!(open(&url).await.unwrap().inspect.count().await.unwrap().in_flight, 0);

        is_found_wanting(&url.replace(":retrysafe@", ":secret@"), &["check user and password"])
            .await;
        is_found_wanting(&url.replace("/retrysafe_", "/retrysafe_no_"), &["database"]).await;
        is_found_wanting(&format!("{url}?sslmode=require"), &["TLS"]).await;
    }

    #[tokio::test]
    async fn a_table_is_created_only_if_it_is_wanted() {
        let url = PostgresServer::shared().await.fresh_database().await;
        is_found_wanting(&format!("{url}?migrate=false"), &["retrysafe_record"]).await;
        let (is_config, line) = is_refused(&url, open_existing(&url).await);
        assert!(!is_config && line.contains("retrysafe_record"), "{line}");
        open(&url).await.unwrap();
        open(&format!("{url}?migrate=false")).await.unwrap();
        open_existing(&url).await.unwrap();
    }

    #[tokio::test]
    async fn a_list_is_opened_if_one_of_it_can_be_used() {
        let server = PostgresServer::shared().await;
        let (one, other) = (server.fresh_database().await, server.addr());
        // The same server by two names is enough to see who is asked.
        let list = one.replace(&other.to_string(), &format!("{other},127.0.0.1:1"));
        let list = format!("{list}?timeout=30s");
        let opened = open(&list).await.unwrap();
        assert_eq!(opened.url, without_user(&list));
        let (mut granted, mut refused) = (0, 0);
        for number in 0..32 {
            match opened.store.begin(&claim_of(OperationId::from_bytes([number; 32]))).await {
                Ok(begun) => {
                    assert!(matches!(begun, Begin::Acquired(_)));
                    granted += 1;
                }
                Err(error) => {
                    assert_eq!(error.kind(), StoreErrorKind::Unreachable);
                    refused += 1;
                }
            }
        }
        assert!(granted > 0 && refused > 0, "{granted} granted, {refused} refused");
        opened.inspect.answers().await.expect("one of them does");

        let down = one.replace(&other.to_string(), "127.0.0.1:1,127.0.0.1:2");
        is_found_wanting(&down, &["127.0.0.1:1", "127.0.0.1:2"]).await;
        let joining = one.replace(&other.to_string(), &format!("+{other}"));
        is_misspelt(&joining, "at least one primary").await;
        let twice = one.replace(&other.to_string(), &format!("{other},{other}"));
        is_misspelt(&twice, "two primaries").await;
    }

    #[tokio::test]
    async fn what_can_not_be_reached_is_said() {
        is_unreachable("postgres", "/orders").await;
    }

    #[tokio::test]
    async fn a_mistake_in_the_url_is_named() {
        is_misspelt("postgres://u:secret@h/d?tabel=a", "no setting `tabel`; it has table, ").await;
        is_misspelt("postgres://u:secret@h/d?password=secret", "no setting `password`").await;
        is_misspelt("postgres://u:secret@h/d?table=Bad;", "table").await;
        is_misspelt("postgres://u:secret@h/d?migrate=yes", "true or false").await;
        is_misspelt("postgres://u:secret@h/d?max-connections=0", "max_connections").await;
        is_misspelt("postgres://u:secret@h:port/d", "url").await;
        is_misspelt("postgresql://u:secret@h/d?sslmode=always", "verify-full").await;
    }
}

#[cfg(feature = "mysql")]
mod mysql {
    use retrysafe_testkit::servers::MariadbServer;

    use super::*;

    #[tokio::test]
    async fn a_database_is_opened() {
        let server = MariadbServer::shared().await;
        let url = server.fresh_database().await;
        let with = format!("{url}?table=shop_record&max-connections=4&timeout=30s");
        is_opened(&with, "mysql", &without_user(&with)).await;
        let other = url.replace("mysql://", "mariadb://");
        assert_eq!(open(&other).await.unwrap().inspect.count().await.unwrap().in_flight, 0);

        is_found_wanting(&url.replace(":retrysafe@", ":secret@"), &["check the user"]).await;
        is_found_wanting(&url.replace("/retrysafe_", "/retrysafe_no_"), &["database"]).await;
    }

    #[tokio::test]
    async fn a_table_is_created_only_if_it_is_wanted() {
        let server = MariadbServer::shared().await;
        let url = server.fresh_database().await;
        is_found_wanting(&format!("{url}?migrate=false"), &["create the table"]).await;
        let (is_config, line) = is_refused(&url, open_existing(&url).await);
        assert!(!is_config && line.contains("create the table"), "{line}");

        // Who may not create one may use one that is there.
        let database = url.rsplit('/').next().unwrap();
        let user = fresh("u");
        server.query(&format!("CREATE USER {user}@'%' IDENTIFIED BY 'secret'")).await;
        let grant = format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {database}.* TO {user}@'%'");
        server.query(&grant).await;
        let restricted = url.replace("retrysafe:retrysafe@", &format!("{user}:secret@"));
        is_found_wanting(&restricted, &["CREATE"]).await;
        open(&url).await.unwrap();
        open(&restricted).await.unwrap();
        open(&format!("{url}?migrate=false")).await.unwrap();
        open_existing(&url).await.unwrap();
    }

    #[tokio::test]
    async fn what_can_not_be_reached_is_said() {
        is_unreachable("mysql", "/orders").await;
    }

    #[tokio::test]
    async fn a_mistake_in_the_url_is_named() {
        is_misspelt("mysql://u:secret@h/d?tabel=a", "no setting `tabel`; it has table, ").await;
        is_misspelt("mysql://u:secret@h/d?sslmode=required", "no setting `sslmode`").await;
        is_misspelt("mysql://u:secret@h/d?ssl-mode=always", "verify_identity").await;
        is_misspelt("mysql://u:secret@h,i/d", "one server").await;
        is_misspelt("mysql://u:secret@h", "DATABASE").await;
    }
}

#[cfg(feature = "nats")]
mod nats {
    use retrysafe_testkit::servers::{NatsCluster, NatsServer};

    use super::*;

    #[tokio::test]
    async fn servers_are_opened() {
        let server = NatsServer::shared().await;
        let url = server.url();
        let with = format!("{url}?stream={}&max-bytes=64MiB&timeout=30s", fresh("shop"));
        is_opened(&with, "nats", &without_user(&with)).await;

        is_found_wanting(&url.replace(":retrysafe@", ":secret@"), &["credentials"]).await;
        is_found_wanting(&format!("{url}?stream={}&replicas=3", fresh("r3")), &["replicas"]).await;
        is_found_wanting(&format!("{url}?tls=true"), &["corrupt message"]).await;

        let cluster = NatsCluster::shared().await.url();
        let with = format!("{cluster}?stream={}&replicas=3&timeout=30s", fresh("shop"));
        let shown =
            format!("nats://{}", with.replace("nats://", "").replace("retrysafe:retrysafe@", ""));
        is_opened(&with, "nats", &shown).await;
    }

    #[tokio::test]
    async fn a_stream_is_created_only_if_it_is_wanted() {
        let url = format!("{}?stream={}", NatsServer::shared().await.url(), fresh("shop"));
        is_found_wanting(&format!("{url}&create=false"), &["there is no stream `shop_"]).await;
        let (is_config, line) = is_refused(&url, open_existing(&url).await);
        assert!(!is_config && line.contains("there is no stream `shop_"), "{line}");
        open(&url).await.unwrap();
        open(&format!("{url}&create=false")).await.unwrap();
        open_existing(&url).await.unwrap();
    }

    #[tokio::test]
    async fn what_can_not_be_reached_is_said() {
        is_unreachable("nats", "").await;
    }

    #[tokio::test]
    async fn a_mistake_in_the_url_is_named() {
        is_misspelt("nats://u:secret@h?steam=a", "no setting `steam`; it has ").await;
        is_misspelt("nats://u:secret@h/stream", "?stream=NAME").await;
        is_misspelt("nats://u:secret@h,nats://v:secret@i", "stand once").await;
        is_misspelt("nats://u:secret@h?stream=a.b", "stream").await;
        is_misspelt("nats://u:secret@h?replicas=three", "a number").await;
        is_misspelt("nats://u:secret@h?max-bytes=1GB", "10GiB").await;
    }
}

fn after_mark(url: &str) -> &str {
    url.split_once('?').unwrap().1
}

fn without_user(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap();
    format!("{scheme}://{}", rest.rsplit_once('@').map_or(rest, |(_, rest)| rest))
}
