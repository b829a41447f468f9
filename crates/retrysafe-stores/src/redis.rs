//! `redis://HOST`, `rediss://HOST`, `redis-cluster://HOST,HOST`, `rediss-cluster://HOST,HOST`

use retrysafe_redis::{Durability, OpenErrorKind, RedisStore};

use crate::{
    OpenError, OpenStore,
    address::Address,
    written::{DURATION, TEXT, duration, number, text},
};

pub(crate) async fn open(scheme: &str, rest: &str) -> Result<OpenStore, OpenError> {
    let address = Address::parse(scheme, rest)?;
    if !scheme.ends_with("-cluster") {
        address.one_host("; a cluster is redis-cluster://HOST,HOST or rediss-cluster://")?;
    }
    let mut builder = RedisStore::builder(address.url());
    let mut parameters = address.parameters()?;
    if let Some(prefix) = parameters.value("prefix", TEXT, text)? {
        builder = builder.key_prefix(prefix);
    }
    if let Some(durability) = parameters.value("durability", DURABILITY, durability)? {
        builder = builder.durability(durability);
    }
    if let Some(timeout) = parameters.value("timeout", DURATION, duration)? {
        builder = builder.response_timeout(timeout);
    }
    parameters.nothing_else("")?;
    match builder.open().await {
        Ok(store) => Ok(OpenStore::new(store, address.shown())),
        Err(error) => Err(OpenError::store(error.kind() == OpenErrorKind::Setting, error)),
    }
}

const DURABILITY: &str = "fast, or how many replicas confirm within which time: replicas:1:500ms";

fn durability(written: &str) -> Option<Durability> {
    if written == "fast" {
        return Some(Durability::Fast);
    }
    let (count, within) = written.strip_prefix("replicas:")?.split_once(':')?;
    Some(Durability::Replicas { count: number(count)?, within: duration(within)? })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn durability_reads_as_written() {
        let within = Duration::from_millis(500);
        let replicas = Some(Durability::Replicas { count: 1, within });
        assert_eq!(durability("replicas:1:500ms"), replicas);
        assert_eq!(durability("fast"), Some(Durability::Fast));
        for bad in ["", "replicas", "replicas:1", "replicas:one:1s", "replicas:1:500", "always"] {
            assert_eq!(durability(bad), None, "{bad}");
        }
    }
}
