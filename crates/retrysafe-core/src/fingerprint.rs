//! The fingerprint: a digest of what the client asked for, which tells a retry from a reuse of the
//! key. What goes into it is decided by a [`Fingerprinter`](crate::Fingerprinter).

use std::fmt;

use subtle::ConstantTimeEq as _;

/// What computed a fingerprint (F3): the mode, its parameters and the HMAC key, if any. It is kept
/// with the record, and a retry is compared with the record's own algorithm.
///
/// From the highest bit: the mode (8 bits, never zero), the id of the HMAC key (8 bits, zero for
/// plain SHA-256), and a digest of the mode's parameters and the chosen headers (16 bits, zero if
/// there are none). A number never changes its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Algorithm(u32);

impl Algorithm {
    /// The algorithm that a number stands for.
    pub const fn from_u32(number: u32) -> Self {
        Self(number)
    }

    /// The number that is kept with the record.
    pub const fn to_u32(self) -> u32 {
        self.0
    }
}

/// A digest of what the client asked for.
///
/// The head part (everything but the body) is always known. The body part is known up front for a
/// body that ended within `inline_body`, else it is written with the outcome (F4).
#[derive(Clone, PartialEq, Eq)]
pub struct Fingerprint {
    /// What computed it.
    pub algorithm: Algorithm,
    /// The digest of everything but the body.
    pub head: [u8; 32],
    /// The body part, once it is known.
    pub body: Option<BodyPart>,
}

/// The digest of a body, or of its beginning.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BodyPart {
    /// The digest of the bytes covered.
    pub digest: [u8; 32],
    /// How many bytes are covered: of the body as it came over the wire, or of what the mode made
    /// of it.
    pub length: u64,
    /// Whether the body ended there.
    pub extent: Extent,
}

/// How much of a body a [`BodyPart`] covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// The body ended after [`BodyPart::length`] bytes. A retry that goes on beyond them differs.
    Whole,
    /// Exactly the first [`BodyPart::length`] bytes: the handler was given no more.
    Prefix,
}

impl BodyPart {
    /// The body part of a request whose body does not matter: a prefix of no bytes.
    pub const IGNORED: Self = Self { digest: [0; 32], length: 0, extent: Extent::Prefix };

    /// Whether two parts are equal. Constant time (F5).
    pub fn agrees_with(&self, other: &Self) -> bool {
        // Lengths are no secret to who sent them.
        are_equal(&self.digest, &other.digest)
            && self.length == other.length
            && self.extent == other.extent
    }
}

/// What comparing a claim's fingerprint with a record's says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// The same request, as far as both are known.
    Same,
    /// Another request.
    Differs,
    /// The heads agree; whether the bodies do can only be told by hashing the claim's body the way
    /// the record's was (F4).
    Unread(BodyPart),
}

impl Fingerprint {
    /// The encoded length of the longest fingerprint.
    pub const MAX_ENCODED: usize = 4 + 32 + 1 + 32 + 8;

    /// Whether two fingerprints are equal as far as both are known: what a store judges a take-over
    /// by (ST6). Constant time (F5).
    pub fn agrees_with(&self, other: &Self) -> bool {
        let bodies = match (&self.body, &other.body) {
            (Some(one), Some(other)) => one.agrees_with(other),
            _ => true,
        };
        self.head_agrees_with(other) && bodies
    }

    /// Compares this claim's fingerprint with a record's. Both MUST have been computed by the same
    /// algorithm, else they differ (F3: compute it again with the record's own).
    pub fn compare(&self, record: &Self) -> Comparison {
        match (&self.body, &record.body) {
            _ if !self.head_agrees_with(record) => Comparison::Differs,
            (_, None) => Comparison::Same,
            (Some(claimed), Some(kept)) if claimed.agrees_with(kept) => Comparison::Same,
            (Some(claimed), Some(kept)) => match (claimed.extent, kept.extent) {
                (Extent::Whole, Extent::Prefix) if claimed.length >= kept.length => {
                    Comparison::Unread(*kept)
                }
                _ => Comparison::Differs,
            },
            (None, Some(kept)) => Comparison::Unread(*kept),
        }
    }

    fn head_agrees_with(&self, other: &Self) -> bool {
        are_equal(&self.head, &other.head) && self.algorithm == other.algorithm
    }

    /// The bytes that a store keeps: the algorithm, the head part, and the body part if it is known.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::MAX_ENCODED);
        bytes.extend_from_slice(&self.algorithm.0.to_be_bytes());
        bytes.extend_from_slice(&self.head);
        if let Some(body) = &self.body {
            bytes.push(body.extent as u8);
            bytes.extend_from_slice(&body.digest);
            bytes.extend_from_slice(&body.length.to_be_bytes());
        }
        bytes
    }

    /// Reads what [`encode`](Self::encode) wrote; `None` if it is anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (algorithm, rest) = bytes.split_first_chunk::<4>()?;
        let (head, rest) = rest.split_first_chunk::<32>()?;
        let body = match rest.split_first() {
            None => None,
            Some((extent, rest)) => {
                let extent = match extent {
                    0 => Extent::Whole,
                    1 => Extent::Prefix,
                    _ => return None,
                };
                let (digest, rest) = rest.split_first_chunk::<32>()?;
                let length = u64::from_be_bytes(rest.try_into().ok()?);
                Some(BodyPart { digest: *digest, length, extent })
            }
        };
        Some(Self { algorithm: Algorithm(u32::from_be_bytes(*algorithm)), head: *head, body })
    }
}

/// F5: in constant time. All bytes are looked at before anything is decided, and word by word:
/// `subtle` alone goes byte by byte, which takes longer than the rest of a comparison.
fn are_equal(one: &[u8; 32], other: &[u8; 32]) -> bool {
    let words = |digest: &[u8; 32]| {
        let (words, _) = digest.as_chunks::<8>();
        [words[0], words[1], words[2], words[3]].map(u64::from_ne_bytes)
    };
    let pairs = words(one).into_iter().zip(words(other));
    let difference = pairs.fold(0, |difference, (one, other)| difference | (one ^ other));
    difference.ct_eq(&0).into()
}

// S3: neither digest is shown; a digest of a small body can be guessed.
impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fingerprint").field("algorithm", &self.algorithm.0).finish_non_exhaustive()
    }
}

impl fmt::Debug for BodyPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyPart")
            .field("length", &self.length)
            .field("extent", &self.extent)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(byte: u8, length: u64, extent: Extent) -> BodyPart {
        BodyPart { digest: [byte; 32], length, extent }
    }

    fn fingerprint(head: u8, body: Option<BodyPart>) -> Fingerprint {
        Fingerprint { algorithm: Algorithm(1), head: [head; 32], body }
    }

    #[test]
    fn encodes_and_decodes() {
        for body in [None, Some(part(7, 9, Extent::Whole)), Some(part(7, 9, Extent::Prefix))] {
            let one = fingerprint(3, body);
            let bytes = one.encode();
            assert_eq!(Fingerprint::decode(&bytes), Some(one));
            for cut in 0..bytes.len() {
                if cut != 36 {
                    assert_eq!(Fingerprint::decode(&bytes[..cut]), None, "cut at {cut}");
                }
            }
        }
    }

    #[test]
    fn f4_unknown_bodies_agree_as_far_as_known() {
        let unknown = fingerprint(1, None);
        let known = fingerprint(1, Some(part(7, 9, Extent::Whole)));
        let other = fingerprint(1, Some(part(8, 9, Extent::Whole)));
        assert!(unknown.agrees_with(&known) && known.agrees_with(&unknown));
        assert!(!known.agrees_with(&other));
        assert!(!fingerprint(2, None).agrees_with(&unknown));
    }

    #[test]
    fn f4_a_claim_is_compared_over_the_length_that_was_kept() {
        let kept = part(7, 9, Extent::Prefix);
        let record = fingerprint(1, Some(kept));
        let whole = |length| fingerprint(1, Some(part(8, length, Extent::Whole)));
        assert_eq!(whole(12).compare(&record), Comparison::Unread(kept));
        assert_eq!(whole(8).compare(&record), Comparison::Differs);
        assert_eq!(fingerprint(1, None).compare(&record), Comparison::Unread(kept));
        assert_eq!(whole(8).compare(&fingerprint(1, None)), Comparison::Same);
        assert_eq!(whole(8).compare(&fingerprint(2, None)), Comparison::Differs);
    }

    #[test]
    fn s3_debug_shows_no_digest() {
        let shown = format!("{:?}", fingerprint(171, Some(part(171, 1, Extent::Whole))));
        assert!(!shown.contains("171") && !shown.contains("ab"), "{shown}");
    }
}
