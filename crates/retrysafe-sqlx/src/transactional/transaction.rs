//! A transaction that is lent to the handler.

use std::{
    fmt, mem,
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use retrysafe_core::{Attempt, FromAttempt, NotLent, Unit};
use sqlx::{Database, Transaction};

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
}

enum State<DB: Database> {
    Here(Transaction<'static, DB>),
    Lent,
    Over,
}

/// A transaction at the end of its attempt.
pub(crate) enum Taken<DB: Database> {
    Whole(Transaction<'static, DB>),
    /// Somebody kept it. It is rolled back when they let go of it.
    Kept,
}

impl<DB: Database> Slot<DB> {
    pub(crate) fn new(transaction: Transaction<'static, DB>) -> Arc<Self> {
        let state = Mutex::new(State::Here(transaction));
        Arc::new(Self { state, undo: AtomicBool::new(false) })
    }

    /// For good: nobody is lent it any more.
    pub(crate) fn take(&self) -> Taken<DB> {
        match mem::replace(&mut *self.state(), State::Over) {
            State::Here(transaction) => Taken::Whole(transaction),
            State::Lent | State::Over => Taken::Kept,
        }
    }

    /// Whether the record is kept without the work.
    pub(crate) fn is_undone(&self) -> bool {
        self.undo.load(Ordering::Acquire)
    }

    fn lend(&self) -> Result<Transaction<'static, DB>, NotLent> {
        let mut state = self.state();
        match mem::replace(&mut *state, State::Lent) {
            State::Here(transaction) => Ok(transaction),
            State::Lent => Err(NotLent::InUse),
            State::Over => {
                *state = State::Over;
                Err(NotLent::Over)
            }
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

    /// Nothing is left half done under this lock, so a panic elsewhere does not matter.
    fn state(&self) -> MutexGuard<'_, State<DB>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<DB: Database> Unit for Slot<DB> {
    fn undo(&self) {
        self.undo.store(true, Ordering::Release);
    }
}
