//! The fingerprint, and request bodies of every length (PROTOCOL 2, F1 to F4).

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Request, Response, Uri, request::Builder};
use http_body::Frame;
use http_body_util::BodyExt as _;
use retrysafe::{
    Disposition, Fingerprinter, Keyring, OnInFlight, OnUnknownOutcome, OutcomePolicy, RequestBody,
};

use crate::common::*;

/// Longer than what is read up front, in pieces.
const LONG: usize = 100 * 1024;

fn long(last: u8) -> Bytes {
    let mut bytes: Vec<u8> = (0..LONG).map(|at| (at % 251) as u8).collect();
    bytes[LONG - 1] = last;
    bytes.into()
}

fn in_pieces(bytes: &Bytes) -> Body {
    let bytes = bytes.clone();
    pieces((0..bytes.len()).step_by(8192).map(move |at| {
        let end = bytes.len().min(at + 8192);
        data(bytes.slice(at..end))
    }))
}

fn long_order(bytes: &Bytes) -> Request<Body> {
    with_body("k", in_pieces(bytes))
}

/// Answers 201 with the length of what it was given.
fn measuring<S: retrysafe::Store>(layer: &retrysafe::IdempotencyLayer<S>) -> Guarded {
    Guarded::new(layer, |_, request| async move {
        let status = match read(request).await {
            Ok(bytes) => Response::builder().status(201).body(body(bytes.len().to_string())),
            Err(_) => Response::builder().status(400).body(empty()),
        };
        status.unwrap()
    })
}

#[tokio::test]
async fn f1_every_part_of_a_request_counts() {
    let (_, layer) = default_layer();
    let orders = Guarded::orders(&layer);
    let request = |change: fn(Builder) -> Builder, content: &'static str| {
        let request = Request::post("/orders?a=1")
            .header("idempotency-key", "k")
            .header("content-type", "application/json")
            .header("content-encoding", "identity");
        change(request).body(body(content)).unwrap()
    };
    orders.send(request(|it| it, "a")).await.assert_first(201, "order 1");
    orders.send(request(|it| it, "a")).await.assert_replay(201, "order 1");
    let unlike: [fn(Builder) -> Builder; 6] = [
        |it| it.method("PATCH"),
        |it| it.uri("/carts?a=1"),
        |it| it.uri("/orders?a=2"),
        |it| it.uri("/orders"),
        |it| it.header("content-type", "text/plain"),
        |it| it.header("content-encoding", "gzip"),
    ];
    for (number, change) in unlike.into_iter().enumerate() {
        let mut request = request(change, "a");
        // `Builder::header` appends; the last one is meant.
        for name in ["content-type", "content-encoding"] {
            let last = request.headers().get_all(name).iter().next_back().cloned().unwrap();
            request.headers_mut().insert(name, last);
        }
        let answer = orders.send(request).await;
        assert_eq!(answer.status, 422, "change {number}");
        answer.assert_problem(422, "key_reused");
    }
    orders.send(request(|it| it, "b")).await.assert_problem(422, "key_reused");
    orders.send(request(|it| it, "")).await.assert_problem(422, "key_reused");
    // Neither other headers nor a parameter of the content type.
    let mut same = request(|it| it.header("user-agent", "other"), "a");
    same.headers_mut().insert("content-type", "application/JSON; charset=utf-8".parse().unwrap());
    orders.send(same).await.assert_replay(201, "order 1");
    assert_eq!(orders.runs(), 1);
}

#[derive(Clone)]
struct Original(Uri);

#[tokio::test]
async fn f1_the_target_is_as_the_client_sent_it() {
    let store = store();
    let layer =
        layer(&store).original_uri(|head| head.extensions.get::<Original>().map(|it| &it.0));
    let orders = Guarded::orders(&layer.build().unwrap());
    let at = |original: &'static str| {
        let mut request = order("k", "a");
        request.extensions_mut().insert(Original(Uri::from_static(original)));
        request
    };
    orders.send(at("/v1/orders")).await.assert_first(201, "order 1");
    orders.send(at("/v2/orders")).await.assert_problem(422, "key_reused");
    orders.send(at("/v1/orders")).await.assert_replay(201, "order 1");
}

fn fingerprinted(fingerprinter: Fingerprinter) -> Guarded {
    Guarded::orders(&layer(&store()).fingerprint(fingerprinter).build().unwrap())
}

#[tokio::test]
async fn f2_json_by_its_meaning() {
    let without = Fingerprinter::json_without(["/sent_at".parse().unwrap()]).unwrap();
    let orders = fingerprinted(without);
    orders.send(order("k", r#"{"a":1,"b":[2],"sent_at":1}"#)).await.assert_first(201, "order 1");
    let same = r#"{ "b": [2.0], "sent_at": 2, "a": 1e0 }"#;
    orders.send(order("k", same)).await.assert_replay(201, "order 1");
    orders
        .send(order("k", r#"{"a":1,"b":[3],"sent_at":1}"#))
        .await
        .assert_problem(422, "key_reused");
}

#[tokio::test]
async fn double_counts() {
    // F2: two amounts above 2^53 canonicalised to the same number.
    let orders = fingerprinted(Fingerprinter::json());
    orders.send(order("k", r#"{"amount":9007199254740993}"#)).await.assert_first(201, "order 1");
    let other = orders.send(order("k", r#"{"amount":9007199254740992}"#)).await;
    other.assert_problem(422, "key_reused");
}

#[tokio::test]
async fn f2_f4_a_long_body_falls_back_to_raw() {
    let orders = fingerprinted(Fingerprinter::json());
    let spaces = |count: usize| format!(r#"{{"a":{}1}}"#, " ".repeat(count));
    orders.send(order("k", spaces(LONG))).await.assert_first(201, "order 1");
    orders.send(order("k", spaces(LONG))).await.assert_replay(201, "order 1");
}

#[tokio::test]
async fn f3_a_retry_is_compared_by_the_records_own_algorithm() {
    let store = store();
    let before = Guarded::orders(&layer(&store).build().unwrap());
    before.send(order("k", r#"{"a":1}"#)).await.assert_first(201, "order 1");
    // The service is deployed anew, with another mode.
    let after = Guarded::orders(&layer(&store).fingerprint(Fingerprinter::json()).build().unwrap());
    after.send(order("k", r#"{"a":1}"#)).await.assert_replay(201, "order 1");
    // By the record's own algorithm these bytes differ.
    after.send(order("k", r#"{"a": 1}"#)).await.assert_problem(422, "key_reused");
    assert_eq!(after.runs(), 0);
}

#[tokio::test]
async fn f3_an_unknown_outcome_is_taken_over_by_the_records_own_algorithm() {
    let store = store();
    let before = Guarded::new(&layer(&store).build().unwrap(), |_, _| async { status(500) });
    assert_eq!(before.send(order("k", r#"{"a":1}"#)).await.status, 500);
    let after = Guarded::orders(&layer(&store).fingerprint(Fingerprinter::json()).build().unwrap());
    after.send(order("k", r#"{"a": 1}"#)).await.assert_problem(422, "key_reused");
    after.send(order("k", r#"{"a":1}"#)).await.assert_first(201, "order 1");
    after.send(order("k", r#"{"a":1}"#)).await.assert_replay(201, "order 1");
}

#[tokio::test]
async fn f3_f4_a_long_upload_is_taken_over_by_the_records_own_algorithm() {
    let keyed = |ring: Keyring| Fingerprinter::raw().with_keyring(ring);
    let (old, new) = ([1; 32], [2; 32]);
    let rotated = Keyring::new(2, &new).unwrap().and(1, &old).unwrap();
    for (before, after) in [
        (keyed(Keyring::new(1, &old).unwrap()), keyed(rotated.clone())),
        (Fingerprinter::raw(), keyed(rotated)),
        (Fingerprinter::raw(), Fingerprinter::body_ignored()),
    ] {
        let store = store();
        let before = measuring(&layer(&store).fingerprint(before).build().unwrap());
        let cut = with_body("k", pieces([data(long(0)), broken()]));
        assert_eq!(before.send(cut).await.status, 400);
        assert_eq!(state(&store, "k").await, "lapsed");
        let after = measuring(&layer(&store).fingerprint(after).build().unwrap());
        let length = LONG.to_string();
        after.send(long_order(&long(0))).await.assert_first(201, &length);
        after.send(long_order(&long(0))).await.assert_replay(201, &length);
        after.send(long_order(&long(1))).await.assert_problem(422, "key_reused");
        assert_eq!((after.runs(), entry(&store, "k").await.unwrap().attempt), (1, 2));
    }
}

#[tokio::test]
async fn f4_a_long_body_is_claimed_before_it_has_come() {
    let (store, layer) = default_layer();
    let orders = measuring(&layer);
    let (upload, body) = pipe();
    upload.data(long(0));
    let answer = orders.spawn(with_body("k", body));
    orders.ran(1).await;
    let claimed = entry(&store, "k").await.unwrap().fingerprint;
    assert!(claimed.body.is_none());
    upload.data(vec![1; LONG]);
    drop(upload);
    answer.await.unwrap().assert_first(201, &(2 * LONG).to_string());
    let part = entry(&store, "k").await.unwrap().fingerprint.body.unwrap();
    assert_eq!(part.length, 2 * LONG as u64);
}

#[tokio::test]
async fn f4_a_long_body_is_never_buffered() {
    const PIECE: usize = 16 * 1024;
    let (_, layer) = default_layer();
    let asked_for = Arc::new(AtomicUsize::new(0));
    let given = Arc::new(AtomicUsize::new(0));
    let source = asked_for.clone();
    let endless = pieces((0..2000).map(move |_| {
        source.fetch_add(PIECE, Ordering::SeqCst);
        data(Bytes::from_static(&[7; PIECE]))
    }));
    let (from_source, to_handler) = (asked_for.clone(), given.clone());
    let orders = Guarded::new(&layer, move |run, request: Given| {
        let (asked_for, given) = (from_source.clone(), to_handler.clone());
        async move {
            let mut body = request.into_body();
            while let Some(frame) = body.frame().await {
                let length = frame.unwrap().into_data().unwrap().len();
                let given = given.fetch_add(length, Ordering::SeqCst) + length;
                let held = asked_for.load(Ordering::SeqCst) - given;
                assert!(held <= 64 * 1024 + PIECE, "{held} bytes are held");
            }
            created(run)
        }
    });
    orders.send(with_body("k", endless)).await.assert_first(201, "order 1");
    assert_eq!(given.load(Ordering::SeqCst), 2000 * PIECE);
}

#[tokio::test]
async fn f4_a_retry_of_a_long_body_is_compared_to_its_end() {
    let (_, layer) = default_layer();
    let orders = measuring(&layer);
    let length = LONG.to_string();
    orders.send(long_order(&long(0))).await.assert_first(201, &length);
    orders.send(long_order(&long(0))).await.assert_replay(201, &length);
    // In one piece, it is the same.
    orders.send(order("k", long(0))).await.assert_replay(201, &length);
    orders.send(long_order(&long(1))).await.assert_problem(422, "key_reused");
    orders.send(long_order(&long(0).slice(1..))).await.assert_problem(422, "key_reused");
    orders.send(long_order(&long(0).slice(..LONG - 1))).await.assert_problem(422, "key_reused");
    // One that goes on beyond the whole differs, and so does a short one.
    let beyond = pieces([data(long(0)), data("x")]);
    orders.send(with_body("k", beyond)).await.assert_problem(422, "key_reused");
    orders.send(order("k", "short")).await.assert_problem(422, "key_reused");
    assert_eq!(orders.runs(), 1);
}

/// Reads so many pieces of a body, and no more.
fn reading(layer: &TestLayer, count: usize) -> Guarded {
    Guarded::new(layer, move |run, request: Given| async move {
        let mut body = request.into_body();
        for _ in 0..count {
            body.frame().await.unwrap().unwrap();
        }
        created(run)
    })
}

#[tokio::test]
async fn f4_a_handler_that_reads_only_part_is_compared_by_that_part() {
    let (store, layer) = default_layer();
    let orders = reading(&layer, 9);
    orders.send(long_order(&long(0))).await.assert_first(201, "order 1");
    let part = entry(&store, "k").await.unwrap().fingerprint.body.unwrap();
    assert_eq!(part.length, 9 * 8192);
    // The handler never saw the end.
    orders.send(long_order(&long(1))).await.assert_replay(201, "order 1");
    let mut other = long(0).to_vec();
    other[9 * 8192 - 1] ^= 1;
    orders.send(long_order(&other.into())).await.assert_problem(422, "key_reused");
    orders.send(long_order(&long(0).slice(..70 * 1024))).await.assert_problem(422, "key_reused");
    orders.send(order("k", "short")).await.assert_problem(422, "key_reused");
}

#[tokio::test(start_paused = true)]
async fn f4_a_retry_is_read_as_far_as_the_record_covers() {
    let (_, layer) = default_layer();
    let orders = reading(&layer, 9);
    orders.send(long_order(&long(0))).await.assert_first(201, "order 1");
    let (mut covered, mut other) = (long(0).slice(..9 * 8192), long(0).to_vec());
    other[9 * 8192 - 1] ^= 1;
    // What comes after that may never end.
    let send = async |body: Body| {
        let answer = orders.send(with_body("k", body));
        tokio::time::timeout(std::time::Duration::from_secs(3600), answer).await.unwrap()
    };
    for beyond in [0, 1] {
        let (sender, open) = pipe();
        sender.data(covered.clone());
        send(open).await.assert_replay(201, "order 1");
        let (sender, open) = pipe();
        sender.data(other[..9 * 8192 + beyond].to_vec());
        send(open).await.assert_problem(422, "key_reused");
        covered = long(1).slice(..9 * 8192 + 1);
    }
    // Where a length is announced, the count must match.
    let cut = |length: usize| {
        let mut request = with_body("k", pieces([data(long(0).slice(..9 * 8192))]));
        request.headers_mut().insert("content-length", length.into());
        request
    };
    orders.send(cut(9 * 8192)).await.assert_replay(201, "order 1");
    orders.send(cut(LONG)).await.assert_problem(400, "incomplete_body");
    assert_eq!(orders.runs(), 1);
}

#[tokio::test]
async fn f4_a_handler_that_reads_nothing() {
    let (_, layer) = default_layer();
    let orders = reading(&layer, 0);
    orders.send(long_order(&long(0))).await.assert_first(201, "order 1");
    orders.send(long_order(&long(1))).await.assert_replay(201, "order 1");
    orders.send(order("k", "short")).await.assert_replay(201, "order 1");
    let mut elsewhere = long_order(&long(0));
    *elsewhere.uri_mut() = Uri::from_static("/carts");
    orders.send(elsewhere).await.assert_problem(422, "key_reused");
}

#[tokio::test]
async fn f4_a_body_that_breaks_off_while_it_is_read_ahead_claims_nothing() {
    let (store, layer) = default_layer();
    let orders = measuring(&layer);
    let request = with_body("k", pieces([data("half"), broken()]));
    orders.send(request).await.assert_problem(400, "incomplete_body");
    assert_eq!((orders.runs(), store.script().all_calls()), (0, 0));
    orders.send(order("k", "half and half")).await.assert_first(201, "13");
}

#[tokio::test]
async fn f4_a_body_that_breaks_off_later_leaves_an_unknown_outcome() {
    let store = store();
    let refuse = layer(&store).on_unknown_outcome(OnUnknownOutcome::Refuse).build().unwrap();
    let orders = measuring(&refuse);
    let request = with_body("k", pieces([data(long(0)), broken()]));
    assert_eq!(orders.send(request).await.status, 400);
    assert_eq!(state(&store, "k").await, "lapsed");
    orders.send(long_order(&long(0))).await.assert_problem(409, "outcome_unknown");
    // And so it is if the handler makes light of it.
    let careless = Guarded::new(&refuse, |run, request| async move {
        let _ = read(request).await;
        created(run)
    });
    let request = with_body("l", pieces([data(long(0)), broken()]));
    careless.send(request).await.assert_first(201, "order 1");
    assert_eq!(state(&store, "l").await, "lapsed");
    assert_eq!((orders.runs(), careless.runs()), (1, 1));
}

#[tokio::test]
async fn f4_the_content_length_must_match() {
    let (store, layer) = default_layer();
    let orders = measuring(&layer);
    let announcing = |length: usize, mut request: Request<Body>| {
        request.headers_mut().insert("content-length", length.into());
        request
    };
    for lie in [3, 5] {
        let request = announcing(lie, order("k", "four"));
        orders.send(request).await.assert_problem(400, "incomplete_body");
    }
    assert_eq!((orders.runs(), store.script().all_calls()), (0, 0));
    for lie in [LONG - 1, LONG + 1] {
        let answer = orders.send(announcing(lie, long_order(&long(0)))).await;
        assert_eq!(answer.status, 400, "{answer:?}");
        assert_eq!(state(&store, "k").await, "lapsed");
    }
    let honest = || announcing(LONG, long_order(&long(0)));
    orders.send(honest()).await.assert_first(201, &LONG.to_string());
    // A retry is not believed either.
    let cut = announcing(LONG, long_order(&long(0).slice(..LONG - 1)));
    orders.send(cut).await.assert_problem(400, "incomplete_body");
    orders.send(honest()).await.assert_replay(201, &LONG.to_string());
}

#[tokio::test]
async fn f4_a_retry_that_breaks_off_is_not_replayed() {
    let (_, layer) = default_layer();
    let orders = measuring(&layer);
    orders.send(long_order(&long(0))).await.assert_first(201, &LONG.to_string());
    let cut = with_body("k", pieces([data(long(0).slice(..90 * 1024)), broken()]));
    orders.send(cut).await.assert_problem(400, "incomplete_body");
    orders.send(long_order(&long(0))).await.assert_replay(201, &LONG.to_string());
}

#[tokio::test]
async fn f4_a_long_duplicate_of_what_is_in_flight_is_answered_unread() {
    let store = store();
    let layer = layer(&store).on_in_flight(OnInFlight::wait(Duration::from_secs(60)));
    let orders = measuring(&layer.build().unwrap());
    let (upload, body) = pipe();
    upload.data(long(0));
    let first = orders.spawn(with_body("k", body));
    orders.ran(1).await;
    let (duplicate, body) = pipe();
    duplicate.data(long(0));
    // It would wait for ever for the rest.
    let answer = orders.send(with_body("k", body)).await;
    answer.assert_problem(409, "in_progress");
    assert_eq!(answer.headers["retry-after"], "1");
    // A short one is at hand, and may wait; then it turns out to be another request.
    let short = orders.spawn(order("k", "short"));
    store.script().called(retrysafe_testkit::Verb::Changed, 1).await;
    drop(upload);
    first.await.unwrap().assert_first(201, &LONG.to_string());
    short.await.unwrap().assert_problem(422, "key_reused");
}

#[tokio::test]
async fn f4_an_ignored_body_is_ignored_at_any_length() {
    let layer = layer(&store())
        .fingerprint(Fingerprinter::body_ignored())
        .on_in_flight(OnInFlight::Reject)
        .build()
        .unwrap();
    let gate = Gate::closed();
    let orders = Guarded::gated(&layer, &gate);
    let first = orders.spawn(long_order(&long(0)));
    orders.ran(1).await;
    for duplicate in [long_order(&long(1)), order("k", "short")] {
        orders.send(duplicate).await.assert_problem(409, "in_progress");
    }
    gate.open();
    first.await.unwrap().assert_first(201, "order 1");
    orders.send(long_order(&long(1))).await.assert_replay(201, "order 1");
    orders.send(order("k", "short")).await.assert_replay(201, "order 1");
}

#[tokio::test]
async fn f4_a_crashed_upload_is_taken_over() {
    let store = store();
    let orders = measuring(&layer(&store).build().unwrap());
    let cut = with_body("k", pieces([data(long(0)), broken()]));
    assert_eq!(orders.send(cut).await.status, 400);
    orders.send(long_order(&long(0))).await.assert_first(201, &LONG.to_string());
    orders.send(long_order(&long(0))).await.assert_replay(201, &LONG.to_string());
    assert_eq!(entry(&store, "k").await.unwrap().attempt, 2);
}

#[tokio::test]
async fn f4_a_body_that_breaks_off_while_the_outcome_is_judged_is_not_kept() {
    // Something else than the handler reads it, so nobody knows when that comes upon its end.
    let (pipe, body) = pipe();
    let given = Arc::new(Mutex::new(None));
    let (read, store) = (given.clone(), store());
    pipe.data("an order");
    let pipe = Mutex::new(Some(pipe));
    let judged = OutcomePolicy::custom(move |_| {
        pipe.lock().unwrap().take().unwrap().break_off();
        let mut body: RequestBody<Body> = read.lock().unwrap().take().unwrap();
        while let Some(Ok(_)) = body.frame().now_or_never().unwrap() {}
        Disposition::Keep
    });
    let layer = layer(&store).outcomes(judged).settings(|it| it.inline_body = 4).build().unwrap();
    let orders = Guarded::new(&layer, move |run, request: Given| {
        *given.lock().unwrap() = Some(request.into_body());
        async move { created(run) }
    });
    orders.send(with_body("k", body)).await.assert_first(201, "order 1");
    assert_eq!(state(&store, "k").await, "lapsed");
}

#[tokio::test]
async fn f4_a_retry_where_less_is_read_ahead_is_compared_as_far_as_the_first() {
    // A release that lowers `inline_body`.
    let store = store();
    let reads_ahead = |most| {
        let layer = layer(&store).settings(|it| it.inline_body = most).build().unwrap();
        Guarded::new(&layer, move |_, request: Given| async move {
            let read = read(request).await.unwrap();
            if most > 4 {
                return status(500);
            }
            Response::builder().status(201).body(body(read)).unwrap()
        })
    };
    let (before, after) = (reads_ahead(64), reads_ahead(4));
    before.send(order("k", "an order")).await.assert_first(500, "answer");
    for other in ["an 0rder", "an order, and more", "an or"] {
        after.send(order("k", other)).await.assert_problem(422, "key_reused");
    }
    let broken = pieces([data("an or"), data("d"), broken()]);
    after.send(with_body("k", broken)).await.assert_problem(400, "incomplete_body");
    after.send(order("k", "an order")).await.assert_first(201, "an order");
    after.send(order("k", "an order")).await.assert_replay(201, "an order");
    assert_eq!(after.runs(), 1);
}

#[tokio::test]
async fn f4_trailers_of_a_request_reach_the_handler() {
    let (_, layer) = default_layer();
    let orders = Guarded::new(&layer, |_, request: Given| async move {
        let collected = request.into_body().collect().await.unwrap();
        let sum = collected.trailers().unwrap()["x-sum"].clone();
        Response::builder().header("x-sum", sum).body(empty()).unwrap()
    });
    for (key, length) in [("short", 10), ("long", LONG)] {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-sum", "7".parse().unwrap());
        let request =
            with_body(key, pieces([data(vec![1; length]), Ok(Frame::trailers(trailers))]));
        assert_eq!(orders.send(request).await.headers["x-sum"], "7", "{key}");
    }
}
