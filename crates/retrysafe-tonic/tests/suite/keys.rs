//! Where the key of a call comes from (G2).

use retrysafe_tonic::UnaryMethods;
use tonic::{Code, Request};
use tower::ServiceExt as _;

use crate::support::{
    ledger::{DESCRIPTORS, TransferRequest},
    *,
};

fn request(key: Option<&str>, request_id: &str) -> Request<TransferRequest> {
    let mut request = match key {
        Some(key) => keyed(key, 1),
        None => bare(1),
    };
    request.get_mut().request_id = request_id.to_owned();
    request
}

/// The two ways to say where the field is.
fn described() -> UnaryMethods {
    UnaryMethods::described(DESCRIPTORS, [TRANSFER]).unwrap().key_field("request_id").unwrap()
}

fn generated() -> UnaryMethods {
    let find = |request: &TransferRequest| request.request_id.clone();
    UnaryMethods::named([TRANSFER]).unwrap().key_from(TRANSFER, find).unwrap()
}

#[tokio::test]
async fn g2_metadata_or_field_or_both_and_equal() {
    for methods in [described(), generated()] {
        let ledger = TestLedger::counting();
        let client = ledger.behind(&covering(&store(), methods).build().unwrap());
        assert_first(&client.send(request(None, "a")).await, "transfer 1");
        assert_replay(&client.send(request(None, "a")).await, "transfer 1");
        // The same key in both places is one key.
        assert_replay(&client.send(request(Some("a"), "a")).await, "transfer 1");
        assert_first(&client.send(request(Some("b"), "")).await, "transfer 2");
        assert_replay(&client.send(request(Some("b"), "")).await, "transfer 2");
        // No key at all.
        assert_first(&client.send(request(None, "")).await, "transfer 3");
        assert_first(&client.send(request(None, "")).await, "transfer 4");
    }
}

#[tokio::test]
async fn g2_both_and_unequal_is_an_invalid_argument() {
    for methods in [described(), generated()] {
        let ledger = TestLedger::counting();
        let client = ledger.behind(&covering(&store(), methods).build().unwrap());
        let status = client.refused(request(Some("a"), "b")).await;
        assert_problem(&status, Code::InvalidArgument, "INVALID_KEY");
        let status = client.refused(request(None, "caf\u{e9}")).await;
        assert_problem(&status, Code::InvalidArgument, "INVALID_KEY");
        assert_eq!(ledger.runs.get(), 0);
    }
}

#[tokio::test]
async fn g2_a_request_in_which_no_key_can_be_looked_for_is_refused() {
    for methods in [described(), generated()] {
        let layer = covering(&store(), methods).build().unwrap();
        let (service, runs) = raw(&layer, |_| unreachable!("it must not run"));
        let compressed = [&[1][..], &frame(b"\x1f\x8b")[1..]].concat();
        for body in [
            pieces([data(compressed)]),
            pieces([data(frame(b"\x0a\x05ab"))]),
            pieces([data(frame(b"\x0a\x01a")), data(frame(b"\x0a\x01b"))]),
            pieces([]),
        ] {
            let answer = call(&service, raw_request("a", body)).await;
            assert_eq!(answer.headers["grpc-status"], "3");
        }
        assert_eq!(runs.get(), 0);
    }
}

#[tokio::test]
async fn g2_a_large_message_is_read_for_its_key() {
    let ledger = TestLedger::counting();
    let client = ledger.behind(&covering(&store(), described()).build().unwrap());
    let large = |size: usize| {
        let mut request = request(None, "a");
        request.get_mut().from_account = "a".repeat(size);
        request
    };
    assert_first(&client.send(large(3 << 20)).await, "transfer 1");
    assert_replay(&client.send(large(3 << 20)).await, "transfer 1");
    let status = client.refused(large(5 << 20)).await;
    assert_problem(&status, Code::InvalidArgument, "MISSING_KEY");
    assert_eq!(ledger.runs.get(), 1);
}

#[tokio::test]
async fn g2_a_method_without_the_field_keeps_its_metadata() {
    let methods = described().and(UnaryMethods::named(["ledger.v1.Ledger/Other"]).unwrap());
    let layer = covering(&store(), methods).build().unwrap();
    let (service, runs) = raw(&layer, |_| tonic::Status::not_found("").into_http());
    for (key, message) in [("a", b"not protobuf".to_vec()), ("b", vec![0; 5 << 20])] {
        let before = runs.get();
        for _ in 0..2 {
            let mut request = raw_request(key, pieces([data(frame(&message))]));
            *request.uri_mut() = "/ledger.v1.Ledger/Other".parse().unwrap();
            service.clone().oneshot(request).await.unwrap();
        }
        assert_eq!(runs.get(), before + 1, "{key}");
    }
}
