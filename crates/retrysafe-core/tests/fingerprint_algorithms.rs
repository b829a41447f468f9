//! A retry is compared with the record's own algorithm (F3), and keys change (F1).
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use http::{HeaderMap, HeaderName, HeaderValue};
use retrysafe_core::{Algorithm, Comparison, Fingerprinter, JsonPointer, Keyring, RequestHead};

fn whole(fingerprinter: &Fingerprinter, body: &str) -> retrysafe_core::Fingerprint {
    let headers = HeaderMap::new();
    let head = RequestHead { method: "POST", target: "/orders", headers: &headers };
    fingerprinter.whole(&head, body.as_bytes())
}

/// How a service compares a retry with a record that another configuration has written.
fn compare(now: &Fingerprinter, retry: &str, then: &Fingerprinter, first: &str) -> Comparison {
    let record = whole(then, first);
    match now.for_algorithm(record.algorithm) {
        Some(like_the_record) => whole(&like_the_record, retry).compare(&record),
        None => Comparison::Differs,
    }
}

fn without(pointers: &[&str]) -> Fingerprinter {
    let pointers = pointers.iter().map(|text| text.parse::<JsonPointer>().unwrap());
    Fingerprinter::json_without(pointers).unwrap()
}

fn keyring(ids: &[u8]) -> Keyring {
    let (first, rest) = ids.split_first().unwrap();
    rest.iter().fold(Keyring::new(*first, &[*first; 32]).unwrap(), |ring, id| {
        ring.and(*id, &[*id; 32]).unwrap()
    })
}

fn tenant() -> [HeaderName; 1] {
    [HeaderName::from_static("x-tenant")]
}

#[test]
fn f1_a_fingerprint_stays_what_it_was() {
    // By hand, as F1 says. Another one, and retries of what is kept would be refused.
    let mut headers = HeaderMap::new();
    headers.append("content-type", HeaderValue::from_static("Application/JSON; charset=utf-8"));
    let head = RequestHead { method: "POST", target: "/orders?draft=1", headers: &headers };
    let fingerprint = Fingerprinter::raw().whole(&head, b"{\"a\":1}");
    let kept = [
        "01000000",
        "57beb3d1f51f78e07aa28685d57d2c4aa40380083434f10eb322cc9121628e26",
        "00",
        "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862",
        "0000000000000007",
    ];
    let shown: String = fingerprint.encode().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(shown, kept.concat());
}

#[test]
fn f3_a_retry_of_a_body_that_fell_back_is_raw() {
    let json = Fingerprinter::json();
    for broken in ["{\"a\":1,}", "{\"a\":9007199254740993}", "{\"a\":1,\"a\":2}"] {
        assert_eq!(compare(&json, broken, &json, broken), Comparison::Same);
        // Valid JSON now, whatever it says, is not the same bytes.
        assert_eq!(compare(&json, "{\"a\":1}", &json, broken), Comparison::Differs);
        // Broken now, while the record is of canonical JSON.
        assert_eq!(compare(&json, broken, &json, "{\"a\":1}"), Comparison::Differs);
    }
    assert_eq!(compare(&json, "{ \"a\":1}", &json, "{\"a\":1}"), Comparison::Same);
}

#[test]
fn f3_modes_without_parameters_are_always_known() {
    let all = [
        Fingerprinter::raw(),
        Fingerprinter::json(),
        Fingerprinter::form(),
        Fingerprinter::multipart(),
        Fingerprinter::body_ignored(),
    ];
    let now = [
        without(&["/a"]).with_headers(tenant()),
        Fingerprinter::custom("mine", |_, body| body.to_vec()),
        Fingerprinter::raw().with_keyring(keyring(&[1])),
    ];
    for then in &all {
        for now in all.iter().chain(&now) {
            assert_eq!(compare(now, "{\"a\":1}", then, "{\"a\":1}"), Comparison::Same, "{then:?}");
            let other = compare(now, "{\"a\":2}", then, "{\"a\":1}");
            let ignored = then.algorithm() == Fingerprinter::body_ignored().algorithm();
            assert_eq!(other == Comparison::Same, ignored, "{then:?}");
        }
    }
}

#[test]
fn f3_parameters_are_known_if_they_are_the_same_or_named() {
    let body = "{\"a\":1,\"b\":2}";
    let then = without(&["/a", "/b"]);
    let same = without(&["/b", "/a", "/b"]);
    assert_eq!(then.algorithm(), same.algorithm());
    assert_eq!(compare(&same, body, &then, body), Comparison::Same);
    let changed = without(&["/a"]);
    assert!(changed.for_algorithm(then.algorithm()).is_none());
    assert_eq!(compare(&changed, body, &then, body), Comparison::Differs);
    let changed = changed.also_accept(then.clone());
    assert_eq!(compare(&changed, "{\"a\":3}", &then, body), Comparison::Same);

    let with_headers = without(&["/a"]).with_headers(tenant());
    assert!(Fingerprinter::json().for_algorithm(with_headers.algorithm()).is_none());
    // What falls back to raw keeps the chosen headers, and so do the other modes.
    let fallen_back = whole(&with_headers, "{");
    let raw = Fingerprinter::raw().with_headers(tenant());
    assert_eq!(fallen_back.algorithm, raw.algorithm());
    assert_eq!(compare(&raw, "{", &with_headers, "{"), Comparison::Same);
    assert_eq!(compare(&with_headers, "{", &raw, "{"), Comparison::Same);

    let custom = |name: &str| Fingerprinter::custom(name, |_, body| body.to_vec());
    assert_eq!(compare(&custom("v1"), body, &custom("v1"), body), Comparison::Same);
    assert_eq!(compare(&custom("v2"), body, &custom("v1"), body), Comparison::Differs);
    let both = custom("v2").also_accept(custom("v1"));
    assert_eq!(compare(&both, body, &custom("v1"), body), Comparison::Same);
}

#[test]
fn f1_a_retry_is_compared_under_the_records_own_key() {
    let old = without(&["/t"]).with_keyring(keyring(&[1]));
    let new = without(&["/t"]).with_keyring(keyring(&[2, 1]));
    assert_ne!(old.algorithm(), new.algorithm());
    assert_ne!(whole(&old, "{}").head, whole(&new, "{}").head);
    assert_eq!(compare(&new, "{\"t\":2}", &old, "{\"t\":1}"), Comparison::Same);
    assert_eq!(compare(&new, "{\"u\":2}", &old, "{\"t\":1}"), Comparison::Differs);
    // A key that is gone, and one that the record never had.
    let later = without(&["/t"]).with_keyring(keyring(&[3, 2]));
    assert!(later.for_algorithm(old.algorithm()).is_none());
    assert!(without(&["/t"]).for_algorithm(old.algorithm()).is_none());
    // Records from before there were keys.
    assert_eq!(compare(&new, "{\"t\":2}", &without(&["/t"]), "{}"), Comparison::Same);
    // What falls back is still keyed.
    assert_eq!(compare(&new, "{", &old, "{"), Comparison::Same);
    assert_ne!(whole(&old, "{").body, whole(&Fingerprinter::raw(), "{").body);
}

#[test]
fn f1_a_keyring_that_cannot_be_used_is_a_configuration_error() {
    assert!(Keyring::new(0, &[1; 32]).is_err());
    assert!(Keyring::new(1, &[1; 15]).is_err());
    assert!(Keyring::new(1, &[1; 32]).unwrap().and(1, &[2; 32]).is_err());
    assert!(Keyring::new(1, &[1; 32]).unwrap().and(2, b"").is_err());
}

#[test]
fn f3_an_unknown_algorithm_is_no_ones() {
    let all = without(&["/a"]).with_headers(tenant()).with_keyring(keyring(&[1, 2]));
    for number in [0, 1, 0x0100_0001, 0x0700_0000, 0xFF00_0000, 0x0103_0000, 0x0600_0000, u32::MAX]
    {
        assert!(all.for_algorithm(Algorithm::from_u32(number)).is_none(), "{number:08x}");
    }
}

#[test]
fn s3_debug_shows_no_secret() {
    let fingerprinter = Fingerprinter::raw().with_keyring(Keyring::new(1, &[231; 32]).unwrap());
    let headers = HeaderMap::new();
    let head = RequestHead { method: "POST", target: "/topsecret", headers: &headers };
    let shown = format!("{fingerprinter:?} {head:?} {:?}", fingerprinter.hasher());
    assert!(!shown.contains("231") && !shown.contains("secret"), "{shown}");
}
