//! Retries that are safe: an operation gets its key once, before the first attempt, and keeps it.
//!
//! A request that was answered with nothing but a broken connection may have been executed. Sending it
//! again is safe if the server knows operations by their key, and if the client sends the *same* key
//! again. This crate is that client, for retrysafe and for servers of others: it makes the key, tries
//! again under it for as long as that helps and no longer, and says so if nobody knows what happened.
//!
//! ```
//! use retrysafe_client::{Client, OutcomeUnknown};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! # let url = format!("http://{}/orders", listener.local_addr()?);
//! # tokio::spawn(async move {
//! #     use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
//! #     for answer in ["503 Service Unavailable", "201 Created"] {
//! #         let (mut stream, _) = listener.accept().await.unwrap();
//! #         let _ = stream.read(&mut [0; 4096]).await;
//! #         let text = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
//! #         stream.write_all(text.as_bytes()).await.unwrap();
//! #     }
//! # });
//! let client = Client::builder().build()?;
//! // The server answers 503 and then, to the same key, 201.
//! match client.post(&url).body(r#"{"item":"book"}"#).send().await {
//!     Ok(response) => assert_eq!(response.status(), 201),
//!     Err(error) => match OutcomeUnknown::of(&error) {
//!         // It may have been placed. Ask again later, with this key and no other.
//!         Some(unknown) => println!("keep {:?} and its request", unknown.key()),
//!         None => println!("it was not placed: {error}"),
//!     },
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What it does
//!
//! - **Keys.** POST and PATCH requests get a random UUID; [`KeySource`] has others, and a key of the
//!   caller's own, in the header or as an [`IdempotencyKey`] among the request's extensions, is never
//!   touched. [Choosing a key](https://github.com/retrysafe/retrysafe/blob/main/docs/choosing-a-key.md).
//! - **Retries** with full jitter, up to three attempts, within a deadline and a budget
//!   ([`RetryPolicy`]). `Retry-After` is honoured. A 409 that says that another attempt is in progress is
//!   waited for. Answers are read whole (up to 4 MiB) before the caller gets them, so that one which is cut
//!   off is asked for again; streams are handed on as they come.
//! - **The truth.** A call ends with an answer, with an error after which surely nothing was done, or
//!   with [`OutcomeUnknown`], which names the key.
//! - **A journal** ([`FileJournal`], `SqliteJournal`): key and request are on the disk before they are
//!   sent. After a crash [`Client::resume`] finds out what became of each, and [`Client::batch`] sends
//!   only what is not done.
//! - **Dialects** of Stripe, Adyen, PayPal, Square, AIP-155 and LLM APIs ([`Dialect`]).
//! - **Shared answers** ([`ShareAnswers`]) for servers that know no keys. Nothing about money should
//!   rest on them.
//!
//! # Which door
//!
//! | you use | take |
//! |---|---|
//! | reqwest | [`Client`], which is a `reqwest-middleware` client; or [`IdempotencyMiddleware`] in a stack of your own |
//! | Tower, hyper | [`ClientLayer`] |
//! | Tonic | `UnaryClient`, with the feature `tonic`; with a journal `JournaledUnaryClient` |
//!
//! All three ask one policy, which is pure and has no driver: [`policy`].
//!
//! # TLS
//!
//! It is reqwest's, and none is chosen here: depend on `reqwest` with the feature that you want
//! (`rustls`, `native-tls`).
//!
//! # Observing
//!
//! A span `idempotent_call` for each call and `attempt` for each request, with the digest of origin and
//! key ([`OperationId`]) and the trace id of `traceparent`; the key itself is never shown. Metrics:
//! `retrysafe_client_calls_total{outcome}`, `_attempts_total{end}`, `_retries_total{reason}`,
//! `_budget_refusals_total`, `_replays_total`, `_unknown_outcomes_total{reason}`.

mod batch;
mod body;
mod budgets;
mod calls;
mod client;
mod config;
mod error;
pub mod journal;
mod journaling;
mod keying;
mod layer;
mod middleware;
mod observe;
mod redirect;
mod resume;
mod secrets;
mod settings;
mod shared;
mod transport;
#[cfg(feature = "tonic")]
mod unary;

#[cfg(feature = "sqlite")]
pub use self::journal::SqliteJournal;
#[cfg(feature = "tonic")]
pub use self::unary::{JournaledUnaryClient, ResumedCall, UnaryClient};
pub use self::{
    batch::{Batch, BatchItem, ItemOutcome},
    body::ReadBody,
    calls::{CallDeadline, CallReport},
    client::{Client, ClientBuilder},
    config::ClientConfig,
    error::{BoxError, Error, ErrorKind, OutcomeUnknown},
    journal::{FileJournal, Journal},
    layer::{ClientLayer, ClientService},
    middleware::IdempotencyMiddleware,
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
/// What requests, answers and errors are made of.
pub use {reqwest, reqwest_middleware};

/// The code in the guides compiles.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/guides/client.md")]
#[doc = include_str!("../../../docs/choosing-a-key.md")]
struct Guides;
