//! The thread that writes: many calls, one flush.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, mpsc},
    thread,
};

use futures_util::future::BoxFuture;
use retrysafe_core::OperationId;
use tokio::sync::oneshot;

use super::{Begun, Entry, JournalError, Known, Settled};

/// What is written and read on that thread.
pub(super) trait Pages: Send + 'static {
    /// Makes the changes, all of them or none, and returns when they are on the disk.
    fn write(&mut self, changes: &[Change]) -> Result<Vec<Option<Begun>>, JournalError>;

    fn find(&mut self, operation: OperationId) -> Result<Option<Known>, JournalError>;

    fn unknown(&mut self) -> Result<Vec<Arc<Entry>>, JournalError>;
}

pub(super) enum Change {
    Begin(Arc<Entry>),
    Settle(OperationId, Settled),
}

type Reply<T> = oneshot::Sender<Result<T, JournalError>>;

enum Call {
    Begin(Arc<Entry>, Reply<Begun>),
    Settle(OperationId, Settled),
    Find(OperationId, Reply<Option<Known>>),
    Unknown(Reply<Vec<Arc<Entry>>>),
}

/// A handle on the thread. Dropping it waits until everything is written.
pub(super) struct Writer {
    calls: Option<mpsc::Sender<Call>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// How many changes are written at a time.
const MOST: usize = 1024;

impl Writer {
    pub(super) fn start(pages: impl Pages) -> Result<Self, JournalError> {
        let (calls, taken) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("retrysafe-journal".to_owned())
            .spawn(move || work(pages, &taken))
            .map_err(|error| JournalError::new("the journal's thread can't be started", error))?;
        Ok(Self { calls: Some(calls), thread: Some(thread) })
    }

    pub(super) fn begin(&self, entry: Arc<Entry>) -> BoxFuture<'_, Result<Begun, JournalError>> {
        self.ask(|reply| Call::Begin(entry, reply))
    }

    pub(super) fn settle(&self, operation: OperationId, settled: Settled) {
        // If the thread is gone, the operation is asked for again.
        let _ = self.calls.as_ref().map(|calls| calls.send(Call::Settle(operation, settled)));
    }

    pub(super) fn find(
        &self,
        operation: OperationId,
    ) -> BoxFuture<'_, Result<Option<Known>, JournalError>> {
        self.ask(|reply| Call::Find(operation, reply))
    }

    pub(super) fn unknown(&self) -> BoxFuture<'_, Result<Vec<Arc<Entry>>, JournalError>> {
        self.ask(Call::Unknown)
    }

    fn ask<T: Send + 'static>(
        &self,
        call: impl FnOnce(Reply<T>) -> Call,
    ) -> BoxFuture<'_, Result<T, JournalError>> {
        let (reply, answer) = oneshot::channel();
        // Sent here and not in the future: calls take effect in the order in which they are made.
        let _ = self.calls.as_ref().map(|calls| calls.send(call(reply)));
        Box::pin(async {
            answer.await.unwrap_or_else(|_| Err(JournalError::because("the journal has stopped")))
        })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.calls = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Writer")
    }
}

fn work(mut pages: impl Pages, calls: &mpsc::Receiver<Call>) {
    let mut waiting = VecDeque::new();
    while let Some(first) = waiting.pop_front().or_else(|| calls.recv().ok()) {
        let (mut changes, mut replies) = (Vec::new(), Vec::new());
        let mut next = Some(first);
        // Changes in a row share one flush; a question is answered after all changes before it.
        while let Some(call) = next.take() {
            match call {
                Call::Begin(entry, reply) => {
                    changes.push(Change::Begin(entry));
                    replies.push(Some(reply));
                }
                Call::Settle(operation, settled) => {
                    changes.push(Change::Settle(operation, settled));
                    replies.push(None);
                }
                question => {
                    waiting.push_back(question);
                    break;
                }
            }
            if changes.len() < MOST {
                next = calls.try_recv().ok();
            }
        }
        if !changes.is_empty() {
            answer(pages.write(&changes), replies);
        }
        match waiting.pop_front() {
            Some(Call::Find(operation, reply)) => _ = reply.send(pages.find(operation)),
            Some(Call::Unknown(reply)) => _ = reply.send(pages.unknown()),
            _ => {}
        }
    }
}

fn answer(written: Result<Vec<Option<Begun>>, JournalError>, replies: Vec<Option<Reply<Begun>>>) {
    match written {
        Ok(begun) => {
            for (reply, begun) in replies.into_iter().zip(begun) {
                if let (Some(reply), Some(begun)) = (reply, begun) {
                    let _ = reply.send(Ok(begun));
                }
            }
        }
        Err(error) => {
            let cause = std::error::Error::source(&error);
            tracing::warn!(error = %error, cause = ?cause, "the journal can't be written");
            for reply in replies.into_iter().flatten() {
                let _ = reply.send(Err(error.clone()));
            }
        }
    }
}
