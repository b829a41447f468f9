//! A million expired records, swept while claims go on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use retrysafe_axum::Store;
use retrysafe_sqlx::{MySqlStore, PostgresStore};
use retrysafe_testkit::servers::{MariadbServer, PostgresServer};
use tokio::runtime::Runtime;

use super::{
    CONNECTIONS, PATIENCE,
    callers::{OfStore, Work, drive},
    runtime,
};
use crate::{
    Outcome,
    measure::{Effort, median},
    report::{Number, Row},
    size,
};

const TARGET: &str = "SWEEP";

/// As the engine does.
const LIMIT: usize = 1_000;

/// How often rates are compared at most.
const ROUNDS: usize = 100;

fn expired(effort: Effort) -> usize {
    match effort {
        Effort::Full => 1_000_000,
        Effort::Quick => 50_000,
    }
}

pub(crate) fn postgres(effort: Effort) -> Outcome<Vec<Row>> {
    let expired = expired(effort);
    let length = size::payload()?.len();
    let fingerprint = fingerprint();
    let runtime = runtime()?;
    let (_server, store) = runtime.block_on(async {
        // No checkpoint but the one that is asked for: it would fall on one side alone.
        let server = PostgresServer::with(&["shared_buffers=256MB", "max_wal_size=8GB"]).await;
        let store = PostgresStore::builder(server.url()).migrate().timeout(PATIENCE).open().await?;
        server
            .query(&format!(
                "INSERT INTO retrysafe_record (fence, expires_at, layout, state, previous_vanished,
                     id, owner, fingerprint, payload)
                 SELECT 1, now() - interval '1 hour' + n * interval '1 ms', 1, 1, false,
                     sha256(int8send(n)), substr(sha256(int8send(-n)), 1, 16), '\\x{fingerprint}',
                     decode(repeat('00', {length}), 'hex')
                 FROM generate_series(1, {expired}) n"
            ))
            .await;
        server.query("CHECKPOINT").await;
        Outcome::Ok((server, store))
    })?;
    swept(&runtime, "PostgreSQL", &store, expired)
}

pub(crate) fn mariadb(effort: Effort) -> Outcome<Vec<Row>> {
    let expired = expired(effort);
    let length = size::payload()?.len();
    let fingerprint = fingerprint();
    let runtime = runtime()?;
    let (_server, store) = runtime.block_on(async {
        let settings = ["--innodb-buffer-pool-size=1G", "--innodb-log-file-size=512M"];
        let server = MariadbServer::with(&settings).await;
        let store = MySqlStore::builder(server.url()).migrate().timeout(PATIENCE).open().await?;
        server
            .query(&format!(
                "INSERT INTO retrysafe.retrysafe_record (fence, expires_at, layout, state,
                     previous_vanished, id, owner, fingerprint, payload)
                 SELECT 1, UTC_TIMESTAMP(6) - INTERVAL 1 HOUR + INTERVAL seq * 1000 MICROSECOND, 1, 1,
                     0, UNHEX(SHA2(seq, 256)), UNHEX(MD5(seq)), X'{fingerprint}',
                     REPEAT('0', {length})
                 FROM retrysafe.seq_1_to_{expired}"
            ))
            .await;
        Outcome::Ok((server, store))
    })?;
    swept(&runtime, "MariaDB", &store, expired)
}

/// In hex digits.
fn fingerprint() -> String {
    size::claim().fingerprint.encode().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Claims without and with a sweep beside them, in turn, until everything is swept or it has been
/// compared often enough.
fn swept<S: Store + Clone>(
    runtime: &Runtime,
    engine: &str,
    store: &S,
    expired: usize,
) -> Outcome<Vec<Row>> {
    const TURNS: usize = 100;

    let mut callers = OfStore::callers(store, &size::payload()?, CONNECTIONS);
    let mut claims = || runtime.block_on(drive(&mut callers, CONNECTIONS, TURNS, Work::Claim));
    // What is kept in memory is there then.
    claims()?;
    let (mut alone, mut beside, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let (mut removed, mut time) = (0, Duration::ZERO);
    while removed < expired && ratios.len() < ROUNDS {
        let without = claims()?.per_second;
        let sweeper = Sweeper::start(runtime, store.clone());
        let with = claims()?.per_second;
        let (more, took) = sweeper.stop(runtime)?;
        removed += more;
        time += took;
        alone.push(without);
        beside.push(with);
        ratios.push(with / without);
    }
    let rate = |value| Number::of(value, 0, "/s").to_string();
    let rates = [median(alone), median(beside)].map(rate).join(" / ");
    let pace = rate(removed as f64 / time.as_secs_f64());
    Ok(vec![
        Row::at_least(
            TARGET,
            format!("{engine}: claims beside a sweep of {expired} records, against without"),
            Number::ratio(median(ratios)),
            0.8,
        ),
        Row::shown(TARGET, format!("{engine}, claims: without / beside"), rates),
        Row::shown(
            TARGET,
            format!("{engine}: records swept meanwhile"),
            format!("{removed}, {pace}"),
        ),
    ])
}

struct Sweeper {
    task: tokio::task::JoinHandle<Outcome<(usize, Duration)>>,
    is_over: Arc<AtomicBool>,
}

impl Sweeper {
    fn start(runtime: &Runtime, store: impl Store) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let over = is_over.clone();
        let task = runtime.spawn(async move {
            let (started, mut removed) = (Instant::now(), 0);
            loop {
                let swept = store.sweep(LIMIT).await?;
                removed += swept.removed;
                if over.load(Ordering::Relaxed) || !swept.more {
                    return Ok((removed, started.elapsed()));
                }
            }
        });
        Self { task, is_over }
    }

    fn stop(self, runtime: &Runtime) -> Outcome<(usize, Duration)> {
        self.is_over.store(true, Ordering::Relaxed);
        runtime.block_on(self.task)?
    }
}
