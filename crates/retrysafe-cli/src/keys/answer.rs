//! The answer that an operator gives in place of one that was lost.

use std::{fs, str::FromStr, time::Duration};

use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use retrysafe::{Clock as _, KeptHeaders, Outcome, SystemClock};

use crate::config::{BadText, ConfigError};

#[derive(Args)]
pub(super) struct AnswerFlags {
    /// The answer's status
    #[arg(long, value_name = "STATUS")]
    status: Option<StatusCode>,
    /// A header of the answer, 'Name: value'; may be repeated
    #[arg(long = "header", value_name = "HEADER")]
    headers: Vec<HeaderLine>,
    /// The answer's body, or @FILE
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    body: String,
}

impl AnswerFlags {
    /// The payload that answers retries from now on.
    pub(super) fn payload(&self) -> Result<Bytes, ConfigError> {
        let status = self
            .status
            .filter(|status| status.as_u16() >= 200)
            .ok_or_else(|| ConfigError::new("--status: a final status such as 201 is needed"))?;
        let body = match self.body.strip_prefix('@') {
            Some(file) => fs::read(file).map_err(|error| {
                ConfigError::new(format!("--body: the file {file} can't be read: {error}"))
            })?,
            None => self.body.clone().into_bytes(),
        };
        let mut headers = HeaderMap::new();
        for line in &self.headers {
            headers.append(line.name.clone(), line.value.clone());
        }
        // What is asked for by name is kept (R3).
        let kept = headers.keys().cloned().fold(KeptHeaders::default(), KeptHeaders::keep);
        let outcome = Outcome {
            status,
            headers: &headers,
            body: Some(&[Bytes::from(body)]),
            trailers: None,
            stream: false,
            trailers_only: false,
            recorded: now(),
            trace: None,
        };
        Ok(outcome.encode(&kept))
    }
}

fn now() -> Duration {
    SystemClock::new().wall()
}

/// `Name: value`.
#[derive(Clone)]
struct HeaderLine {
    name: HeaderName,
    value: HeaderValue,
}

impl FromStr for HeaderLine {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        let line = text.split_once(':').and_then(|(name, value)| {
            Some(Self { name: name.trim().parse().ok()?, value: value.trim().parse().ok()? })
        });
        line.ok_or_else(|| BadText::new("a header is written as 'Name: value'"))
    }
}
