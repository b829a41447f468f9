//! PostgreSQL: one server.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use tokio::sync::OnceCell;

use super::{
    address::{Authority, random},
    programs,
    server::{Engine, Preparing, Server},
};

/// A private PostgreSQL: see [`Server`].
///
/// Started for itself it asks for a password by SCRAM, and flushes as PostgreSQL does by default. The
/// shared one takes the password as it is, because SCRAM's digest of it costs a client that is not
/// optimised as much as a hundred statements, and has `fsync=off`.
pub type PostgresServer = Server<Postgres>;

/// The engine of [`PostgresServer`].
pub struct Postgres {
    settings: Vec<String>,
    durable: bool,
    /// For a standby, the URL that it follows its primary by.
    follows: Option<String>,
}

/// Of the superuser `postgres`.
const PASSWORD: &str = "retrysafe";

impl Engine for Postgres {
    const SHARED_URL: &'static str = "RETRYSAFE_TEST_POSTGRES_URL";
    const DEFAULT_PORT: u16 = 5432;
    const ACCOUNTS: &'static [&'static str] = &["postgres", "nobody"];
    /// Immediate shutdown: no checkpoint, and the postmaster takes its children along.
    const LAST_SIGNAL: &'static str = "QUIT";
    const READY: &'static str = "database system is ready to accept";

    fn shared() -> &'static OnceCell<Server<Self>> {
        static SHARED: OnceCell<PostgresServer> = OnceCell::const_new();
        &SHARED
    }

    fn new(settings: &[&str], durable: bool) -> Self {
        let settings = settings.iter().map(ToString::to_string).collect();
        Self { settings, durable, follows: None }
    }

    fn program(&self) -> PathBuf {
        programs::find(&["postgres"])
    }

    fn arguments(&self, directory: &Path, port: u16) -> Vec<String> {
        let data = directory.join("data").display().to_string();
        let mut arguments = vec!["-D".to_owned(), data, "-p".to_owned(), port.to_string()];
        let sockets = format!("unix_socket_directories={}", directory.display());
        let usual = [
            "listen_addresses=127.0.0.1",
            &sockets,
            "max_connections=200",
            "shared_buffers=32MB",
            // Shared memory that goes with the directory, however the server ends.
            "dynamic_shared_memory_type=mmap",
        ];
        let fast = ["fsync=off", "full_page_writes=off", "synchronous_commit=off"];
        let fast = if self.durable { &[][..] } else { &fast };
        let usual = usual.iter().chain(fast).map(ToString::to_string);
        for setting in usual.chain(self.settings.iter().cloned()) {
            arguments.extend(["-c".to_owned(), setting]);
        }
        arguments
    }

    fn url(&self, address: SocketAddr) -> String {
        format!("postgres://postgres:{PASSWORD}@{address}/postgres")
    }

    async fn prepare(&self, Preparing(process): Preparing<'_>) {
        let data = process.directory().join("data").display().to_string();
        let (program, arguments) = if let Some(primary) = &self.follows {
            ("pg_basebackup", vec!["-D", &data, "-d", primary, "-R", "-c", "fast", "--no-sync"])
        } else {
            fs::write(process.directory().join("password"), PASSWORD).expect("a private directory");
            let asks = if self.durable { "scram-sha-256" } else { "password" };
            let who = ["-U", "postgres", "-A", asks, "--pwfile", "password"];
            let what = ["-D", &data, "-E", "UTF8", "--no-locale", "--no-sync"];
            ("initdb", who.into_iter().chain(what).collect())
        };
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        process.run(&programs::find(&[program]), &arguments).await;
    }
}

impl Postgres {
    /// A standby that follows the primary at this URL. Its name is the one that the primary knows it
    /// by.
    pub(super) fn standby(name: &str, primary: String) -> Self {
        let name = format!("cluster_name={name}");
        Self { settings: vec![name], durable: true, follows: Some(primary) }
    }
}

impl Server<Postgres> {
    /// A new, empty database and its URL. It goes with the server.
    ///
    /// # Panics
    ///
    /// If it can't be created.
    pub async fn fresh_database(&self) -> String {
        let name = format!("retrysafe_{:016x}", random());
        self.query(&format!("CREATE DATABASE {name}")).await;
        Authority::of(&self.url()).with_database(&name)
    }

    /// Runs a statement by `psql` as the superuser and gives what it prints, without headings.
    ///
    /// # Panics
    ///
    /// If it fails.
    pub async fn query(&self, statement: &str) -> String {
        let mut psql = Command::new(programs::find(&["psql"]));
        psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", statement]);
        psql.args(["-d", &self.url()]);
        programs::run(psql).await.trim().to_owned()
    }
}
