//! A primary with a synchronous standby: what was acknowledged is on both.

use std::time::Duration;

use retrysafe_core::{Begin, Found, Held, Store as _, StoreErrorKind};
use retrysafe_sqlx::PostgresStore;
use retrysafe_testkit::servers::PostgresPair;

use crate::{LONG, Table, acquire, claim, drills::Load, operation, until_answered};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn st9_nothing_acknowledged_is_lost_when_the_standby_is_promoted() {
    let mut pair = PostgresPair::start().await;
    let table = Table::at(&pair.primary.fresh_database().await).await;
    let store = table.builder().timeout(Duration::from_secs(2)).open().await.unwrap();
    let owned = claim(operation());
    let lease = acquire(&table.open().await, &owned).await;
    let mut load = Load::start(&store);
    load.until_acknowledged(100).await;
    pair.primary.kill().await;
    load.abandon();
    pair.promote().await;

    let after = Table { url: pair.on_standby(&table.url), ..table };
    let after = after.open().await;
    load.assert_kept(&after).await;
    // A claim is kept too: nobody else gets it, and its owner completes it.
    let found = after.begin(&claim(lease.id)).await.unwrap();
    assert!(matches!(found, Begin::Found(Found::InFlight { attempt: 1, .. })), "{found:?}");
    let done = after.complete(&lease, &owned.fingerprint, "done".into(), LONG).await.unwrap();
    assert_eq!(done, Held::Applied);
}

#[tokio::test]
async fn st9_nothing_is_acknowledged_without_the_standby() {
    let mut pair = PostgresPair::start().await;
    let table = Table::at(&pair.primary.fresh_database().await).await;
    let store = table.builder().timeout(Duration::from_secs(1)).open().await.unwrap();
    let claims = [claim(operation()), claim(operation()), claim(operation())];
    let patient = table.open().await;
    let finished = acquire(&patient, &claims[0]).await;
    let released = acquire(&patient, &claims[1]).await;
    let complete = || store.complete(&finished, &claims[0].fingerprint, "done".into(), LONG);
    let release = || store.release(&released, LONG);
    let begin = || store.begin(&claims[2]);
    let is = |kind, error: retrysafe_core::StoreError| assert_eq!(error.kind(), kind, "{error}");

    pair.cut_link().await;
    // The server's own time-outs end no wait for a standby: that would be reported as success.
    is(StoreErrorKind::Timeout, complete().await.unwrap_err());
    // On its other connections, and then on new ones, which wait for the standby as well.
    let _ = release().await.unwrap_err();
    let _ = begin().await.unwrap_err();

    // The server comes back with what it had written down, and without its standby. What it shows
    // now could yet be lost, so it is no answer.
    pair.primary.kill().await;
    pair.primary.restart().await;
    let shown = table.run("SELECT 1 FROM {table} WHERE state = 1").await;
    assert_eq!(shown.len(), 1, "it is there to be seen");
    let replay = async || store.begin(&claim(claims[0].id)).await;
    let _ = replay().await.unwrap_err();
    is(StoreErrorKind::Timeout, replay().await.unwrap_err());
    is(StoreErrorKind::Timeout, complete().await.unwrap_err());

    // A pool's connections show it, but a call that is repeated still is no success.
    let pool = sqlx::PgPool::connect(&table.url).await.unwrap();
    // One for each call, made beforehand.
    let mut connections = Vec::new();
    for _ in 0..4 {
        connections.push(pool.acquire().await.unwrap());
    }
    drop(connections);
    let pooled = PostgresStore::from_pool(pool).table(&table.name);
    let pooled = pooled.timeout(Duration::from_secs(1)).open().await.unwrap();
    let repeated = pooled.complete(&finished, &claims[0].fingerprint, "done".into(), LONG).await;
    is(StoreErrorKind::Timeout, repeated.unwrap_err());
    is(StoreErrorKind::Timeout, pooled.release(&released, LONG).await.unwrap_err());
    let _ = pooled.begin(&claims[2]).await.unwrap_err();

    pair.mend_link().await;
    assert_eq!(until_answered(complete).await, Held::Applied);
    assert_eq!(until_answered(release).await, Held::Applied);
    assert!(matches!(until_answered(begin).await, Begin::Acquired(_)));
    let replayed = until_answered(replay).await;
    assert!(matches!(replayed, Begin::Found(Found::Finished { .. })), "{replayed:?}");
}
