//! MariaDB: the store beside its driver.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use retrysafe_axum::Claim;
use retrysafe_sqlx::MySqlStore;
use retrysafe_testkit::servers::MariadbServer;
use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection, SqlSafeStr as _, SqlStr};

use super::{
    CONNECTIONS, PATIENCE, RETENTION, beside,
    callers::{OfStore, Side},
    runtime,
};
use crate::{Outcome, measure::Effort, report::Row, size};

pub(crate) fn beside_its_driver(effort: Effort) -> Outcome<Vec<Row>> {
    let payload = size::payload()?;
    let runtime = runtime()?;
    let server = runtime.block_on(MariadbServer::start());
    let (store, drivers) = runtime.block_on(async {
        let statements = Statements::of(&server, &payload).await?;
        let store = MySqlStore::builder(server.url()).migrate().timeout(PATIENCE).open().await?;
        let mut drivers = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut connection = MySqlConnection::connect(&server.url()).await?;
            // As the store sets its sessions.
            let isolation = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";
            sqlx::raw_sql(isolation).execute(&mut connection).await?;
            let (statements, payload) = (statements.clone(), payload.clone());
            drivers.push(Driver { connection, statements, payload });
        }
        Outcome::Ok((OfStore::callers(&store, &payload, CONNECTIONS), drivers))
    })?;
    beside(&runtime, effort, "MariaDB", 20, store, drivers)
}

/// The store's statements, as the server has seen them.
#[derive(Clone)]
struct Statements {
    begin: SqlStr,
    complete: SqlStr,
}

impl Statements {
    async fn of(server: &MariadbServer, payload: &Bytes) -> Outcome<Self> {
        server.query("SET GLOBAL log_output = 'TABLE'; SET GLOBAL general_log = ON").await;
        let store = MySqlStore::builder(server.url()).migrate().timeout(PATIENCE).open().await?;
        let [caller] = &mut OfStore::callers(&store, payload, 1)[..] else {
            return Err("one caller".into());
        };
        let claim = caller.operation();
        let held = caller.begin(&claim).await?;
        caller.complete(&claim, held).await?;
        server.query("SET GLOBAL general_log = OFF").await;
        let prepared = async |like: &str| {
            let said = server
                .query(&format!(
                    "SELECT argument FROM mysql.general_log \
                     WHERE command_type = 'Prepare' AND argument LIKE '{like}' LIMIT 1"
                ))
                .await;
            // The client escapes what would break its lines.
            let text = said.replace("\\n", "\n").replace("\\t", "\t");
            AssertSqlSafe(Arc::<str>::from(text)).into_sql_str()
        };
        Ok(Self {
            begin: prepared("INSERT INTO%").await,
            complete: prepared("UPDATE%SET state = 1, %").await,
        })
    }
}

/// A connection, and the store's statements by hand.
struct Driver {
    connection: MySqlConnection,
    statements: Statements,
    payload: Bytes,
}

impl Side for Driver {
    type Operation = Claim;
    type Held = ();

    fn operation(&self) -> Claim {
        size::claim()
    }

    async fn begin(&mut self, claim: &Claim) -> Outcome<()> {
        let owner = claim.owner.to_bytes();
        let begin = sqlx::query(self.statements.begin.clone())
            .bind(&owner[..])
            .bind(1_u64)
            .bind(false)
            .bind(0_u8)
            .bind(claim.fingerprint.encode())
            .bind(microseconds(claim.lease))
            .bind(microseconds(claim.retention))
            .bind(microseconds(claim.retention))
            .bind(None::<&[u8]>)
            .bind(&claim.id.as_bytes()[..]);
        written(begin.execute(&mut self.connection).await?.rows_affected())
    }

    async fn complete(&mut self, claim: &Claim, (): ()) -> Outcome<()> {
        let owner = claim.owner.to_bytes();
        let complete = sqlx::query(self.statements.complete.clone())
            .bind(claim.fingerprint.encode())
            .bind(&self.payload[..])
            .bind(microseconds(RETENTION))
            .bind(&claim.id.as_bytes()[..])
            .bind(&owner[..]);
        written(complete.execute(&mut self.connection).await?.rows_affected())
    }
}

fn written(rows: u64) -> Outcome<()> {
    if rows == 1 { Ok(()) } else { Err("a row was not written".into()) }
}

fn microseconds(time: Duration) -> i64 {
    time.as_micros() as i64
}
