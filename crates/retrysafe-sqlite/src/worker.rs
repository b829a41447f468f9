//! The two threads of a store: one writes, one reads. Callers send jobs and wait for answers.
//!
//! The writer takes turns. A turn is one transaction: it runs every job that is waiting, commits
//! once, and only then answers, so that many callers share one flush to the disk and none waits for
//! a timer. Those who were just answered mostly come back with their next job, but not at once; a
//! turn that began without them would leave each of them a flush behind. So a turn that is smaller
//! than the last one was lets them come first, for a small part of what a flush takes.

use std::{
    io,
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use retrysafe_core::{Clock, StoreError, StoreErrorKind, failpoint};
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use crate::{
    error::{is_busy, is_full, nothing_changed, store_error},
    hold::{Ends, Hold},
    identity::Identity,
    open::{BUSY_PAUSE, busy_tries},
    records::{Failure, Records},
    table::Table,
    watch::Watches,
};

/// How many jobs share a transaction at most.
const TURN: usize = 256;

/// What part of the last flush a turn waits at most for those whom the last one answered.
const PART: u32 = 8;

/// How often it looks for them at most: an answer to the question how long it has waited, if the
/// clock stands still.
const LOOKS: usize = 256;

/// How many jobs wait at most. Past that, callers wait for room, and leave when they are dropped.
const QUEUE: usize = 4 * TURN;

/// What becomes of a job whose caller has gone before it ran.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Abandoned {
    /// It runs: an outcome or a released key is worth keeping, whoever hears of it.
    Runs,
    /// It is skipped: nobody would complete what it claims, or read what it finds.
    Skipped,
}

/// What a thread works on.
#[derive(Clone)]
pub(crate) struct On {
    pub(crate) table: &'static Table,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) path: Arc<Path>,
}

impl On {
    pub(crate) fn records<'c>(&'c self, connection: &'c Connection) -> Records<'c> {
        Records::new(connection, &*self.clock, self.table)
    }
}

/// What a thread is sent.
enum Sent {
    /// Something that shares its turn with others.
    Job(Box<dyn Job>),
    /// A transaction of somebody's own.
    Hold(Hold),
}

fn stopped() -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, "the SQLite store's thread has stopped")
}

/// A thread with a connection of its own. Dropping it waits until what was sent has been done.
pub(crate) struct Worker {
    jobs: Option<mpsc::Sender<Sent>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub(crate) fn writer(
        mut connection: Connection,
        on: On,
        watches: Arc<Watches>,
        busy_timeout: Duration,
    ) -> io::Result<Self> {
        let identity = Identity::of(&on.path)?;
        let ends = Ends::default();
        if on.table.with_work {
            ends.watch(&mut connection, &on.clock);
        }
        Self::spawn("retrysafe-sqlite-writer", move |jobs| {
            let last = LastTurn::default();
            let held = None;
            Writer { connection, on, watches, identity, busy_timeout, jobs, held, last, ends }
                .run();
        })
    }

    pub(crate) fn reader(connection: Connection, on: On) -> io::Result<Self> {
        Self::spawn("retrysafe-sqlite-reader", move |mut jobs| {
            while let Some(Sent::Job(mut job)) = jobs.blocking_recv() {
                match job.run(&on.records(&connection)) {
                    Ok(()) => job.answer(),
                    Err(error) => job.fail(store_error(&on.path, &Arc::new(error))),
                }
            }
        })
    }

    fn spawn(
        name: &str,
        run: impl FnOnce(mpsc::Receiver<Sent>) + Send + 'static,
    ) -> io::Result<Self> {
        let (jobs, waiting) = mpsc::channel(QUEUE);
        let thread = thread::Builder::new().name(name.into()).spawn(move || run(waiting))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Has the thread do something and waits for the answer.
    ///
    /// Dropping the future before the job was sent means that it is never done. Later it changes
    /// nothing for the others of its turn.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        abandoned: Abandoned,
        act: impl FnMut(&Records<'_>) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let job = Box::new(Pending { act, outcome: None, reply, abandoned });
        self.send(Sent::Job(job)).await?;
        answer.await.map_err(|_| stopped())?
    }

    /// Lends the writer: it does nothing else until the hold is over.
    pub(crate) async fn lend(&self, hold: Hold) -> Result<(), StoreError> {
        self.send(Sent::Hold(hold)).await
    }

    async fn send(&self, what: Sent) -> Result<(), StoreError> {
        let jobs = self.jobs.as_ref().ok_or_else(stopped)?;
        jobs.send(what).await.map_err(|_| stopped())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by its callers' errors.
            let _ = thread.join();
        }
    }
}

/// Something to do with the records, and where its answer goes. Runs again if its turn is undone.
pub(crate) trait Job: Send {
    fn run(&mut self, records: &Records<'_>) -> rusqlite::Result<()>;
    fn answer(self: Box<Self>);
    fn fail(self: Box<Self>, error: StoreError);
}

struct Pending<T, F> {
    act: F,
    outcome: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
    abandoned: Abandoned,
}

impl<T, F> Job for Pending<T, F>
where
    T: Send,
    F: FnMut(&Records<'_>) -> Result<T, Failure> + Send,
{
    fn run(&mut self, records: &Records<'_>) -> rusqlite::Result<()> {
        if self.abandoned == Abandoned::Skipped && self.reply.is_closed() {
            return Ok(());
        }
        self.outcome = match (self.act)(records) {
            Ok(answer) => Some(Ok(answer)),
            Err(Failure::Refused(error)) => Some(Err(error)),
            Err(Failure::Sqlite(error)) => return Err(error),
        };
        Ok(())
    }

    fn answer(self: Box<Self>) {
        if let Some(outcome) = self.outcome {
            // ST11: a caller that has gone does not matter to the others.
            let _ = self.reply.send(outcome);
        }
    }

    fn fail(self: Box<Self>, error: StoreError) {
        let _ = self.reply.send(Err(error));
    }
}

pub(crate) struct Writer {
    pub(crate) connection: Connection,
    pub(crate) on: On,
    pub(crate) watches: Arc<Watches>,
    pub(crate) identity: Identity,
    busy_timeout: Duration,
    jobs: mpsc::Receiver<Sent>,
    /// Who is next, when the turn is over.
    held: Option<Hold>,
    last: LastTurn,
    /// Who ends transactions.
    pub(crate) ends: Ends,
}

/// A turn that is over.
#[derive(Clone, Copy, Default)]
struct LastTurn {
    jobs: usize,
    took: Duration,
}

/// Why a turn was not committed.
enum Aborted {
    /// It could not begin: no job would have fared better.
    NotBegun(StoreError),
    /// It was rolled back whole: nothing changed.
    Undone(rusqlite::Error),
    /// It may have been committed or not.
    Unknown(rusqlite::Error),
}

impl Writer {
    fn run(mut self) {
        let mut turn = Vec::with_capacity(TURN);
        while let Some(sent) = self.jobs.blocking_recv() {
            match sent {
                Sent::Job(job) => {
                    turn.push(job);
                    self.gather(&mut turn);
                    let (jobs, since) = (turn.len(), self.on.clock.monotonic());
                    self.take(&mut turn);
                    let took = self.on.clock.monotonic().saturating_sub(since);
                    self.last = LastTurn { jobs, took };
                }
                Sent::Hold(hold) => self.held = Some(hold),
            }
            if let Some(hold) = self.held.take() {
                self.hold(hold);
            }
        }
    }

    /// Takes what is waiting into a turn, and what comes while those whom the last one answered may
    /// be on their way.
    fn gather(&mut self, turn: &mut Vec<Box<dyn Job>>) {
        let since = self.on.clock.monotonic();
        let mut looks = 0;
        while turn.len() < TURN {
            match self.jobs.try_recv() {
                Ok(Sent::Job(job)) => {
                    turn.push(job);
                    continue;
                }
                Ok(Sent::Hold(hold)) => {
                    self.held = Some(hold);
                    return;
                }
                Err(_) => {}
            }
            let waited = self.on.clock.monotonic().saturating_sub(since);
            looks += 1;
            if turn.len() >= self.last.jobs || waited >= self.last.took / PART || looks > LOOKS {
                return;
            }
            thread::yield_now();
        }
    }

    /// Runs a turn, commits it, and answers.
    fn take(&mut self, turn: &mut Vec<Box<dyn Job>>) {
        match self.commit(turn) {
            Ok(()) => turn.drain(..).for_each(Job::answer),
            Err(Aborted::Undone(_)) if turn.len() > 1 => {
                // One job must not fail the others: each gets a transaction of its own.
                for job in turn.drain(..) {
                    self.take(&mut vec![job]);
                }
            }
            Err(Aborted::Undone(error) | Aborted::Unknown(error)) => {
                let error = Arc::new(error);
                turn.drain(..).for_each(|job| job.fail(store_error(&self.on.path, &error)));
            }
            Err(Aborted::NotBegun(error)) => {
                let (kind, context) = (error.kind(), error.to_string());
                turn.drain(..).for_each(|job| job.fail(StoreError::new(kind, context.clone())));
            }
        }
    }

    fn commit(&self, turn: &mut [Box<dyn Job>]) -> Result<(), Aborted> {
        let not_begun = |error| Aborted::NotBegun(nothing_changed(&self.on.path, &Arc::new(error)));
        // Waits for other processes here, where nothing has been read yet; every record is read
        // inside the transaction, so nobody acts on what another process has changed since.
        self.begin().map_err(not_begun)?;
        let records = self.on.records(&self.connection);
        let ran = self.identity.check().map_err(Aborted::NotBegun);
        let ran = ran.and_then(|()| {
            records.check_version().map_err(|failure| match failure {
                Failure::Refused(error) => Aborted::NotBegun(error),
                Failure::Sqlite(error) => not_begun(error),
            })
        });
        let ran = ran.and_then(|()| {
            turn.iter_mut().try_for_each(|job| job.run(&records)).map_err(Aborted::Undone)
        });
        // A turn that changed nothing writes nothing, and its COMMIT flushes nothing.
        let done = ran.and_then(|()| {
            failpoint::reached("before the end of a turn");
            self.execute("COMMIT").map_err(|error| match is_full(&error) {
                true => Aborted::Undone(error),
                false => Aborted::Unknown(error),
            })
        });
        failpoint::reached("after the end of a turn");
        let touched = records.into_touched();
        if done.is_err() && !self.connection.is_autocommit() {
            // SQLite has rolled back by itself in the cases in which this could fail.
            let _ = self.execute("ROLLBACK");
        }
        done.map(|()| self.watches.wake(&touched))
    }

    fn begin(&self) -> rusqlite::Result<()> {
        self.patiently(|| self.execute("BEGIN IMMEDIATE"))
    }

    /// Waits for other processes that write.
    pub(crate) fn patiently<T>(
        &self,
        begin: impl Fn() -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        let mut tries = busy_tries(self.busy_timeout);
        loop {
            match begin() {
                Err(error) if is_busy(&error) && tries > 0 => {
                    tries -= 1;
                    thread::sleep(BUSY_PAUSE);
                }
                begun => return begun,
            }
        }
    }

    pub(crate) fn execute(&self, statement: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(statement)?.execute([]).map(drop)
    }
}
