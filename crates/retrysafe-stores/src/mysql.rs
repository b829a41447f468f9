//! `mysql://HOST/DATABASE`, `mariadb://HOST/DATABASE`

use retrysafe_sqlx::{MySqlStore, OpenErrorKind};

use crate::{
    OpenError, OpenStore,
    address::Address,
    opened::Absent,
    written::{DURATION, NUMBER, SWITCH, TEXT, duration, number, switch, text},
};

/// What the driver reads itself.
const SSL_MODES: [&str; 5] = ["disabled", "preferred", "required", "verify_ca", "verify_identity"];
const DRIVERS: [&str; 3] = ["ssl-ca", "ssl-cert", "ssl-key"];

pub(crate) fn schema(scheme: &str, rest: &str) -> Result<String, OpenError> {
    let table = Address::parse(scheme, rest)?.parameters()?.value("table", TEXT, text)?;
    MySqlStore::schema(table.as_deref().unwrap_or(MySqlStore::DEFAULT_TABLE))
        .map_err(|error| OpenError::store(true, error))
}

pub(crate) async fn open(scheme: &str, rest: &str, absent: Absent) -> Result<OpenStore, OpenError> {
    let address = Address::parse(scheme, rest)?;
    address.one_host("")?;
    let mut parameters = address.parameters()?;
    let table = parameters.value("table", TEXT, text)?;
    let migrate = parameters.value("migrate", SWITCH, switch)?.unwrap_or(true);
    let max_connections = parameters.value("max-connections", NUMBER, number)?;
    let timeout = parameters.value("timeout", DURATION, duration)?;
    let passed_on = parameters.passed_on(("ssl-mode", &SSL_MODES), &DRIVERS)?;
    let url = format!("{}{passed_on}", address.url());
    parameters.nothing_else("")?;

    let builder = || {
        let mut builder = MySqlStore::builder(&url);
        if let Some(table) = &table {
            builder = builder.table(table);
        }
        if let Some(connections) = max_connections {
            builder = builder.max_connections(connections);
        }
        if let Some(timeout) = timeout {
            builder = builder.timeout(timeout);
        }
        builder
    };
    let mut opened = builder().open().await;
    // Only then: MySQL asks for the right to create a table even if it is there.
    if let Err(error) = &opened
        && error.kind() == OpenErrorKind::Missing
        && migrate
        && absent == Absent::Create
    {
        opened = builder().migrate().open().await;
    }
    match opened {
        Ok(store) => Ok(OpenStore::new(store, address.shown())),
        Err(error) => Err(OpenError::store(error.kind() == OpenErrorKind::Setting, error)),
    }
}
