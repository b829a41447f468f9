//! From a URL to a store.

use std::{fmt, sync::Arc};

use retrysafe_core::{Inspect, MemoryStore, SharedStore, Store, store::DynInspect};

use crate::{OpenError, url::StoreUrl};

/// A store that was opened by its URL.
#[derive(Clone)]
#[non_exhaustive]
pub struct OpenStore {
    /// What the front doors take.
    pub store: SharedStore,
    /// What operators need. It sees the same records.
    pub inspect: Arc<dyn DynInspect>,
    /// The URL as it may be shown: without secrets.
    pub url: String,
}

/// Opens a store.
///
/// The forms of URLs are in the [crate's page](crate). A file that does not exist is created.
///
/// # Errors
///
/// [`OpenError`]: the URL is wrong or its store is not built in
/// ([`is_config`](OpenError::is_config)), or the store can't be opened.
///
/// # Panics
///
/// `sqlite:` outside of a tokio runtime.
///
/// # Cancel safety
///
/// Dropping the future may leave an empty store behind.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let error = retrysafe_stores::open("sqllite:orders.db").await.unwrap_err();
/// assert!(error.is_config());
/// assert_eq!(
///     error.to_string(),
///     "there is no store of the kind `sqllite:`; use memory: or sqlite:PATH",
/// );
/// # }
/// ```
pub async fn open(url: &str) -> Result<OpenStore, OpenError> {
    let url = StoreUrl::parse(url)?;
    let shown = url.to_string();
    match url {
        StoreUrl::Memory => Ok(OpenStore::new(MemoryStore::new(), shown)),
        #[cfg(feature = "sqlite")]
        StoreUrl::Sqlite { path, normal } => {
            use retrysafe_sqlite::{SqliteStore, Synchronous};
            let synchronous = if normal { Synchronous::Normal } else { Synchronous::Full };
            // Files are opened by blocking calls, which may wait for another process.
            let opening = tokio::task::spawn_blocking(move || {
                SqliteStore::builder(path).synchronous(synchronous).open()
            });
            match opening.await {
                Ok(Ok(store)) => Ok(OpenStore::new(store, shown)),
                Ok(Err(error)) => Err(OpenError::store(error)),
                Err(stopped) => Err(OpenError::store(stopped)),
            }
        }
        #[cfg(not(feature = "sqlite"))]
        StoreUrl::Sqlite { .. } => Err(OpenError::url(
            "the store `sqlite:` is not built in: build with the feature `sqlite`, or use memory:",
        )),
    }
}

impl OpenStore {
    fn new(store: impl Store + Inspect + Clone, url: String) -> Self {
        Self { store: SharedStore::new(store.clone()), inspect: Arc::new(store), url }
    }
}

impl fmt::Debug for OpenStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenStore").field("url", &self.url).finish_non_exhaustive()
    }
}
