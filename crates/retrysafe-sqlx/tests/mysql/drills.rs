//! Servers that die, stand still and come back, and wires that break: what was acknowledged is kept,
//! and what was not is found out by the same call again (ST4).

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use retrysafe_core::{
    Begin, Claim, Found, Held, Inspect as _, Lease, Operated, OperationId, Resolution, Store as _,
    StoreError, StoreErrorKind,
};
use retrysafe_sqlx::MySqlStore;
use retrysafe_testkit::servers::{MariadbServer, Wire};
use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection};
use tokio::{task::JoinSet, time::timeout};

use crate::{
    LONG, PATIENCE, Table, acquire, claim, lease, literal, numbered, operation, run, until_answered,
};

/// A store on the shared server, behind a wire.
struct Wired {
    wire: Wire,
    table: Table,
    store: MySqlStore,
}

impl Wired {
    async fn new() -> Self {
        let table = Table::new().await;
        let wire = Wire::to(MariadbServer::shared().await.addr()).await;
        let table = Table { url: wire.url_for(&table.url), ..table };
        let store = table.open().await;
        Self { wire, table, store }
    }
}

/// What the live attempt's owner does to it, and does again.
async fn verbs(store: &MySqlStore, cut: impl Fn(&OperationId)) {
    let claim = claim(operation());
    cut(&claim.id);
    let lease = acquire(store, &claim).await;
    assert_eq!((lease.attempt, lease.fence), (1, 1));
    cut(&claim.id);
    assert_eq!(store.renew(&lease, LONG).await.unwrap(), Held::Applied);
    cut(&claim.id);
    assert_eq!(store.renew(&lease, Duration::ZERO).await.unwrap(), Held::Applied);
    let take_over = Claim { take_over: true, ..self::claim(claim.id) };
    cut(&claim.id);
    let lease = acquire(store, &take_over).await;
    assert_eq!((lease.attempt, lease.fence), (2, 2));
    cut(&claim.id);
    assert_eq!(store.release(&lease, LONG).await.unwrap(), Held::Applied);
    cut(&claim.id);
    let lease = acquire(store, &self::claim(claim.id)).await;
    assert_eq!((lease.attempt, lease.fence), (3, 3));
    cut(&claim.id);
    let done = store.complete(&lease, &claim.fingerprint, "done".into(), LONG).await;
    assert_eq!(done.unwrap(), Held::Applied);
    cut(&claim.id);
    let begun = store.begin(&claim).await.unwrap();
    assert!(matches!(begun, Begin::Found(Found::Finished { payload, .. }) if payload == "done"));
}

#[tokio::test]
async fn st4_a_cut_before_the_effect_is_repeated() {
    let wired = Wired::new().await;
    verbs(&wired.store, |id| wired.wire.cut_before_one_with(id.as_bytes())).await;
    assert!(!wired.wire.awaits_cut(), "every cut was made");
}

#[tokio::test]
async fn st4_a_cut_after_the_effect_is_repeated() {
    let wired = Wired::new().await;
    verbs(&wired.store, |id| wired.wire.cut_after_one_with(id.as_bytes())).await;
    assert!(!wired.wire.awaits_cut(), "every cut was made");
}

#[tokio::test]
async fn st4_an_answer_that_is_lost_for_good_is_ambiguous() {
    let wired = Wired::new().await;
    let owned = claim(operation());
    // Claimed, but nobody hears of it: the answer is swallowed and the server is gone.
    wired.wire.cut_after_one_with(owned.id.as_bytes());
    let begin = wired.store.begin(&owned);
    let unplug = async {
        while wired.wire.awaits_cut() {
            tokio::task::yield_now().await;
        }
        wired.wire.refuse().await;
    };
    let (begun, ()) = tokio::join!(begin, unplug);
    let begun = match begun {
        Err(error) => {
            assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
            wired.wire.accept().await;
            until_answered(async || wired.store.begin(&owned).await).await
        }
        // The repetition was faster than the unplugging.
        Ok(begun) => {
            wired.wire.accept().await;
            begun
        }
    };
    let Begin::Acquired(acquired) = begun else { panic!("ST4: {begun:?}") };
    assert_eq!(acquired.attempt, 1);
    let begun = until_answered(async || wired.store.begin(&claim(owned.id)).await).await;
    assert!(matches!(begun, Begin::Found(Found::InFlight { attempt: 1, .. })), "{begun:?}");
}

#[tokio::test]
async fn st4_a_claim_that_may_stand_is_never_said_to_be_unsent() {
    let table = Table::new().await;
    let by_hand = table.open().await;
    let wire = Wire::to(MariadbServer::shared().await.addr()).await;
    let wired = Table { url: wire.url_for(&table.url), ..table.clone() };
    let builder = wired.builder().max_connections(1).timeout(Duration::from_secs(3));
    let store = builder.open().await.unwrap();
    let (owned, one, other) = (operation(), operation(), operation());
    let locks = [lock_row(&by_hand, &table, &one).await, lock_row(&by_hand, &table, &other).await];
    let [lock_of_one, lock_of_other] = locks;

    // The claim is written, and its connection breaks: the next one is somebody else's by then.
    let begin = |id| {
        let store = store.clone();
        tokio::spawn(async move { store.begin(&claim(id)).await })
    };
    wire.cut_after_one_with(owned.as_bytes());
    let begun = begin(owned);
    let first = begin(one);
    let waits = format!(
        "SELECT ID FROM information_schema.PROCESSLIST
        WHERE INFO LIKE 'INSERT INTO%{}%' AND TIME_MS > 200",
        table.name
    );
    while !first.is_finished() && run(&table.url, &waits).await.is_empty() {}
    // Then the claim is repeated, and finds a record: whose, it would have to read. But now it is the
    // others' turn, for longer than the call may take.
    let others: Vec<_> = (0..6).map(|_| begin(other)).collect();
    tokio::task::yield_now().await;
    lock_of_one.close().await.unwrap();
    if let Err(error) = begun.await.unwrap() {
        assert!(error.is_ambiguous(), "the claim may stand: {error}");
    }
    let found = by_hand.begin(&claim(owned)).await.unwrap();
    assert!(matches!(found, Begin::Found(Found::InFlight { attempt: 1, .. })), "{found:?}");
    lock_of_other.close().await.unwrap();
    for other in others.into_iter().chain([first]) {
        let _ = other.await.unwrap();
    }
}

/// Locks the row of an operation until this connection is closed.
async fn lock_row(store: &MySqlStore, table: &Table, id: &OperationId) -> MySqlConnection {
    acquire(store, &claim(*id)).await;
    let mut connection = MySqlConnection::connect(&table.url).await.unwrap();
    let (name, id) = (&table.name, literal(id));
    let lock = format!("BEGIN; SELECT id FROM {name} WHERE id = {id} FOR UPDATE");
    sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut connection).await.unwrap();
    connection
}

#[tokio::test]
async fn st4_an_operators_change_is_not_repeated() {
    let wired = Wired::new().await;
    let owned = claim(operation());
    let lease = acquire(&wired.store, &owned).await;
    assert_eq!(wired.store.renew(&lease, Duration::ZERO).await.unwrap(), Held::Applied);
    wired.store.get(&owned.id).await.unwrap(); // its statement is prepared
    let by_hand = wired.table.open().await;
    // The change names the owner that it was shown; the read before it does not.
    wired.wire.cut_before_one_with(&owned.owner.to_bytes());
    let resolve = wired.store.resolve(&owned.id, 1, Resolution::DidNotHappen);
    let error = resolve.await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
    let resolved = by_hand.resolve(&owned.id, 1, Resolution::DidNotHappen).await.unwrap();
    assert_eq!(resolved, Operated::Applied);
}

#[tokio::test]
async fn d4_a_server_that_is_down_is_unreachable_and_recovered_from() {
    let wired = Wired::new().await;
    acquire(&wired.store, &claim(operation())).await;
    wired.wire.refuse().await;
    // What is idle broke, but is not known to have: that call may have been sent.
    let first = wired.store.begin(&claim(operation())).await.unwrap_err();
    assert!(first.is_ambiguous() || first.kind() == StoreErrorKind::Unreachable, "{first}");
    // From then on nothing is sent, and the answer does not wait for the time-out.
    for _ in 0..20 {
        let error = wired.store.begin(&claim(operation())).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Unreachable, "{error}");
        assert!(!error.to_string().contains("retrysafe:"), "{error}");
    }
    wired.wire.accept().await;
    acquire(&wired.store, &claim(operation())).await;
}

#[tokio::test]
async fn d5_a_connection_that_broke_while_idle_is_no_error() {
    let wired = Wired::new().await;
    let store = Arc::new(wired.store);
    let mut claims = JoinSet::new();
    for _ in 0..16 {
        let store = store.clone();
        claims.spawn(async move { acquire(&*store, &claim(operation())).await });
    }
    claims.join_all().await;
    for _ in 0..3 {
        wired.wire.reset().await;
        for _ in 0..16 {
            acquire(&*store, &claim(operation())).await;
        }
    }
}

#[tokio::test]
async fn st11_an_answer_that_nobody_waits_for_goes_to_nobody() {
    let wired = Wired::new().await;
    let store = wired.table.builder().max_connections(1).open().await.unwrap();
    let done = claim(operation());
    let lease = acquire(&store, &done).await;
    let _ = store.complete(&lease, &done.fingerprint, "done".into(), LONG).await.unwrap();
    for _ in 0..5 {
        let dropped = claim(operation());
        wired.wire.stall_answers();
        let impatient =
            tokio::time::timeout(Duration::from_millis(50), store.begin(&dropped)).await;
        assert!(impatient.is_err(), "{impatient:?}");
        wired.wire.unstall();
        // Each of these gets its own answer.
        let begun = store.begin(&claim(done.id)).await.unwrap();
        assert!(matches!(begun, Begin::Found(Found::Finished { .. })), "{begun:?}");
        let begun = store.begin(&dropped).await.unwrap();
        assert!(matches!(begun, Begin::Acquired(_)), "ST4: {begun:?}");
    }
}

#[tokio::test]
async fn st4_a_server_that_stands_still_is_a_time_out() {
    let server = MariadbServer::start().await;
    let table = Table::at(&server.fresh_database().await);
    let patient = table.open().await;
    let store = table.builder().timeout(Duration::from_millis(300)).open().await.unwrap();
    let held = claim(operation());
    let lease = until_acquired(&store, &held).await;

    server.pause();
    let unheard = claim(operation());
    let error = store.begin(&unheard).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Timeout, "{error}");
    // One connection owes an answer, and no other comes about. D4: it is there all the same.
    let error = store.begin(&unheard).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Timeout, "{error}");
    let error = store.complete(&lease, &held.fingerprint, "x".into(), LONG).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Timeout, "{error}");
    server.resume();

    // The claim that nobody heard of was or was not granted: the same call says so.
    let begun = patient.begin(&unheard).await.unwrap();
    assert!(matches!(begun, Begin::Acquired(one) if one.attempt == 1), "{begun:?}");
    let begun = patient.begin(&claim(unheard.id)).await.unwrap();
    assert!(matches!(begun, Begin::Found(Found::InFlight { .. })), "{begun:?}");
    let complete = async || store.complete(&lease, &held.fingerprint, "done".into(), LONG).await;
    assert_eq!(until_answered(complete).await, Held::Applied, "recovered without a restart");
}

#[tokio::test]
async fn a_table_that_is_locked_does_not_pile_up_sessions() {
    let table = Table::new().await;
    let builder = table.builder().max_connections(3).timeout(Duration::from_millis(200));
    let store = builder.open().await.unwrap();
    // As a long ALTER TABLE would.
    let mut hand = sqlx::MySqlConnection::connect(&table.url).await.unwrap();
    let lock = format!("LOCK TABLES {} WRITE", table.name);
    sqlx::raw_sql(sqlx::AssertSqlSafe(lock)).execute(&mut hand).await.unwrap();
    let ours = format!(
        "SELECT 1 FROM information_schema.PROCESSLIST WHERE INFO LIKE 'INSERT INTO%{}%'",
        table.name
    );
    for _ in 0..10 {
        let error = store.begin(&claim(operation())).await.unwrap_err();
        let kind = error.kind();
        assert!(
            matches!(kind, StoreErrorKind::Timeout | StoreErrorKind::Unreachable),
            "{kind:?}: {error}"
        );
        assert!(run(&table.url, &ours).await.len() <= 3);
    }
    sqlx::raw_sql("UNLOCK TABLES").execute(&mut hand).await.unwrap();
    until_acquired(&store, &claim(operation())).await;
}

async fn until_acquired(store: &MySqlStore, claim: &Claim) -> Lease {
    match until_answered(async || store.begin(claim).await).await {
        Begin::Acquired(acquired) => lease(claim, acquired),
        found => panic!("the claim should have been granted: {found:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn st9_a_server_that_is_killed_loses_nothing_that_it_acknowledged() {
    const WORKERS: u64 = 8;
    let mut server = MariadbServer::start().await;
    let table = Table::at(&server.fresh_database().await);
    let store = Arc::new(table.builder().timeout(Duration::from_secs(5)).open().await.unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let mut workers = JoinSet::new();
    // Pairs of workers claim the same operations, each in its own name.
    for worker in 0..WORKERS {
        let (store, stop) = (store.clone(), stop.clone());
        workers.spawn(async move {
            let (mut acquired, mut completed) = (Vec::new(), Vec::new());
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let owned = claim(numbered(n * WORKERS + worker / 2));
                let Ok(Begin::Acquired(granted)) = store.begin(&owned).await else { continue };
                acquired.push((owned.clone(), granted));
                let lease = lease(&owned, granted);
                let payload = format!("{worker}/{n}");
                let done =
                    store.complete(&lease, &owned.fingerprint, payload.clone().into(), LONG).await;
                if let Ok(held) = done {
                    assert_eq!(held, Held::Applied, "nobody takes over");
                    completed.push((owned.id, payload));
                }
            }
            (acquired, completed)
        });
    }
    let records = |store: Arc<MySqlStore>| async move {
        until_answered(async || store.count().await).await.finished
    };
    for _ in 0..3 {
        let before = records(store.clone()).await;
        let busy = async { while records(store.clone()).await < before + 100 {} };
        tokio::time::timeout(PATIENCE, busy).await.expect("work goes on after a restart");
        server.kill().await;
        server.restart().await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut owners = HashMap::<OperationId, usize>::new();
    for (acquired, completed) in workers.join_all().await {
        for (owned, granted) in acquired {
            *owners.entry(owned.id).or_default() += 1;
            // ST4, ST9: the claim is there, or its outcome is.
            match until_answered(async || store.begin(&owned).await).await {
                Begin::Acquired(again) => assert_eq!(again, granted),
                Begin::Found(Found::Finished { .. }) => {}
                lost => panic!("an acknowledged claim was lost: {lost:?}"),
            }
        }
        for (id, payload) in completed {
            let retry = claim(id);
            let begun = until_answered(async || store.begin(&retry).await).await;
            let Begin::Found(Found::Finished { payload: kept, .. }) = begun else {
                panic!("an acknowledged outcome was lost: {begun:?}")
            };
            assert_eq!(kept, payload);
        }
    }
    assert!(owners.values().all(|owners| *owners == 1), "ST1: granted twice");
}

/// Somebody who keeps a record locked.
struct Locking(MySqlConnection);

impl Locking {
    async fn new(table: &Table, id: &OperationId) -> Self {
        let mut connection = MySqlConnection::connect(&table.url).await.unwrap();
        let lock =
            format!("BEGIN; SELECT 1 FROM {} WHERE id = {} FOR UPDATE", table.name, literal(id));
        sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut connection).await.unwrap();
        Self(connection)
    }

    async fn is_waited_for(&mut self) {
        let waiting = "SELECT COUNT(*) FROM information_schema.innodb_lock_waits w
            JOIN information_schema.innodb_trx t ON t.trx_id = w.blocking_trx_id
            WHERE t.trx_mysql_thread_id = CONNECTION_ID()";
        let waited_for = async {
            loop {
                let waiting = sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut self.0).await;
                if waiting.unwrap() > 0 {
                    return;
                }
                // What it shows is not looked up again within a tenth of a second of the last look.
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        timeout(PATIENCE, waited_for).await.unwrap();
    }

    async fn ends(mut self) {
        sqlx::raw_sql("ROLLBACK").execute(&mut self.0).await.unwrap();
    }
}

/// The key of one call is found to be taken; then another has the connection, and breaks it.
#[tokio::test]
async fn d4_a_server_that_is_lost_in_the_middle_of_a_claim_is_not_unreachable() {
    let table = Table::new().await;
    let direct = table.open().await;
    let (one, two) = (claim(operation()), claim(operation()));
    acquire(&direct, &one).await;
    acquire(&direct, &two).await;
    let wire = Wire::to(MariadbServer::shared().await.addr()).await;
    let far = Table { url: wire.url_for(&table.url), ..table.clone() };
    let store = far.builder().max_connections(1).open().await.unwrap();

    let mut holds_one = Locking::new(&table, &one.id).await;
    let mut holds_two = Locking::new(&table, &two.id).await;
    let (first, second) = (claim(one.id), claim(two.id));
    let meets_a_record = store.begin(&first);
    let waits_its_turn = async {
        holds_one.is_waited_for().await;
        let second = store.begin(&second);
        let unplugged = async {
            holds_one.ends().await;
            holds_two.is_waited_for().await;
            wire.refuse().await;
        };
        tokio::join!(second, unplugged).0
    };
    let (first, second) = tokio::join!(meets_a_record, waits_its_turn);
    let (first, second) = (first.unwrap_err(), second.unwrap_err());
    assert_eq!(second.kind(), StoreErrorKind::Unavailable, "it broke: {second}");
    assert_eq!(first.kind(), StoreErrorKind::Unavailable, "{first}");
    let source = std::error::Error::source(&first).unwrap().downcast_ref::<StoreError>();
    assert_eq!(source.map(StoreError::kind), Some(StoreErrorKind::Unreachable), "{first}");
    holds_two.ends().await;
}
