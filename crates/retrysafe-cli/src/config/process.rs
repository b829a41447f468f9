//! The settings of the process: where it listens, what is behind it, where records are kept.

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Deserialize;

use super::text::{AdminAddress, ListenAddress, Span, Sweep, Upstream};

/// What was said of the process in one place.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ProcessOverrides {
    /// Where clients connect to [default: 127.0.0.1:8080]
    #[arg(long, env = "RETRYSAFE_LISTEN", value_name = "ADDR")]
    pub(crate) listen: Option<ListenAddress>,
    /// Where /livez, /readyz and /metrics are served, or off [default: 127.0.0.1:9090, if it is free]
    #[arg(long, env = "RETRYSAFE_ADMIN", value_name = "ADDR")]
    pub(crate) admin: Option<AdminAddress>,
    /// The service: http://host:port or https://host
    #[arg(long, env = "RETRYSAFE_UPSTREAM", value_name = "URL", hide_env_values = true)]
    pub(crate) upstream: Option<Upstream>,
    /// Speak HTTP/2 to an http:// upstream without asking (https:// asks)
    #[arg(long, env = "RETRYSAFE_UPSTREAM_H2C", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) upstream_h2c: Option<bool>,
    /// How long connecting to the service may take [default: 5s]
    #[arg(long, env = "RETRYSAFE_CONNECT_TIMEOUT", value_name = "DURATION")]
    pub(crate) connect_timeout: Option<Span>,
    /// How long an unused connection to the service is kept [default: 4s]
    #[arg(long, env = "RETRYSAFE_UPSTREAM_IDLE", value_name = "DURATION")]
    pub(crate) upstream_idle: Option<Span>,
    /// Where records are kept: memory:, sqlite:PATH, redis://HOST, redis-cluster://HOST,HOST,
    /// postgres://HOST/DATABASE, mysql://HOST/DATABASE or nats://HOST,HOST
    /// [default: sqlite:retrysafe.db]
    #[arg(long, env = "RETRYSAFE_STORE", value_name = "URL", hide_env_values = true)]
    pub(crate) store: Option<String>,
    /// How many executions may be in flight [default: 1024]
    #[arg(long, env = "RETRYSAFE_MAX_IN_FLIGHT", value_name = "COUNT")]
    pub(crate) max_in_flight: Option<usize>,
    /// How many requests may wait for another's outcome [default: 1024]
    #[arg(long, env = "RETRYSAFE_MAX_WAITERS", value_name = "COUNT")]
    pub(crate) max_waiters: Option<usize>,
    /// How often expired records are removed, or off [default: 60s]
    #[arg(long, env = "RETRYSAFE_SWEEP", value_name = "DURATION")]
    pub(crate) sweep: Option<Sweep>,
    /// How long what runs may take to finish on shutdown [default: 30s]
    #[arg(long, env = "RETRYSAFE_DRAIN", value_name = "DURATION")]
    pub(crate) drain: Option<Span>,
    /// How logs are written [default: text]
    #[arg(long, env = "RETRYSAFE_LOG_FORMAT", value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
}

/// How logs are written, to standard error.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object a line.
    Json,
}

said_or_not! { ProcessOverrides:
    listen,
    admin,
    upstream,
    upstream_h2c,
    connect_timeout,
    upstream_idle,
    store,
    max_in_flight,
    max_waiters,
    sweep,
    drain,
    log_format,
}

impl ProcessOverrides {
    /// The keys of the file that are read here.
    pub(crate) const KEYS: [&'static str; 12] = [
        "listen",
        "admin",
        "upstream",
        "upstream_h2c",
        "connect_timeout",
        "upstream_idle",
        "store",
        "max_in_flight",
        "max_waiters",
        "sweep",
        "drain",
        "log_format",
    ];

    /// A duration that was said, or the default.
    pub(crate) fn span(said: Option<Span>, default_seconds: u64) -> Duration {
        said.map_or(Duration::from_secs(default_seconds), |span| span.0)
    }
}
