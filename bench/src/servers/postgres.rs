//! PostgreSQL: P7, and the store beside its driver.

use std::{path::Path, process::Command, sync::Arc, time::Duration};

use bytes::Bytes;
use retrysafe_axum::Claim;
use retrysafe_sqlx::PostgresStore;
use retrysafe_testkit::servers::PostgresServer;
use sqlx::{
    AssertSqlSafe, Connection as _, PgConnection, SqlSafeStr as _, SqlStr,
    postgres::types::PgInterval,
};

use super::{
    CALLERS, CONNECTIONS, PATIENCE, RETENTION, beside,
    callers::{OfStore, Side, Took, Work, drive},
    runtime,
};
use crate::{
    Outcome,
    measure::{Effort, all_in_turn},
    report::{Number, Row},
    size,
};

/// Enough for the statements of a store to be read back whole.
const SETTINGS: [&str; 1] = ["track_activity_query_size=32kB"];

/// P7: claims and first executions against `pgbench` with the store's own statements.
pub(crate) fn against_pgbench(effort: Effort) -> Outcome<Vec<Row>> {
    const STORE: usize = 0;
    const PGBENCH: usize = 1;
    const DRIVER: usize = 2;
    const QUEUED: usize = 3;
    const TURNS: usize = 200;
    /// `pgbench` connects anew each time: the server's first plans are to be a small part of it.
    const PGBENCH_TURNS: usize = 500;

    let payload = size::payload()?;
    let runtime = runtime()?;
    let server = runtime.block_on(PostgresServer::with(&SETTINGS));
    let (mut store, mut driver) = runtime.block_on(sides(&server, &payload))?;
    // Four callers to each connection.
    let mut queued = OfStore::callers(&store[0].store, &payload, CALLERS);
    let statements = driver[0].statements.clone();
    let directory = tempfile::tempdir()?;
    let mut rows = Vec::new();
    for (work, name) in [(Work::Claim, "claims"), (Work::Operation, "first executions")] {
        let script = directory.path().join("script.sql");
        std::fs::write(&script, statements.script(work, &payload))?;
        let rounds = all_in_turn::<_, 4>(effort.rounds(10), |variant| match variant {
            STORE => runtime.block_on(drive(&mut store, CONNECTIONS, TURNS, work)),
            PGBENCH => {
                let per_second = pgbench(&server.url(), &script, PGBENCH_TURNS)?;
                Ok(Took { per_second, ..Took::default() })
            }
            DRIVER => runtime.block_on(drive(&mut driver, CONNECTIONS, TURNS, work)),
            _ => {
                let turns = TURNS * CONNECTIONS / CALLERS;
                runtime.block_on(drive(&mut queued, CALLERS, turns, work))
            }
        })?;
        let against = |this: usize, that: usize| {
            Number::ratio(rounds.median(|it| it[this].per_second / it[that].per_second))
        };
        let rate = |variant: usize| {
            Number::of(rounds.median(|it| it[variant].per_second), 0, "/s").to_string()
        };
        rows.extend([
            Row::at_least(
                "P7",
                format!("PostgreSQL, 16 callers: {name} against pgbench"),
                against(STORE, PGBENCH),
                0.9,
            ),
            Row::shown(
                "P7",
                format!("PostgreSQL, 16 callers: {name} against the driver by hand"),
                against(STORE, DRIVER),
            ),
            Row::shown(
                "P7",
                format!("PostgreSQL, {name}: store / pgbench / driver / store, 64 callers"),
                [STORE, PGBENCH, DRIVER, QUEUED].map(rate).join(" / "),
            ),
        ]);
    }
    Ok(rows)
}

/// Transactions per second.
fn pgbench(url: &str, script: &Path, turns: usize) -> Outcome<f64> {
    let output = Command::new("pgbench")
        .args(["--no-vacuum", "--protocol=prepared", "--jobs=1", "--file"])
        .arg(script)
        .arg(format!("--client={CONNECTIONS}"))
        .arg(format!("--transactions={turns}"))
        .arg(url)
        // As the store sets its sessions.
        .env("PGOPTIONS", "-c enable_seqscan=off")
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let rate = said.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next());
    let whole = format!("{}/{0}\n", turns * CONNECTIONS);
    match rate {
        Some(rate) if output.status.success() && said.contains(&whole) => Ok(rate.parse()?),
        _ => Err(format!("pgbench: {said}{}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

pub(crate) fn beside_its_driver(effort: Effort) -> Outcome<Vec<Row>> {
    let payload = size::payload()?;
    let runtime = runtime()?;
    let server = runtime.block_on(PostgresServer::with(&SETTINGS));
    let (store, driver) = runtime.block_on(sides(&server, &payload))?;
    beside(&runtime, effort, "PostgreSQL", 20, store, driver)
}

async fn sides(
    server: &PostgresServer,
    payload: &Bytes,
) -> Outcome<(Vec<OfStore<PostgresStore>>, Vec<Driver>)> {
    let store = PostgresStore::builder(server.url()).migrate().timeout(PATIENCE).open().await?;
    let mut store = OfStore::callers(&store, payload, CONNECTIONS);
    let statements = Statements::of(server, &mut store[0]).await?;
    let mut drivers = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut connection = PgConnection::connect(&server.url()).await?;
        sqlx::raw_sql("SET enable_seqscan = off").execute(&mut connection).await?;
        let (statements, payload) = (statements.clone(), payload.clone());
        drivers.push(Driver { connection, statements, payload });
    }
    Ok((store, drivers))
}

/// The store's statements, as the server has seen them: what is compared is the same even when the
/// store changes.
#[derive(Clone)]
struct Statements {
    /// Of id, owner, fingerprint, lease and retention.
    begin: SqlStr,
    /// Of id, owner, fingerprint, payload and retention.
    complete: SqlStr,
}

impl Statements {
    async fn of(server: &PostgresServer, store: &mut OfStore<PostgresStore>) -> Outcome<Self> {
        let last = async || {
            let last = "SELECT query FROM pg_stat_activity WHERE query LIKE 'WITH clock AS%' \
                AND backend_type = 'client backend'";
            AssertSqlSafe(Arc::<str>::from(server.query(last).await)).into_sql_str()
        };
        let claim = store.operation();
        let held = store.begin(&claim).await?;
        let begin = last().await;
        store.complete(&claim, held).await?;
        let complete = last().await;
        let known = begin.as_str().contains("INSERT INTO") && complete.as_str().contains("UPDATE");
        if known { Ok(Self { begin, complete }) } else { Err("not the store's statements".into()) }
    }

    /// The same for `pgbench`, whose variables are numbers.
    fn script(&self, work: Work, payload: &[u8]) -> String {
        let bytes = |bytes: &[u8]| {
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("'\\x{digits}'::bytea")
        };
        let seconds = |time: Duration| format!("'{} s'::interval", time.as_secs());
        let Claim { owner, fingerprint, lease, retention, .. } = size::claim();
        let id = "sha256(int8send(:number::bigint))".to_owned();
        let (owner, fingerprint) = (bytes(&owner.to_bytes()), bytes(&fingerprint.encode()));
        let write = |statement: &SqlStr, values: [&str; 5]| {
            let mut text = statement.as_str().to_owned();
            for (number, value) in values.iter().enumerate() {
                text = text.replace(&format!("${}", number + 1), value);
            }
            text + ";\n"
        };
        let mut script = "\\set number random(1, 9223372036854775806)\n".to_owned();
        script +=
            &write(&self.begin, [&id, &owner, &fingerprint, &seconds(lease), &seconds(retention)]);
        if work == Work::Operation {
            script += &write(
                &self.complete,
                [&id, &owner, &fingerprint, &bytes(payload), &seconds(RETENTION)],
            );
        }
        script
    }
}

/// A connection, and the store's statements by hand.
struct Driver {
    connection: PgConnection,
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
        let begin = sqlx::query(self.statements.begin.clone())
            .bind(&claim.id.as_bytes()[..])
            .bind(claim.owner.to_bytes().to_vec())
            .bind(claim.fingerprint.encode())
            .bind(interval(claim.lease))
            .bind(interval(claim.retention));
        begin.fetch_one(&mut self.connection).await?;
        Ok(())
    }

    async fn complete(&mut self, claim: &Claim, (): ()) -> Outcome<()> {
        let complete = sqlx::query(self.statements.complete.clone())
            .bind(&claim.id.as_bytes()[..])
            .bind(claim.owner.to_bytes().to_vec())
            .bind(claim.fingerprint.encode())
            .bind(&self.payload[..])
            .bind(interval(RETENTION));
        complete.fetch_one(&mut self.connection).await?;
        Ok(())
    }
}

fn interval(time: Duration) -> PgInterval {
    PgInterval { months: 0, days: 0, microseconds: time.as_micros() as i64 }
}
