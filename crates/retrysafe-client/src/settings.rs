//! Every setting of a client, with its default.

use retrysafe_core::{
    ConfigError,
    client::{Dialect, KeySource, RetryPolicy},
};

use crate::ShareAnswers;

/// The settings of a client.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// What the server understands. [`Dialect::draft07`].
    pub dialect: Dialect,
    /// Where keys come from. Random UUIDs.
    pub keys: KeySource,
    /// How often, how long and after which pauses a call is tried.
    pub retries: RetryPolicy,
    /// How much of an answer is read before the caller gets it, in bytes, so that one which is cut off
    /// is asked for again. A larger answer, or a stream, is handed on while it comes. 4 MiB.
    pub max_whole_answer: usize,
    /// How much of a streamed request body is read before it is sent, in bytes, so that it can be sent
    /// again. Only the Tower layer reads ahead; reqwest knows whether its bodies can be. 1 MiB.
    pub max_repeatable_body: usize,
    /// Whether calls of this process share answers (C7). No.
    pub shared_answers: Option<ShareAnswers>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            dialect: Dialect::draft07(),
            keys: KeySource::default(),
            retries: RetryPolicy::default(),
            max_whole_answer: 4 * 1024 * 1024,
            max_repeatable_body: 1024 * 1024,
            shared_answers: None,
        }
    }
}

impl Settings {
    /// Checks that the settings fit together.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first setting that can't be used.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.retries.validate()?;
        self.dialect.validate(self.keys.longest())?;
        if let Some(share) = self.shared_answers {
            if share.capacity == 0 {
                return Err(ConfigError::new("cache_capacity", "must be 1 or more"));
            }
            if share.ttl < self.retries.deadline {
                let problem = "must not be shorter than the deadline of a call";
                return Err(ConfigError::new("cache_ttl", problem));
            }
            if share.ttl > std::time::Duration::from_secs(365 * 24 * 3600) {
                return Err(ConfigError::new("cache_ttl", "must not be longer than a year"));
            }
        }
        if self.dialect.retention <= self.retries.attempt_timeout {
            let problem = "must be longer than attempt_timeout, or no retry could ever be made";
            return Err(ConfigError::new("retention", problem));
        }
        Ok(())
    }
}
