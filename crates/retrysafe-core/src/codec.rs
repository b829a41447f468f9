//! Payloads that are kept compressed or encrypted, in any store.
//!
//! # Format
//!
//! The first byte of a kept payload says what was done to it. A [`Record`](crate::Record) starts
//! with its version, which is far below these:
//!
//! ```text
//! ..0xBF   nothing: the payload as it is
//! 0xC0     nothing, but the payload itself starts with a byte from 0xC0: it follows
//! 0xC1     compressed: a zstd frame with its content's size and checksum follows
//! 0xE1     encrypted: key id (1 byte), nonce (24), ciphertext, tag (16) follow
//! ```
//!
//! What is encrypted is one of the first three. Every other byte from 0xC0 belongs to a newer
//! version, and is an error (ST10).

#[cfg(feature = "zstd")]
mod compression;
#[cfg(feature = "encryption")]
mod encryption;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

#[cfg(feature = "encryption")]
pub use self::encryption::{Encryption, EncryptionKeys};
use crate::{
    About, Begin, Claim, Counts, Entry, Fingerprint, Found, Held, Inspect, Lease, Operated,
    OperationId, Resolution, State, Store, StoreError, StoreErrorKind, Swept, Unit,
};

/// The first of the bytes that a kept payload is marked with.
const FIRST_MARK: u8 = 0xc0;
const PLAIN: u8 = 0xc0;
const COMPRESSED: u8 = 0xc1;
const ENCRYPTED: u8 = 0xe1;

/// A store whose payloads are kept compressed, encrypted, or both, in any other store.
///
/// It is a [`Store`] (and an [`Inspect`], if the other is): what goes in comes out byte for byte
/// (ST10), with as many round trips (ST2). Compression comes before encryption, whatever the order
/// of the calls. Handles are as cheap to clone as those of the store inside.
///
/// Payloads that were compressed are read whether or not new ones [are](Self::with_compression), so
/// it can be turned on and off while a service runs. Encryption is stricter: see [`Encryption`].
///
/// A payload that can't be decoded is [`StoreErrorKind::Unreadable`], never *absent* and never
/// handed on as it is: a newer version wrote it, it is damaged, or its key is not there. Its record
/// is left alone by every verb, [`forget`](Inspect::forget) included, until its retention is over.
///
/// Encoding runs on the task that calls. At most 43 bytes are added to a payload (P9).
///
/// ```
/// use retrysafe_core::{Encoded, MemoryStore, Store};
///
/// let store = Encoded::new(MemoryStore::new());
/// # #[cfg(feature = "zstd")]
/// let store = store.with_compression();
/// # #[cfg(feature = "encryption")]
/// # {
/// use retrysafe_core::{Encryption, EncryptionKeys};
///
/// # let key = [7; 32];
/// let store = store.with_encryption(Encryption::new(EncryptionKeys::new(1, &key)?));
/// # }
/// # Ok::<(), retrysafe_core::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Encoded<S> {
    store: S,
    #[cfg(feature = "zstd")]
    compress: bool,
    #[cfg(feature = "encryption")]
    encryption: Option<Encryption>,
}

impl<S> Encoded<S> {
    /// Reads what other handles have compressed, and writes payloads as they are.
    pub fn new(store: S) -> Self {
        Self {
            store,
            #[cfg(feature = "zstd")]
            compress: false,
            #[cfg(feature = "encryption")]
            encryption: None,
        }
    }

    /// Compresses payloads from 1 KiB up to 64 MiB with zstd, if that makes them smaller. A payload
    /// over [`About::max_payload`] is refused however small it would become.
    ///
    /// Together with encryption, the length of what is kept tells how well a response compresses.
    /// Where someone can read the store's sizes and also choose a part of a response that holds a
    /// secret, leave compression off.
    #[cfg(feature = "zstd")]
    pub fn with_compression(self) -> Self {
        Self { compress: true, ..self }
    }

    /// Encrypts every payload.
    #[cfg(feature = "encryption")]
    pub fn with_encryption(self, encryption: Encryption) -> Self {
        Self { encryption: Some(encryption), ..self }
    }

    /// The most that encoding adds to a payload.
    fn overhead(&self) -> usize {
        #[cfg(feature = "encryption")]
        if self.encryption.is_some() {
            return 1 + encryption::OVERHEAD;
        }
        1
    }

    #[cfg_attr(not(feature = "encryption"), expect(unused_variables, reason = "nothing binds"))]
    fn encode(&self, binding: &Binding<'_>, payload: Bytes) -> Bytes {
        let marked = self.compress(payload);
        #[cfg(feature = "encryption")]
        if let Some(encryption) = &self.encryption {
            return encryption.seal(binding, &marked);
        }
        marked
    }

    fn decode(&self, binding: &Binding<'_>, kept: Bytes) -> Result<Bytes, StoreError> {
        #[cfg(feature = "encryption")]
        let marked = match &self.encryption {
            Some(encryption) => encryption.open(binding, kept),
            None => Ok(kept),
        };
        #[cfg(not(feature = "encryption"))]
        let marked = Ok(kept);
        marked.and_then(decompress).map_err(|problem| {
            let id = binding.id;
            StoreError::new(
                StoreErrorKind::Unreadable,
                format!("the payload of {id} can't be read: {problem}"),
            )
        })
    }

    fn compress(&self, payload: Bytes) -> Bytes {
        #[cfg(feature = "zstd")]
        if let Some(compressed) = self.compress.then(|| compression::compress(&payload)).flatten() {
            return compressed;
        }
        match payload.first() {
            Some(FIRST_MARK..) => [&[PLAIN], &payload[..]].concat().into(),
            _ => payload,
        }
    }

    fn decode_found(&self, id: &OperationId, found: Found) -> Result<Found, StoreError> {
        Ok(match found {
            Found::Finished { fingerprint, payload } => {
                let payload = self.decode(&Binding { id, fingerprint: &fingerprint }, payload)?;
                Found::Finished { fingerprint, payload }
            }
            without_payload => without_payload,
        })
    }

    fn decode_held(&self, lease: &Lease, held: Held) -> Result<Held, StoreError> {
        Ok(match held {
            Held::Applied => Held::Applied,
            Held::Lost(found) => Held::Lost(self.decode_found(&lease.id, found)?),
        })
    }

    fn decode_entry(&self, entry: Entry) -> Result<Entry, StoreError> {
        Ok(match entry.state {
            State::Finished { payload } => {
                let binding = Binding { id: &entry.id, fingerprint: &entry.fingerprint };
                let payload = self.decode(&binding, payload)?;
                Entry { state: State::Finished { payload }, ..entry }
            }
            _ => entry,
        })
    }
}

impl<S: Store> Encoded<S> {
    /// By the payload's own size: whether a response can be kept does not depend on what is in it.
    fn check_size(&self, payload: &Bytes) -> Result<(), StoreError> {
        let (is, most) = (payload.len(), Store::about(self).max_payload);
        if is <= most {
            return Ok(());
        }
        Err(StoreError::new(
            StoreErrorKind::TooLarge,
            format!("a payload of {is} bytes is over the {most} that the store takes"),
        ))
    }
}

impl<S: Store> Store for Encoded<S> {
    /// The store's own name, and its limit less what encoding may add.
    fn about(&self) -> About {
        let About { engine, max_payload } = self.store.about();
        About { engine, max_payload: max_payload.saturating_sub(self.overhead()) }
    }

    async fn begin(&self, claim: &Claim) -> Result<Begin, StoreError> {
        Ok(match self.store.begin(claim).await? {
            Begin::Acquired(acquired) => Begin::Acquired(acquired),
            Begin::Found(found) => Begin::Found(self.decode_found(&claim.id, found)?),
        })
    }

    async fn renew(&self, lease: &Lease, lease_for: Duration) -> Result<Held, StoreError> {
        let held = self.store.renew(lease, lease_for).await?;
        self.decode_held(lease, held)
    }

    async fn complete(
        &self,
        lease: &Lease,
        fingerprint: &Fingerprint,
        payload: Bytes,
        retention: Duration,
    ) -> Result<Held, StoreError> {
        self.check_size(&payload)?;
        let kept = self.encode(&Binding { id: &lease.id, fingerprint }, payload);
        let held = self.store.complete(lease, fingerprint, kept, retention).await?;
        self.decode_held(lease, held)
    }

    async fn release(
        &self,
        lease: &Lease,
        keep_counters_for: Duration,
    ) -> Result<Held, StoreError> {
        let held = self.store.release(lease, keep_counters_for).await?;
        self.decode_held(lease, held)
    }

    async fn changed(
        &self,
        id: &OperationId,
        seen: u32,
        within: Duration,
    ) -> Result<(), StoreError> {
        self.store.changed(id, seen, within).await
    }

    async fn sweep(&self, limit: usize) -> Result<Swept, StoreError> {
        self.store.sweep(limit).await
    }

    fn unit(&self, lease: &Lease) -> Option<Arc<dyn Unit>> {
        self.store.unit(lease)
    }
}

impl<S: Store + Inspect> Inspect for Encoded<S> {
    async fn get(&self, id: &OperationId) -> Result<Option<Entry>, StoreError> {
        let entry = self.store.get(id).await?;
        entry.map(|entry| self.decode_entry(entry)).transpose()
    }

    async fn page(
        &self,
        after: Option<&OperationId>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let page = self.store.page(after, limit).await?;
        page.into_iter().map(|entry| self.decode_entry(entry)).collect()
    }

    async fn count(&self) -> Result<Counts, StoreError> {
        self.store.count().await
    }

    /// Reads the record first, and leaves alone what it can't decode. To forget a record whose key
    /// is lost, ask the store inside.
    async fn forget(&self, id: &OperationId) -> Result<Operated, StoreError> {
        self.get(id).await?;
        self.store.forget(id).await
    }

    /// Reads the record's fingerprint first, which an encrypted payload is bound to. If another
    /// attempt begins in between, the store refuses, because it is not the one `seen`. Should the
    /// record even expire in between, and the key be claimed and left again with another request,
    /// what is written then is unreadable: it never answers for a request that it is not about.
    async fn resolve(
        &self,
        id: &OperationId,
        seen: u32,
        resolution: Resolution,
    ) -> Result<Operated, StoreError> {
        let resolution = match resolution {
            Resolution::DidNotHappen => Resolution::DidNotHappen,
            Resolution::Happened { payload, retention } => {
                self.check_size(&payload)?;
                let Some(Entry { fingerprint, .. }) = self.store.get(id).await? else {
                    return Ok(Operated::NotFound);
                };
                let payload = self.encode(&Binding { id, fingerprint: &fingerprint }, payload);
                Resolution::Happened { payload, retention }
            }
        };
        self.store.resolve(id, seen, resolution).await
    }
}

/// What a payload belongs to.
#[cfg_attr(not(feature = "encryption"), expect(dead_code, reason = "only encryption binds"))]
struct Binding<'a> {
    id: &'a OperationId,
    fingerprint: &'a Fingerprint,
}

/// Why a payload can't be decoded.
#[derive(Debug, thiserror::Error)]
enum Undecodable {
    #[cfg(not(feature = "zstd"))]
    #[error("it is compressed, and this build has not the feature `zstd`")]
    Compressed,
    #[cfg(feature = "zstd")]
    #[error("it does not decompress: it is damaged")]
    Damaged,
    #[cfg(feature = "encryption")]
    #[error("it is not encrypted, and plain payloads are not accepted")]
    NotEncrypted,
    #[cfg(feature = "encryption")]
    #[error("it is encrypted with the key {0}, which is not in the ring: add it")]
    UnknownKey(u8),
    #[cfg(feature = "encryption")]
    #[error(
        "it does not open with the key {0}: it is damaged, belongs to another operation, or was encrypted with another key of that id"
    )]
    NotAuthentic(u8),
    #[cfg(feature = "encryption")]
    #[error("it is encrypted, and cut short")]
    Cut,
    #[error("it is encrypted, and this store was given no keys")]
    Encrypted,
    #[error("it was encoded by a newer version ({0:#x}): upgrade this one")]
    Newer(u8),
}

fn decompress(marked: Bytes) -> Result<Bytes, Undecodable> {
    match marked.first() {
        None | Some(..FIRST_MARK) => Ok(marked),
        Some(&PLAIN) => Ok(marked.slice(1..)),
        #[cfg(feature = "zstd")]
        Some(&COMPRESSED) => compression::decompress(&marked[1..]),
        #[cfg(not(feature = "zstd"))]
        Some(&COMPRESSED) => Err(Undecodable::Compressed),
        Some(&ENCRYPTED) => Err(Undecodable::Encrypted),
        Some(&newer) => Err(Undecodable::Newer(newer)),
    }
}
