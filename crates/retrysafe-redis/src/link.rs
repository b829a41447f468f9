//! A connection that is made again when it has ended.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::{sync::OnceCell, time::Instant};

use crate::{
    connect::{Connection, Connector, OnPush},
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
    /// When a request was first not answered in time, if none has been since.
    silent_since: Mutex<Option<Instant>>,
}

impl Attempt {
    fn silent_since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.silent_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection to use for one request.
pub(crate) struct Borrowed {
    pub(crate) connection: Connection,
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
    pub(crate) async fn connection(&self) -> Result<Borrowed, OpenError> {
        let attempt = self.attempt();
        let connect = || self.connector.connect(self.on_push.clone());
        match attempt.made.get_or_init(connect).await {
            Ok(connection) => {
                let mut connection = connection.clone();
                // It may have been made while the store was opened.
                connection.driver.set_response_timeout(self.connector.response_timeout());
                Ok(Borrowed { connection, attempt: Arc::clone(&attempt) })
            }
            Err(error) => {
                let error = error.clone();
                self.replace(&attempt);
                Err(error)
            }
        }
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
        *borrowed.attempt.silent_since() = None;
    }

    pub(crate) fn timed_out(&self, borrowed: &Borrowed) {
        let since = *borrowed.attempt.silent_since().get_or_insert_with(Instant::now);
        if since.elapsed() >= SILENT * self.connector.response_timeout() {
            self.replace(&borrowed.attempt);
        }
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
