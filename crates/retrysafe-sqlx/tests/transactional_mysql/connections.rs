//! Connections of the pool that can't be had: whether that is a server that is there (D4).

use std::time::Duration;

use retrysafe_axum::{
    Acquired, Algorithm, Begin, BodyPart, Claim, Fingerprint, Held, IdempotencyKey, Lease,
    OperationId, Owner, Scope, Store, StoreErrorKind, SystemEntropy,
};
use retrysafe_sqlx::{MySqlStore, TransactionalMySql};
use retrysafe_testkit::servers::{MariadbServer, Wire};
use sqlx::mysql::MySqlPoolOptions;

use crate::{Bank, PATIENCE};

fn claim(key: &str) -> Claim {
    let key = IdempotencyKey::new(key).unwrap();
    Claim {
        id: OperationId::new("default", &Scope::shared(), &key),
        owner: Owner::new(&SystemEntropy),
        fingerprint: Fingerprint {
            algorithm: Algorithm::from_u32(1),
            head: [1; 32],
            body: Some(BodyPart::IGNORED),
        },
        lease: PATIENCE,
        retention: PATIENCE,
        take_over: true,
    }
}

async fn acquire(store: &impl Store, claim: &Claim) -> Lease {
    let Begin::Acquired(Acquired { attempt, fence, .. }) = store.begin(claim).await.unwrap() else {
        panic!("the claim should have been granted");
    };
    Lease { id: claim.id, owner: claim.owner, attempt, fence }
}

#[tokio::test]
async fn d4_a_pool_that_gives_up_before_the_store_does_is_busy_and_not_unreachable() {
    let url = MariadbServer::shared().await.fresh_database().await;
    let pool = MySqlPoolOptions::new().max_connections(1);
    let pool = pool.acquire_timeout(Duration::from_secs(2));
    let bank = Bank::on(&url, pool, |store| store).await;
    let first = claim("one");
    let lease = acquire(&bank.store, &first).await;
    let error = bank.store.begin(&claim("two")).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Timeout, "{error}");
    assert_eq!(bank.store.release(&lease, PATIENCE).await.unwrap(), Held::Applied);
    acquire(&bank.store, &claim("two")).await;
}

#[tokio::test]
async fn d4_a_server_that_is_lost_after_it_was_asked_is_not_unreachable() {
    let server = MariadbServer::shared().await;
    let url = server.fresh_database().await;
    let pool = MySqlPoolOptions::new().max_connections(1).connect(&url).await.unwrap();
    let store = TransactionalMySql::builder(pool.clone()).migrate().wait(Duration::from_secs(1));
    let store = store.timeout(Duration::from_secs(6)).open().await.unwrap();
    // Somebody has given up, so its record is there for all to see.
    let records = MySqlStore::builder(&url).timeout(PATIENCE).open().await.unwrap();
    let lease = acquire(&records, &claim("one")).await;
    assert_eq!(records.renew(&lease, Duration::ZERO).await.unwrap(), Held::Applied);
    // The store looks by connections of its own, and claims by the pool's.
    let wire = Wire::to(server.addr()).await;
    wire.refuse().await;
    pool.set_connect_options((*pool.connect_options()).clone().port(wire.addr().port()));
    pool.acquire().await.unwrap().close().await.unwrap();
    let error = store.begin(&claim("one")).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn d4_a_server_that_is_lost_while_a_duplicate_waits_is_not_unreachable() {
    let server = MariadbServer::shared().await;
    let wire = Wire::to(server.addr()).await;
    let url = wire.url_for(&server.fresh_database().await);
    let bank = Bank::on(&url, MySqlPoolOptions::new(), |store| store).await;
    let lease = acquire(&bank.store, &claim("one")).await;
    let duplicate = claim("one");
    let lost = async {
        wire.refuse().await;
        bank.store.release(&lease, PATIENCE).await
    };
    // The duplicate comes first, and waits for the attempt in this process.
    let (waited, _) = tokio::join!(bank.store.begin(&duplicate), lost);
    let error = waited.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
}
