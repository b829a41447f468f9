//! The interceptor that sets the key (C1).

use retrysafe_tonic::{IdempotencyKey, IdempotentRequest as _, KeyInterceptor};
use tonic::{Code, Request, service::Interceptor as _};

use crate::support::{ledger::ledger_client::LedgerClient, *};

fn key_of<T>(request: &Request<T>) -> &str {
    request.metadata().get("idempotency-key").unwrap().to_str().unwrap()
}

#[test]
fn c1_the_callers_own_key_is_never_overwritten() {
    let mut interceptor = KeyInterceptor::new();
    let mut request = Request::new(());
    request.metadata_mut().insert("idempotency-key", "mine".parse().unwrap());
    request.extensions_mut().insert(IdempotencyKey::new("other").unwrap());
    assert_eq!(key_of(&interceptor.call(request).unwrap()), "mine");
    let mut request = Request::new(());
    request.extensions_mut().insert(IdempotencyKey::new("two words").unwrap());
    assert_eq!(key_of(&interceptor.call(request).unwrap()), "\"two words\"");
}

#[test]
fn c1_a_fresh_key_is_a_uuid_of_its_own() {
    let mut interceptor = KeyInterceptor::new();
    let one = interceptor.call(Request::new(())).unwrap();
    let two = interceptor.call(Request::new(())).unwrap();
    assert_ne!(key_of(&one), key_of(&two));
    assert_eq!((key_of(&one).len(), &key_of(&one)[14..15]), (36, "4"));
}

#[test]
fn c1_other_metadata_stays() {
    let mut request = Request::new(());
    request.metadata_mut().append("part", "1".parse().unwrap());
    request.metadata_mut().append("part", "2".parse().unwrap());
    let request = request.with_key(&IdempotencyKey::new("a").unwrap());
    let request = request.with_key(&IdempotencyKey::new("b").unwrap());
    assert_eq!(key_of(&request), "b");
    assert_eq!(request.metadata().get_all("part").iter().count(), 2);
    assert_eq!(request.metadata().get_all("idempotency-key").iter().count(), 1);
}

#[tokio::test]
async fn client_new_key_per_try() {
    // A loop around the call needs a key that was made before it: one that forgets is stopped.
    let (_, layer) = default_layer();
    let ledger = TestLedger::counting();
    let service = Service::new(tower::Layer::layer(&layer, ledger.server()));
    let mut client = LedgerClient::with_interceptor(service.clone(), KeyInterceptor::required());
    let status = client.transfer(bare(1)).await.unwrap_err();
    assert_problem(&status, Code::InvalidArgument, "MISSING_KEY");
    assert_first(&client.transfer(keyed("k", 1)).await, "transfer 1");
    assert_replay(&client.transfer(keyed("k", 1)).await, "transfer 1");

    let mut client = LedgerClient::with_interceptor(service, KeyInterceptor::new());
    assert_first(&client.transfer(bare(1)).await, "transfer 2");
    assert_first(&client.transfer(bare(1)).await, "transfer 3");
    assert_replay(&client.transfer(keyed("k", 1)).await, "transfer 1");
}
