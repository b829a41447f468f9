//! K2: a header value is read as the `sfv` crate reads it, or as a bare key, and never both ways.
#![no_main]

use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use retrysafe_core::{KeyParsing, KeyReason, KeyRules, Quoting};

fuzz_target!(|value: &[u8]| {
    let Ok(line) = HeaderValue::from_bytes(value) else {
        return;
    };
    let headers = HeaderMap::from_iter([(http::HeaderName::from_static("idempotency-key"), line)]);
    let rules = KeyRules::default().max_length(usize::MAX);
    let read = |rules: &KeyRules| match rules.read(&headers, || Duration::ZERO) {
        Ok(key) => Ok(key.expect("there is a header")),
        Err(refused) => Err(refused.reason()),
    };
    let (lenient, strict) = (read(&rules), read(&rules.clone().parsing(KeyParsing::Strict)));

    let trimmed = value.trim_ascii();
    let by_sfv = match sfv::Parser::new(trimmed).parse::<sfv::Item>().map(|item| item.bare_item) {
        Ok(sfv::BareItem::String(text)) => Some(text.as_str().to_owned()),
        _ => None,
    };
    match (&strict, by_sfv) {
        (Ok(key), Some(text)) => assert_eq!(key.as_str(), text),
        (Err(KeyReason::Empty), text) => assert!(text.unwrap_or_default().is_empty()),
        (Err(KeyReason::Syntax), None) => {}
        (_, by_sfv) => panic!("{strict:?}, but sfv reads {by_sfv:?}"),
    }
    if trimmed.starts_with(b"\"") {
        assert_eq!(lenient, strict);
    } else if let Ok(key) = &lenient {
        assert_eq!(key.as_bytes(), trimmed);
    }
    if let Ok(key) = lenient {
        for quoting in [Quoting::WhenNeeded, Quoting::Always] {
            let mut headers = HeaderMap::new();
            headers.insert("idempotency-key", key.to_header_value(quoting));
            assert_eq!(rules.read(&headers, || Duration::ZERO), Ok(Some(key.clone())));
        }
    }
});
