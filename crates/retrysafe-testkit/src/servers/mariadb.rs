//! MariaDB: one server.

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

/// A private MariaDB: see [`Server`].
///
/// The user of the URL may do everything. Started for itself it flushes at every commit; the shared
/// one doesn't.
pub type MariadbServer = Server<Mariadb>;

/// The engine of [`MariadbServer`].
pub struct Mariadb {
    settings: Vec<String>,
    durable: bool,
}

/// Run at every start. The server listens when it is done.
const USERS: &str = "CREATE USER IF NOT EXISTS retrysafe@'%' IDENTIFIED BY 'retrysafe';
GRANT ALL PRIVILEGES ON *.* TO retrysafe@'%' WITH GRANT OPTION;
CREATE DATABASE IF NOT EXISTS retrysafe;
";

impl Engine for Mariadb {
    const SHARED_URL: &'static str = "RETRYSAFE_TEST_MYSQL_URL";
    const DEFAULT_PORT: u16 = 3306;
    const ACCOUNTS: &'static [&'static str] = &["mysql", "nobody"];
    const READY: &'static str = "ready for connections";

    fn shared() -> &'static OnceCell<Server<Self>> {
        static SHARED: OnceCell<MariadbServer> = OnceCell::const_new();
        &SHARED
    }

    fn new(settings: &[&str], durable: bool) -> Self {
        Self { settings: settings.iter().map(ToString::to_string).collect(), durable }
    }

    fn program(&self) -> PathBuf {
        programs::find(&["mariadbd"])
    }

    fn arguments(&self, directory: &Path, port: u16) -> Vec<String> {
        let directory = directory.display();
        let usual = [
            "--no-defaults".to_owned(),
            format!("--datadir={directory}/data"),
            format!("--socket={directory}/socket"),
            format!("--pid-file={directory}/pid"),
            format!("--tmpdir={directory}"),
            format!("--init-file={directory}/users.sql"),
            format!("--port={port}"),
            "--bind-address=127.0.0.1".to_owned(),
            "--skip-name-resolve".to_owned(),
            "--max-connections=1000".to_owned(),
            "--innodb-buffer-pool-size=32M".to_owned(),
            "--innodb-log-file-size=16M".to_owned(),
        ];
        let flush = if self.durable { 1 } else { 0 };
        let flush = format!("--innodb-flush-log-at-trx-commit={flush}");
        let sync = (!self.durable).then(|| "--debug-no-sync".to_owned());
        usual.into_iter().chain([flush]).chain(sync).chain(self.settings.clone()).collect()
    }

    fn url(&self, address: SocketAddr) -> String {
        format!("mysql://retrysafe:retrysafe@{address}/retrysafe")
    }

    async fn prepare(&self, Preparing(process): Preparing<'_>) {
        let directory = process.directory();
        fs::write(directory.join("users.sql"), USERS).expect("a file in a directory of our own");
        let data = format!("--datadir={}", directory.join("data").display());
        let temporary = format!("--tmpdir={}", directory.display());
        let arguments = [
            "--no-defaults",
            &data,
            &temporary,
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--innodb-buffer-pool-size=32M",
            "--innodb-log-file-size=16M",
            "--debug-no-sync",
        ];
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        process.run(&programs::find(&["mariadb-install-db"]), &arguments).await;
    }
}

impl Server<Mariadb> {
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

    /// Runs a statement by the `mariadb` client and gives what it prints, without headings.
    ///
    /// # Panics
    ///
    /// If it fails.
    pub async fn query(&self, statement: &str) -> String {
        let (url, addr) = (self.url(), self.addr());
        let authority = Authority::of(&url);
        let mut client = Command::new(programs::find(&["mariadb", "mysql"]));
        client.args(["--no-defaults", "--batch", "--skip-column-names", "--protocol=tcp"]);
        client.arg(format!("--host={}", addr.ip())).arg(format!("--port={}", addr.port()));
        client.arg(format!("--user={}", authority.user)).env("MYSQL_PWD", authority.password);
        client.args(["--execute", statement]);
        programs::run(client).await.trim().to_owned()
    }
}
