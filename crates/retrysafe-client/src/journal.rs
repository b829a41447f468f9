//! The journal: keys and requests, durable before they are sent, so that a process that died can find
//! out what became of them.

mod error;
mod file;
#[cfg(feature = "sqlite")]
mod sqlite;
mod writer;

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, StatusCode};
use retrysafe_core::{IdempotencyKey, OperationId};

#[cfg(feature = "sqlite")]
pub use self::sqlite::SqliteJournal;
pub use self::{error::JournalError, file::FileJournal};
use crate::secrets::is_secret;

/// Where keys and requests are kept.
///
/// [`FileJournal`] and, with the feature `sqlite`, `SqliteJournal` are two; one of your own keeps four
/// promises:
///
/// - What [`begin`](Self::begin) was given is durable before it answers. Nothing is sent before that.
/// - Calls take effect in the order in which they were made.
/// - An operation that was begun and not settled is [`unknown`](Self::unknown), whatever happened to
///   the process meanwhile.
/// - One process uses it at a time.
pub trait Journal: Send + Sync + 'static {
    /// Keeps a request that is about to be sent. If the operation is there already, it is unknown
    /// again, and keeps the time at which it was first sent. What was known of it before is read in the
    /// same step: an operation that is taken for a new one may be forgotten again.
    ///
    /// # Errors
    ///
    /// If it can't be kept. Then it is not sent.
    fn begin(&self, entry: Arc<Entry>) -> BoxFuture<'_, Result<Begun, JournalError>>;

    /// Notes what became of an operation. It need not be durable when this returns: what is lost is
    /// asked for again with the same key.
    fn settle(&self, operation: OperationId, settled: Settled);

    /// What is known of an operation.
    ///
    /// # Errors
    ///
    /// If it can't be read.
    fn find(&self, operation: OperationId) -> BoxFuture<'_, Result<Option<Known>, JournalError>>;

    /// The operations whose outcome is unknown, oldest first.
    ///
    /// # Errors
    ///
    /// If they can't be read.
    fn unknown(&self) -> BoxFuture<'_, Result<Vec<Arc<Entry>>, JournalError>>;
}

/// What [`Journal::begin`] says of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// When it was first sent, by the wall clock: until its retention is over the server remembers it.
    pub first_sent: Duration,
    /// What the journal knew of it until now; none if it was not there.
    pub before: Option<Before>,
}

/// What a journal knew of an operation that is begun again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// It was begun, and may have been executed.
    Unknown,
    /// There was an answer of this status.
    Answered(StatusCode),
}

/// What became of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// There was an answer.
    Answered {
        /// Its status.
        status: StatusCode,
        /// When it came, by the wall clock.
        at: Duration,
    },
    /// It was surely not executed: nothing was sent, or the server refused.
    NotDone,
}

/// What a journal knows of an operation.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Known {
    /// It was begun.
    Unknown(Arc<Entry>),
    /// There was an answer of this status.
    Answered(StatusCode),
}

/// How long what is settled is remembered, after the newest of all. A batch takes what is forgotten
/// for what was never sent, so it is longer than anybody waits before running one again.
const REMEMBERED: Duration = Duration::from_secs(400 * 24 * 3600);

/// A request that was about to be sent.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The digest of the origin and the key.
    pub operation: OperationId,
    /// The key.
    pub key: IdempotencyKey,
    /// The method.
    pub method: Method,
    /// The whole URL.
    pub url: String,
    /// The headers, without credentials: those don't belong on a disk, and are old when it is sent
    /// again.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// When it was first sent, by the wall clock.
    pub first_sent: Duration,
}

impl Entry {
    /// An entry.
    pub fn new(
        operation: OperationId,
        key: IdempotencyKey,
        method: Method,
        url: impl Into<String>,
        headers: &HeaderMap,
        body: Bytes,
        first_sent: Duration,
    ) -> Self {
        let headers = headers
            .iter()
            .filter(|(name, value)| !is_secret(name, value))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        Self { operation, key, method, url: url.into(), headers, body, first_sent }
    }
}

// S3: neither keys nor bodies.
impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("operation", &self.operation)
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}
