//! Responses that are too long to keep, or that go out while they are made (PROTOCOL 5, R4, R5).

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, HeaderName, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use retrysafe::{
    About, Begin, Claim, Engine, Fingerprint, Held, IdempotencyLayer, Lease, MemoryStore,
    OperationId, ResponseBody, Scope, Store, StoreError, StoreErrorKind, StreamedResponse, Swept,
};
use retrysafe_testkit::{Fault, Faulty, Verb};
use tokio::time::{sleep, timeout};

use crate::common::*;

/// A layer that keeps 1 KiB at most.
fn small() -> (TestStore, TestLayer) {
    let store = store();
    let layer = layer(&store).settings(|it| it.max_kept_body = 1024).build().unwrap();
    (store, layer)
}

fn long() -> Bytes {
    (0..5000).map(|at| (at % 251) as u8).collect::<Vec<_>>().into()
}

fn in_pieces() -> Body {
    pieces((0..5).map(|at| data(long().slice(at * 1000..(at + 1) * 1000))))
}

#[tokio::test]
async fn r4_a_response_over_the_cap_passes_whole_and_is_never_run_again() {
    let bodies: [fn() -> Body; 2] = [|| body(long()), in_pieces];
    for make in bodies {
        let (store, layer) = small();
        let orders = Guarded::new(&layer, move |_, _| async move {
            Response::builder().status(201).header("location", "/1").body(make()).unwrap()
        });
        let response = orders.call(order("k", "a")).await;
        assert_eq!(state(&store, "k").await, "finished", "before the first byte");
        let first = Answer::read(response).await;
        assert_eq!((first.status, &first.body), (201, &long()));
        let retry = orders.send(order("k", "a")).await;
        retry.assert_problem(409, "response_unavailable");
        assert_eq!(retry.member("original_status"), 201);
        orders.send(order("k", "b")).await.assert_problem(422, "key_reused");
        assert_eq!(orders.runs(), 1);
    }
}

/// A body that is kept open behind its trailers, by who forgot to drop its sender.
#[tokio::test(start_paused = true)]
async fn r6_trailers_end_a_response() {
    for content_type in ["text/plain", "text/event-stream"] {
        let (store, layer) = default_layer();
        let orders = Guarded::new(&layer, move |_, _| async move {
            let trailers = HeaderMap::from_iter([(HeaderName::from_static("x-sum"), 7.into())]);
            let frames = stream::iter([data("whole"), Ok(Frame::trailers(trailers))]);
            let body = StreamBody::new(frames.chain(stream::pending())).boxed_unsync();
            Response::builder().header("content-type", content_type).body(body).unwrap()
        });
        let minute = Duration::from_secs(60);
        let first = timeout(minute, orders.send(order("k", "a"))).await.unwrap();
        first.assert_first(200, "whole");
        assert_eq!(first.trailers.unwrap()["x-sum"], "7");
        assert_eq!(state(&store, "k").await, "finished");
        let replay = orders.send(order("k", "a")).await;
        replay.assert_replay(200, "whole");
        assert_eq!(replay.trailers.unwrap()["x-sum"], "7");
    }
}

#[tokio::test]
async fn r4_exactly_the_cap_is_kept() {
    let (_, layer) = small();
    let orders = Guarded::new(&layer, |_, _| async { Response::new(body(vec![b'x'; 1024])) });
    orders.send(order("k", "a")).await;
    orders.send(order("k", "a")).await.assert_replay(200, &"x".repeat(1024));
}

#[tokio::test]
async fn r4_what_the_store_cannot_hold_is_not_kept() {
    let memory = MemoryStore::builder().max_payload(200).build().unwrap();
    let store = Faulty::new(memory);
    let orders = Guarded::new(&layer(&store).build().unwrap(), |_, request: Given| async move {
        let long = request.headers()["idempotency-key"] == "head";
        let (head, body_length) = if long { (500, 0) } else { (0, 500) };
        let response = Response::builder().status(201).header("x-long", "h".repeat(head));
        response.body(body("b".repeat(body_length))).unwrap()
    });
    for key in ["body", "head"] {
        assert_eq!(orders.send(order(key, "a")).await.status, 201);
        let retry = orders.send(order(key, "a")).await;
        retry.assert_problem(409, "response_unavailable");
        assert_eq!(retry.member("original_status"), 201);
    }
    assert_eq!(orders.runs(), 2);
}

/// A store that turns out to have no room for more than so many bytes when it is given them.
struct Cramped {
    store: MemoryStore,
    kind: StoreErrorKind,
    room: Arc<AtomicUsize>,
}

/// Room for a status.
const ROOM: usize = 20;

/// A layer on such a store, and how much room it has.
fn cramped(kind: StoreErrorKind, room: usize) -> (IdempotencyLayer<Cramped>, Arc<AtomicUsize>) {
    let room = Arc::new(AtomicUsize::new(room));
    let store = Cramped { store: MemoryStore::new(), kind, room: room.clone() };
    (IdempotencyLayer::builder(store, Scope::shared()).build().unwrap(), room)
}

impl Store for Cramped {
    fn about(&self) -> About {
        self.store.about()
    }
    async fn begin(&self, claim: &Claim) -> Result<Begin, StoreError> {
        self.store.begin(claim).await
    }
    async fn renew(&self, lease: &Lease, lease_for: Duration) -> Result<Held, StoreError> {
        self.store.renew(lease, lease_for).await
    }
    async fn complete(
        &self,
        lease: &Lease,
        fingerprint: &Fingerprint,
        payload: Bytes,
        retention: Duration,
    ) -> Result<Held, StoreError> {
        if payload.len() > self.room.load(Ordering::Relaxed) {
            return Err(StoreError::new(self.kind, "no room"));
        }
        self.store.complete(lease, fingerprint, payload, retention).await
    }
    async fn release(&self, lease: &Lease, keep: Duration) -> Result<Held, StoreError> {
        self.store.release(lease, keep).await
    }
    async fn changed(
        &self,
        id: &OperationId,
        seen: u32,
        within: Duration,
    ) -> Result<(), StoreError> {
        self.store.changed(id, seen, within).await
    }
    async fn sweep(&self, limit: usize) -> Result<Swept, StoreError> {
        self.store.sweep(limit).await
    }
}

#[tokio::test]
async fn r4_st8_what_a_store_has_no_room_for_is_finished_without_its_response() {
    for kind in [StoreErrorKind::Full, StoreErrorKind::TooLarge] {
        let (layer, _) = cramped(kind, ROOM);
        let orders = Guarded::orders(&layer);
        let first = orders.send(order("k", "a")).await;
        first.assert_first(201, "order 1");
        assert!(!first.headers.contains_key("idempotency-status"), "it is recorded");
        assert_eq!(layer.engine().in_flight(), 0, "nothing is left to do");
        let retry = orders.send(order("k", "a")).await;
        retry.assert_problem(409, "response_unavailable");
        assert_eq!(retry.member("original_status"), 201);
        orders.send(order("k", "b")).await.assert_problem(422, "key_reused");
        assert_eq!(orders.runs(), 1, "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn r7_what_found_no_room_at_all_is_written_as_far_as_there_is_room_again() {
    for (again, answers) in [(usize::MAX, 201), (ROOM, 409)] {
        let (layer, room) = cramped(StoreErrorKind::Full, 0);
        let orders = Guarded::orders(&layer);
        let first = orders.send(order("k", "a")).await;
        first.assert_first(201, "order 1");
        assert_eq!(first.headers["idempotency-status"], "not-recorded");
        room.store(again, Ordering::Relaxed);
        layer.engine().drain().await;
        let retry = orders.send(order("k", "a")).await;
        match answers {
            201 => retry.assert_replay(201, "order 1"),
            _ => retry.assert_problem(409, "response_unavailable"),
        }
        assert_eq!(orders.runs(), 1);
    }
}

#[tokio::test]
async fn r4_a_later_break_changes_nothing() {
    let (store, layer) = small();
    let orders =
        Guarded::new(&layer, |_, _| async { Response::new(pieces([data(long()), broken()])) });
    let first = orders.send(order("k", "a")).await;
    assert!(first.broke_off && first.body == long());
    assert_eq!(state(&store, "k").await, "finished");
    orders.send(order("k", "a")).await.assert_problem(409, "response_unavailable");
}

#[tokio::test]
async fn r4_a_long_failure_is_over_before_its_key_is_free() {
    let (store, layer) = small();
    let pipes = Arc::new(Mutex::new(Vec::new()));
    let opened = pipes.clone();
    let orders = Guarded::new(&layer, move |_, _| {
        let (pipe, body) = pipe();
        pipe.data(long());
        opened.lock().unwrap().push(pipe);
        async move { Response::builder().status(429).body(body).unwrap() }
    });
    let first = orders.spawn(order("k", "a"));
    orders.ran(1).await;
    settle().await;
    assert_eq!(state(&store, "k").await, "in flight");
    pipes.lock().unwrap().clear();
    let first = first.await.unwrap();
    assert_eq!((first.status, first.body), (429, long()));
    assert_eq!(state(&store, "k").await, "released");
}

type Pipes = Arc<Mutex<Vec<Pipe>>>;

/// Answers with streams that the test feeds.
fn live(layer: &TestLayer, content_type: Option<&'static str>) -> (Guarded, Pipes) {
    let pipes = Pipes::default();
    let opened = pipes.clone();
    let orders = Guarded::new(layer, move |_, _| {
        let (pipe, body) = pipe();
        opened.lock().unwrap().push(pipe);
        async move {
            let mut response = Response::new(body);
            match content_type {
                Some(name) => {
                    response.headers_mut().insert("content-type", name.parse().unwrap());
                }
                None => {
                    response.extensions_mut().insert(StreamedResponse);
                }
            }
            response
        }
    });
    (orders, pipes)
}

async fn next(body: &mut ResponseBody<Body>) -> Bytes {
    body.frame().await.unwrap().unwrap().into_data().unwrap()
}

#[tokio::test]
async fn r5_a_stream_is_live_and_kept_at_its_end() {
    for content_type in
        [Some("text/event-stream; charset=utf-8"), Some("Application/X-NDJSON"), None]
    {
        let (store, layer) = small();
        let (orders, pipes) = live(&layer, content_type);
        let mut body = orders.call(order("k", "a")).await.into_body();
        let pipe = pipes.lock().unwrap().pop().unwrap();
        for event in ["one ", "two "] {
            pipe.data(event);
            assert_eq!(next(&mut body).await, event);
        }
        assert_eq!(state(&store, "k").await, "in flight");
        orders.send(order("k", "a")).await.assert_problem(409, "in_progress");
        drop(pipe);
        assert!(body.frame().await.is_none());
        // The client does not see the end before it is recorded.
        assert_eq!(state(&store, "k").await, "finished");
        orders.send(order("k", "a")).await.assert_replay(200, "one two ");
        assert_eq!(orders.runs(), 1);
    }
}

#[tokio::test]
async fn r5_a_client_that_is_gone_is_read_on_for() {
    let (_, layer) = small();
    let (orders, pipes) = live(&layer, None);
    let mut body = orders.call(order("k", "a")).await.into_body();
    let pipe = pipes.lock().unwrap().pop().unwrap();
    pipe.data("one ");
    assert_eq!(next(&mut body).await, "one ");
    drop(body);
    pipe.data("two ");
    pipe.data("three");
    drop(pipe);
    layer.engine().drain().await;
    orders.send(order("k", "a")).await.assert_replay(200, "one two three");
    assert_eq!(orders.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn r5_a_stream_that_breaks_off_is_ambiguous() {
    let (store, layer) = small();
    let (orders, pipes) = live(&layer, None);
    let first = orders.spawn(order("k", "a"));
    orders.ran(1).await;
    let pipe = pipes.lock().unwrap().pop().unwrap();
    pipe.data("one ");
    pipe.break_off();
    let first = first.await.unwrap();
    assert!(first.broke_off && first.text() == "one ");
    layer.engine().drain().await;
    // The work may go on: the lease runs out by itself.
    assert_eq!(state(&store, "k").await, "in flight");
    orders.send(order("k", "a")).await.assert_problem(409, "in_progress");
    sleep(Duration::from_secs(31)).await;
    assert_eq!(state(&store, "k").await, "lapsed");
    let retry = orders.spawn(order("k", "a"));
    orders.ran(2).await;
    pipes.lock().unwrap().clear();
    retry.await.unwrap().assert_first(200, "");
}

#[tokio::test]
async fn r5_past_the_cap_nothing_is_copied_and_the_clients_pace_applies() {
    const PIECE: usize = 16 * 1024;
    let (store, layer) = small();
    let made = Count::default();
    let counted = made.clone();
    let orders = Guarded::new(&layer, move |_, _| {
        let made = counted.clone();
        async move {
            let mut response = Response::new(pieces((0..1000).map(move |_| {
                made.more();
                data(vec![7; PIECE])
            })));
            response.extensions_mut().insert(StreamedResponse);
            response
        }
    });
    let mut body = orders.call(order("k", "a")).await.into_body();
    settle().await;
    // 64 KiB ahead of the client and no more.
    assert!(made.now() <= 7, "{} pieces were made for nobody", made.now());
    let mut taken = 0;
    while let Some(frame) = body.frame().await {
        taken += frame.unwrap().into_data().unwrap().len();
        assert!(made.now() * PIECE <= taken + 7 * PIECE);
    }
    assert_eq!(taken, 1000 * PIECE);
    assert_eq!(state(&store, "k").await, "finished");
    orders.send(order("k", "a")).await.assert_problem(409, "response_unavailable");
}

#[tokio::test]
async fn r5_past_the_cap_a_client_that_leaves_does_not_stop_the_stream() {
    let (_, layer) = small();
    let orders = Guarded::new(&layer, |_, _| async {
        let mut response = Response::new(pieces((0..100).map(|_| data(vec![7; 16 * 1024]))));
        response.extensions_mut().insert(StreamedResponse);
        response
    });
    drop(orders.call(order("k", "a")).await);
    layer.engine().drain().await;
    orders.send(order("k", "a")).await.assert_problem(409, "response_unavailable");
    assert_eq!(orders.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn r5_past_the_cap_a_client_that_does_not_read_holds_no_lost_execution() {
    let store = store();
    let engine = Engine::builder(store.clone()).max_in_flight(1).build().unwrap();
    let here = IdempotencyLayer::sharing(&engine, Scope::shared());
    let here = here.settings(|it| it.max_kept_body = 1024).build().unwrap();
    let orders = Guarded::new(&here, |run, _| async move {
        if run > 1 {
            return created(run);
        }
        let mut response = Response::new(pieces((0..1000).map(|_| data(vec![7; 16 * 1024]))));
        response.extensions_mut().insert(StreamedResponse);
        response
    });
    store.script().always(Verb::Renew, Fault::FailBefore);
    let unread = orders.call(order("k", "a")).await;
    sleep(Duration::from_secs(31)).await;
    orders.send(order("l", "a")).await.assert_problem(503, "overloaded");
    let elsewhere = Guarded::orders(&layer(&store).build().unwrap());
    elsewhere.send(order("k", "a")).await.assert_first(201, "order 1");
    // The next renewal finds that somebody has taken over.
    store.script().heal();
    timeout(Duration::from_secs(60), engine.drain()).await.unwrap();
    orders.send(order("l", "a")).await.assert_first(201, "order 2");
    assert!(Answer::read(unread).await.broke_off, "E5");
}

#[tokio::test]
async fn r5_a_stream_of_tiny_frames_is_kept_exactly() {
    let (_, layer) = default_layer();
    // Tiny, empty and large ones, in every order.
    let frames =
        |number: usize| vec![(number % 251) as u8; [1, 3, 0, 5000, 2, 4096, 4095][number % 7]];
    let whole: Vec<u8> = (0..500).flat_map(frames).collect();
    let orders = Guarded::new(&layer, move |_, request: Given| async move {
        let mut response = Response::new(pieces((0..500).map(move |it| data(frames(it)))));
        if request.headers()["idempotency-key"] == "live" {
            response.extensions_mut().insert(StreamedResponse);
        }
        response
    });
    for key in ["live", "whole"] {
        for replayed in [false, true] {
            let answer = orders.send(order(key, "a")).await;
            assert_eq!(answer.is_replay(), replayed);
            assert!(answer.body == whole, "{key} {replayed}");
        }
    }
}

#[tokio::test]
async fn r6_trailers_of_a_stream() {
    let (_, layer) = small();
    let orders = Guarded::new(&layer, |_, _| async {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "7".parse().unwrap());
        let mut response = Response::new(pieces([data("one"), Ok(Frame::trailers(trailers))]));
        response.extensions_mut().insert(StreamedResponse);
        response
    });
    for replayed in [false, true] {
        let answer = orders.send(order("k", "a")).await;
        assert_eq!((answer.is_replay(), answer.text()), (replayed, "one"));
        assert_eq!(answer.trailers.unwrap()["x-sum"], "7");
    }
}

#[tokio::test(start_paused = true)]
async fn e2_a_long_stream_is_renewed() {
    let (store, layer) = small();
    let (orders, pipes) = live(&layer, None);
    let first = orders.spawn(order("k", "a"));
    orders.ran(1).await;
    sleep(Duration::from_secs(95)).await;
    assert_eq!(store.script().calls(Verb::Renew), 9);
    orders.send(order("k", "a")).await.assert_problem(409, "in_progress");
    pipes.lock().unwrap().pop().unwrap().data("end");
    first.await.unwrap().assert_first(200, "end");
}

#[tokio::test]
async fn e5_a_live_response_does_not_say_how_long_it_is() {
    let (_, layer) = default_layer();
    let orders = Guarded::new(&layer, |_, _| async {
        let lines = Response::builder().header("content-type", "application/x-ndjson");
        lines.header("content-length", 4).body(body("1\n2\n")).unwrap()
    });
    let live = orders.send(order("k", "a")).await;
    live.assert_first(200, "1\n2\n");
    assert!(!live.headers.contains_key("content-length"));
}
