//! Threads: a worker that is blocked, one that ends, and where the store is called.

use std::{
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use actix_web::{App, HttpResponse, HttpServer, rt::System, web};
use retrysafe_actix::{Idempotency, MemoryStore, Scope, background};
use retrysafe_testkit::{Faulty, Verb};
use tokio::runtime::Handle;

use crate::{
    server::Client,
    support::{self, Runs, Watched, app, call, create, idempotency},
};

/// A worker that is blocked does not stop the renewals, and nobody else runs meanwhile.
#[actix_web::test]
async fn e2_a_handler_that_blocks_its_worker_keeps_its_lease() {
    let store = Faulty::new(MemoryStore::new());
    let idempotency = Idempotency::builder(store.clone(), Scope::shared())
        .lease(Duration::from_millis(300))
        .build()
        .unwrap();
    let runs = Runs::default();
    let (go_on, told) = mpsc::channel::<()>();

    let blocked = thread::spawn({
        let (idempotency, runs, told) = (idempotency.clone(), runs.clone(), Mutex::new(told));
        move || {
            System::new().block_on(async move {
                let told = web::Data::new(told);
                let block =
                    async |runs: web::Data<Runs>, told: web::Data<Mutex<mpsc::Receiver<()>>>| {
                        let run = runs.count();
                        // All of the thread waits, as in a handler that computes or calls what blocks.
                        told.lock().unwrap().recv().unwrap();
                        HttpResponse::Created().body(format!("run {run}"))
                    };
                let app = app!(
                    App::new()
                        .app_data(runs.data())
                        .app_data(told)
                        .route("/", web::post().to(block))
                        .wrap(idempotency)
                );
                let answer = call!(app, support::post("/", ""));
                (answer.status.as_u16(), answer.body)
            })
        }
    });

    let app = app!(
        App::new()
            .app_data(runs.data())
            .route("/", web::post().to(create))
            .wrap(idempotency.clone())
    );
    // Ten renewals are more than three leases.
    store.script().called(Verb::Renew, 10).await;
    assert_eq!(call!(app, support::post("/", "")).code(), "in_progress");
    go_on.send(()).unwrap();
    let (status, body) = blocked.join().unwrap();
    assert_eq!((status, &body[..]), (201, &b"run 1"[..]));
    let replay = call!(app, support::post("/", ""));
    assert!(replay.is_replay() && replay.body == body, "{replay:?}");
    assert_eq!(runs.so_far(), 1);
}

/// A connection that the store opens must not live on the thread of a worker, which may be blocked.
#[actix_web::test]
async fn e2_the_store_is_called_in_the_runtime_that_renews() {
    let home = background().unwrap().id();
    let called = Arc::new(Mutex::new(Vec::new()));
    let (calls, renewed) = (called.clone(), Arc::new(tokio::sync::Notify::new()));
    let renewing = renewed.clone();
    let store = Watched::new(move |verb| {
        calls.lock().unwrap().push((verb, Handle::current().id() == home));
        if verb == Verb::Renew {
            renewing.notify_one();
        }
        None
    });
    let idempotency = Idempotency::builder(store, Scope::shared())
        .lease(Duration::from_millis(300))
        .build()
        .unwrap();
    let handler = async |renewed: web::Data<tokio::sync::Notify>| {
        // The handler is at home on its worker.
        assert_ne!(Handle::current().id(), background().unwrap().id());
        renewed.notified().await;
        HttpResponse::Ok().finish()
    };
    let app = app!(
        App::new()
            .app_data(web::Data::from(renewed))
            .route("/", web::post().to(handler))
            .wrap(idempotency)
    );
    assert_eq!(call!(app, support::post("/", "")).status.as_u16(), 200);
    assert!(call!(app, support::post("/", "")).is_replay());
    let called = called.lock().unwrap();
    for verb in [Verb::Begin, Verb::Renew, Verb::Complete] {
        assert!(called.contains(&(verb, true)), "{verb:?}");
    }
    assert!(called.iter().all(|(_, at_home)| *at_home), "{called:?}");
}

/// Says on which thread it is dropped: its own?
struct Probe(thread::ThreadId, tokio::sync::mpsc::UnboundedSender<bool>);

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = self.1.send(thread::current().id() == self.0);
    }
}

/// What is at work on a worker when it ends ends with it, there: nobody knows what it did.
async fn ends_with_its_worker() {
    let (dropped, mut drops) = tokio::sync::mpsc::unbounded_channel();
    let (started, mut starts) = tokio::sync::mpsc::unbounded_channel();
    let idempotency = idempotency();
    let guarded = idempotency.clone();
    let server = HttpServer::new(move || {
        let (dropped, started) = (dropped.clone(), started.clone());
        let handler = move || {
            let (probe, started) =
                (Probe(thread::current().id(), dropped.clone()), started.clone());
            async move {
                started.send(()).unwrap();
                std::future::pending::<()>().await;
                drop(probe);
                HttpResponse::Ok().finish()
            }
        };
        App::new().route("/", web::post().to(handler)).wrap(guarded.clone())
    })
    .workers(1)
    .disable_signals()
    .bind(("127.0.0.1", 0))
    .unwrap();
    let address = server.addrs()[0];
    let server = server.run();
    let handle = server.handle();
    let running = tokio::spawn(server);
    let mut client = Client::connect(address).await;
    client.send("/", b"").await;
    starts.recv().await.unwrap();
    drop(client);
    handle.stop(false).await;
    running.await.unwrap().unwrap();
    assert!(drops.recv().await.unwrap(), "it was dropped on another thread");
    // Nothing of it is left that a drain would wait for.
    idempotency.engine().drain().await;
}

#[actix_web::test]
async fn a_handler_ends_with_its_worker() {
    ends_with_its_worker().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_ends_with_its_worker_in_a_runtime_of_tokio() {
    ends_with_its_worker().await;
}
