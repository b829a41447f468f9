//! A transaction that is lent to the handler.

use std::{
    fmt, mem,
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use retrysafe_core::{
    Attempt, Claim, FromAttempt, Lease, NotLent, Points, StoreError, StoreErrorKind, Unit,
};
use sqlx::{Database, Transaction};
use tokio::time::Instant;

use super::points::Parts;

/// The transaction in which an operation is claimed, its work is done and its outcome is written.
///
/// It is a connection of the user's pool, so statements run on `&mut *transaction` as on any other.
/// Savepoints are fine: [`begin`](sqlx::Connection::begin) on it opens one. There is no way to commit:
/// that is the store's to do, when the handler has answered. What is committed or rolled back by hand
/// (`COMMIT` as a statement) is found out, and answered with 500.
///
/// Dropped, it goes back to the store, and can be taken again. One that outlives its handler is
/// rolled back.
///
/// A handler finds it by [`FromAttempt`]; in Axum by the extractor `Transaction` of
/// `retrysafe-axum`.
pub struct SharedTransaction<DB: Database> {
    slot: Arc<Slot<DB>>,
    // None only while it is dropped.
    transaction: Option<Transaction<'static, DB>>,
}

impl<DB: Database> FromAttempt for SharedTransaction<DB> {
    fn from_attempt(attempt: &Attempt) -> Result<Self, NotLent> {
        let slot = attempt.unit::<Slot<DB>>().ok_or(NotLent::Absent)?;
        let transaction = slot.lend()?;
        Ok(Self { slot, transaction: Some(transaction) })
    }
}

impl<DB: Database> Deref for SharedTransaction<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        match &self.transaction {
            Some(transaction) => transaction,
            None => unreachable!("it is there until it is dropped"),
        }
    }
}

impl<DB: Database> DerefMut for SharedTransaction<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        match &mut self.transaction {
            Some(transaction) => transaction,
            None => unreachable!("it is there until it is dropped"),
        }
    }
}

impl<DB: Database> Drop for SharedTransaction<DB> {
    fn drop(&mut self) {
        if let Some(transaction) = self.transaction.take() {
            self.slot.give_back(transaction);
        }
    }
}

impl<DB: Database> fmt::Debug for SharedTransaction<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedTransaction").finish_non_exhaustive()
    }
}

/// Where a transaction is while nobody works on it.
pub(crate) struct Slot<DB: Database> {
    state: Mutex<State<DB>>,
    undo: AtomicBool,
    /// Whether a part of the work may have been committed, and the claim with it.
    committed: AtomicBool,
    /// Whether a part is being done that has a name.
    named: AtomicBool,
    /// Whether something may have been written in no such part.
    loose: AtomicBool,
    /// Whether its parts are named by somebody.
    taken: AtomicBool,
    /// When what holds the operation between two parts was sent, the last commit or renewal. Nothing if
    /// a later one was undone with its transaction, or refused.
    held_since: Mutex<Option<Instant>>,
    parts: OnceLock<Known<DB>>,
}

/// What a slot has to know for more transactions than one.
struct Known<DB: Database> {
    core: Arc<dyn Parts<DB>>,
    lease: Lease,
    lease_for: Duration,
    /// Whether a retry can be told from another request.
    whole: bool,
}

enum State<DB: Database> {
    Here(Transaction<'static, DB>),
    Lent,
    /// It is being committed. Until the first one is, the claim is in it, and nobody else can see it.
    Committing,
    /// Everything so far is committed.
    Between,
    /// What was not committed is undone, the claim too.
    Spoiled,
    /// The handler has ended it by itself: nobody knows what it did.
    Escaped,
    Over,
}

/// A transaction at the end of its attempt.
pub(crate) enum Taken<DB: Database> {
    Whole(Transaction<'static, DB>),
    /// There is none: the last part is committed.
    Between,
    /// There is none: it was undone.
    Spoiled,
    /// There is none: the handler has ended it by itself.
    Escaped,
    /// Somebody kept it. It is rolled back when they let go of it.
    Kept,
}

/// A transaction in the middle of its attempt.
pub(super) enum Given<DB: Database> {
    Open(Transaction<'static, DB>),
    Between,
    Lent,
    Over,
}

impl<DB: Database> Slot<DB> {
    pub(crate) fn new(transaction: Transaction<'static, DB>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State::Here(transaction)),
            undo: AtomicBool::new(false),
            committed: AtomicBool::new(false),
            named: AtomicBool::new(false),
            loose: AtomicBool::new(false),
            taken: AtomicBool::new(false),
            held_since: Mutex::new(None),
            parts: OnceLock::new(),
        })
    }

    /// Lets it have more transactions than the first.
    pub(crate) fn know(&self, core: Arc<dyn Parts<DB>>, lease: &Lease, claim: &Claim) {
        let (lease_for, whole) = (claim.lease, claim.fingerprint.body.is_some());
        self.parts.get_or_init(|| Known { core, lease: lease.clone(), lease_for, whole });
    }

    pub(super) fn parts(&self) -> Result<(&dyn Parts<DB>, &Lease, Duration), StoreError> {
        let problem = || StoreError::new(StoreErrorKind::Misconfigured, "it was never lent");
        let known = self.parts.get().ok_or_else(problem)?;
        Ok((&*known.core, &known.lease, known.lease_for))
    }

    /// For good: nobody is lent it any more.
    pub(crate) fn take(&self) -> Taken<DB> {
        match mem::replace(&mut *self.state(), State::Over) {
            State::Here(transaction) => Taken::Whole(transaction),
            State::Between | State::Committing => Taken::Between,
            State::Spoiled => Taken::Spoiled,
            State::Escaped => Taken::Escaped,
            State::Lent | State::Over => Taken::Kept,
        }
    }

    /// Whether the record is kept without the work.
    pub(crate) fn is_undone(&self) -> bool {
        self.undo.load(Ordering::Acquire)
    }

    /// Whether something of the attempt may have been committed.
    pub(crate) fn is_committed(&self) -> bool {
        self.committed.load(Ordering::Acquire)
    }

    pub(crate) fn is_between(&self) -> bool {
        matches!(*self.state(), State::Between)
    }

    /// Whether it is between two parts, and a lease that nobody can have taken over yet holds it.
    pub(super) fn is_held(&self, lease_for: Duration) -> bool {
        let is_fresh = self.held_since().is_some_and(|since| since.elapsed() < lease_for);
        is_fresh && self.is_between()
    }

    /// A commit or a renewal that was sent then has been applied.
    pub(crate) fn held_from(&self, sent: Instant) {
        *self.held_since() = Some(sent);
    }

    /// The server has to be asked.
    pub(crate) fn doubt(&self) {
        *self.held_since() = None;
    }

    pub(super) fn take_parts(&self) -> Result<(), NotLent> {
        let known = self.parts.get().ok_or(NotLent::Absent)?;
        // F4: the record of a longer one says nothing of its body, so another request would be given
        // what was kept for this one.
        if !known.whole {
            return Err(NotLent::Unread);
        }
        match self.taken.swap(true, Ordering::AcqRel) {
            true => Err(NotLent::InUse),
            false => Ok(()),
        }
    }

    pub(super) fn is_loose(&self) -> bool {
        self.loose.load(Ordering::Acquire)
    }

    /// What is lent next belongs to a part that has a name.
    pub(super) fn named(&self) {
        self.named.store(true, Ordering::Release);
    }

    /// The transaction is out, to be committed: nothing is open any more.
    pub(super) fn committing(&self) -> Committing<'_, DB> {
        self.committed.store(true, Ordering::Release);
        self.named.store(false, Ordering::Release);
        let mut state = self.state();
        if let State::Lent = *state {
            *state = State::Committing;
        }
        Committing(self)
    }

    /// The handler has ended its transaction by itself: nothing of it can be committed any more.
    pub(super) fn escape(&self) {
        *self.state() = State::Escaped;
    }

    /// Takes it out.
    pub(super) fn give(&self) -> Given<DB> {
        let mut state = self.state();
        match mem::replace(&mut *state, State::Lent) {
            State::Here(transaction) => Given::Open(transaction),
            State::Between => {
                *state = State::Between;
                Given::Between
            }
            in_use @ (State::Lent | State::Committing) => {
                *state = in_use;
                Given::Lent
            }
            over @ (State::Spoiled | State::Escaped | State::Over) => {
                *state = over;
                Given::Over
            }
        }
    }

    /// Puts it back, or a new one.
    pub(super) fn put(&self, transaction: Transaction<'static, DB>) {
        let mut state = self.state();
        if let State::Lent | State::Between = *state {
            *state = State::Here(transaction);
            return;
        }
        drop(state);
        drop(transaction);
    }

    /// Undoes what is not committed.
    pub(super) fn let_go(&self) {
        let mut state = self.state();
        let after = match self.is_committed() {
            true => State::Between,
            false => State::Spoiled,
        };
        self.named.store(false, Ordering::Release);
        let undone = match &*state {
            State::Here(_) | State::Lent => mem::replace(&mut *state, after),
            State::Committing | State::Between => return,
            State::Spoiled | State::Escaped | State::Over => return,
        };
        drop(state);
        // The renewal that it began with is undone, too.
        self.doubt();
        // This rolls it back.
        drop(undone);
    }

    fn lend(&self) -> Result<Transaction<'static, DB>, NotLent> {
        match self.give() {
            Given::Open(transaction) => {
                let loose = !self.named.load(Ordering::Acquire);
                self.loose.fetch_or(loose, Ordering::AcqRel);
                Ok(transaction)
            }
            Given::Between => Err(NotLent::Between),
            Given::Lent => Err(NotLent::InUse),
            Given::Over => Err(NotLent::Over),
        }
    }

    fn give_back(&self, transaction: Transaction<'static, DB>) {
        let mut state = self.state();
        if let State::Lent = *state {
            *state = State::Here(transaction);
            return;
        }
        drop(state);
        // Too late. This rolls it back.
        drop(transaction);
    }

    fn held_since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.held_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing is left half done under this lock, so a panic elsewhere does not matter.
    fn state(&self) -> MutexGuard<'_, State<DB>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A transaction that is being committed, until that is answered, or nobody listens any more. Whether
/// it is committed then, the server has to say.
pub(super) struct Committing<'a, DB: Database>(&'a Slot<DB>);

impl<DB: Database> Drop for Committing<'_, DB> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        if let State::Committing = *state {
            *state = State::Between;
        }
    }
}

impl<DB: Database> Unit for Slot<DB> {
    fn undo(&self) {
        self.undo.store(true, Ordering::Release);
    }

    fn points(self: Arc<Self>) -> Option<Arc<dyn Points>> {
        Some(self)
    }
}
