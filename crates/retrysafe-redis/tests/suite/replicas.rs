//! `Durability::Replicas`: what too few replicas have is not acknowledged.

use std::time::Duration;

use retrysafe_core::{
    Begin, Found, Held, Inspect as _, State, Store as _, StoreError, StoreErrorKind,
};
use retrysafe_redis::{Durability, RedisStore};
use retrysafe_testkit::servers::RedisServer;
use tokio::task::JoinSet;

use crate::{LONG, acquire, claim, key, operation, patient};

struct Pair {
    primary: RedisServer,
    replica: RedisServer,
    /// Gives replicas as long as it takes.
    store: RedisStore,
    /// Soon knows that too few confirm.
    hasty: RedisStore,
}

impl Pair {
    async fn new() -> Self {
        let primary = RedisServer::start().await;
        let replica = RedisServer::replica_of(&primary).await;
        let open = async |within| {
            let durability = Durability::Replicas { count: 1, within };
            patient(primary.url()).durability(durability).open().await.unwrap()
        };
        let store = open(Duration::from_secs(60)).await;
        let hasty = open(Duration::from_millis(100)).await;
        Self { store, hasty, primary, replica }
    }
}

#[tokio::test]
async fn what_is_acknowledged_is_on_the_replica() {
    let pair = Pair::new().await;
    for _ in 0..20 {
        let owned = claim(operation());
        let key = key("retrysafe:", &owned.id);
        let lease = acquire(&pair.store, &owned).await;
        assert_eq!(pair.replica.command(&["EXISTS", &key]).await, "1", "a claim");
        let done = pair.store.complete(&lease, &owned.fingerprint, "done".into(), LONG).await;
        assert_eq!(done.unwrap(), Held::Applied);
        let kept = pair.replica.command(&["GETRANGE", &key, "-4", "-1"]).await;
        assert_eq!(kept, "done", "an outcome");
    }
}

/// More callers than connections: each waits for its own replicas and for nobody else's.
#[tokio::test]
async fn many_wait_at_once() {
    let pair = Pair::new().await;
    let mut claims = JoinSet::new();
    for _ in 0..200 {
        let store = pair.store.clone();
        claims.spawn(async move { acquire(&store, &claim(operation())).await });
    }
    assert_eq!(claims.join_all().await.len(), 200);
}

#[tokio::test]
async fn a_claim_that_too_few_confirm_is_released_and_refused() {
    let pair = Pair::new().await;
    pair.replica.cut_link().await;
    let owned = claim(operation());
    let error = pair.hasty.begin(&owned).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
    let entry = pair.store.get(&owned.id).await.unwrap().unwrap();
    assert_eq!(entry.state, State::Released);
    // ST4: its repetition runs nothing either.
    assert_eq!(pair.hasty.begin(&owned).await.unwrap(), Begin::Found(Found::Free));

    pair.replica.mend_link().await;
    let lease = acquire(&pair.store, &claim(owned.id)).await;
    assert_eq!(lease.attempt, 2, "ST5: the counters stay");
}

/// A repeated call writes again, or WAIT would confirm what no replica has.
#[tokio::test]
async fn an_outcome_that_too_few_confirm_is_not_acknowledged_however_often_it_is_repeated() {
    let pair = Pair::new().await;
    let owned = claim(operation());
    let lease = acquire(&pair.store, &owned).await;
    pair.replica.cut_link().await;
    for _ in 0..3 {
        let error = pair.hasty.renew(&lease, LONG).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
    }
    for _ in 0..3 {
        let done = pair.hasty.complete(&lease, &owned.fingerprint, "done".into(), LONG).await;
        let error = done.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
    }
    pair.replica.mend_link().await;
    let done = pair.store.complete(&lease, &owned.fingerprint, "other".into(), LONG).await;
    assert_eq!(done.unwrap(), Held::Applied);
    let kept = pair.replica.command(&["GETRANGE", &key("retrysafe:", &owned.id), "-4", "-1"]).await;
    assert_eq!(kept, "done", "ST4: the first outcome stays");
}

/// A claim whose answer was lost, repeated while the replica is cut off.
#[tokio::test]
async fn a_repeated_claim_is_confirmed_anew() {
    let pair = Pair::new().await;
    let fast = patient(pair.primary.url()).open().await.unwrap();
    let owned = claim(operation());
    pair.replica.cut_link().await;
    acquire(&fast, &owned).await;
    let error = pair.hasty.begin(&owned).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
}

/// Without any replica nothing is granted, and what does not need one goes on.
#[tokio::test]
async fn a_server_without_replicas_grants_nothing() {
    let server = RedisServer::start().await;
    let durability = Durability::Replicas { count: 1, within: Duration::from_millis(50) };
    let store = patient(server.url()).durability(durability).open().await.unwrap();
    let fast = patient(server.url()).open().await.unwrap();
    let finished = claim(operation());
    let lease = acquire(&fast, &finished).await;
    let _ = fast.complete(&lease, &finished.fingerprint, "done".into(), LONG).await.unwrap();
    let error = store.begin(&claim(operation())).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
    let replay = store.begin(&claim(finished.id)).await.unwrap();
    assert!(matches!(replay, Begin::Found(Found::Finished { .. })), "{replay:?}");
}

/// Whom the connections that wait for replicas leave no room is not told that nobody is there.
#[tokio::test]
async fn d4_a_server_whose_connections_wait_for_replicas_is_busy_and_not_unreachable() {
    let server = RedisServer::start().await;
    let durability = Durability::Replicas { count: 1, within: Duration::from_secs(2) };
    let store = patient(server.url()).durability(durability).replica_connections(1);
    let store = store.response_timeout(Duration::from_secs(1)).open().await.unwrap();
    let mut claims = JoinSet::new();
    for _ in 0..6 {
        let store = store.clone();
        claims.spawn(async move { store.begin(&claim(operation())).await.unwrap_err() });
    }
    let errors = claims.join_all().await;
    let kinds: Vec<_> = errors.iter().map(StoreError::kind).collect();
    assert!(!kinds.contains(&StoreErrorKind::Unreachable), "{errors:?}");
    let busy = errors.iter().find(|it| it.to_string().contains("waiting for replicas"));
    assert_eq!(busy.map(StoreError::kind), Some(StoreErrorKind::Timeout), "{errors:?}");
}

/// A claim is answered by one connection, and what it met is read over another.
#[tokio::test]
async fn d4_a_server_that_is_lost_after_it_has_answered_a_claim_is_not_unreachable() {
    let server = RedisServer::start().await;
    let durability = Durability::Replicas { count: 1, within: Duration::from_millis(50) };
    let store = patient(server.url()).durability(durability).open().await.unwrap();
    let fast = patient(server.url()).open().await.unwrap();
    let live = claim(operation());
    acquire(&fast, &live).await;
    drop(fast);
    // It has a connection for claims now, and one for the rest.
    assert!(store.begin(&claim(operation())).await.is_err());
    let clients = server.command(&["CLIENT", "LIST"]).await;
    for client in clients.lines().filter(|client| !client.contains(" cmd=wait ")) {
        let id = client.split([' ', '=']).nth(1).unwrap();
        server.command(&["CLIENT", "KILL", "ID", id]).await;
    }
    server.command(&["CONFIG", "SET", "maxclients", "1"]).await;
    let error = store.begin(&claim(live.id)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
    let first = std::error::Error::source(&error).unwrap().downcast_ref::<StoreError>();
    assert_eq!(first.map(StoreError::kind), Some(StoreErrorKind::Unreachable), "{error}");
}
