//! The store's own connections.
//!
//! They are not those of sqlx's pool, for four reasons. Its `ping` after every use is a second round
//! trip for each verb (ST2). It tries a refused connection again until its time is over, and hides
//! why a connection could not be prepared, where we have to say at once what is wrong, and whether
//! anything was sent. A call that is dropped leaves an answer under way, and the connection has to go
//! with it. And an application whose own transactions hold every connection of the pool would keep
//! its attempts from renewing their leases.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use retrysafe_core::{StoreError, StoreErrorKind};
use sqlx::{
    ConnectOptions as _, Connection as _, MySqlConnection, MySqlPool, mysql::MySqlConnectOptions,
};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout, timeout_at},
};

use super::error;

/// What every session is set to, whatever the server's defaults are. Each statement is a transaction
/// of its own that sees what is committed (ST1), is refused rather than bent (ST10), and stops
/// waiting for a lock before its caller does.
const SESSION: &str = "
    SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE;
    SET SESSION autocommit = 1, time_zone = '+00:00', innodb_lock_wait_timeout = 1,
        lock_wait_timeout = 1, sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'";

/// A connection that nobody used for so long is asked whether it is still there: a firewall in
/// between may have forgotten it.
const DOUBTFUL: Duration = Duration::from_secs(10);

/// One that nobody used for so long is not needed any more.
const NEEDLESS: Duration = Duration::from_secs(5 * 60);

/// How long an answer that nobody waits for any more is awaited before its connection is closed. The
/// server works on it until then, and is not given more to do than it has connections for.
const CONVALESCENCE: Duration = Duration::from_secs(10);

/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(5);

/// Where connections lead to.
#[derive(Clone)]
pub(super) enum Origin {
    Options(Box<MySqlConnectOptions>),
    /// As the pool connects at that moment: its password may change while it runs.
    Pool(MySqlPool),
}

impl Origin {
    /// The server and its database, without user and password.
    pub(super) fn place(&self) -> String {
        let pools;
        let options = match self {
            Self::Options(options) => &**options,
            Self::Pool(pool) => {
                pools = pool.connect_options();
                &pools
            }
        };
        let database = options.get_database().unwrap_or_default();
        match options.get_socket() {
            Some(socket) => format!("{}/{database}", socket.display()),
            None => format!("{}:{}/{database}", options.get_host(), options.get_port()),
        }
    }

    /// A connection whose session is set.
    pub(super) async fn connect(&self) -> sqlx::Result<MySqlConnection> {
        let mut connection = match self {
            Self::Options(options) => options.connect().await?,
            Self::Pool(pool) => pool.connect_options().connect().await?,
        };
        sqlx::raw_sql(SESSION).execute(&mut connection).await?;
        Ok(connection)
    }
}

pub(super) struct Connections {
    origin: Origin,
    place: String,
    most: u32,
    permits: Arc<Semaphore>,
    /// Shared by every connection that is lent, or still owes an answer.
    lent: Arc<()>,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    /// The one that was used last is at the end, and is used first.
    connections: VecDeque<(Instant, MySqlConnection)>,
    /// When a connection last broke: the others may have broken with it.
    broke: Option<Instant>,
}

impl Connections {
    pub(super) fn new(origin: Origin, most: u32) -> Self {
        Self {
            place: origin.place(),
            origin,
            most,
            permits: Arc::new(Semaphore::new(most as usize)),
            lent: Arc::default(),
            idle: Mutex::default(),
        }
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// Lends a connection that answers, as far as anybody knows.
    ///
    /// Every error says that nothing was sent.
    pub(super) async fn lend(&self, deadline: Instant) -> Result<Lent<'_>, StoreError> {
        let permit = match timeout_at(deadline, Arc::clone(&self.permits).acquire_owned()).await {
            Ok(Ok(permit)) => permit,
            _ => {
                return Err(self.late(&format!("all {} connections were in use", self.most)));
            }
        };
        while let Some((mut connection, is_doubtful)) = self.take() {
            if is_doubtful {
                match timeout_at(deadline, connection.ping()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => continue,
                    Err(_) => return Err(self.late("it did not answer a ping in time")),
                }
            }
            return Ok(self.lent(connection, permit));
        }
        match timeout_at(deadline, self.origin.connect()).await {
            Ok(Ok(connection)) => Ok(self.lent(connection, permit)),
            Ok(Err(error)) => Err(error::not_sent(&self.place, error)),
            Err(_) => Err(self.late("no connection came about in time")),
        }
    }

    fn lent(&self, connection: MySqlConnection, permit: OwnedSemaphorePermit) -> Lent<'_> {
        let (connection, permit) = (Some(connection), Some(permit));
        Lent { connections: self, connection, permit, counted: Arc::clone(&self.lent) }
    }

    /// The connection that was used last, and whether it has to be asked if it is still there.
    fn take(&self) -> Option<(MySqlConnection, bool)> {
        let now = Instant::now();
        let mut idle = self.idle();
        let needed = idle.connections.partition_point(|(since, _)| now - *since > NEEDLESS);
        close(idle.connections.drain(..needed).map(|(_, connection)| connection));
        let (since, connection) = idle.connections.pop_back()?;
        let is_doubtful = now - since > DOUBTFUL || idle.broke.is_some_and(|broke| since <= broke);
        Some((connection, is_doubtful))
    }

    /// Takes a connection that nobody uses.
    pub(super) fn keep(&self, connection: MySqlConnection) {
        self.idle().connections.push_back((Instant::now(), connection));
    }

    /// D4: a server to which there are connections is there.
    fn late(&self, why: &str) -> StoreError {
        let is_there = Arc::strong_count(&self.lent) > 1 || !self.idle().connections.is_empty();
        let (kind, what) = match is_there {
            true => (StoreErrorKind::Timeout, "is too busy"),
            false => (StoreErrorKind::Unreachable, "could not be reached"),
        };
        StoreError::new(kind, format!("{} {what}: {why}", self.place))
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        let idle = std::mem::take(&mut self.idle().connections);
        close(idle.into_iter().map(|(_, connection)| connection));
    }
}

/// Says goodbye, so that the server does not log a connection that was lost.
fn close(connections: impl Iterator<Item = MySqlConnection>) {
    for connection in connections {
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(timeout(GOODBYE, connection.close()));
        }
    }
}

/// A connection for one statement. Dropped before it is given back it is never used again: an answer
/// is still under way on it (ST11).
pub(super) struct Lent<'a> {
    connections: &'a Connections,
    connection: Option<MySqlConnection>,
    permit: Option<OwnedSemaphorePermit>,
    counted: Arc<()>,
}

impl Lent<'_> {
    pub(super) fn connection(&mut self) -> &mut MySqlConnection {
        self.connection.as_mut().expect("it is there until it is given back")
    }

    /// The statement was answered, and nothing else is under way.
    pub(super) fn give_back(mut self) {
        if let Some(connection) = self.connection.take() {
            self.connections.keep(connection);
        }
    }

    /// The server at the other end is not the primary, or not any more: who connects anew may find
    /// the one that is.
    pub(super) fn leave(mut self) {
        let idle = std::mem::take(&mut self.connections.idle().connections);
        close(idle.into_iter().map(|(_, connection)| connection).chain(self.connection.take()));
    }

    /// The connection broke: the others may have broken with it.
    pub(super) fn broke(mut self) {
        self.connections.idle().broke = Some(Instant::now());
        self.connection = None;
    }

    /// The server does not answer: it may not answer the others either.
    pub(super) fn owes_an_answer(self) {
        self.connections.idle().broke = Some(Instant::now());
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let (permit, counted) = (self.permit.take(), Arc::clone(&self.counted));
        if let Some(mut connection) = self.connection.take()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(async move {
                // It is answered after what is under way.
                let _ = timeout(CONVALESCENCE, connection.ping()).await;
                drop((connection, permit, counted));
            });
        }
    }
}
