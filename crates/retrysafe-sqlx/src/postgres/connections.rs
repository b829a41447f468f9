//! Connections: our own, or those of the user's pool.
//!
//! Our own are kept here and not in an sqlx pool, for four reasons. A pool sends a second message
//! for every call, to see whether the connection that comes back is still good (ST2). It waits for
//! a server that refuses connections, where the caller is better off with an answer at once. It
//! does not know that after one connection broke the others are likely broken too. And it opens ever
//! more sessions on a server that hangs.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection, PgPool, Postgres, Row as _,
    pool::PoolConnection,
    postgres::{PgArguments, PgConnectOptions, PgDatabaseError, PgRow, PgSeverity},
    query::Query,
};
use tokio::{
    runtime::Handle,
    sync::{Notify, OwnedSemaphorePermit, Semaphore, SemaphorePermit},
    time::{Instant, timeout, timeout_at},
};

use super::{
    builder::Settings,
    failure::{self, Place},
};
use crate::{OpenError, OpenErrorKind};

/// After this long without use a connection is closed: a firewall may have forgotten it.
const MOST_IDLE: Duration = Duration::from_secs(5 * 60);

/// The oldest that a connection gets, so that the server's memory of it does not grow for ever.
const MOST_AGE: Duration = Duration::from_secs(30 * 60);

/// How long an answer that nobody waits for any more is awaited before the connection is closed.
const CONVALESCENCE: Duration = Duration::from_secs(60);

/// How many connections are made at a time. A handshake costs the server, and us, the time of many
/// claims: a burst that finds no connection is answered sooner by the first few than by as many as
/// there are callers, all of them late.
const HANDSHAKES: usize = 2;

/// The shortest thing that is written to the log, so that its commit waits for the standby.
const BARRIER: &str = "SELECT pg_logical_emit_message(true, 'retrysafe', '')";

pub(crate) enum Connections {
    Own(Arc<Own>),
    Pool(PgPool),
}

/// Our own connections to one server.
pub(crate) struct Own {
    options: PgConnectOptions,
    place: Place,
    /// How long the server lets a statement run, and wait for a row.
    statement_timeout: Duration,
    lock_timeout: Duration,
    /// The longest unused is first, the last used is last and goes out first.
    idle: Mutex<VecDeque<Idle>>,
    permits: Arc<Semaphore>,
    /// Shared by every connection that is lent, or still owes an answer.
    lent: Arc<()>,
    handshakes: Semaphore,
    /// When a connection becomes idle, or a handshake is over.
    stirred: Notify,
}

struct Idle {
    connection: PgConnection,
    opened: Instant,
    since: Instant,
}

/// The turn to make a connection.
struct Turn<'a> {
    connections: &'a Own,
    permit: Option<SemaphorePermit<'a>>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.permit = None;
        self.connections.stirred.notify_one();
    }
}

/// A connection for one statement.
pub(crate) enum Lent {
    Own(LentOwn),
    Pool(PoolConnection<Postgres>),
}

pub(crate) struct LentOwn {
    connections: Arc<Own>,
    permit: Option<OwnedSemaphorePermit>,
    opened: Instant,
    /// None once it broke.
    connection: Option<PgConnection>,
    counted: Arc<()>,
    /// What it was sent and has not answered.
    owes: Option<Owes>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Owes {
    Barrier,
    Answer,
}

impl Connections {
    pub(crate) fn own(options: PgConnectOptions, place: Place, settings: &Settings) -> Self {
        Self::Own(Arc::new(Own {
            options: options.disable_statement_logging(),
            place,
            statement_timeout: settings.long_timeout(),
            // Before the caller gives up: that a row is held is an answer.
            lock_timeout: settings.timeout * 2 / 3,
            idle: Mutex::default(),
            permits: Arc::new(Semaphore::new(settings.max_connections as usize)),
            lent: Arc::default(),
            handshakes: Semaphore::new(HANDSHAKES),
            stirred: Notify::new(),
        }))
    }

    /// A connection, at the latest at `until`. Nothing of any verb is sent before there is one, so
    /// whatever goes wrong here changed nothing.
    pub(crate) async fn lend(&self, place: &Place, until: Instant) -> Result<Lent, OpenError> {
        let lent = async {
            match self {
                Self::Own(own) => Arc::clone(own).lend().await.map(Lent::Own),
                Self::Pool(pool) => match pool.acquire().await {
                    Ok(connection) => Ok(Lent::Pool(connection)),
                    Err(error) => Err(failure::open(place, error)),
                },
            }
        };
        let late = || {
            // D4: a server to which there are connections is there.
            let is_there = match self {
                Self::Own(own) => own.has_connections(),
                Self::Pool(pool) => pool.size() > 0,
            };
            let (kind, problem) = match is_there {
                true => (
                    OpenErrorKind::Busy,
                    "every connection was in use for too long; allow more, or see why the server \
                     is slow",
                ),
                false => (OpenErrorKind::Unreachable, "no connection came about in time"),
            };
            OpenError::new(place.as_str(), kind, problem)
        };
        timeout_at(until, lent).await.unwrap_or_else(|_| Err(late()))
    }
}

impl Own {
    async fn lend(self: Arc<Self>) -> Result<LentOwn, OpenError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        let (connection, opened, owes) = match self.idle_or_turn().await {
            Ok(Idle { connection, opened, .. }) => (connection, opened, None),
            Err(_turn) => (self.connect().await?, Instant::now(), Some(Owes::Barrier)),
        };
        let (place, connection) = (self.place.clone(), Some(connection));
        let counted = Arc::clone(&self.lent);
        let mut lent = LentOwn { connections: self, permit, opened, connection, counted, owes };
        if lent.owes.is_some() {
            lent.pass_barrier().await.map_err(|error| failure::open(&place, error))?;
        }
        Ok(lent)
    }

    /// An idle connection, or else the turn to make one, whichever comes first.
    async fn idle_or_turn(&self) -> Result<Idle, Turn<'_>> {
        loop {
            // Listening before looking: what happens in between is heard.
            let mut stirred = pin!(self.stirred.notified());
            stirred.as_mut().enable();
            if let Some(idle) = self.pop() {
                return Ok(idle);
            }
            if let Ok(permit) = self.handshakes.try_acquire() {
                return Err(Turn { connections: self, permit: Some(permit) });
            }
            stirred.await;
        }
    }

    async fn connect(&self) -> Result<PgConnection, OpenError> {
        let failed = |error| failure::open(&self.place, error);
        let mut connection = self.options.connect().await.map_err(failed)?;
        // Whatever the server's defaults are: a claim that waited for another one goes on with the
        // newest row instead of failing; nothing runs or waits on after its caller has left; and
        // a plan that was made while the table was small does not read all of it for ever.
        let statement_timeout = self.statement_timeout.as_millis();
        let lock_timeout = self.lock_timeout.as_millis();
        let session = format!(
            "SET default_transaction_isolation = 'read committed';
            SET statement_timeout = {statement_timeout};
            SET lock_timeout = {lock_timeout};
            SET enable_seqscan = off;
            SELECT pg_is_in_recovery() AS standby"
        );
        let row = sqlx::raw_sql(sqlx::AssertSqlSafe(session))
            .fetch_one(&mut connection)
            .await
            .map_err(failed)?;
        // Asked of each: after a failover the same address may be another server's.
        if row.try_get("standby").map_err(failed)? {
            return Err(failure::standby(&self.place));
        }
        Ok(connection)
    }

    fn has_connections(&self) -> bool {
        Arc::strong_count(&self.lent) > 1 || !self.idle().is_empty()
    }

    fn pop(&self) -> Option<Idle> {
        let mut idle = self.idle();
        let now = Instant::now();
        while let Some(last) = idle.pop_back() {
            if now - last.since < MOST_IDLE && now - last.opened < MOST_AGE {
                return Some(last);
            }
        }
        None
    }

    fn push(&self, connection: PgConnection, opened: Instant) {
        let since = Instant::now();
        let mut idle = self.idle();
        idle.push_back(Idle { connection, opened, since });
        if idle.front().is_some_and(|first| since - first.since >= MOST_IDLE) {
            idle.pop_front();
        }
        drop(idle);
        self.stirred.notify_one();
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lent {
    /// Runs one statement to its end.
    ///
    /// # Cancel safety
    ///
    /// The statement may run on. Its connection is not used again before it has answered.
    pub(crate) async fn run(
        mut self,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        let answer = query.fetch_all(self.connection()?).await;
        self.answered(answer.as_ref().err());
        answer
    }

    /// The connection, to send something on; what came of it is told to [`answered`](Self::answered).
    pub(crate) fn connection(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        match self {
            Self::Pool(connection) => Ok(&mut **connection),
            Self::Own(lent) => {
                lent.owes = Some(Owes::Answer);
                lent.connection.as_mut().ok_or(sqlx::Error::WorkerCrashed)
            }
        }
    }

    pub(crate) fn answered(&mut self, error: Option<&sqlx::Error>) {
        // The pool looks for itself.
        let Self::Own(lent) = self else { return };
        lent.owes = None;
        if error.is_some_and(breaks) {
            lent.connection = None;
            // What broke one, a server that went away, has likely broken the others.
            lent.connections.idle().clear();
        }
    }
}

impl LentOwn {
    /// ST9: a server that was killed while it waited for its standby shows after its restart what it
    /// had not acknowledged, and what a failover would lose. Whoever connects after that first waits
    /// until the standby has it.
    async fn pass_barrier(&mut self) -> Result<(), sqlx::Error> {
        let connection = self.connection.as_mut().ok_or(sqlx::Error::WorkerCrashed)?;
        let passed = sqlx::raw_sql(BARRIER).execute(connection).await;
        self.owes = None;
        if passed.is_err() {
            self.connection = None;
        }
        passed.map(drop)
    }
}

impl Drop for LentOwn {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        let Some(owes) = self.owes else {
            self.connections.push(connection, self.opened);
            return;
        };
        // Its place stays taken until it has answered: a server that hangs, say on a standby that is
        // gone, is not sent ever more connections. The statement is not cancelled: PostgreSQL
        // reports success for a commit whose wait for a standby is cancelled.
        let Ok(runtime) = Handle::try_current() else { return };
        let (connections, opened) = (Arc::clone(&self.connections), self.opened);
        let (permit, counted) = (self.permit.take(), Arc::clone(&self.counted));
        runtime.spawn(async move {
            if timeout(CONVALESCENCE, answers(&mut connection, owes)).await == Ok(true) {
                connections.push(connection, opened);
            }
            drop((permit, counted));
        });
    }
}

/// Waits for what the connection still owes; says whether it is good for another statement.
async fn answers(connection: &mut PgConnection, owes: Owes) -> bool {
    loop {
        match connection.ping().await {
            Ok(()) => return true,
            Err(error) if owes == Owes::Barrier || breaks(&error) => return false,
            // The answer to the statement was an error, and has now been heard.
            Err(_) => {}
        }
    }
}

/// Whether a connection can't be used after this.
fn breaks(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => {
            let fatal = error.try_downcast_ref::<PgDatabaseError>().is_none_or(|error| {
                matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic)
            });
            // A prepared statement that is gone, or whose table has changed under it, would fail
            // again on the same connection.
            fatal || matches!(error.code().as_deref(), Some("26000" | "0A000" | "42P05"))
        }
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::Encode(_) => false,
        _ => true,
    }
}
