//! What can be wrong with a configuration. What can go wrong while running is elsewhere:
//! [`StoreError`](crate::StoreError) for stores, [`Problem`](crate::Problem) for answers.

use std::fmt;

/// A setting that can't be used: which one, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    setting: &'static str,
    problem: String,
}

impl ConfigError {
    /// An error that names the setting by the word of PROTOCOL.md.
    pub fn new(setting: &'static str, problem: impl Into<String>) -> Self {
        Self { setting, problem: problem.into() }
    }

    /// The setting that can't be used.
    pub fn setting(&self) -> &'static str {
        self.setting
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.setting, self.problem)
    }
}

impl std::error::Error for ConfigError {}
