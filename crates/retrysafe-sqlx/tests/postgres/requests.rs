//! How often the server is asked, counted on the wire, and what becomes of an answer that is lost
//! there.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use retrysafe_core::{
    Begin, Claim, Found, Held, Inspect as _, Store as _, StoreError, StoreErrorKind,
};
use retrysafe_sqlx::PostgresStore;
use retrysafe_testkit::servers::{PostgresServer, Wire};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, postgres::PgPoolOptions};

use crate::{LONG, Table, acquire, claim, operation, until_answered};

/// A store at the end of a wire, with one connection that has prepared every statement.
struct Line {
    wire: Wire,
    store: PostgresStore,
}

impl Line {
    async fn new() -> Self {
        let wire = Wire::to(PostgresServer::shared().await.addr()).await;
        let table = Table::new().await;
        let table = Table { url: wire.url_for(&table.url), ..table };
        let store = table.builder().max_connections(1).open().await.unwrap();
        for verb in 0..5 {
            let lease = acquire(&store, &claim(operation())).await;
            let fingerprint = claim(lease.id).fingerprint;
            let held = match verb {
                0 => store.renew(&lease, LONG).await,
                1 => store.renew(&lease, Duration::ZERO).await,
                2 => store.complete(&lease, &fingerprint, "x".into(), LONG).await,
                3 => store.release(&lease, LONG).await,
                _ => {
                    store.changed(&lease.id, 2, LONG).await.unwrap();
                    continue;
                }
            };
            assert_eq!(held.unwrap(), Held::Applied);
            let next = Claim { take_over: true, ..claim(lease.id) };
            for _ in 0..2 {
                let _ = store.begin(&next).await.unwrap();
            }
        }
        Self { wire, store }
    }

    /// How many round trips a call takes.
    async fn count<T>(&self, call: impl Future<Output = T>) -> (T, u64) {
        let before = self.wire.round_trips();
        let answer = call.await;
        (answer, self.wire.round_trips() - before)
    }
}

#[tokio::test]
async fn st2_one_round_trip_each() {
    let line = Line::new().await;
    let store = &line.store;
    let claim_of = claim(operation());
    let (lease, asked) = line.count(acquire(store, &claim_of)).await;
    assert_eq!(asked, 1, "a claim that is granted");
    let (found, asked) = line.count(store.begin(&claim(lease.id))).await;
    assert!(matches!(found.unwrap(), Begin::Found(Found::InFlight { .. })));
    assert_eq!(asked, 1, "in flight");
    let (held, asked) = line.count(store.renew(&lease, LONG)).await;
    assert_eq!((held.unwrap(), asked), (Held::Applied, 1), "a renewal");
    let fingerprint = &claim_of.fingerprint;
    let complete = store.complete(&lease, fingerprint, "done".into(), LONG);
    let (held, asked) = line.count(complete).await;
    assert_eq!((held.unwrap(), asked), (Held::Applied, 1), "an outcome");
    let (found, asked) = line.count(store.begin(&claim(lease.id))).await;
    assert!(matches!(found.unwrap(), Begin::Found(Found::Finished { .. })));
    assert_eq!(asked, 1, "a replay");
    let late = crate::lease(
        &claim(lease.id),
        retrysafe_core::Acquired { attempt: 1, fence: 1, previous_vanished: false },
    );
    let complete = store.complete(&late, fingerprint, "late".into(), LONG);
    let (held, asked) = line.count(complete).await;
    assert!(matches!(held.unwrap(), Held::Lost(Found::Finished { .. })));
    assert_eq!(asked, 1, "what is true now comes with the loss");

    let lease = acquire(store, &claim(operation())).await;
    let (held, asked) = line.count(store.release(&lease, LONG)).await;
    assert_eq!((held.unwrap(), asked), (Held::Applied, 1), "a release");
    let (again, asked) = line.count(acquire(store, &claim(lease.id))).await;
    assert_eq!((again.attempt, asked), (2, 2), "the claim of a released key");
    let (held, asked) = line.count(store.renew(&again, Duration::ZERO)).await;
    assert_eq!((held.unwrap(), asked), (Held::Applied, 1), "giving up");
    let take_over = Claim { take_over: true, ..claim(lease.id) };
    let (third, asked) = line.count(acquire(store, &take_over)).await;
    assert_eq!((third.attempt, asked), (3, 2), "a take-over");
    let (repeated, asked) = line.count(store.begin(&take_over)).await;
    assert!(matches!(repeated.unwrap(), Begin::Acquired(_)));
    assert_eq!(asked, 2, "a repeated claim waits for the standby too");
}

#[tokio::test]
async fn st4_a_request_that_is_cut_off_is_ambiguous_and_can_be_repeated() {
    for cut_after in [false, true] {
        let Line { wire, store } = Line::new().await;
        let cut = || if cut_after { wire.cut_after() } else { wire.cut_before() };
        let is_cut = |error: retrysafe_core::StoreError| {
            assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
            assert!(!wire.awaits_cut());
        };

        let claim_of = claim(operation());
        cut();
        is_cut(store.begin(&claim_of).await.unwrap_err());
        let seen = store.get(&claim_of.id).await.unwrap();
        assert_eq!(seen.is_some(), cut_after, "the claim took effect, or did not");
        let lease = acquire(&store, &claim_of).await;
        assert_eq!((lease.attempt, lease.fence), (1, 1));

        cut();
        is_cut(store.renew(&lease, LONG).await.unwrap_err());
        assert_eq!(store.renew(&lease, LONG).await.unwrap(), Held::Applied);

        let complete = || store.complete(&lease, &claim_of.fingerprint, "done".into(), LONG);
        cut();
        is_cut(complete().await.unwrap_err());
        assert_eq!(complete().await.unwrap(), Held::Applied);
        let found = store.begin(&claim(lease.id)).await.unwrap();
        assert!(
            matches!(found, Begin::Found(Found::Finished { payload, .. }) if payload == "done")
        );

        let lease = acquire(&store, &claim(operation())).await;
        cut();
        is_cut(store.release(&lease, LONG).await.unwrap_err());
        assert_eq!(store.release(&lease, LONG).await.unwrap(), Held::Applied);
        let next = claim(lease.id);
        cut();
        is_cut(store.begin(&next).await.unwrap_err());
        assert_eq!(acquire(&store, &next).await.attempt, 2);
    }
}

#[tokio::test]
async fn st4_a_verb_that_is_repeated_while_its_first_try_is_still_out_is_done_once() {
    let wire = Wire::to(PostgresServer::shared().await.addr()).await;
    let table = Table::new().await;
    let slow = Table { url: wire.url_for(&table.url), ..table.clone() };
    let slow = slow.builder().timeout(Duration::from_millis(300)).open().await.unwrap();
    let claim = claim(operation());
    crate::drills::until_acquired(&slow, &crate::claim(operation())).await;
    wire.stall();
    let error = slow.begin(&claim).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Timeout, "{error}");
    // Repeated by another way, and finished, before the first try arrives.
    let other = table.open().await;
    let lease = acquire(&other, &claim).await;
    let done = other.complete(&lease, &claim.fingerprint, "done".into(), LONG).await.unwrap();
    assert_eq!(done, Held::Applied);
    wire.unstall();
    let retry = crate::claim(claim.id);
    let found = crate::until_answered(|| slow.begin(&retry)).await;
    assert!(matches!(found, Begin::Found(Found::Finished { payload, .. }) if payload == "done"));
}

/// A server that has no time for all is there: nobody may go on unprotected beside those whom it serves.
#[tokio::test]
async fn d4_a_busy_server_is_not_an_unreachable_one() {
    let table = Table::new().await;
    // Its time-out for locks, two thirds of this one, is answered before anybody gives up.
    let builder = table.builder().max_connections(1).timeout(Duration::from_secs(3));
    let store = builder.open().await.unwrap();
    acquire(&store, &claim(operation())).await;

    let mut elsewhere = PgConnection::connect(&table.url).await.unwrap();
    let mut holding = elsewhere.begin().await.unwrap();
    let lock = format!("LOCK {} IN EXCLUSIVE MODE", table.name);
    sqlx::query(AssertSqlSafe(lock)).execute(&mut *holding).await.unwrap();
    let claims: Vec<_> = (0..8).map(|_| claim(operation())).collect();
    let begun = join_all(claims.iter().map(|claim| store.begin(claim))).await;
    // That a row is held is an answer; the others got no connection.
    let errors: Vec<_> = begun.into_iter().filter_map(Result::err).collect();
    let kinds = errors.iter().map(StoreError::kind);
    assert!(!kinds.into_iter().any(|it| it == StoreErrorKind::Unreachable), "{errors:?}");
    let waited = errors.iter().filter(|it| it.to_string().contains("in use for too long"));
    assert!(waited.count() > 0, "{errors:?}");

    holding.rollback().await.unwrap();
    until_answered(|| store.begin(&claims[0])).await;
}

/// The second request of a claim, that takes over.
#[tokio::test]
async fn d4_a_server_that_is_lost_in_the_middle_of_a_claim_is_not_unreachable() {
    let table = Table::new().await;
    let direct = table.open().await;
    let lease = acquire(&direct, &claim(operation())).await;
    assert_eq!(direct.renew(&lease, Duration::ZERO).await.unwrap(), Held::Applied);

    let wire = Arc::new(Wire::to(PostgresServer::shared().await.addr()).await);
    let (unplugs, far) = (Arc::new(AtomicBool::new(false)), wire.url_for(&table.url));
    let pool = PgPoolOptions::new().max_connections(1).after_release({
        let (wire, unplugs) = (wire.clone(), unplugs.clone());
        move |_, _| {
            let (wire, unplugs) = (wire.clone(), unplugs.clone());
            Box::pin(async move {
                if unplugs.load(Ordering::SeqCst) {
                    wire.refuse().await;
                }
                Ok(!unplugs.load(Ordering::SeqCst))
            })
        }
    });
    let pool = pool.connect(&far).await.unwrap();
    let store = PostgresStore::from_pool(pool.clone()).table(&table.name);
    let store = store.timeout(Duration::from_secs(6)).open().await.unwrap();
    while pool.num_idle() == 0 {
        tokio::task::yield_now().await;
    }
    unplugs.store(true, Ordering::SeqCst);
    let error = store.begin(&Claim { take_over: true, ..claim(lease.id) }).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
}
