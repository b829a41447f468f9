//! From a URL to a store.

use std::{fmt, sync::Arc};

use retrysafe_core::{Inspect, MemoryStore, SharedStore, Store, store::DynInspect};

use crate::OpenError;

/// What there is, whether it was built in or not.
const ACCEPTED: &str = "memory:, sqlite:PATH, redis://HOST, redis-cluster://HOST,HOST, \
                        postgres://HOST/DATABASE, mysql://HOST/DATABASE or nats://HOST,HOST";

/// A store that was opened by its URL.
#[derive(Clone)]
#[non_exhaustive]
pub struct OpenStore {
    /// What the front doors take.
    pub store: SharedStore,
    /// What operators need. It sees the same records.
    pub inspect: Arc<dyn DynInspect>,
    /// The URL as it may be shown: without user and password.
    pub url: String,
}

/// Opens a store.
///
/// The forms of URLs are in the [crate's page](crate). What is not there is created: a file, a table,
/// a stream. A server is looked at before it is trusted with records.
///
/// # Errors
///
/// [`OpenError`]: the URL is wrong or its store is not built in
/// ([`is_config`](OpenError::is_config)), or the store can't be opened.
///
/// # Panics
///
/// Outside of a tokio runtime, unless the store is `memory:`.
///
/// # Cancel safety
///
/// Dropping the future may leave an empty store behind.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let error = retrysafe_stores::open("redsi://cache.internal").await.unwrap_err();
/// assert!(error.is_config());
/// assert!(error.to_string().starts_with("there is no store of the kind `redsi:`; use memory:, "));
/// # }
/// ```
pub async fn open(url: &str) -> Result<OpenStore, OpenError> {
    open_as(url, Absent::Create).await
}

/// Opens a store that is there, to look into it: no file, table or stream is created, whatever
/// `migrate` or `create` says.
///
/// # Errors
///
/// As [`open`]; and if the store is not there, or is `memory:`, which nobody else can open.
///
/// # Panics
///
/// Outside of a tokio runtime.
///
/// # Cancel safety
///
/// Dropping the future closes what was opened.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// assert!(retrysafe_stores::open_existing("memory:").await.unwrap_err().is_config());
/// # }
/// ```
pub async fn open_existing(url: &str) -> Result<OpenStore, OpenError> {
    open_as(url, Absent::Refuse).await
}

/// What becomes of a file, a table or a stream that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Absent {
    Create,
    Refuse,
}

/// The statements that create the table of a `postgres:` or `mysql:` store, as its URL names it, for
/// migrations that are run by something else. Nothing is connected to.
///
/// # Errors
///
/// [`OpenError`]: the URL is wrong, or its store has no table that is created by statements.
///
/// ```
/// # #[cfg(feature = "postgres")] {
/// let schema = retrysafe_stores::schema("postgres://db.internal/shop?table=app.retries")?;
/// assert!(schema.contains(r#"CREATE TABLE IF NOT EXISTS "app"."retries""#));
/// # }
/// # Ok::<(), retrysafe_stores::OpenError>(())
/// ```
pub fn schema(url: &str) -> Result<String, OpenError> {
    #[cfg_attr(not(any(feature = "mysql", feature = "postgres")), expect(unused_variables))]
    let (written, rest) = split(url)?;
    let scheme = written.to_ascii_lowercase();
    match scheme.as_str() {
        #[cfg(feature = "postgres")]
        "postgres" | "postgresql" => crate::postgres::schema(&scheme, rest),
        #[cfg(feature = "mysql")]
        "mysql" | "mariadb" => crate::mysql::schema(&scheme, rest),
        "memory" | "sqlite" | "redis" | "rediss" | "redis-cluster" | "rediss-cluster" | "nats" => {
            Err(OpenError::url(format!(
                "the store `{scheme}:` has no statements to run: it makes what it needs when it is \
                 opened"
            )))
        }
        _ => Err(unknown(&scheme, written)),
    }
}

/// The scheme as it is written, and what follows it.
fn split(url: &str) -> Result<(&str, &str), OpenError> {
    url.split_once(':').ok_or_else(|| {
        OpenError::url(match file_name(url) {
            Some(file) => format!("a store's URL begins with its kind: `sqlite:{file}`?"),
            None => format!("a store's URL begins with its kind: {ACCEPTED}"),
        })
    })
}

async fn open_as(url: &str, absent: Absent) -> Result<OpenStore, OpenError> {
    let (written, rest) = split(url)?;
    let scheme = written.to_ascii_lowercase();
    match scheme.as_str() {
        "memory" if !rest.is_empty() && rest != "//" => {
            Err(OpenError::url("the store `memory:` takes nothing after the colon"))
        }
        "memory" if absent == Absent::Create => {
            Ok(OpenStore::new(MemoryStore::new(), "memory:".to_owned()))
        }
        "memory" => Err(OpenError::url(
            "a memory: store lives inside its own process; give the URL of one that is shared",
        )),
        #[cfg(feature = "sqlite")]
        "sqlite" => crate::sqlite::open(rest, absent).await,
        #[cfg(feature = "redis")]
        "redis" | "rediss" | "redis-cluster" | "rediss-cluster" => {
            crate::redis::open(&scheme, rest).await
        }
        #[cfg(feature = "postgres")]
        "postgres" | "postgresql" => crate::postgres::open(&scheme, rest, absent).await,
        #[cfg(feature = "mysql")]
        "mysql" | "mariadb" => crate::mysql::open(&scheme, rest, absent).await,
        #[cfg(feature = "nats")]
        "nats" => crate::nats::open(&scheme, rest, absent).await,
        _ => Err(unknown(&scheme, written)),
    }
}

/// The text after the scheme is never shown: it may hold a password.
fn unknown(scheme: &str, written: &str) -> OpenError {
    match feature(scheme) {
        Some(feature) => OpenError::not_built_in(scheme, feature),
        None => OpenError::url(format!(
            "there is no store of the kind `{}:`; use {ACCEPTED}",
            shown(written)
        )),
    }
}

/// The feature that brings a store.
fn feature(scheme: &str) -> Option<&'static str> {
    Some(match scheme {
        "sqlite" => "sqlite",
        "redis" | "rediss" | "redis-cluster" | "rediss-cluster" => "redis",
        "postgres" | "postgresql" => "postgres",
        "mysql" | "mariadb" => "mysql",
        "nats" => "nats",
        _ => return None,
    })
}

/// A scheme with a typo is shown; what is no scheme may be anything, a password included.
fn shown(scheme: &str) -> &str {
    let is_scheme = scheme.len() <= 16
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    if is_scheme { scheme } else { "..." }
}

/// What looks like the name of a file, and may be shown.
fn file_name(text: &str) -> Option<&str> {
    let is_file = [".db", ".sqlite", ".sqlite3"].iter().any(|ending| text.ends_with(ending));
    (is_file && !text.contains(['@', '?', '\n'])).then_some(text)
}

impl OpenStore {
    pub(crate) fn new(store: impl Store + Inspect + Clone, url: String) -> Self {
        Self { store: SharedStore::new(store.clone()), inspect: Arc::new(store), url }
    }
}

impl fmt::Debug for OpenStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenStore").field("url", &self.url).finish_non_exhaustive()
    }
}
