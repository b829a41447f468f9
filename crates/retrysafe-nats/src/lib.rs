//! Keeps the records of retrysafe in NATS JetStream: the store for those who run NATS already, and
//! the one whose every write is agreed upon by a quorum before it is acknowledged.
//!
//! ```no_run
//! # async fn open() -> Result<(), Box<dyn std::error::Error>> {
//! use retrysafe_core::SharedStore;
//! use retrysafe_nats::NatsStore;
//!
//! let store = NatsStore::builder("nats://retrysafe:secret@nats-1,nats-2,nats-3")
//!     .replicas(3)
//!     .open()
//!     .await?;
//! let store = SharedStore::new(store); // what a layer takes
//! # Ok(())
//! # }
//! ```
//!
//! # What survives what
//!
//! | | a service dies | a server dies | the leader is lost | power is lost everywhere |
//! |---|---|---|---|---|
//! | 3 replicas | everything | everything | everything; no answers while another is elected | see below |
//! | 1 replica | everything | everything, once it is back | - | see below |
//!
//! A server writes to its disk at once, and by default *flushes* only every two minutes: a process
//! may be killed at any time, but a loss of power takes what was not flushed. Set
//! `jetstream { sync_interval: always }` on every server; then nothing that was acknowledged is lost.
//! A client can't read this setting, so it is not checked when the store is opened.
//!
//! # How it works
//!
//! An operation is a subject, `STREAM.xx.yyyy`, with its id in hex digits, and the stream keeps one
//! message of each subject: the record. Every write says which sequence the subject's last message
//! must have, and the leader refuses it if that is another one (compare-and-set), so a verb is the
//! [life of a record](retrysafe_core::lifecycle) from one message to the next:
//!
//! - A claim of a free key expects that there is no message.
//! - Everything later expects the very message that it was decided on. A handle remembers what it
//!   has written and seen, so a renewal or an outcome is a single request; where it remembers
//!   wrongly, the write is refused, and it reads from the leader and decides again.
//! - A message carries a time to live, rounded up, and the server removes it by itself, a few seconds
//!   after the record has expired. Expiry is judged when a record is read.
//! - Who waits is subscribed to `STREAM.changed.xx.yyyy`, where the server repeats the head of each
//!   message after it was stored. In case that gets lost it also asks now and then.
//!
//! | | requests |
//! |---|---|
//! | claim of a free key · renewal · outcome · release | 1 each |
//! | replay | 2 |
//! | in flight | 1 if this handle has seen the record, else 2 |
//! | claim of what was released or given up | 2 if this handle has seen the record, else 3 |
//! | a lapsed lease, found or taken over | 4 |
//!
//! An attempt is one message for its claim, one for each renewal, one for its outcome. Beside the
//! payload the outcome takes about 300 bytes on each replica.
//!
//! # Time
//!
//! Leases and retention are judged by the clock of the stream's leader. A message bears the time of
//! its writing and holds lengths of time counted from there; so who writes need not know the time.
//! Who reads knows it from the leader's last `STREAM.INFO`, at most ten seconds old, plus what has
//! passed since; that is the latest it can be. What is still live, or unexpired, by then is answered
//! so. Whatever may not be is judged by asking the leader there and then: nothing is taken over, and
//! nothing expires, by the clock of an application. If a machine sleeps, its handles may find an
//! operation in flight for ten seconds longer.
//!
//! After a change of leader the new one's clock counts: keep the servers' clocks together (NTP). A
//! difference makes the leases of that moment so much shorter or longer; up to five seconds of it
//! never remove a record early.
//!
//! # The server
//!
//! nats-server 2.11 or later, with JetStream. The store creates its stream, or checks the one that is
//! there, refuses what could lose a record and alters nothing. In particular a stream must not have
//! a `max_age`: it removes messages whatever their own time to live says, live claims included. The
//! stream that it creates denies purging and deleting of messages, which would forget live claims;
//! to start empty, delete the stream while no service uses it.
//!
//! The user needs to publish to `$JS.API.STREAM.*.STREAM`, `$JS.API.STREAM.MSG.GET.STREAM` and
//! `STREAM.*.*`, and to subscribe to `_INBOX.>` and `STREAM.changed.>`.
//!
//! # Limits, and what they look like
//!
//! - **A payload** is at most the server's `max_payload` (1 MiB unless it was set) less 512 bytes; it
//!   is [`About::max_payload`](retrysafe_core::About::max_payload). A larger response is finished
//!   without its body.
//! - **A full stream** ([`NatsStoreBuilder::max_bytes`]) refuses new claims with
//!   [`Full`](retrysafe_core::StoreErrorKind::Full) when fifteen sixteenths are used. With replicas, a
//!   stream at its very limit refuses *every* write; the rest is for the outcomes of what is under
//!   way, those over 1 KiB excepted. The limits of an account or of a disk know no such reserve:
//!   give the stream a limit below them.
//! - **No leader, no quorum**: nothing is granted.
//!   [`Unreachable`](retrysafe_core::StoreErrorKind::Unreachable) if certainly nobody has heard,
//!   else [`Timeout`](retrysafe_core::StoreErrorKind::Timeout) or
//!   [`Unavailable`](retrysafe_core::StoreErrorKind::Unavailable); the same call again, by the same
//!   owner, finds out.
//! - **A connection that is lost** comes back by itself. Nothing is handed to the driver meanwhile,
//!   because it would send it later, when nobody wants it any more.
//! - **Looking at all records** ([`Inspect`](retrysafe_core::Inspect)) reads them one by one. A
//!   million are a matter of minutes.
//! - **A record that this version can't read** is an error, never "absent" (ST10).

mod builder;
mod error;
mod inspect;
mod jetstream;
mod leader;
mod record;
mod seen;
mod store;
mod stream;

pub use self::{
    builder::NatsStoreBuilder,
    error::{OpenError, OpenErrorKind},
    store::NatsStore,
};
