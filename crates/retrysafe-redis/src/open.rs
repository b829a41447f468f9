//! From an address to a store, or to one clear line about what is wrong with it.

use std::{sync::Arc, time::Duration};

use retrysafe_core::{
    Algorithm, Claim, Entropy as _, Fingerprint, OperationId, Owner, StoreError, SystemEntropy,
};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};

use crate::{
    Durability, RedisStore,
    error::{OpenError, OpenErrorKind},
    key,
    node::{How, Node, Request},
    record, script,
    servers::Servers,
    settings::{Settings, Target},
    store::{Shared, claim_command},
    watch::Watches,
};

/// What a record may have around its payload, and a request around its record.
const AROUND: usize = 1024;

pub(crate) async fn open(
    target: &Target,
    settings: Arc<Settings>,
) -> Result<RedisStore, OpenError> {
    if target.is_secure() && CryptoProvider::get_default().is_none() {
        // The driver takes the process's. Somebody else may be first; then it is theirs.
        let _ = ring::default_provider().install_default();
    }
    let watches = Arc::new(Watches::default());
    let on_push = {
        let (watches, settings) = (Arc::clone(&watches), Arc::clone(&settings));
        Arc::new(move |push: &redis::PushInfo| {
            watches.on_push(push, |channel| key::operation(&settings.prefix, channel));
        })
    };
    let servers = Servers::open(target, &settings, on_push).await?;
    for node in servers.primaries().await? {
        prepare(&node, &settings).await?;
    }
    let address = target.address();
    let shared = Shared { servers, settings, watches, address };
    try_out(&shared).await?;
    let _ = shared.settings.opened.set(());
    Ok(RedisStore { shared: Arc::new(shared) })
}

/// Loads the scripts, and looks at what is not worth refusing a server for.
async fn prepare(node: &Node, settings: &Settings) -> Result<(), OpenError> {
    let server = node.server().await?;
    let address = &node.address;
    if !server.append_only {
        tracing::warn!(
            address,
            "this Redis has no append-only file: when it stops, claims and outcomes since its last \
             snapshot are gone and operations may run again; set `appendonly yes`"
        );
    }
    if let Durability::Replicas { count, .. } = settings.durability
        && server.replicas < count
    {
        tracing::warn!(
            address,
            count,
            connected = server.replicas,
            "this Redis has fewer replicas than have to confirm: no claim will be granted"
        );
    }
    if let Some(most) = largest_value(node).await
        && most < settings.max_payload + AROUND
    {
        let problem = format!(
            "its proto-max-bulk-len is {most} bytes and max_payload {}; lower the latter",
            settings.max_payload
        );
        return Err(OpenError::new(address, OpenErrorKind::Setting, problem));
    }
    if let Durability::Replicas { .. } = settings.durability {
        let mut wait = redis::cmd("WAIT");
        wait.arg(0).arg(1);
        node.send(Request::Command(&wait), How::default())
            .await
            .map_err(|failure| OpenError::trying(address, failure))?;
    }
    for script in script::all() {
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(script.text);
        node.send(Request::Command(&load), How::default())
            .await
            .map_err(|failure| OpenError::trying(address, failure))?;
    }
    Ok(())
}

/// A larger one would end the connection, and every request on it. Where the setting is hidden it is
/// 512 MiB, as it is by default.
async fn largest_value(node: &Node) -> Option<usize> {
    let mut ask = redis::cmd("CONFIG");
    ask.arg("GET").arg("proto-max-bulk-len");
    let reply = node.send(Request::Command(&ask), How::default()).await.ok()?;
    let pair: Vec<(String, usize)> = redis::from_redis_value(reply.value).ok()?;
    pair.first().map(|(_, bytes)| *bytes)
}

/// The life of a record, whose key is gone at the end: rights that are missing are known now.
async fn try_out(store: &Shared) -> Result<(), OpenError> {
    let refused = |failure| OpenError::trying(&store.address, failure);
    let half = SystemEntropy.next_u128().to_be_bytes();
    let mut id = [0; 32];
    id[..16].copy_from_slice(&half);
    let claim = Claim {
        id: OperationId::from_bytes(id),
        owner: Owner::new(&SystemEntropy),
        fingerprint: Fingerprint { algorithm: Algorithm::from_u32(0), head: [0; 32], body: None },
        lease: Duration::from_secs(10),
        retention: Duration::from_secs(20),
        take_over: false,
    };
    let key = store.key(&claim.id);
    let owner = claim.owner.to_bytes();
    let outcome = record::outcome(&claim.fingerprint, b"");
    let how = How::default();

    let set = claim_command(&key, &record::first(&claim), &claim);
    match store.servers.send(&key, Request::Command(&set), how).await {
        Ok(_) => {}
        // What is there still answers, and there may be room again.
        Err(failure) if failure.is_full() => {
            tracing::warn!(address = store.address, "this Redis is full: it grants no claim");
            return Ok(());
        }
        Err(failure) => return Err(refused(failure)),
    }
    let renewed: [&[u8]; 2] = [&owner, b"15000"];
    store.run(&script::RENEW, &key, &renewed, how).await.map_err(refused)?;
    store.run(&script::READ, &key, &[], how).await.map_err(refused)?;
    let completed: [&[u8]; 3] = [&owner, &outcome, b"0"];
    store.run(&script::COMPLETE, &key, &completed, how).await.map_err(refused)?;

    let mut tell = redis::cmd("SPUBLISH");
    tell.arg(&key).arg("");
    if let Err(failure) = store.servers.send(&key, Request::Command(&tell), how).await {
        let problem = StoreError::from(failure);
        tracing::warn!(%problem, "who waits for an operation is not woken, and asks again instead");
    }
    Ok(())
}
