//! Redis: one server, and a replica on a link that can be cut.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    sync::OnceCell,
};

use super::{
    address::Authority,
    process::until,
    programs,
    server::{Engine, Preparing, Server},
    wire::Wire,
};

/// A private `redis-server` (or `valkey-server`): see [`Server`].
///
/// Every write is in the append-only file before it is acknowledged. There is no password unless the
/// settings say `--requirepass`; the URL then has it. Tests that share one keep to keys of their own.
pub type RedisServer = Server<Redis>;

/// The engine of [`RedisServer`].
pub struct Redis {
    settings: Vec<String>,
    durable: bool,
    /// What a replica hears its primary through.
    link: Option<Wire>,
}

impl Engine for Redis {
    const SHARED_URL: &'static str = "RETRYSAFE_TEST_REDIS_URL";
    const DEFAULT_PORT: u16 = 6379;
    const READY: &'static str = "Ready to accept connections";

    fn shared() -> &'static OnceCell<Server<Self>> {
        static SHARED: OnceCell<RedisServer> = OnceCell::const_new();
        &SHARED
    }

    fn new(settings: &[&str], durable: bool) -> Self {
        let settings = settings.iter().map(ToString::to_string).collect();
        Self { settings, durable, link: None }
    }

    fn program(&self) -> PathBuf {
        programs::find(&["redis-server", "valkey-server"])
    }

    fn arguments(&self, directory: &Path, port: u16) -> Vec<String> {
        let (port, directory) = (port.to_string(), directory.display().to_string());
        let usual = ["--port", &port, "--bind", "127.0.0.1", "--dir", &directory, "--save", ""];
        // A replica need not wait for others to share its first copy with.
        let replicas = ["--repl-diskless-sync-delay", "0"];
        let log = ["--appendonly", "yes", "--appendfsync", "always"];
        let log = if self.durable { &log[..] } else { &["--appendonly", "no"] };
        let usual = usual.iter().chain(&replicas).chain(log).map(ToString::to_string);
        usual.chain(self.settings.iter().cloned()).collect()
    }

    fn url(&self, address: SocketAddr) -> String {
        match self.password() {
            Some(password) => format!("redis://:{password}@{address}"),
            None => format!("redis://{address}"),
        }
    }

    async fn prepare(&self, _: Preparing<'_>) {}
}

impl Redis {
    fn password(&self) -> Option<&str> {
        let mut settings = self.settings.iter();
        settings.find(|it| *it == "--requirepass").and(settings.next()).map(String::as_str)
    }
}

impl Server<Redis> {
    /// Starts a replica of a server, with a link of its own that can be cut. Returns when it has
    /// everything that the primary has.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    pub async fn replica_of(primary: &Self) -> Self {
        let link = Wire::to(primary.addr()).await;
        let port = link.addr().port().to_string();
        let mut settings = vec!["--replicaof", "127.0.0.1", &port];
        if let Some(password) = primary.engine.password() {
            settings.extend(["--masterauth", password, "--requirepass", password]);
        }
        let engine = Redis { link: Some(link), ..Redis::new(&settings, primary.engine.durable) };
        let replica = Self::launch(engine).await;
        replica.hears_its_primary().await;
        replica
    }

    /// Makes a replica a primary. It knows nothing that its link hasn't carried before.
    ///
    /// # Panics
    ///
    /// As [`command`](Self::command).
    pub async fn promote(&self) {
        self.command(&["REPLICAOF", "NO", "ONE"]).await;
    }

    /// Cuts a replica off its primary. What the primary is told from now on doesn't arrive.
    ///
    /// # Panics
    ///
    /// If it is no replica.
    pub async fn cut_link(&self) {
        self.link().refuse().await;
    }

    /// Mends the link; returns when the replica hears its primary again.
    ///
    /// # Panics
    ///
    /// If it is no replica, or was promoted.
    pub async fn mend_link(&self) {
        self.link().accept().await;
        self.hears_its_primary().await;
    }

    fn link(&self) -> &Wire {
        self.engine.link.as_ref().expect("a replica")
    }

    pub(super) async fn hears_its_primary(&self) {
        until("a replica hears its primary", async || {
            self.command(&["INFO", "replication"]).await.contains("master_link_status:up")
        })
        .await;
    }

    /// Sends a command on a connection of its own and gives the reply as text, the elements of an
    /// array a line each.
    ///
    /// # Panics
    ///
    /// If the server can't be reached or answers with an error.
    pub async fn command(&self, words: &[&str]) -> String {
        let url = self.url();
        let password = Authority::of(&url).password;
        let stream = TcpStream::connect(self.addr()).await;
        let mut stream = BufReader::new(stream.expect("Redis can be reached"));
        if !password.is_empty() {
            ask(&mut stream, &["AUTH", password]).await;
        }
        ask(&mut stream, words).await
    }
}

async fn ask(stream: &mut BufReader<TcpStream>, words: &[&str]) -> String {
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    stream.get_mut().write_all(request.as_bytes()).await.expect("Redis takes a command");
    match reply(stream).await {
        Ok(reply) => reply,
        Err(error) => panic!("{}: {error}", words[0]),
    }
}

/// A reply of RESP2; a nil is empty.
async fn reply(stream: &mut BufReader<TcpStream>) -> Result<String, String> {
    let mut line = String::new();
    stream.read_line(&mut line).await.map_err(|error| error.to_string())?;
    let line = line.trim_end();
    let (kind, rest) = line.split_at_checked(1).ok_or("the connection was closed")?;
    match kind {
        "-" => Err(rest.to_owned()),
        "$" | "*" if rest == "-1" => Ok(String::new()),
        "$" => {
            let length: usize = rest.parse().map_err(|_| line)?;
            let mut bytes = vec![0; length + 2];
            stream.read_exact(&mut bytes).await.map_err(|error| error.to_string())?;
            Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
        }
        "*" => {
            let mut elements = Vec::new();
            for _ in 0..rest.parse().map_err(|_| line)? {
                elements.push(Box::pin(reply(stream)).await?);
            }
            Ok(elements.join("\n"))
        }
        _ => Ok(rest.to_owned()),
    }
}
