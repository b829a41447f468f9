//! What a client does with its journal: notes an operation before it is sent, and what became of it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use retrysafe_core::{IdempotencyKey, OperationId, client::NoKey};

use crate::{
    Error,
    calls::{Logical, lock},
    journal::{Begun, Entry, Journal, Known, Settled},
};

/// The journal of a client, and what this process is in the middle of, so that nobody resumes it.
pub(crate) struct Journaling {
    pub(crate) journal: Arc<dyn Journal>,
    in_flight: Mutex<HashMap<OperationId, InFlight>>,
}

/// The calls of one operation that are being made.
#[derive(Default)]
struct InFlight {
    calls: usize,
    /// There were two at a time: that one of them did nothing says nothing of the other.
    joined: bool,
}

impl Journaling {
    pub(crate) fn new(journal: Arc<dyn Journal>) -> Self {
        Self { journal, in_flight: Mutex::default() }
    }

    pub(crate) fn is_in_flight(&self, operation: &OperationId) -> bool {
        lock(&self.in_flight).contains_key(operation)
    }

    /// Whether an operation that was unknown a while ago still is, and nobody is asking.
    pub(crate) async fn still_unknown(&self, operation: &OperationId) -> Result<bool, Error> {
        // In this order: a call says what became of it before it ends.
        if self.is_in_flight(operation) {
            return Ok(false);
        }
        Ok(matches!(self.journal.find(*operation).await?, Some(Known::Unknown(_))))
    }

    /// Notes an operation that is about to be sent, and says when it was first.
    pub(crate) async fn begin(
        &self,
        logical: &Logical<'_>,
        key: &IdempotencyKey,
        now: Duration,
    ) -> Result<(Noted<'_>, Begun), Error> {
        // What can't be sent again can't be resumed.
        let body = logical.body.ok_or(NoKey::StreamedBody)?;
        let operation = logical.operation_of(key);
        let noted = Noted::enter(self, operation);
        let entry = Entry::new(
            operation,
            key.clone(),
            logical.method.clone(),
            logical.url,
            logical.headers,
            Bytes::clone(body),
            now,
        );
        let begun = self.journal.begin(Arc::new(entry)).await?;
        Ok((noted, begun))
    }
}

/// An operation that is in the journal and in flight. Dropped without a word it stays unknown.
pub(crate) struct Noted<'a> {
    journaling: &'a Journaling,
    operation: OperationId,
    settled: Option<Settled>,
}

impl<'a> Noted<'a> {
    fn enter(journaling: &'a Journaling, operation: OperationId) -> Self {
        let mut in_flight = lock(&journaling.in_flight);
        let calls = in_flight.entry(operation).or_default();
        calls.calls += 1;
        calls.joined |= calls.calls > 1;
        drop(in_flight);
        Self { journaling, operation, settled: None }
    }

    /// Notes what became of it. It is the end of this call, so that who begins the same operation
    /// now finds either what was noted or nobody in flight.
    pub(crate) fn settle(mut self, settled: Settled) {
        self.settled = Some(settled);
    }

    /// The same, for when a body has come to its end.
    pub(crate) fn settle_later(&self, settled: Settled) -> impl FnOnce() + Send + Sync + 'static {
        let (journal, operation) = (self.journaling.journal.clone(), self.operation);
        move || journal.settle(operation, settled)
    }
}

impl Drop for Noted<'_> {
    fn drop(&mut self) {
        let mut in_flight = lock(&self.journaling.in_flight);
        let Some(calls) = in_flight.get_mut(&self.operation) else { return };
        match self.settled {
            Some(Settled::NotDone) if calls.joined => {}
            Some(settled) => self.journaling.journal.settle(self.operation, settled),
            None => {}
        }
        calls.calls -= 1;
        if calls.calls == 0 {
            in_flight.remove(&self.operation);
        }
    }
}
