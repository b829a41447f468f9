//! Bad input: one clear line each, before anything could go wrong.

use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use retrysafe_core::{Begin, Found, Held, Inspect as _, Store as _, StoreErrorKind};
use retrysafe_nats::{NatsStore, OpenError, OpenErrorKind};
use retrysafe_testkit::servers::NatsServer;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::{LONG, acquire, claim, operation, patient, raw, stream};

async fn refused(builder: retrysafe_nats::NatsStoreBuilder) -> OpenError {
    let error = builder.open().await.expect_err("this must be refused");
    let line = error.to_string();
    assert!(!line.contains('\n'), "one line: {line}");
    assert!(!line.contains("secret"), "S3: {line}");
    error
}

fn assert_says(error: &OpenError, kind: OpenErrorKind, what: &str) {
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(what), "{error}");
}

#[tokio::test]
async fn a_wrong_password_is_denied() {
    let url = NatsServer::shared().await.url().replace("retrysafe:retrysafe", "retrysafe:secret");
    assert_says(&refused(patient(&url)).await, OpenErrorKind::Denied, "password");
    let debug = format!("{:?}", NatsStore::builder(&url));
    assert!(!debug.contains("secret"), "S3: {debug}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://user:secret@{}", nobody.local_addr().unwrap());
    drop(nobody);
    let error = refused(patient(&url)).await;
    assert_says(&error, OpenErrorKind::Unreachable, "127.0.0.1");
    assert_eq!(retrysafe_core::StoreError::from(error).kind(), StoreErrorKind::Unreachable);
}

#[tokio::test]
async fn settings_that_cannot_be_used_are_named() {
    let url = NatsServer::shared().await.url();
    for (builder, what) in [
        (NatsStore::builder("http://user:secret@host"), "url"),
        (NatsStore::builder(""), "url"),
        (NatsStore::builder(&url).stream("a.b"), "stream"),
        (NatsStore::builder(&url).stream(""), "stream"),
        (NatsStore::builder(&url).replicas(0), "replicas"),
        (NatsStore::builder(&url).max_bytes(1), "max_bytes"),
        (NatsStore::builder(&url).timeout(Duration::ZERO), "timeout"),
        (NatsStore::builder(&url).poll_interval(Duration::ZERO), "poll_interval"),
    ] {
        assert_says(&refused(builder).await, OpenErrorKind::Setting, what);
    }
}

#[tokio::test]
async fn a_server_without_jetstream_is_refused() {
    // The last `jetstream` in the configuration counts.
    let server = NatsServer::with(&["jetstream: disabled"]).await;
    let error = refused(patient(server.url())).await;
    assert_says(&error, OpenErrorKind::NoJetStream, "jetstream {}");
    assert_eq!(retrysafe_core::StoreError::from(error).kind(), StoreErrorKind::Misconfigured);
}

/// No server of that age can be installed here: this is what one says first.
#[tokio::test]
async fn a_server_that_is_too_old_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let info = br#"INFO {"server_id":"S","version":"2.10.29","host":"127.0.0.1","port":4222,"max_payload":1048576,"headers":true,"jetstream":true,"proto":1,"go":"go"}"#;
        client.write_all(info).await.unwrap();
        client.write_all(b"\r\n").await.unwrap();
        let mut heard = Vec::new();
        while !heard.windows(4).any(|window| window == b"PING") {
            assert!(client.read_buf(&mut heard).await.unwrap() > 0);
        }
        client.write_all(b"PONG\r\n").await.unwrap();
        // Until the client hangs up.
        while client.read_buf(&mut heard).await.unwrap_or(0) > 0 {}
    });
    let error = refused(patient(&url)).await;
    assert_says(&error, OpenErrorKind::TooOld, "2.11");
    server.abort();
}

#[tokio::test]
async fn a_user_without_rights_is_told_which_are_missing() {
    let rights = "authorization { users: [ { user: retrysafe, password: retrysafe, permissions: { \
                  publish: [\"nothing\"] } } ] }";
    let server = NatsServer::with(&[rights]).await;
    let error = refused(NatsStore::builder(server.url())).await;
    assert_says(&error, OpenErrorKind::Unavailable, "$JS.API.>");
}

/// What the crate's page says that a user needs is enough.
#[tokio::test]
async fn a_user_needs_no_more_than_these_rights() {
    let rights = "authorization { users: [ { user: retrysafe, password: retrysafe, permissions: { \
                  publish: [\"$JS.API.STREAM.*.retrysafe\", \
                  \"$JS.API.STREAM.MSG.GET.retrysafe\", \"retrysafe.*.*\"], \
                  subscribe: [\"_INBOX.>\", \"retrysafe.changed.>\"] } } ] }";
    let server = NatsServer::with(&[rights]).await;
    let open = || patient(server.url()).open();
    let (one, other) = (open().await.unwrap(), open().await.unwrap());
    let owned = claim(operation());
    let lease = acquire(&one, &owned).await;
    let id = owned.id;
    let waiter = other.clone();
    let waiting = tokio::spawn(async move { waiter.changed(&id, 1, LONG).await });
    crate::complete(&one, &owned, &lease, "done").await;
    waiting.await.unwrap().unwrap();
    let found = other.begin(&claim(owned.id)).await.unwrap();
    assert!(matches!(found, Begin::Found(Found::Finished { .. })), "{found:?}");
    assert_eq!(other.count().await.unwrap().finished, 1);
}

#[tokio::test]
async fn st8_a_stream_that_could_lose_records_is_refused() {
    let server = NatsServer::shared().await;
    let client = raw::connect(&server.url()).await;
    let name = stream();
    patient(server.url()).stream(&name).open().await.unwrap();
    let ours = raw::config(&client, &name).await;

    type Change = fn(&mut Config);
    let changes: [(&str, Change); 8] = [
        ("max_age", |config| config.max_age = LONG * 24),
        ("discard", |config| config.discard = DiscardPolicy::Old),
        ("max_msgs_per_subject", |config| config.max_messages_per_subject = 2),
        ("storage", |config| config.storage = StorageType::Memory),
        ("allow_msg_ttl", |config| config.allow_message_ttl = false),
        ("republish", |config| config.republish = None),
        ("subjects", |config| config.subjects.push(format!("{}_more", config.name))),
        ("acknowledge", |config| config.no_ack = true),
    ];
    for (what, change) in changes {
        let name = stream();
        let rename = |text: &String| text.replace(&ours.name, &name);
        let mut config = Config { name: name.clone(), ..ours.clone() };
        config.subjects = config.subjects.iter().map(rename).collect();
        if let Some(republish) = &mut config.republish {
            republish.source = rename(&republish.source);
            republish.destination = rename(&republish.destination);
        }
        change(&mut config);
        raw::create(&client, config).await;
        let error = refused(patient(server.url()).stream(&name)).await;
        assert_says(&error, OpenErrorKind::Stream, what);
    }
    let error = refused(patient(server.url()).stream(&name).replicas(3)).await;
    assert_says(&error, OpenErrorKind::Stream, "replicas");
    let error = refused(patient(server.url()).stream(stream()).replicas(3)).await;
    assert_says(&error, OpenErrorKind::Stream, "replicas");
}

#[tokio::test]
async fn subjects_of_another_stream_are_not_taken() {
    let server = NatsServer::shared().await;
    let client = raw::connect(&server.url()).await;
    let name = stream();
    let subjects = vec![format!("{name}.>")];
    raw::create(&client, Config { name: stream(), subjects, ..Config::default() }).await;
    let error = refused(patient(server.url()).stream(&name)).await;
    assert_says(&error, OpenErrorKind::Stream, "overlap");
}

#[tokio::test]
async fn several_may_open_a_new_stream_at_once() {
    let server = NatsServer::shared().await;
    let name = stream();
    let open = || patient(server.url()).stream(&name).open();
    let (one, two, three) = tokio::join!(open(), open(), open());
    let owned = claim(operation());
    acquire(&one.unwrap(), &owned).await;
    for other in [two.unwrap(), three.unwrap()] {
        let found = other.begin(&claim(owned.id)).await.unwrap();
        assert!(matches!(found, Begin::Found(_)), "{found:?}");
    }
}

#[tokio::test]
async fn r4_the_servers_limit_is_the_stores() {
    let server = NatsServer::with(&["max_payload: 65536"]).await;
    let store = patient(server.url()).open().await.unwrap();
    assert_eq!(store.stream(), "retrysafe");
    let most = store.about().max_payload;
    assert_eq!(most, 65536 - 512);

    let owned = claim(operation());
    let lease = acquire(&store, &owned).await;
    let over = store.complete(&lease, &owned.fingerprint, vec![7; most + 1].into(), LONG).await;
    assert_eq!(over.unwrap_err().kind(), StoreErrorKind::TooLarge);
    let most = store.complete(&lease, &owned.fingerprint, vec![7; most].into(), LONG).await;
    assert_eq!(most.unwrap(), Held::Applied);
}

#[tokio::test]
async fn s3_debug_shows_no_password() {
    let store = crate::store().await;
    let debug = format!("{store:?}");
    assert!(!debug.contains("retrysafe:retrysafe") && debug.contains("127.0.0.1"), "{debug}");
}
