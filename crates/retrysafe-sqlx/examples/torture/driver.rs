//! Kills services and their database while clients ask, and then has the books audited.

use std::{
    env,
    net::SocketAddr,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use retrysafe_sqlx::PostgresStore;
use retrysafe_testkit::servers::PostgresServer;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    Mode,
    books::{self, Audit},
    client::{self, Services},
    service,
};

const CLIENTS: usize = 4;
const SERVICES: usize = 2;

pub(crate) struct Plan {
    pub(crate) kills: u32,
    pub(crate) mode: Mode,
    /// Whether it says how far it is.
    pub(crate) report: bool,
}

pub(crate) async fn run(plan: &Plan) -> Audit {
    // Nothing but processes is killed, so what is written need not be on the disk.
    let mut server = PostgresServer::with(&["fsync=off", "full_page_writes=off"]).await;
    let url = server.url();
    books::open(&url).await;
    PostgresStore::builder(&url).migrate().open().await.unwrap();

    let services: Services = Arc::new(Mutex::new(vec![None; SERVICES]));
    let mut running = Vec::new();
    for place in 0..SERVICES {
        running.push(Some(Service::start(plan.mode, &url, None, &services, place).await));
    }
    let (stop, stops) = watch::channel(false);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| tokio::spawn(client::transfers(client, services.clone(), stops.clone())))
        .collect();

    let points = service::points(plan.mode);
    for kill in 0..plan.kills {
        let place = kill as usize % SERVICES;
        let mut service = running[place].take().unwrap();
        // Its own point, or any moment.
        let left = Duration::from_millis(rand::random_range(0..80));
        service.end(left, &services, place).await;
        if kill % 12 == 11 {
            server.kill().await;
            server.restart().await;
        }
        // Two of three die at a point, each point in its turn.
        let point = (kill % 3 != 2).then(|| points[(kill as usize * 2 / 3) % points.len()]);
        running[place] = Some(Service::start(plan.mode, &url, point, &services, place).await);
        if plan.report && (kill + 1) % 100 == 0 {
            eprintln!("{} of {} kills", kill + 1, plan.kills);
        }
    }
    // From here on nobody dies: those that were to are replaced.
    for (place, service) in running.iter_mut().enumerate() {
        let mut doomed = service.take().unwrap();
        doomed.end(Duration::ZERO, &services, place).await;
        *service = Some(Service::start(plan.mode, &url, None, &services, place).await);
    }
    stop.send(true).unwrap();
    let mut asked = Vec::new();
    for client in clients {
        asked.extend(client.await.unwrap());
    }
    // Who asks again is told the same.
    let mut differing = 0;
    for asked in &asked {
        let again = client::ask(&services, &asked.key, &asked.body).await;
        differing += usize::from(again != asked.answer);
    }
    books::audit(&url, &asked, differing, plan.kills).await
}

/// A service as a process of its own.
struct Service {
    process: Child,
    /// Dies by itself.
    doomed: bool,
}

impl Service {
    /// Starts one, and returns when it listens: or, if it dies at a point, when it is dead.
    async fn start(
        mode: Mode,
        url: &str,
        point: Option<&str>,
        services: &Services,
        place: usize,
    ) -> Self {
        loop {
            let mut command = Command::new(env::current_exe().unwrap());
            if cfg!(test) {
                command.args(["--exact", "tests::service_of_a_test", "--nocapture"]);
            }
            command.env(service::MODE, mode.as_str()).env(service::URL, url);
            if let Some(point) = point {
                let spares = rand::random_range(0..4_u32).to_string();
                command.env("RETRYSAFE_FAILPOINT", point);
                command.env("RETRYSAFE_FAILPOINT_SPARES", spares);
            }
            command.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
            let mut process = command.spawn().unwrap();
            let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let Some(address) = line.strip_prefix(service::LISTENS) else { continue };
                services.lock().unwrap()[place] = Some(address.parse::<SocketAddr>().unwrap());
                return Self { process, doomed: point.is_some() };
            }
            // The database is not up yet.
            let _ = process.wait().await;
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Kills it when it has lived so long; one that dies by itself has more time to come to its point.
    async fn end(&mut self, left: Duration, services: &Services, place: usize) {
        let left = if self.doomed { left + Duration::from_secs(2) } else { left };
        let _ = timeout(left, self.process.wait()).await;
        services.lock().unwrap()[place] = None;
        // SIGKILL
        let _ = self.process.kill().await;
    }
}
