//! One server: how a request is sent to it, and what comes back.

use std::{
    borrow::Cow,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use redis::{
    Cmd, ConnectionInfo, Pipeline, RedisError, ServerErrorKind, Value, aio::MultiplexedConnection,
};
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    connect::{Connection, Connector, OnPush, ServerInfo},
    error::{Failure, OpenError, OpenErrorKind},
    link::Link,
    script::Script,
    settings::Settings,
};

/// One request for one key.
#[derive(Clone, Copy)]
pub(crate) enum Request<'a> {
    Command(&'a Cmd),
    Script { script: &'static Script, key: &'a str, arguments: &'a [&'a [u8]] },
}

/// How many replicas have to confirm a request, and how long they are given.
#[derive(Clone, Copy)]
pub(crate) struct Confirm {
    pub(crate) replicas: u32,
    pub(crate) within: Duration,
}

/// How a request is sent.
#[derive(Clone, Copy, Default)]
pub(crate) struct How {
    /// On a connection of its own, with a `WAIT` behind it.
    pub(crate) confirm: Option<Confirm>,
    /// On the connection that is told of changes.
    pub(crate) wakeup: bool,
    /// The key is on its way to this node.
    pub(crate) asking: bool,
}

pub(crate) struct Reply {
    pub(crate) value: Value,
    /// How many replicas confirmed, if that was asked.
    pub(crate) confirmed: u32,
}

/// One server and the connections to it: one for requests, one for wake-ups, and some for requests
/// that wait for replicas.
pub(crate) struct Node {
    pub(crate) address: String,
    connector: Arc<Connector>,
    calls: Link,
    wakeups: Link,
    waiting: Pool,
}

impl Node {
    pub(crate) fn new(
        info: &ConnectionInfo,
        cluster: bool,
        settings: &Arc<Settings>,
        on_push: OnPush,
    ) -> Result<Self, OpenError> {
        let connector = Arc::new(Connector::new(info, cluster, Arc::clone(settings))?);
        Ok(Self {
            address: connector.address.clone(),
            calls: Link::new(Arc::clone(&connector), None),
            wakeups: Link::new(Arc::clone(&connector), Some(on_push)),
            waiting: Pool::new(Arc::clone(&connector), settings),
            connector,
        })
    }

    /// Connects if need be, and gives what the server says of itself.
    pub(crate) async fn server(&self) -> Result<Arc<ServerInfo>, OpenError> {
        self.calls.server().await
    }

    /// Its name in the network.
    pub(crate) fn host(&self) -> &str {
        self.address.rsplit_once(':').map_or(&self.address, |(host, _)| host)
    }

    /// What it knows of the layout of its cluster, whatever its own part in it.
    pub(crate) async fn layout(&self) -> Result<Value, OpenError> {
        self.connector.layout().await
    }

    /// Sends a request once, or not at all.
    ///
    /// What is rare is boxed, here and in the store: the futures of an attempt are moved, and carry
    /// room for the longest way that they might take.
    pub(crate) async fn send(&self, request: Request<'_>, how: How) -> Result<Reply, Failure> {
        let sent = self.send_as(request, how, false).await;
        match (&sent, request) {
            // The server forgot its scripts, by a restart or a failover. Nothing ran.
            (Err(Failure::Sent { error, .. }), Request::Script { .. })
                if error.kind() == ServerErrorKind::NoScript.into() =>
            {
                Box::pin(self.send_as(request, how, true)).await
            }
            _ => sent,
        }
    }

    /// Sends several scripts that only read, and gives their replies in the same order, refusals
    /// among them.
    pub(crate) async fn send_all(&self, requests: &[Request<'_>]) -> Result<Vec<Value>, Failure> {
        let mut pipeline = redis::pipe();
        for request in requests {
            pipeline.add_command(request.command(false).into_owned());
        }
        self.over(&self.calls, async |driver| send_pipeline(driver, &pipeline).await).await
    }

    async fn send_as(&self, request: Request<'_>, how: How, whole: bool) -> Result<Reply, Failure> {
        if let Some(confirm) = how.confirm {
            return Box::pin(self.send_confirmed(request, confirm, how.asking, whole)).await;
        }
        let link = if how.wakeup { &self.wakeups } else { &self.calls };
        let command = request.command(whole);
        let value = match how.asking {
            false => {
                let send = async |driver: &mut MultiplexedConnection| {
                    driver.send_packed_command(&command).await
                };
                self.over(link, send).await?
            }
            true => {
                Box::pin(self.over(link, async |driver| asking(driver, &command).await)).await?
            }
        };
        Ok(Reply { value: self.refused(value)?, confirmed: 0 })
    }

    /// Sends a request on a connection of its own, with a `WAIT` behind it: on another connection that
    /// would wait for nothing.
    async fn send_confirmed(
        &self,
        request: Request<'_>,
        confirm: Confirm,
        asking: bool,
        whole: bool,
    ) -> Result<Reply, Failure> {
        let mut pipeline = redis::pipe();
        if asking {
            pipeline.cmd("ASKING");
        }
        pipeline.add_command(request.command(whole).into_owned());
        let within = confirm.within.as_millis().max(1) as u64;
        pipeline.cmd("WAIT").arg(confirm.replicas).arg(within);
        let mut taken = self.waiting.take().await.map_err(Failure::NotSent)?;
        let replies = send_pipeline(&mut taken.connection.driver, &pipeline).await;
        let mut replies = replies.map_err(|error| self.sent(error))?.into_iter().rev();
        let confirmed = replies.next().ok_or_else(|| self.sent(short()))?;
        let value = replies.next().ok_or_else(|| self.sent(short()))?;
        taken.give_back();
        let value = self.refused(value)?;
        // What was asked is done, so this is no refusal of it.
        let confirmed = confirmed
            .extract_error()
            .and_then(|confirmed| Ok(redis::from_redis_value(confirmed)?))
            .map_err(|error| Failure::Unconfirmed { server: self.address.clone(), error })?;
        Ok(Reply { value, confirmed })
    }

    /// Sends something over a link, and tells the link what became of it.
    async fn over<T>(
        &self,
        link: &Link,
        send: impl AsyncFnOnce(&mut MultiplexedConnection) -> Result<T, RedisError>,
    ) -> Result<T, Failure> {
        let mut borrowed = link.borrow().await.map_err(Failure::NotSent)?;
        let sent = send(&mut borrowed.driver).await;
        match &sent {
            Err(error) if error.is_timeout() => link.timed_out(&borrowed),
            Err(error) if error.is_unrecoverable_error() => link.drop_connection(&borrowed),
            _ => link.answered(&borrowed),
        }
        sent.map_err(|error| self.sent(error))
    }

    fn refused(&self, value: Value) -> Result<Value, Failure> {
        value.extract_error().map_err(|error| {
            // A primary that has become a replica: another connection may lead to one that is not.
            if matches!(error.code(), Some("READONLY" | "NOAUTH")) {
                self.calls.forget();
                self.waiting.forget();
            }
            self.sent(error)
        })
    }

    fn sent(&self, error: RedisError) -> Failure {
        Failure::Sent { server: self.address.clone(), error }
    }
}

impl Request<'_> {
    /// The command, by the digest of its script or with the whole text.
    fn command(&self, whole: bool) -> Cow<'_, Cmd> {
        match *self {
            Self::Command(command) => Cow::Borrowed(command),
            Self::Script { script, key, arguments } => {
                let mut command = match whole {
                    true => redis::cmd("EVAL"),
                    false => redis::cmd("EVALSHA"),
                };
                command.arg(if whole { script.text } else { &script.digest }).arg(1).arg(key);
                for argument in arguments {
                    command.arg(argument);
                }
                Cow::Owned(command)
            }
        }
    }
}

/// Sends a command whose key is on its way to this node.
async fn asking(driver: &mut MultiplexedConnection, command: &Cmd) -> Result<Value, RedisError> {
    let mut pipeline = redis::pipe();
    pipeline.cmd("ASKING").add_command(command.clone());
    let replies = send_pipeline(driver, &pipeline).await?;
    replies.into_iter().nth(1).ok_or_else(short)
}

async fn send_pipeline(
    driver: &mut MultiplexedConnection,
    pipeline: &Pipeline,
) -> Result<Vec<Value>, RedisError> {
    driver.send_packed_commands(pipeline, 0, pipeline.len()).await
}

/// Fewer replies than requests.
fn short() -> RedisError {
    (redis::ErrorKind::Parse, "a reply is missing").into()
}

/// Connections of which each serves one request at a time: one that waits for replicas holds up
/// everything behind it.
struct Pool {
    connector: Arc<Connector>,
    idle: Mutex<Vec<Connection>>,
    free: Semaphore,
    /// Shared by every connection that is taken.
    taken: Arc<()>,
    /// Of a request with its `WAIT`; nobody waits longer for a connection either.
    response_timeout: Duration,
}

/// Given back only once every reply has come, else the next request would wait behind this one's.
/// Dropped before that, the connection is closed.
struct Taken<'a> {
    pool: &'a Pool,
    connection: Connection,
    _counted: Arc<()>,
    _permit: tokio::sync::SemaphorePermit<'a>,
}

impl Pool {
    fn new(connector: Arc<Connector>, settings: &Settings) -> Self {
        let within = match settings.durability {
            crate::Durability::Replicas { within, .. } => within,
            crate::Durability::Fast => Duration::ZERO,
        };
        Self {
            connector,
            idle: Mutex::default(),
            free: Semaphore::new(settings.replica_connections),
            taken: Arc::default(),
            response_timeout: settings.response_timeout + within,
        }
    }

    async fn take(&self) -> Result<Taken<'_>, OpenError> {
        let permit = match timeout(self.response_timeout, self.free.acquire()).await {
            Ok(Ok(permit)) => permit,
            _ => return Err(self.late()),
        };
        let idle = loop {
            match self.idle().pop() {
                Some(connection) if connection.is_closed() => {}
                other => break other,
            }
        };
        let connection = match idle {
            Some(connection) => connection,
            None => {
                let mut connection = self.connector.connect(None).await?;
                connection.driver.set_response_timeout(self.response_timeout);
                connection
            }
        };
        let _counted = Arc::clone(&self.taken);
        Ok(Taken { pool: self, connection, _counted, _permit: permit })
    }

    /// D4: a server to which there are connections is there.
    fn late(&self) -> OpenError {
        let (kind, problem) = match Arc::strong_count(&self.taken) > 1 {
            true => (
                OpenErrorKind::Busy,
                "every connection is waiting for replicas; see why these are slow, or allow more",
            ),
            false => (OpenErrorKind::Unreachable, "no connection came about in time"),
        };
        OpenError::new(&self.connector.address, kind, problem)
    }

    fn forget(&self) {
        self.idle().clear();
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken<'_> {
    fn give_back(self) {
        self.pool.idle().push(self.connection);
    }
}
