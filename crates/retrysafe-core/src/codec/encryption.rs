//! Encryption with XChaCha20-Poly1305.

use std::{fmt, sync::Arc};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use chacha20poly1305::{AeadInOut as _, KeyInit as _, Tag, XChaCha20Poly1305, XNonce};

use super::{Binding, COMPRESSED, ENCRYPTED, Undecodable};
use crate::{ConfigError, Entropy, Fingerprint, SystemEntropy};

/// The mark and the key's id.
const HEAD: usize = 2;
const NONCE: usize = 24;
const TAG: usize = 16;
/// What encryption adds to a payload.
pub(super) const OVERHEAD: usize = HEAD + NONCE + TAG;

/// How payloads are encrypted: XChaCha20-Poly1305 under one of a service's [`EncryptionKeys`].
///
/// A payload is bound to its operation and to what the client asked for: one that was moved into
/// another record, or whose fingerprint was changed, is unreadable. Nothing else of a record is
/// encrypted: ids, fingerprints, times and the length of the payload can be read in the store. They
/// are digests, but of inputs that may be guessed; where that matters, give the fingerprint a
/// [`Keyring`](crate::Keyring).
///
/// Payloads that are not encrypted are refused, unless [`accept_plain`](Self::accept_plain) is set.
#[derive(Clone)]
pub struct Encryption {
    keys: EncryptionKeys,
    accept_plain: bool,
    entropy: Arc<dyn Entropy>,
}

impl Encryption {
    /// Encrypts with the current key of a ring, and opens with any.
    pub fn new(keys: EncryptionKeys) -> Self {
        Self { keys, accept_plain: false, entropy: Arc::new(SystemEntropy) }
    }

    /// Also reads payloads that were written before encryption was turned on.
    ///
    /// Whoever can write to the store can then put an answer of their own into it, unencrypted.
    /// Turn it off again after one retention.
    pub fn accept_plain(self) -> Self {
        Self { accept_plain: true, ..self }
    }

    /// What gives the nonces; [`SystemEntropy`] by default. Anything that may give the same nonce
    /// twice breaks the encryption: this is for tests.
    pub fn entropy(self, entropy: Arc<dyn Entropy>) -> Self {
        Self { entropy, ..self }
    }

    pub(super) fn seal(&self, binding: &Binding<'_>, payload: &[u8]) -> Bytes {
        let (id, key) = self.keys.current();
        let nonce = self.nonce();
        let mut sealed = BytesMut::with_capacity(OVERHEAD + payload.len());
        sealed.put_slice(&[ENCRYPTED, id]);
        sealed.put_slice(&nonce);
        sealed.put_slice(payload);
        let text = &mut sealed[HEAD + NONCE..];
        let tag = key
            .encrypt_inout_detached(&nonce, &binding.associated_data(id), text.into())
            .expect("a payload is shorter than the 256 GiB of the cipher");
        sealed.put_slice(&tag);
        sealed.freeze()
    }

    pub(super) fn open(&self, binding: &Binding<'_>, kept: Bytes) -> Result<Bytes, Undecodable> {
        match kept.first() {
            Some(&ENCRYPTED) => {}
            Some(&newer) if newer > COMPRESSED => return Err(Undecodable::Newer(newer)),
            _ if self.accept_plain => return Ok(kept),
            _ => return Err(Undecodable::NotEncrypted),
        }
        let (id, nonce, tag) = parts(&kept).ok_or(Undecodable::Cut)?;
        let key = self.keys.find(id).ok_or(Undecodable::UnknownKey(id))?;
        // In place, if the store has handed the only reference out.
        let mut text = BytesMut::from(kept);
        text.truncate(text.len() - TAG);
        text.advance(HEAD + NONCE);
        let data = binding.associated_data(id);
        key.decrypt_inout_detached(&nonce, &data, (&mut text[..]).into(), &tag)
            .map_err(|_| Undecodable::NotAuthentic(id))?;
        Ok(text.freeze())
    }

    fn nonce(&self) -> XNonce {
        let mut nonce = XNonce::default();
        let (first, rest) = nonce.split_at_mut(16);
        first.copy_from_slice(&self.entropy.next_u128().to_be_bytes());
        rest.copy_from_slice(&self.entropy.next_u128().to_be_bytes()[..NONCE - 16]);
        nonce
    }
}

impl fmt::Debug for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encryption")
            .field("keys", &self.keys)
            .field("accept_plain", &self.accept_plain)
            .finish_non_exhaustive()
    }
}

/// The key's id, the nonce and the tag; `None` if there is no room for them.
fn parts(kept: &[u8]) -> Option<(u8, XNonce, Tag)> {
    let (&[_, id], rest) = kept.split_first_chunk::<HEAD>()?;
    let (&nonce, rest) = rest.split_first_chunk::<NONCE>()?;
    let (_, &tag) = rest.split_last_chunk::<TAG>()?;
    Some((id, nonce.into(), tag.into()))
}

impl Binding<'_> {
    /// All but the last part have a fixed length, so no two bindings are the same bytes.
    fn associated_data(&self, key_id: u8) -> Vec<u8> {
        let mut data = Vec::with_capacity(HEAD + 32 + Fingerprint::MAX_ENCODED);
        data.extend_from_slice(&[ENCRYPTED, key_id]);
        data.extend_from_slice(self.id.as_bytes());
        data.extend_from_slice(&self.fingerprint.encode());
        data
    }
}

/// The encryption keys of a service: one that new payloads are encrypted with, and others that
/// payloads may have been encrypted with.
///
/// Every key is 32 random bytes and has an id from 1 to 255, which is kept with the payload; a
/// payload whose key is not in the ring is unreadable. To change the key without a retry that can't
/// be answered, first add the new one behind the old on every process, then put it in front, and
/// take the old away once what it encrypted is past its retention.
///
/// `Debug` shows ids only, and the keys are wiped from memory when the last ring that holds them is
/// dropped.
///
/// ```
/// use retrysafe_core::EncryptionKeys;
///
/// # let (new, old) = ([1; 32], [2; 32]);
/// let keys = EncryptionKeys::new(2, &new)?.and(1, &old)?;
/// # Ok::<(), retrysafe_core::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct EncryptionKeys {
    /// The first is the current one.
    keys: Arc<[(u8, XChaCha20Poly1305)]>,
}

impl EncryptionKeys {
    /// A ring of one key, which new payloads are encrypted with.
    ///
    /// # Errors
    ///
    /// If the id is 0.
    pub fn new(id: u8, key: &[u8; 32]) -> Result<Self, ConfigError> {
        Self { keys: Arc::default() }.and(id, key)
    }

    /// Adds a key that payloads may have been encrypted with.
    ///
    /// # Errors
    ///
    /// If the id is 0 or taken.
    pub fn and(self, id: u8, key: &[u8; 32]) -> Result<Self, ConfigError> {
        let problem = match id {
            0 => "the id 0 stands for no key: choose one from 1 to 255".to_owned(),
            id if self.find(id).is_some() => format!("there are two keys with the id {id}"),
            _ => {
                let key = XChaCha20Poly1305::new(key.into());
                return Ok(Self { keys: self.keys.iter().cloned().chain([(id, key)]).collect() });
            }
        };
        Err(ConfigError::new("encryption_keys", problem))
    }

    fn current(&self) -> (u8, &XChaCha20Poly1305) {
        let (id, key) = self.keys.first().expect("a ring has a key from the start");
        (*id, key)
    }

    fn find(&self, id: u8) -> Option<&XChaCha20Poly1305> {
        self.keys.iter().find(|(held, _)| *held == id).map(|(_, key)| key)
    }
}

impl fmt::Debug for EncryptionKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<_> = self.keys.iter().map(|(id, _)| id).collect();
        f.debug_struct("EncryptionKeys").field("ids", &ids).finish_non_exhaustive()
    }
}
