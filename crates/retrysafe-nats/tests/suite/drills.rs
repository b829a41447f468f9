//! Servers that die, stand still and lose their leader; wires that are cut; clocks that are wrong.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use retrysafe_core::{
    Begin, Claim, Found, Held, Inspect as _, Lease, Operated, OperationId, Store as _, StoreError,
    StoreErrorKind,
};
use retrysafe_nats::{NatsStore, NatsStoreBuilder};
use retrysafe_testkit::servers::{NatsCluster, NatsServer, Wire};
use tokio::task::JoinSet;

use crate::{LONG, acquire, claim, complete, numbered, operation, patient, raw, stream, until};

const WORKERS: u64 = 8;

/// Clients that each run one operation after the other, as the engine does: what has no answer is
/// repeated with the same owner.
struct Load {
    store: NatsStore,
    running: AtomicBool,
    /// How many outcomes were acknowledged so far.
    acknowledged: AtomicU64,
}

impl Load {
    fn start(store: &NatsStore) -> (Arc<Self>, JoinSet<Vec<u64>>) {
        let load = Arc::new(Self {
            store: store.clone(),
            running: AtomicBool::new(true),
            acknowledged: AtomicU64::new(0),
        });
        let mut workers = JoinSet::new();
        for worker in 0..WORKERS {
            workers.spawn(load.clone().work(worker));
        }
        (load, workers)
    }

    /// Returns the operations whose outcome was acknowledged.
    async fn work(self: Arc<Self>, worker: u64) -> Vec<u64> {
        let mut acknowledged = Vec::new();
        for turn in 0.. {
            if !self.running.load(Ordering::SeqCst) {
                break;
            }
            let number = turn * WORKERS + worker;
            let owned = claim(numbered(number));
            let begun = until("an answer to a claim", || async {
                answered(self.store.begin(&owned).await)
            });
            let Begin::Acquired(acquired) = begun.await else { panic!("nobody else claims this") };
            assert_eq!(acquired.attempt, 1, "ST4: one claim, however often it was sent");
            let lease = crate::lease(&owned, acquired);
            let payload = number.to_string();
            let done = until("an answer to an outcome", || async {
                let payload = payload.clone().into();
                answered(self.store.complete(&lease, &owned.fingerprint, payload, LONG).await)
            });
            assert_eq!(done.await, Held::Applied, "ST4");
            acknowledged.push(number);
            self.acknowledged.fetch_add(1, Ordering::SeqCst);
        }
        acknowledged
    }

    /// Waits until so many more outcomes were acknowledged.
    async fn goes_on(&self, more: u64) {
        let enough = self.acknowledged.load(Ordering::SeqCst) + more;
        until("the load goes on", || async {
            (self.acknowledged.load(Ordering::SeqCst) >= enough).then_some(())
        })
        .await;
    }

    async fn stop(&self, workers: JoinSet<Vec<u64>>) -> Vec<u64> {
        self.running.store(false, Ordering::SeqCst);
        workers.join_all().await.into_iter().flatten().collect()
    }
}

/// A store that gives up waiting long before the drill is over, as the engine's does.
fn hasty(url: impl Into<String>) -> NatsStoreBuilder {
    NatsStore::builder(url)
}

/// None after an error after which a call is repeated.
fn answered<T>(answer: Result<T, StoreError>) -> Option<T> {
    match answer {
        Ok(answer) => Some(answer),
        Err(error) if error.is_ambiguous() => None,
        Err(error) if error.kind() == StoreErrorKind::Unreachable => None,
        Err(error) => panic!("{error}"),
    }
}

/// Every acknowledged outcome is there, and nothing is there twice.
async fn assert_kept(store: &NatsStore, acknowledged: &[u64]) {
    let unique: BTreeMap<_, _> = acknowledged.iter().map(|number| (number, ())).collect();
    assert_eq!(unique.len(), acknowledged.len());
    for number in acknowledged {
        let retry = claim(numbered(*number));
        let begun = until("a replay", || async { answered(store.begin(&retry).await) }).await;
        let Begin::Found(Found::Finished { payload, .. }) = begun else {
            panic!("ST9: {number} was acknowledged and is now {begun:?}")
        };
        assert_eq!(payload, number.to_string(), "ST10");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn st9_what_was_acknowledged_survives_a_killed_server() {
    let mut server = NatsServer::start().await;
    let store = hasty(server.url()).open().await.unwrap();
    let (load, workers) = Load::start(&store);
    for _ in 0..2 {
        load.goes_on(100).await;
        server.kill().await;
        server.restart().await;
    }
    load.goes_on(100).await;
    let acknowledged = load.stop(workers).await;
    server.kill().await;
    server.restart().await;
    let again = patient(server.url()).open().await.unwrap();
    assert_kept(&again, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn st9_what_was_acknowledged_survives_a_killed_leader() {
    let mut cluster = NatsCluster::start().await;
    let store = hasty(cluster.url()).replicas(3).open().await.unwrap();
    let (load, workers) = Load::start(&store);
    for _ in 0..2 {
        load.goes_on(50).await;
        let killed = cluster.kill_leader_of("retrysafe").await;
        load.goes_on(50).await;
        cluster.nodes[killed].restart().await;
    }
    load.goes_on(50).await;
    let acknowledged = load.stop(workers).await;
    assert_kept(&store, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn st1_without_a_quorum_nothing_is_granted() {
    let mut cluster = NatsCluster::start().await;
    let store = hasty(cluster.url()).replicas(3).open().await.unwrap();
    let calm = patient(cluster.url()).replicas(3).open().await.unwrap();
    let kept = claim(operation());
    let lease = acquire(&calm, &kept).await;
    complete(&calm, &kept, &lease, "kept").await;
    for node in [0, 1] {
        cluster.nodes[node].kill().await;
    }
    let owned = claim(operation());
    let refused = store.begin(&owned).await.unwrap_err();
    let expected =
        [StoreErrorKind::Unreachable, StoreErrorKind::Unavailable, StoreErrorKind::Timeout];
    assert!(expected.contains(&refused.kind()), "{refused}");
    for node in [0, 1] {
        cluster.nodes[node].restart().await;
    }
    let begun = until("a quorum again", || async { answered(store.begin(&owned).await) }).await;
    assert!(matches!(begun, Begin::Acquired(acquired) if acquired.attempt == 1), "{begun:?}");
    let found = until("a replay", || async { answered(store.begin(&claim(kept.id)).await) }).await;
    assert!(matches!(found, Begin::Found(Found::Finished { .. })), "{found:?}");
}

/// A leader that slept through its succession wakes up, and for a moment still believes that it
/// leads: it must not confirm, and not grant, what has been decided without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn st3_a_leader_that_was_asleep_decides_nothing() {
    let cluster = NatsCluster::start().await;
    patient(cluster.url()).replicas(3).open().await.unwrap();
    let leader = until("a leader", || cluster.leader_of("retrysafe")).await;
    let here = hasty(cluster.nodes[leader].url()).open().await.unwrap();
    let owned = Claim { lease: Duration::from_millis(500), ..claim(operation()) };
    let begun = until("a claim", || async { answered(here.begin(&owned).await) }).await;
    let Begin::Acquired(acquired) = begun else { panic!("nobody else claims this: {begun:?}") };
    let lease = crate::lease(&owned, acquired);

    cluster.nodes[leader].pause();
    let elsewhere = cluster.nodes[(leader + 1) % 3].url();
    let there =
        until("another leader", || async { hasty(&elsewhere).replicas(3).open().await.ok() }).await;
    let second = Claim { take_over: true, ..claim(owned.id) };
    let taken = until("the others take over", || async {
        match answered(there.begin(&second).await)? {
            Begin::Acquired(acquired) => Some(acquired),
            Begin::Found(_) => None,
        }
    })
    .await;
    assert_eq!(taken.attempt, 2);
    let second_lease = crate::lease(&second, taken);
    let done = until("the others keep an outcome", || async {
        let payload = "second".into();
        answered(there.complete(&second_lease, &second.fingerprint, payload, LONG).await)
    });
    assert_eq!(done.await, Held::Applied);

    cluster.nodes[leader].resume();
    let late = until("an answer to the late outcome", || async {
        let take_over = Claim { take_over: true, ..claim(owned.id) };
        if let Some(begun) = answered(here.begin(&take_over).await) {
            assert!(matches!(begun, Begin::Found(_)), "ST6: {begun:?}");
        }
        answered(here.complete(&lease, &owned.fingerprint, "first".into(), LONG).await)
    })
    .await;
    assert!(matches!(late, Held::Lost(_)), "ST3: {late:?}");
    let found = until("the outcome", || async {
        match answered(here.begin(&claim(owned.id)).await)? {
            Begin::Found(Found::Finished { payload, .. }) => Some(payload),
            Begin::Found(_) => None,
            begun => panic!("ST6: {begun:?}"),
        }
    })
    .await;
    assert_eq!(found, "second");
}

/// A server that stands still longer than a call waits answers everything in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn st4_a_paused_server_has_done_what_it_did_not_answer() {
    let server = NatsServer::start().await;
    let builder = NatsStore::builder(server.url()).timeout(Duration::from_millis(300));
    let store = builder.open().await.unwrap();
    let owned = claim(operation());
    server.pause();
    assert_eq!(store.begin(&owned).await.unwrap_err().kind(), StoreErrorKind::Timeout);
    server.resume();
    let begun = until("an answer", || async { answered(store.begin(&owned).await) }).await;
    let Begin::Acquired(acquired) = begun else { panic!("ST4: our own claim: {begun:?}") };
    assert_eq!(acquired.attempt, 1);
    let lease = crate::lease(&owned, acquired);

    server.pause();
    let renewed = store.renew(&lease, LONG).await.unwrap_err();
    assert_eq!(renewed.kind(), StoreErrorKind::Timeout);
    let done = store.complete(&lease, &owned.fingerprint, "first".into(), LONG).await;
    assert_eq!(done.unwrap_err().kind(), StoreErrorKind::Timeout);
    server.resume();
    // Either the renewal came first, and the outcome was refused, or it did not come at all.
    let done = until("an answer", || async {
        answered(store.complete(&lease, &owned.fingerprint, "first".into(), LONG).await)
    });
    assert_eq!(done.await, Held::Applied);
    let calm = patient(server.url()).open().await.unwrap();
    let again = calm.complete(&lease, &owned.fingerprint, "second".into(), LONG).await;
    assert_eq!(again.unwrap(), Held::Applied, "ST4");
    let found = calm.begin(&claim(owned.id)).await.unwrap();
    assert!(matches!(found, Begin::Found(Found::Finished { payload, .. }) if payload == "first"));
}

#[derive(Clone, Copy, Debug)]
enum Verb {
    Renew,
    Complete,
    Release,
}

async fn held(store: &NatsStore, verb: Verb, owned: &Claim, lease: &Lease) -> Option<Held> {
    answered(match verb {
        Verb::Renew => store.renew(lease, LONG).await,
        Verb::Complete => store.complete(lease, &owned.fingerprint, "done".into(), LONG).await,
        Verb::Release => store.release(lease, LONG).await,
    })
}

/// On a busy machine a call may have given up before the wire was its turn.
async fn is_cut(wire: &Wire) {
    until("the wire is cut", || async { (!wire.awaits_cut()).then_some(()) }).await;
}

/// The connection breaks before the server has seen the request, or before its answer has come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn st4_a_cut_before_or_after_the_effect_is_one_call() {
    let server = NatsServer::shared().await;
    let wire = Wire::to(server.addr()).await;
    let name = stream();
    let builder = NatsStore::builder(wire.url_for(&server.url())).stream(&name);
    let store = builder.timeout(Duration::from_millis(500)).open().await.unwrap();
    let client = raw::connect(&server.url()).await;
    for after in [false, true] {
        let cut = |id: &OperationId| {
            let subject = raw::subject(&name, id);
            match after {
                true => wire.cut_after_one_with(subject.as_bytes()),
                false => wire.cut_before_one_with(subject.as_bytes()),
            }
        };
        for verb in [Verb::Renew, Verb::Complete, Verb::Release] {
            let rule = format!("{verb:?}, cut after the effect: {after}");
            let owned = claim(operation());
            cut(&owned.id);
            let lost = store.begin(&owned).await.unwrap_err();
            assert!(lost.is_ambiguous(), "{rule}: {lost}");
            is_cut(&wire).await;
            let ask = || async { answered(store.begin(&owned).await) };
            let begun = until("an answer", ask).await;
            let Begin::Acquired(acquired) = begun else { panic!("ST4 {rule}: {begun:?}") };
            assert_eq!((acquired.attempt, acquired.fence), (1, 1), "ST4 {rule}");
            let (_, claimed) = raw::last(&client, &name, &owned.id).await;

            let lease = crate::lease(&owned, acquired);
            cut(&owned.id);
            assert_eq!(held(&store, verb, &owned, &lease).await, None, "{rule}");
            is_cut(&wire).await;
            let ask = || held(&store, verb, &owned, &lease);
            assert_eq!(until("an answer", ask).await, Held::Applied, "ST4 {rule}");
            let (_, done) = raw::last(&client, &name, &owned.id).await;
            assert!(done > claimed, "{rule}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d4_without_a_connection_nothing_is_sent() {
    let server = NatsServer::shared().await;
    let wire = Wire::to(server.addr()).await;
    let name = stream();
    let builder = NatsStore::builder(wire.url_for(&server.url())).stream(&name);
    let store = builder.timeout(Duration::from_millis(500)).open().await.unwrap();
    wire.refuse().await;
    // The first may have been sent while the driver did not know yet.
    until("the driver knows", || async {
        let error = store.begin(&claim(operation())).await.unwrap_err();
        (error.kind() == StoreErrorKind::Unreachable).then_some(())
    })
    .await;
    let owned = claim(operation());
    let refused = store.begin(&owned).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Unreachable, "{refused}");
    wire.accept().await;
    let ask = || async { answered(store.get(&owned.id).await) };
    let entry = until("it recovers by itself", ask).await;
    assert_eq!(entry, None, "D4: nothing was sent, and nothing came late");
    let begun = until("a claim", || async { answered(store.begin(&owned).await) }).await;
    assert!(matches!(begun, Begin::Acquired(acquired) if acquired.attempt == 1), "{begun:?}");
}

/// The process's own clock, moved by an hour: every lease is judged by the server's.
#[tokio::test]
async fn st7_the_applications_clock_decides_nothing() {
    let server = NatsServer::shared().await;
    let name = stream();
    // The answers take as long as ever; only our clock thinks otherwise.
    let builder = || patient(server.url()).stream(&name).timeout(LONG * 24);
    let (one, other) = (builder().open().await.unwrap(), builder().open().await.unwrap());
    let owned = Claim { lease: LONG / 2, retention: LONG, ..claim(operation()) };
    let lease = acquire(&one, &owned).await;
    let finished = Claim { retention: LONG / 2, ..claim(operation()) };
    let its_lease = acquire(&one, &finished).await;
    let done = one.complete(&its_lease, &finished.fingerprint, "done".into(), LONG / 2).await;
    assert_eq!(done.unwrap(), Held::Applied);

    tokio::time::pause();
    tokio::time::advance(LONG).await;
    tokio::time::resume();
    for store in [&one, &other] {
        let take_over = Claim { take_over: true, ..claim(owned.id) };
        let found = store.begin(&take_over).await.unwrap();
        assert!(matches!(found, Begin::Found(Found::InFlight { .. })), "ST7: {found:?}");
        let found = store.begin(&claim(finished.id)).await.unwrap();
        assert!(matches!(found, Begin::Found(Found::Finished { .. })), "ST7: {found:?}");
        assert_eq!(store.forget(&owned.id).await.unwrap(), Operated::Refused, "ST7: a live lease");
    }
    assert_eq!(one.renew(&lease, LONG).await.unwrap(), Held::Applied);
}

/// A stream whose leader takes what is written, and is gone when it is asked what is there.
#[tokio::test]
async fn d4_a_leader_that_is_lost_after_it_has_refused_a_claim_is_not_unreachable() {
    let nobody = "mappings: { \"$JS.API.STREAM.MSG.GET.*\": \"nobody.$1\" }";
    let server = NatsServer::with(&[nobody]).await;
    let open = || NatsStore::builder(server.url()).stream("records").open();
    let (first, second) = (open().await.unwrap(), open().await.unwrap());
    let live = claim(operation());
    acquire(&first, &live).await;
    let error = second.begin(&claim(live.id)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
    let source = std::error::Error::source(&error).unwrap().downcast_ref::<StoreError>();
    assert_eq!(source.map(StoreError::kind), Some(StoreErrorKind::Unreachable), "{error}");
}
