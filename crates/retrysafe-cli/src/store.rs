//! Opening the store that a URL names.

use retrysafe_stores::{OpenError, OpenStore};

use crate::{Failure, config::ConfigError};

/// Opens a store; a file, a table or a stream that is not there is made.
///
/// # Errors
///
/// If the URL can't be used (a failure of the configuration) or the store can't be opened.
pub(crate) async fn open(url: &str) -> Result<OpenStore, Failure> {
    retrysafe_stores::open(url).await.map_err(failed)
}

/// Opens a store that is there: looking into one that is not would find nothing, and make it.
///
/// # Errors
///
/// As [`open`], and if it is not there.
pub(crate) async fn open_existing(url: &str) -> Result<OpenStore, Failure> {
    retrysafe_stores::open_existing(url).await.map_err(failed)
}

/// The statements that create a store's table.
///
/// # Errors
///
/// If the URL can't be used, or its store has none.
pub(crate) fn schema(url: &str) -> Result<String, Failure> {
    retrysafe_stores::schema(url).map_err(failed)
}

fn failed(error: OpenError) -> Failure {
    let message = crate::chain(&error);
    match error.is_config() {
        true => ConfigError::new(message).into(),
        false => Failure::Run(message),
    }
}

/// The file of a `sqlite:` URL.
pub(crate) fn sqlite_path(url: &str) -> Option<String> {
    let path = url.strip_prefix("sqlite:")?;
    let path = path.strip_prefix("//").unwrap_or(path);
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    Some(percent_encoding::percent_decode_str(path).decode_utf8_lossy().into_owned())
}
