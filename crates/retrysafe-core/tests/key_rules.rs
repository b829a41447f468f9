//! How a request's key is read: K1 to K4, C1.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;
use retrysafe_core::{
    IdempotencyKey, InvalidKey, KeyFormat, KeyParsing, KeyReason, KeyRules, Quoting,
};

const NOW: Duration = Duration::from_secs(1_800_000_000);

fn headers(lines: &[&[u8]]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in lines {
        headers.append("idempotency-key", HeaderValue::from_bytes(line).unwrap());
    }
    headers
}

fn read(rules: &KeyRules, value: &[u8]) -> Result<String, KeyReason> {
    rules
        .read(&headers(&[value]), || NOW)
        .map(|key| key.expect("there is a header").as_str().to_owned())
        .map_err(|refused| refused.reason())
}

fn lenient() -> KeyRules {
    KeyRules::default()
}

fn strict() -> KeyRules {
    KeyRules::default().parsing(KeyParsing::Strict)
}

#[test]
fn k1_the_header_can_be_named() {
    let rules = lenient().header(HeaderName::from_static("x-request-key"));
    let mut headers = headers(&[b"one"]);
    assert_eq!(rules.read(&headers, || NOW), Ok(None));
    headers.insert("X-Request-Key", HeaderValue::from_static("two"));
    assert_eq!(rules.read(&headers, || NOW).unwrap().unwrap().as_str(), "two");
}

#[test]
fn quoted_key_differs() {
    for value in [
        "k",
        " k ",
        "\tk\t",
        "\"k\"",
        " \"k\" ",
        "\t\"k\"\t",
        "\"k\";a",
        "\"k\"; a=1;b=\"x;y\"",
        "\"k\";a=?0;c=:aGk=:;d=@12;e=%\"%c3%bc\";f=tok/en;g=-1.5",
        "\"k\" ",
    ] {
        assert_eq!(read(&lenient(), value.as_bytes()).as_deref(), Ok("k"), "{value}");
    }
}

#[test]
fn k2_most_uuids_are_no_tokens_and_still_keys() {
    let uuid = "8e03978e-40d5-43e8-bc93-6894a57f9324";
    assert_eq!(read(&lenient(), uuid.as_bytes()).as_deref(), Ok(uuid));
}

#[test]
fn k2_what_starts_with_a_quote_never_falls_back_to_bare() {
    for value in [
        "\"",
        "\"k",
        "\"k\\\"",
        "\"k\"x",
        "\"k\",\"l\"",
        "\"k\" ;a",
        "\"k\";",
        "\"k\";A",
        "\"k\";a=",
        "\"k\";a=1234567890123456",
        "\"k\";a=:a:",
        "\"k\";a=%\"%FF\"",
        "\"\\k\"",
        "\"k\" \"l\"",
        "\"k\";a=1.",
        "\"k\";a=@1.5",
        "\"k\";a=?2",
    ] {
        assert_eq!(read(&lenient(), value.as_bytes()), Err(KeyReason::Syntax), "{value}");
    }
}

#[test]
fn k2_bare_keys_hold_no_separators() {
    for value in ["a,b", "a;b", "a\\b", "a\"b", "a b", "a\tb", ";", "a, a"] {
        assert_eq!(read(&lenient(), value.as_bytes()), Err(KeyReason::Syntax), "{value}");
    }
    let all: String = ('!'..='~').filter(|char| !"\",;\\".contains(*char)).collect();
    assert_eq!(read(&lenient(), all.as_bytes()), Ok(all));
}

#[test]
fn k2_strict_takes_the_string_item_only() {
    assert_eq!(read(&strict(), b"\"k\"; a").as_deref(), Ok("k"));
    assert_eq!(read(&strict(), b"k"), Err(KeyReason::Syntax));
    assert_eq!(read(&strict(), b""), Err(KeyReason::Empty));
}

#[test]
fn k3_two_lines_are_counted_before_any_joining() {
    for lines in [[&b"a"[..], b"a"], [b"a", b""], [b"\"a", b"b\""]] {
        let refused = lenient().read(&headers(&lines), || NOW).unwrap_err();
        assert_eq!(refused.reason(), KeyReason::Duplicate);
    }
}

#[test]
fn long_key_unprotected() {
    let long = "k".repeat(256);
    let non_ascii = "schlüssel".as_bytes();
    for (value, reason) in [
        (long.as_bytes(), KeyReason::TooLong),
        (format!("\"{long}\"").as_bytes(), KeyReason::TooLong),
        (b"", KeyReason::Empty),
        (b" \t ", KeyReason::Empty),
        (b"\"\"", KeyReason::Empty),
        (b"\"\";a=1", KeyReason::Empty),
        (non_ascii, KeyReason::Syntax),
        (b"\"\xc3\xbc\"", KeyReason::Syntax),
        (b"\xff", KeyReason::Syntax),
    ] {
        assert_eq!(read(&lenient(), value), Err(reason));
    }
}

#[test]
fn k3_length_is_counted_after_unquoting() {
    let longest = "\"".repeat(255);
    let quoted = format!("\"{}\"", longest.replace('"', "\\\""));
    assert_eq!(read(&lenient(), quoted.as_bytes()), Ok(longest));
    let rules = lenient().max_length(4);
    assert_eq!(read(&rules, b"\"abcd\"").as_deref(), Ok("abcd"));
    assert_eq!(read(&rules, b"abcde"), Err(KeyReason::TooLong));
}

#[test]
fn k4_every_spelling_of_one_uuid_is_one_key() {
    let one = "0190163d-8694-739b-aea5-966c26f8ad91";
    for format in [KeyFormat::Uuid, KeyFormat::UuidV7 { max_age: NOW, skew: Duration::ZERO }] {
        let rules = lenient().format(format);
        for spelling in [
            one,
            "0190163D-8694-739B-AEA5-966C26F8AD91",
            "0190163d8694739baea5966c26f8ad91",
            "{0190163d-8694-739B-aea5-966c26f8ad91}",
            "urn:uuid:0190163d-8694-739b-aea5-966c26f8ad91",
            "URN:UUID:0190163D-8694-739B-AEA5-966C26F8AD91",
            "\"0190163D8694739BAEA5966C26F8AD91\"",
        ] {
            assert_eq!(read(&rules, spelling.as_bytes()).as_deref(), Ok(one), "{spelling}");
        }
        for other in
            ["0190163d-8694-739b-aea5-966c26f8ad9", "k", "0190163d-8694-739b-aea5-966c26f8adg1"]
        {
            assert_eq!(read(&rules, other.as_bytes()), Err(KeyReason::Format), "{other}");
        }
    }
}

#[test]
fn k4_the_version_of_a_uuid() {
    let rules = lenient().format(KeyFormat::UuidV4);
    assert!(read(&rules, b"8e03978e-40d5-43e8-bc93-6894a57f9324").is_ok());
    for other in [
        "0190163d-8694-739b-aea5-966c26f8ad91",
        "8e03978e-40d5-43e8-cc93-6894a57f9324",
        "00000000-0000-0000-0000-000000000000",
    ] {
        assert_eq!(read(&rules, other.as_bytes()), Err(KeyReason::Format), "{other}");
    }
}

#[test]
fn k4_a_version_7_key_is_aged() {
    let (max_age, skew) = (Duration::from_secs(3600), Duration::from_secs(60));
    let rules = lenient().format(KeyFormat::UuidV7 { max_age, skew });
    assert_eq!(rules.accepted_for(), Some(max_age + skew));
    let made_at = |at: Duration| {
        let time = at.as_millis() as u64;
        format!("{:08x}-{:04x}-7000-8000-000000000001", time >> 16, time & 0xFFFF)
    };
    let millisecond = Duration::from_millis(1);
    for (at, expected) in [
        (NOW, None),
        (NOW - max_age, None),
        (NOW - max_age - millisecond, Some(KeyReason::Expired)),
        (NOW + skew, None),
        (NOW + skew + millisecond, Some(KeyReason::Format)),
        (Duration::ZERO, Some(KeyReason::Expired)),
    ] {
        assert_eq!(read(&rules, made_at(at).as_bytes()).err(), expected, "{at:?}");
    }
}

#[test]
fn k4_prefixed_and_custom() {
    let rules = lenient().format(KeyFormat::Prefixed { prefix: "idem_".into() });
    let digits = "0123456789abcdef".repeat(4);
    let good = format!("idem_{digits}");
    assert_eq!(read(&rules, good.as_bytes()), Ok(good.clone()));
    for bad in [&good[1..], &good[..68], &good.to_uppercase(), &digits, &format!("{good}0")] {
        assert_eq!(read(&rules, bad.as_bytes()), Err(KeyReason::Format), "{bad}");
    }
    let rules = lenient().format(KeyFormat::custom(|key| key.starts_with("order-")));
    assert!(read(&rules, b"order-1").is_ok());
    assert_eq!(read(&rules, b"1"), Err(KeyReason::Format));
}

#[test]
fn k4_rules_that_no_key_can_keep_are_a_configuration_error() {
    let prefixed = |prefix: &str| KeyFormat::Prefixed { prefix: prefix.into() };
    let instant = KeyFormat::UuidV7 { max_age: Duration::ZERO, skew: NOW };
    for bad in [
        lenient().max_length(0),
        lenient().max_length(31).format(KeyFormat::Uuid),
        lenient().max_length(68).format(prefixed("idem_")),
        lenient().format(prefixed("ä")),
        lenient().format(instant),
    ] {
        assert!(bad.validate().is_err(), "{bad:?}");
    }
    assert!(lenient().validate().is_ok());
    assert!(lenient().max_length(69).format(prefixed("idem_")).validate().is_ok());
}

#[test]
fn k8_a_key_from_elsewhere_is_checked_the_same() {
    let reason = |text: &str| lenient().check(text, || NOW).map_err(|refused| refused.reason());
    assert_eq!(reason("a b").unwrap().as_str(), "a b");
    assert_eq!(reason("").unwrap_err(), KeyReason::Empty);
    assert_eq!(reason(&"k".repeat(256)).unwrap_err(), KeyReason::TooLong);
    assert_eq!(reason("schlüssel").unwrap_err(), KeyReason::Syntax);
    assert_eq!(reason("a\nb").unwrap_err(), KeyReason::Syntax);
}

#[test]
fn c1_sent_bare_unless_asked_to_quote() {
    let key = IdempotencyKey::new("order-1").unwrap();
    assert_eq!(key.to_header_value(Quoting::WhenNeeded), "order-1");
    assert_eq!(key.to_header_value(Quoting::Always), "\"order-1\"");
    assert!(key.to_header_value(Quoting::Always).is_sensitive());
}

#[test]
fn s3_nothing_shows_the_key() {
    let key = IdempotencyKey::new("topsecret").unwrap();
    assert_eq!(format!("{key:?}"), "IdempotencyKey(..)");
    let rules = lenient().format(KeyFormat::Uuid).max_length(40);
    for value in ["topsecret", "\"topsecret", "topsecret,", &"topsecret".repeat(5)] {
        let refused: InvalidKey = rules.read(&headers(&[value.as_bytes()]), || NOW).unwrap_err();
        let shown = format!("{refused} {refused:?}");
        assert!(!shown.contains("topsecret"), "{shown}");
    }
}

/// What the `sfv` crate makes of a value, if it is a String item.
fn by_sfv(value: &[u8]) -> Option<String> {
    match sfv::Parser::new(value).parse::<sfv::Item>().ok()?.bare_item {
        sfv::BareItem::String(text) => Some(text.as_str().to_owned()),
        _ => None,
    }
}

/// Values that are String items, or nearly.
fn nearly_items() -> impl Strategy<Value = String> {
    let item = r##""([ -~]|\\["\\]){0,6}"?"##;
    let bare_item = concat!(
        r##"(\?[012]|-?[0-9]{0,16}(\.[0-9]{0,4})?|[A-Za-z*][!-~]{0,3}|:[A-Za-z0-9+/=]{0,9}:"##,
        r##"|@-?[0-9]{1,3}(\.[0-9])?|%"([ -~]|%[0-9a-fA-F]{2}|%c3%bc){0,4}"|"[ -~]{0,3}")"##,
    );
    let value = format!(
        r"[ ]{{0,2}}{item}( ?; {{0,2}}[a-zA*][a-z0-9_.*-]{{0,2}}(={bare_item})?){{0,3}} {{0,2}}"
    );
    proptest::string::string_regex(&value).expect("a regular expression")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn k2_quoted_values_are_read_as_sfv_reads_them(value in nearly_items()) {
        let ours = read(&strict().max_length(usize::MAX), value.as_bytes());
        match by_sfv(value.as_bytes()) {
            Some(text) if text.is_empty() => prop_assert_eq!(ours, Err(KeyReason::Empty)),
            Some(text) => prop_assert_eq!(ours, Ok(text)),
            None => prop_assert_eq!(ours, Err(KeyReason::Syntax)),
        }
    }

    #[test]
    fn k2_noise_is_read_as_sfv_reads_it(
        value in proptest::collection::vec(
            proptest::sample::select(b"\"\"\\ ;=?:@%*aZ09.-~,\xc3".to_vec()), 1..12,
        )
    ) {
        let trimmed = value.trim_ascii();
        let ours = read(&strict(), &value);
        match by_sfv(trimmed) {
            Some(text) if text.is_empty() => prop_assert_eq!(ours, Err(KeyReason::Empty)),
            Some(text) => prop_assert_eq!(ours, Ok(text)),
            None => prop_assert!(ours.is_err()),
        }
    }

    #[test]
    fn k2_a_key_comes_back_in_either_spelling(text in "[ -~]{1,255}") {
        let key = IdempotencyKey::new(&text).unwrap();
        for quoting in [Quoting::WhenNeeded, Quoting::Always] {
            let value = key.to_header_value(quoting);
            prop_assert_eq!(read(&lenient(), value.as_bytes()), Ok(text.clone()));
        }
        let quoted = key.to_header_value(Quoting::Always);
        prop_assert_eq!(by_sfv(quoted.as_bytes()), Some(text));
    }
}
