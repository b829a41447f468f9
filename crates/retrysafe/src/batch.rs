//! Batches: many items, each an operation of its own, so that a batch that was cut off goes on where
//! it was when it is started again.

use std::{
    collections::HashSet,
    fmt,
    marker::PhantomData,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use futures_util::{
    FutureExt as _, Stream, StreamExt as _,
    stream::{self, FuturesUnordered},
};
use retrysafe_core::{OperationId, Reconciled, Scope, Store, Unknown};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    task::coop::consume_budget,
    time::{Instant, timeout_at},
};

use crate::{
    engine::Permit,
    once::{Done, ErrorRules, Once, OnceContext, OnceError, OnceRun},
};

/// A batch of [`Once::run_each`]. Awaiting it runs it to its end and gives a [`BatchReport`];
/// [`into_stream`](Self::into_stream) gives each item as it is finished.
///
/// ```
/// use retrysafe::{MemoryStore, Once, Scope};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let once = Once::builder(MemoryStore::new()).build()?;
/// let import = |lines: Vec<&'static str>| {
///     once.run_each(
///         "import",
///         &Scope::shared(),
///         lines,
///         |line| format!("line-{line}"),
///         |line, _| async move { Ok::<usize, std::io::Error>(line.len()) },
///     )
///     .concurrency(8)
/// };
/// let report = import(vec!["one", "two"]).await;
/// assert_eq!((report.executed, report.replayed, report.failed), (2, 0, 0));
///
/// // The same again, and one more: what is finished is skipped, and its result returned.
/// let report = import(vec!["one", "two", "three"]).await;
/// assert_eq!((report.executed, report.replayed, report.failed), (1, 2, 0));
/// let lengths: Vec<_> = report.items.iter().flatten().map(|done| done.value).collect();
/// assert_eq!(lengths, [3, 3, 5]);
/// # Ok(())
/// # }
/// ```
///
/// - The **item** is the input of its run: what is compared between the first time and the next. The
///   operation's name and the scope are the same for all.
/// - Items are taken from their iterator as there is room, so a batch may be longer than memory. Its
///   report holds every result; a stream holds none.
/// - **Two items with one key** in one batch run one after the other, in their order, as if the later
///   one were a retry of the earlier: it gets the same result if it is the same item, and is
///   `key_reused` if it is another. Those behind it wait until it has started.
/// - A failed item does not stop the others.
/// - Where the engine is [bounded](crate::EngineBuilder::max_in_flight), items wait for their place:
///   for one of their own batch, or for as long as an execution may take
///   ([`Settings::max_execution`](crate::Settings::max_execution)). After that others are in the way
///   for good, and they are refused as `overloaded`.
///
/// # Cancel safety
///
/// Dropping the batch, or its stream, starts nothing more. What runs goes on, and its outcome is
/// kept (E1).
#[must_use = "nothing runs until it is awaited"]
pub struct Batch<S, I, KeyOf, H, T, E> {
    once: Once<S>,
    operation: Arc<str>,
    scope: Scope,
    items: I,
    key_of: KeyOf,
    handler: Arc<H>,
    rules: ErrorRules<E>,
    concurrency: usize,
    progress: Option<Watcher>,
    value: PhantomData<fn() -> T>,
}

type Watcher = Box<dyn FnMut(&BatchProgress) + Send>;

/// How far a batch has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BatchProgress {
    /// The items whose handler ran, and gave a value.
    pub executed: usize,
    /// The items that were finished before.
    pub replayed: usize,
    /// The items without a value: their [`OnceError`] says why, and whether that is definite.
    pub failed: usize,
    /// How many items there are, if their iterator knows.
    pub total: Option<usize>,
}

/// An item of a batch that is finished.
#[derive(Debug)]
#[non_exhaustive]
pub struct BatchItem<T, E> {
    /// Its place in the batch, from 0.
    pub index: usize,
    /// What came of it.
    pub result: Result<Done<T>, OnceError<E>>,
}

/// What came of a batch.
#[derive(Debug)]
#[non_exhaustive]
pub struct BatchReport<T, E> {
    /// How many items' handlers ran, and gave a value.
    pub executed: usize,
    /// How many items were finished before.
    pub replayed: usize,
    /// How many items have no value.
    pub failed: usize,
    /// What came of each item, in the order of the items.
    pub items: Vec<Result<Done<T>, OnceError<E>>>,
}

impl BatchProgress {
    /// How many items are finished, whatever came of them.
    pub fn finished(&self) -> usize {
        self.executed + self.replayed + self.failed
    }

    fn count<T, E>(&mut self, result: &Result<Done<T>, OnceError<E>>) {
        match result {
            Ok(done) if done.replayed => self.replayed += 1,
            Ok(_) => self.executed += 1,
            Err(_) => self.failed += 1,
        }
    }
}

impl<S, I, KeyOf, H, T, E> Batch<S, I, KeyOf, H, T, E>
where
    S: Store,
    E: Send + 'static,
{
    pub(crate) fn new(
        once: Once<S>,
        operation: &str,
        scope: &Scope,
        items: I,
        key_of: KeyOf,
        handler: H,
    ) -> Self {
        Self {
            once,
            operation: operation.into(),
            scope: scope.clone(),
            items,
            key_of,
            handler: Arc::new(handler),
            rules: ErrorRules::default(),
            concurrency: 16,
            progress: None,
            value: PhantomData,
        }
    }

    /// How many items may be under way at once. 16 by default; 0 counts as 1.
    pub fn concurrency(mut self, items: usize) -> Self {
        self.concurrency = items.max(1);
        self
    }

    /// Calls a function after each item, from the task that awaits the batch.
    pub fn on_progress(mut self, show: impl FnMut(&BatchProgress) + Send + 'static) -> Self {
        self.progress = Some(Box::new(show));
        self
    }

    /// As [`OnceRun::release_if`], for every item.
    pub fn release_if(mut self, when: impl Fn(&E) -> bool + Send + Sync + 'static) -> Self {
        self.rules.release_if(when);
        self
    }

    /// As [`OnceRun::keep_if`], for every item.
    pub fn keep_if(mut self, when: impl Fn(&E) -> bool + Send + Sync + 'static) -> Self
    where
        E: Serialize + DeserializeOwned,
    {
        self.rules.keep_if(when);
        self
    }

    /// As [`OnceRun::retention`], for every item.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.once = self.once.remembering(retention);
        self.rules.retention = Some(retention);
        self
    }

    /// As [`OnceRun::reconcile`], for every item: the key in the context says which it is.
    pub fn reconcile<L, R>(mut self, look: L) -> Self
    where
        T: Serialize + 'static,
        L: Fn(Unknown) -> R + Send + Sync + 'static,
        R: Future<Output = Reconciled<T>> + Send + 'static,
    {
        self.once = self.once.reconciling(look);
        self
    }
}

impl<S, I, K, KeyOf, H, F, T, E> Batch<S, I, KeyOf, H, T, E>
where
    S: Store,
    I: Iterator<Item: Serialize + Send + 'static> + Send + 'static,
    KeyOf: FnMut(&I::Item) -> K + Send + 'static,
    K: AsRef<str>,
    H: Fn(I::Item, OnceContext) -> F + Send + Sync + 'static,
    F: Future<Output = Result<T, E>> + Send + 'static,
    T: Serialize + DeserializeOwned + Send + 'static,
    E: Send + 'static,
{
    /// The items as they are finished, in no particular order. Nothing runs until it is polled; a
    /// handler that runs needs no polling to go on.
    pub fn into_stream(self) -> impl Stream<Item = BatchItem<T, E>> + Send {
        let (_, total) = self.items.size_hint();
        let total = total.filter(|total| self.items.size_hint().0 == *total);
        let progress = BatchProgress { total, ..BatchProgress::default() };
        let running = Running {
            batch: self,
            taken: 0,
            held: None,
            busy: HashSet::new(),
            runs: FuturesUnordered::new(),
            until: None,
            progress,
        };
        stream::unfold(running, |mut running| async move {
            let item = running.next().await?;
            Some((item, running))
        })
    }
}

impl<S, I, K, KeyOf, H, F, T, E> IntoFuture for Batch<S, I, KeyOf, H, T, E>
where
    S: Store,
    I: Iterator<Item: Serialize + Send + 'static> + Send + 'static,
    KeyOf: FnMut(&I::Item) -> K + Send + 'static,
    K: AsRef<str>,
    H: Fn(I::Item, OnceContext) -> F + Send + Sync + 'static,
    F: Future<Output = Result<T, E>> + Send + 'static,
    T: Serialize + DeserializeOwned + Send + 'static,
    E: Send + 'static,
{
    type Output = BatchReport<T, E>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let mut counted = BatchProgress::default();
            let mut finished = Vec::new();
            let mut items = pin!(self.into_stream());
            while let Some(item) = items.next().await {
                counted.count(&item.result);
                finished.push(item);
            }
            finished.sort_unstable_by_key(|item| item.index);
            BatchReport {
                executed: counted.executed,
                replayed: counted.replayed,
                failed: counted.failed,
                items: finished.into_iter().map(|item| item.result).collect(),
            }
        })
    }
}

/// A batch under way.
struct Running<S, I: Iterator, KeyOf, H, T, E> {
    batch: Batch<S, I, KeyOf, H, T, E>,
    taken: usize,
    /// An item whose key is that of one that runs.
    held: Option<Next<I::Item>>,
    busy: HashSet<OperationId>,
    runs: FuturesUnordered<ItemRun<T, E>>,
    /// Until when a place is waited for that others hold, if there has been none.
    until: Option<Instant>,
    progress: BatchProgress,
}

type Finished<T, E> = (Option<OperationId>, BatchItem<T, E>);
type ItemRun<T, E> = Pin<Box<dyn Future<Output = Finished<T, E>> + Send>>;

/// An item that is about to start. Its key is made once: the function may give another the next time.
struct Next<I> {
    index: usize,
    item: I,
    key: String,
    /// `None` for a key that is none, which is refused at once.
    id: Option<OperationId>,
}

impl<S, I, K, KeyOf, H, F, T, E> Running<S, I, KeyOf, H, T, E>
where
    S: Store,
    I: Iterator<Item: Serialize + Send + 'static> + Send + 'static,
    KeyOf: FnMut(&I::Item) -> K + Send + 'static,
    K: AsRef<str>,
    H: Fn(I::Item, OnceContext) -> F + Send + Sync + 'static,
    F: Future<Output = Result<T, E>> + Send + 'static,
    T: Serialize + DeserializeOwned + Send + 'static,
    E: Send + 'static,
{
    async fn next(&mut self) -> Option<BatchItem<T, E>> {
        // Where nothing has to be waited for, such as a store in memory, others have their turn as well.
        consume_budget().await;
        let (id, item) = loop {
            let Some(next) = self.upcoming() else { break self.runs.next().await? };
            let place = match self.place().await {
                Ok(place) => place,
                Err(finished) => {
                    self.held = Some(next);
                    break finished;
                }
            };
            self.busy.extend(next.id);
            // At once: an item that is not polled, because nobody asks for the next, holds a place.
            let mut run = self.start(next, place);
            match run.as_mut().now_or_never() {
                Some(finished) => break finished,
                None => self.runs.push(run),
            }
        };
        if let Some(id) = id {
            self.busy.remove(&id);
        }
        self.progress.count(&item.result);
        if let Some(show) = &mut self.batch.progress {
            show(&self.progress);
        }
        Some(item)
    }

    /// The item that may start now, if there is one.
    fn upcoming(&mut self) -> Option<Next<I::Item>> {
        if self.runs.len() >= self.batch.concurrency {
            return None;
        }
        let next = self.held.take().or_else(|| self.take())?;
        if next.id.is_some_and(|id| self.busy.contains(&id)) {
            self.held = Some(next);
            return None;
        }
        Some(next)
    }

    /// A place for an item that is about to start (E6), unless another is finished first. `None` if
    /// others have held all places for as long as an execution may take: they may be waiting for this
    /// batch, so its items are refused like anybody else.
    async fn place(&mut self) -> Result<Option<Permit>, Finished<T, E>> {
        let once = &self.batch.once;
        let place = match once.engine().permit() {
            Some(place) => Some(place),
            None if self.runs.is_empty() => {
                let longest = Instant::now() + once.settings().max_execution;
                let until = *self.until.get_or_insert(longest);
                timeout_at(until, once.engine().place()).await.ok()
            }
            // One of these is finished in any case.
            None => tokio::select! {
                Some(finished) = self.runs.next() => return Err(finished),
                place = once.engine().place() => Some(place),
            },
        };
        if place.is_some() {
            self.until = None;
        }
        Ok(place)
    }

    fn take(&mut self) -> Option<Next<I::Item>> {
        let item = self.batch.items.next()?;
        let index = self.taken;
        self.taken += 1;
        let key = (self.batch.key_of)(&item).as_ref().to_owned();
        let id = self.batch.once.operation_id(&self.batch.scope, &key).ok();
        Some(Next { index, item, key, id })
    }

    fn start(&self, next: Next<I::Item>, place: Option<Permit>) -> ItemRun<T, E> {
        let Next { index, item, key, id } = next;
        let batch = &self.batch;
        let handler = batch.handler.clone();
        let run: OnceRun<S, _, T, E> =
            batch.once.run_item(&batch.operation, &batch.scope, &key, item, &batch.rules, handler);
        Box::pin(
            run.queued(place).into_future().map(move |result| (id, BatchItem { index, result })),
        )
    }
}

impl<S, I, KeyOf, H, T, E> fmt::Debug for Batch<S, I, KeyOf, H, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("concurrency", &self.concurrency).finish_non_exhaustive()
    }
}
