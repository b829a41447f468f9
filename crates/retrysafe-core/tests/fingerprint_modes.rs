//! What of a request makes it the same request: F1, F2 and F4.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;
use retrysafe_core::{
    BodyPart, Comparison, Extent, Fingerprint, Fingerprinter, Keyring, RequestHead,
};

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    lines
        .iter()
        .map(|(name, value)| {
            let name: HeaderName = name.parse().unwrap();
            (name, HeaderValue::from_bytes(value.as_bytes()).unwrap())
        })
        .collect()
}

fn post(headers: &HeaderMap) -> RequestHead<'_> {
    RequestHead { method: "POST", target: "/orders", headers }
}

/// The fingerprint of a body that says it is of a content type.
fn of(fingerprinter: &Fingerprinter, content_type: &str, body: impl AsRef<[u8]>) -> Fingerprint {
    let headers = headers(&[("content-type", content_type)]);
    fingerprinter.whole(&post(&headers), body.as_ref())
}

fn json(body: &str) -> Fingerprint {
    of(&Fingerprinter::json(), "application/json", body)
}

fn form(body: impl AsRef<[u8]>) -> Fingerprint {
    of(&Fingerprinter::form(), "application/x-www-form-urlencoded", body)
}

fn is_raw(fingerprint: &Fingerprint) -> bool {
    fingerprint.algorithm == Fingerprinter::raw().algorithm()
}

#[test]
fn other_path_replays() {
    let none = HeaderMap::new();
    let first = RequestHead { method: "POST", target: "/orders?a=1", headers: &none };
    let fingerprinter = Fingerprinter::raw();
    let record = fingerprinter.whole(&first, b"x");
    for other in [
        RequestHead { target: "/orders", ..first },
        RequestHead { target: "/orders?a=2", ..first },
        RequestHead { target: "/orders/?a=1", ..first },
        RequestHead { method: "PATCH", ..first },
        // Nothing moves from one part to the next.
        RequestHead { method: "POST/", target: "orders?a=1", ..first },
    ] {
        let retry = fingerprinter.whole(&other, b"x");
        assert_ne!(retry.head, record.head);
        assert_eq!(retry.compare(&record), Comparison::Differs);
    }
    assert_eq!(fingerprinter.whole(&first, b"y").compare(&record), Comparison::Differs);
    assert_eq!(fingerprinter.whole(&first, b"x").compare(&record), Comparison::Same);
}

#[test]
fn f1_the_essence_of_the_content_type_counts_and_its_parameters_do_not() {
    let head =
        |lines: &[(&str, &str)]| Fingerprinter::raw().whole(&post(&headers(lines)), b"").head;
    let json = head(&[("content-type", "application/json")]);
    for same in [
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/json ;q",
        " application/json\t",
    ] {
        assert_eq!(head(&[("content-type", same)]), json, "{same}");
    }
    for other in [
        &[][..],
        &[("content-type", "")],
        &[("content-type", "application/problem+json")],
        &[("content-type", "application/json"), ("content-type", "application/json")],
        &[("content-type", "application/json"), ("content-encoding", "gzip")],
        &[("content-encoding", "application/json")],
    ] {
        assert_ne!(head(other), json, "{other:?}");
    }
    let gzip = head(&[("content-encoding", "gzip")]);
    assert_eq!(head(&[("content-encoding", "GZip")]), gzip);
    assert_ne!(head(&[("content-encoding", "br")]), gzip);
}

#[test]
fn f1_chosen_headers_count_and_no_others() {
    let language = HeaderName::from_static("accept-language");
    let tenant = HeaderName::from_static("x-tenant");
    let fingerprinter = Fingerprinter::raw().with_headers([language.clone(), tenant.clone()]);
    let head = |lines: &[(&str, &str)]| fingerprinter.whole(&post(&headers(lines)), b"").head;
    let one = head(&[("accept-language", "de"), ("x-tenant", "a")]);
    assert_eq!(head(&[("x-tenant", "a"), ("accept-language", "de"), ("date", "now")]), one);
    for other in [
        &[("accept-language", "de")][..],
        &[("accept-language", "a"), ("x-tenant", "de")],
        &[("accept-language", "de"), ("x-tenant", "a"), ("x-tenant", "a")],
        &[("accept-language", "DE"), ("x-tenant", "a")],
    ] {
        assert_ne!(head(other), one, "{other:?}");
    }
    let reordered = Fingerprinter::raw().with_headers([tenant.clone(), language, tenant]);
    assert_eq!(reordered.algorithm(), fingerprinter.algorithm());
    assert_ne!(reordered.algorithm(), Fingerprinter::raw().algorithm());
}

#[test]
fn f2_json_that_says_the_same_is_the_same() {
    let one = json(r#"{"amount":19.9,"to":{"name":"é","tags":[1,2]}}"#);
    assert!(!is_raw(&one));
    assert_eq!(
        json(" {\"to\" : {\"tags\":[1.0, 2e0],\n\"name\":\"\\u00e9\"}, \"amount\":19.90 } "),
        one
    );
    for other in [
        r#"{"amount":"19.9","to":{"name":"é","tags":[1,2]}}"#,
        r#"{"amount":19.9,"to":{"name":"é","tags":[2,1]}}"#,
        r#"{"amount":19.9,"to":{"name":"é","tags":[1,2],"x":null}}"#,
    ] {
        assert_eq!(json(other).compare(&one), Comparison::Differs, "{other}");
    }
}

#[test]
fn double_counts() {
    let one = json(r#"{"amount":9007199254740993}"#);
    assert!(is_raw(&one));
    for other in ["9007199254740992", "9007199254740993.0", "9007199254740994"] {
        let other = json(&format!(r#"{{"amount":{other}}}"#));
        assert_eq!(other.compare(&one), Comparison::Differs);
    }
    assert_eq!(json(r#"{"amount":9007199254740993}"#).compare(&one), Comparison::Same);
}

#[test]
fn f2_what_json_cannot_promise_is_raw() {
    for body in ["{", "", r#"{"a":1,"a":2}"#, r#"[{"b":{"a":1,"a":1}}]"#, "1e400", "\u{feff}{}"] {
        assert!(is_raw(&json(body)), "{body}");
        assert_eq!(json(body), of(&Fingerprinter::raw(), "application/json", body));
    }
    let encoded = headers(&[("content-encoding", "x-unknown")]);
    assert!(is_raw(&Fingerprinter::json().whole(&post(&encoded), b"{}")));
}

#[test]
fn f2_listed_pointers_do_not_count() {
    let pointers = ["/sent_at", "/trace/id"].map(|text| text.parse().unwrap());
    let fingerprinter = Fingerprinter::json_without(pointers).unwrap();
    let whole = |body: &str| of(&fingerprinter, "application/json", body);
    let one = whole(r#"{"sent_at":1,"trace":{"id":12345678901234567890,"n":1},"a":1}"#);
    assert!(!is_raw(&one));
    assert_eq!(whole(r#"{"a":1,"trace":{"n":1,"id":null}}"#), one);
    assert_eq!(whole(r#"{"a":1,"trace":{"n":2}}"#).compare(&one), Comparison::Differs);
    assert!(Fingerprinter::json_without(["".parse().unwrap()]).is_err());
}

#[test]
fn f2_a_form_is_the_same_in_any_order_of_its_fields() {
    let one = form("amount=5&to=a+b&list=1&list=2&empty=");
    assert!(!is_raw(&one));
    assert_eq!(form("to=a%20b&list=1&empty&&list=2&am%6funt=5&"), one);
    for other in ["amount=5&to=a+b&list=2&list=1&empty=", "amount=5&to=a%2bb&list=1&list=2&empty="]
    {
        assert_eq!(form(other).compare(&one), Comparison::Differs, "{other}");
    }
    // Nothing moves from one text to the next.
    assert_ne!(form("a=b%26c%3dd").body, form("a=b&c=d").body);
    assert_ne!(form("a=bc").body, form("ab=c").body);
}

#[test]
fn f2_pairs_of_one_field_keep_their_order() {
    let two_and_one = form("items[][id]=1&items[][qty]=2&items[][id]=3");
    let one_and_two = form("items[][id]=1&items[][id]=3&items[][qty]=2");
    assert_eq!(one_and_two.compare(&two_and_one), Comparison::Differs);
    assert_eq!(form("b=1&items[0]=x&a=1"), form("a=1&b=1&items[0]=x"));
}

#[test]
fn f2_what_is_no_form_is_raw() {
    let body = "a=1";
    assert!(is_raw(&of(&Fingerprinter::form(), "text/plain", body)));
    assert!(!is_raw(&of(
        &Fingerprinter::form(),
        "Application/X-WWW-Form-URLencoded; charset=UTF-8",
        body
    )));
    // Two values that decode to the same text only because neither is UTF-8.
    assert!(is_raw(&form("a=%ff")));
    assert!(is_raw(&form(b"a=\xfe")));
}

const PARTS: &str = concat!(
    "--BOUNDARY\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n",
    "--BOUNDARY\r\ncontent-disposition: form-data; name=\"f\"; filename=\"x\"\r\n",
    "Content-Type: image/png\r\n\r\n\r\n--BOUND\r\n\r\n--BOUNDARY--\r\n",
);

fn multipart(boundary: &str, body: &str) -> Fingerprint {
    let content_type = format!("multipart/form-data; boundary={boundary}");
    of(
        &Fingerprinter::multipart(),
        &content_type,
        body.replace("BOUNDARY", boundary.trim_matches('"')),
    )
}

#[test]
fn f2_multipart_is_the_same_with_another_boundary() {
    let one = multipart("----WebKitFormBoundaryA", PARTS);
    assert!(!is_raw(&one));
    for same in ["b", "\"a b:c\"", "BOUND-1"] {
        assert_eq!(multipart(same, PARTS), one, "{same}");
    }
    assert_eq!(multipart("b", &PARTS.replace("Content-D", "CONTENT-D")), one);
    for (from, to) in [
        ("\r\n1\r\n", "\r\n2\r\n"),
        ("name=\"a\"", "name=\"b\""),
        ("filename=\"x\"", "filename=\"y\""),
        ("--BOUND\r\n", "--BOUND\n"),
    ] {
        let other = multipart("b", &PARTS.replace(from, to));
        assert_eq!(other.compare(&one), Comparison::Differs, "{from}");
    }
}

#[test]
fn nested_content_types() {
    // The type of a part counts, and so does the order of the parts.
    let one = multipart("b", PARTS);
    let jpeg = multipart("b", &PARTS.replace("image/png", "image/jpeg"));
    assert!(!is_raw(&jpeg));
    assert_eq!(jpeg.compare(&one), Comparison::Differs);
    // A part that is itself multipart is content like any other.
    let nested = PARTS
        .replace("image/png", "multipart/mixed; boundary=inner")
        .replace("--BOUND\r\n", "--inner\r\n\r\nx\r\n--inner--\r\n");
    assert_eq!(multipart("b", &nested), multipart("c", &nested));
    assert!(!is_raw(&multipart("b", &nested)));
    // The same bytes under another kind of multipart are another request.
    let mixed = of(&Fingerprinter::multipart(), "multipart/mixed; boundary=BOUNDARY", PARTS);
    let form_data =
        of(&Fingerprinter::multipart(), "multipart/form-data; boundary=BOUNDARY", PARTS);
    assert_eq!(mixed.body, form_data.body);
    assert_eq!(mixed.compare(&form_data), Comparison::Differs);
}

#[test]
fn f2_multipart_that_readers_may_differ_on_is_raw() {
    let part = "--BOUNDARY\r\nA: b\r\n\r\nx\r\n--BOUNDARY--";
    assert!(!is_raw(&multipart("b", part)));
    for bad in [
        format!("preamble\r\n{part}"),
        format!("{part}\r\nepilogue"),
        part.replace("--BOUNDARY--", "--BOUNDARY"),
        part.replace("--BOUNDARY--", "--BOUNDARYx\r\n\r\n--BOUNDARY--"),
        part.replacen("BOUNDARY\r\n", "BOUNDARY \r\n", 1),
        part.replace("A: b", "A: b\r\n folded"),
        part.replace("A: b", "no colon"),
        part.replace("A: b", "--BOUNDARY: b"),
        part.replace("A: b\r\n\r\n", "A: b\r\n"),
        part.replace("\r\n", "\n"),
        "--BOUNDARY\r\n\r\n--BOUNDARY--".to_owned(),
        String::new(),
    ] {
        assert!(is_raw(&multipart("b", &bad)), "{bad:?}");
    }
    for content_type in [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=BOUNDARY; boundary=b",
        "multipart/form-data; boundary=\"BOUNDARY",
        "multipart/form-data; boundary=\"BOUNDARY\" x",
        "text/plain; boundary=BOUNDARY",
    ] {
        assert!(is_raw(&of(&Fingerprinter::multipart(), content_type, part)), "{content_type}");
    }
    for content_type in [
        "multipart/form-data; charset=utf-8; Boundary=BOUNDARY",
        "multipart/form-data;x=\"; boundary=y\" ; boundary=\"BOUNDARY\" ;",
    ] {
        assert!(!is_raw(&of(&Fingerprinter::multipart(), content_type, part)), "{content_type}");
    }
}

#[test]
fn f1_an_ignored_body_is_always_the_same() {
    let none = HeaderMap::new();
    let fingerprinter = Fingerprinter::body_ignored();
    let one = fingerprinter.whole(&post(&none), b"one");
    assert_eq!(one.body, Some(BodyPart::IGNORED));
    assert_eq!(fingerprinter.whole(&post(&none), b"another"), one);
    assert_eq!(fingerprinter.open(&post(&none)), one);
    let mut hasher = fingerprinter.hasher();
    hasher.update(b"more");
    assert_eq!(hasher.so_far(Extent::Whole), BodyPart::IGNORED);
}

#[test]
fn f1_a_function_of_ones_own() {
    let fingerprinter = Fingerprinter::custom("first-line", |head, body| {
        assert_eq!(head.target, "/orders");
        body.split(|byte| *byte == b'\n').next().unwrap_or_default().to_vec()
    });
    let one = of(&fingerprinter, "text/csv", "a,b\n1");
    assert_eq!(of(&fingerprinter, "text/csv", "a,b\n2"), one);
    assert_eq!(of(&fingerprinter, "text/csv", "a,c\n1").compare(&one), Comparison::Differs);
}

#[test]
fn f4_a_longer_body_is_claimed_by_its_head_and_hashed_raw() {
    let headers = headers(&[("content-type", "application/json")]);
    let raw = Fingerprinter::raw().whole(&post(&headers), b"{}");
    for fingerprinter in [
        Fingerprinter::raw(),
        Fingerprinter::json(),
        Fingerprinter::form(),
        Fingerprinter::multipart(),
        Fingerprinter::custom("mine", |_, _| Vec::new()),
    ] {
        let open = fingerprinter.open(&post(&headers));
        assert_eq!((open.algorithm, open.head, open.body), (raw.algorithm, raw.head, None));
        let mut hasher = fingerprinter.hasher();
        hasher.update(b"{}");
        assert_eq!(Some(hasher.so_far(Extent::Whole)), raw.body);
    }
}

#[test]
fn f3_algorithms_keep_their_meaning() {
    let form_type = headers(&[("content-type", "application/x-www-form-urlencoded")]);
    let multipart_type = headers(&[("content-type", "multipart/form-data; boundary=BOUNDARY")]);
    let json_type = headers(&[("content-type", "application/json"), ("x-tenant", "a")]);
    let without = Fingerprinter::json_without(["/a".parse().unwrap()]).unwrap();
    let keyring = Keyring::new(7, &[7; 32]).unwrap();
    let kept: Vec<_> = [
        Fingerprinter::raw().whole(&post(&json_type), b"{ }"),
        Fingerprinter::json().whole(&post(&json_type), b"{ }"),
        without.whole(&post(&json_type), b"{\"a\": 1, \"b\": 2}"),
        Fingerprinter::form().whole(&post(&form_type), b"b=1&a=2"),
        Fingerprinter::multipart().whole(&post(&multipart_type), PARTS.as_bytes()),
        Fingerprinter::body_ignored().whole(&post(&json_type), b"{ }"),
        Fingerprinter::custom("mine", |_, _| b"x".to_vec()).whole(&post(&json_type), b"{ }"),
        Fingerprinter::raw()
            .with_headers([HeaderName::from_static("x-tenant")])
            .with_keyring(keyring)
            .whole(&post(&json_type), b"{ }"),
    ]
    .iter()
    .map(|fingerprint| {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let body = fingerprint.body.expect("the body is whole");
        format!(
            "{:08x} {} {} {}",
            fingerprint.algorithm.to_u32(),
            &hex(&fingerprint.head)[..16],
            &hex(&body.digest)[..16],
            body.length
        )
    })
    .collect();
    // Records out there were made like this. A line that changes makes their retries differ.
    insta::assert_snapshot!(kept.join("\n"), @"
    01000000 9097d4670ec62d4b 257c1be96ae69f4b 3
    02000000 60b8f0cf656048bc 44136fa355b3678a 2
    020044fd ab5fa90510373b97 0ab1a6d394cd3019 7
    03000000 9ebff95088629443 2c944423a6142549 36
    04000000 70636368dfe0924f bd9b202500f355ab 203
    05000000 9061acb7778963bb 0000000000000000 0
    06004c92 3b5673e78211d6bf 2d711642b726b044 1
    0107a9d5 c37f770268acf96a 8808ae1518540c7d 3
    ");
}

proptest! {
    #[test]
    fn f4_a_body_in_pieces_is_the_same_body(
        body in proptest::collection::vec(any::<u8>(), 0..2048),
        cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..8),
        keyed in any::<bool>(),
    ) {
        let mut fingerprinter = Fingerprinter::raw();
        if keyed {
            fingerprinter = fingerprinter.with_keyring(Keyring::new(1, &[1; 32]).unwrap());
        }
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
        cuts.extend([0, body.len()]);
        cuts.sort_unstable();
        let none = HeaderMap::new();
        let mut hasher = fingerprinter.hasher();
        for piece in cuts.windows(2) {
            hasher.update(&body[piece[0]..piece[1]]);
            let prefix = fingerprinter.whole(&post(&none), &body[..piece[1]]).body.unwrap();
            prop_assert_eq!(hasher.so_far(Extent::Whole), prefix);
            prop_assert_eq!(
                hasher.so_far(Extent::Prefix),
                BodyPart { extent: Extent::Prefix, ..prefix }
            );
        }
    }

    #[test]
    fn f2_json_is_the_same_however_it_is_written(value in values()) {
        let spaced = serde_json::to_string_pretty(&value).unwrap();
        let dense = serde_json::to_string(&value).unwrap();
        let escaped: String = dense
            .chars()
            .map(|char| match char {
                ' '..='~' => char.to_string(),
                _ => char.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04X}")).collect(),
            })
            .collect();
        prop_assert!(!is_raw(&json(&dense)));
        prop_assert_eq!(&json(&spaced), &json(&dense));
        prop_assert_eq!(&json(&escaped), &json(&dense));
    }

    #[test]
    fn f2_json_that_says_another_thing_differs(one in values(), other in values()) {
        let same = one == other;
        let digests = [one, other].map(|value| json(&value.to_string()));
        prop_assert_eq!(digests[0] == digests[1], same);
    }
}

/// JSON whose numbers are told apart by `==` exactly if they are different numbers.
fn values() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::Value;
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-9_007_199_254_740_992_i64..=9_007_199_254_740_992).prop_map(Value::from),
        (-1000_i32..1000).prop_map(|number| Value::from(f64::from(number) + 0.25)),
        "[\u{0}-\u{ff}\u{20ac}\u{1f600}]{0,4}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::hash_map("[a-c\u{e9}\u{1f600}]{0,2}", inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}
