//! The answer that an operator gives in place of one that was lost.

use std::{fs, str::FromStr, time::Duration};

use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use retrysafe::{
    Clock as _, KeptHeaders, Outcome, SystemClock,
    grpc::{GRPC_STATUS, is_grpc},
};

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
    /// A trailer of the answer, 'Name: value', such as 'grpc-status: 0'; may be repeated
    #[arg(long = "trailer", value_name = "TRAILER")]
    trailers: Vec<HeaderLine>,
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
        let (headers, trailers) = (as_map(&self.headers), as_map(&self.trailers));
        // G4: without its end a message is an answer to nobody, and this one is given from now on.
        if is_grpc(&headers) && !body.is_empty() && !trailers.contains_key(&GRPC_STATUS) {
            let problem = "--trailer: behind a message of gRPC 'grpc-status: 0' is needed";
            return Err(ConfigError::new(problem));
        }
        // What is asked for by name is kept (R3).
        let named = headers.keys().chain(trailers.keys()).cloned();
        let kept = named.fold(KeptHeaders::default(), KeptHeaders::keep);
        let outcome = Outcome {
            status,
            headers: &headers,
            body: Some(&[Bytes::from(body)]),
            trailers: Some(&trailers),
            stream: false,
            trailers_only: false,
            recorded: now(),
            trace: None,
        };
        Ok(outcome.encode(&kept))
    }
}

fn as_map(lines: &[HeaderLine]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for line in lines {
        map.append(line.name.clone(), line.value.clone());
    }
    map
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
        line.ok_or_else(|| BadText::new("it is written as 'Name: value'"))
    }
}
