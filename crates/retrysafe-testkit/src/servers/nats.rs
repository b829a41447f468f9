//! NATS: one server with JetStream.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    sync::OnceCell,
    time::timeout,
};

use super::{
    address::Authority,
    programs,
    server::{Engine, Preparing, Server},
};

/// A private `nats-server` with JetStream: see [`Server`].
///
/// It asks for the user and password of the URL. Started for itself it flushes every write
/// (`sync_interval: always`); the shared one doesn't. Tests that share one have streams of their own.
pub type NatsServer = Server<Nats>;

/// The engine of [`NatsServer`].
pub struct Nats {
    settings: Vec<String>,
    durable: bool,
}

impl Engine for Nats {
    const SHARED_URL: &'static str = "RETRYSAFE_TEST_NATS_URL";
    const DEFAULT_PORT: u16 = 4222;
    const READY: &'static str = "Server is ready";

    fn shared() -> &'static OnceCell<Server<Self>> {
        static SHARED: OnceCell<NatsServer> = OnceCell::const_new();
        &SHARED
    }

    fn new(settings: &[&str], durable: bool) -> Self {
        Self { settings: settings.iter().map(ToString::to_string).collect(), durable }
    }

    fn program(&self) -> PathBuf {
        programs::find(&["nats-server"])
    }

    fn arguments(&self, directory: &Path, port: u16) -> Vec<String> {
        let configuration = directory.join("nats.conf").display().to_string();
        let address = ["-a", "127.0.0.1", "-p"].map(str::to_owned);
        ["-c".to_owned(), configuration]
            .into_iter()
            .chain(address)
            .chain([port.to_string()])
            .collect()
    }

    fn url(&self, address: SocketAddr) -> String {
        format!("nats://retrysafe:retrysafe@{address}")
    }

    async fn prepare(&self, Preparing(process): Preparing<'_>) {
        let directory = process.directory();
        let sync = if self.durable { "sync_interval: always" } else { "" };
        let mut lines = vec![
            format!("jetstream {{ store_dir: \"{}\", {sync} }}", directory.display()),
            "authorization { user: retrysafe, password: retrysafe }".to_owned(),
        ];
        lines.extend(self.settings.iter().cloned());
        let configuration = directory.join("nats.conf");
        fs::write(configuration, lines.join("\n")).expect("a file in a directory of our own");
    }
}

impl Server<Nats> {
    /// Sends a request on a connection of its own and gives the answer as text; none if there is
    /// none within two seconds, or the server can't be reached.
    pub async fn request(&self, subject: &str, payload: &str) -> Option<String> {
        let answer = timeout(Duration::from_secs(2), self.ask(subject, payload)).await;
        answer.ok()?.ok()
    }

    async fn ask(&self, subject: &str, payload: &str) -> io::Result<String> {
        let url = self.url();
        let Authority { user, password, .. } = Authority::of(&url);
        let mut stream = BufReader::new(TcpStream::connect(self.addr()).await?);
        let hello = format!(
            "CONNECT {{\"verbose\":false,\"user\":\"{user}\",\"pass\":\"{password}\"}}\r\n\
             SUB answer 1\r\nPUB {subject} answer {}\r\n{payload}\r\n",
            payload.len()
        );
        stream.get_mut().write_all(hello.as_bytes()).await?;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 || line.starts_with("-ERR") {
                return Err(io::Error::other(line));
            }
            if line.starts_with("MSG ") {
                let length = line.split_whitespace().next_back().and_then(|it| it.parse().ok());
                let mut answer = vec![0; length.unwrap_or_default()];
                stream.read_exact(&mut answer).await?;
                return Ok(String::from_utf8_lossy(&answer).into_owned());
            }
            if line.starts_with("PING") {
                stream.get_mut().write_all(b"PONG\r\n").await?;
            }
        }
    }
}
