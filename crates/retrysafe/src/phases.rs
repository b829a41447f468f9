//! Work in phases: what is known between calls to other services is committed, so that a retry after
//! a crash goes on from there.

use std::{
    collections::{BTreeMap, HashSet},
    error::Error,
    fmt,
    marker::PhantomData,
    sync::Arc,
};

use bytes::Bytes;
use retrysafe_core::{Attempt, Code, FromAttempt, NotLent, Points, Problem, StoreError};
use serde::{Serialize, de::DeserializeOwned};

/// An attempt in phases, on a store that commits records with the work. `T` is the transaction that
/// the store lends.
///
/// A handler that calls other services is cut at each call: nothing can undo a charge, and no
/// transaction should stay open while a bank thinks. So it is written as a row of named parts, each
/// of which is *kept*: done once, and given back as it was to every later attempt, which goes on from
/// the last.
///
/// - A [`phase`](Self::phase) is a call to another service. What was done before is committed first,
///   with the claim, and nothing is open during the call. It gets a key that is the same in every
///   attempt: a process that dies before the result is kept sends the same call again.
/// - A [`step`](Self::step) is work of our own between two calls: what it writes and its result are
///   committed together.
/// - What comes after the last call is written in [`transaction`](Self::transaction), and commits with
///   the answer.
///
/// ```
/// # use retrysafe::{Attempt, FromAttempt, NotLent};
/// # struct SqlTransaction;
/// # impl SqlTransaction { async fn execute(&mut self, _: &str) -> Result<u64, NotLent> { Ok(1) } }
/// # impl FromAttempt for SqlTransaction {
/// #     fn from_attempt(_: &Attempt) -> Result<Self, NotLent> { Err(NotLent::Absent) }
/// # }
/// # async fn call_the_processor(key: String) -> Result<String, NotLent> { Ok(key) }
/// use retrysafe::{PhaseError, Phases};
///
/// async fn pay(mut phases: Phases<SqlTransaction>) -> Result<String, PhaseError<NotLent>> {
///     phases
///         .step("reserve", |mut transaction| async move {
///             transaction.execute("UPDATE stock SET left = left - 1").await
///         })
///         .await?;
///     let charge = phases.phase("charge", call_the_processor).await?;
///     let mut transaction = phases.transaction().await.map_err(PhaseError::or_failed)?;
///     transaction.execute("INSERT INTO payment ...").await.map_err(PhaseError::Failed)?;
///     Ok(charge)
/// }
/// ```
///
/// A handler gets it where it gets the transaction: by [`FromAttempt`], from a
/// [`OnceContext`](crate::OnceContext), in Axum by the extractor `Transaction`.
///
/// # What becomes of an attempt
///
/// Until something was committed, what becomes of it is the store's to say. From then on:
///
/// - An answer that is kept finishes it, and what was kept of its parts is let go. A refusal (4xx or
///   5xx that is kept) undoes what is in the transaction, and *not* the parts: a step that has to be
///   taken back is taken back by another step.
/// - Whatever else becomes of it, a crash, a panic, a 5xx, an answer that is released, its outcome is
///   unknown, and the next attempt goes on from the last part. That is for the same request only: the
///   key stays its own. A layer that is told to `refuse` unknown outcomes refuses this one, too.
/// - A claim that is committed has a lease, which is renewed. An attempt that has lost it can't commit
///   anything any more: [`PhaseError::Lost`].
///
/// # Rules
///
/// - The handler runs from its beginning in every attempt, so everything that has an effect is in a
///   part, and each part has a name of its own. What is between them should depend on the request and
///   on what parts have given.
/// - A transaction that is taken in another way before a phase is refused: its work would be done
///   again.
/// - A request that is longer than what is read before the claim (`inline_body`) has none
///   ([`NotLent::Unread`]): nobody could tell a retry from another request, which would be given what
///   was kept.
/// - Results are kept as JSON, all of an operation's in one value: identifiers, no documents. They are
///   not encrypted by a codec around the store.
pub struct Phases<T> {
    attempt: Attempt,
    points: Arc<dyn Points>,
    /// What was kept, by name, as JSON; once it has been looked up.
    kept: Option<BTreeMap<String, String>>,
    /// Whether it can be seen that there are phases.
    marked: bool,
    /// Whether a commit was begun whose end was not seen. What is kept is not known here any more, and
    /// keeping something else would lose it.
    in_doubt: bool,
    /// The call, if it is kept as well.
    call: Option<Arc<str>>,
    named: HashSet<String>,
    lends: PhantomData<fn() -> T>,
}

/// Why a part of an attempt has no result.
#[derive(Debug)]
#[non_exhaustive]
pub enum PhaseError<E> {
    /// The work failed. Nothing of it is kept, and the next attempt does it again.
    Failed(E),
    /// Another attempt has taken over: nothing of this one is kept any more, whatever it answers
    /// (E5).
    Lost,
    /// The transaction can't be had.
    NotLent(NotLent),
    /// The store failed. What was done at another service may have been kept or not; the next
    /// attempt finds out.
    Store(StoreError),
    /// A result can't be written as JSON, or what was kept of an earlier attempt can't be read.
    Unreadable(serde_json::Error),
    /// A part of this name was done in this attempt already, or is a call that may have been made.
    Repeated,
    /// An earlier part of this attempt was dropped, or failed, while it was being kept. Whether it is,
    /// the next attempt finds out, and goes on; this one can't.
    InDoubt,
}

/// The name under which the call itself is kept. No part has it.
pub(crate) const CALL: &str = "";

impl<T> Phases<T> {
    pub(crate) fn keeping(self, call: Option<Arc<str>>) -> Self {
        Self { call, ..self }
    }
}

impl<T: FromAttempt> Phases<T> {
    /// Does something at another service, or gives back what came of it in an earlier attempt. The
    /// key that `call` gets is [`derive_key`](Attempt::derive_key) of the name: hand it on.
    ///
    /// A call that answers `Ok` is kept. `Err` is not: what it means for the operation is for the
    /// handler to say, by its answer. A call that is worth another try has it within `call`: for
    /// this attempt its name is used up, so that no other call goes out under the key of this one.
    ///
    /// # Errors
    ///
    /// [`PhaseError`]. Whatever it is, a later attempt makes the call with the same key.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it may have been called and may have been kept.
    pub async fn phase<R, E, C, F>(&mut self, name: &str, call: C) -> Result<R, PhaseError<E>>
    where
        C: FnOnce(String) -> F,
        F: Future<Output = Result<R, E>>,
        R: Serialize + DeserializeOwned,
    {
        if let Some(kept) = self.find(name).await? {
            return Ok(kept);
        }
        self.named.insert(name.to_owned());
        // Whoever comes after a crash has to find that this was under way, so that the key stays the
        // request's own.
        let mark = (!self.marked).then(|| encode(self.kept.as_ref())).transpose();
        let mark = mark.map_err(PhaseError::Unreadable)?;
        self.commit(mark).await?;
        self.marked = true;
        let result = call(self.attempt.derive_key(name)).await.map_err(PhaseError::Failed)?;
        self.keep(name, &result).await
    }

    /// Does something in the service's own database, or gives back what came of it in an earlier
    /// attempt. What `work` writes in the transaction and what it answers are committed together.
    /// `Err` undoes it, and it may be tried again. (If nothing was committed before, the claim is
    /// undone with it on PostgreSQL and MySQL, and the attempt can only answer that it failed or
    /// refuses.)
    ///
    /// # Errors
    ///
    /// [`PhaseError`]; [`NotLent::InUse`] if `work` has not let go of its transaction.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it was done as a whole or not at all.
    pub async fn step<R, E, W, F>(&mut self, name: &str, work: W) -> Result<R, PhaseError<E>>
    where
        W: FnOnce(T) -> F,
        F: Future<Output = Result<R, E>>,
        R: Serialize + DeserializeOwned,
    {
        if let Some(kept) = self.find(name).await? {
            return Ok(kept);
        }
        held(self.points.open().await)?;
        let mut half_done = HalfDone(Some(self.points.clone()));
        let transaction = T::from_attempt(&self.attempt).map_err(PhaseError::NotLent)?;
        let result = work(transaction).await.map_err(PhaseError::Failed)?;
        half_done.0 = None;
        self.keep(name, &result).await
    }

    /// The transaction for what comes last: it commits with the answer.
    ///
    /// # Errors
    ///
    /// [`PhaseError`]; never [`Failed`](PhaseError::Failed).
    ///
    /// # Cancel safety
    ///
    /// Dropped, it changes nothing.
    pub async fn transaction(self) -> Result<T, PhaseError<std::convert::Infallible>> {
        self.check_doubt()?;
        held(self.points.open().await)?;
        T::from_attempt(&self.attempt).map_err(PhaseError::NotLent)
    }

    /// The attempt.
    pub fn attempt(&self) -> &Attempt {
        &self.attempt
    }

    /// What an earlier attempt has kept under this name.
    async fn find<R: DeserializeOwned, E>(
        &mut self,
        name: &str,
    ) -> Result<Option<R>, PhaseError<E>> {
        self.check_doubt()?;
        if self.named.contains(name) {
            return Err(PhaseError::Repeated);
        }
        if self.kept.is_none() {
            // A first attempt follows none.
            let kept = match self.attempt.number() {
                1 => None,
                _ => self.points.kept().await.map_err(PhaseError::Store)?,
            };
            self.marked = kept.is_some();
            let kept = kept.as_deref().map_or(Ok(BTreeMap::new()), serde_json::from_slice);
            let mut kept: BTreeMap<String, String> = kept.map_err(PhaseError::Unreadable)?;
            if let Some(call) = &self.call {
                kept.entry(CALL.to_owned()).or_insert_with(|| call.as_ref().to_owned());
            }
            self.kept = Some(kept);
            // Who goes on is counted, has a fence of its own and a lease, whatever it comes to.
            if self.marked {
                self.commit(None).await?;
            }
        }
        let Some(kept) = self.kept.as_ref().and_then(|kept| kept.get(name)) else {
            return Ok(None);
        };
        self.named.insert(name.to_owned());
        serde_json::from_str(kept).map(Some).map_err(PhaseError::Unreadable)
    }

    /// Dropped or failed, it may be done or not: nothing else is kept after it.
    async fn commit<E>(&mut self, points: Option<Bytes>) -> Result<(), PhaseError<E>> {
        self.in_doubt = true;
        let answer = self.points.commit(points).await;
        self.in_doubt = answer.is_err();
        held(answer)
    }

    fn check_doubt<E>(&self) -> Result<(), PhaseError<E>> {
        if self.in_doubt { Err(PhaseError::InDoubt) } else { Ok(()) }
    }

    /// Commits a result, and gives it as every later attempt gets it.
    async fn keep<R: Serialize + DeserializeOwned, E>(
        &mut self,
        name: &str,
        result: &R,
    ) -> Result<R, PhaseError<E>> {
        // What can't be written leaves nothing of its step behind.
        let mut half_done = HalfDone(Some(self.points.clone()));
        let result = serde_json::to_string(result).map_err(PhaseError::Unreadable)?;
        let given = serde_json::from_str(&result).map_err(PhaseError::Unreadable)?;
        let mut kept = self.kept.clone().unwrap_or_default();
        kept.insert(name.to_owned(), result);
        let points = encode(Some(&kept)).map_err(PhaseError::Unreadable)?;
        self.commit(Some(points)).await?;
        half_done.0 = None;
        self.named.insert(name.to_owned());
        (self.kept, self.marked) = (Some(kept), true);
        Ok(given)
    }
}

/// What is kept, as a store keeps it.
fn encode(kept: Option<&BTreeMap<String, String>>) -> serde_json::Result<Bytes> {
    serde_json::to_vec(&kept.unwrap_or(&BTreeMap::new())).map(Bytes::from)
}

/// Undoes what is not committed when it is dropped.
struct HalfDone(Option<Arc<dyn Points>>);

impl Drop for HalfDone {
    fn drop(&mut self) {
        if let Some(points) = &self.0 {
            points.roll_back();
        }
    }
}

fn held<E>(answer: Result<bool, StoreError>) -> Result<(), PhaseError<E>> {
    match answer {
        Ok(true) => Ok(()),
        Ok(false) => Err(PhaseError::Lost),
        Err(error) => Err(PhaseError::Store(error)),
    }
}

impl<T> FromAttempt for Phases<T> {
    fn from_attempt(attempt: &Attempt) -> Result<Self, NotLent> {
        let points = attempt.points().ok_or(NotLent::Absent)?;
        points.take()?;
        let (attempt, named) = (attempt.clone(), HashSet::from([CALL.to_owned()]));
        let (kept, call, marked, in_doubt) = (None, None, false, false);
        Ok(Self { attempt, points, kept, marked, in_doubt, call, named, lends: PhantomData })
    }
}

impl<T> fmt::Debug for Phases<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Phases").field("attempt", &self.attempt).finish_non_exhaustive()
    }
}

impl PhaseError<std::convert::Infallible> {
    /// The same, where work may fail as well.
    pub fn or_failed<E>(self) -> PhaseError<E> {
        match self {
            Self::Failed(never) => match never {},
            Self::Lost => PhaseError::Lost,
            Self::NotLent(why) => PhaseError::NotLent(why),
            Self::Store(error) => PhaseError::Store(error),
            Self::Unreadable(error) => PhaseError::Unreadable(error),
            Self::Repeated => PhaseError::Repeated,
            Self::InDoubt => PhaseError::InDoubt,
        }
    }
}

impl<E> PhaseError<E> {
    /// What a client may be told; nothing of the work's own error is in it.
    pub fn to_problem(&self) -> Problem {
        let again = "Not all of it was done. A retry with the same key goes on.";
        match self {
            Self::Lost => Problem::new(Code::InProgress, "Another attempt goes on with it."),
            Self::Store(_) | Self::InDoubt => Problem::new(Code::StoreUnavailable, again),
            Self::Failed(_) | Self::NotLent(_) | Self::Unreadable(_) | Self::Repeated => {
                Problem::new(Code::HandlerFailed, again)
            }
        }
    }
}

impl<E> fmt::Display for PhaseError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failed(_) => "the work failed",
            Self::Lost => "another attempt has taken over",
            Self::NotLent(_) => "the transaction can't be had",
            Self::Store(_) => "the store failed",
            Self::Unreadable(_) => "a result can't be written or read",
            Self::Repeated => "two parts of an attempt have one name",
            Self::InDoubt => "it is not known whether an earlier part was kept",
        })
    }
}

impl<E: Error + 'static> Error for PhaseError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Failed(error) => Some(error),
            Self::NotLent(why) => Some(why),
            Self::Store(error) => Some(error),
            Self::Unreadable(error) => Some(error),
            Self::Lost | Self::Repeated | Self::InDoubt => None,
        }
    }
}
