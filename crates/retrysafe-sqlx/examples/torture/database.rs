//! The database that is killed: PostgreSQL or MariaDB.

use retrysafe_sqlx::{MySqlStore, PostgresStore};
use retrysafe_testkit::servers::{MariadbServer, PostgresServer};
use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection, PgConnection};

/// Which server keeps the ledger and the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    Postgres,
    /// MariaDB.
    MySql,
}

impl Engine {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        match name {
            "postgres" => Some(Self::Postgres),
            "mysql" => Some(Self::MySql),
            _ => None,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::MySql => "mysql",
        }
    }
}

pub(crate) enum Database {
    Postgres(PostgresServer),
    MySql(MariadbServer),
}

/// What the ledger says in the end.
pub(crate) struct Ledger {
    /// In the order of the accounts.
    pub(crate) balances: Vec<i64>,
    /// Request, payer, payee and amount.
    pub(crate) transfers: Vec<(String, i64, i64, i64)>,
}

const BALANCES: &str = "SELECT balance FROM account ORDER BY id";
const TRANSFERS: &str = "SELECT request, payer, payee, amount FROM transfer";

impl Database {
    /// Starts it with so many accounts of the same balance, and no records.
    ///
    /// Nothing but processes is killed, so what is written need not be on the disk.
    pub(crate) async fn open(engine: Engine, accounts: i64, balance: i64) -> Self {
        let number = match engine {
            Engine::Postgres => "BIGINT GENERATED ALWAYS AS IDENTITY",
            Engine::MySql => "BIGINT NOT NULL AUTO_INCREMENT",
        };
        let accounts: Vec<_> = (0..accounts).map(|id| format!("({id}, {balance})")).collect();
        let ledger = AssertSqlSafe(format!(
            "CREATE TABLE account (id BIGINT PRIMARY KEY, balance BIGINT NOT NULL);
            INSERT INTO account VALUES {};
            CREATE TABLE transfer (number {number}, request VARCHAR(64) NOT NULL,
                payer BIGINT NOT NULL, payee BIGINT NOT NULL, amount BIGINT NOT NULL,
                PRIMARY KEY (number))",
            accounts.join(", ")
        ));
        match engine {
            Engine::Postgres => {
                let server = PostgresServer::with(&["fsync=off", "full_page_writes=off"]).await;
                let url = server.url();
                let mut connection = PgConnection::connect(&url).await.unwrap();
                sqlx::raw_sql(ledger).execute(&mut connection).await.unwrap();
                PostgresStore::builder(url).migrate().open().await.unwrap();
                Self::Postgres(server)
            }
            Engine::MySql => {
                let server = MariadbServer::with(&["--debug-no-sync"]).await;
                let url = server.url();
                let mut connection = MySqlConnection::connect(&url).await.unwrap();
                sqlx::raw_sql(ledger).execute(&mut connection).await.unwrap();
                MySqlStore::builder(url).migrate().open().await.unwrap();
                Self::MySql(server)
            }
        }
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::Postgres(server) => server.url(),
            Self::MySql(server) => server.url(),
        }
    }

    pub(crate) async fn kill_and_restart(&mut self) {
        match self {
            Self::Postgres(server) => server.restart().await,
            Self::MySql(server) => server.restart().await,
        }
    }

    pub(crate) async fn ledger(&self) -> Ledger {
        let url = self.url();
        match self {
            Self::Postgres(_) => {
                let mut connection = PgConnection::connect(&url).await.unwrap();
                let balances = sqlx::query_scalar(BALANCES).fetch_all(&mut connection);
                let balances = balances.await.unwrap();
                let transfers = sqlx::query_as(TRANSFERS).fetch_all(&mut connection).await.unwrap();
                Ledger { balances, transfers }
            }
            Self::MySql(_) => {
                let mut connection = MySqlConnection::connect(&url).await.unwrap();
                let balances = sqlx::query_scalar(BALANCES).fetch_all(&mut connection);
                let balances = balances.await.unwrap();
                let transfers = sqlx::query_as(TRANSFERS).fetch_all(&mut connection).await.unwrap();
                Ledger { balances, transfers }
            }
        }
    }
}
