//! Opens any store of retrysafe by URL, for binaries and for services that are configured by text.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let opened = retrysafe_stores::open("memory:").await?;
//! println!("keeping records in {}", opened.url); // safe to log
//! let store = opened.store; // what a layer takes
//! # Ok(())
//! # }
//! ```
//!
//! A service that knows its store at build time needs none of this: it depends on the store's crate
//! and opens it by its builder, which has every setting.
//!
//! # Which store
//!
//! Each store but the one in memory is a cargo feature, and none is on by default, so that no driver
//! gets into a lock file unasked.
//!
//! | URL | feature | crash of the service | crash of the store | failover | loss of power |
//! |---|---|---|---|---|---|
//! | `memory:` | | forgets everything | - | - | forgets everything |
//! | `sqlite:PATH` | `sqlite` | keeps everything | keeps everything | - | keeps everything |
//! | `sqlite:PATH?synchronous=normal` | `sqlite` | keeps everything | keeps everything | - | may lose the last moments |
//! | `redis://HOST`, `appendfsync always` | `redis` | keeps everything | keeps everything | may lose the last moments | keeps everything |
//! | `redis://HOST`, `appendfsync everysec` | `redis` | keeps everything | may lose the last second | may lose the last moments | may lose the last second |
//! | `postgres://HOST/DATABASE`, synchronous standby | `postgres` | keeps everything | keeps everything | keeps everything | keeps everything |
//! | `mysql://HOST/DATABASE`, `innodb_flush_log_at_trx_commit=1` | `mysql` | keeps everything | keeps everything | as its replication does | keeps everything |
//! | `nats://HOST,HOST,HOST?replicas=3`, `sync_interval: always` | `nats` | keeps everything | keeps everything | keeps everything | keeps everything |
//!
//! What is lost runs again when it is retried. The page of each store's crate says what its server has
//! to be, and what of that is checked when it is opened.
//!
//! `memory:` is for tests and for a single process that may run an operation again after it was
//! restarted. `sqlite:` is for one machine, with any number of processes. The others are for any
//! number of machines; where nothing else decides, take PostgreSQL with a synchronous standby.
//!
//! # URLs
//!
//! - `memory:` takes nothing more.
//! - `sqlite:orders.db` and `sqlite://orders.db` are relative to the working directory;
//!   `sqlite:/var/lib/orders.db` and `sqlite:///var/lib/orders.db` are absolute. `%20` and the like
//!   are decoded, so that any path can be written.
//! - `redis://USER:PASSWORD@HOST:PORT/NUMBER` is one server and the number of its database;
//!   `rediss://` is the same over TLS. `redis-cluster://` and `rediss-cluster://` name one or more
//!   nodes of a cluster, which tell of the others.
//! - `postgres://USER:PASSWORD@HOST:PORT/DATABASE`, or `postgresql://`. With a list of hosts,
//!   `postgres://USER:PASSWORD@a,b:5433,+c/DATABASE`, each keeps a share of the operations, and `+`
//!   and `-` mark one that joins or leaves the list: how to do that is told by
//!   `retrysafe_sqlx::Primaries`. A list is opened if one of its primaries can be used; the keys of
//!   the others are refused until they can.
//! - `mysql://USER:PASSWORD@HOST:PORT/DATABASE`, or `mariadb://`.
//! - `nats://USER:PASSWORD@HOST:PORT,HOST`, or with a token in place of user and password, names one
//!   or more servers of one cluster.
//!
//! Special characters in a user or password are percent-encoded. Neither is in any message, nor in
//! [`OpenStore::url`].
//!
//! Behind a `?` and between `&` a URL takes these settings; any other is an error that names it.
//!
//! | store | setting | default | |
//! |---|---|---|---|
//! | `sqlite` | `synchronous` | `full` | or `normal`: see the table above |
//! | `redis` | `prefix` | `retrysafe:` | what every key begins with |
//! | | `durability` | `fast` | `replicas:1:500ms`: claims, renewals and outcomes wait until 1 replica has them, for at most 500 ms |
//! | `postgres`, `mysql` | `table` | `retrysafe_record` | with or without a schema before a dot |
//! | | `migrate` | `true` | whether the table is created if it is not there |
//! | | `max-connections` | `16` | how many connections a process opens at most |
//! | `postgres` | `sslmode`, `sslrootcert`, `sslcert`, `sslkey`, `application_name` | | as PostgreSQL has them |
//! | `mysql` | `ssl-mode`, `ssl-ca`, `ssl-cert`, `ssl-key` | | as MySQL has them |
//! | `nats` | `stream` | `retrysafe` | its name |
//! | | `create` | `true` | whether the stream is created if it is not there |
//! | | `replicas` | `1` | on how many servers each record is kept |
//! | | `max-bytes` | unlimited | how large the stream may grow, such as `10GiB`, if it is created |
//! | | `tls` | `false` | `true`: not without TLS; a server that insists on it gets it either way |
//! | all servers | `timeout` | `1s` (`redis`), `1500ms` | how long an answer may take |
//!
//! A table is created if it is not there, as a file and a stream are: so a store is changed by changing
//! its URL alone. That needs the right to create one, the first time. With `migrate=false` a missing
//! table is an error; [`schema`] gives its statements, and so does `retrysafe schema`.

#[cfg(any(feature = "mysql", feature = "nats", feature = "postgres", feature = "redis"))]
mod address;
mod error;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "nats")]
mod nats;
mod opened;
#[cfg(any(
    feature = "mysql",
    feature = "nats",
    feature = "postgres",
    feature = "redis",
    feature = "sqlite"
))]
mod parameters;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(any(feature = "mysql", feature = "nats", feature = "postgres", feature = "redis"))]
mod written;

pub use self::{
    error::OpenError,
    opened::{OpenStore, open, open_existing, schema},
};
