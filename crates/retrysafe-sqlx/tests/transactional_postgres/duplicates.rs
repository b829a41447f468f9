//! Duplicates wait for the transaction that holds their key, and never take the pool.

use std::{sync::Arc, task::Context, time::Duration};

use axum::http::StatusCode;
use futures_util::{FutureExt as _, task::noop_waker_ref};
use retrysafe_axum::{
    Algorithm, Claim, Fingerprint, Held, IdempotencyKey, IdempotentRouter as _, Lease, OnInFlight,
    OperationId, Owner, Scope, Store as _, SystemEntropy, Transaction,
};
use retrysafe_sqlx::PostgresStore;
use sqlx::{Connection as _, PgConnection};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::timeout,
};

use crate::{App, Bank, PATIENCE, Tx, credit};

/// A bank whose handler says that it has started, and waits until it may go on.
struct Slow {
    app: App,
    started: mpsc::Receiver<()>,
    go_on: Arc<Semaphore>,
}

impl Slow {
    fn of(bank: &Bank) -> Self {
        let (starts, started) = mpsc::channel(99);
        let go_on = Arc::new(Semaphore::new(0));
        let goes_on = go_on.clone();
        let app = bank.app(move |Transaction(mut transaction): Tx| {
            let (starts, goes_on) = (starts.clone(), goes_on.clone());
            async move {
                credit(&mut transaction).await.unwrap();
                starts.send(()).await.unwrap();
                goes_on.acquire().await.unwrap().forget();
                StatusCode::CREATED
            }
        });
        Self { app, started, go_on }
    }

    /// A request, when its handler has started.
    async fn start(&mut self, key: &'static str) -> tokio::task::JoinHandle<crate::Answer> {
        let app = self.app.clone();
        let request = tokio::spawn(async move { app.post(key).await });
        self.started.recv().await.unwrap();
        request
    }
}

#[tokio::test]
async fn fifty_duplicates_do_not_exhaust_a_pool_of_two() {
    let bank = Bank::new().await;
    let small = Bank::at(&bank.url, 2, |store| store).await;
    let mut slow = Slow::of(&small);
    let first = slow.start("one").await;
    let mut duplicates = JoinSet::new();
    for _ in 0..50 {
        let app = slow.app.clone();
        duplicates.spawn(async move { app.post("one").await });
    }
    // Another operation gets through meanwhile.
    slow.go_on.add_permits(1);
    let other = small.app(crate::work);
    let other = timeout(PATIENCE, other.post("other")).await.expect("a connection is left");
    assert_eq!(other.status, StatusCode::CREATED);
    assert_eq!(first.await.unwrap().status, StatusCode::CREATED);
    while let Some(duplicate) = duplicates.join_next().await {
        let duplicate = duplicate.unwrap();
        assert!(duplicate.is_replay() && duplicate.status == StatusCode::CREATED, "{duplicate:?}");
    }
    assert_eq!((bank.balance().await, bank.records().await), (2, (2, 2)));
}

#[tokio::test]
async fn fifty_that_wait_for_another_process_do_not_exhaust_a_pool_of_two() {
    let bank = Bank::with(|store| store).await;
    // Fifty keys that somebody else's transaction holds, and a request for each.
    let keys: Vec<String> = (0..50).map(|number| format!("key-{number}")).collect();
    let mut elsewhere = PgConnection::connect(&bank.url).await.unwrap();
    let mut held = elsewhere.begin().await.unwrap();
    for key in &keys {
        let claim = "INSERT INTO retrysafe_record (id, fence, layout, state, previous_vanished,
                fingerprint, expires_at)
            VALUES ($1, 1, 1, 2, false, '', now() + interval '1 day')";
        sqlx::query(claim).bind(&id(key).as_bytes()[..]).execute(&mut *held).await.unwrap();
    }
    let small = Bank::at(&bank.url, 2, |store| store).await;
    let app = small.app(crate::work);
    let mut duplicates = JoinSet::new();
    for key in keys {
        let app = app.clone();
        duplicates.spawn(async move { app.post(&key).await });
    }
    // Another operation gets through while one of them waits on its row.
    let other = timeout(PATIENCE / 2, app.retry("other")).await.expect("a connection is left");
    assert_eq!(other.status, StatusCode::CREATED);
    for _ in 0..49 {
        let duplicate = duplicates.join_next().await.unwrap().unwrap();
        assert_eq!(duplicate.code(), "in_progress");
    }
    held.rollback().await.unwrap();
    let last = duplicates.join_next().await.unwrap().unwrap();
    assert_eq!(last.status, StatusCode::CREATED, "the one that was let wait goes on: {last:?}");
    assert_eq!((bank.balance().await, bank.records().await), (2, (2, 2)));
}

#[tokio::test]
async fn a_duplicate_waits_for_its_bound_and_is_then_in_progress() {
    let bank = Bank::with(|store| store.wait(Duration::from_millis(200))).await;
    let mut slow = Slow::of(&bank);
    let first = slow.start("one").await;
    // In this process, and in another one.
    let elsewhere = Bank::at(&bank.url, 4, |store| store.wait(Duration::from_millis(200))).await;
    for app in [&slow.app, &elsewhere.app(crate::work)] {
        let duplicate = app.post("one").await;
        assert_eq!((duplicate.status.as_u16(), &*duplicate.code()), (409, "in_progress"));
        assert!(duplicate.headers.contains_key("retry-after"));
    }
    assert_eq!(slow.app.post_with("one", "something else").await.code(), "key_reused");
    slow.go_on.add_permits(1);
    assert_eq!(first.await.unwrap().status, StatusCode::CREATED);
    assert_eq!((bank.balance().await, bank.records().await), (1, (1, 1)));
}

#[tokio::test]
async fn d2_a_layer_that_waits_gets_the_outcome_from_another_process() {
    let bank = Bank::new().await;
    let mut slow = Slow::of(&bank);
    let first = slow.start("one").await;
    let elsewhere = Bank::at(&bank.url, 4, |store| store.wait(Duration::from_millis(20))).await;
    let layer = elsewhere.layer().on_in_flight(OnInFlight::wait(PATIENCE)).build().unwrap();
    let router = axum::Router::new().route("/", axum::routing::post(crate::work));
    let app = App(router.idempotent(layer));
    let duplicate = tokio::spawn(async move { app.post("one").await });
    // It has asked at least twice.
    while bank
        .number("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'transactionid'")
        .await
        == 0
    {}
    slow.go_on.add_permits(1);
    assert_eq!(first.await.unwrap().status, StatusCode::CREATED);
    assert!(duplicate.await.unwrap().is_replay());
    assert_eq!((bank.balance().await, bank.records().await), (1, (1, 1)));
}

#[tokio::test]
async fn an_ordinary_claim_meets_a_row_that_a_transaction_holds() {
    let bank = Bank::new().await;
    let mut slow = Slow::of(&bank);
    let first = slow.start("one").await;
    let store = PostgresStore::builder(&bank.url).timeout(Duration::from_secs(3));
    let store = store.open().await.unwrap();
    let layer = retrysafe_axum::IdempotencyLayer::builder(store, retrysafe_axum::Scope::shared())
        .settings(|settings| settings.store_deadline = PATIENCE);
    let router = axum::Router::new().route("/", axum::routing::post(|| async { "ran" }));
    let ordinary = App(router.idempotent(layer.build().unwrap()));
    let duplicate = ordinary.post("one").await;
    assert_eq!((duplicate.status.as_u16(), &*duplicate.code()), (409, "in_progress"));
    slow.go_on.add_permits(1);
    first.await.unwrap();
    assert!(ordinary.post("one").await.is_replay());
}

#[tokio::test]
async fn a_key_that_an_ordinary_layer_left_is_claimed_like_any_other() {
    let bank = Bank::new().await;
    let store = PostgresStore::builder(&bank.url).open().await.unwrap();
    let layer = retrysafe_axum::IdempotencyLayer::builder(store, retrysafe_axum::Scope::shared());
    let release = axum::routing::post(|| async { StatusCode::TOO_MANY_REQUESTS });
    let router = axum::Router::new().route("/", release);
    let ordinary = App(router.idempotent(layer.build().unwrap()));
    assert_eq!(ordinary.post("one").await.status, StatusCode::TOO_MANY_REQUESTS);
    let app = bank.app(crate::work);
    assert_eq!(app.post("one").await.status, StatusCode::CREATED);
    assert!(app.post("one").await.is_replay());
    let fence = bank.number("SELECT fence FROM retrysafe_record").await;
    assert_eq!((fence, bank.balance().await, bank.records().await), (2, 1, (1, 1)));
}

#[tokio::test]
async fn st11_a_claim_that_is_dropped_anywhere_leaves_no_transaction_behind() {
    let bank = Bank::new().await;
    let small = Bank::at(&bank.url, 1, |store| store).await;
    for polls in 0..60 {
        let claim = Claim {
            id: id(&format!("key-{polls}")),
            owner: Owner::new(&SystemEntropy),
            fingerprint: Fingerprint {
                algorithm: Algorithm::from_u32(1),
                head: [1; 32],
                body: None,
            },
            lease: PATIENCE,
            retention: PATIENCE,
            take_over: false,
        };
        {
            let mut begin = Box::pin(small.store.begin(&claim));
            for _ in 0..polls {
                if begin.poll_unpin(&mut Context::from_waker(noop_waker_ref())).is_ready() {
                    break;
                }
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
        }
        let lease = Lease { id: claim.id, owner: claim.owner, attempt: 0, fence: 0 };
        assert_eq!(small.store.release(&lease, PATIENCE).await.unwrap(), Held::Applied);
    }
    // The one connection of the pool is in nobody's transaction: what is done with it stays done.
    assert_eq!(small.app(crate::work).post("one").await.status, StatusCode::CREATED);
    assert_eq!((bank.balance().await, bank.records().await), (1, (1, 1)));
}

fn id(key: &str) -> OperationId {
    OperationId::new("default", &Scope::shared(), &IdempotencyKey::new(key).unwrap())
}
