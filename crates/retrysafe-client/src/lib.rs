//! TODO essay
mod batch;
mod body;
mod calls;
mod client;
mod config;
mod error;
pub mod journal;
mod layer;
mod middleware;
mod observe;
mod redirect;
mod resume;
mod settings;
mod shared;

#[cfg(feature = "sqlite")]
pub use self::journal::SqliteJournal;
pub use self::{
    batch::{Batch, BatchItem, ItemOutcome},
    body::ReadBody,
    calls::CallReport,
    client::{Client, ClientBuilder},
    config::ClientConfig,
    error::{BoxError, Error, ErrorKind, OutcomeUnknown},
    journal::{FileJournal, Journal},
    layer::{ClientLayer, ClientService},
    middleware::{CallDeadline, IdempotencyMiddleware},
    redirect::same_origin_redirects,
    resume::{Resumed, ResumedOutcome},
    settings::Settings,
    shared::ShareAnswers,
};
#[doc(no_inline)]
pub use retrysafe_core::{
    ConfigError, IdempotencyKey, InvalidKey, JsonPointer, OperationId, Quoting,
    client::{
        self as policy, Backoff, BudgetPolicy, ContentKey, Dialect, KeySource, NoKey, RetryPolicy,
        Spelling, Unknown, VOLATILE_FIELDS, business_key, business_key_v5,
    },
};
