//! The list of methods (G1).

use prost::Message as _;
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    MethodDescriptorProto, ServiceDescriptorProto, field_descriptor_proto::Type,
};
use retrysafe_tonic::UnaryMethods;

use crate::support::{
    ledger::{DESCRIPTORS, TransferRequest, ledger_server::LedgerServer},
    *,
};

#[test]
fn g1_a_list_that_can_not_be_meant_is_refused() {
    let nothing: [&str; 0] = [];
    assert_eq!(UnaryMethods::named(nothing).unwrap_err().setting(), "methods");
    assert!(UnaryMethods::described(DESCRIPTORS, nothing).is_err());
    for bad in ["", "Transfer", "/ledger.v1.Ledger/Transfer", "ledger.v1.Ledger/", "a/b/c", "*/*"] {
        assert!(UnaryMethods::named([bad]).is_err(), "{bad}");
    }
    for good in [TRANSFER, "Ledger/Transfer", "_a.B_2/c3"] {
        assert!(UnaryMethods::named([good]).is_ok(), "{good}");
    }
}

#[test]
fn g1_a_descriptor_set_knows_what_streams_and_what_there_is() {
    assert!(UnaryMethods::described(DESCRIPTORS, [TRANSFER, "ledger.v1.Ledger/Count"]).is_ok());
    for (bad, said) in [
        (WATCH, "streams"),
        ("ledger.v1.Ledger/Transfers", "knows no method"),
        ("ledger.v2.Ledger/Transfer", "knows no method"),
        ("Ledger/Transfer", "knows no method"),
    ] {
        let error = UnaryMethods::described(DESCRIPTORS, [TRANSFER, bad]).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
    assert!(UnaryMethods::described(b"\xff", [TRANSFER]).is_err());
}

#[test]
fn g1_whatever_streams_is_refused_without_a_package_too() {
    let method = |name: &str, client, server| MethodDescriptorProto {
        name: Some(name.to_owned()),
        input_type: Some(".Outer.Inner".to_owned()),
        client_streaming: Some(client),
        server_streaming: Some(server),
        ..Default::default()
    };
    let inner = DescriptorProto {
        name: Some("Inner".to_owned()),
        field: vec![FieldDescriptorProto {
            name: Some("id".to_owned()),
            number: Some(7),
            r#type: Some(Type::String as i32),
            ..Default::default()
        }],
        ..Default::default()
    };
    let outer = DescriptorProto {
        name: Some("Outer".to_owned()),
        nested_type: vec![inner],
        ..Default::default()
    };
    let service = ServiceDescriptorProto {
        name: Some("S".to_owned()),
        method: vec![
            method("Unary", false, false),
            method("Up", true, false),
            method("Down", false, true),
            method("Both", true, true),
        ],
        ..Default::default()
    };
    let file = FileDescriptorProto {
        message_type: vec![outer],
        service: vec![service],
        ..Default::default()
    };
    let set = FileDescriptorSet { file: vec![file] }.encode_to_vec();
    let unary = UnaryMethods::described(&set, ["S/Unary"]).unwrap();
    assert!(unary.key_field("id").is_ok());
    for streams in ["S/Up", "S/Down", "S/Both"] {
        assert!(UnaryMethods::described(&set, [streams]).is_err(), "{streams}");
    }
}

#[test]
fn g2_a_key_field_that_matches_nothing_is_refused() {
    let methods = || UnaryMethods::described(DESCRIPTORS, [TRANSFER]).unwrap();
    assert!(methods().key_field("request_id").is_ok());
    for bad in ["request", "amount", ""] {
        assert!(methods().key_field(bad).is_err(), "{bad}");
    }
    let unknown = UnaryMethods::of::<LedgerServer<TestLedger>>(["Transfer"]).unwrap();
    assert!(unknown.clone().key_field("request_id").is_err());
    let find = |request: &TransferRequest| request.request_id.clone();
    assert!(unknown.key_from("ledger.v1.Ledger/Count", find).is_err());
    let both = UnaryMethods::described(DESCRIPTORS, [TRANSFER, "ledger.v1.Ledger/Count"]).unwrap();
    assert!(both.key_field("request_id").is_err(), "Count has none");
}

#[tokio::test]
async fn g1_what_is_not_listed_passes_through() {
    let (store, layer) = default_layer();
    let ledger = TestLedger::counting();
    let mut client = ledger.behind(&layer).0;
    let mut request = tonic::Request::new(ledger::CountRequest {});
    request.metadata_mut().insert("idempotency-key", "k".parse().unwrap());
    assert_eq!(client.count(request).await.unwrap().into_inner().count, 0);
    assert_eq!(state(&store, "k").await, "absent");
}
