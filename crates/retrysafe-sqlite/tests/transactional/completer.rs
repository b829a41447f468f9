//! Who goes on with what was abandoned.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use retrysafe_axum::{
    Completed, Completer, Done, KeyFormat, KeyRules, OnInFlight, Once, OnceError, Scope,
};
use retrysafe_sqlite::{SqliteTransaction, TransactionalSqlite};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::timeout,
};

use crate::{Bank, PATIENCE, credit};

/// A service whose payments fail for as long as it is told.
#[derive(Clone)]
struct Service {
    once: Once<TransactionalSqlite>,
    fails: Arc<AtomicBool>,
    calls: Arc<Mutex<Vec<String>>>,
    running: Arc<Mutex<HashSet<String>>>,
}

impl Service {
    fn of(bank: &Bank) -> Self {
        let once = Once::builder(bank.store.clone()).on_in_flight(OnInFlight::wait(PATIENCE));
        Self {
            once: once.settings(|it| it.store_deadline = PATIENCE).build().unwrap(),
            fails: Arc::new(AtomicBool::new(true)),
            calls: Arc::default(),
            running: Arc::default(),
        }
    }

    async fn pay(&self, key: &str, completable: bool) -> Result<Done<u64>, OnceError<String>> {
        let service = self.clone();
        let scope = Scope::from_bytes("alice");
        let run = self.once.run("pay", &scope, key, &(7_u64, "cents"), |context| async move {
            let operation = context.operation().to_string();
            let alone = service.running.lock().unwrap().insert(operation.clone());
            assert!(alone, "it runs twice at a time");
            tokio::task::yield_now().await;
            let mut phases = context.phases::<SqliteTransaction>().unwrap();
            let calls = service.calls.clone();
            let charged = phases.phase("charge", |key| async move {
                calls.lock().unwrap().push(key);
                Ok::<_, String>(7)
            });
            let charged = charged.await.map_err(|error| error.to_string());
            let fails = service.fails.load(Ordering::SeqCst);
            let paid = match charged {
                Ok(_) if fails => Err("the service is broken".to_owned()),
                Ok(charged) => {
                    let transaction = phases.transaction().await.unwrap();
                    credit(&transaction, 1).await.unwrap();
                    Ok(charged)
                }
                Err(error) => Err(error),
            };
            service.running.lock().unwrap().remove(&operation);
            paid
        });
        if completable { run.completable().await } else { run.await }
    }

    fn completer(&self) -> Completer<TransactionalSqlite> {
        let service = self.clone();
        Completer::new(&self.once).on("pay", move |call| {
            let service = service.clone();
            async move {
                assert_eq!(call.input::<(u64, String)>().unwrap(), (7, "cents".to_owned()));
                assert!(*call.scope() == Scope::from_bytes("alice"));
                service.pay(call.key(), true).await.ok()
            }
        })
    }

    fn mend(&self) {
        self.fails.store(false, Ordering::SeqCst);
    }
}

fn came_to(completed: Completed) -> (usize, usize, usize) {
    (completed.found, completed.finished, completed.failed)
}

#[tokio::test]
async fn what_was_abandoned_is_finished_once() {
    let bank = Bank::new();
    let service = Service::of(&bank);
    assert!(service.pay("one", true).await.is_err());
    service.mend();
    let mut completer = service.completer();
    assert_eq!(came_to(completer.look().await.unwrap()), (1, 1, 0));
    assert_eq!(came_to(completer.look().await.unwrap()), (0, 0, 0));
    assert!(service.pay("one", true).await.unwrap().replayed);
    assert_eq!(service.calls.lock().unwrap().len(), 1, "what was kept is not called again");
    assert_eq!((bank.balance(), bank.finished()), (1, 1));
}

#[tokio::test]
async fn a_call_that_did_not_say_so_is_left_alone() {
    let bank = Bank::new();
    let service = Service::of(&bank);
    assert!(service.pay("one", false).await.is_err());
    service.mend();
    assert_eq!(came_to(service.completer().look().await.unwrap()), (0, 0, 0));
    assert!(!service.pay("one", false).await.unwrap().replayed);
}

#[tokio::test]
async fn a_call_with_a_long_key_is_found() {
    let bank = Bank::new();
    let service = Service::of(&bank);
    let once = Once::sharing(service.once.engine()).settings(|settings| {
        settings.key = KeyRules::default().max_length(1000);
        settings.store_deadline = PATIENCE;
    });
    let service = Service { once: once.build().unwrap(), ..service };
    assert!(service.pay(&"k".repeat(1000), true).await.is_err());
    service.mend();
    assert_eq!(came_to(service.completer().look().await.unwrap()), (1, 1, 0));
}

#[tokio::test]
async fn a_completer_may_look_once_in_a_lifetime() {
    let service = Service::of(&Bank::new());
    let looks = service.completer().every(Duration::MAX).run();
    assert!(timeout(Duration::from_millis(10), looks).await.is_err());
}

#[tokio::test]
async fn what_another_namespace_has_begun_is_left_alone() {
    let bank = Bank::new();
    let service = Service::of(&bank);
    assert!(service.pay("one", true).await.is_err());
    let once = Once::sharing(service.once.engine()).namespace("other").build().unwrap();
    let other = Service { once, ..service.clone() };
    assert_eq!(came_to(other.completer().look().await.unwrap()), (0, 0, 0));
    let mut elsewhere = Completer::new(&service.once).on("refund", async |_| Some(()));
    assert_eq!(came_to(elsewhere.look().await.unwrap()), (0, 0, 0));
}

#[tokio::test]
async fn what_can_not_be_finished_is_tried_later_and_not_for_ever() {
    let bank = Bank::new();
    let service = Service::of(&bank);
    assert!(service.pay("one", true).await.is_err());
    let mut patient = service.completer().every(PATIENCE * 60);
    assert_eq!(came_to(patient.look().await.unwrap()), (1, 0, 1));
    assert_eq!(came_to(patient.look().await.unwrap()), (1, 0, 0), "not before its time");

    let mut hasty = service.completer().every(Duration::from_millis(1)).attempts(5);
    let tried = async {
        let mut failed = 0;
        while failed < 3 {
            failed += hasty.look().await.unwrap().failed;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, tried).await.expect("it is tried again");
    // Five attempts: the caller's, the patient one's, three of this.
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(came_to(hasty.look().await.unwrap()), (1, 0, 0));
    }
    service.mend();
    assert_eq!(service.pay("one", true).await.unwrap().attempt, Some(6));
}

#[tokio::test]
async fn a_call_whose_key_has_become_too_old_is_found_and_fails() {
    let bank = Bank::new();
    let service = Service::of(&bank);
    // It tells its age: it was made in 2001.
    let key = "00e4e1c0-0000-7000-8000-000000000000";
    assert!(service.pay(key, true).await.is_err());
    service.mend();
    let (day, minute) = (Duration::from_secs(24 * 3600), Duration::from_secs(60));
    let of_a_day = KeyFormat::UuidV7 { max_age: day, skew: minute };
    let once = Once::sharing(service.once.engine()).settings(|settings| {
        settings.key = KeyRules::default().format(of_a_day);
        settings.retention = day * 2;
    });
    let strict = Service { once: once.build().unwrap(), ..service.clone() };
    assert_eq!(came_to(strict.completer().look().await.unwrap()), (1, 0, 1));
    assert_eq!(came_to(service.completer().look().await.unwrap()), (1, 1, 0));
}

#[tokio::test]
async fn a_panic_is_one_failure_more() {
    let bank = Bank::new();
    let service = Service::of(&bank);
    for key in ["one", "two"] {
        assert!(service.pay(key, true).await.is_err());
    }
    service.mend();
    let again = service.clone();
    let mut completer = Completer::new(&service.once).on("pay", move |call| {
        let service = again.clone();
        async move {
            assert!(call.key() == "two", "as the test wants it");
            service.pay(call.key(), true).await.ok()
        }
    });
    assert_eq!(came_to(completer.look().await.unwrap()), (2, 1, 1));
}

#[tokio::test]
async fn a_call_that_never_ends_is_one_failure_more() {
    let bank = Bank::new();
    let service = Service::of(&bank);
    for key in ["one", "two"] {
        assert!(service.pay(key, true).await.is_err());
    }
    service.mend();
    let again = service.clone();
    let once = Once::sharing(service.once.engine()).settings(|settings| {
        // How long a call may take: longer than a busy machine needs for the one that ends.
        (settings.lease, settings.max_execution) = (Duration::from_secs(2), Duration::from_secs(2));
    });
    let once = once.build().unwrap();
    let mut completer = Completer::new(&once).on("pay", move |call| {
        let service = again.clone();
        async move {
            if call.key() == "one" {
                std::future::pending::<()>().await;
            }
            service.pay(call.key(), true).await.ok()
        }
    });
    let completed = timeout(PATIENCE, completer.look()).await.expect("it goes on").unwrap();
    assert_eq!(came_to(completed), (2, 1, 1));
    assert!(service.pay("two", true).await.unwrap().replayed);
}

#[tokio::test]
async fn no_more_than_so_many_are_gone_on_with_at_once() {
    let bank = Bank::new();
    let service = Service::of(&bank);
    for key in 0..6 {
        assert!(service.pay(&key.to_string(), true).await.is_err());
    }
    let (starts, mut started) = mpsc::channel(9);
    let go_on = Arc::new(Semaphore::new(0));
    let goes_on = go_on.clone();
    let completer = Completer::new(&service.once).at_once(2).on("pay", move |_| {
        let (starts, goes_on) = (starts.clone(), goes_on.clone());
        async move {
            starts.send(()).await.unwrap();
            goes_on.acquire().await.unwrap().forget();
            Some(())
        }
    });
    let mut completer = completer;
    let look = tokio::spawn(async move { completer.look().await.unwrap() });
    for _ in 0..2 {
        started.recv().await.unwrap();
    }
    assert!(timeout(Duration::from_millis(100), started.recv()).await.is_err());
    go_on.add_permits(6);
    assert_eq!(came_to(look.await.unwrap()), (6, 6, 0));
}

#[tokio::test]
async fn callers_and_completers_never_run_it_at_once() {
    let bank = Bank::new();
    let other = Bank::at(&bank.path, |store| store);
    let service = Service::of(&bank);
    const KEYS: usize = 10;
    for key in 0..KEYS {
        assert!(service.pay(&key.to_string(), true).await.is_err());
    }
    service.mend();
    service.calls.lock().unwrap().clear();
    let once = Service::of(&other).once;
    let elsewhere = Service { once, ..service.clone() };
    let mut all = JoinSet::new();
    for who in [&service, &elsewhere] {
        let mut completer = who.completer();
        all.spawn(async move {
            completer.look().await.unwrap();
        });
    }
    for key in 0..KEYS {
        let service = service.clone();
        all.spawn(async move {
            let paid = service.pay(&key.to_string(), true).await.unwrap();
            assert_eq!(paid.value, 7);
        });
    }
    all.join_all().await;
    assert_eq!((bank.balance(), bank.finished()), (KEYS as i64, KEYS as i64));
    assert!(service.calls.lock().unwrap().is_empty(), "every charge was kept");
}
