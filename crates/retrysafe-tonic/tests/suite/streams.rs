//! Methods that stream, messages that are large, and lists that are wrong about a method (G1, R4).

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body_util::BodyExt as _;
use retrysafe_tonic::UnaryMethods;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Request, Status, body::Body};
use tower::{Layer as _, service_fn};

use crate::support::{
    ledger::{TransferReply, WatchRequest},
    *,
};

fn watch(key: &'static str) -> Request<WatchRequest> {
    let mut request = Request::new(WatchRequest {});
    request.metadata_mut().insert("idempotency-key", key.parse().unwrap());
    request
}

fn item(id: &str) -> Result<TransferReply, Status> {
    Ok(TransferReply { transfer_id: id.to_owned() })
}

#[tokio::test]
async fn g1_a_stream_passes_through() {
    let (store, layer) = default_layer();
    let ledger = TestLedger::counting()
        .watching(|run| Box::pin(stream::iter([item(&format!("watch {run}")), item("end")])));
    let mut client = ledger.behind(&layer).0;
    for run in ["watch 1", "watch 2"] {
        let items = client.watch(watch("k")).await.unwrap().into_inner();
        let items: Vec<_> = items.map(|it| it.unwrap().transfer_id).collect().await;
        assert_eq!(items, [run, "end"]);
    }
    assert_eq!(state(&store, "k").await, "absent");
}

/// `Watch` is on the list, without a descriptor set that would have known better.
fn wrongly_listed() -> (TestStore, TestLayer) {
    let store = store();
    let layer = covering(&store, UnaryMethods::named([WATCH]).unwrap()).build().unwrap();
    (store, layer)
}

#[tokio::test]
async fn g1_a_listed_method_that_streams_runs_once_and_does_not_hang() {
    let (store, layer) = wrongly_listed();
    let (sender, receiver) = mpsc::unbounded_channel();
    let receiver = std::sync::Mutex::new(Some(receiver));
    let ledger = TestLedger::counting().watching(move |_| {
        let receiver = receiver.lock().unwrap().take().expect("it runs once");
        Box::pin(UnboundedReceiverStream::new(receiver))
    });
    let mut client = ledger.behind(&layer).0;
    // Its items come as they are made.
    let mut items = client.watch(watch("k")).await.unwrap().into_inner();
    sender.send(item("one")).unwrap();
    assert_eq!(items.message().await.unwrap().unwrap().transfer_id, "one");
    sender.send(item("two")).unwrap();
    assert_eq!(items.message().await.unwrap().unwrap().transfer_id, "two");
    let status = client.watch(watch("k")).await.unwrap_err();
    assert_problem(&status, Code::Aborted, "IN_PROGRESS");
    // At its clean end it is kept, and replayed.
    drop(sender);
    assert_eq!(items.message().await.unwrap(), None);
    assert_eq!(state(&store, "k").await, "finished");
    let replay = client.watch(watch("k")).await.unwrap();
    assert_eq!(replay.metadata().get("idempotent-replayed").unwrap(), "true");
    let items: Vec<_> = replay.into_inner().map(|it| it.unwrap().transfer_id).collect().await;
    assert_eq!(items, ["one", "two"]);
    assert_eq!(ledger.runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn e2_a_listed_stream_that_never_ends_is_run_again_after_its_lease() {
    let (_, layer) = wrongly_listed();
    let ledger = TestLedger::counting()
        .watching(|run| Box::pin(stream::iter([item(&run.to_string())]).chain(stream::pending())));
    let mut client = ledger.behind(&layer).0;
    let mut first = client.watch(watch("k")).await.unwrap().into_inner();
    assert_eq!(first.message().await.unwrap().unwrap().transfer_id, "1");
    // `max_execution`.
    tokio::time::sleep(Duration::from_secs(600)).await;
    let status = client.watch(watch("k")).await.unwrap_err();
    assert_problem(&status, Code::Aborted, "IN_PROGRESS");
    // And a lease.
    tokio::time::sleep(Duration::from_secs(31)).await;
    let mut second = client.watch(watch("k")).await.unwrap().into_inner();
    assert_eq!(second.message().await.unwrap().unwrap().transfer_id, "2");
    assert_eq!(ledger.runs.get(), 2);
}

#[tokio::test]
async fn g4_a_stream_that_fails_is_ambiguous() {
    let (store, layer) = wrongly_listed();
    let ledger = TestLedger::counting().watching(|_| {
        let failed = stream::iter([item("one"), Err(Status::internal("half done"))]);
        // Not at hand at once.
        Box::pin(stream::once(tokio::task::yield_now()).flat_map(move |()| failed.clone()))
    });
    let mut client = ledger.behind(&layer).0;
    let mut items = client.watch(watch("k")).await.unwrap().into_inner();
    assert_eq!(items.message().await.unwrap().unwrap().transfer_id, "one");
    assert_eq!(items.message().await.unwrap_err().code(), Code::Internal);
    assert_eq!(state(&store, "k").await, "lapsed");
}

#[tokio::test(start_paused = true)]
async fn g1_a_request_that_stays_open_is_refused_before_it_runs() {
    // A client that streams, and waits for an answer before it goes on.
    let (store, layer) = default_layer();
    let (service, runs) = raw(&layer, |_| unreachable!("it must not run"));
    for body in [open([]), open([data(frame(b"one"))]), open([data(frame(b"")), data(frame(b""))])]
    {
        let answer = call(&service, raw_request("k", body)).await;
        assert_eq!(answer.headers["grpc-status"], "3");
    }
    assert_eq!((state(&store, "k").await, runs.get()), ("absent", 0));
}

#[tokio::test(start_paused = true)]
async fn g1_a_long_request_that_stays_open_is_the_handlers_to_wait_for() {
    let (store, layer) = default_layer();
    let runs = Count::default();
    let counted = runs.clone();
    let inner = service_fn(move |request: http::Request<Body>| {
        let counted = counted.clone();
        async move {
            let mut body = request.into_body();
            assert!(body.frame().await.unwrap().unwrap().is_data());
            tokio::time::sleep(Duration::from_secs(60)).await;
            counted.more();
            Ok::<_, Infallible>(Status::not_found("").into_http::<Body>())
        }
    });
    let service = Service::new(layer.layer(inner));
    // F4: nor is its retry, which is compared by as much as the method was given.
    for _ in 0..2 {
        let body = open([data(frame(&[7; 100 * 1024]))]);
        let answer = call(&service, raw_request("k", body));
        let answer = tokio::time::timeout(Duration::from_secs(3600), answer).await.unwrap();
        assert_eq!(answer.headers["grpc-status"], "5");
        assert_eq!((state(&store, "k").await, runs.get()), ("finished", 1));
    }
}

#[tokio::test(start_paused = true)]
async fn g1_a_slow_message_is_waited_for() {
    let (_, layer) = default_layer();
    let (service, runs) = raw(&layer, |_| Status::not_found("").into_http());
    let slowly = stream::iter(frame(b"slow").to_vec()).enumerate().then(|(at, byte)| async move {
        // Longer than the patience between two messages.
        tokio::time::sleep(Duration::from_secs(if at == 0 { 9 } else { 60 })).await;
        Ok::<_, Status>(data(vec![byte]))
    });
    let body = Body::new(http_body_util::StreamBody::new(Box::pin(slowly)));
    let answer = call(&service, raw_request("k", body)).await;
    assert_eq!(answer.headers["grpc-status"], "5");
    assert_eq!(runs.get(), 1);
}

#[tokio::test]
async fn g1_a_request_of_several_messages_runs_once() {
    let (_, layer) = default_layer();
    let (service, runs) = raw(&layer, |_| Status::not_found("").into_http());
    let request =
        |last: &'static [u8]| raw_request("k", pieces([data(frame(b"one")), data(frame(last))]));
    assert_eq!(call(&service, request(b"two")).await.headers["grpc-status"], "5");
    let replay = call(&service, request(b"two")).await;
    assert_eq!(replay.headers["idempotent-replayed"], "true");
    assert_eq!(call(&service, request(b"three")).await.headers["grpc-status"], "9");
    assert_eq!(runs.get(), 1);
}

#[tokio::test]
async fn g1_a_message_that_the_server_refuses_to_read_does_not_run() {
    // Tonic's own limit: the handler is never called, and OUT_OF_RANGE is the answer for good.
    let (store, layer) = default_layer();
    let ledger = TestLedger::counting();
    let client = ledger.behind(&layer);
    let large = || {
        let mut request = keyed("k", 1);
        request.get_mut().from_account = "a".repeat(5 << 20);
        request
    };
    for replayed in [false, true] {
        let status = client.refused(large()).await;
        assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
        assert_eq!(status.metadata().contains_key("idempotent-replayed"), replayed);
    }
    assert_eq!((state(&store, "k").await, ledger.runs.get()), ("finished", 0));
}

#[tokio::test]
async fn oversize_reruns() {
    // A response over the cap was not stored, and the retry ran again.
    let store = store();
    let layer = layer(&store).settings(|it| it.max_kept_body = 1024).build().unwrap();
    let ledger = TestLedger::new(|_, _| async {
        Ok(tonic::Response::new(TransferReply { transfer_id: "a".repeat(4096) }))
    });
    let client = ledger.behind(&layer);
    assert_first(&client.transfer("k").await, &"a".repeat(4096));
    let status = client.refused(keyed("k", 1)).await;
    assert_problem(&status, Code::FailedPrecondition, "RESPONSE_UNAVAILABLE");
    assert_eq!(ledger.runs.get(), 1);
}

#[tokio::test]
async fn oversize_and_failed_is_ambiguous() {
    // Its status comes after all that was sent.
    let store = store();
    let layer = layer(&store).settings(|it| it.max_kept_body = 1024).build().unwrap();
    let (service, _) = raw(&layer, |_| {
        let large = data(frame(&[7; 4096]));
        http::Response::new(pieces([large, trailers(&[("grpc-status", "13")])]))
    });
    let answer = call(&service, raw_request("k", pieces([data(frame(b"one"))]))).await;
    assert_eq!((answer.body.len(), answer.trailers.unwrap().len()), (4101, 1));
    assert_eq!(state(&store, "k").await, "lapsed");
}

#[tokio::test]
async fn binary_body_lost() {
    let (_, layer) = default_layer();
    let every = Bytes::from_iter(0..=255);
    let answered = every.clone();
    let (service, _) = raw(&layer, move |_| {
        http::Response::new(pieces([data(frame(&answered)), trailers(&[("grpc-status", "0")])]))
    });
    for _ in 0..2 {
        let answer = call(&service, raw_request("k", pieces([data(frame(&every))]))).await;
        assert_eq!(answer.body, frame(&every));
    }
}
