//! The operation id: who asked for what to run once.

use std::{fmt, str::FromStr};

use sha2::{Digest as _, Sha256};

use crate::{Entropy, IdempotencyKey, Scope, preimage::Preimage};

/// `(namespace, scope, key)`, encoded injectively and hashed (S2): two different triples never
/// share a record.
///
/// It is shown as `idem_` and the first 16 hex digits (S3), the same in logs, traces, metrics and
/// the operator's commands; raw keys and scopes never are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId([u8; 32]);

impl OperationId {
    /// The id of an operation.
    pub fn new(namespace: &str, scope: &Scope, key: &IdempotencyKey) -> Self {
        let mut preimage = Preimage::new();
        for part in [b"retrysafe/1", namespace.as_bytes(), scope.as_bytes(), key.as_bytes()] {
            preimage.part(part);
        }
        Self(Sha256::digest(preimage.as_bytes()).into())
    }

    /// The id that a store has kept.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The id as a store keeps it.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Appends the whole id as 64 lower-case hex digits: the name that a store of text keys gives its
    /// record.
    ///
    /// ```
    /// use retrysafe_core::OperationId;
    ///
    /// let mut key = "retrysafe:".to_owned();
    /// OperationId::from_bytes([0x5a; 32]).push_hex(&mut key);
    /// assert_eq!(key, format!("retrysafe:{}", "5a".repeat(32)));
    /// ```
    pub fn push_hex(&self, text: &mut String) {
        text.reserve(2 * self.0.len());
        for byte in self.0 {
            for digit in [byte >> 4, byte & 0x0f] {
                text.push(char::from(DIGITS[usize::from(digit)]));
            }
        }
    }

    /// A key for a step of this operation, to hand to another service. It depends on the operation
    /// and the step alone, never on the attempt (E3), so a repeated attempt names the same step.
    pub fn derive_key(&self, step: &str) -> String {
        let mut hash = Sha256::new();
        hash.update(b"retrysafe/1/step");
        hash.update(self.0);
        hash.update(step.as_bytes());
        format!("idem_{}", Hex(&hash.finalize()))
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "idem_{}", Hex(&self.0[..8]))
    }
}

impl fmt::Debug for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The first eight bytes of an operation id: what [`OperationId`] shows, and what an operator types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperationPrefix([u8; 8]);

impl OperationPrefix {
    /// The smallest id that is shown this way. The ids that follow it in a store's order and still
    /// [match](Self::matches) are all there are.
    pub fn first(&self) -> OperationId {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&self.0);
        OperationId(id)
    }

    /// Whether an id is shown this way.
    pub fn matches(&self, id: &OperationId) -> bool {
        id.0[..8] == self.0
    }
}

impl FromStr for OperationPrefix {
    type Err = InvalidPrefix;

    fn from_str(text: &str) -> Result<Self, InvalidPrefix> {
        let digits = text.strip_prefix("idem_").unwrap_or(text);
        let value = (digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
            .then(|| u64::from_str_radix(digits, 16).ok())
            .flatten()
            .ok_or(InvalidPrefix)?;
        Ok(Self(value.to_be_bytes()))
    }
}

/// A text that is not `idem_` and 16 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an operation is named by `idem_` and 16 hex digits, as the logs show it")]
pub struct InvalidPrefix;

/// The random 128-bit value of one attempt. A store call repeated with the same owner is the same
/// call (ST4). Whoever knows it can end the attempt, so `Debug` does not show it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Owner(u128);

impl Owner {
    /// A new owner, different from every other.
    pub fn new(entropy: &dyn Entropy) -> Self {
        Self(entropy.next_u128())
    }

    /// The owner that a store has kept.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }

    /// The owner as a store keeps it.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Owner(..)")
    }
}

/// What half a byte is written as. A table, because a formatter takes a tenth of a claim's time.
const DIGITS: [u8; 16] = *b"0123456789abcdef";

/// Bytes, shown as lower-case hex digits.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(namespace: &str, scope: &str, key: &str) -> OperationId {
        let key = IdempotencyKey::new(key).unwrap();
        OperationId::new(namespace, &Scope::from_bytes(scope), &key)
    }

    #[test]
    fn separator_collision() {
        // S2: scope `a:b` + key `c` was the same record as scope `a` + key `b:c`.
        assert_ne!(id("n", "a:b", "c"), id("n", "a", "b:c"));
        assert_ne!(id("na", "b", "c"), id("n", "ab", "c"));
        assert_ne!(id("n", "", "ab"), id("n", "a", "b"));
    }

    #[test]
    fn st10_an_operation_keeps_its_id() {
        // By hand, as S2 says. Another id, and every record that is kept would be lost.
        let id = id("default", "alice", "8e03978e-40d5-43e8-bc93-6894a57f9324");
        let mut shown = String::new();
        id.push_hex(&mut shown);
        assert_eq!(shown, "150bf722046424857d536e05ddf7fd169554f34aa45d6c15da0c71ec43d48a4a");
    }

    #[test]
    fn s3_shown_as_sixteen_digits_and_read_back() {
        let id = id("n", "s", "k");
        let shown = id.to_string();
        assert_eq!(shown.len(), 21);
        let prefix: OperationPrefix = shown.parse().unwrap();
        assert!(prefix.matches(&id));
        assert!(prefix.first() <= id);
        for bad in ["", "idem_", "idem_12", "idem_zzzzzzzzzzzzzzzz", "idem_0123456789abcdef0"] {
            assert!(bad.parse::<OperationPrefix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn e3_a_derived_key_depends_on_operation_and_step() {
        let one = id("n", "s", "k");
        assert_eq!(one.derive_key("charge"), one.derive_key("charge"));
        assert_ne!(one.derive_key("charge"), one.derive_key("mail"));
        assert_ne!(one.derive_key("charge"), id("n", "s", "l").derive_key("charge"));
        assert!(IdempotencyKey::new(&one.derive_key("charge")).is_ok());
    }
}
