//! The client's side of the protocol, without I/O (PROTOCOL 9): which key an operation gets, and what
//! follows when an attempt has ended.
//!
//! Nothing here sends a request. The crate `retrysafe-client` does, for reqwest, Tower and Tonic, and
//! asks the same few types:
//!
//! - a [`KeySource`] makes the key, once, before the first attempt (C1, C2);
//! - a [`Dialect`] is what the server understands: where the key goes, how it marks replays, for how
//!   long it remembers; there is one for each of the well-known APIs;
//! - a [`Call`] is one logical operation: told how each attempt ended, it says what is
//!   [`Next`] (C3 to C5);
//! - a [`RetryBudget`] is shared by all calls of a client to one authority, and keeps retries from
//!   becoming a flood.
//!
//! ```
//! use http::StatusCode;
//! use retrysafe_core::{SystemClock, SystemEntropy};
//! use retrysafe_core::client::{
//!     Answer, AttemptEnd, Call, Dialect, Next, RetryBudget, RetryPolicy, Safety,
//! };
//!
//! let (policy, dialect) = (RetryPolicy::default(), Dialect::draft07());
//! let budget = RetryBudget::new(policy.budget);
//! let clock = SystemClock::new();
//!
//! let mut call = Call::start(&policy, &dialect, Safety::Keyed, &clock);
//! // The connection broke after the request was sent: nobody knows what happened.
//! let next = call.judge(&AttemptEnd::Broken, &budget, &clock, &SystemEntropy);
//! assert!(matches!(next, Next::Again { .. }));
//! // The same key once more, and the answer is there.
//! let created = AttemptEnd::Answered(Answer::of(StatusCode::CREATED));
//! let next = call.judge(&created, &budget, &clock, &SystemEntropy);
//! assert_eq!(next, Next::Answer);
//! ```

mod answer;
mod budget;
mod call;
mod content;
mod dialect;
mod key_source;
mod policy;
mod presets;

pub use self::{
    answer::{Answer, AttemptEnd, retry_after},
    budget::{BudgetPolicy, RetryBudget},
    call::{Call, Next, Retry, Safety, Unknown},
    content::{ContentKey, ContentKeyBuilder, Spelling, VOLATILE_FIELDS},
    dialect::{Conflict, Dialect, KeyPlacement, Placed},
    key_source::{KeySource, NoKey, Operation, business_key, business_key_v5},
    policy::{Backoff, RetryPolicy},
};
