//! What can be wrong with a URL, or with what it names.

use std::{error::Error, fmt};

/// Why a store could not be opened by its URL. One line that says what to do, and shows no secret.
#[derive(Debug)]
pub struct OpenError {
    reason: Reason,
}

#[derive(Debug)]
enum Reason {
    /// The text can't be used as a store's URL.
    Url(String),
    /// The store can't be opened.
    #[cfg(feature = "sqlite")]
    Store(Box<dyn Error + Send + Sync>),
}

impl OpenError {
    pub(crate) fn url(problem: impl Into<String>) -> Self {
        Self { reason: Reason::Url(problem.into()) }
    }

    #[cfg(feature = "sqlite")]
    pub(crate) fn store(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { reason: Reason::Store(error.into()) }
    }

    /// Whether the URL itself is wrong, or names a store that is not built in, so that opening it
    /// again can't help. Otherwise the store was found wanting: a file that can't be written, say.
    pub fn is_config(&self) -> bool {
        matches!(self.reason, Reason::Url(_))
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Reason::Url(problem) => f.write_str(problem),
            #[cfg(feature = "sqlite")]
            Reason::Store(error) => error.fmt(f),
        }
    }
}

impl Error for OpenError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.reason {
            Reason::Url(_) => None,
            // Shown whole by `Display`, so that a chain that is printed does not say it twice.
            #[cfg(feature = "sqlite")]
            Reason::Store(error) => error.source(),
        }
    }
}
