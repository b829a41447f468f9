//! The store: each verb is one request, or two where STORES says so.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use redis::{ErrorKind, RedisError, Value};
use retrysafe_core::{
    About, Begin, Claim, Fingerprint, Found, Held, Lease, OperationId, Store, StoreError,
    StoreErrorKind, Swept,
};
use tokio::time::timeout;

use crate::{
    OpenError, RedisStoreBuilder,
    error::Failure,
    key,
    node::{Confirm, How, Reply, Request},
    record::{self, Expiry, Head, Met, Milliseconds, Next, Record, Seen, Standing},
    script::{self, Script},
    servers::Servers,
    settings::{Durability, Settings},
    watch::{Watch, Watches},
};

/// On the connection that is told of changes.
const WAKEUP: How = How { confirm: None, wakeup: true, asking: false };

/// A store in Redis or Valkey, for any number of processes and machines.
///
/// Handles are cheap to clone and share their connections: one for requests, one for wake-ups while
/// somebody waits, and with [`Durability::Replicas`] some for requests that wait. A connection that
/// ends is made again by the next call, without a restart.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use retrysafe_core::Store;
/// use retrysafe_redis::RedisStore;
///
/// let store = RedisStore::open("redis://127.0.0.1").await?;
/// assert_eq!(store.about().engine, "redis");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisStore {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) servers: Servers,
    pub(crate) settings: Arc<Settings>,
    pub(crate) watches: Arc<Watches>,
    pub(crate) address: String,
}

impl RedisStore {
    /// Opens a store with the default settings.
    ///
    /// # Errors
    ///
    /// See [`RedisStoreBuilder::open`].
    pub async fn open(url: impl Into<String>) -> Result<Self, OpenError> {
        Self::builder(url).open().await
    }

    /// Sets up a store by URL: `redis://user:password@host:port/database`, `rediss://` for TLS,
    /// `unix:`, or `redis-cluster://host:port,host:port` (`rediss-cluster://` for TLS) with any of a
    /// cluster's nodes.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use retrysafe_redis::{Durability, RedisStore};
    ///
    /// let store = RedisStore::builder("redis-cluster://10.0.0.1,10.0.0.2")
    ///     .key_prefix("payments:")
    ///     .durability(Durability::Replicas { count: 1, within: Duration::from_millis(200) })
    ///     .open()
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder(url: impl Into<String>) -> RedisStoreBuilder {
        RedisStoreBuilder::from_url(url.into())
    }

    /// Sets up a store on the server of the user's own client, with its credentials, certificates
    /// and TCP settings. The connections are the store's own: a blocking command of somebody else
    /// would hold up its claims.
    pub fn with_client(client: &redis::Client) -> RedisStoreBuilder {
        RedisStoreBuilder::from_client(client)
    }

    /// Sets up a store on a cluster, of which any nodes are named. Credentials and certificates are
    /// those of the first.
    pub fn with_cluster(
        nodes: impl IntoIterator<Item = redis::ConnectionInfo>,
    ) -> RedisStoreBuilder {
        RedisStoreBuilder::from_cluster(nodes.into_iter().collect())
    }
}

impl Shared {
    pub(crate) fn key(&self, id: &OperationId) -> String {
        key::name(&self.settings.prefix, id)
    }

    pub(crate) async fn run(
        &self,
        script: &'static Script,
        key: &str,
        arguments: &[&[u8]],
        how: How,
    ) -> Result<Reply, Failure> {
        self.servers.send(key, Request::Script { script, key, arguments }, how).await
    }

    pub(crate) async fn read(&self, key: &str) -> Result<Option<Seen>, StoreError> {
        seen(self.run(&script::READ, key, &[], How::default()).await?.value)
    }

    pub(crate) fn check_size(&self, payload: &Bytes) -> Result<(), StoreError> {
        let (is, most) = (payload.len(), self.settings.max_payload);
        if is <= most {
            return Ok(());
        }
        Err(StoreError::new(
            StoreErrorKind::TooLarge,
            format!("a payload of {is} bytes is over the Redis store's {most}"),
        ))
    }

    /// How a request is sent that must not be lost by a failover.
    fn confirmed(&self) -> How {
        let confirm = match self.settings.durability {
            Durability::Fast => None,
            Durability::Replicas { count, within } => Some(Confirm { replicas: count, within }),
        };
        How { confirm, ..How::default() }
    }

    /// ST9: what too few replicas have is not acknowledged.
    fn check_confirmed(&self, what: &str, reply: &Reply) -> Result<(), StoreError> {
        match self.settings.durability {
            Durability::Replicas { count, within } if reply.confirmed < count => {
                let confirmed = reply.confirmed;
                Err(StoreError::new(
                    StoreErrorKind::Unavailable,
                    format!(
                        "{what} was confirmed by {confirmed} of {count} Redis replicas within \
                         {within:?}"
                    ),
                ))
            }
            _ => Ok(()),
        }
    }

    /// Claims a key without a record; what is there if there is one.
    async fn claim_free(&self, key: &str, claim: &Claim) -> Result<Claimed, StoreError> {
        let first = record::first(claim);
        let command = claim_command(key, &first, claim);
        let sent = self.servers.send(key, Request::Command(&command), self.confirmed()).await;
        match sent {
            Ok(reply) => match reply.value {
                Value::Nil => Ok(Claimed::By(first, reply)),
                Value::BulkString(value) => Ok(Claimed::Met(value.into(), None)),
                other => Err(unexpected(&other)),
            },
            // A full server refuses the command even where it would only have read (ST8).
            Err(failure) if failure.is_full() => {
                match Box::pin(self.read(key)).await.map_err(StoreError::after_an_answer)? {
                    Some(seen) => Ok(Claimed::Met(seen.value, Some(seen.expiry))),
                    None => Err(failure.into()),
                }
            }
            Err(failure) => Err(failure.into()),
        }
    }

    /// ST6: writes the attempt after one that is over, if that is still what is there.
    async fn succeed(
        &self,
        key: &str,
        claim: &Claim,
        observed: &Bytes,
        next: Next,
    ) -> Result<Claimed, StoreError> {
        let kept_for = record::kept_for(claim).0.to_string();
        let arguments = [observed, &next.value[..], kept_for.as_bytes()];
        let reply = self.run(&script::SUCCEED, key, &arguments, self.confirmed()).await?;
        match reply.value {
            Value::Int(1) => Ok(Claimed::By(next, reply)),
            value => Ok(match seen(value)? {
                Some(seen) => Claimed::Met(seen.value, Some(seen.expiry)),
                None => Claimed::Gone,
            }),
        }
    }

    /// The answer to a claim that was granted, unless too few replicas have it: then it is released
    /// again, so that nothing holds the key.
    async fn granted(
        &self,
        key: &str,
        claim: &Claim,
        acquired: retrysafe_core::Acquired,
        reply: &Reply,
    ) -> Result<Begin, StoreError> {
        let Err(error) = self.check_confirmed("the claim", reply) else {
            return Ok(Begin::Acquired(acquired));
        };
        let owner = claim.owner.to_bytes();
        let keep = record::kept_for(claim).0.to_string();
        let arguments = [&owner[..], keep.as_bytes()];
        // If this fails too the error is still ambiguous, and whoever claimed releases.
        let release = self.run(&script::RELEASE, key, &arguments, How::default());
        let _ = Box::pin(release).await;
        Err(error)
    }

    /// What is true for somebody whose attempt is not the live one.
    fn found(&self, id: &OperationId, seen: Option<Seen>) -> Result<Found, StoreError> {
        let Some(seen) = seen else { return Ok(Found::Free) };
        let record = Record::read(id, &seen.value)?;
        let lease_left = record.lease_left(id, seen.expiry)?;
        Ok(record.found(lease_left))
    }

    fn held(&self, id: &OperationId, value: Value) -> Result<Held, StoreError> {
        match value {
            Value::Int(1) => Ok(Held::Applied),
            value => Ok(Held::Lost(self.found(id, seen(value)?)?)),
        }
    }

    /// How long attempt `seen` still holds a live lease; `None` if it does not.
    async fn lease_left(
        &self,
        id: &OperationId,
        key: &str,
        attempt: u32,
    ) -> Result<Option<Duration>, StoreError> {
        let looked = self.run(&script::LOOK, key, &[], How::default()).await?;
        match seen(looked.value)? {
            Some(looked) => match Head::standing(id, &looked.value, looked.expiry)? {
                Standing::InFlight { attempt: is, lease_left } if is == attempt => {
                    Ok(Some(lease_left))
                }
                _ => Ok(None),
            },
            None => Ok(None),
        }
    }

    /// Asks the server to tell of changes, unless it does already. Who is not told looks again.
    async fn listen(&self, watch: &Watch, key: &str) {
        if watch.is_heard() {
            return;
        }
        let mut command = redis::cmd("SSUBSCRIBE");
        command.arg(key);
        // What is answered is a push, which the wake-ups' listener sees too.
        let sent = self.servers.send(key, Request::Command(&command), WAKEUP).await;
        if let Err(failure) = sent {
            let problem = StoreError::from(failure);
            tracing::debug!(%problem, "no wake-ups from Redis; waiting by asking again");
        }
    }
}

/// Writes the record of a first attempt unless there is one, and gives the one that is there. One
/// command, because a script that does the same would cost the server much of its throughput (P6).
pub(crate) fn claim_command(key: &str, first: &Next, claim: &Claim) -> redis::Cmd {
    let mut command = redis::Cmd::with_capacity(7, key.len() + first.value.len() + 32);
    command.arg("SET").arg(key).arg(&first.value).arg("NX").arg("GET");
    command.arg("PX").arg(record::kept_for(claim).0);
    command
}

/// What came of trying to claim.
enum Claimed {
    By(Next, Reply),
    Met(Bytes, Option<Expiry>),
    /// It was there and has expired since.
    Gone,
}

impl Store for RedisStore {
    fn about(&self) -> About {
        About { engine: "redis", max_payload: self.shared.settings.max_payload }
    }

    async fn begin(&self, claim: &Claim) -> Result<Begin, StoreError> {
        let store = &*self.shared;
        let key = store.key(&claim.id);
        let mut claimed = store.claim_free(&key, claim).await?;
        let broke_off = StoreError::after_an_answer;
        // Goes round only if somebody else has changed the record in between.
        loop {
            let (value, expiry) = match claimed {
                Claimed::By(next, reply) => {
                    return store.granted(&key, claim, next.acquired, &reply).await;
                }
                Claimed::Met(value, expiry) => (value, expiry),
                Claimed::Gone => {
                    claimed = Box::pin(store.claim_free(&key, claim)).await.map_err(broke_off)?;
                    continue;
                }
            };
            let record = Record::read(&claim.id, &value)?;
            let next = match record.met_by(claim) {
                Met::Own(acquired) => {
                    let reply = match store.confirmed() {
                        How { confirm: None, .. } => Reply { value: Value::Nil, confirmed: 0 },
                        // ST4: the first try may not have been confirmed.
                        how => {
                            let touched = Box::pin(store.run(&script::TOUCH, &key, &[], how)).await;
                            touched.map_err(|failure| broke_off(failure.into()))?
                        }
                    };
                    return store.granted(&key, claim, acquired, &reply).await;
                }
                Met::Final => return Ok(Begin::Found(record.found(None))),
                Met::Over(next) => Some(next),
                Met::InFlight(next) => match expiry {
                    // Whether it has lapsed is judged where it is taken over.
                    None => next,
                    Some(expiry) => match record.lease_left(&claim.id, expiry)? {
                        None if next.is_some() => next,
                        lease_left => return Ok(Begin::Found(record.found(lease_left))),
                    },
                },
            };
            claimed = match next {
                Some(next) => {
                    let succeeded = Box::pin(store.succeed(&key, claim, &value, next)).await;
                    succeeded.map_err(broke_off)?
                }
                None => match Box::pin(store.read(&key)).await.map_err(broke_off)? {
                    Some(seen) => Claimed::Met(seen.value, Some(seen.expiry)),
                    None => Claimed::Gone,
                },
            };
        }
    }

    async fn renew(&self, lease: &Lease, lease_for: Duration) -> Result<Held, StoreError> {
        let store = &*self.shared;
        let key = store.key(&lease.id);
        let owner = lease.owner.to_bytes();
        let length = Milliseconds::rounded_up(lease_for).0.to_string();
        // A lease that a replica knows to be shorter could be taken over there while it is live. One
        // that was given up and is not known to be only holds longer.
        let how = if lease_for.is_zero() { How::default() } else { store.confirmed() };
        let reply = store.run(&script::RENEW, &key, &[&owner, length.as_bytes()], how).await?;
        if how.confirm.is_some() && reply.value == Value::Int(1) {
            store.check_confirmed("the renewal", &reply)?;
        }
        let held = store.held(&lease.id, reply.value)?;
        if lease_for.is_zero() {
            store.watches.wake(&lease.id);
        }
        Ok(held)
    }

    async fn complete(
        &self,
        lease: &Lease,
        fingerprint: &Fingerprint,
        payload: Bytes,
        retention: Duration,
    ) -> Result<Held, StoreError> {
        let store = &*self.shared;
        store.check_size(&payload)?;
        let key = store.key(&lease.id);
        let owner = lease.owner.to_bytes();
        let outcome = record::outcome(fingerprint, &payload);
        let retention = Milliseconds::rounded_up(retention).0.to_string();
        let arguments = [&owner[..], &outcome, retention.as_bytes()];
        let reply = store.run(&script::COMPLETE, &key, &arguments, store.confirmed()).await?;
        store.watches.wake(&lease.id);
        if reply.value == Value::Int(1) {
            store.check_confirmed("the outcome", &reply)?;
        }
        store.held(&lease.id, reply.value)
    }

    async fn release(
        &self,
        lease: &Lease,
        keep_counters_for: Duration,
    ) -> Result<Held, StoreError> {
        let store = &*self.shared;
        let key = store.key(&lease.id);
        let owner = lease.owner.to_bytes();
        let keep = Milliseconds::rounded_up(keep_counters_for).0.to_string();
        // A release that a failover loses holds the key until its lease is over, and no longer.
        let arguments = [&owner[..], keep.as_bytes()];
        let reply = store.run(&script::RELEASE, &key, &arguments, How::default()).await?;
        store.watches.wake(&lease.id);
        store.held(&lease.id, reply.value)
    }

    async fn changed(
        &self,
        id: &OperationId,
        seen: u32,
        within: Duration,
    ) -> Result<(), StoreError> {
        let store = &self.shared;
        let key = store.key(id);
        let waiter = Waiter { watch: store.watches.watch(id), store: Arc::clone(store), key: &key };
        let changed = async {
            loop {
                // Listening before looking: a change in between is heard.
                let mut stirred = std::pin::pin!(waiter.watch.stirred());
                stirred.as_mut().enable();
                store.listen(&waiter.watch, &key).await;
                let Some(lease_left) = store.lease_left(id, &key, seen).await? else {
                    return Ok(());
                };
                // A message may be lost. Jitter keeps many from asking all at once.
                let poll = store.settings.poll_interval.mul_f64(rand::random_range(0.5..1.5));
                // Woken or not: what is true is asked again.
                let _ = timeout(poll.min(lease_left), stirred).await;
            }
        };
        timeout(within, changed).await.unwrap_or(Ok(()))
    }

    /// Redis removes what has expired by itself, so there is nothing to sweep: always nothing.
    async fn sweep(&self, _limit: usize) -> Result<Swept, StoreError> {
        Ok(Swept::default())
    }
}

/// One who waits; when it ends or is dropped, the server need no longer tell.
struct Waiter<'a> {
    watch: Watch,
    store: Arc<Shared>,
    key: &'a str,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if !self.watch.end() {
            return;
        }
        // Without a runtime the subscription stays until its connection ends; nobody is woken by it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (store, key) = (Arc::clone(&self.store), self.key.to_owned());
            runtime.spawn(async move {
                let mut command = redis::cmd("SUNSUBSCRIBE");
                command.arg(&key);
                let _ = store.servers.send(&key, Request::Command(&command), WAKEUP).await;
            });
        }
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("address", &self.shared.address)
            .field("key_prefix", &self.shared.settings.prefix)
            .field("durability", &self.shared.settings.durability)
            .finish_non_exhaustive()
    }
}

/// A value and what `PTTL` says of its key, as the scripts give them.
pub(crate) fn seen(value: Value) -> Result<Option<Seen>, StoreError> {
    let Value::Array(mut pair) = value else { return Err(unexpected(&value)) };
    match (pair.pop(), pair.pop(), pair.len()) {
        (Some(Value::Int(-2)), Some(_), 0) => Ok(None),
        (Some(Value::Int(left)), Some(Value::BulkString(value)), 0) => Ok(Some(Seen {
            value: value.into(),
            expiry: match u64::try_from(left) {
                Ok(left) => Expiry::In(Milliseconds(left)),
                Err(_) => Expiry::Never,
            },
        })),
        (_, _, _) => Err(unexpected(&Value::Array(pair))),
    }
}

/// A reply that none of our requests has. Whatever was asked may have been done.
pub(crate) fn unexpected(value: &Value) -> StoreError {
    let form = match value {
        Value::Nil => "nothing",
        Value::Int(_) => "a number",
        Value::BulkString(_) | Value::SimpleString(_) | Value::Okay => "a string",
        Value::Array(_) => "a list",
        _ => "something else",
    };
    let error = RedisError::from((ErrorKind::UnexpectedReturnType, "an unexpected reply"));
    StoreError::with_source(
        StoreErrorKind::Unavailable,
        format!("Redis answered with {form}, which no request of a store asks for"),
        error,
    )
}
