//! What a store makes of a server that dies, hangs and comes back.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use retrysafe_core::{
    Begin, Claim, Found, Held, Inspect as _, Lease, OperationId, Store as _, StoreErrorKind,
};
use retrysafe_sqlx::PostgresStore;
use retrysafe_testkit::servers::{PostgresServer, Wire};
use sqlx::postgres::PgPoolOptions;
use tokio::{sync::watch, task::JoinSet};

use crate::{LONG, PATIENCE, Table, acquire, claim, numbered, operation, until_answered};

const SHORT: Duration = Duration::from_millis(500);

/// What clients were told that goes on while a server is harmed.
pub(crate) struct Load {
    /// By operation: the outcome that was acknowledged, and how often it was run.
    acknowledged: Arc<Mutex<HashMap<u64, Vec<String>>>>,
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
}

impl Load {
    /// Two clients for each operation: one of them runs it, the other gets its outcome.
    pub(crate) fn start(store: &PostgresStore) -> Self {
        let acknowledged = Arc::new(Mutex::new(HashMap::<u64, Vec<String>>::new()));
        let stop = watch::Sender::new(false);
        let mut clients = JoinSet::new();
        for client in 0..8_u64 {
            let (store, stopped) = (store.clone(), stop.subscribe());
            let acknowledged = acknowledged.clone();
            clients.spawn(async move {
                // Clients 0 and 1 share their operations, 2 and 3 theirs, ...
                for number in 0.. {
                    if *stopped.borrow() {
                        return;
                    }
                    let number = (client / 2) << 32 | number;
                    if let Some(run) = run(&store, numbered(number), client).await {
                        acknowledged.lock().unwrap().entry(number).or_default().push(run);
                    }
                }
            });
        }
        Self { acknowledged, stop, clients }
    }

    pub(crate) async fn until_acknowledged(&self, more: usize) {
        let count = || self.acknowledged.lock().unwrap().len();
        let goal = count() + more;
        let waiting = async {
            while count() < goal {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("clients go on");
    }

    /// Waits until every client has its last answer.
    pub(crate) async fn stop(&mut self) {
        self.stop.send_replace(true);
        while let Some(client) = self.clients.join_next().await {
            client.unwrap();
        }
    }

    /// What is left of the clients is not waited for.
    pub(crate) fn abandon(&mut self) {
        self.clients.abort_all();
    }

    pub(crate) async fn assert_kept(&self, store: &PostgresStore) {
        let acknowledged = self.acknowledged.lock().unwrap().clone();
        for (number, runs) in acknowledged {
            assert_eq!(runs.len(), 1, "{number} was run more than once: {runs:?}");
            let retry = claim(numbered(number));
            let found = until_answered(|| store.begin(&retry)).await;
            assert!(
                matches!(&found, Begin::Found(Found::Finished { payload, .. }) if *payload == runs[0]),
                "{number}: {found:?} instead of {runs:?}"
            );
        }
    }
}

/// Runs an operation if nobody else does, and gives the outcome that was acknowledged.
async fn run(store: &PostgresStore, id: OperationId, client: u64) -> Option<String> {
    let claim = claim(id);
    loop {
        match until_answered(|| store.begin(&claim)).await {
            Begin::Acquired(acquired) => {
                let lease = crate::lease(&claim, acquired);
                let outcome = format!("client {client}, fence {}", lease.fence);
                let complete =
                    || store.complete(&lease, &claim.fingerprint, outcome.clone().into(), LONG);
                assert_eq!(until_answered(complete).await, Held::Applied);
                return Some(outcome);
            }
            Begin::Found(Found::Finished { .. }) => return None,
            Begin::Found(Found::InFlight { attempt, .. }) => {
                let _ = store.changed(&id, attempt, LONG).await;
            }
            Begin::Found(found) => panic!("nobody gave up: {found:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn st9_nothing_is_lost_by_a_kill_and_nothing_is_run_twice() {
    let mut server = PostgresServer::start().await;
    let table = Table::at(&server.fresh_database().await).await;
    let store = table.builder().timeout(Duration::from_secs(2)).open().await.unwrap();
    let mut load = Load::start(&store);
    for _ in 0..2 {
        load.until_acknowledged(40).await;
        server.kill().await;
        server.restart().await;
    }
    load.until_acknowledged(40).await;
    load.stop().await;
    load.assert_kept(&store).await;
}

#[tokio::test]
async fn a_server_that_is_down_is_unreachable_at_once_and_found_again() {
    let mut server = PostgresServer::start().await;
    let table = Table::at(&server.fresh_database().await).await;
    let store = table.open().await;
    let pool = PgPoolOptions::new().acquire_timeout(PATIENCE).connect(&table.url).await.unwrap();
    let pooled = PostgresStore::from_pool(pool).table(&table.name).open().await.unwrap();
    let claims = [claim(operation()), claim(operation())];
    acquire(&store, &claim(operation())).await;
    server.kill().await;

    for (store, claim) in [&store, &pooled].into_iter().zip(&claims) {
        // The first may find out on a connection of before: then it does not know.
        let _ = store.begin(claim).await.unwrap_err();
        let error = store.begin(claim).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Unreachable, "{error}");
    }
    server.restart().await;
    for (store, claim) in [&store, &pooled].into_iter().zip(&claims) {
        assert!(matches!(until_answered(|| store.begin(claim)).await, Begin::Acquired(_)));
    }
}

#[tokio::test]
async fn st4_a_server_that_hangs_is_a_time_out_and_the_call_can_be_repeated() {
    let server = PostgresServer::start().await;
    let table = Table::at(&server.fresh_database().await).await;
    let store = table.builder().max_connections(1).timeout(SHORT).open().await.unwrap();
    let claims = [claim(operation()), claim(operation())];
    let lease = until_acquired(&store, &claims[0]).await;

    server.pause();
    let error = store.begin(&claims[1]).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Timeout, "{error}");
    // The connection owes an answer, and no other takes its place: nothing more is sent. D4: the
    // server is there all the same.
    let complete = || store.complete(&lease, &claims[0].fingerprint, "done".into(), LONG);
    let error = complete().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Timeout, "{error}");
    server.resume();

    assert_eq!(until_answered(complete).await, Held::Applied);
    let begun = until_answered(|| store.begin(&claims[1])).await;
    assert!(matches!(begun, Begin::Acquired(acquired) if acquired.fence == 1), "{begun:?}");
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%retrysafe%' OR \
                    query LIKE '%standing%' AND pid <> pg_backend_pid()";
    let sessions: u32 = server.query(sessions).await.parse().unwrap();
    assert!(sessions <= 2, "{sessions} sessions");
}

/// A claim by a store that gives up waiting before a busy machine has its turn.
pub(crate) async fn until_acquired(store: &PostgresStore, claim: &Claim) -> Lease {
    match until_answered(|| store.begin(claim)).await {
        Begin::Acquired(acquired) => crate::lease(claim, acquired),
        found => panic!("the claim should have been granted: {found:?}"),
    }
}

#[tokio::test]
async fn a_row_that_somebody_keeps_locked_is_a_time_out_for_its_key_alone() {
    let table = Table::new().await;
    let store = table.open().await;
    let lease = acquire(&store, &claim(operation())).await;
    let pool = sqlx::PgPool::connect(&table.url).await.unwrap();
    let mut locked = pool.begin().await.unwrap();
    let lock = format!("SELECT 1 FROM {} FOR UPDATE", table.name);
    sqlx::query(sqlx::AssertSqlSafe(lock)).execute(&mut *locked).await.unwrap();

    let hasty = table.builder().timeout(SHORT).open().await.unwrap();
    let error = hasty.renew(&lease, LONG).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Timeout, "{error}");
    acquire(&store, &claim(operation())).await;
    // Who only reads is not kept.
    let found = store.begin(&claim(lease.id)).await.unwrap();
    assert!(matches!(found, Begin::Found(Found::InFlight { .. })), "{found:?}");
    locked.rollback().await.unwrap();
    assert_eq!(until_answered(|| hasty.renew(&lease, LONG)).await, Held::Applied);
}

#[tokio::test]
async fn waiters_eat_pool() {
    let table = Table::new().await;
    let store = table.builder().max_connections(1).open().await.unwrap();
    let owned = claim(operation());
    let lease = acquire(&store, &owned).await;
    let mut waiters = JoinSet::new();
    for _ in 0..50 {
        let store = store.clone();
        waiters.spawn(async move { store.changed(&owned.id, 1, LONG).await.unwrap() });
    }
    tokio::task::yield_now().await;
    let done = store.complete(&lease, &owned.fingerprint, "done".into(), LONG).await.unwrap();
    assert_eq!(done, Held::Applied);
    tokio::time::timeout(PATIENCE, waiters.join_all()).await.expect("all are told");
}

/// D5: fifty callers at once, and a store that has one connection: the first few are enough for all,
/// where as many handshakes as may be open would have kept each other, and all callers, waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cold_burst_is_answered_by_the_first_few_connections() {
    const MOST: u32 = 16;
    let wire = Wire::to(PostgresServer::shared().await.addr()).await;
    let table = Table::new().await;
    let table = Table { url: wire.url_for(&table.url), ..table };
    let store = table.builder().max_connections(MOST).open().await.unwrap();
    let mut burst = JoinSet::new();
    for number in 0..50 {
        let store = store.clone();
        burst.spawn(async move { acquire(&store, &claim(numbered(number))).await });
    }
    assert_eq!(burst.join_all().await.len(), 50);
    let connections = wire.connections();
    assert!(connections < MOST.into(), "{connections} connections");
}

#[tokio::test]
async fn st7_the_servers_clock_judges() {
    let table = Table::new().await;
    let store = table.open().await;
    let lease = acquire(&store, &claim(operation())).await;
    // As if an hour and a second had passed there; here it has not.
    table.run("UPDATE {table} SET lease_until = clock_timestamp() - interval '1 s'").await;
    let found = store.begin(&claim(lease.id)).await.unwrap();
    assert!(matches!(found, Begin::Found(Found::Lapsed { .. })), "{found:?}");
    let taken = acquire(&store, &Claim { take_over: true, ..claim(lease.id) }).await;
    assert_eq!(taken.attempt, 2);
    table.run("UPDATE {table} SET expires_at = clock_timestamp()").await;
    assert_eq!(store.get(&lease.id).await.unwrap(), None);
    assert_eq!(store.renew(&taken, LONG).await.unwrap(), Held::Lost(Found::Free));
    assert_eq!(acquire(&store, &claim(lease.id)).await.attempt, 1);
}

#[tokio::test]
async fn st11_a_call_that_is_dropped_leaves_its_connection_usable() {
    let table = Table::new().await;
    let store = table.builder().max_connections(1).open().await.unwrap();
    let pid = async || {
        let sql = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%standing%' \
                   AND datname = current_database() AND pid <> pg_backend_pid() \
                   AND query LIKE '%{table}%'";
        let rows = table.run(sql).await;
        rows.iter().map(|row| sqlx::Row::get::<i32, _>(row, 0)).collect::<Vec<_>>()
    };
    acquire(&store, &claim(operation())).await;
    let before = pid().await;
    for _ in 0..20 {
        let claim = claim(operation());
        // Sent, and not waited for.
        let _ = tokio::time::timeout(Duration::from_micros(300), store.begin(&claim)).await;
    }
    let last = claim(operation());
    acquire(&store, &last).await;
    assert_eq!((before.len(), pid().await), (1, before), "one session did it all");
}
