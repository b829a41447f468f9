//! The work of one attempt, and the transaction that it is done in.

use std::{
    fmt, mem,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    sync::{
        Arc, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use bytes::Bytes;
use retrysafe_core::{
    Attempt, Claim, Fingerprint, FromAttempt, Held, Lease, NotLent, PointFuture, Points,
    StoreError, StoreErrorKind, Unit,
};
use rusqlite::Transaction;
use tokio::sync::{Mutex, oneshot};

use crate::{
    SqliteStore,
    hold::{Asked, Hold, Written},
    records::Records,
    worker::Abandoned,
};

/// The transaction in which an operation's work is done and its outcome is written.
///
/// It begins with the first [`run`](Self::run), and everything that is run belongs to it. There is no
/// way to commit: that is the store's to do, when the handler has answered; a commit by hand (`COMMIT`
/// as a statement) is refused by SQLite, and answered with 500. Savepoints are fine.
///
/// A handler finds it by [`FromAttempt`]; in Axum by the extractor `Transaction` of `retrysafe-axum`.
#[derive(Clone)]
pub struct SqliteTransaction(Arc<Work>);

/// Why a transaction is no longer there. Nothing of it has happened.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Undone {
    /// It has held the only writer for too long
    /// ([`hold`](crate::TransactionalSqliteBuilder::hold)).
    #[error("the transaction took too long: others wait for the only writer")]
    TookTooLong,
    /// It was committed or rolled back by hand, which is not the handler's to do; or SQLite had to
    /// roll it back, because the disk is full.
    #[error("the transaction was ended, and not by the store")]
    EndedByHand,
    /// Earlier work in it has panicked.
    #[error("work in the transaction has failed")]
    Failed,
    /// Another attempt has taken the operation over.
    #[error("another attempt has taken over")]
    Lost,
    /// The attempt has ended.
    #[error("the attempt is over")]
    Over,
    /// It could not begin, or not be committed.
    #[error("the transaction could not begin, or not be committed: {0}")]
    Store(#[source] Arc<StoreError>),
}

impl SqliteTransaction {
    /// Runs something on the thread that writes, in the transaction of this attempt. It may block,
    /// and everybody else who writes waits for it: statements, and nothing slow between them.
    ///
    /// What it wrote before it failed stays in the transaction: answer with an error, or roll back
    /// to a savepoint of your own.
    ///
    /// # Errors
    ///
    /// [`Undone`] if there is no such transaction any more, or none could begin. Nothing of it has
    /// happened, and a 2xx is answered with 503 instead.
    ///
    /// # Panics
    ///
    /// If `work` does: the transaction is rolled back.
    ///
    /// # Cancel safety
    ///
    /// Work that was sent is done, as part of the transaction, whoever waits for it.
    pub async fn run<T, W>(&self, work: W) -> Result<T, Undone>
    where
        W: FnOnce(&mut Transaction<'_>) -> T + Send + 'static,
        T: Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let undone = self
            .0
            .ask(move |transaction| {
                let done = catch_unwind(AssertUnwindSafe(|| work(transaction)));
                let whole = done.is_ok();
                let _ = reply.send(done);
                whole
            })
            .await?;
        match answer.await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(panic)) => resume_unwind(panic),
            Err(_) => Err(undone.get().cloned().unwrap_or(Undone::Over)),
        }
    }
}

impl FromAttempt for SqliteTransaction {
    fn from_attempt(attempt: &Attempt) -> Result<Self, NotLent> {
        attempt.unit::<Work>().map(Self).ok_or(NotLent::Absent)
    }
}

impl fmt::Debug for SqliteTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteTransaction").finish_non_exhaustive()
    }
}

impl Undone {
    pub(super) fn into_store_error(self, path: &Path) -> StoreError {
        let kind = match self {
            Self::EndedByHand => StoreErrorKind::Escaped,
            _ => StoreErrorKind::Unavailable,
        };
        StoreError::new(kind, format!("SQLite file {path:?}: {self}"))
    }
}

/// The work of an attempt.
pub(crate) struct Work {
    records: SqliteStore,
    lease: Lease,
    lease_for: Duration,
    retention: Duration,
    hold: Duration,
    undo: AtomicBool,
    /// Whether there are phases.
    taken: AtomicBool,
    /// Whether a retry can be told from another request.
    whole: bool,
    /// Held by who begins or ends the transaction.
    turn: Mutex<()>,
    state: std::sync::Mutex<State>,
}

enum State {
    /// Nothing is open.
    Closed,
    Open(Open),
    Over,
}

/// A transaction.
pub(super) struct Open {
    /// Dropped, it is rolled back.
    ask: mpsc::Sender<Asked>,
    undone: Arc<OnceLock<Undone>>,
    /// Begun by a handler that writes without naming a step.
    loose: bool,
}

/// What there is to commit with the outcome.
pub(super) enum Ended {
    With(Open),
    /// Nothing, or nothing that should stay.
    Without,
    /// There was something.
    Undone(Undone),
}

impl Work {
    pub(super) fn new(records: SqliteStore, lease: Lease, claim: &Claim, hold: Duration) -> Self {
        let (lease_for, retention) = (claim.lease, claim.retention);
        let whole = claim.fingerprint.body.is_some();
        let (undo, taken, turn) = (AtomicBool::new(false), AtomicBool::new(false), Mutex::new(()));
        let state = std::sync::Mutex::new(State::Closed);
        Self { records, lease, lease_for, retention, hold, undo, taken, whole, turn, state }
    }

    pub(super) fn is_of(&self, lease: &Lease) -> bool {
        self.lease.owner == lease.owner
    }

    /// How long the counters of an attempt that was undone are kept: no shorter than any attempt may
    /// live.
    pub(super) fn retention(&self) -> Duration {
        self.retention
    }

    /// For good: nothing is run any more.
    pub(super) fn end(&self) -> Ended {
        let state = mem::replace(&mut *self.state(), State::Over);
        match state {
            _ if self.undo.load(Ordering::Acquire) => Ended::Without,
            State::Closed => Ended::Without,
            State::Open(open) => match open.undone.get() {
                Some(why) => Ended::Undone(why.clone()),
                None => Ended::With(open),
            },
            State::Over => Ended::Undone(Undone::Over),
        }
    }

    /// Sends work to the transaction; answers where it will be said why there is none any more.
    async fn ask(
        &self,
        work: impl FnOnce(&mut Transaction<'_>) -> bool + Send + 'static,
    ) -> Result<Arc<OnceLock<Undone>>, Undone> {
        let _turn = self.turn.lock().await;
        if !self.opened(true).await? {
            return Err(Undone::Lost);
        }
        let state = self.state();
        let State::Open(open) = &*state else { return Err(Undone::Over) };
        match open.ask.send(Asked::Run(Box::new(work))) {
            Ok(()) => Ok(open.undone.clone()),
            Err(_) => Err(open.why()),
        }
    }

    /// Makes sure that a transaction is open; `false` if another attempt has taken over.
    async fn opened(&self, loose: bool) -> Result<bool, Undone> {
        match &*self.state() {
            State::Open(_) => return Ok(true),
            State::Over => return Err(Undone::Over),
            State::Closed => {}
        }
        let (granted, answer) = oneshot::channel();
        let (ask, asked) = mpsc::channel();
        let undone = Arc::new(OnceLock::new());
        let (lease, longest) = (self.lease.clone(), self.hold);
        let hold = Hold { lease, longest, granted, asked, undone: undone.clone() };
        let refused = |error| Undone::Store(Arc::new(error));
        self.records.shared.writer.lend(hold).await.map_err(refused)?;
        let is_held = answer.await.map_err(|_| Undone::Over)?.map_err(refused)?;
        let mut state = self.state();
        if let State::Over = *state {
            return Err(Undone::Over);
        }
        if is_held {
            *state = State::Open(Open { ask, undone, loose });
        }
        Ok(is_held)
    }

    /// Commits what is open, with what is kept; by who has the turn.
    async fn keep(&self, points: Option<Bytes>) -> Result<bool, StoreError> {
        if let Some(points) = &points {
            self.records.check_size(points)?;
        }
        if !self.opened(false).await.map_err(|why| self.failed(why))? {
            return Ok(false);
        }
        // Dropped while it is under way, it is committed or not, and nothing is open.
        let state = mem::replace(&mut *self.state(), State::Closed);
        let State::Open(open) = state else {
            *self.state() = State::Over;
            return Err(self.failed(Undone::Over));
        };
        let written = Written::Points { points, lease_for: self.lease_for };
        match open.commit(written).await {
            Ok(held) => Ok(held == Held::Applied),
            Err(why) => Err(self.failed(why)),
        }
    }

    /// Nothing is left half done under this lock, so a panic elsewhere does not matter.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, why: Undone) -> StoreError {
        why.into_store_error(&self.records.shared.path)
    }
}

impl Open {
    fn why(&self) -> Undone {
        self.undone.get().cloned().unwrap_or(Undone::Over)
    }

    async fn commit(self, written: Written) -> Result<Held, Undone> {
        let (reply, answer) = oneshot::channel();
        if self.ask.send(Asked::Commit(written, reply)).is_err() {
            return Err(self.why());
        }
        match answer.await {
            Ok(held) => held.map_err(|error| Undone::Store(Arc::new(error))),
            Err(_) => Err(self.why()),
        }
    }

    /// # Errors
    ///
    /// Never that it does not fit: without its work there is nothing shorter to say.
    pub(super) async fn complete(
        self,
        fingerprint: Fingerprint,
        payload: Bytes,
        retention: Duration,
    ) -> Result<Held, Undone> {
        self.commit(Written::Outcome { fingerprint, payload, retention }).await
    }
}

impl Unit for Work {
    fn undo(&self) {
        self.undo.store(true, Ordering::Release);
    }

    fn points(self: Arc<Self>) -> Option<Arc<dyn Points>> {
        Some(self)
    }
}

impl Points for Work {
    fn take(&self) -> Result<(), NotLent> {
        // F4: the record of a longer one says nothing of its body, so another request would be given
        // what was kept for this one.
        if !self.whole {
            return Err(NotLent::Unread);
        }
        match self.taken.swap(true, Ordering::AcqRel) {
            true => Err(NotLent::InUse),
            false => Ok(()),
        }
    }

    fn kept(&self) -> PointFuture<'_, Option<Bytes>> {
        Box::pin(async {
            let id = self.lease.id;
            let points = move |records: &Records<'_>| records.points(&id);
            self.records.shared.reader.ask(Abandoned::Skipped, points).await
        })
    }

    fn open(&self) -> PointFuture<'_, bool> {
        Box::pin(async {
            let _turn = self.turn.lock().await;
            self.opened(false).await.map_err(|why| self.failed(why))
        })
    }

    fn commit(&self, points: Option<Bytes>) -> PointFuture<'_, bool> {
        Box::pin(async {
            let _turn = self.turn.lock().await;
            let is_closed = match &*self.state() {
                State::Open(Open { loose: true, .. }) => {
                    let problem = "what is written before a phase is written in a step";
                    return Err(StoreError::new(StoreErrorKind::Misconfigured, problem));
                }
                state => matches!(state, State::Closed),
            };
            if !is_closed || points.is_some() {
                return self.keep(points).await;
            }
            // The claim is committed, and there is nothing else. But somebody may have taken over.
            let lease = self.lease.clone();
            let is_held = move |records: &Records<'_>| records.is_held(&lease);
            self.records.shared.reader.ask(Abandoned::Skipped, is_held).await
        })
    }

    fn roll_back(&self) {
        let mut state = self.state();
        if let State::Open(_) = &*state {
            *state = State::Closed;
        }
    }
}
