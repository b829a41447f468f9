//! Servers and records that a store can't use: one clear line each, and never a second execution.

use std::{net::SocketAddr, time::Duration};

use retrysafe_core::{Begin, Found, Held, Inspect as _, Store as _, StoreErrorKind};
use retrysafe_redis::{Durability, OpenErrorKind, RedisStore};
use retrysafe_testkit::servers::{RedisCluster, RedisServer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::{LONG, acquire, claim, key, operation, patient, prefix};

async fn refused(url: &str, kind: OpenErrorKind, says: &str) {
    let error = patient(url).open().await.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    let said = error.to_string();
    assert!(said.contains(says) && !said.contains('\n'), "{said}");
    assert!(!said.contains("secret") && !format!("{error:?}").contains("secret"), "{said}");
}

#[tokio::test]
async fn a_wrong_password() {
    let server = RedisServer::with(&["--requirepass", "secret"]).await;
    let address = server.addr();
    for url in [
        format!("redis://{address}"),
        format!("redis://:wrong@{address}"),
        format!("redis://nobody:secret@{address}"),
    ] {
        refused(&url, OpenErrorKind::Denied, "user or password").await;
    }
    patient(server.url()).open().await.unwrap();
}

/// The password is changed and every connection is closed, while the store is open.
#[tokio::test]
async fn a_password_that_was_right() {
    let server = RedisServer::with(&["--requirepass", "first"]).await;
    let store = patient(server.url()).open().await.unwrap();
    server.command(&["CONFIG", "SET", "requirepass", "second"]).await;
    let mut stream = tokio::net::TcpStream::connect(server.addr()).await.unwrap();
    stream.write_all(b"AUTH second\r\nCLIENT KILL TYPE normal\r\n").await.unwrap();
    let _ = stream.read(&mut [0; 64]).await;
    let denied = async {
        loop {
            let error = store.begin(&claim(operation())).await.unwrap_err();
            match error.kind() {
                StoreErrorKind::Misconfigured => return,
                kind => assert_eq!(kind, StoreErrorKind::Unavailable, "{error}"),
            }
        }
    };
    tokio::time::timeout(crate::SOON, denied).await.unwrap();
}

#[tokio::test]
async fn a_user_without_rights() {
    let server = RedisServer::start().await;
    for (user, rights) in [
        ("noinfo", "+@all -info"),
        ("noscripts", "+@all -evalsha -eval"),
        ("nowrite", "+@all -set"),
    ] {
        let mut words = vec!["ACL", "SETUSER", user, "on", ">secret", "~*", "&*"];
        words.extend(rights.split(' '));
        server.command(&words).await;
        let url = format!("redis://{user}:secret@{}", server.addr());
        refused(&url, OpenErrorKind::Denied, "user").await;
    }
    // Keys of its own alone.
    let words = ["ACL", "SETUSER", "other", "on", ">secret", "~other:*", "&*", "+@all"];
    server.command(&words).await;
    let url = format!("redis://other:secret@{}", server.addr());
    refused(&url, OpenErrorKind::Denied, "rights").await;
    patient(url).key_prefix("other:").open().await.unwrap();
}

#[tokio::test]
async fn a_database_that_is_not_there() {
    let server = RedisServer::shared().await;
    let url = format!("redis://{}/99", server.addr());
    refused(&url, OpenErrorKind::Database, "no such database").await;
    RedisStore::open(format!("redis://{}/1", server.addr())).await.unwrap();
}

#[tokio::test]
async fn an_evicting_server() {
    for policy in ["allkeys-lru", "volatile-ttl"] {
        let server = RedisServer::with(&["--maxmemory-policy", policy]).await;
        refused(&server.url(), OpenErrorKind::Evicting, "noeviction").await;
        // It is judged again at every connection.
        server.command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await;
        let store = patient(server.url()).open().await.unwrap();
        server.command(&["CONFIG", "SET", "maxmemory-policy", policy]).await;
        server.command(&["CLIENT", "KILL", "TYPE", "normal"]).await;
        let evicting = async {
            loop {
                match store.begin(&claim(operation())).await {
                    Err(error) if error.kind() == StoreErrorKind::Misconfigured => return,
                    // It may not know yet that its connection was closed.
                    Ok(_) => {}
                    Err(error) => assert_eq!(error.kind(), StoreErrorKind::Unavailable),
                }
            }
        };
        tokio::time::timeout(crate::SOON, evicting).await.unwrap();
    }
}

#[tokio::test]
async fn a_replica() {
    let primary = RedisServer::start().await;
    let replica = RedisServer::replica_of(&primary).await;
    refused(&replica.url(), OpenErrorKind::ReadOnly, "replica").await;
}

#[tokio::test]
async fn a_server_that_is_not_there() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    refused(&format!("redis://{gone}"), OpenErrorKind::Unreachable, "can't be reached").await;
    refused(&format!("redis-cluster://{gone}"), OpenErrorKind::Unreachable, "reached").await;
}

#[tokio::test]
async fn a_cluster_by_the_wrong_name() {
    let server = RedisServer::shared().await;
    let cluster = RedisCluster::shared().await;
    let single = format!("redis-cluster://{}", server.addr());
    refused(&single, OpenErrorKind::Topology, "redis://").await;
    let mut refusals = 0;
    for node in &cluster.nodes {
        if node.command(&["ROLE"]).await.starts_with("master") {
            refused(&node.url(), OpenErrorKind::Topology, "redis-cluster://").await;
            refusals += 1;
        }
    }
    assert_eq!(refusals, 3);
}

#[tokio::test]
async fn settings_that_make_no_sense() {
    let server = RedisServer::shared().await;
    for url in ["http://localhost", "redis-cluster://", "redis://:secret@host:port"] {
        refused(url, OpenErrorKind::Setting, "url").await;
    }
    let builder = || patient(server.url());
    let replicas = |count, within| Durability::Replicas { count, within };
    for builder in [
        builder().key_prefix("{a}"),
        builder().max_payload(usize::MAX),
        builder().response_timeout(Duration::ZERO),
        builder().connection_timeout(Duration::ZERO),
        builder().poll_interval(Duration::ZERO),
        builder().replica_connections(0),
        builder().durability(replicas(0, LONG)),
        builder().durability(replicas(1, Duration::ZERO)),
        RedisStore::with_cluster([]),
    ] {
        let error = builder.open().await.unwrap_err();
        assert_eq!(error.kind(), OpenErrorKind::Setting, "{error}");
    }
}

/// Says that it is another version, or something that is no Redis at all.
async fn pretender(info: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = vec![0; 64 * 1024];
                while let Ok(length @ 1..) = stream.read(&mut request).await {
                    let request = String::from_utf8_lossy(&request[..length]);
                    let mut answer = String::new();
                    for word in request.split("\r\n") {
                        match word {
                            "HELLO" => answer.push_str("%1\r\n$5\r\nproto\r\n:3\r\n"),
                            "CLIENT" => answer.push_str("+OK\r\n"),
                            "INFO" => answer.push_str(&format!("${}\r\n{info}\r\n", info.len())),
                            _ => {}
                        }
                    }
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_server_that_is_too_old() {
    let old = "redis_version:6.2.14\r\nmaxmemory_policy:noeviction\r\nrole:master\r\n";
    let address = pretender(old).await;
    refused(&format!("redis://{address}"), OpenErrorKind::TooOld, "6.2.14").await;
    let address = pretender("hello").await;
    refused(&format!("redis://{address}"), OpenErrorKind::TooOld, "7.0").await;
}

#[tokio::test]
async fn a_server_that_speaks_something_else() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let error = patient(format!("redis://{address}")).open().await.unwrap_err();
    assert_eq!(error.kind(), OpenErrorKind::Unreachable, "{error}");
}

#[tokio::test]
async fn st10_what_can_not_be_read_is_never_absent_and_never_removed() {
    let server = RedisServer::shared().await;
    let prefix = prefix();
    let store = patient(server.url()).key_prefix(&prefix).open().await.unwrap();
    let spoils: [&[&str]; 6] = [
        &["SETRANGE", "KEY", "0", "\u{2}"],
        &["SETRANGE", "KEY", "1", "X"],
        &["SETRANGE", "KEY", "2", "z"],
        &["SET", "KEY", "garbage", "KEEPTTL"],
        &["SET", "KEY", "", "KEEPTTL"],
        &["EVAL", "redis.call('DEL', KEYS[1]) return redis.call('LPUSH', KEYS[1], 1)", "1", "KEY"],
    ];
    for spoil in spoils {
        let owned = claim(operation());
        let lease = acquire(&store, &owned).await;
        let key = key(&prefix, &owned.id);
        let words: Vec<_> =
            spoil.iter().map(|word| if *word == "KEY" { &*key } else { *word }).collect();
        server.command(&words).await;
        let before = server.command(&["DUMP", &key]).await;
        let rival = retrysafe_core::Claim { take_over: true, ..claim(owned.id) };
        let print = &owned.fingerprint;
        let kinds = [
            store.begin(&rival).await.unwrap_err().kind(),
            store.begin(&owned).await.unwrap_err().kind(),
            store.renew(&lease, LONG).await.unwrap_err().kind(),
            store.complete(&lease, print, "x".into(), LONG).await.unwrap_err().kind(),
            store.release(&lease, LONG).await.unwrap_err().kind(),
            store.get(&owned.id).await.unwrap_err().kind(),
            store.forget(&owned.id).await.unwrap_err().kind(),
        ];
        assert_eq!(kinds, [StoreErrorKind::Unreadable; 7], "{spoil:?}");
        assert_eq!(server.command(&["DUMP", &key]).await, before, "{spoil:?}");
    }
}

#[tokio::test]
async fn a_payload_over_the_servers_limit() {
    let server = RedisServer::start().await;
    server.command(&["CONFIG", "SET", "proto-max-bulk-len", "2mb"]).await;
    refused(&server.url(), OpenErrorKind::Setting, "proto-max-bulk-len").await;
    let builder = patient(server.url()).max_payload(1 << 20);
    let store = builder.open().await.unwrap();
    let owned = claim(operation());
    let lease = acquire(&store, &owned).await;
    let over = vec![7; (1 << 20) + 1];
    let error = store.complete(&lease, &owned.fingerprint, over.into(), LONG).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::TooLarge, "{error}");
    let most = vec![7; 1 << 20];
    let done = store.complete(&lease, &owned.fingerprint, most.into(), LONG).await.unwrap();
    assert_eq!(done, Held::Applied);
}

#[tokio::test]
async fn debug_shows_no_password() {
    let server = RedisServer::with(&["--requirepass", "secret"]).await;
    let builder = patient(server.url());
    assert!(!format!("{builder:?}").contains("secret"));
    let store = builder.open().await.unwrap();
    let shown = format!("{store:?}");
    assert!(!shown.contains("secret") && shown.contains(&server.addr().to_string()), "{shown}");
}

/// The user's own client, with what it was given.
#[tokio::test]
async fn the_users_own_client() {
    let server = RedisServer::with(&["--requirepass", "secret"]).await;
    let client = redis::Client::open(server.url()).unwrap();
    let store =
        RedisStore::with_client(&client).response_timeout(crate::SOON).open().await.unwrap();
    let owned = claim(operation());
    acquire(&store, &owned).await;
    let begun = store.begin(&claim(owned.id)).await.unwrap();
    assert!(matches!(begun, Begin::Found(Found::InFlight { .. })));
}

/// What the crate's page says a user needs, word for word.
#[tokio::test]
async fn the_rights_that_the_page_names_are_enough() {
    let page = include_str!("../../src/lib.rs");
    let rights = page.split("```text\n").nth(1).unwrap().split("```").next().unwrap();
    let words: Vec<_> = rights.split_whitespace().filter(|word| *word != "//!").collect();
    let server = RedisServer::start().await;
    assert_eq!(server.command(&words).await, "OK");

    let url = format!("redis://retrysafe:password@{}", server.addr());
    let durability = Durability::Replicas { count: 1, within: Duration::from_millis(1) };
    patient(&url).durability(durability).open().await.unwrap();
    let store = patient(&url).poll_interval(LONG).open().await.unwrap();
    let owned = claim(operation());
    let lease = acquire(&store, &owned).await;
    let waits = tokio::spawn({
        let store = patient(&url).poll_interval(LONG).open().await.unwrap();
        async move { store.changed(&owned.id, 1, LONG).await }
    });
    let subscribed =
        async { while server.command(&["PUBSUB", "SHARDCHANNELS"]).await.is_empty() {} };
    tokio::time::timeout(crate::SOON, subscribed).await.unwrap();
    assert_eq!(store.renew(&lease, LONG * 2).await.unwrap(), Held::Applied);
    assert_eq!(store.release(&lease, LONG).await.unwrap(), Held::Applied);
    tokio::time::timeout(crate::SOON, waits).await.unwrap().unwrap().unwrap();

    let next = retrysafe_core::Claim { take_over: true, ..claim(owned.id) };
    let lease = acquire(&store, &next).await;
    assert_eq!(store.renew(&lease, Duration::ZERO).await.unwrap(), Held::Applied);
    let happened = retrysafe_core::Resolution::Happened { payload: "x".into(), retention: LONG };
    let resolved = store.resolve(&owned.id, 2, happened).await.unwrap();
    assert_eq!(resolved, retrysafe_core::Operated::Applied);
    assert_eq!(store.page(None, 10).await.unwrap().len(), 1);
    assert_eq!(store.count().await.unwrap().finished, 1);
    let forgotten = store.forget(&owned.id).await.unwrap();
    assert_eq!(forgotten, retrysafe_core::Operated::Applied);
    let brief = acquire(&store, &claim(owned.id)).await;
    assert_eq!(store.release(&brief, Duration::ZERO).await.unwrap(), Held::Applied);
}
