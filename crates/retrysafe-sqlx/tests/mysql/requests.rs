//! What each verb costs, counted on the wire (ST2).

use retrysafe_core::{
    Begin, Claim, Found, Held, Inspect as _, Lease, Operated, Resolution, Store as _,
};
use retrysafe_sqlx::MySqlStore;
use retrysafe_testkit::servers::{MariadbServer, Wire};

use crate::{LONG, Table, acquire, claim, operation};

struct Counted {
    wire: Wire,
    store: MySqlStore,
}

impl Counted {
    async fn new() -> Self {
        Self::on(MariadbServer::shared().await, Table::new().await).await
    }

    async fn on(server: &MariadbServer, table: Table) -> Self {
        let wire = Wire::to(server.addr()).await;
        let table = Table { url: wire.url_for(&table.url), ..table };
        let store = table.builder().max_connections(1).open().await.unwrap();
        let counted = Self { wire, store };
        // The first use of a statement on a connection prepares it.
        counted.every_verb().await;
        counted
    }

    /// Asserts how many requests a call makes.
    async fn costs<T>(&self, requests: u64, what: &str, call: impl Future<Output = T>) -> T {
        let before = self.wire.round_trips();
        let answer = call.await;
        assert_eq!(self.wire.round_trips() - before, requests, "{what}");
        answer
    }

    async fn every_verb(&self) -> Vec<Lease> {
        let owned = claim(operation());
        let lease = acquire(&self.store, &owned).await;
        assert_eq!(self.store.renew(&lease, LONG).await.unwrap(), Held::Applied);
        assert_eq!(self.store.release(&lease, LONG).await.unwrap(), Held::Applied);
        let lease = acquire(&self.store, &claim(owned.id)).await;
        for _ in 0..2 {
            let done = self.store.complete(&lease, &owned.fingerprint, "done".into(), LONG).await;
            assert_eq!(done.unwrap(), Held::Applied);
        }
        let other = claim(operation());
        let given_up = acquire(&self.store, &other).await;
        let held = self.store.renew(&given_up, std::time::Duration::ZERO).await;
        assert_eq!(held.unwrap(), Held::Applied);
        let resolved = self.store.resolve(&other.id, 1, Resolution::DidNotHappen).await;
        assert_eq!(resolved.unwrap(), Operated::Applied);
        vec![lease, given_up]
    }
}

#[tokio::test]
async fn st2_a_first_execution_is_two_requests() {
    let counted = Counted::new().await;
    let store = &counted.store;
    let owned = claim(operation());
    let lease = counted.costs(1, "begin", acquire(store, &owned)).await;
    let held = counted.costs(1, "renew", store.renew(&lease, LONG)).await;
    assert_eq!(held.unwrap(), Held::Applied);
    let complete = store.complete(&lease, &owned.fingerprint, "done".into(), LONG);
    assert_eq!(counted.costs(1, "complete", complete).await.unwrap(), Held::Applied);

    let lease = counted.costs(1, "begin", acquire(store, &claim(operation()))).await;
    let release = store.release(&lease, LONG);
    assert_eq!(counted.costs(1, "release", release).await.unwrap(), Held::Applied);

    let lease = acquire(store, &claim(operation())).await;
    let give_up = store.renew(&lease, std::time::Duration::ZERO);
    assert_eq!(counted.costs(1, "giving up", give_up).await.unwrap(), Held::Applied);
}

#[tokio::test]
async fn st2_a_duplicate_is_two_requests() {
    let settings = ["--log-bin=log", "--sync-binlog=1", "--binlog-format=ROW"];
    let server = MariadbServer::with(&settings).await;
    let table = Table::at(&server.fresh_database().await);
    duplicates_cost(2, &Counted::on(&server, table).await).await;
}

#[tokio::test]
async fn st9_what_is_shown_before_it_is_flushed_is_confirmed_first() {
    let server = MariadbServer::start().await;
    let table = Table::at(&server.fresh_database().await);
    duplicates_cost(3, &Counted::on(&server, table).await).await;
}

/// `requests` for each duplicate that is told of something that has to last.
async fn duplicates_cost(requests: u64, counted: &Counted) {
    let store = &counted.store;
    let owned = claim(operation());
    let lease = acquire(store, &owned).await;
    let retry = claim(owned.id);
    let begun = counted.costs(2, "in flight", store.begin(&retry)).await.unwrap();
    assert!(matches!(begun, Begin::Found(Found::InFlight { .. })), "{begun:?}");
    let begun = counted.costs(requests, "the same call", store.begin(&owned)).await.unwrap();
    assert!(matches!(begun, Begin::Acquired(_)), "{begun:?}");
    let complete = || store.complete(&lease, &owned.fingerprint, "done".into(), LONG);
    assert_eq!(complete().await.unwrap(), Held::Applied);
    for _ in 0..3 {
        let begun = counted.costs(requests, "replay", store.begin(&retry)).await.unwrap();
        assert!(matches!(begun, Begin::Found(Found::Finished { .. })), "{begun:?}");
        let again = counted.costs(requests, "complete again", complete()).await.unwrap();
        assert_eq!(again, Held::Applied);
        let stranger = Lease { owner: retry.owner, ..lease.clone() };
        let late = store.release(&stranger, LONG);
        let late = counted.costs(requests, "a late release", late).await.unwrap();
        assert!(matches!(late, Held::Lost(Found::Finished { .. })), "{late:?}");
    }
}

#[tokio::test]
async fn st2_starting_again_is_three_requests() {
    let counted = Counted::new().await;
    let store = &counted.store;
    let lease = acquire(store, &claim(operation())).await;
    assert_eq!(store.release(&lease, LONG).await.unwrap(), Held::Applied);
    let lease = counted.costs(3, "released", acquire(store, &claim(lease.id))).await;
    assert_eq!(store.renew(&lease, std::time::Duration::ZERO).await.unwrap(), Held::Applied);
    let take_over = Claim { take_over: true, ..claim(lease.id) };
    let taken = counted.costs(3, "given up", acquire(store, &take_over)).await;
    assert_eq!(taken.attempt, 3);
}
