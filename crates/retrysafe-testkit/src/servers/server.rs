//! A server of any engine: how it starts, dies and comes back.

use std::{
    env, fmt,
    future::Future,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use tokio::{
    sync::OnceCell,
    time::{Instant, sleep},
};

use super::{
    address::{Authority, free_port},
    process::{DEADLINE, GLANCE, NotStarted, Process},
};

/// What is particular to an engine. Written for [`Server`]; there is nothing here for tests.
pub trait Engine: Sized + Send + Sync + 'static {
    /// The variable whose URL names a server to use as the shared one.
    #[doc(hidden)]
    const SHARED_URL: &'static str;
    #[doc(hidden)]
    const DEFAULT_PORT: u16;
    /// Users to run as when the tests run as root; none if it may run as root.
    #[doc(hidden)]
    const ACCOUNTS: &'static [&'static str] = &[];
    /// The signal that ends it and its children at once.
    #[doc(hidden)]
    const LAST_SIGNAL: &'static str = "KILL";
    /// What it writes when it is ready.
    #[doc(hidden)]
    const READY: &'static str;

    #[doc(hidden)]
    fn shared() -> &'static OnceCell<Server<Self>>;
    /// As it is to be started: safe against power loss, or fast.
    #[doc(hidden)]
    fn new(settings: &[&str], durable: bool) -> Self;
    #[doc(hidden)]
    fn program(&self) -> PathBuf;
    #[doc(hidden)]
    fn arguments(&self, directory: &Path, port: u16) -> Vec<String>;
    #[doc(hidden)]
    fn url(&self, address: SocketAddr) -> String;
    /// Fills the directory before the first start.
    #[doc(hidden)]
    fn prepare(&self, place: Preparing<'_>) -> impl Future<Output = ()> + Send;
}

/// The directory of a server before its first start.
pub struct Preparing<'a>(pub(super) &'a Process);

/// A private server: on a free port of 127.0.0.1, in a directory of its own. It is stopped, and the
/// directory removed, when the value drops, and also when the process dies in any way.
pub struct Server<E: Engine> {
    pub(super) engine: E,
    place: Place,
}

enum Place {
    Private {
        process: Process,
        port: u16,
    },
    /// Somebody else's, from the environment.
    Given {
        url: String,
    },
}

impl<E: Engine> Server<E> {
    /// Starts a server that loses nothing it has acknowledged, not even by a loss of power.
    ///
    /// # Panics
    ///
    /// In one line if its program is not installed; else with what the server wrote.
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// Starts it with settings besides: arguments of `redis-server` and `mariadbd`, `name=value` for
    /// PostgreSQL, lines of the configuration for NATS. They win over the usual ones.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    pub async fn with(settings: &[&str]) -> Self {
        Self::launch(E::new(settings, true)).await
    }

    /// The server that all tests of this process share: the one that the environment names
    /// (`RETRYSAFE_TEST_REDIS_URL`, `_POSTGRES_URL`, `_MYSQL_URL`, `_NATS_URL`), else a private one
    /// that is started by the first to ask. It doesn't flush to disk: a loss of power is not among
    /// the things that its tests try.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    pub async fn shared() -> &'static Self {
        let server = async || match env::var(E::SHARED_URL) {
            Ok(url) => Self { engine: E::new(&[], false), place: Place::Given { url } },
            Err(_) => Self::launch(E::new(&[], false)).await,
        };
        E::shared().get_or_init(server).await
    }

    /// Where it is, with the user and password that may do everything.
    pub fn url(&self) -> String {
        match &self.place {
            Place::Private { .. } => self.engine.url(self.addr()),
            Place::Given { url } => url.clone(),
        }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        match &self.place {
            Place::Private { port, .. } => SocketAddr::from((Ipv4Addr::LOCALHOST, *port)),
            Place::Given { url } => Authority::of(url).address(E::DEFAULT_PORT),
        }
    }

    /// The directory of this server alone.
    ///
    /// # Panics
    ///
    /// If it came from the environment.
    pub fn directory(&self) -> &Path {
        self.process().directory()
    }

    /// Kills the server and its children (SIGKILL), and returns when they are gone.
    ///
    /// # Panics
    ///
    /// If it came from the environment: what is not ours is not killed.
    ///
    /// # Cancel safety
    ///
    /// They are killed by the first poll.
    pub async fn kill(&mut self) {
        self.process_mut().kill().await;
    }

    /// Starts the server again on the same port and the same data, after killing it if it runs.
    /// Returns when it is ready.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start) and [`kill`](Self::kill).
    pub async fn restart(&mut self) {
        self.kill().await;
        let deadline = Instant::now() + DEADLINE;
        while let Err(why) = self.run().await {
            match why {
                // A connection of before may hold the port for a moment.
                NotStarted::PortTaken if Instant::now() < deadline => sleep(GLANCE).await,
                NotStarted::PortTaken => panic!("the port of {} is taken", self.addr()),
                NotStarted::Failed(why) => panic!("{why}"),
            }
        }
    }

    /// Stops all of its processes (SIGSTOP): connections stay, and nothing is answered until
    /// [`resume`](Self::resume). Returns when they stand still.
    ///
    /// # Panics
    ///
    /// If it doesn't run, or came from the environment.
    pub fn pause(&self) {
        self.process().pause();
    }

    /// Lets the server go on (SIGCONT).
    pub fn resume(&self) {
        self.process().resume();
    }

    pub(super) async fn launch(engine: E) -> Self {
        let mut server = Self::prepared(engine).await;
        for _ in 0..20 {
            match server.try_start(free_port()).await {
                Ok(()) => return server,
                Err(NotStarted::PortTaken) => {}
                Err(NotStarted::Failed(why)) => panic!("{why}"),
            }
        }
        panic!("no free port after twenty tries");
    }

    /// A server that was not started yet.
    pub(super) async fn prepared(engine: E) -> Self {
        engine.program(); // what is missing is said first
        let process = Process::new(E::ACCOUNTS, E::LAST_SIGNAL);
        engine.prepare(Preparing(&process)).await;
        Self { engine, place: Place::Private { process, port: 0 } }
    }

    pub(super) async fn try_start(&mut self, at: u16) -> Result<(), NotStarted> {
        if let Place::Private { port, .. } = &mut self.place {
            *port = at;
        }
        self.run().await
    }

    async fn run(&mut self) -> Result<(), NotStarted> {
        let port = self.addr().port();
        let program = self.engine.program();
        let arguments = self.engine.arguments(self.directory(), port);
        let process = self.process_mut();
        process.start(&program, &arguments);
        process.ready(&program, E::READY).await
    }

    fn process(&self) -> &Process {
        match &self.place {
            Place::Private { process, .. } => process,
            Place::Given { .. } => panic!("{} is not ours to handle", self.addr()),
        }
    }

    fn process_mut(&mut self) -> &mut Process {
        match &mut self.place {
            Place::Private { process, .. } => process,
            Place::Given { .. } => panic!("a server from the environment is not ours to handle"),
        }
    }
}

impl<E: Engine> fmt::Debug for Server<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("addr", &self.addr()).finish_non_exhaustive()
    }
}
