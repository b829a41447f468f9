//! The database that is killed: PostgreSQL or MariaDB. SQLite has no process of its own.

use std::path::PathBuf;

use retrysafe_sqlite::TransactionalSqlite;
use retrysafe_sqlx::{MySqlStore, PostgresStore};
use retrysafe_testkit::servers::{MariadbServer, PostgresServer};
use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection, PgConnection};
use tempfile::TempDir;

/// Which engine keeps the ledger and the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    Postgres,
    /// MariaDB.
    MySql,
    /// A file that every service has open.
    Sqlite,
}

impl Engine {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        match name {
            "postgres" => Some(Self::Postgres),
            "mysql" => Some(Self::MySql),
            "sqlite" => Some(Self::Sqlite),
            _ => None,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::MySql => "mysql",
            Self::Sqlite => "sqlite",
        }
    }
}

pub(crate) enum Database {
    Postgres(PostgresServer),
    MySql(MariadbServer),
    Sqlite(TempDir),
}

/// What the ledger says in the end.
pub(crate) struct Ledger {
    /// In the order of the accounts.
    pub(crate) balances: Vec<i64>,
    pub(crate) slips: Vec<Slip>,
}

/// A transfer, as it is written down.
#[derive(Debug)]
pub(crate) struct Slip {
    pub(crate) number: i64,
    pub(crate) request: String,
    pub(crate) payer: i64,
    pub(crate) payee: i64,
    pub(crate) amount: i64,
    /// The number of the charge, if it is with one.
    pub(crate) charge: Option<i64>,
}

/// As it is selected.
type Row = (i64, String, i64, i64, i64, Option<i64>);

impl Slip {
    /// What its client is told.
    pub(crate) fn answer(&self) -> String {
        transferred(self.number, self.charge)
    }

    fn read((number, request, payer, payee, amount, charge): Row) -> Self {
        Self { number, request, payer, payee, amount, charge }
    }
}

/// What is told of a transfer.
pub(crate) fn transferred(number: i64, charge: Option<i64>) -> String {
    match charge {
        Some(charge) => format!("transfer {number} charge {charge}"),
        None => format!("transfer {number}"),
    }
}

const BALANCES: &str = "SELECT balance FROM account ORDER BY id";
const SLIPS: &str = "SELECT number, request, payer, payee, amount, charge FROM transfer";

impl Database {
    /// Starts it with so many accounts of the same balance, and no records.
    ///
    /// Nothing but processes is killed, so what is written need not be on the disk.
    pub(crate) async fn open(engine: Engine, accounts: i64, balance: i64) -> Self {
        let number = match engine {
            Engine::Postgres => "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
            Engine::MySql => "BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY",
            // The number of a slip that was taken back is not given again.
            Engine::Sqlite => "INTEGER PRIMARY KEY AUTOINCREMENT",
        };
        let accounts: Vec<_> = (0..accounts).map(|id| format!("({id}, {balance})")).collect();
        let ledger = format!(
            "CREATE TABLE account (id BIGINT PRIMARY KEY, balance BIGINT NOT NULL);
            INSERT INTO account VALUES {};
            CREATE TABLE transfer (number {number}, request VARCHAR(64) NOT NULL,
                payer BIGINT NOT NULL, payee BIGINT NOT NULL, amount BIGINT NOT NULL,
                charge BIGINT)",
            accounts.join(", ")
        );
        match engine {
            Engine::Postgres => {
                let server = PostgresServer::with(&["fsync=off", "full_page_writes=off"]).await;
                let url = server.url();
                let mut connection = PgConnection::connect(&url).await.unwrap();
                sqlx::raw_sql(AssertSqlSafe(ledger)).execute(&mut connection).await.unwrap();
                PostgresStore::builder(url).migrate().open().await.unwrap();
                Self::Postgres(server)
            }
            Engine::MySql => {
                let server = MariadbServer::with(&["--debug-no-sync"]).await;
                let url = server.url();
                let mut connection = MySqlConnection::connect(&url).await.unwrap();
                sqlx::raw_sql(AssertSqlSafe(ledger)).execute(&mut connection).await.unwrap();
                MySqlStore::builder(url).migrate().open().await.unwrap();
                Self::MySql(server)
            }
            Engine::Sqlite => {
                let directory = TempDir::new().unwrap();
                let file = ledger_in(&directory);
                rusqlite::Connection::open(&file).unwrap().execute_batch(&ledger).unwrap();
                // Makes its table, and switches the file to the write-ahead log.
                TransactionalSqlite::open(file).unwrap();
                Self::Sqlite(directory)
            }
        }
    }

    /// Where services find it; SQLite's is the path of its file.
    pub(crate) fn url(&self) -> String {
        match self {
            Self::Postgres(server) => server.url(),
            Self::MySql(server) => server.url(),
            Self::Sqlite(directory) => ledger_in(directory).to_str().unwrap().to_owned(),
        }
    }

    pub(crate) async fn kill_and_restart(&mut self) {
        match self {
            Self::Postgres(server) => server.restart().await,
            Self::MySql(server) => server.restart().await,
            Self::Sqlite(_) => unreachable!("it has no process"),
        }
    }

    pub(crate) async fn ledger(&self) -> Ledger {
        let url = self.url();
        let (balances, rows): (_, Vec<Row>) = match self {
            Self::Postgres(_) => {
                let mut connection = PgConnection::connect(&url).await.unwrap();
                let balances = sqlx::query_scalar(BALANCES).fetch_all(&mut connection);
                let balances = balances.await.unwrap();
                (balances, sqlx::query_as(SLIPS).fetch_all(&mut connection).await.unwrap())
            }
            Self::MySql(_) => {
                let mut connection = MySqlConnection::connect(&url).await.unwrap();
                let balances = sqlx::query_scalar(BALANCES).fetch_all(&mut connection);
                let balances = balances.await.unwrap();
                (balances, sqlx::query_as(SLIPS).fetch_all(&mut connection).await.unwrap())
            }
            Self::Sqlite(_) => {
                let connection = rusqlite::Connection::open(url).unwrap();
                let mut balances = connection.prepare(BALANCES).unwrap();
                let balances = balances.query_map([], |row| row.get(0)).unwrap();
                let mut rows = connection.prepare(SLIPS).unwrap();
                let rows = rows.query_map([], |row| row.try_into()).unwrap();
                (balances.map(Result::unwrap).collect(), rows.map(Result::unwrap).collect())
            }
        };
        Ledger { balances, slips: rows.into_iter().map(Slip::read).collect() }
    }
}

fn ledger_in(directory: &TempDir) -> PathBuf {
    directory.path().join("ledger.db")
}
