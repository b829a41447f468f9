//! What is kept, and that it comes back as it was (G4).

use prost::Message as _;
use retrysafe_tonic::{OnUnknownOutcome, OutcomePolicy, Reconciled, grpc, happened};
use tonic::{
    Code, Response, Status,
    body::Body,
    metadata::{Ascii, Binary, MetadataMap, MetadataValue},
};

use crate::support::{ledger::TransferReply, *};

/// What becomes of the record, for every status of gRPC.
const TABLE: [(Code, &str); 17] = [
    (Code::Ok, "finished"),
    (Code::Cancelled, "lapsed"),
    (Code::Unknown, "lapsed"),
    (Code::InvalidArgument, "finished"),
    (Code::DeadlineExceeded, "lapsed"),
    (Code::NotFound, "finished"),
    (Code::AlreadyExists, "finished"),
    (Code::PermissionDenied, "released"),
    (Code::ResourceExhausted, "released"),
    (Code::FailedPrecondition, "finished"),
    (Code::Aborted, "released"),
    (Code::OutOfRange, "finished"),
    (Code::Unimplemented, "released"),
    (Code::Internal, "lapsed"),
    (Code::Unavailable, "lapsed"),
    (Code::DataLoss, "lapsed"),
    (Code::Unauthenticated, "released"),
];

/// The second of two tries, after a first that came to `expected`.
#[track_caller]
fn assert_second(expected: &str, runs: usize, second: &Answer, number: &str) {
    let status = |answer: &Answer| {
        let trailers = answer.trailers.as_ref();
        trailers.unwrap_or(&answer.headers)["grpc-status"].to_str().unwrap().to_owned()
    };
    match expected {
        "finished" => {
            assert_eq!((runs, status(second).as_str()), (1, number));
            assert_eq!(second.headers["idempotent-replayed"], "true");
        }
        "released" => {
            assert_eq!((runs, status(second).as_str()), (2, number));
            assert!(!second.headers.contains_key("idempotent-replayed"));
        }
        _ => assert_eq!((runs, status(second).as_str()), (1, "10"), "outcome unknown"),
    }
}

#[tokio::test]
async fn g4_the_status_decides_trailers_only() {
    for (code, expected) in TABLE {
        let store = store();
        let layer = layer(&store).on_unknown_outcome(OnUnknownOutcome::Refuse).build().unwrap();
        let (service, runs) = raw(&layer, move |_| Status::new(code, "so it is").into_http());
        let request = || raw_request("k", pieces([data(frame(b"one"))]));
        let number = (code as i32).to_string();
        let first = call(&service, request()).await;
        assert_eq!(first.headers["grpc-status"], *number);
        assert_eq!(state(&store, "k").await, expected, "{code:?}");
        let second = call(&service, request()).await;
        assert_second(expected, runs.get(), &second, &number);
        assert!(second.ends_with_head && second.trailers.is_none(), "its shape survives");
    }
}

#[tokio::test]
async fn g4_the_status_decides_in_the_trailers() {
    for (code, expected) in TABLE {
        let store = store();
        let layer = layer(&store).on_unknown_outcome(OnUnknownOutcome::Refuse).build().unwrap();
        let number = (code as i32).to_string();
        let said: &'static str = number.clone().leak();
        let (service, runs) = raw(&layer, move |_| {
            // A status in the headers is not the last word.
            http::Response::builder()
                .header("content-type", "application/grpc")
                .header("grpc-status", "2")
                .body(pieces([data(frame(b"reply")), trailers(&[("grpc-status", said)])]))
                .unwrap()
        });
        let request = || raw_request("k", pieces([data(frame(b"one"))]));
        let first = call(&service, request()).await;
        assert_eq!(first.trailers.as_ref().unwrap()["grpc-status"], *number);
        assert_eq!(state(&store, "k").await, expected, "{code:?}");
        let second = call(&service, request()).await;
        assert_second(expected, runs.get(), &second, &number);
        if expected == "finished" {
            assert_eq!((second.body, second.trailers), (first.body, first.trailers));
        }
    }
}

#[tokio::test]
async fn g4_no_status_that_can_be_read_is_ambiguous() {
    let answers: [fn() -> Body; 5] = [
        || Body::empty(),
        || pieces([data(frame(b"reply"))]),
        || pieces([data(frame(b"reply")), trailers(&[("other", "0")])]),
        || pieces([trailers(&[("grpc-status", "seventeen")])]),
        || pieces([trailers(&[("grpc-status", "0"), ("grpc-status", "13")])]),
    ];
    for (number, answer) in answers.into_iter().enumerate() {
        let store = store();
        let layer = layer(&store).on_unknown_outcome(OnUnknownOutcome::Refuse).build().unwrap();
        let (service, _) = raw(&layer, move |_| http::Response::new(answer()));
        call(&service, raw_request("k", pieces([data(frame(b"one"))]))).await;
        assert_eq!(state(&store, "k").await, "lapsed", "{number}");
    }
}

#[tokio::test]
async fn g4_trailers_and_binary_metadata_survive_a_replay() {
    let (_, layer) = default_layer();
    let (service, runs) = raw(&layer, |_| {
        let end = trailers(&[
            ("grpc-status", "0"),
            ("grpc-message", "na%C3%AFve"),
            ("checksum-bin", "AP8Q"),
            ("part", "1"),
            ("part", "2"),
        ]);
        http::Response::builder()
            .header("content-type", "application/grpc+proto")
            .header("trace-bin", "/wAB")
            .header("link", "<a>")
            .header("link", "<b>")
            .body(pieces([data(frame(b"\x00\xff")), end]))
            .unwrap()
    });
    let request = || raw_request("k", pieces([data(frame(b"one"))]));
    let first = call(&service, request()).await;
    let mut replay = call(&service, request()).await;
    assert_eq!(replay.headers.remove("idempotent-replayed").unwrap(), "true");
    assert_eq!(replay.headers, first.headers, "and no trailers are announced");
    assert_eq!((replay.body, replay.trailers), (first.body, first.trailers));
    assert_eq!(runs.get(), 1);
}

#[tokio::test]
async fn g4_a_handlers_metadata_and_details_survive_a_replay() {
    let (_, layer) = default_layer();
    let failing = TestLedger::new(|_, _| async {
        let mut metadata = MetadataMap::new();
        metadata.insert("account", MetadataValue::<Ascii>::from_static("closed"));
        metadata.insert_bin("proof-bin", MetadataValue::<Binary>::from_bytes(b"\x00\xff"));
        let details = bytes::Bytes::from_static(b"\x08\x05");
        let code = Code::FailedPrecondition;
        Err(Status::with_details_and_metadata(code, "naïve: 100 %", details, metadata))
    });
    let client = failing.behind(&layer);
    for replayed in [false, true] {
        let status = client.refused(keyed("k", 1)).await;
        assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "naïve: 100 %"));
        assert_eq!(status.details(), b"\x08\x05");
        assert_eq!(status.metadata().get("account").unwrap(), "closed");
        let proof = status.metadata().get_bin("proof-bin").unwrap().to_bytes().unwrap();
        assert_eq!(&proof[..], b"\x00\xff");
        assert_eq!(status.metadata().contains_key("idempotent-replayed"), replayed);
    }
    assert_eq!(failing.runs.get(), 1);

    let answering = TestLedger::new(|_, _| async {
        let mut response = Response::new(TransferReply { transfer_id: "\u{0}ï".to_owned() });
        let proof = MetadataValue::<Binary>::from_bytes(b"\xff");
        response.metadata_mut().insert_bin("proof-bin", proof);
        Ok(response)
    });
    let client = answering.behind(&layer);
    let first = client.transfer("other").await.unwrap();
    let replay = client.transfer("other").await;
    assert_replay(&replay, "\u{0}ï");
    let proof = replay.unwrap();
    assert_eq!(proof.metadata().get_bin("proof-bin"), first.metadata().get_bin("proof-bin"));
}

#[tokio::test]
async fn g4_the_handler_is_asked_for_uncompressed_messages() {
    let (_, layer) = default_layer();
    let ledger = TestLedger::counting();
    let server = ledger.server().send_compressed(tonic::codec::CompressionEncoding::Gzip);
    let service = Service::new(tower::Layer::layer(&layer, server));
    let zipping = Client(
        Client::of(service.clone()).0.accept_compressed(tonic::codec::CompressionEncoding::Gzip),
    );
    // An uncovered call is none of our business.
    let count = zipping.0.clone().count(ledger::CountRequest {}).await.unwrap();
    assert_eq!(count.metadata().get("grpc-encoding").unwrap(), "gzip");

    let first = zipping.transfer("k").await;
    assert_first(&first, "transfer 1");
    assert!(!first.unwrap().metadata().contains_key("grpc-encoding"));
    // This one could not have read it.
    assert_replay(&Client::of(service).transfer("k").await, "transfer 1");
}

/// Behind a message a client looks for the status in the trailers, so that is where it is, however the
/// answer was made.
#[tokio::test]
async fn d3_g4_what_was_reconciled_ends_in_trailers() {
    fn reply() -> TransferReply {
        TransferReply { transfer_id: "transfer 1".to_owned() }
    }
    fn by_hand() -> Reconciled {
        let answer = http::Response::builder().header("content-type", "application/grpc");
        let answer = answer.header("grpc-status", "0");
        Reconciled::Happened(answer.body(frame(&reply().encode_to_vec())).unwrap())
    }
    let answers: [fn() -> Reconciled; 2] = [|| happened(&reply()), by_hand];
    for answer in answers {
        let store = store();
        let look = OnUnknownOutcome::reconcile(move |_| async move { answer() });
        let layer = layer(&store).on_unknown_outcome(look).build().unwrap();
        let ledger =
            TestLedger::new(|_, _| async { Err(Status::unavailable("booked, and not told")) });
        let client = ledger.behind(&layer);
        client.transfer("k").await.unwrap_err();
        for _ in 0..2 {
            assert_replay(&client.transfer("k").await, "transfer 1");
        }
        assert_eq!((state(&store, "k").await, ledger.runs.get()), ("finished", 1));
    }
}

/// One without a message stays Trailers-Only.
#[tokio::test]
async fn d3_g4_a_status_that_was_reconciled_is_trailers_only() {
    let store = store();
    let look = OnUnknownOutcome::reconcile(|_| async {
        Reconciled::Happened(Status::not_found("no such account").into_http())
    });
    let layer = layer(&store).on_unknown_outcome(look).build().unwrap();
    let (service, runs) = raw(&layer, |_| Status::unavailable("").into_http());
    let request = || raw_request("k", pieces([data(frame(b"one"))]));
    call(&service, request()).await;
    for _ in 0..2 {
        let answer = call(&service, request()).await;
        assert_eq!(answer.headers["grpc-status"], "5");
        assert_eq!(answer.headers["idempotent-replayed"], "true");
        assert!(answer.ends_with_head && answer.trailers.is_none());
    }
    assert_eq!(runs.get(), 1);
}

#[tokio::test]
async fn g4_a_policy_of_ones_own_goes_by_the_grpc_status() {
    let store = store();
    let builder =
        layer(&store).outcomes(OutcomePolicy::custom(|head| match grpc::Status::of(head) {
            Some(grpc::Status::NotFound) => retrysafe_tonic::Disposition::Release,
            _ => grpc::judge(head),
        }));
    let ledger = TestLedger::new(|_, _| async { Err(Status::not_found("not yet")) });
    let client = ledger.behind(&builder.build().unwrap());
    client.refused(keyed("k", 1)).await;
    client.refused(keyed("k", 1)).await;
    assert_eq!(ledger.runs.get(), 2);
}

#[test]
fn g4_a_policy_that_goes_by_an_http_status_is_refused() {
    for policy in [OutcomePolicy::Standard, OutcomePolicy::Stripe, OutcomePolicy::SuccessOnly] {
        let error = layer(&store()).outcomes(policy).build().unwrap_err();
        assert_eq!(error.setting(), "outcomes");
    }
}
