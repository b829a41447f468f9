//! The idempotency protocol without I/O.
//!
//! A client names an operation with an `Idempotency-Key`; the operation runs once, and every retry
//! gets the same answer. This crate holds what that means: how a key is read ([`KeyRules`]), whose
//! it is ([`Scope`]), what tells a retry from a reuse ([`Fingerprinter`]), what a store must do
//! ([`store`]), what happens next ([`decide`]), what is kept ([`OutcomePolicy`], [`Record`]), what is
//! answered instead ([`Problem`]), and every setting with its default ([`Settings`]). The client's side
//! is in [`client`].
//!
//! It runs nothing. Services use the crate `retrysafe` (the engine and the Tower layer) or an
//! adapter on top of it, which re-export this crate; stores implement [`Store`] from here.
//!
//! # From a request to a decision
//!
//! ```
//! use std::time::Duration;
//! use http::HeaderMap;
//! use retrysafe_core::{
//!     Begin, Claim, Fingerprinter, IdempotencyKey, MemoryStore, OperationId, Owner, RequestHead,
//!     Scope, Store, SystemEntropy,
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let key = IdempotencyKey::new("8e03978e-40d5-43e8-bc93-6894a57f9324")?;
//! let id = OperationId::new("payments", &Scope::from_bytes("alice"), &key);
//!
//! let headers = HeaderMap::new();
//! let head = RequestHead { method: "POST", target: "/payments", headers: &headers };
//! let claim = Claim {
//!     id,
//!     owner: Owner::new(&SystemEntropy),
//!     fingerprint: Fingerprinter::raw().whole(&head, b"{\"amount\": 100}"),
//!     lease: Duration::from_secs(30),
//!     retention: Duration::from_secs(24 * 3600),
//!     take_over: true,
//! };
//! let store = MemoryStore::new();
//! let Begin::Acquired(acquired) = store.begin(&claim).await? else { panic!("a free key") };
//! assert_eq!(acquired.attempt, 1);
//! # Ok(())
//! # }
//! ```
//!
//! Rules are named in comments by the ids of `docs/protocol.md` (`K3`, `D5`, `ST6`, ...).

mod attempt;
pub mod client;
mod clock;
#[cfg(any(feature = "encryption", feature = "zstd"))]
mod codec;
mod decide;
mod error;
#[doc(hidden)]
pub mod failpoint;
mod fingerprint;
mod fingerprinter;
pub mod grpc;
pub mod headers;
mod json;
mod key;
pub mod lifecycle;
mod memory;
mod operation;
mod outcome;
mod pointer;
mod preimage;
mod problem;
mod record;
mod scope;
mod settings;
pub mod store;
mod unit;

#[cfg(any(feature = "encryption", feature = "zstd"))]
pub use self::codec::Encoded;
#[cfg(feature = "encryption")]
pub use self::codec::{Encryption, EncryptionKeys};
pub use self::{
    attempt::Attempt,
    clock::{Clock, Entropy, SystemClock, SystemEntropy},
    decide::{Decision, Kept, Likeness, decide},
    error::ConfigError,
    fingerprint::{Algorithm, BodyPart, Comparison, Extent, Fingerprint},
    fingerprinter::{BodyHasher, Fingerprinter, Keyring, RequestHead},
    headers::KeptHeaders,
    json::canonical_json,
    key::{IdempotencyKey, InvalidKey, KeyFormat, KeyParsing, KeyReason, KeyRules, Quoting},
    memory::{MemoryStore, MemoryStoreBuilder},
    operation::{InvalidPrefix, OperationId, OperationPrefix, Owner},
    outcome::{Disposition, Ending, OutcomeOverrule, OutcomePolicy, Overrule, ResponseHead, Work},
    pointer::JsonPointer,
    problem::{Code, Problem, ProblemStyle},
    record::{Outcome, Record, RecordError, Trace},
    scope::Scope,
    settings::{
        KeySource, Methods, OnInFlight, OnStoreFailure, OnUnknownOutcome, Reconciled, Reconciler,
        Settings, Unknown,
    },
    store::{
        About, Acquired, Begin, Claim, Counts, Entry, Found, Held, Inspect, Lease, Operated,
        Resolution, SharedStore, State, Store, StoreError, StoreErrorKind, Swept,
    },
    unit::{Abandoned, FindAbandoned, FromAttempt, NotLent, PointFuture, Points, Unit},
};
