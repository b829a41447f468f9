//! Kills services and their database while clients ask, and then has the books audited.

use std::{
    collections::BTreeMap,
    env,
    net::SocketAddr,
    os::unix::process::ExitStatusExt as _,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use retrysafe_core::failpoint;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, ChildStdout, Command},
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    Mode,
    books::{self, Audit, BALANCE},
    client::{self, ACCOUNTS, Services},
    database::{Database, Engine},
    processor::Processor,
    service,
};

const CLIENTS: usize = 8;
/// Each is killed and replaced by itself, so that one lives while another starts.
const SERVICES: usize = 4;
/// Every so many kills of a service the database dies, too. SQLite's is no process: there every service
/// dies at once, and the next to open the file recovers its log.
const DATABASE_DIES: u32 = 12;

pub(crate) struct Plan {
    pub(crate) kills: u32,
    pub(crate) mode: Mode,
    pub(crate) engine: Engine,
    /// Whether it says how far it is.
    pub(crate) report: bool,
}

pub(crate) async fn run(plan: &Plan) -> Audit {
    let database = Database::open(plan.engine, ACCOUNTS, BALANCE).await;
    let processor = Processor::default();
    let killing = Killing {
        mode: plan.mode,
        engine: plan.engine,
        url: database.url(),
        processor: processor.listen().await,
        kills: plan.kills,
        killed: AtomicU32::new(0),
        stood_still: AtomicU32::new(0),
        services: Arc::new(Mutex::new(vec![None; SERVICES])),
        database: tokio::sync::Mutex::new(database),
        everybody: watch::Sender::default(),
        died_at: Mutex::default(),
        report: plan.report,
    };
    let (stop, stops) = watch::channel(false);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| client::transfers(client, killing.services.clone(), stops.clone()))
        .map(tokio::spawn)
        .collect();
    // Those that are left when enough have died; from here on nobody dies.
    let lives = (0..SERVICES).map(|place| killing.lives(place));
    let _left = futures_util::future::join_all(lives).await;
    stop.send(true).unwrap();
    let mut asked = Vec::new();
    for client in clients {
        asked.extend(client.await.unwrap());
    }
    // Who asks again is told the same.
    let mut differing = 0;
    for asked in &asked {
        let again = client::ask(&killing.services, &asked.key, &asked.body).await;
        differing += usize::from(again != asked.answer);
    }
    if plan.report {
        for (point, died) in &*killing.died_at.lock().unwrap() {
            eprintln!("{died} died {point}");
        }
        eprintln!("{} stood still before", killing.stood_still.load(Ordering::SeqCst));
    }
    let ledger = killing.database.lock().await.ledger().await;
    let charges = (plan.mode == Mode::Phases).then(|| processor.charges());
    if let Some(charges) = charges.as_ref().filter(|_| plan.report) {
        eprintln!("{} charges, asked for {} times", charges.len(), processor.asked());
    }
    // A key is of one request alone.
    assert_eq!(processor.misused(), 0, "a derived key came with two requests");
    books::audit(&ledger, charges.as_deref(), &asked, differing, plan.kills)
}

struct Killing {
    mode: Mode,
    engine: Engine,
    url: String,
    /// Where the card processor listens.
    processor: SocketAddr,
    kills: u32,
    killed: AtomicU32,
    /// How many were stopped for a while before they were killed.
    stood_still: AtomicU32,
    services: Services,
    database: tokio::sync::Mutex<Database>,
    /// Tells every service to die.
    everybody: watch::Sender<()>,
    /// How many died by themselves, by the point.
    died_at: Mutex<BTreeMap<&'static str, u32>>,
    report: bool,
}

impl Killing {
    /// One service after another at the same place; the last one lives.
    async fn lives(&self, place: usize) -> Service {
        let points = service::points(self.mode, self.engine);
        let mut service = self.start(None, place).await;
        loop {
            let kill = self.killed.fetch_add(1, Ordering::SeqCst);
            if kill >= self.kills {
                // It may be one that is to die.
                service.end(Duration::ZERO).await;
                return self.start(None, place).await;
            }
            self.end(service, place).await;
            if kill % DATABASE_DIES == DATABASE_DIES - 1 {
                match self.engine {
                    Engine::Postgres | Engine::MySql => {
                        self.database.lock().await.kill_and_restart().await;
                    }
                    Engine::Sqlite => self.everybody.send_replace(()),
                }
            }
            service = self.start(point(&points, kill), place).await;
            if self.report && (kill + 1).is_multiple_of(100) {
                eprintln!("{} of {} kills", kill + 1, self.kills);
            }
        }
    }

    /// Starts a service, and returns when it listens.
    async fn start(&self, point: Option<&'static str>, place: usize) -> Service {
        loop {
            let mut command = Command::new(env::current_exe().unwrap());
            if cfg!(test) {
                command.args(["--exact", "tests::service_of_a_test", "--nocapture"]);
            }
            command
                .env(service::MODE, self.mode.as_str())
                .env(service::ENGINE, self.engine.as_str())
                .env(service::URL, &self.url)
                .env(service::PROCESSOR, self.processor.to_string());
            if let Some(point) = point {
                let spares = rand::random_range(0..4_u32).to_string();
                command.env(failpoint::POINT, point).env(failpoint::SPARES, spares);
            }
            command.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
            let mut everybody = self.everybody.subscribe();
            let mut process = command.spawn().unwrap();
            let output = process.stdout.take().unwrap();
            let listens = tokio::select! {
                listens = listens(output) => listens,
                Ok(()) = everybody.changed() => None,
            };
            if let Some(address) = listens {
                self.services.lock().unwrap()[place] = Some(address);
                return Service { process, point };
            }
            // The database is not up yet, or it is to die.
            let _ = process.kill().await;
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// At any moment, or at its own point.
    async fn end(&self, mut service: Service, place: usize) {
        let any = Duration::from_millis(rand::random_range(0..80));
        // One that dies by itself has time to come to its point.
        let left = if service.point.is_some() { any + Duration::from_secs(2) } else { any };
        let mut everybody = self.everybody.subscribe();
        let stands_still = service.point.is_none() && rand::random_ratio(1, 3);
        let died = tokio::select! {
            died = async {
                if stands_still {
                    sleep(any).await;
                    service.stand_still().await;
                    self.stood_still.fetch_add(1, Ordering::SeqCst);
                }
                service.end(left).await
            } => died,
            Ok(()) = everybody.changed() => service.end(Duration::ZERO).await,
        };
        self.services.lock().unwrap()[place] = None;
        if let Some(point) = service.point.filter(|_| died) {
            *self.died_at.lock().unwrap().entry(point).or_default() += 1;
        }
    }
}

/// Where a service listens, when it says so; nothing if it ends before.
async fn listens(output: ChildStdout) -> Option<SocketAddr> {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(address) = line.strip_prefix(service::LISTENS) {
            return address.parse().ok();
        }
    }
    None
}

/// Where the service dies that follows so many others: two of three at a point, each point in its turn.
fn point(points: &[&'static str], kill: u32) -> Option<&'static str> {
    let before = (kill - kill / 3) as usize;
    (kill % 3 != 2).then(|| points[before % points.len()])
}

/// A service as a process of its own.
struct Service {
    process: Child,
    /// Where it dies by itself.
    point: Option<&'static str>,
}

impl Service {
    /// Stops it for longer than its lease, and lets it go on: as what it has begun may have been taken
    /// over meanwhile, it must not finish it.
    async fn stand_still(&self) {
        let Some(id) = self.process.id() else { return };
        for signal in ["-STOP", "-CONT"] {
            let sent = Command::new("kill").args([signal, &id.to_string()]).status().await;
            assert!(sent.unwrap().success(), "the process is there until it is waited for");
            if signal == "-STOP" {
                sleep(service::LEASE * 2).await;
            }
        }
    }

    /// Kills it when it has lived so long; says whether it died by itself.
    async fn end(&mut self, left: Duration) -> bool {
        const SIGABRT: i32 = 6;
        if let Ok(Ok(status)) = timeout(left, self.process.wait()).await {
            return status.signal() == Some(SIGABRT);
        }
        // SIGKILL
        let _ = self.process.kill().await;
        false
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn somebody_dies_at_every_point() {
        for mode in [Mode::Transactional, Mode::Phases, Mode::Layer] {
            for engine in [Engine::Postgres, Engine::MySql, Engine::Sqlite] {
                let points = service::points(mode, engine);
                let died: BTreeSet<_> =
                    (0..3 * points.len() as u32).filter_map(|kill| point(&points, kill)).collect();
                assert_eq!(died, points.iter().copied().collect());
            }
        }
    }
}
