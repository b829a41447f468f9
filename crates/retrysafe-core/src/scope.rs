//! The scope: who a key belongs to.

use std::{fmt, iter, sync::Arc};

use sha2::{Digest as _, Sha256};

/// Who a key belongs to: a tenant, a principal. Never taken from an untrusted claim.
///
/// Two scopes never share a record (S2). `Debug` does not show what is in it (S3).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Scope(Kind);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Kind {
    Named(Arc<[u8]>),
    Digest([u8; 33]),
    Fixed(&'static [u8]),
}

impl Scope {
    /// The scope of one trusted client: everybody shares the keys.
    pub const fn shared() -> Self {
        Self(Kind::Fixed(b"="))
    }

    /// The scope of callers that show no credential at all (S1).
    pub const fn anonymous() -> Self {
        Self(Kind::Fixed(b"?"))
    }

    /// The scope that a name stands for: a user's or a tenant's id.
    pub fn from_bytes(name: impl AsRef<[u8]>) -> Self {
        Self(Kind::Named(iter::once(b'n').chain(name.as_ref().iter().copied()).collect()))
    }

    /// The scope of whoever holds a secret, which is not kept itself.
    pub fn digest_of(secret: impl AsRef<[u8]>) -> Self {
        let mut bytes = [b'd'; 33];
        bytes[1..].copy_from_slice(&Sha256::digest(secret.as_ref()));
        Self(Kind::Digest(bytes))
    }

    /// The scope that [`as_bytes`](Self::as_bytes) has shown, for whoever keeps it.
    pub fn from_encoded(bytes: &[u8]) -> Option<Self> {
        match bytes {
            b"=" => Some(Self::shared()),
            b"?" => Some(Self::anonymous()),
            [b'n', name @ ..] => Some(Self::from_bytes(name)),
            [b'd', ..] => Some(Self(Kind::Digest(bytes.try_into().ok()?))),
            _ => None,
        }
    }

    /// What the operation id is made of. A first byte keeps the kinds of scope apart. It names the
    /// caller, so it belongs into no log (S3).
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Kind::Named(bytes) => bytes,
            Kind::Digest(bytes) => bytes,
            Kind::Fixed(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scope(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_scope_never_meet() {
        let digest = Scope::digest_of("secret");
        let same_bytes = Scope::from_bytes(&digest.as_bytes()[1..]);
        assert_ne!(digest.as_bytes(), same_bytes.as_bytes());
        assert_ne!(Scope::shared().as_bytes(), Scope::from_bytes("").as_bytes());
        assert_ne!(Scope::shared().as_bytes(), Scope::anonymous().as_bytes());
    }

    #[test]
    fn s2_a_scope_that_is_kept_is_the_same_again() {
        let named = Scope::from_bytes("alice");
        for scope in [Scope::shared(), Scope::anonymous(), named, Scope::digest_of("secret")] {
            assert!(Scope::from_encoded(scope.as_bytes()).as_ref() == Some(&scope));
        }
        for bytes in [b"".as_slice(), b"==", b"x", b"dshort"] {
            assert_eq!(Scope::from_encoded(bytes), None);
        }
    }

    #[test]
    fn s3_debug_shows_nothing() {
        assert_eq!(format!("{:?}", Scope::from_bytes("alice")), "Scope(..)");
    }
}
