//! The hash function under a fingerprint: SHA-256, or HMAC-SHA256 with a key of a ring.

use std::{fmt, sync::Arc};

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

use crate::ConfigError;

/// The HMAC keys of a service: one that new records are made with, and earlier ones, so that
/// retries of their records can still be compared.
///
/// Every key has an id from 1 to 255, which is kept with the record. To change the key, put a new
/// one in front of the old; take the old away once its records are past their retention. `Debug`
/// shows ids only.
///
/// ```
/// use retrysafe_core::{Fingerprinter, Keyring};
///
/// # let (new, old) = ([1; 32], [2; 32]);
/// let keyring = Keyring::new(2, &new)?.and(1, &old)?;
/// let fingerprinter = Fingerprinter::raw().with_keyring(keyring);
/// # Ok::<(), retrysafe_core::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct Keyring {
    current: u8,
    keys: Arc<[(u8, Hmac<Sha256>)]>,
}

impl Keyring {
    /// A ring of one key, which new records are made with.
    ///
    /// # Errors
    ///
    /// If the id is 0, or the key is shorter than 16 bytes.
    pub fn new(id: u8, key: &[u8]) -> Result<Self, ConfigError> {
        Self { current: id, keys: Arc::default() }.and(id, key)
    }

    /// Adds an earlier key.
    ///
    /// # Errors
    ///
    /// If the id is 0 or taken, or the key is shorter than 16 bytes.
    pub fn and(self, id: u8, key: &[u8]) -> Result<Self, ConfigError> {
        let problem = match id {
            0 => "the id 0 stands for no key: choose one from 1 to 255".to_owned(),
            id if self.find(id).is_some() => format!("there are two keys with the id {id}"),
            id if key.len() < 16 => format!("the key with the id {id} is shorter than 16 bytes"),
            _ => {
                let hmac = Hmac::new_from_slice(key).expect("HMAC takes keys of any length");
                let keys = self.keys.iter().cloned().chain([(id, hmac)]).collect();
                return Ok(Self { keys, ..self });
            }
        };
        Err(ConfigError::new("fingerprint_keys", problem))
    }

    pub(super) fn current(&self) -> u8 {
        self.current
    }

    /// The same ring with another current key, if it has that.
    pub(super) fn at(&self, id: u8) -> Option<Self> {
        self.find(id)?;
        Some(Self { current: id, keys: self.keys.clone() })
    }

    pub(super) fn hash(&self) -> Hash {
        Hash::Keyed(self.find(self.current).expect("the current key is in the ring").clone())
    }

    fn find(&self, id: u8) -> Option<&Hmac<Sha256>> {
        self.keys.iter().find(|(held, _)| *held == id).map(|(_, key)| key)
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<_> = self.keys.iter().map(|(id, _)| id).collect();
        f.debug_struct("Keyring")
            .field("current", &self.current)
            .field("ids", &ids)
            .finish_non_exhaustive()
    }
}

#[derive(Clone)]
pub(super) enum Hash {
    Plain(Sha256),
    Keyed(Hmac<Sha256>),
}

impl Hash {
    pub(super) fn plain() -> Self {
        Self::Plain(Sha256::new())
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Plain(hash) => hash.update(bytes),
            Self::Keyed(hash) => hash.update(bytes),
        }
    }

    pub(super) fn finish(self) -> [u8; 32] {
        match self {
            Self::Plain(hash) => hash.finalize().into(),
            Self::Keyed(hash) => hash.finalize().into_bytes().into(),
        }
    }
}
