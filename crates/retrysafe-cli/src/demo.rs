//! `retrysafe demo`: an orders API that charges cards, behind the proxy, in one process.
//!
//! Requests really go over HTTP to the proxy and from there to the service. The service's book and
//! the card processor's ledger are files next to the store, so that a kill and a restart show what
//! they would show in earnest.

mod guide;
mod journal;
mod orders;

use std::{io::ErrorKind, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use clap::{Arg, Args};
use tokio_util::sync::CancellationToken;

use self::orders::Orders;
use crate::{
    Failure,
    config::{AdminAddress, ConfigError, ProxyConfig, ProxyFlags, Span, Upstream},
    proxy::{self, Listener, Running},
    signals, store,
};

/// The flags of `retrysafe demo`: those of the proxy, but for the service, which is the demo's own.
#[derive(Args)]
pub(crate) struct DemoFlags {
    /// How long the pretended card processor takes
    #[arg(long, value_name = "DURATION", default_value = "200ms")]
    payment: Span,
    #[command(flatten)]
    proxy: ProxyFlags,
}

/// The help of a flag of the proxy, as it is in the demo: with its [`defaults`], and without what is
/// about the service, which is the demo's own, or the log, which is for people.
pub(crate) fn in_the_demo(flag: Arg) -> Arg {
    let (proxys, own) = match flag.get_id().as_str() {
        "store" => ("sqlite:retrysafe.db", DEFAULT_STORE),
        "lease" => ("30s", "5s"),
        "admin" => ("127.0.0.1:9090, if it is free", "off"),
        "upstream" | "upstream_h2c" | "connect_timeout" | "upstream_idle" | "log_format" => {
            return flag.hide(true);
        }
        _ => return flag,
    };
    let Some(help) = flag.get_help() else { return flag };
    let [proxys, own] = [proxys, own].map(|default| format!("[default: {default}]"));
    let help = help.to_string().replace(&proxys, &own);
    flag.help(help)
}

const DEFAULT_STORE: &str = "sqlite:retrysafe-demo.db";

/// What the demo does unless it is told otherwise: a lease that is short enough to see it end.
fn defaults() -> ProxyFlags {
    let mut flags = ProxyFlags::default();
    flags.process.store = Some(DEFAULT_STORE.to_owned());
    flags.process.admin = Some(AdminAddress(None));
    flags.default.lease = Some(Span(Duration::from_secs(5)));
    flags
}

/// Runs the service, and the proxy in front of it, until a signal.
///
/// # Errors
///
/// If the configuration can't be used, a file can't be written, or an address is in use.
pub(crate) async fn run(flags: DemoFlags) -> Result<(), Failure> {
    let service = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let own: Upstream = format!("http://{}", service.address())
        .parse()
        .map_err(|error| ConfigError::new(format!("{error}")))?;
    let mut proxy_flags = flags.proxy;
    if proxy_flags.process.upstream.replace(own).is_some() {
        return Err(ConfigError::new(
            "the demo brings its own service: --upstream is for `retrysafe proxy`",
        )
        .into());
    }
    let config = ProxyConfig::resolve(proxy_flags, defaults())?;

    let beside = beside(&config.store_url);
    let orders = Orders::open(&beside, flags.payment.0).map_err(|error| match error.kind() {
        ErrorKind::ResourceBusy => Failure::Run(format!(
            "{error}; choose another store, and another address if it listens there: {OWN}, or make demo ARGS=\"{OWN}\""
        )),
        _ => error.into(),
    })?;
    let orders = Arc::new(orders);
    let answer = move |request| orders::answer(orders.clone(), request);
    tokio::spawn(service.serve(answer, Running::default(), CancellationToken::new()));

    let stop = signals::stop_token()?;
    let guide = guide::Guide::new(&config);
    let ended = proxy::run(config, stop, move |address, store_url| guide.print(address, store_url));
    ended.await.map_err(|failure| match failure {
        Failure::Listen(error) if error.kind() == ErrorKind::AddrInUse => Failure::Run(format!(
            "{error}; choose another address: --listen {ANOTHER}, or make demo ARGS=\"--listen {ANOTHER}\""
        )),
        failure => failure,
    })
}

/// An address that is likely to be free.
const ANOTHER: &str = "127.0.0.1:4000";
/// What a demo beside another is started with.
const OWN: &str = "--store sqlite:another.db --listen 127.0.0.1:4000";

/// The start of the names of the demo's own files: next to the store.
fn beside(store_url: &str) -> PathBuf {
    store::sqlite_path(store_url).unwrap_or_else(|| "retrysafe-demo".to_owned()).into()
}
