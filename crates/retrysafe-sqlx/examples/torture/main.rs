//! The ledger torture: services that move money are killed, at random and at every named point, and
//! so is their database. Some stand still for longer than their lease before. Then the books are audited.
//!
//! ```text
//! make torture KILLS=2000 MODE=transactional STORE=postgres
//! ```
//!
//! - `MODE=transactional` keeps the records in the transaction of the transfer.
//! - `MODE=phases` charges a card between two commits, at a processor that is somebody else's: it lives
//!   on in the process that kills. What a service leaves when it dies is gone on with by its client's
//!   retry, when the lease is over. Each transfer has one charge, and what is refused has none.
//! - `MODE=layer` keeps the records by the ordinary store, beside a transaction of the handler's own,
//!   and shows that this test is able to see a hole: a service that dies between the two commits runs
//!   the transfer again.
//!
//! `STORE` is `postgres`, `mysql`, which is MariaDB here, or `sqlite`: one file that every service has
//! open. That has no process to kill, so from time to time all services are killed at once, and whoever
//! opens the file next recovers it.
//!
//! The last line is `kills=K transfers=T doubled=D lost=L balance_ok=true|false`. What has to hold for
//! the mode decides the exit code.

#![allow(clippy::unwrap_used, reason = "what fails here ends the test")]

mod books;
mod client;
mod database;
mod driver;
mod processor;
mod service;

use std::process::ExitCode;

use database::Engine;
use driver::Plan;

/// How the records are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Transactional,
    Phases,
    Layer,
}

impl Mode {
    fn parse(name: &str) -> Option<Self> {
        match name {
            "transactional" => Some(Self::Transactional),
            "phases" => Some(Self::Phases),
            "layer" => Some(Self::Layer),
            _ => None,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Transactional => "transactional",
            Self::Phases => "phases",
            Self::Layer => "layer",
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    if service::is_wanted() {
        service::serve().await;
        return ExitCode::SUCCESS;
    }
    let mut arguments = std::env::args().skip(1);
    let kills = arguments.next().and_then(|kills| kills.parse().ok());
    let mode = arguments.next().as_deref().and_then(Mode::parse);
    let engine = arguments.next().as_deref().map_or(Some(Engine::Postgres), Engine::parse);
    let (Some(kills), Some(mode), Some(engine)) = (kills, mode, engine) else {
        eprintln!(
            "torture: say how many kills, transactional, phases or layer, and postgres, mysql or sqlite"
        );
        return ExitCode::from(2);
    };
    let audit = driver::run(&Plan { kills, mode, engine, report: true }).await;
    println!("{audit}");
    if mode == Mode::Layer || audit.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a service runs when it was started by one of the tests below.
    #[tokio::test(flavor = "multi_thread")]
    async fn service_of_a_test() {
        if service::is_wanted() {
            service::serve().await;
        }
    }

    async fn is_clean(mode: Mode, engine: Engine) {
        let plan = Plan { kills: 24, mode, engine, report: false };
        let audit = driver::run(&plan).await;
        assert!(audit.is_clean() && audit.transfers > 0, "{audit}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn transfers_happen_once_whatever_is_killed() {
        is_clean(Mode::Transactional, Engine::Postgres).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn transfers_happen_once_whatever_is_killed_in_mariadb() {
        is_clean(Mode::Transactional, Engine::MySql).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn transfers_happen_once_whatever_is_killed_in_sqlite() {
        is_clean(Mode::Transactional, Engine::Sqlite).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn cards_are_charged_once_whatever_is_killed() {
        is_clean(Mode::Phases, Engine::Postgres).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn cards_are_charged_once_whatever_is_killed_in_mariadb() {
        is_clean(Mode::Phases, Engine::MySql).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn cards_are_charged_once_whatever_is_killed_in_sqlite() {
        is_clean(Mode::Phases, Engine::Sqlite).await;
    }

    /// The documented hole of the ordinary layer, which this test must be able to see.
    async fn is_seen(engine: Engine) {
        for _ in 0..5 {
            let plan = Plan { kills: 12, mode: Mode::Layer, engine, report: false };
            let audit = driver::run(&plan).await;
            assert!(audit.balance_ok, "{audit}");
            if audit.doubled > 0 {
                return;
            }
        }
        panic!("nothing was doubled: this test sees nothing");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_ordinary_layer_doubles_what_was_killed_between_two_commits() {
        is_seen(Engine::Postgres).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_ordinary_layer_in_mariadb_doubles_it_too() {
        is_seen(Engine::MySql).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_ordinary_layer_beside_sqlite_doubles_it_too() {
        is_seen(Engine::Sqlite).await;
    }
}
