//! P9: what a record takes over the head and the body that it keeps.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::HeaderMap;
use http_body_util::BodyExt as _;
use retrysafe_axum::{
    Begin, Claim, Fingerprinter, Held, IdempotencyKey, KeptHeaders, Lease, MemoryStore,
    OperationId, Outcome as Kept, Owner, Record, RequestHead, Scope, Store, SystemEntropy,
};
use retrysafe_sqlite::SqliteStore;
use rusqlite::Connection;
use tokio::runtime::Builder;
use tower::ServiceExt as _;

use crate::{
    Outcome,
    measure::Effort,
    orders,
    report::{Number, Row},
};

const RETENTION: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) fn measure(effort: Effort) -> Outcome<Vec<Row>> {
    let sample = Sample::take()?;
    let bytes = |value: f64| Number::of(value, 1, "bytes");
    let table = in_table(&sample, effort.rounds(10_000))?;
    Ok(vec![
        Row::at_most("P9", "record over head and body", bytes(table.record), 128.0),
        Row::shown("P9", "the same with operation id and owner, in SQLite's row", bytes(table.row)),
        Row::shown("P9", "head and body of the order", bytes(sample.content()?)),
    ])
}

/// What the orders service answers, as it is kept.
struct Sample {
    status: http::StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Sample {
    fn take() -> Outcome<Self> {
        Builder::new_current_thread().build()?.block_on(async {
            let answer = orders::bare().oneshot(orders::request(None)).await;
            let response = match answer {
                Ok(response) => response,
                Err(never) => match never {},
            };
            let (head, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok(Self { status: head.status, headers: head.headers, body })
        })
    }

    /// The bytes of the kept headers' names and values and of the body.
    fn content(&self) -> Outcome<f64> {
        let record = Record::decode(self.payload())?;
        let head = record.headers.iter().map(|(name, value)| name.as_str().len() + value.len());
        Ok((head.sum::<usize>() + self.body.len()) as f64)
    }

    /// Encoded anew each time, as the engine does.
    fn payload(&self) -> Bytes {
        let body = [self.body.clone()];
        let kept = Kept {
            status: self.status,
            headers: &self.headers,
            body: Some(&body),
            trailers: None,
            stream: false,
            trailers_only: false,
            recorded: Duration::from_secs(1_700_000_000),
            trace: None,
        };
        kept.encode(&KeptHeaders::default())
    }
}

/// What a finished order is kept as.
pub(crate) fn payload() -> Outcome<Bytes> {
    Ok(Sample::take()?.payload())
}

/// The claim of an order with a key of its own.
pub(crate) fn claim() -> Claim {
    let headers = HeaderMap::new();
    let head = RequestHead { method: "POST", target: "/orders", headers: &headers };
    let key = IdempotencyKey::new(&orders::fresh_key());
    let key = key.unwrap_or_else(|_| unreachable!("a UUID is a key"));
    Claim {
        id: OperationId::new("default", &Scope::shared(), &key),
        owner: Owner::new(&SystemEntropy),
        fingerprint: Fingerprinter::raw().whole(&head, orders::ORDER.as_bytes()),
        lease: Duration::from_secs(30),
        retention: RETENTION,
        take_over: true,
    }
}

/// Claims and completes an operation.
async fn finish(store: &impl Store, payload: Bytes) -> Outcome<()> {
    let claim = claim();
    let Begin::Acquired(acquired) = store.begin(&claim).await? else {
        return Err("a fresh key was not free".into());
    };
    let lease = Lease {
        id: claim.id,
        owner: claim.owner,
        attempt: acquired.attempt,
        fence: acquired.fence,
    };
    // The engine keeps a handle until the write is acknowledged, as a replay does later: `Bytes`
    // allocates for the first of them.
    let _held = payload.clone();
    match store.complete(&lease, &claim.fingerprint, payload, RETENTION).await? {
        Held::Applied => Ok(()),
        Held::Lost(_) => Err("a lease was lost".into()),
    }
}

/// Fills a memory store, and gives the bytes of head and body of each record.
pub(crate) fn fill_memory(store: &MemoryStore, keys: usize) -> Outcome<f64> {
    let sample = Sample::take()?;
    for _ in 0..keys {
        let finished = finish(store, sample.payload()).now_or_never();
        finished.ok_or("the memory store waited")??;
    }
    sample.content()
}

struct Table {
    /// STORES, "The record": payload, times, state and fingerprint.
    record: f64,
    /// Everything that SQLite's row takes, its own header too.
    row: f64,
}

fn in_table(sample: &Sample, keys: usize) -> Outcome<Table> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("records.db");
    Builder::new_current_thread().enable_all().build()?.block_on(async {
        let store = SqliteStore::builder(&path)
            .synchronous(retrysafe_sqlite::Synchronous::Normal)
            .open()?;
        let finished = (0..keys).map(|_| finish(&store, sample.payload()));
        futures_util::future::try_join_all(finished).await
    })?;
    let connection = Connection::open(&path)?;
    let row: f64 = connection.query_row(
        "SELECT 1.0 * sum(payload) / sum(ncell) FROM dbstat WHERE name = 'record' AND pagetype = 'leaf'",
        [],
        |row| row.get(0),
    )?;
    let key: f64 = connection.query_row(
        "SELECT avg(length(id) + coalesce(length(owner), 0)) FROM record",
        [],
        |row| row.get(0),
    )?;
    let row = row - sample.content()?;
    Ok(Table { record: row - key, row })
}
