//! P5, on the wire: how often each server is asked.

use bytes::Bytes;
use retrysafe_axum::{Begin, Claim, Found, Owner, Store, SystemEntropy};
use retrysafe_nats::NatsStore;
use retrysafe_redis::RedisStore;
use retrysafe_sqlx::{MySqlStore, PostgresStore};
use retrysafe_testkit::servers::{MariadbServer, NatsServer, PostgresServer, RedisServer, Wire};

use super::{
    callers::{OfStore, Side as _},
    runtime,
};
use crate::{
    Outcome,
    measure::Effort,
    report::{Number, Row},
    size,
};

/// What P5 and ST2 allow.
struct Wanted {
    replay: f64,
    in_flight: f64,
}

const P5: Wanted = Wanted { replay: 1.0, in_flight: 1.0 };

/// A binary log that is flushed at every commit.
const SYNCHRONOUS: [&str; 3] = ["--log-bin=binlog", "--server-id=1", "--sync-binlog=1"];

pub(crate) fn measure(_: Effort) -> Outcome<Vec<Row>> {
    let payload = &size::payload()?;
    runtime()?.block_on(async {
        let mut rows = Vec::new();

        let server = RedisServer::start().await;
        let wire = Wire::to(server.addr()).await;
        let url = wire.url_for(&server.url());
        let (one, other) = (RedisStore::open(&url).await?, RedisStore::open(&url).await?);
        rows.extend(
            count("Redis", &wire, one, other, payload, Wanted { in_flight: 2.0, ..P5 }).await?,
        );

        let server = PostgresServer::start().await;
        let wire = Wire::to(server.addr()).await;
        let open = || PostgresStore::builder(wire.url_for(&server.url())).migrate().open();
        rows.extend(count("PostgreSQL", &wire, open().await?, open().await?, payload, P5).await?);

        for (name, settings) in
            [("MariaDB", &[][..]), ("MariaDB with a synchronous binary log", &SYNCHRONOUS)]
        {
            let server = MariadbServer::with(settings).await;
            let wire = Wire::to(server.addr()).await;
            let open = || MySqlStore::builder(wire.url_for(&server.url())).migrate().open();
            let wanted = Wanted { replay: 2.0, ..P5 };
            rows.extend(count(name, &wire, open().await?, open().await?, payload, wanted).await?);
        }

        let server = NatsServer::start().await;
        let wire = Wire::to(server.addr()).await;
        let url = wire.url_for(&server.url());
        let (one, other) = (NatsStore::open(&url).await?, NatsStore::open(&url).await?);
        rows.extend(count("NATS", &wire, one, other, payload, Wanted { replay: 2.0, ..P5 }).await?);
        Ok(rows)
    })
}

/// One process runs an operation, and another is asked for it again.
async fn count<S: Store + Clone>(
    engine: &str,
    wire: &Wire,
    one: S,
    other: S,
    payload: &Bytes,
    wanted: Wanted,
) -> Outcome<Vec<Row>> {
    let [one] = &mut OfStore::callers(&one, payload, 1)[..] else {
        return Err("one caller".into());
    };
    // The first use of a statement prepares it.
    operation(wire, one, &other).await?;
    let Counted { first, in_flight, replay } = operation(wire, one, &other).await?;
    let row = |what: &str, is: u64, wanted: f64| {
        let what = format!("{engine}, on the wire: {what}");
        Row::exactly("P5", what, Number::count(is as f64), wanted)
    };
    Ok(vec![
        row("first execution", first, 2.0),
        row("replay by another process", replay, wanted.replay),
        row("in flight in another process", in_flight, wanted.in_flight),
    ])
}

struct Counted {
    first: u64,
    in_flight: u64,
    replay: u64,
}

async fn operation<S: Store>(wire: &Wire, one: &mut OfStore<S>, other: &S) -> Outcome<Counted> {
    let claim = one.operation();
    let again = || Claim { owner: Owner::new(&SystemEntropy), ..claim.clone() };
    let start = wire.round_trips();
    let held = one.begin(&claim).await?;
    let begun = wire.round_trips();
    let Begin::Found(Found::InFlight { .. }) = other.begin(&again()).await? else {
        return Err("an operation in flight was not found so".into());
    };
    let refused = wire.round_trips();
    one.complete(&claim, held).await?;
    let completed = wire.round_trips();
    let Begin::Found(Found::Finished { .. }) = other.begin(&again()).await? else {
        return Err("a finished operation was not found so".into());
    };
    Ok(Counted {
        first: begun - start + (completed - refused),
        in_flight: refused - begun,
        replay: wire.round_trips() - completed,
    })
}
