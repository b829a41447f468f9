//! How a store is set up and opened.

use std::{fmt, time::Duration};

use async_nats::{Client, ConnectOptions, ServerAddr};
use percent_encoding::percent_decode_str;
use retrysafe_core::{ConfigError, StoreError, StoreErrorKind};
use tokio::time::Instant;

use crate::{
    NatsStore, OpenError, OpenErrorKind,
    jetstream::{Info, Stream},
    leader::Leader,
    record::MOST_HEAD,
    stream::Wanted,
};

/// What a server must be at least: it brought a TTL for each message.
const LEAST_VERSION: (u32, u32) = (2, 11);

/// How often the driver sees whether a quiet connection still lives. It gives up after two.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// How long opening waits for JetStream: a new stream first has to find a leader.
const OPENING: Duration = Duration::from_secs(10);

/// How long one connection may take, unless a call may take longer.
const CONNECTING: Duration = Duration::from_secs(5);

/// Between two tries to reconnect: more each time, and never long.
const RECONNECT: Duration = Duration::from_millis(50);
const RECONNECT_TRIES: usize = 10;

/// Sets up a [`NatsStore`].
#[must_use]
pub struct NatsStoreBuilder {
    connection: Connection,
    stream: String,
    create: bool,
    replicas: usize,
    max_bytes: Option<u64>,
    timeout: Duration,
    poll_interval: Duration,
}

enum Connection {
    Url(String),
    Client(Client),
}

impl NatsStoreBuilder {
    pub(crate) fn of_url(url: String) -> Self {
        Self::new(Connection::Url(url))
    }

    pub(crate) fn of_client(client: Client) -> Self {
        Self::new(Connection::Client(client))
    }

    fn new(connection: Connection) -> Self {
        Self {
            connection,
            stream: "retrysafe".into(),
            create: true,
            replicas: 1,
            max_bytes: None,
            timeout: Duration::from_millis(1_500),
            poll_interval: Duration::from_secs(1),
        }
    }

    /// The name of the stream, `retrysafe` by default; its records' subjects begin with it. Letters,
    /// digits, `-` and `_`.
    pub fn stream(mut self, name: impl Into<String>) -> Self {
        self.stream = name.into();
        self
    }

    /// Whether a stream that is not there is created; `true` by default.
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// On how many servers a record is kept; 1 by default. With 3 the store survives the loss of any
    /// one of them. A stream that exists must have at least as many.
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.replicas = replicas;
        self
    }

    /// The size that the stream may grow to on each server, in bytes, if it has to be created;
    /// unlimited by default, so that the limits of the account and the server apply. Near a limit of
    /// the stream new claims are refused with [`Full`](StoreErrorKind::Full) and nothing is dropped
    /// (ST8); the last sixteenth is kept for the outcomes of what is under way.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = Some(bytes);
        self
    }

    /// How long a call waits for its answer; 1.5 s by default, which is below the engine's deadline
    /// for a store call (D5).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How often [`changed`](retrysafe_core::Store::changed) asks in case it was not told; 1 s by
    /// default, more often at first.
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = interval;
        self
    }

    /// Connects, and creates the stream, or checks that the one that exists can't lose records.
    ///
    /// # Errors
    ///
    /// [`OpenError`], which names the servers and says what to do. A stream that exists is never
    /// altered.
    pub async fn open(self) -> Result<NatsStore, OpenError> {
        let servers = self.connection.servers();
        self.check().map_err(|error| OpenError::setting(&servers, error))?;
        let client = match self.connection {
            Connection::Client(client) => client,
            Connection::Url(url) => connect(&url, &servers, self.timeout.max(CONNECTING)).await?,
        };
        check_server(&client, &servers)?;

        let wanted =
            Wanted { name: self.stream, replicas: self.replicas, max_bytes: self.max_bytes };
        let mut stream = Stream::new(client, &wanted.name, self.timeout.max(OPENING));
        let (asked, info) = find(&stream, &wanted, self.create, &servers).await?;
        if let Some(complaint) = wanted.complaint(&info.config) {
            return Err(OpenError::new(
                &servers,
                OpenErrorKind::Stream,
                format!("the stream `{}` can't be used: {complaint}", wanted.name),
            ));
        }
        stream.timeout = self.timeout;
        let max_payload = max_payload(&stream, &info, &servers)?;
        let leader = Leader::new(asked, &info);
        Ok(NatsStore::new(stream, leader, servers, self.poll_interval, max_payload))
    }

    fn check(&self) -> Result<(), ConfigError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.stream.is_empty() || !self.stream.chars().all(plain) {
            return Err(ConfigError::new("stream", "letters, digits, `-` and `_`"));
        }
        if !(1..=5).contains(&self.replicas) {
            return Err(ConfigError::new("replicas", "from 1 to 5"));
        }
        if self.max_bytes.is_some_and(|bytes| bytes < 1024 * 1024) {
            return Err(ConfigError::new("max_bytes", "1 MiB is the least"));
        }
        if self.timeout < Duration::from_millis(10) {
            return Err(ConfigError::new("timeout", "10 ms is the least"));
        }
        if self.poll_interval < Duration::from_millis(1) {
            return Err(ConfigError::new("poll_interval", "a millisecond is the least"));
        }
        Ok(())
    }
}

impl Connection {
    /// The servers by name, without any password.
    fn servers(&self) -> String {
        match self {
            Self::Client(client) => {
                let info = client.server_info();
                format!("{}:{}", info.host, info.port)
            }
            Self::Url(url) => {
                let name = |part: &str| match part.parse::<ServerAddr>() {
                    Ok(server) => format!("{}:{}", server.host(), server.port()),
                    Err(_) => "(not a URL)".to_owned(),
                };
                url.split(',').map(|part| name(part.trim())).collect::<Vec<_>>().join(",")
            }
        }
    }
}

async fn connect(
    url: &str,
    servers: &str,
    connection_timeout: Duration,
) -> Result<Client, OpenError> {
    let mut addresses = Vec::new();
    for part in url.split(',') {
        match part.trim().parse::<ServerAddr>() {
            Ok(address) if !address.host().is_empty() => addresses.push(address),
            _ => {
                let error = ConfigError::new("url", "like `nats://user:password@host:4222`");
                return Err(OpenError::setting(servers, error));
            }
        }
    }
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let mut options = ConnectOptions::new()
        .name("retrysafe")
        .connection_timeout(connection_timeout)
        .ping_interval(PING_INTERVAL)
        .reconnect_delay_callback(|attempts| match attempts {
            0 | 1 => Duration::ZERO,
            more => RECONNECT * more.min(RECONNECT_TRIES) as u32,
        });
    // The driver takes no credentials from a URL. One set is for all servers.
    let with_user = addresses.iter().find(|address| address.username().is_some());
    if let Some((user, password)) =
        with_user.and_then(|address| Some((address.username()?, address.password())))
    {
        options = match password {
            Some(password) => options.user_and_password(decoded(user), decoded(password)),
            None => options.token(decoded(user)),
        };
    }
    options.connect(&addresses).await.map_err(|error| OpenError::connecting(servers, error))
}

fn check_server(client: &Client, servers: &str) -> Result<(), OpenError> {
    let info = client.server_info();
    let mut numbers = info.version.split('.').map(|part| part.parse::<u32>().ok());
    let version = numbers.next().flatten().zip(numbers.next().flatten());
    if version.is_none_or(|version| version < LEAST_VERSION) {
        let (major, minor) = LEAST_VERSION;
        return Err(OpenError::new(
            servers,
            OpenErrorKind::TooOld,
            format!(
                "nats-server {:?} is too old: {major}.{minor} or later is needed, for a TTL of each \
                 message",
                info.version
            ),
        ));
    }
    Ok(())
}

async fn find(
    stream: &Stream,
    wanted: &Wanted,
    create: bool,
    servers: &str,
) -> Result<(Instant, Info), OpenError> {
    let asked = Instant::now();
    let found = match stream.info().await {
        Err(error) if error.kind() == StoreErrorKind::Misconfigured && !create => {
            let problem = format!("there is no stream `{}`: {error}", wanted.name);
            return Err(OpenError::new(servers, OpenErrorKind::Stream, problem).caused_by(error));
        }
        // Not found; or JetStream is not for this account, which creating will tell as well.
        Err(error) if error.kind() == StoreErrorKind::Misconfigured => {
            tracing::info!(stream = wanted.name, replicas = wanted.replicas, "creating the stream");
            stream.create(&wanted.config()).await.map_err(|error| asking(servers, error))?;
            stream.info().await
        }
        found => found,
    };
    found.map(|info| (asked, info)).map_err(|error| asking(servers, error))
}

/// What JetStream answered, as the reason why the store can't be opened.
fn asking(servers: &str, error: StoreError) -> OpenError {
    let (kind, problem) = match error.kind() {
        // The server itself was there a moment ago.
        StoreErrorKind::Unreachable => (
            OpenErrorKind::NoJetStream,
            "nobody answers for JetStream: enable it (`jetstream {}` in the server's \
             configuration), or see why it has no leader"
                .to_owned(),
        ),
        StoreErrorKind::Timeout => (
            OpenErrorKind::Unavailable,
            "JetStream did not answer in time: it has no leader, or this user may not publish to \
             `$JS.API.>` and the stream's subjects, or not subscribe to `_INBOX.>`"
                .to_owned(),
        ),
        StoreErrorKind::Misconfigured => (OpenErrorKind::Stream, error.to_string()),
        _ => (OpenErrorKind::Unavailable, error.to_string()),
    };
    OpenError::new(servers, kind, problem).caused_by(error)
}

fn max_payload(stream: &Stream, info: &Info, servers: &str) -> Result<usize, OpenError> {
    let of_server = stream.client().max_payload();
    let of_stream = usize::try_from(info.config.max_message_size).ok().filter(|most| *most > 0);
    let most = of_stream.map_or(of_server, |of_stream| of_stream.min(of_server));
    most.checked_sub(MOST_HEAD).filter(|payload| *payload >= MOST_HEAD).ok_or_else(|| {
        OpenError::new(
            servers,
            OpenErrorKind::Stream,
            format!(
                "messages of at most {most} bytes are too small; raise max_payload or max_msg_size"
            ),
        )
    })
}

impl fmt::Debug for NatsStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsStoreBuilder")
            .field("servers", &self.connection.servers())
            .field("stream", &self.stream)
            .field("create", &self.create)
            .field("replicas", &self.replicas)
            .field("max_bytes", &self.max_bytes)
            .field("timeout", &self.timeout)
            .field("poll_interval", &self.poll_interval)
            .finish()
    }
}
