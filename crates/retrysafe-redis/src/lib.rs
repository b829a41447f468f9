//! Keeps the records of retrysafe in Redis or Valkey, for any number of processes and machines.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use retrysafe_core::{Inspect, SharedStore};
//! use retrysafe_redis::RedisStore;
//!
//! let store = RedisStore::open("redis://127.0.0.1").await?;
//! assert_eq!(store.count().await?.finished, 0);
//! let store = SharedStore::new(store); // what a layer takes
//! # Ok(())
//! # }
//! ```
//!
//! # What survives what
//!
//! | | the application dies | Redis dies, or loses power | a replica takes over |
//! |---|---|---|---|
//! | `appendfsync always` | everything acknowledged is kept | everything acknowledged is kept | see below |
//! | `appendfsync everysec` | everything acknowledged is kept | the last second may be gone | see below |
//! | no append-only file | everything acknowledged is kept | all since the last snapshot may be gone | see below |
//!
//! What is gone runs again. Replication is asynchronous, so **a failover may lose what was
//! acknowledged**: a claim that the promoted replica had not heard of is granted to the next who asks,
//! and both run. One outcome is kept all the same, because the first attempt's completion is then
//! [`Lost`](retrysafe_core::Held::Lost). With [`Durability::Replicas`] each claim, renewal and outcome
//! waits until so many replicas have it, which makes this unlikely and does not rule it out. Where an
//! operation must not run twice although a machine is lost, take PostgreSQL with a synchronous standby
//! or NATS JetStream.
//!
//! # What the server has to be
//!
//! Redis 7.0 or later, or Valkey, alone or a cluster; found by address, not by Sentinel. These settings
//! matter:
//!
//! | setting | | if it is not so |
//! |---|---|---|
//! | `maxmemory-policy` | `noeviction` | refused: an evicted claim is a double execution |
//! | `appendonly` | `yes` | a warning in the log |
//! | `appendfsync` | `everysec`, or `always` | not looked at: see above |
//! | `proto-max-bulk-len` | more than the store's `max_payload` | refused, where it can be read |
//! | `min-replicas-to-write` | for a primary that must not go on alone | not looked at |
//!
//! Eviction, version and role are looked at again at every new connection, because there may be another
//! server behind the address by then. A replica is refused, and so is a primary that became one.
//!
//! A user needs no more than this; without the last line operators can't list and count:
//!
//! ```text
//! ACL SETUSER retrysafe on >password ~retrysafe:* &retrysafe:* -@all
//!     +hello +info +cluster|slots +asking +script|load +eval +evalsha
//!     +set +get +del +exists +pttl +pexpire +getrange +setrange
//!     +spublish +ssubscribe +sunsubscribe +wait
//!     +scan
//! ```
//!
//! # How it works
//!
//! One key for each operation: the prefix and the id in hex digits. Its value is a small head and the
//! payload, and **its expiry is its clock**: how long a lease has run is how much of the key's time is
//! gone, so it is Redis alone that judges, by its own clock, and Redis that removes what has expired.
//! There is nothing to [sweep](retrysafe_core::Store::sweep).
//!
//! - A claim is one `SET key value NX GET PX`: nothing comes back if it was free, else the record that
//!   is there. A first execution takes two round trips with its outcome, a replay one.
//! - Everything that depends on what is there is a Lua script that compares and sets (`lua/`): atomic,
//!   one key, one round trip. A take-over compares the whole record that was observed and judges the
//!   lapse once more, because a renewal may have changed nothing but the expiry.
//! - Who [waits](retrysafe_core::Store::changed) subscribes to a channel with the key's name, looks, and
//!   is told by the script that ends the attempt (sharded pub/sub, also in a cluster). A message may be
//!   lost; then a poll finds out.
//!
//! Claims share one multiplexed connection to each server. Wake-ups have another, and so has every
//! request that waits for replicas, because it would hold up what is behind it.
//!
//! # When the answer is lost
//!
//! The store never sends a request again that may have had its effect; the engine does, with the same
//! owner, which every script recognises (ST4). What is certain is said:
//! [`Unreachable`](retrysafe_core::StoreErrorKind::Unreachable) only if nothing was sent, or if the
//! server refused before it did anything (it is loading, its cluster is down);
//! [`Timeout`](retrysafe_core::StoreErrorKind::Timeout) and
//! [`Unavailable`](retrysafe_core::StoreErrorKind::Unavailable) if it was, or if all connections wait
//! for replicas: that server is there (D4). In a cluster a request follows
//! `MOVED` and `ASK`, after which it certainly was not done. The cluster is routed here and not by the
//! driver, whose cluster connection repeats by itself and does not tell these apart.
//!
//! The next call makes a connection that has ended again. One whose host no longer acknowledges ends by
//! itself after two response time-outs (on Linux; elsewhere, and where something between acknowledges
//! in its place, it is given up after four).
//!
//! # Limits, and what they look like
//!
//! - **A full server** refuses claims with [`Full`](retrysafe_core::StoreErrorKind::Full). Renewals,
//!   releases and the outcomes of what is under way are still written, past `maxmemory` if need be, and
//!   nothing is dropped (ST8).
//! - **A record that this version can't read**, or data of somebody else under our keys, is an error and
//!   never "absent", and is left as it is until it expires (ST10).
//! - **The server's clock** set forward ends leases and retention early: a slow attempt may be taken
//!   over, and is fenced. Keep the clocks of primary and replicas together: expiry is replicated as a
//!   point in time.
//! - **Listing and counting** walk over every key of the database on every primary, because Redis keeps
//!   no order; each page walks again. Claims go between the steps.
//! - **Redis works on one request at a time**: a payload of megabytes holds up everybody else.

mod builder;
mod connect;
mod error;
mod inspect;
mod key;
mod link;
mod node;
mod open;
mod record;
mod script;
mod servers;
mod settings;
mod slot;
mod store;
mod watch;

pub use self::{
    builder::RedisStoreBuilder,
    error::{OpenError, OpenErrorKind},
    settings::Durability,
    store::RedisStore,
};
