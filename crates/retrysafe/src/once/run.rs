//! One call: what is said of it before it is awaited, and its way through the engine.

use std::{fmt, marker::PhantomData, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderValue, Response, header};
use retrysafe_core::{OnUnknownOutcome, Reconciled, Settings, Store, Unknown};
use serde::{Serialize, de::DeserializeOwned};
use tracing::Instrument as _;

use super::{
    Done, ErrorRules, OnceContext, OnceError,
    asked::{Asked, Unasked},
    work::Work,
};
use crate::{
    completer::KeptCall,
    engine::Permit,
    guard::{Guard, Place},
    observe::RequestOutcome,
};

/// A call of [`Once::run`](crate::Once::run). Awaiting it runs it.
///
/// ```
/// use retrysafe::{MemoryStore, Once, OnceError, Scope};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Debug, Serialize, Deserialize)]
/// enum Refusal { CardDeclined, BankIsBusy, ConnectionLost }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let once = Once::builder(MemoryStore::new()).build()?;
/// let charge = |answer: Refusal| {
///     once.run("charge", &Scope::shared(), "order-1", "12.50 EUR", |_| async { Err::<(), _>(answer) })
///         // The bank has not looked at it: the next try is as good as the first.
///         .release_if(|refusal| matches!(refusal, Refusal::BankIsBusy))
///         // The answer to this order, for every retry.
///         .keep_if(|refusal| matches!(refusal, Refusal::CardDeclined))
///         // All else may have charged the card: what follows is `OnUnknownOutcome`.
/// };
/// assert!(charge(Refusal::BankIsBusy).await.unwrap_err().is_definite());
/// assert!(!charge(Refusal::ConnectionLost).await.unwrap_err().is_definite());
/// assert!(charge(Refusal::CardDeclined).await.unwrap_err().is_definite());
///
/// let retry = charge(Refusal::BankIsBusy).await.unwrap_err();
/// assert!(matches!(retry, OnceError::Failed { error: Refusal::CardDeclined, replayed: true, .. }));
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing runs until it is awaited"]
pub struct OnceRun<S, H, T, E> {
    guard: Arc<Guard<S>>,
    asked: Result<Option<Asked>, Unasked>,
    handler: H,
    rules: ErrorRules<E>,
    completable: bool,
    value: PhantomData<fn() -> T>,
}

impl<S: Store, H, T, E: Send + 'static> OnceRun<S, H, T, E> {
    pub(crate) fn new(
        guard: Arc<Guard<S>>,
        asked: Result<Option<Asked>, Unasked>,
        handler: H,
        rules: ErrorRules<E>,
    ) -> Self {
        Self { guard, asked, handler, rules, completable: false, value: PhantomData }
    }

    /// A call that queues anyway, with its place if it has it already (E6).
    pub(crate) fn queued(mut self, place: Option<Permit>) -> Self {
        if let Ok(Some(asked)) = &mut self.asked {
            asked.place = place.map_or(Place::Queued, Place::Taken);
        }
        self
    }

    /// Frees the key after such errors: the next try runs. Only for errors of which it is certain
    /// that nothing was done.
    pub fn release_if(mut self, when: impl Fn(&E) -> bool + Send + Sync + 'static) -> Self {
        self.rules.release_if(when);
        self
    }

    /// Keeps such errors as the outcome, as JSON: every retry gets them. An error that is both kept
    /// and released is kept.
    pub fn keep_if(mut self, when: impl Fn(&E) -> bool + Send + Sync + 'static) -> Self
    where
        E: Serialize + DeserializeOwned,
    {
        self.rules.keep_if(when);
        self
    }

    /// How long the outcome answers retries, instead of the retention in the settings (E4), and how
    /// long an attempt that never completed is remembered (R8). That is never shorter than
    /// `max_execution` plus the lease.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.guard = remembering(&self.guard, retention);
        self.rules.retention = Some(retention);
        self
    }

    /// Keeps the call itself, with its scope, key and input, beside what its phases keep
    /// ([`OnceContext::phases`]), until it is finished: a [`Completer`](crate::Completer) can go on
    /// with it when its caller never comes back. They are kept as they are, in the service's own
    /// database.
    pub fn completable(mut self) -> Self {
        self.completable = true;
        self
    }

    /// Looks at the real world when nobody knows what an earlier attempt did, instead of what the
    /// settings say (D3). The operation is taken over first and the function runs under the lease of
    /// the new attempt; a panic counts as [`Reconciled::StillUnknown`], and so does a value that
    /// can't be written.
    ///
    /// ```
    /// use retrysafe::{MemoryStore, Once, Reconciled, Scope, Unknown};
    ///
    /// # async fn find_transfer(key: &str) -> Result<Option<u64>, std::io::Error> { Ok(None) }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let once = Once::builder(MemoryStore::new()).build()?;
    /// let done = once
    ///     .run("transfer", &Scope::shared(), "transfer-4711", &1250, |context| async move {
    ///         // ... hands `context.derive_key("bank")` to the bank ...
    ///         Ok::<u64, std::io::Error>(1)
    ///     })
    ///     .reconcile(|unknown: Unknown| async move {
    ///         match find_transfer(&unknown.context.derive_key("bank")).await {
    ///             Ok(Some(number)) => Reconciled::Happened(number),
    ///             Ok(None) => Reconciled::DidNotHappen,
    ///             Err(_) => Reconciled::StillUnknown,
    ///         }
    ///     })
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn reconcile<L, R>(mut self, look: L) -> Self
    where
        T: Serialize + 'static,
        L: Fn(Unknown) -> R + Send + Sync + 'static,
        R: Future<Output = Reconciled<T>> + Send + 'static,
    {
        self.guard = reconciling(&self.guard, look);
        self
    }
}

impl<S, H, F, T, E> IntoFuture for OnceRun<S, H, T, E>
where
    S: Store,
    H: FnOnce(OnceContext) -> F + Send + 'static,
    F: Future<Output = Result<T, E>> + Send + 'static,
    T: Serialize + DeserializeOwned + Send + 'static,
    E: Send + 'static,
{
    type Output = Result<Done<T>, OnceError<E>>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { guard, asked, handler, rules, completable, .. } = self;
        Box::pin(async move {
            let asked = match asked {
                Ok(Some(asked)) => asked,
                Ok(None) => {
                    let context = OnceContext::unnamed(guard.engine.entropy());
                    return rules.unprotected(handler(context).await);
                }
                Err(unasked) => {
                    guard.decided(RequestOutcome::Rejected, None, None, None, None);
                    return Err(match unasked {
                        Unasked::Problem(problem) => OnceError::Problem(*problem),
                        Unasked::Input(error) => OnceError::Input(error),
                    });
                }
            };
            let (id, span) = (asked.id, guard.span(&asked.id));
            let kept_by = rules.clone();
            let call = completable.then(|| KeptCall::of(&asked)).flatten();
            let work = Work::new(id, move |context: OnceContext| {
                let context = context.with_call(call);
                let attempt = context.attempt().map(|it| it.number());
                handler(context).map(move |result| kept_by.answer(result, attempt))
            });
            let settings = guard.settings.clone();
            let answer = guard.settle(work, asked).instrument(span).await;
            rules.read(answer, &settings.replay_marker).await
        })
    }
}

impl<S, H, T, E> fmt::Debug for OnceRun<S, H, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnceRun").finish_non_exhaustive()
    }
}

/// A guard that looks at the real world.
pub(crate) fn reconciling<S: Store, T, L, R>(guard: &Guard<S>, look: L) -> Arc<Guard<S>>
where
    T: Serialize + 'static,
    L: Fn(Unknown) -> R + Send + Sync + 'static,
    R: Future<Output = Reconciled<T>> + Send + 'static,
{
    let on_unknown_outcome = OnUnknownOutcome::reconcile(move |unknown| {
        look(unknown).map(|looked| match looked {
            Reconciled::Happened(value) => match happened(&value) {
                Ok(response) => Reconciled::Happened(response),
                Err(error) => {
                    let category = error.classify();
                    tracing::error!(?category, "what happened can't be kept: it stays unknown");
                    Reconciled::StillUnknown
                }
            },
            Reconciled::DidNotHappen => Reconciled::DidNotHappen,
            Reconciled::StillUnknown => Reconciled::StillUnknown,
        })
    });
    with(guard, |settings| settings.on_unknown_outcome = on_unknown_outcome)
}

/// A guard that remembers what it claims and what it finds out for so long (R8).
pub(crate) fn remembering<S: Store>(guard: &Guard<S>, retention: Duration) -> Arc<Guard<S>> {
    // E2: a record must not end while its attempt is still held.
    with(guard, |settings| settings.retention = retention.max(settings.keep_counters_for()))
}

/// The same guard for one call, or one batch, with other settings.
fn with<S: Store>(guard: &Guard<S>, change: impl FnOnce(&mut Settings)) -> Arc<Guard<S>> {
    let mut settings = Settings::clone(&guard.settings);
    change(&mut settings);
    Arc::new(Guard { settings: Arc::new(settings), ..Guard::clone(guard) })
}

/// A value as the record of its run would hold it.
fn happened(value: &impl Serialize) -> serde_json::Result<Response<Bytes>> {
    let mut response = Response::new(Bytes::from(serde_json::to_vec(value)?));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(response)
}
