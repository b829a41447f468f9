//! F2: canonical JSON is JSON that says the same, and its own canonical form.
#![no_main]

use libfuzzer_sys::fuzz_target;
use retrysafe_core::canonical_json;
use serde_json::Value;

fuzz_target!(|text: &[u8]| {
    let Some(canonical) = canonical_json(text, &[]) else {
        return;
    };
    let read = |json: &[u8]| serde_json::from_slice::<Value>(json).expect("it is JSON").to_string();
    let original: Value = serde_json::from_slice(text).expect("what has a canonical form is JSON");
    let again: Value = serde_json::from_slice(&canonical).expect("the canonical form is JSON");
    assert!(say_the_same(&original, &again), "{} became {}", read(text), read(&canonical));
    assert_eq!(canonical_json(&canonical, &[]).as_ref(), Some(&canonical));

    let pretty = serde_json::to_string_pretty(&again).expect("JSON can be written");
    assert_eq!(canonical_json(pretty.as_bytes(), &[]), Some(canonical));
});

/// Equality of JSON, where `1` and `1.0` are one number.
fn say_the_same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one.as_f64() == other.as_f64(),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(a, b)| say_the_same(a, b))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(name, a)| other.get(name).is_some_and(|b| say_the_same(a, b)))
        }
        _ => one == other,
    }
}
