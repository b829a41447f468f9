//! What may happen to a server and to the wire to it, and what the store then says: the unpleasant
//! outcomes too.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use retrysafe_core::{
    Begin, Claim, Found, Held, Inspect as _, Lease, Store as _, StoreError, StoreErrorKind,
};
use retrysafe_redis::RedisStore;
use retrysafe_testkit::servers::{RedisServer, Wire};
use tokio::{task::JoinSet, time::timeout};

use crate::{
    LONG, SOON, acquire, claim, key, numbered, operation, patient, prefix, until_answered,
};

#[tokio::test(flavor = "multi_thread")]
async fn st9_killed_in_the_middle_of_load_nothing_runs_twice_and_nothing_is_lost() {
    const RIVALS: usize = 3;
    let mut server = RedisServer::start().await;
    let store = patient(server.url()).open().await.unwrap();
    let finished = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let mut running = JoinSet::new();
    for worker in 0..8 {
        let (store, finished, stop) = (store.clone(), finished.clone(), stop.clone());
        running.spawn(async move {
            let mut executed = Vec::new();
            for number in (worker..).step_by(8) {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let mut winners = Vec::new();
                for _ in 0..RIVALS {
                    let rival = claim(numbered(number));
                    let begun = until_answered(|| store.begin(&rival)).await;
                    if let Begin::Acquired(acquired) = begun {
                        winners.push(crate::lease(&rival, acquired));
                    }
                }
                assert_eq!(winners.len(), 1, "executions of {number}");
                let payload = number.to_string();
                let print = crate::fingerprint();
                let held = until_answered(|| {
                    store.complete(&winners[0], &print, payload.clone().into(), LONG)
                })
                .await;
                assert_eq!(held, Held::Applied);
                executed.push(number);
                finished.fetch_add(1, Ordering::SeqCst);
            }
            executed
        });
    }
    for _ in 0..3 {
        let before = finished.load(Ordering::SeqCst);
        let goes_on = async {
            while finished.load(Ordering::SeqCst) < before + 100 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(2 * SOON, goes_on).await.expect("it recovers without a restart");
        server.kill().await;
        server.restart().await;
    }
    stop.store(true, Ordering::SeqCst);
    let executed: Vec<u64> = running.join_all().await.into_iter().flatten().collect();
    for number in &executed {
        let retry = claim(numbered(*number));
        let begun = until_answered(|| store.begin(&retry)).await;
        let Begin::Found(Found::Finished { payload, .. }) = begun else {
            panic!("{number}: {begun:?}")
        };
        assert_eq!(payload, number.to_string());
    }
    assert_eq!(store.count().await.unwrap().finished, executed.len() as u64);
}

#[tokio::test]
async fn st4_a_server_that_pauses_longer_than_the_time_out_leaves_the_answer_open() {
    let server = RedisServer::start().await;
    let store = patient(server.url());
    let store = store.response_timeout(Duration::from_millis(300)).open().await.unwrap();
    let owned = claim(operation());
    let paused = async |call: &dyn Fn() -> Calling| {
        server.pause();
        let error = call().await.unwrap_err();
        server.resume();
        assert_eq!(error.kind(), StoreErrorKind::Timeout, "{error}");
    };
    let begin = || -> Calling {
        let (store, owned) = (store.clone(), owned.clone());
        Box::pin(async move { store.begin(&owned).await.map(|_| ()) })
    };
    paused(&begin).await;
    let begun = until_answered(|| store.begin(&owned)).await;
    let Begin::Acquired(acquired) = begun else { panic!("ST4: {begun:?}") };
    assert_eq!(acquired.attempt, 1);
    let calm = patient(server.url()).open().await.unwrap();
    let rival = calm.begin(&claim(owned.id)).await.unwrap();
    assert!(matches!(rival, Begin::Found(Found::InFlight { attempt: 1, .. })), "{rival:?}");

    let lease = crate::lease(&owned, acquired);
    let complete = || -> Calling {
        let (store, lease) = (store.clone(), lease.clone());
        Box::pin(async move {
            store.complete(&lease, &crate::fingerprint(), "done".into(), LONG).await.map(|_| ())
        })
    };
    paused(&complete).await;
    let held =
        until_answered(|| store.complete(&lease, &owned.fingerprint, "late".into(), LONG)).await;
    assert_eq!(held, Held::Applied);
    let replay = calm.begin(&claim(owned.id)).await.unwrap();
    assert!(matches!(replay, Begin::Found(Found::Finished { payload, .. }) if payload == "done"));
}

type Calling = std::pin::Pin<Box<dyn Future<Output = Result<(), StoreError>>>>;

/// A connection that says nothing although its host acknowledges is given up in the end.
#[tokio::test]
async fn a_wire_that_swallows_everything_is_not_used_for_ever() {
    let server = RedisServer::shared().await;
    let wire = Wire::to(server.addr()).await;
    let store = patient(wire.url_for(&server.url())).key_prefix(prefix());
    let short = Duration::from_millis(100);
    let store = store.response_timeout(short).connection_timeout(short).open().await.unwrap();
    let connections = wire.connections();
    wire.stall();
    let owned = claim(operation());
    let given_up =
        async { while store.begin(&owned).await.unwrap_err().kind() == StoreErrorKind::Timeout {} };
    timeout(SOON, given_up).await.unwrap();
    let tried_anew = async {
        while wire.connections() == connections {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, tried_anew).await.unwrap();
    wire.unstall();
    assert!(matches!(
        until_answered(|| store.begin(&owned)).await,
        Begin::Acquired(acquired) if acquired.attempt == 1
    ));
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Cut {
    Before,
    After,
}

/// A store on a wire that cuts the next request for a key.
struct Cutting {
    wire: Wire,
    store: RedisStore,
    prefix: String,
}

impl Cutting {
    async fn new() -> Self {
        let server = RedisServer::shared().await;
        let wire = Wire::to(server.addr()).await;
        let prefix = prefix();
        let store = patient(wire.url_for(&server.url())).key_prefix(&prefix);
        Self { store: store.open().await.unwrap(), wire, prefix }
    }

    /// The first try is cut, and its repetition answered.
    async fn cut<T>(
        &self,
        cut: Cut,
        claim: &Claim,
        call: impl AsyncFn() -> Result<T, StoreError>,
    ) -> T {
        let key = key(&self.prefix, &claim.id);
        match cut {
            Cut::Before => self.wire.cut_before_one_with(key.as_bytes()),
            Cut::After => self.wire.cut_after_one_with(key.as_bytes()),
        }
        let Err(error) = call().await else { panic!("{cut:?}: it was cut") };
        assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{cut:?}: {error}");
        assert!(!self.wire.awaits_cut());
        call().await.unwrap()
    }
}

#[tokio::test]
async fn st4_cut_before_or_after_the_effect_the_repetition_gets_the_first_answer() {
    let cutting = Cutting::new().await;
    let store = &cutting.store;
    for cut in [Cut::Before, Cut::After] {
        let owned = claim(operation());
        let begun = cutting.cut(cut, &owned, async || store.begin(&owned).await).await;
        let Begin::Acquired(acquired) = begun else { panic!("{cut:?}: {begun:?}") };
        assert_eq!(acquired.attempt, 1, "{cut:?}");
        let lease = crate::lease(&owned, acquired);

        let held = cutting.cut(cut, &owned, async || store.renew(&lease, LONG).await).await;
        assert_eq!(held, Held::Applied, "{cut:?}: renew");
        let held =
            cutting.cut(cut, &owned, async || store.renew(&lease, Duration::ZERO).await).await;
        assert_eq!(held, Held::Applied, "{cut:?}: give up");

        // The take-over is the second request of a claim.
        let second = Claim { take_over: true, ..claim(owned.id) };
        let begun = cutting.cut(cut, &second, async || store.begin(&second).await).await;
        let Begin::Acquired(acquired) = begun else { panic!("{cut:?}: {begun:?}") };
        assert!(acquired.attempt == 2 && acquired.previous_vanished, "{cut:?}: {acquired:?}");
        let lease = crate::lease(&second, acquired);
        let held = cutting.cut(cut, &second, async || store.release(&lease, LONG).await).await;
        assert_eq!(held, Held::Applied, "{cut:?}: release");

        let third = claim(owned.id);
        let lease = acquire(store, &third).await;
        assert_eq!(lease.attempt, 3, "{cut:?}");
        let held = cutting
            .cut(cut, &third, async || {
                store.complete(&lease, &third.fingerprint, "done".into(), LONG).await
            })
            .await;
        assert_eq!(held, Held::Applied, "{cut:?}: complete");
    }
}

/// Decision 3: a server that was not reached certainly did nothing; and it is found again.
#[tokio::test]
async fn a_server_that_is_gone_is_unreachable_and_found_again_without_a_restart() {
    let server = RedisServer::shared().await;
    let wire = Wire::to(server.addr()).await;
    let store = patient(wire.url_for(&server.url())).key_prefix(prefix());
    let store = store.open().await.unwrap();
    wire.refuse().await;
    let unreachable = async {
        loop {
            match store.begin(&claim(operation())).await.unwrap_err().kind() {
                StoreErrorKind::Unreachable => return,
                // The driver may not have noticed yet.
                kind => assert_eq!(kind, StoreErrorKind::Unavailable),
            }
        }
    };
    timeout(SOON, unreachable).await.unwrap();
    for _ in 0..3 {
        let error = store.begin(&claim(operation())).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Unreachable, "{error}");
    }
    wire.accept().await;
    acquire(&store, &claim(operation())).await;
}

/// A connection that was closed while nobody used it costs nobody an answer.
#[tokio::test]
async fn a_connection_that_ended_while_idle_is_made_again_unnoticed() {
    let server = RedisServer::start().await;
    let wire = Wire::to(server.addr()).await;
    let store = patient(wire.url_for(&server.url())).open().await.unwrap();
    for _ in 0..50 {
        wire.reset().await;
        // The driver hears of it by its own task, which may not have had its turn.
        tokio::time::sleep(Duration::from_millis(20)).await;
        match store.begin(&claim(operation())).await {
            Ok(begun) => return assert!(matches!(begun, Begin::Acquired(_)), "{begun:?}"),
            Err(error) => assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}"),
        }
    }
    panic!("somebody always paid for it");
}

/// The page says so: what a replica has not heard of is lost when it takes over, whatever was
/// acknowledged.
#[tokio::test]
async fn a_failover_with_the_link_cut_loses_an_acknowledged_claim_and_runs_it_twice() {
    let primary = RedisServer::start().await;
    let replica = RedisServer::replica_of(&primary).await;
    let wire = Wire::to(primary.addr()).await;
    let store = patient(wire.url_for(&primary.url())).open().await.unwrap();
    let known = claim(operation());
    acquire(&store, &known).await;
    // WAIT on another connection waits for nothing: ask the replica itself.
    let arrived =
        async { while replica.command(&["EXISTS", &key("retrysafe:", &known.id)]).await != "1" {} };
    timeout(SOON, arrived).await.unwrap();

    replica.cut_link().await;
    let lost = claim(operation());
    let first = acquire(&store, &lost).await;
    replica.promote().await;
    wire.switch_to(replica.addr()).await;

    let rival = claim(lost.id);
    let begun = until_answered(|| store.begin(&rival)).await;
    let Begin::Acquired(second) = begun else { panic!("it should have been lost: {begun:?}") };
    assert_eq!((second.attempt, second.fence), (1, 1), "nothing is known of the first");
    // What is left of the guarantee: one outcome.
    let late = store.complete(&first, &lost.fingerprint, "first".into(), LONG).await.unwrap();
    assert!(matches!(late, Held::Lost(Found::InFlight { .. })), "{late:?}");
    let rival = Lease { owner: rival.owner, ..first };
    let done = store.complete(&rival, &lost.fingerprint, "second".into(), LONG).await.unwrap();
    assert_eq!(done, Held::Applied);
    // What had arrived is as it was.
    let begun = store.begin(&claim(known.id)).await.unwrap();
    assert!(matches!(begun, Begin::Found(Found::InFlight { attempt: 1, .. })), "{begun:?}");
}

/// A primary that was made a replica under us.
#[tokio::test]
async fn a_demoted_primary_is_refused_until_it_is_one_again() {
    let other = RedisServer::start().await;
    let server = RedisServer::start().await;
    let store = patient(server.url()).open().await.unwrap();
    let port = other.addr().port().to_string();
    server.command(&["REPLICAOF", "127.0.0.1", &port]).await;
    for _ in 0..3 {
        let error = store.begin(&claim(operation())).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Misconfigured, "{error}");
    }
    server.command(&["REPLICAOF", "NO", "ONE"]).await;
    acquire(&store, &claim(operation())).await;
}
