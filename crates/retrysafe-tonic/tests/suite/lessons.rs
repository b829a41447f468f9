//! The mistakes of released systems that apply to this door, by name.

use retrysafe_tonic::{Scope, ScopeFrom, UnaryMethods};
use tonic::{Code, Status};

use crate::support::*;

#[tokio::test]
async fn quoted_key_differs() {
    let (_, layer) = default_layer();
    let ledger = TestLedger::counting();
    let client = ledger.behind(&layer);
    assert_first(&client.transfer("k").await, "transfer 1");
    let quoted = with_metadata(&[("idempotency-key", b"\"k\"")]);
    assert_replay(&client.send(quoted).await, "transfer 1");
}

#[tokio::test]
async fn other_path_replays() {
    // The same key on another method got the first one's answer.
    let store = store();
    let methods = UnaryMethods::named([TRANSFER, "ledger.v1.Ledger/Count"]).unwrap();
    let layer = covering(&store, methods).build().unwrap();
    let client = TestLedger::counting().behind(&layer);
    assert_first(&client.send(keyed("k", 0)).await, "transfer 1");
    let mut request = tonic::Request::new(ledger::CountRequest {});
    request.metadata_mut().insert("idempotency-key", "k".parse().unwrap());
    let status = client.0.clone().count(request).await.unwrap_err();
    assert_problem(&status, Code::FailedPrecondition, "KEY_REUSED");
}

#[tokio::test]
async fn cross_tenant_replay() {
    let scope = ScopeFrom::function(|head| {
        head.headers.get("x-tenant").map(|tenant| Scope::from_bytes(tenant.as_bytes()))
    });
    let methods = UnaryMethods::named([TRANSFER]).unwrap();
    let layer = retrysafe_tonic::IdempotencyLayer::builder(store(), scope, methods);
    let client = TestLedger::counting().behind(&layer.build().unwrap());
    let of =
        |tenant: &'static [u8]| with_metadata(&[("idempotency-key", b"k"), ("x-tenant", tenant)]);
    assert_first(&client.send(of(b"a")).await, "transfer 1");
    assert_first(&client.send(of(b"b")).await, "transfer 2");
    assert_replay(&client.send(of(b"a")).await, "transfer 1");
}

#[tokio::test]
async fn long_key_unprotected() {
    let (_, layer) = default_layer();
    let ledger = TestLedger::counting();
    let long = with_metadata(&[("idempotency-key", &[b'k'; 256])]);
    let status = ledger.behind(&layer).refused(long).await;
    assert_problem(&status, Code::InvalidArgument, "INVALID_KEY");
    assert_eq!(ledger.runs.get(), 0);
}

#[tokio::test]
async fn cached_500() {
    // Every answer of gRPC is a 200: kept by that, a failure made every retry useless.
    let (_, layer) = default_layer();
    let ledger = TestLedger::new(|run, _| async move {
        match run {
            1 => Err(Status::unavailable("try again")),
            _ => transferred(run),
        }
    });
    let client = ledger.behind(&layer);
    assert_eq!(client.refused(keyed("k", 1)).await.code(), Code::Unavailable);
    assert_first(&client.transfer("k").await, "transfer 2");
    assert_replay(&client.transfer("k").await, "transfer 2");
}

#[tokio::test]
async fn a_client_that_says_other_things_around_the_call_is_the_same_client() {
    // `grpc-timeout` shrinks with every retry, and gRPC counts them in metadata.
    let (_, layer) = default_layer();
    let ledger = TestLedger::counting();
    let client = ledger.behind(&layer);
    assert_first(&client.transfer("k").await, "transfer 1");
    let mut retry = with_metadata(&[
        ("idempotency-key", b"k"),
        ("grpc-timeout", b"900m"),
        ("grpc-previous-rpc-attempts", b"1"),
        ("te", b"trailers"),
        ("user-agent", b"another"),
    ]);
    retry.set_timeout(std::time::Duration::from_secs(3));
    assert_replay(&client.send(retry).await, "transfer 1");
}
