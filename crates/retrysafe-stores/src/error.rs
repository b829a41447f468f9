//! What can be wrong with a URL, or with what it names.

use std::{error::Error, fmt};

/// Why a store could not be opened by its URL. One line that says what to do, and shows no secret.
///
/// `Debug` reads as `Display` does, for those who `unwrap` it.
pub struct OpenError {
    is_config: bool,
    reason: Reason,
}

enum Reason {
    /// What we say.
    Ours(String),
    /// What the store's crate says.
    #[cfg(any(
        feature = "mysql",
        feature = "nats",
        feature = "postgres",
        feature = "redis",
        feature = "sqlite"
    ))]
    Store(Box<dyn Error + Send + Sync>),
}

impl OpenError {
    /// The text can't be used as a store's URL.
    pub(crate) fn url(problem: impl Into<String>) -> Self {
        Self { is_config: true, reason: Reason::Ours(problem.into()) }
    }

    pub(crate) fn not_built_in(scheme: &str, feature: &str) -> Self {
        Self::url(format!(
            "the store `{scheme}:` is not built in: build retrysafe-stores with the feature \
             `{feature}`"
        ))
    }

    /// What the URL names is not there.
    #[cfg(feature = "sqlite")]
    pub(crate) fn missing(problem: impl Into<String>) -> Self {
        Self { is_config: false, reason: Reason::Ours(problem.into()) }
    }

    /// What a store's crate refuses: for a setting of its URL, or for what it has found.
    #[cfg(any(
        feature = "mysql",
        feature = "nats",
        feature = "postgres",
        feature = "redis",
        feature = "sqlite"
    ))]
    pub(crate) fn store(is_config: bool, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { is_config, reason: Reason::Store(error.into()) }
    }

    /// Whether the URL itself is wrong, or names a store that is not built in, so that opening it
    /// again can't help. Otherwise the store was found wanting: a file that can't be written, say,
    /// or a server that is not there or refuses the password.
    pub fn is_config(&self) -> bool {
        self.is_config
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Reason::Ours(problem) => f.write_str(problem),
            #[cfg(any(
                feature = "mysql",
                feature = "nats",
                feature = "postgres",
                feature = "redis",
                feature = "sqlite"
            ))]
            Reason::Store(error) => error.fmt(f),
        }
    }
}

impl fmt::Debug for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error for OpenError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.reason {
            Reason::Ours(_) => None,
            // Shown whole by `Display`, so that a chain that is printed does not say it twice.
            #[cfg(any(
                feature = "mysql",
                feature = "nats",
                feature = "postgres",
                feature = "redis",
                feature = "sqlite"
            ))]
            Reason::Store(error) => error.source(),
        }
    }
}
