//! The writer, lent to one attempt: a transaction of its own, in which the handler works and its
//! outcome is written. SQLite has one writer, so everybody else waits; nobody holds it for ever.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Duration,
};

use bytes::Bytes;
use retrysafe_core::{Clock, Fingerprint, Held, Lease, StoreError, failpoint};
use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::oneshot;

use crate::{
    Undone,
    error::{nothing_changed, store_error},
    records::{Failure, Records},
    worker::Writer,
};

/// How many steps of SQLite's machine pass between two looks at the time.
const STEPS: i32 = 10_000;

/// A transaction that somebody wants to have.
pub(crate) struct Hold {
    pub(crate) lease: Lease,
    pub(crate) longest: Duration,
    /// Answers whether this is still the live attempt. If not, nothing was begun.
    pub(crate) granted: oneshot::Sender<Result<bool, StoreError>>,
    /// Gone, the transaction is rolled back.
    pub(crate) asked: Receiver<Asked>,
    /// Says why it was.
    pub(crate) undone: Arc<OnceLock<Undone>>,
}

/// What the holder asks for.
pub(crate) enum Asked {
    /// Work of the handler's. `false` if it panicked.
    Run(Box<dyn FnOnce(&mut Transaction<'_>) -> bool + Send>),
    /// Writes this, and commits: the hold is over.
    Commit(Written, oneshot::Sender<Result<Held, StoreError>>),
}

/// What is written of an attempt, beside its work.
pub(crate) enum Written {
    Outcome { fingerprint: Fingerprint, payload: Bytes, retention: Duration },
    Points { points: Option<Bytes>, lease_for: Duration },
}

impl Writer {
    pub(crate) fn hold(&self, hold: Hold) {
        let Hold { lease, longest, granted, asked, undone } = hold;
        if granted.is_closed() {
            return;
        }
        let mut transaction = match self.begin_held(&lease) {
            Ok(Some(transaction)) => transaction,
            Ok(None) => return drop(granted.send(Ok(false))),
            Err(error) => return drop(granted.send(Err(error))),
        };
        if granted.send(Ok(true)).is_err() {
            return;
        }
        let until = self.on.clock.monotonic() + longest;
        let why = loop {
            let left = until.saturating_sub(self.on.clock.monotonic());
            match asked.recv_timeout(left) {
                Ok(Asked::Run(work)) => {
                    let whole = self.ends.handlers(until, || work(&mut transaction));
                    let late = self.on.clock.monotonic() >= until;
                    let ended = self.ends.was_ended() || transaction.is_autocommit();
                    match (late, ended, whole) {
                        // First, because an interrupted statement may end the transaction.
                        (true, _, _) => break Undone::TookTooLong,
                        (_, true, _) => break Undone::EndedByHand,
                        (_, _, false) => break Undone::Failed,
                        _ => {}
                    }
                }
                Ok(Asked::Commit(written, reply)) => {
                    return drop(reply.send(self.commit_held(transaction, &lease, written)));
                }
                Err(RecvTimeoutError::Disconnected) => break Undone::Over,
                Err(RecvTimeoutError::Timeout) => break Undone::TookTooLong,
            }
        };
        let _ = undone.set(why);
        self.roll_back(transaction);
    }

    /// Begins, if this is still the live attempt. Nobody else becomes that before the end.
    fn begin_held(&self, lease: &Lease) -> Result<Option<Transaction<'_>>, StoreError> {
        let begin = || {
            // Unchecked, because it is this thread's only one.
            Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)
        };
        let failed = |error| nothing_changed(&self.on.path, &Arc::new(error));
        let transaction = self.patiently(begin).map_err(failed)?;
        failpoint::reached("after BEGIN");
        self.identity.check()?;
        match self.on.records(&transaction).is_held(lease) {
            Ok(held) => Ok(held.then_some(transaction)),
            Err(Failure::Refused(error)) => Err(error),
            Err(Failure::Sqlite(error)) => Err(failed(error)),
        }
    }

    fn commit_held(
        &self,
        transaction: Transaction<'_>,
        lease: &Lease,
        written: Written,
    ) -> Result<Held, StoreError> {
        let records = self.on.records(&self.connection);
        let (before, after) = match written {
            Written::Outcome { .. } => ("before the outcome", "after the commit"),
            Written::Points { .. } => ("before the point", "after the point"),
        };
        failpoint::reached(before);
        let done = write(&records, lease, written).and_then(|held| {
            if held == Held::Applied {
                failpoint::reached("before the commit");
                self.execute("COMMIT")?;
                failpoint::reached(after);
            }
            Ok(held)
        });
        let touched = records.into_touched();
        match done {
            Ok(Held::Applied) => {
                self.watches.wake(&touched);
                Ok(Held::Applied)
            }
            other => {
                self.roll_back(transaction);
                other.map_err(|failure| match failure {
                    Failure::Refused(error) => error,
                    Failure::Sqlite(error) => store_error(&self.on.path, &Arc::new(error)),
                })
            }
        }
    }

    /// Whatever the handler has set the transaction to do at its end.
    fn roll_back(&self, transaction: Transaction<'_>) {
        if !transaction.is_autocommit() {
            let _ = self.execute("ROLLBACK");
        }
    }
}

fn write(records: &Records<'_>, lease: &Lease, written: Written) -> Result<Held, Failure> {
    match written {
        Written::Outcome { fingerprint, payload, retention } => {
            records.complete(lease, &fingerprint, &payload, retention)
        }
        Written::Points { points: Some(points), lease_for } => {
            records.keep(lease, &points, lease_for)
        }
        Written::Points { points: None, lease_for } => records.renew(lease, lease_for),
    }
}

/// Who ends transactions: the store alone. While a handler's code runs SQLite refuses every commit,
/// and tells of every rollback.
#[derive(Default)]
pub(crate) struct Ends(Arc<Watched>);

#[derive(Default)]
struct Watched {
    handlers: AtomicBool,
    ended: AtomicBool,
    /// In milliseconds of the monotonic clock.
    until: AtomicU64,
}

impl Ends {
    pub(crate) fn watch(&self, connection: &mut Connection, clock: &Arc<dyn Clock>) {
        let watched = self.0.clone();
        // True turns the commit into a rollback.
        let _ = connection.commit_hook(Some(move || {
            let refused = watched.handlers.load(Ordering::Relaxed);
            watched.ended.fetch_or(refused, Ordering::Relaxed);
            refused
        }));
        let watched = self.0.clone();
        let _ = connection.rollback_hook(Some(move || {
            let handlers = watched.handlers.load(Ordering::Relaxed);
            watched.ended.fetch_or(handlers, Ordering::Relaxed);
        }));
        let (watched, clock) = (self.0.clone(), clock.clone());
        // True interrupts the statement.
        let _ = connection.progress_handler(
            STEPS,
            Some(move || {
                watched.handlers.load(Ordering::Relaxed)
                    && milliseconds(clock.monotonic()) > watched.until.load(Ordering::Relaxed)
            }),
        );
    }

    /// Runs code of the handler's, its statements until then.
    fn handlers<T>(&self, until: Duration, work: impl FnOnce() -> T) -> T {
        self.0.ended.store(false, Ordering::Relaxed);
        self.0.until.store(milliseconds(until), Ordering::Relaxed);
        self.0.handlers.store(true, Ordering::Relaxed);
        let done = work();
        self.0.handlers.store(false, Ordering::Relaxed);
        done
    }

    /// Whether the handler's code has ended its transaction, or tried to.
    fn was_ended(&self) -> bool {
        self.0.ended.load(Ordering::Relaxed)
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
