//! The binary `retrysafe`: a proxy that makes retries safe, a demo of it, and what operators need.
//!
//! `main` reads the configuration, starts the log, runs the command, and says in one line what went
//! wrong: exit code 2 for a configuration that can't be used, 1 for everything else.

mod admin;
mod config;
mod demo;
mod keys;
mod proxy;
mod signals;
mod store;

use std::{
    env,
    error::Error,
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, Subcommand, error::ErrorKind};
use mimalloc::MiMalloc;
use tracing_subscriber::{EnvFilter, fmt::time::SystemTime};

use crate::config::{ConfigError, LogFormat, ProxyConfig, ProxyFlags};

/// A record stays while requests come and go around it, which glibc's allocator is slow at: it takes
/// nearly half of what a first execution adds to a request of the proxy (P11).
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Makes retries safe: a client names an operation with an Idempotency-Key, it runs once, and every
/// retry gets the same answer.
#[derive(Parser)]
#[command(name = "retrysafe", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Stands in front of a service and makes retries safe
    Proxy(Box<ProxyFlags>),
    /// Runs an orders API behind the proxy and prints curl lines to try
    #[command(mut_args(demo::in_the_demo))]
    Demo(Box<demo::DemoFlags>),
    /// Shows and changes the records of a store
    Keys(keys::KeysFlags),
    /// Prints the statements that create the table of a PostgreSQL or MySQL store, for migrations
    Schema(SchemaFlags),
}

#[derive(clap::Args)]
struct SchemaFlags {
    /// The store that the table is for; it is not connected to
    #[arg(long, env = "RETRYSAFE_STORE", value_name = "URL", hide_env_values = true)]
    store: String,
}

/// Why the process ends early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The configuration can't be used: exit code 2.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// Where clients connect to can't be listened on: exit code 1.
    #[error("{0}")]
    Listen(io::Error),
    /// Anything else: exit code 1.
    #[error("{0}")]
    Run(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Run(error.to_string())
    }
}

fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        // What was asked for, `--help` or `--version`, or what nobody knows of who asked nothing.
        Err(asked)
            if !asked.use_stderr()
                || asked.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand =>
        {
            asked.exit()
        }
        Err(wrong) => {
            let _ = writeln!(io::stderr(), "{}", one_line(&wrong));
            return ExitCode::from(2);
        }
    };
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = failure.to_string().replace('\n', " ");
            let _ = writeln!(io::stderr(), "error: {text}");
            ExitCode::from(if matches!(failure, Failure::Config(_)) { 2 } else { 1 })
        }
    }
}

/// What is wrong with the flags, without the usage that goes with it.
fn one_line(wrong: &clap::Error) -> String {
    let text = wrong.to_string();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let said: Vec<_> = lines.take_while(|line| !line.starts_with("Usage:")).collect();
    said.join(" ")
        .replace(" tip: ", "; ")
        .replace("For more information, try '--help'.", "(try --help)")
}

fn run(command: Command) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = match command {
        Command::Proxy(flags) => {
            let config = ProxyConfig::resolve(*flags, ProxyFlags::default())?;
            start_log(config.log_format, PROXY_LOG)?;
            runtime.block_on(async { proxy::run(config, signals::stop_token()?, |_, _| ()).await })
        }
        Command::Demo(flags) => {
            start_log(LogFormat::Text, PROXY_LOG)?;
            runtime.block_on(demo::run(*flags))
        }
        Command::Keys(flags) => {
            start_log(LogFormat::Text, KEYS_LOG)?;
            runtime.block_on(keys::run(flags))
        }
        Command::Schema(flags) => store::schema(&flags.store).map(|text| say(text.trim_end())),
    };
    // What is still running had its time; what it held is let go, and the store closes its file.
    runtime.shutdown_timeout(CLOSING);
    ended
}

/// How long closing the store may take at the end.
const CLOSING: Duration = Duration::from_secs(5);

/// One line for every decision would be an access log: `RUST_LOG=info` asks for it.
/// PostgreSQL's notices say at each start that the table is there already.
const PROXY_LOG: &str = "info,retrysafe::audit=warn,sqlx::postgres::notice=warn";
/// What an operator did is said.
const KEYS_LOG: &str = "warn,retrysafe::audit=info";

/// Logs go to standard error, as `RUST_LOG` says.
fn start_log(format: LogFormat, default: &str) -> Result<(), ConfigError> {
    let said = env::var(EnvFilter::DEFAULT_ENV).unwrap_or_default();
    let filter = if said.is_empty() { default } else { &said };
    let filter = EnvFilter::builder().parse(filter).map_err(|problem| {
        ConfigError::new(format!("RUST_LOG: `{filter}` says no levels: {problem}"))
    })?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // A log that nobody reads any more is no reason to fail, and a panic that says so would be one.
    let log = log.log_internal_errors(false);
    let log = log.with_timer(SystemTime).with_ansi(io::IsTerminal::is_terminal(&io::stderr()));
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    Ok(())
}

/// Writes a line to standard output. Whoever closed it does not want it.
pub(crate) fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// An error and what caused it, on one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let cause_text = error.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        cause = error.source();
    }
    text
}
