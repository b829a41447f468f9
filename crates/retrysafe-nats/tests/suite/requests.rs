//! How many requests each verb makes (ST2), counted by the driver and on the wire.

use std::{sync::atomic::Ordering, time::Duration};

use async_nats::Client;
use retrysafe_core::{Begin, BodyPart, Claim, Extent, Found, Held, Store as _};
use retrysafe_nats::NatsStore;
use retrysafe_testkit::servers::{NatsServer, Wire};
use tokio::time::Instant;

use crate::{LONG, PATIENCE, acquire, claim, complete, numbered, operation, patient, raw, stream};

struct Counted {
    client: Client,
    store: NatsStore,
    sent: u64,
}

impl Counted {
    async fn open(stream: &str) -> Self {
        let client = raw::connect(&NatsServer::shared().await.url()).await;
        let store = NatsStore::with_client(client.clone()).stream(stream);
        let store = store.timeout(PATIENCE).open().await.unwrap();
        let sent = client.statistics().out_messages.load(Ordering::Relaxed);
        Self { client, store, sent }
    }

    /// Requests since the last time.
    fn requests(&mut self) -> u64 {
        let before = self.sent;
        self.sent = self.client.statistics().out_messages.load(Ordering::Relaxed);
        self.sent - before
    }
}

#[tokio::test]
async fn st2_what_one_handle_does_is_one_request_each() {
    let stream = stream();
    let mut one = Counted::open(&stream).await;
    let owned = claim(operation());
    let lease = acquire(&one.store, &owned).await;
    assert_eq!(one.requests(), 1, "a claim");
    assert_eq!(one.store.renew(&lease, LONG).await.unwrap(), Held::Applied);
    assert_eq!(one.requests(), 1, "a renewal");
    let found = one.store.begin(&claim(owned.id)).await.unwrap();
    assert!(matches!(found, Begin::Found(Found::InFlight { .. })), "{found:?}");
    assert_eq!(one.requests(), 1, "in flight");
    acquire(&one.store, &owned).await;
    assert_eq!(one.requests(), 1, "the same claim again");
    complete(&one.store, &owned, &lease, "done").await;
    assert_eq!(one.requests(), 1, "an outcome");
    let found = one.store.begin(&claim(owned.id)).await.unwrap();
    assert!(matches!(found, Begin::Found(Found::Finished { .. })), "{found:?}");
    assert_eq!(one.requests(), 2, "a replay");

    let owned = claim(operation());
    let lease = acquire(&one.store, &owned).await;
    assert_eq!(one.store.release(&lease, LONG).await.unwrap(), Held::Applied);
    assert_eq!(one.requests(), 2, "a claim and a release");
    let owned = claim(owned.id);
    let lease = acquire(&one.store, &owned).await;
    assert_eq!(one.requests(), 2, "a claim of what was released");
    assert_eq!(one.store.renew(&lease, Duration::ZERO).await.unwrap(), Held::Applied);
    assert_eq!(one.requests(), 1, "giving up");
    acquire(&one.store, &Claim { take_over: true, ..claim(owned.id) }).await;
    assert_eq!(one.requests(), 2, "taking over what was given up");
}

#[tokio::test]
async fn st2_what_another_handle_did_is_read_first() {
    let stream = stream();
    let (mut one, mut other) = (Counted::open(&stream).await, Counted::open(&stream).await);
    let owned = claim(operation());
    let lease = acquire(&one.store, &owned).await;
    for requests in [2, 1, 1] {
        let found = other.store.begin(&claim(owned.id)).await.unwrap();
        assert!(matches!(found, Begin::Found(Found::InFlight { .. })), "{found:?}");
        assert_eq!(other.requests(), requests, "in flight, read once");
    }
    complete(&other.store, &owned, &lease, "done").await;
    assert_eq!(other.requests(), 1, "an outcome, of a record that was read");
    one.requests();
    let found = one.store.begin(&claim(owned.id)).await.unwrap();
    assert!(matches!(found, Begin::Found(Found::Finished { .. })), "{found:?}");
    assert_eq!(one.requests(), 2, "a replay");

    let owned = claim(operation());
    let lease = acquire(&one.store, &owned).await;
    assert_eq!(other.store.release(&lease, LONG).await.unwrap(), Held::Applied);
    assert_eq!(other.requests(), 2, "a release of what this handle has not seen");
    one.requests();
    let owned = claim(owned.id);
    acquire(&one.store, &owned).await;
    assert_eq!(one.requests(), 3, "a claim of what another handle released");
}

#[tokio::test]
async fn st2_a_lapse_is_judged_by_the_leader_there_and_then() {
    let stream = stream();
    let (one, mut other) = (Counted::open(&stream).await, Counted::open(&stream).await);
    let owned = Claim { lease: Duration::from_millis(50), ..claim(operation()) };
    acquire(&one.store, &owned).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    other.requests();
    let found = other.store.begin(&claim(owned.id)).await.unwrap();
    assert!(matches!(found, Begin::Found(Found::Lapsed { attempt: 1, .. })), "{found:?}");
    assert_eq!(other.requests(), 4, "found, read, the time, and read again");
    acquire(&other.store, &Claim { take_over: true, ..claim(owned.id) }).await;
    assert_eq!(other.requests(), 4, "found, read, the time, and taken over");
}

#[tokio::test]
async fn st2_as_many_round_trips_as_requests() {
    let server = NatsServer::shared().await;
    let wire = Wire::to(server.addr()).await;
    let store = patient(wire.url_for(&server.url()));
    let store = store.stream(stream()).open().await.unwrap();
    let begun = Instant::now();
    // The driver pings every five seconds, and every ten the leader is asked for the time.
    let most = || 41 + begun.elapsed().as_secs() / 3;
    let before = wire.round_trips();
    for number in 0..20 {
        let owned = claim(numbered(number));
        let lease = acquire(&store, &owned).await;
        complete(&store, &owned, &lease, "done").await;
    }
    let first = wire.round_trips() - before;
    assert!((40..=most()).contains(&first), "20 first executions: {first} round trips");
    let before = wire.round_trips();
    for number in 0..20 {
        let found = store.begin(&claim(numbered(number))).await.unwrap();
        assert!(matches!(found, Begin::Found(Found::Finished { .. })), "{found:?}");
    }
    let replayed = wire.round_trips() - before;
    assert!((40..=most()).contains(&replayed), "20 replays: {replayed} round trips");
}

/// P9 asks for 128, which the subject and the headers of a message alone come near.
#[tokio::test]
async fn p9_what_an_outcome_takes_beside_its_payload() {
    const RECORDS: u64 = 20;
    let stream = stream();
    let one = Counted::open(&stream).await;
    for number in 0..RECORDS {
        let mut owned = claim(numbered(number));
        let body = BodyPart { digest: [7; 32], length: 9, extent: Extent::Whole };
        owned.fingerprint.body = Some(body);
        let lease = acquire(&one.store, &owned).await;
        complete(&one.store, &owned, &lease, "0123456789").await;
    }
    let context = async_nats::jetstream::new(one.client.clone());
    let state = context.get_stream(&stream).await.unwrap().cached_info().state.clone();
    assert_eq!(state.messages, RECORDS, "an outcome replaces its claim");
    let beside = state.bytes / RECORDS - 10;
    assert!((280..=320).contains(&beside), "{beside} bytes");
}
