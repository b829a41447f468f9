//! Where a key comes from (C2).

use std::time::Duration;

use http::HeaderValue;
use sha2::{Digest as _, Sha256};
use uuid::{Builder, Uuid};

use super::ContentKey;
use crate::{Entropy, IdempotencyKey, InvalidKey, JsonPointer};

/// What makes the key of an operation that its caller has not named. Asked once, before the first
/// attempt (C1).
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum KeySource {
    /// A random UUID, of version 4.
    #[default]
    UuidV4,
    /// A UUID of version 7: it sorts by the time at which it was made, and shows it.
    UuidV7,
    /// What the request says. **Two intended identical requests are one operation.**
    Content(ContentKey),
}

/// What a key can be made from.
#[derive(Clone, Copy, Debug)]
pub struct Operation<'a> {
    /// The method.
    pub method: &'a str,
    /// The whole URL.
    pub url: &'a str,
    /// The body's `Content-Type`.
    pub content_type: Option<&'a HeaderValue>,
    /// The body; `None` if it is a stream.
    pub body: Option<&'a [u8]>,
}

impl KeySource {
    /// The key of an operation. `now` is the wall clock's time.
    ///
    /// # Errors
    ///
    /// [`NoKey`] if the key is to come from content that has none.
    pub fn key(
        &self,
        operation: &Operation<'_>,
        now: impl FnOnce() -> Duration,
        entropy: &dyn Entropy,
    ) -> Result<IdempotencyKey, NoKey> {
        let random = || entropy.next_u128().to_be_bytes();
        match self {
            Self::UuidV4 => Ok(uuid_key(Builder::from_random_bytes(random()).into_uuid())),
            Self::UuidV7 => {
                let milliseconds = u64::try_from(now().as_millis()).unwrap_or(u64::MAX);
                let [.., a, b, c, d, e, f, g, h, i, j] = random();
                let tail = [a, b, c, d, e, f, g, h, i, j];
                let uuid = Builder::from_unix_timestamp_millis(milliseconds, &tail).into_uuid();
                Ok(uuid_key(uuid))
            }
            Self::Content(content) => content.key(operation),
        }
    }

    /// The length of the longest key that this makes, in bytes.
    pub fn longest(&self) -> usize {
        match self {
            Self::UuidV4 | Self::UuidV7 => uuid::fmt::Hyphenated::LENGTH,
            Self::Content(content) => content.length(),
        }
    }
}

/// A key from an id that the business has anyway: the same in every process and after every crash.
/// `name` says what kind of id it is (`orders`, `invoices`), so that order 7 and invoice 7 differ.
///
/// It is a UUID of version 8, made of SHA-256. Where other software has to make the same key, there is
/// [`business_key_v5`].
///
/// ```
/// use retrysafe_core::client::business_key;
///
/// let key = business_key("orders", "4711");
/// assert_eq!(key, business_key("orders", "4711"));
/// assert_ne!(key, business_key("invoices", "4711"));
/// assert_eq!(key.as_str(), "38b7d425-f05e-85fe-95f1-5d72e9d2fe28");
/// ```
pub fn business_key(name: &str, id: &str) -> IdempotencyKey {
    let mut hash = Sha256::new();
    for part in ["retrysafe/1/business", name, id] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    uuid_key(uuid_v8(&hash.finalize()))
}

/// A key from an id that the business has anyway, as any library makes it: the UUID of version 5 of a
/// namespace (a UUID of your own, as a number) and the id.
///
/// ```
/// use retrysafe_core::client::business_key_v5;
///
/// // RFC 9562, A.4: the namespace of DNS names.
/// let dns = 0x6ba7b810_9dad_11d1_80b4_00c04fd430c8;
/// let key = business_key_v5(dns, "www.example.com");
/// assert_eq!(key.as_str(), "2ed6657d-e927-568b-95e1-2665a8aea6a2");
/// ```
pub fn business_key_v5(namespace: u128, id: &str) -> IdempotencyKey {
    uuid_key(Uuid::new_v5(&Uuid::from_u128(namespace), id.as_bytes()))
}

/// A UUID of version 8 with the first bits of a digest.
pub(super) fn uuid_v8(digest: &[u8]) -> Uuid {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    Builder::from_custom_bytes(bytes).into_uuid()
}

pub(super) fn uuid_key(uuid: Uuid) -> IdempotencyKey {
    let mut buffer = Uuid::encode_buffer();
    let text: &str = uuid.hyphenated().encode_lower(&mut buffer);
    IdempotencyKey::new(text).unwrap_or_else(|_| unreachable!("a UUID is a key"))
}

/// Why an operation got no key, so that nothing was sent. No message echoes a key or a body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoKey {
    /// The caller's own key can't be used.
    #[error(transparent)]
    Invalid(#[from] InvalidKey),
    /// The key depends on the body, or is a member of it, and the body is a stream.
    #[error("the key depends on the body, and the body is a stream")]
    StreamedBody,
    /// The key is made of JSON that has no canonical form: it is not JSON, has two members of one
    /// name, or a number that a double can't hold.
    #[error("the body has no canonical JSON form (RFC 8785), from which a key could be made")]
    NotCanonical,
    /// The key is made of listed members, and one of them is not there: operations that have nothing
    /// else in common would share a key.
    #[error("the body has nothing at {0}, from which the key is to be made")]
    NothingAt(JsonPointer),
    /// The key is a member of the body, and the body is not a JSON object.
    #[error("the key is a member of the body, and the body is not a JSON object")]
    NotAnObject,
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed;

    impl Entropy for Fixed {
        fn next_u128(&self) -> u128 {
            0x0011_2233_4455_6677_8899_aabb_ccdd_eeff
        }
    }

    fn key(source: &KeySource) -> String {
        let operation =
            Operation { method: "POST", url: "http://a/", content_type: None, body: None };
        let now = || Duration::from_millis(0x0123_4567_89ab);
        source.key(&operation, now, &Fixed).unwrap().as_str().to_owned()
    }

    #[test]
    fn c2_uuids_are_of_their_version() {
        assert_eq!(key(&KeySource::UuidV4), "00112233-4455-4677-8899-aabbccddeeff");
        let seventh = key(&KeySource::UuidV7);
        assert!(seventh.starts_with("01234567-89ab-7"), "{seventh}");
        let uuid = Uuid::parse_str(business_key("orders", "4711").as_str()).unwrap();
        assert_eq!(uuid.get_version_num(), 8);
    }

    #[test]
    fn c2_a_business_key_depends_on_both_and_joins_nothing() {
        assert_eq!(business_key("orders", "4711"), business_key("orders", "4711"));
        assert_ne!(business_key("a", "bc"), business_key("ab", "c"));
        assert_ne!(business_key("", "abc"), business_key("abc", ""));
    }
}
