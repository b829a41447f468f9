//! Redis: P6, P13, and the store beside its driver.

use bytes::Bytes;
use redis::{AsyncConnectionConfig, aio::MultiplexedConnection};
use retrysafe_redis::RedisStore;
use retrysafe_testkit::servers::RedisServer;
use tokio::runtime::Runtime;
use tower::Layer as _;

use super::{
    CALLERS, PATIENCE, RETENTION, beside,
    callers::{OfStore, Side, Work, drive},
    runtime,
};
use crate::{
    Outcome,
    measure::{Effort, all_in_turn, in_turn},
    orders::{self, Orders},
    report::{Number, Row},
    size,
};

/// What a first claim writes.
const RECORD: usize = 121;

/// A server that waits for no disk, which would hide what a request costs.
const IN_MEMORY: [&str; 2] = ["--appendonly", "no"];

/// P6: claims against the command that a claim is.
pub(crate) fn claims(effort: Effort) -> Outcome<Vec<Row>> {
    const STORE: usize = 0;
    const DRIVER: usize = 1;
    const TURNS: usize = 100;

    let payload = size::payload()?;
    let runtime = runtime()?;
    let server = runtime.block_on(RedisServer::with(&IN_MEMORY));
    let (mut store, mut driver) = runtime.block_on(sides(&server, &payload))?;
    let rounds = all_in_turn::<_, 2>(effort.rounds(50), |variant| match variant {
        STORE => runtime.block_on(drive(&mut store, CALLERS, TURNS, Work::Claim)),
        _ => runtime.block_on(drive(&mut driver, CALLERS, TURNS, Work::Claim)),
    })?;

    let shown = |of: fn(&super::callers::Took) -> f64, unit| {
        let [store, driver] = [STORE, DRIVER]
            .map(|side| Number::of(rounds.median(|it| of(&it[side])), 0, unit).to_string());
        format!("{store} / {driver}")
    };
    let against = |of: fn(&super::callers::Took) -> f64| {
        Number::ratio(rounds.median(|it| of(&it[STORE]) / of(&it[DRIVER])))
    };
    Ok(vec![
        Row::at_least(
            "P6",
            "Redis, 64 callers: claims against `SET NX GET PX` by the same driver",
            against(|it| it.per_second),
            0.85,
        ),
        Row::at_most(
            "P6",
            "Redis, 64 callers: p99 against the same",
            against(|it| it.begin.p99),
            1.3,
        ),
        Row::shown("P6", "Redis, claims: store / driver", shown(|it| it.per_second, "/s")),
        Row::shown("P6", "Redis, median: store / driver", shown(|it| it.begin.median, "µs")),
        Row::shown("P6", "Redis, p99: store / driver", shown(|it| it.begin.p99, "µs")),
    ])
}

/// P13: the service in our layer and in the peer's, both on one server.
pub(crate) fn against_the_peer(effort: Effort) -> Outcome<Vec<Row>> {
    const FIRST: usize = 0;
    const PEER_FIRST: usize = 1;
    const REPLAY: usize = 2;
    const PEER_REPLAY: usize = 3;

    let runtime = runtime()?;
    let _entered = runtime.enter();
    let server = runtime.block_on(RedisServer::with(&IN_MEMORY));
    let ours = orders::guarded(
        runtime.block_on(RedisStore::builder(server.url()).response_timeout(PATIENCE).open())?,
    )?;
    let peer = idempotent::valkey::ValkeyStore::with_url(server.url()).prefix("orders");
    let peer = runtime.block_on(peer.try_build())?;
    let peer = idempotent::middleware::IdempotencyLayer::new(peer).layer(orders::bare());
    let finished: Vec<_> = (0..CALLERS).map(|_| orders::fresh_key()).collect();
    answer(&runtime, &ours, &finished, 1)?;
    answer(&runtime, &peer, &finished, 1)?;

    let rounds = in_turn::<4>(effort.rounds(50), |variant| match variant {
        FIRST => answer(&runtime, &ours, &[], TURNS),
        PEER_FIRST => answer(&runtime, &peer, &[], TURNS),
        REPLAY => answer(&runtime, &ours, &finished, TURNS),
        _ => answer(&runtime, &peer, &finished, TURNS),
    })?;
    let rates = |ours: usize, peers: usize| {
        [ours, peers]
            .map(|it| Number::of(rounds.median(|round| round[it]), 0, "/s").to_string())
            .join(" / ")
    };
    Ok(vec![
        Row::at_least(
            "P13",
            "Redis, 64 callers: first executions against `idempotent`'s",
            Number::ratio(rounds.ratio(FIRST, PEER_FIRST)),
            1.5,
        ),
        Row::at_least(
            "P13",
            "Redis, 64 callers: replays against `idempotent`'s",
            Number::ratio(rounds.ratio(REPLAY, PEER_REPLAY)),
            1.7,
        ),
        Row::shown("P13", "Redis, first: us / `idempotent`", rates(FIRST, PEER_FIRST)),
        Row::shown("P13", "Redis, replay: us / `idempotent`", rates(REPLAY, PEER_REPLAY)),
    ])
}

/// How many orders each caller of P13 places in a round.
const TURNS: usize = 50;

/// Answers per second to callers at once: of orders with a fresh key each, or each caller's finished
/// one.
fn answer(
    runtime: &Runtime,
    service: &impl Orders,
    finished: &[String],
    turns: usize,
) -> Outcome<f64> {
    let keys = |caller: usize| -> Vec<String> {
        let key = |_| finished.get(caller).cloned().unwrap_or_else(orders::fresh_key);
        (0..turns).map(key).collect()
    };
    let callers: Vec<_> = (0..CALLERS).map(|caller| (service.clone(), keys(caller))).collect();
    let started = std::time::Instant::now();
    runtime.block_on(async {
        let callers: Vec<_> = callers
            .into_iter()
            .map(|(mut service, keys)| {
                tokio::spawn(async move {
                    for key in keys {
                        orders::answer(&mut service, orders::request(Some(&key))).await?;
                    }
                    Outcome::Ok(())
                })
            })
            .collect();
        for caller in callers {
            caller.await??;
        }
        Outcome::Ok(())
    })?;
    Ok((CALLERS * turns) as f64 / started.elapsed().as_secs_f64())
}

pub(crate) fn beside_its_driver(effort: Effort) -> Outcome<Vec<Row>> {
    let payload = size::payload()?;
    let runtime = runtime()?;
    let server = runtime.block_on(RedisServer::start());
    let (store, driver) = runtime.block_on(sides(&server, &payload))?;
    beside(&runtime, effort, "Redis", TURNS, store, driver)
}

async fn sides(
    server: &RedisServer,
    payload: &Bytes,
) -> Outcome<(Vec<OfStore<RedisStore>>, Vec<Driver>)> {
    let store = RedisStore::builder(server.url()).response_timeout(PATIENCE).open().await?;
    // What the store speaks.
    let client = redis::Client::open(format!("{}?protocol=resp3", server.url()))?;
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
    let connection = client.get_multiplexed_async_connection_with_config(&config).await?;
    let driver = |_| Driver { connection: connection.clone(), payload: payload.clone() };
    Ok((OfStore::callers(&store, payload, CALLERS), (0..CALLERS).map(driver).collect()))
}

/// One multiplexed connection, and the commands without anything that makes them safe.
struct Driver {
    connection: MultiplexedConnection,
    payload: Bytes,
}

impl Side for Driver {
    type Operation = (String, Vec<u8>);
    type Held = ();

    fn operation(&self) -> Self::Operation {
        let claim = size::claim();
        let digits: String = claim.id.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let record = claim.id.as_bytes().iter().copied().cycle().take(RECORD).collect();
        (format!("retrysafe:{digits}"), record)
    }

    async fn begin(&mut self, (key, record): &Self::Operation) -> Outcome<()> {
        let mut command = redis::cmd("SET");
        command
            .arg(key)
            .arg(record)
            .arg("NX")
            .arg("GET")
            .arg("PX")
            .arg(RETENTION.as_millis() as u64);
        match command.query_async::<Option<Vec<u8>>>(&mut self.connection).await? {
            None => Ok(()),
            Some(_) => Err("a fresh key was not free".into()),
        }
    }

    async fn complete(&mut self, (key, _): &Self::Operation, (): ()) -> Outcome<()> {
        let mut command = redis::cmd("SET");
        command.arg(key).arg(&self.payload[..]).arg("PX").arg(RETENTION.as_millis() as u64);
        Ok(command.exec_async(&mut self.connection).await?)
    }
}
