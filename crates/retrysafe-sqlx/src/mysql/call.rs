//! One call of a verb: its statements, one after the other, within one deadline.

use std::{
    future::Future,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use retrysafe_core::{StoreError, StoreErrorKind};
use sqlx::{
    MySql, MySqlConnection,
    mysql::{MySqlArguments, MySqlRow},
    query::Query,
};
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    connections::Connections,
    error::{self, Fate},
};

/// How often the server may undo a statement because of others before the call gives up.
const MOST_UNDONE: u32 = 10;

/// How often a call is repeated because its connection broke.
const MOST_BROKEN: u32 = 2;

pub(super) type Sent<'q> = Query<'q, MySql, MySqlArguments>;

/// What became of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inserted {
    Yes,
    /// There is one.
    No,
    /// A transaction that has not committed has inserted one.
    Locked,
}

/// One call. Its statements may be sent several times, because every verb may (ST4).
pub(super) struct Call<'a> {
    connections: &'a Connections,
    deadline: Instant,
    /// How often a change is sent again that may have had its effect.
    repeats: u32,
    /// Whether a connection broke under one of its statements. From then on the call as a whole may
    /// have had its effect, whatever a later statement fails with.
    broke: AtomicBool,
    /// Whether one of its statements was answered.
    answered: AtomicBool,
}

impl<'a> Call<'a> {
    pub(super) fn new(connections: &'a Connections, within: Duration) -> Self {
        let deadline = Instant::now() + within;
        let (broke, answered) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { connections, deadline, repeats: MOST_BROKEN, broke, answered }
    }

    /// The same for a change that is not the same change when it is repeated.
    pub(super) fn once(self) -> Self {
        Self { repeats: 0, ..self }
    }

    /// The rows that a query finds.
    pub(super) async fn read<'q>(
        &self,
        query: impl Fn() -> Sent<'q> + Send + Sync,
    ) -> Result<Vec<MySqlRow>, StoreError> {
        self.run(&Read(query), MOST_BROKEN).await
    }

    /// How many rows a change matched.
    pub(super) async fn write<'q>(
        &self,
        query: impl Fn() -> Sent<'q> + Send + Sync,
    ) -> Result<u64, StoreError> {
        self.run(&Write(query), self.repeats).await
    }

    /// Inserts a row, if there is none with its key.
    pub(super) async fn insert<'q>(
        &self,
        query: impl Fn() -> Sent<'q> + Send + Sync,
    ) -> Result<Inserted, StoreError> {
        self.run(&Insert(query), self.repeats).await
    }

    /// Whether a row that is asked for with `NOWAIT` is locked.
    pub(super) async fn probe<'q>(
        &self,
        query: impl Fn() -> Sent<'q> + Send + Sync,
    ) -> Result<bool, StoreError> {
        self.run(&Probe(query), MOST_BROKEN).await
    }

    async fn run<S: Statement>(
        &self,
        statement: &S,
        repeats: u32,
    ) -> Result<S::Answer, StoreError> {
        let place = self.connections.place();
        let (mut undone, mut broken) = (0, 0);
        let failed = loop {
            // Whatever was sent before was answered, and the record changes faster than we read it.
            if Instant::now() >= self.deadline {
                let context = format!("{place} answered too slowly");
                break StoreError::new(StoreErrorKind::Timeout, context);
            }
            let mut lent = match self.connections.lend(self.deadline).await {
                Ok(lent) => lent,
                Err(error) => break error,
            };
            let error = match timeout_at(self.deadline, statement.send(lent.connection())).await {
                Ok(Ok(answer)) => {
                    lent.give_back();
                    self.answered.store(true, Ordering::Relaxed);
                    return Ok(answer);
                }
                Ok(Err(error)) => error,
                Err(_) => {
                    lent.owes_an_answer();
                    let context = format!("{place} did not answer in time");
                    break StoreError::new(StoreErrorKind::Timeout, context);
                }
            };
            match error::fate(&error) {
                Fate::Again if undone < MOST_UNDONE => {
                    lent.give_back();
                    self.answered.store(true, Ordering::Relaxed);
                    undone += 1;
                    let pause = Duration::from_millis(2 << undone.min(5));
                    sleep(pause.mul_f64(rand::random())).await;
                }
                Fate::Again => {
                    lent.give_back();
                    break error::refused(place, StoreErrorKind::Timeout, error);
                }
                Fate::Refused(kind) => {
                    lent.give_back();
                    break error::refused(place, kind, error);
                }
                Fate::ReadOnly => {
                    lent.leave();
                    break error::refused(place, StoreErrorKind::Misconfigured, error);
                }
                // Back on another connection, where the answer is the one that the first try
                // earned (ST4).
                Fate::Broken if broken < repeats => {
                    lent.broke();
                    broken += 1;
                    self.broke.store(true, Ordering::Relaxed);
                }
                Fate::Broken => {
                    lent.broke();
                    break error::broken(place, error);
                }
            }
        };
        let broke = self.broke.load(Ordering::Relaxed);
        Err(match self.answered.load(Ordering::Relaxed) {
            _ if broke => error::after_a_broken_try(failed),
            true => failed.after_an_answer(),
            false => failed,
        })
    }
}

/// One statement, which can be sent again.
trait Statement: Send + Sync {
    type Answer: Send;

    /// Sends it, and takes all that is answered.
    fn send(
        &self,
        connection: &mut MySqlConnection,
    ) -> impl Future<Output = sqlx::Result<Self::Answer>> + Send;
}

struct Read<F>(F);
struct Write<F>(F);
struct Insert<F>(F);
struct Probe<F>(F);

impl<'q, F: Fn() -> Sent<'q> + Send + Sync> Statement for Read<F> {
    type Answer = Vec<MySqlRow>;

    async fn send(&self, connection: &mut MySqlConnection) -> sqlx::Result<Vec<MySqlRow>> {
        (self.0)().fetch_all(connection).await
    }
}

impl<'q, F: Fn() -> Sent<'q> + Send + Sync> Statement for Write<F> {
    type Answer = u64;

    // The driver asks for CLIENT_FOUND_ROWS: these are the rows that the WHERE clause matched.
    async fn send(&self, connection: &mut MySqlConnection) -> sqlx::Result<u64> {
        Ok((self.0)().execute(connection).await?.rows_affected())
    }
}

impl<'q, F: Fn() -> Sent<'q> + Send + Sync> Statement for Insert<F> {
    type Answer = Inserted;

    async fn send(&self, connection: &mut MySqlConnection) -> sqlx::Result<Inserted> {
        match (self.0)().execute(connection).await {
            Ok(_) => Ok(Inserted::Yes),
            Err(error) if error::number(&error) == Some(error::DUPLICATE) => Ok(Inserted::No),
            Err(error) if error::is_locked(&error) => Ok(Inserted::Locked),
            Err(error) => Err(error),
        }
    }
}

impl<'q, F: Fn() -> Sent<'q> + Send + Sync> Statement for Probe<F> {
    type Answer = bool;

    async fn send(&self, connection: &mut MySqlConnection) -> sqlx::Result<bool> {
        match (self.0)().fetch_all(connection).await {
            Ok(_) => Ok(false),
            Err(error) if error::is_locked(&error) => Ok(true),
            Err(error) => Err(error),
        }
    }
}
