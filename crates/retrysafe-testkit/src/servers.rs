//! Real servers for tests, and a wire that fails as wires do.
//!
//! A server is private: on a free port of 127.0.0.1, in a temporary directory of its own. It is gone,
//! directory and all, when its value drops and also when the test process dies, however it dies: a
//! small `sh` beside each server holds the other end of a pipe, and cleans up when the pipe closes.
//!
//! ```no_run
//! use retrysafe_testkit::servers::RedisServer;
//!
//! # async fn test() {
//! let mut redis = RedisServer::start().await;
//! assert_eq!(redis.command(&["SET", "key", "value"]).await, "OK");
//! redis.kill().await; // SIGKILL
//! redis.restart().await; // the same port, the same data
//! assert_eq!(redis.command(&["GET", "key"]).await, "value");
//! # }
//! ```
//!
//! Tests that harm nothing share one server per process ([`Server::shared`]), which is started by the
//! first to ask and does not flush to disk. The environment may name another to use for it:
//! `RETRYSAFE_TEST_REDIS_URL`, `RETRYSAFE_TEST_POSTGRES_URL`, `RETRYSAFE_TEST_MYSQL_URL`,
//! `RETRYSAFE_TEST_NATS_URL`.
//!
//! The programs are `redis-server`, `postgres` with `initdb` and `psql`, `mariadbd` and `nats-server`
//! (2.11 or later). `make servers` installs what is missing, or says how. A test whose server is
//! missing fails and says so in one line. What refuses to run as root runs as another user if the
//! tests do.

mod address;
mod family;
mod mariadb;
mod nats;
mod nats_cluster;
mod postgres;
mod postgres_pair;
mod process;
mod programs;
mod redis;
mod redis_cluster;
mod server;
mod wire;

pub use self::{
    mariadb::{Mariadb, MariadbServer},
    nats::{Nats, NatsServer},
    nats_cluster::NatsCluster,
    postgres::{Postgres, PostgresServer},
    postgres_pair::PostgresPair,
    redis::{Redis, RedisServer},
    redis_cluster::RedisCluster,
    server::{Engine, Server},
    wire::Wire,
};
