//! `nats://HOST,HOST`

use retrysafe_nats::{NatsStore, OpenErrorKind};

use crate::{
    OpenError, OpenStore,
    address::Address,
    opened::Absent,
    written::{DURATION, NUMBER, SIZE, SWITCH, TEXT, duration, number, size, switch, text},
};

pub(crate) async fn open(scheme: &str, rest: &str, absent: Absent) -> Result<OpenStore, OpenError> {
    let rest = as_one_list(rest);
    let address = Address::parse(scheme, &rest)?;
    if address.has_path() {
        return Err(OpenError::url(
            "the store `nats:` has nothing behind its hosts; a stream is named by ?stream=NAME",
        ));
    }
    // The driver takes the list apart at its commas.
    if address.user().trim_end_matches('@').contains([',', '@']) {
        return Err(OpenError::url(
            "in the URL of the store `nats:` user and password stand once, before the first host: \
             nats://USER:PASSWORD@HOST,HOST; in a password `,` is %2C and `@` is %40",
        ));
    }
    let mut parameters = address.parameters()?;
    let tls = parameters.value("tls", SWITCH, switch)?.unwrap_or(false);
    let scheme = if tls { "tls" } else { "nats" };
    let mut user = address.user();
    let servers: Vec<_> = address
        .hosts()
        .map(|host| format!("{scheme}://{}{host}", std::mem::take(&mut user)))
        .collect();

    let create = parameters.value("create", SWITCH, switch)?.unwrap_or(true);
    let mut builder =
        NatsStore::builder(servers.join(",")).create(create && absent == Absent::Create);
    if let Some(stream) = parameters.value("stream", TEXT, text)? {
        builder = builder.stream(stream);
    }
    if let Some(replicas) = parameters.value("replicas", NUMBER, number)? {
        builder = builder.replicas(replicas);
    }
    if let Some(bytes) = parameters.value("max-bytes", SIZE, size)? {
        builder = builder.max_bytes(bytes);
    }
    if let Some(timeout) = parameters.value("timeout", DURATION, duration)? {
        builder = builder.timeout(timeout);
    }
    parameters.nothing_else("")?;
    match builder.open().await {
        Ok(store) => Ok(OpenStore::new(store, address.shown())),
        Err(error) => Err(OpenError::store(error.kind() == OpenErrorKind::Setting, error)),
    }
}

/// The tools of NATS write a list as `nats://u:p@a,nats://u:p@b`, which says what `nats://u:p@a,b` does.
fn as_one_list(rest: &str) -> String {
    let first = rest.split(",nats://").next().unwrap_or_default();
    let first = first.strip_prefix("//").unwrap_or(first);
    let user = first.rfind('@').map_or("", |at| &first[..=at]);
    rest.replace(&format!(",nats://{user}"), ",").replace(",nats://", ",")
}
