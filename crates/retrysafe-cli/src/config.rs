//! Configuration: flags, over environment variables, over the file, over PROTOCOL's defaults.
//!
//! All of them are read before anything listens. A `[[route]]` of the file overrides the defaults,
//! wherever those were said, for the requests that match it: the first whose path and method match
//! is taken. A route that names `methods` is for those methods only, and covers them; one that
//! names none is for every method, and covers the default ones.

/// What can be said in several places, each of which counts for more than the next.
macro_rules! said_or_not {
    ($of:ident: $($setting:ident),* $(,)?) => {
        impl $of {
            /// What is said here, and where nothing is said what `next` says.
            pub(crate) fn or(self, next: Self) -> Self {
                Self { $($setting: self.$setting.or(next.$setting)),* }
            }

            /// Whether the setting of this name is said here.
            pub(crate) fn says(&self, name: &str) -> bool {
                match name {
                    $(stringify!($setting) => self.$setting.is_some(),)*
                    _ => false,
                }
            }
        }
    };
}

mod file;
mod pattern;
mod process;
mod settings;
mod text;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args;
use http::{Method, Uri};
use retrysafe::Methods;

use self::{
    file::File, pattern::Pattern, process::ProcessOverrides, settings::Overrides, text::Sweep,
};
pub(crate) use self::{
    process::LogFormat,
    settings::RouteSettings,
    text::{AdminAddress, BadText, Span, Upstream},
};

/// The flags of `retrysafe proxy`.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ProxyFlags {
    /// A TOML file with a key for each of these flags (--max-in-flight is max_in_flight) and
    /// `[[route]]` tables that override them
    #[arg(long, env = "RETRYSAFE_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) process: ProcessOverrides,
    #[command(flatten)]
    pub(crate) default: Overrides,
}

/// What the proxy does.
#[derive(Clone, Debug)]
pub(crate) struct ProxyConfig {
    /// Where clients connect to.
    pub(crate) listen: SocketAddr,
    /// Where operators do; `None` if nobody said.
    pub(crate) admin: Option<AdminAddress>,
    /// How the service is reached.
    pub(crate) upstream: UpstreamConfig,
    /// Where records are kept.
    pub(crate) store_url: String,
    /// E6.
    pub(crate) max_in_flight: usize,
    /// R8; `None` is off.
    pub(crate) sweep: Option<Duration>,
    /// How long what runs may take to finish on shutdown.
    pub(crate) drain: Duration,
    /// How logs are written.
    pub(crate) log_format: LogFormat,
    /// For requests that no route matches.
    pub(crate) default: RouteSettings,
    /// In the order of the file.
    pub(crate) routes: Vec<Route>,
}

/// How the service is reached.
#[derive(Clone, Debug)]
pub(crate) struct UpstreamConfig {
    /// Scheme and authority.
    pub(crate) uri: Uri,
    /// HTTP/2 without asking.
    pub(crate) h2c: bool,
    /// How long connecting may take.
    pub(crate) connect_timeout: Duration,
    /// How long an unused connection is kept.
    pub(crate) idle: Duration,
}

/// Settings for the requests that match.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pattern: Pattern,
    methods: Option<Methods>,
    /// What holds for them.
    pub(crate) settings: RouteSettings,
}

impl Route {
    /// Whether a request is this route's.
    pub(crate) fn matches(&self, method: &Method, path: &str) -> bool {
        self.methods.as_ref().is_none_or(|methods| methods.cover(method))
            && self.pattern.matches(path)
    }
}

/// A configuration that can't be used: what, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ConfigError(String);

impl From<retrysafe::ConfigError> for ConfigError {
    fn from(error: retrysafe::ConfigError) -> Self {
        Self(error.to_string())
    }
}

impl ConfigError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl ProxyConfig {
    /// Reads the file, if there is one, and puts everything together. What nobody said, `house`
    /// says, and then PROTOCOL.
    ///
    /// # Errors
    ///
    /// If a value can't be used or a needed one is missing.
    pub(crate) fn resolve(flags: ProxyFlags, house: ProxyFlags) -> Result<Self, ConfigError> {
        let path = flags.config.as_deref().unwrap_or("".as_ref()).display().to_string();
        let at = |line: usize, problem: &str| ConfigError(format!("{path}:{line}: {problem}"));
        let file = flags.config.as_deref().map(File::read).transpose()?.unwrap_or_default();
        let said = (flags.process.clone(), flags.default.clone());
        let by_a_flag = |key: &str| said.0.says(key) || said.1.says(key);
        let of_the_file = |problem: String| match file.lines.of(&problem, by_a_flag) {
            Some(line) => at(line, &problem),
            None => ConfigError(problem),
        };
        let process = flags.process.or(file.process).or(house.process);
        let defaults = flags.default.or(file.default).or(house.default);

        let max_in_flight =
            at_least_one("max_in_flight", process.max_in_flight).map_err(of_the_file)?;
        let max_waiters = at_least_one("max_waiters", process.max_waiters).map_err(of_the_file)?;
        // Before the routes: what is wrong for all is wrong in its own line, and not in theirs.
        let default = defaults
            .clone()
            .resolve("default", max_waiters)
            .map_err(|problem| of_the_file(problem.to_string()))?;
        let mut routes = Vec::with_capacity(file.routes.len());
        for route in file.routes {
            let methods = route.overrides.methods().map(|it| it.iter().cloned().collect());
            let overrides = route.overrides.or(defaults.clone());
            let settings =
                overrides.resolve(route.path.as_str(), max_waiters).map_err(|problem| {
                    let problem = problem.to_string();
                    let line = route.lines.of(&problem, |_| false).unwrap_or(route.lines.table);
                    at(line, &problem)
                })?;
            routes.push(Route { pattern: route.path, methods, settings });
        }

        let upstream = process.upstream.ok_or_else(|| {
            ConfigError::new(
                "no upstream: give --upstream http://host:port, RETRYSAFE_UPSTREAM, or `upstream` in the file",
            )
        })?;
        let h2c = process.upstream_h2c.unwrap_or(false);
        Ok(Self {
            listen: process
                .listen
                .map_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8080)), |listen| listen.0),
            admin: process.admin,
            upstream: UpstreamConfig {
                h2c,
                uri: upstream.0,
                connect_timeout: ProcessOverrides::span(process.connect_timeout, 5),
                // A service that closes idle connections does so after 5 s or more (Node.js: 5 s).
                // A request sent into a connection that is being closed has an unknown outcome.
                idle: ProcessOverrides::span(process.upstream_idle, 4),
            },
            store_url: process.store.unwrap_or_else(|| "sqlite:retrysafe.db".to_owned()),
            max_in_flight,
            sweep: process.sweep.unwrap_or(Sweep(Some(Duration::from_secs(60)))).0,
            drain: ProcessOverrides::span(process.drain, 30),
            log_format: process.log_format.unwrap_or_default(),
            default,
            routes,
        })
    }
}

fn at_least_one(setting: &str, said: Option<usize>) -> Result<usize, String> {
    match said.unwrap_or(1_024) {
        0 => Err(format!("{setting}: must be at least 1")),
        count => Ok(count),
    }
}
