//! Commits that take long, as those that wait for a standby do. On PostgreSQL, where nobody waits for
//! a claim that can't be seen yet: it is as if there were none.

use sqlx::{Connection as _, PgConnection, Row as _};

use crate::{
    postgres::{Bank, InPhases, credit},
    *,
};

/// A commit of a claim waits until nobody has the lock.
const COMMITS_WAIT: &str = "
    CREATE FUNCTION wait_for_lock() RETURNS trigger LANGUAGE plpgsql
        AS 'BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END';
    CREATE CONSTRAINT TRIGGER waits AFTER INSERT OR UPDATE ON retrysafe_record
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait_for_lock()";

/// A first claim's commit takes a second and a half.
const COMMITS_TAKE_LONG: &str = "
    CREATE FUNCTION take_long() RETURNS trigger LANGUAGE plpgsql
        AS 'BEGIN PERFORM pg_sleep(1.5); RETURN NULL; END';
    CREATE CONSTRAINT TRIGGER takes_long AFTER INSERT ON retrysafe_record
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION take_long()";

/// Somebody in whose hands the commits are.
struct Brake(PgConnection);

impl Brake {
    async fn on(bank: &Bank) -> Self {
        let mut connection = PgConnection::connect(&bank.url).await.unwrap();
        sqlx::raw_sql("SELECT pg_advisory_lock(1)").execute(&mut connection).await.unwrap();
        Self(connection)
    }

    /// Waits until a commit is under way.
    async fn is_felt(&mut self) {
        let waiting = "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database
            WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted";
        let felt = async {
            while sqlx::query(waiting).fetch_one(&mut self.0).await.unwrap().get::<i64, _>(0) == 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, felt).await.expect("a commit is under way");
    }

    async fn off(mut self) {
        sqlx::raw_sql("SELECT pg_advisory_unlock(1)").execute(&mut self.0).await.unwrap();
    }
}

/// When the lease ends, as anybody can see it.
async fn lease_end(url: &str) -> Option<String> {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let end = "SELECT lease_until::text FROM retrysafe_record";
    let row = sqlx::query(end).fetch_optional(&mut connection).await.unwrap();
    row.map(|row| row.get(0))
}

#[tokio::test]
async fn e2_a_renewal_that_crosses_the_first_commit_of_an_attempt_loses_nothing() {
    for is_second in [false, true] {
        let (bank, processor) = (Bank::new().await, Processor::default());
        bank.run(COMMITS_WAIT).await;
        if is_second {
            let (lease, attempt) = bank.begin(&claim()).await;
            let mut phases = InPhases::from_attempt(&attempt).unwrap();
            phases.step("noted", |transaction| credit(transaction, 3)).await.unwrap();
            assert_eq!(bank.store.renew(&lease, Duration::ZERO).await.unwrap(), Held::Applied);
        }
        let claim = Claim { lease: PATIENCE, ..claim() };
        let (lease, attempt) = bank.begin(&claim).await;
        let mut brake = Brake::on(&bank).await;
        let mut phases = InPhases::from_attempt(&attempt).unwrap();
        let step = phases.step("reserve", |transaction| credit(transaction, 2));
        let renewed = async {
            brake.is_felt().await;
            let renewed = bank.store.renew(&lease, PATIENCE).await;
            brake.off().await;
            renewed
        };
        let (step, renewed) = tokio::join!(step, renewed);
        step.unwrap();
        assert_eq!(renewed.unwrap(), Held::Applied, "an earlier attempt: {is_second}");
        phases.phase("charge", |key| processor.clone().charge(key)).await.unwrap();
        assert_eq!(bank.store.renew(&lease, PATIENCE).await.unwrap(), Held::Applied);
        drop(phases);
        let done = bank.store.complete(&lease, &claim.fingerprint, "done".into(), PATIENCE);
        assert_eq!(done.await.unwrap(), Held::Applied);
        assert_eq!((processor.calls().len(), bank.balances().await[1]), (1, 1));
    }
}

#[tokio::test]
async fn e2_a_lease_is_renewed_after_a_first_commit_that_took_half_of_it() {
    let bank = Bank::new().await;
    bank.run(COMMITS_TAKE_LONG).await;
    let once = bank.once_for(Duration::from_secs(3));
    let url = bank.url.clone();
    let run = once.run("pay", &Scope::shared(), "one", &(), |context| async move {
        let mut phases: InPhases = context.lent().unwrap();
        phases.step("reserve", |transaction| credit(transaction, 2)).await?;
        let charged = phases.phase("charge", |_| async move {
            let end = lease_end(&url).await;
            assert!(end.is_some());
            let renewed = async {
                while lease_end(&url).await == end {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            timeout(PATIENCE, renewed).await.map_err(|_| Failed)
        });
        charged.await?;
        credit(phases.transaction().await?, 1).await
    });
    run.await.unwrap();
    assert_eq!(bank.balances().await, [1, 1, 0]);
}

/// Then the server decides again.
#[tokio::test]
async fn e2_a_commit_that_nobody_waits_for_is_not_under_way_for_ever() {
    let bank = Bank::new().await;
    bank.run(COMMITS_WAIT).await;
    let (lease, attempt) = bank.begin(&Claim { lease: PATIENCE, ..claim() }).await;
    let mut brake = Brake::on(&bank).await;
    let mut phases = InPhases::from_attempt(&attempt).unwrap();
    tokio::select! {
        step = phases.step("reserve", |transaction| credit(transaction, 2)) => panic!("{step:?}"),
        () = brake.is_felt() => {}
    }
    brake.off().await;
    let committed = async {
        loop {
            if let Some(end) = lease_end(&bank.url).await {
                break end;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let end = timeout(PATIENCE, committed).await.expect("what was sent is committed");
    assert_eq!(bank.store.renew(&lease, PATIENCE).await.unwrap(), Held::Applied);
    assert_ne!(lease_end(&bank.url).await, Some(end));
}

/// What is called has to be called by the live attempt: a lease that is over by then is renewed first.
#[tokio::test]
async fn e2_a_mark_that_takes_longer_than_its_lease_is_renewed_before_the_call() {
    let bank = Bank::new().await;
    bank.run(COMMITS_WAIT).await;
    let lease = Duration::from_secs(3);
    let (_, attempt) = bank.begin(&Claim { lease, ..claim() }).await;
    let mut brake = Brake::on(&bank).await;
    let mut phases = InPhases::from_attempt(&attempt).unwrap();
    let url = bank.url.clone();
    let charged = phases.phase("charge", async |_| {
        let mut connection = PgConnection::connect(&url).await.unwrap();
        let live = "SELECT lease_until > clock_timestamp() FROM retrysafe_record";
        let live = sqlx::query(live).fetch_one(&mut connection).await.unwrap();
        Ok::<bool, Failed>(live.get(0))
    });
    let released = async {
        brake.is_felt().await;
        tokio::time::sleep(lease + Duration::from_millis(100)).await;
        brake.off().await;
    };
    let (live, ()) = tokio::join!(charged, released);
    assert!(live.unwrap());
}
