//! What a client does with its journal: notes an operation before it is sent, and what became of it.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use retrysafe_core::{IdempotencyKey, OperationId, client::NoKey};

use crate::{
    Error,
    calls::{Logical, lock},
    journal::{Begun, Entry, Journal, Settled},
};

/// The journal of a client, and what this process is in the middle of, so that nobody resumes it.
pub(crate) struct Journaling {
    pub(crate) journal: Arc<dyn Journal>,
    in_flight: Mutex<HashSet<OperationId>>,
}

impl Journaling {
    pub(crate) fn new(journal: Arc<dyn Journal>) -> Self {
        Self { journal, in_flight: Mutex::default() }
    }

    pub(crate) fn is_in_flight(&self, operation: &OperationId) -> bool {
        lock(&self.in_flight).contains(operation)
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
    entered: bool,
}

impl<'a> Noted<'a> {
    fn enter(journaling: &'a Journaling, operation: OperationId) -> Self {
        let entered = lock(&journaling.in_flight).insert(operation);
        Self { journaling, operation, entered }
    }

    pub(crate) fn settle(&self, settled: Settled) {
        self.journaling.journal.settle(self.operation, settled);
    }

    /// The same, for when a body has come to its end.
    pub(crate) fn settle_later(&self, settled: Settled) -> impl FnOnce() + Send + Sync + 'static {
        let (journal, operation) = (self.journaling.journal.clone(), self.operation);
        move || journal.settle(operation, settled)
    }
}

impl Drop for Noted<'_> {
    fn drop(&mut self) {
        if self.entered {
            lock(&self.journaling.in_flight).remove(&self.operation);
        }
    }
}
