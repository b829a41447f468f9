//! A connection that is made again when it has ended.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis::aio::MultiplexedConnection;
use tokio::{sync::OnceCell, time::Instant};

use crate::{
    connect::{Connection, Connector, OnPush, ServerInfo},
    error::OpenError,
};

/// A connection is given up when nothing was answered for so many response time-outs, although its
/// host acknowledges what is sent: something between may have forgotten it. Not earlier, because what
/// was sent over one connection keeps its order (ST4).
const SILENT: u32 = 4;

/// One connection to a server, shared by everybody who asks, made by the first of them.
///
/// A request is never sent twice: what becomes of one whose connection ends is for the caller to say.
pub(crate) struct Link {
    connector: Arc<Connector>,
    on_push: Option<OnPush>,
    current: Mutex<Arc<Attempt>>,
}

/// One attempt to connect, and what came of it.
#[derive(Default)]
struct Attempt {
    made: OnceCell<Result<Connection, OpenError>>,
    silence: Silence,
}

/// Since when requests are not answered in time.
#[derive(Default)]
struct Silence {
    /// Looked at without a lock, because every answer does.
    lasts: AtomicBool,
    since: Mutex<Option<Instant>>,
}

impl Silence {
    fn end(&self) {
        if self.lasts.load(Ordering::Acquire) {
            let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
            *since = None;
            self.lasts.store(false, Ordering::Release);
        }
    }

    /// How long it has lasted; it begins if it has not.
    fn go_on(&self) -> Duration {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        self.lasts.store(true, Ordering::Release);
        since.get_or_insert_with(Instant::now).elapsed()
    }
}

/// A connection to use for one request.
pub(crate) struct Borrowed {
    pub(crate) driver: MultiplexedConnection,
    attempt: Arc<Attempt>,
}

impl Link {
    pub(crate) fn new(connector: Arc<Connector>, on_push: Option<OnPush>) -> Self {
        Self { connector, on_push, current: Mutex::default() }
    }

    /// The connection, made anew if it has ended. Everybody who asks while it is being made shares
    /// the attempt, its failure too; whoever asks later starts another.
    ///
    /// # Cancel safety
    ///
    /// If the future that connects is dropped, another one that waits goes on in its place.
    pub(crate) async fn borrow(&self) -> Result<Borrowed, OpenError> {
        let attempt = self.attempt();
        let mut driver = self.made(&attempt).await?.driver.clone();
        // It may have been made while the store was opened.
        driver.set_response_timeout(self.connector.response_timeout());
        Ok(Borrowed { driver, attempt })
    }

    /// What the server at the other end said of itself when the connection was made. Cancel safe as
    /// [`Self::borrow`] is.
    pub(crate) async fn server(&self) -> Result<Arc<ServerInfo>, OpenError> {
        Ok(Arc::clone(&self.made(&self.attempt()).await?.server))
    }

    /// Makes whoever asks next connect anew. Requests that are under way are not disturbed.
    pub(crate) fn drop_connection(&self, borrowed: &Borrowed) {
        self.replace(&borrowed.attempt);
    }

    /// The same, whichever connection it is now.
    pub(crate) fn forget(&self) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::default();
    }

    pub(crate) fn answered(&self, borrowed: &Borrowed) {
        borrowed.attempt.silence.end();
    }

    pub(crate) fn timed_out(&self, borrowed: &Borrowed) {
        if borrowed.attempt.silence.go_on() >= SILENT * self.connector.response_timeout() {
            self.replace(&borrowed.attempt);
        }
    }

    async fn made<'a>(&self, attempt: &'a Arc<Attempt>) -> Result<&'a Connection, OpenError> {
        // Boxed: every request carries this future, and hardly any connects.
        let connect = || Box::pin(self.connector.connect(self.on_push.clone()));
        attempt.made.get_or_init(connect).await.as_ref().map_err(|error| {
            self.replace(attempt);
            error.clone()
        })
    }

    fn attempt(&self) -> Arc<Attempt> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.made.get().is_some_and(|made| made.as_ref().is_ok_and(Connection::is_closed)) {
            *current = Arc::default();
        }
        Arc::clone(&current)
    }

    fn replace(&self, attempt: &Arc<Attempt>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&current, attempt) {
            *current = Arc::default();
        }
    }
}
