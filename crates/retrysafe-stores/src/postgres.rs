//! `postgres://HOST/DATABASE`, and with a list of hosts several primaries

use retrysafe_core::Inspect as _;
use retrysafe_sqlx::{OpenErrorKind, PostgresStore, Primaries, hosts};

use crate::{
    OpenError, OpenStore,
    address::Address,
    opened::Absent,
    written::{DURATION, NUMBER, SWITCH, TEXT, duration, number, switch, text},
};

/// What the driver reads itself.
const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
const DRIVERS: [&str; 4] = ["sslrootcert", "sslcert", "sslkey", "application_name"];

pub(crate) fn schema(scheme: &str, rest: &str) -> Result<String, OpenError> {
    let table = Address::parse(scheme, rest)?.parameters()?.value("table", TEXT, text)?;
    PostgresStore::schema(table.as_deref().unwrap_or(PostgresStore::DEFAULT_TABLE))
        .map_err(|error| OpenError::store(true, error))
}

pub(crate) async fn open(scheme: &str, rest: &str, absent: Absent) -> Result<OpenStore, OpenError> {
    let address = Address::parse(scheme, rest)?;
    let mut parameters = address.parameters()?;
    let table = parameters.value("table", TEXT, text)?;
    let migrate = parameters.value("migrate", SWITCH, switch)?.unwrap_or(true);
    let max_connections = parameters.value("max-connections", NUMBER, number)?;
    let timeout = parameters.value("timeout", DURATION, duration)?;
    let passed_on = parameters.passed_on(("sslmode", &SSL_MODES), &DRIVERS)?;
    let url = format!("{}{passed_on}", address.url());
    parameters.nothing_else("")?;

    let builder = |url: String| {
        let mut builder = PostgresStore::builder(url);
        if let Some(table) = &table {
            builder = builder.table(table);
        }
        if migrate && absent == Absent::Create {
            builder = builder.migrate();
        }
        if let Some(connections) = max_connections {
            builder = builder.max_connections(connections);
        }
        if let Some(timeout) = timeout {
            builder = builder.timeout(timeout);
        }
        builder
    };
    let refused = |error: retrysafe_sqlx::OpenError| {
        OpenError::store(error.kind() == OpenErrorKind::Setting, error)
    };
    let is_list = address.hosts().nth(1).is_some();
    if !is_list && !url_changes(&address) {
        let store = builder(url).open().await.map_err(refused)?;
        return Ok(OpenStore::new(store, address.shown()));
    }

    let mut list = Primaries::builder();
    for host in hosts(&url).map_err(|error| OpenError::store(true, error))? {
        let store = builder(host.url).open_later().map_err(refused)?;
        list = list.member(host.name, host.role, store);
    }
    let store = list.build().map_err(|error| OpenError::store(true, error))?;
    // One that can't be used does not keep the others from being used, and may be usable later; if
    // none can, the set-up is wrong.
    store.answers().await.map_err(|error| OpenError::store(false, error))?;
    Ok(OpenStore::new(store, address.shown()))
}

/// Whether the one host of a URL joins or leaves a list.
fn url_changes(address: &Address<'_>) -> bool {
    address.hosts().any(|host| host.starts_with(['+', '-']))
}
