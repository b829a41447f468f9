//! P8: what group commit makes of `synchronous=FULL`.
//!
//! The same claims three ways, each on a file of its own: by 64 callers of our store at once; by a
//! loop that commits each claim; and by a loop that commits them by 64, which is the best that
//! anybody could do by hand. The loops run the statements of our store.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use retrysafe_axum::{Begin, Claim, Store as _};
use retrysafe_sqlite::SqliteStore;
use rusqlite::{Connection, params};
use tokio::runtime::{Builder, Runtime};

use crate::{
    Outcome,
    measure::{Effort, in_turn},
    report::{Number, Row},
    size::claim,
};

const CALLERS: usize = 64;
const TURNS: usize = 20;

const STORE: usize = 0;
const ONE_BY_ONE: usize = 1;
const BATCHED: usize = 2;

pub(crate) fn measure(effort: Effort) -> Outcome<Vec<Row>> {
    // Beside the program: a temporary directory may be in memory, where a flush costs nothing.
    let program = std::env::current_exe()?;
    let beside = program.parent().ok_or("this program is nowhere")?;
    let directory = tempfile::tempdir_in(beside)?;
    let path = |name: &str| directory.path().join(name);

    let runtime = Builder::new_multi_thread().enable_all().build()?;
    let store = Arc::new(SqliteStore::open(path("store.db"))?);
    let one_by_one = by_hand(&path("one.db"))?;
    let batched = by_hand(&path("batched.db"))?;
    let rounds = in_turn::<3>(effort.rounds(30), |variant| match variant {
        STORE => at_once(&runtime, &store),
        ONE_BY_ONE => claims_per_second(&one_by_one, 1, 4 * CALLERS),
        _ => claims_per_second(&batched, CALLERS, TURNS * CALLERS),
    })?;
    let rate = |variant: usize| Number::of(rounds.median(|it| it[variant]), 0, "/s").to_string();
    Ok(vec![
        Row::at_least(
            "P8",
            "SQLite FULL, 64 at once: claims against one commit each",
            Number::ratio(rounds.ratio(STORE, ONE_BY_ONE)),
            5.0,
        ),
        Row::at_least(
            "P8",
            "SQLite FULL, 64 at once: claims against a hand-batched loop",
            Number::ratio(rounds.ratio(STORE, BATCHED)),
            0.8,
        ),
        Row::shown(
            "P8",
            "claims: store / one by one / batched",
            [STORE, ONE_BY_ONE, BATCHED].map(rate).join(" / "),
        ),
    ])
}

/// Claims per second of callers that each wait for their own answer.
fn at_once(runtime: &Runtime, store: &Arc<SqliteStore>) -> Outcome<f64> {
    let claims: Vec<Vec<Claim>> =
        (0..CALLERS).map(|_| (0..TURNS).map(|_| claim()).collect()).collect();
    let started = Instant::now();
    runtime.block_on(async {
        let callers = claims.into_iter().map(|claims| {
            let store = store.clone();
            tokio::spawn(async move {
                for claim in claims {
                    match store.begin(&claim).await? {
                        Begin::Acquired(_) => {}
                        Begin::Found(_) => return Err("a fresh key was not free".into()),
                    }
                }
                Outcome::Ok(())
            })
        });
        for caller in join_all(callers).await {
            caller??;
        }
        Outcome::Ok(())
    })?;
    Ok((CALLERS * TURNS) as f64 / started.elapsed().as_secs_f64())
}

/// A file that our store has laid out, open as our store opens it.
fn by_hand(path: &Path) -> Outcome<Connection> {
    drop(SqliteStore::open(path)?);
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "cache_size", -64 * 1024)?;
    Ok(connection)
}

fn claims_per_second(connection: &Connection, batch: usize, claims: usize) -> Outcome<f64> {
    const INSERT: &str = "
        INSERT INTO record (id, owner, fence, previous_vanished, state, fingerprint, lease_until,
            retention, expires_at, payload)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
        ON CONFLICT (id) DO NOTHING";

    let claims: Vec<_> = (0..claims).map(|_| claim()).collect();
    let now = Duration::from_secs(1_700_000_000);
    let millis = |after: Duration| i64::try_from((now + after).as_millis());
    let started = Instant::now();
    for batch in claims.chunks(batch) {
        connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        for claim in batch {
            let id = claim.id.as_bytes().as_slice();
            let inserted = connection.prepare_cached(INSERT)?.execute(params![
                id,
                claim.owner.to_bytes().as_slice(),
                1,
                false,
                0,
                claim.fingerprint.encode(),
                millis(claim.lease)?,
                i64::try_from(claim.retention.as_millis())?,
                millis(claim.retention)?,
                None::<&[u8]>,
            ])?;
            if inserted != 1 {
                return Err("a fresh key was not free".into());
            }
        }
        connection.prepare_cached("COMMIT")?.execute([])?;
    }
    Ok(claims.len() as f64 / started.elapsed().as_secs_f64())
}
