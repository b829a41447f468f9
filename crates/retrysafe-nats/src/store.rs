//! The store: each verb is a compare-and-set on the last message of a subject.

use std::{fmt, future::Future, pin::pin, sync::Arc, time::Duration};

use async_nats::Client;
use bytes::Bytes;
use futures_util::StreamExt as _;
use retrysafe_core::{
    About, Begin, Claim, Fingerprint, Found, Held, Lease, OperationId, Store, StoreError,
    StoreErrorKind, Swept,
    lifecycle::{Phase, Record, Step},
};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    NatsStoreBuilder, OpenError,
    error::no_answer,
    jetstream::{Kept, Stream, Written},
    leader::Leader,
    record::counted_from,
    seen::{Sighting, Sightings},
};

/// An outcome of this size is taken even when the stream is nearly full.
const SMALL_OUTCOME: usize = 1024;

/// The pause before a write is tried again that another write was faster than; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(50);

/// The first time that who waits asks by itself; the time between two doubles.
const FIRST_POLL: Duration = Duration::from_millis(25);

/// A store in a NATS JetStream stream, for any number of processes on any number of machines.
///
/// Handles are cheap to clone; clones share a connection. See the [crate] for what it survives and
/// what the server has to be like.
///
/// ```no_run
/// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
/// use retrysafe_core::Store;
/// use retrysafe_nats::NatsStore;
///
/// let store = NatsStore::open("nats://retrysafe:secret@nats-1,nats-2,nats-3").await?;
/// assert_eq!(store.about().engine, "nats");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct NatsStore {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) stream: Stream,
    pub(crate) leader: Leader,
    seen: Sightings,
    servers: String,
    poll_interval: Duration,
    max_payload: usize,
}

/// Whose word on the time a verb goes by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Time {
    /// What the leader said a moment ago, where that settles the matter.
    Lately,
    /// The leader's, now: for what operators do.
    Now,
}

impl NatsStore {
    /// Opens a store with the default settings: connects, and creates the stream `retrysafe` if
    /// there is none. Several servers are separated by commas.
    ///
    /// # Errors
    ///
    /// See [`NatsStoreBuilder::open`].
    pub async fn open(url: impl Into<String>) -> Result<Self, OpenError> {
        Self::builder(url).open().await
    }

    /// Sets up a store. Several servers are separated by commas.
    ///
    /// ```no_run
    /// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
    /// use retrysafe_nats::NatsStore;
    ///
    /// let store = NatsStore::builder("nats://nats-1:4222,nats-2:4222,nats-3:4222")
    ///     .stream("orders_retrysafe")
    ///     .replicas(3)
    ///     .open()
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder(url: impl Into<String>) -> NatsStoreBuilder {
        NatsStoreBuilder::of_url(url.into())
    }

    /// Sets up a store on a connection of the user's own, with credentials, certificates and
    /// callbacks as they like.
    ///
    /// The client should not give up reconnecting, and its pings should find out within seconds when
    /// a server has gone (`ping_interval`).
    pub fn with_client(client: Client) -> NatsStoreBuilder {
        NatsStoreBuilder::of_client(client)
    }

    pub(crate) fn new(
        stream: Stream,
        leader: Leader,
        servers: String,
        poll_interval: Duration,
        max_payload: usize,
    ) -> Self {
        let seen = Sightings::default();
        Self {
            shared: Arc::new(Shared { stream, leader, seen, servers, poll_interval, max_payload }),
        }
    }

    /// The name of the stream.
    pub fn stream(&self) -> &str {
        &self.shared.stream.name
    }
}

impl Shared {
    /// A verb and its deadline. What was under way when it passed may still have its effect.
    pub(crate) async fn within<T>(
        &self,
        verb: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        match timeout(self.stream.timeout, verb).await {
            Ok(answer) => answer,
            Err(_) => Err(no_answer(&self.stream.name)),
        }
    }

    /// Lets a verb act on the record as the leader has it, until what it answers is true: written
    /// against the exact state that was read, or settled by it. Both functions are told the time,
    /// counted from the writing of the message that is there, if there is one.
    pub(crate) async fn act<T>(
        &self,
        id: &OperationId,
        time: Time,
        verb: impl Fn(Record, Duration) -> Step<T>,
        absent: impl Fn(Duration) -> Step<T>,
    ) -> Result<T, StoreError> {
        let read = self.read(id).await?;
        let acted = self.act_on(read, id, time, verb, absent).await;
        acted.map_err(StoreError::after_an_answer)
    }

    async fn act_on<T>(
        &self,
        mut read: Option<Kept>,
        id: &OperationId,
        time: Time,
        verb: impl Fn(Record, Duration) -> Step<T>,
        absent: impl Fn(Duration) -> Step<T>,
    ) -> Result<T, StoreError> {
        let mut pause = FIRST_PAUSE;
        loop {
            let (expected, age, step) = match read {
                None => (0, Duration::ZERO, absent(Duration::ZERO)),
                Some(kept) => match self.judge(&kept, time, &verb, &absent).await? {
                    Some((age, step)) => (kept.sequence, age, step),
                    None => {
                        read = self.read(id).await?;
                        continue;
                    }
                },
            };
            let Some(record) = step.write else {
                return Ok(step.answer);
            };
            if expected == 0 && self.leader.is_nearly_full(&self.stream).await? {
                return Err(self.full());
            }
            if let Written::Stored(_) = self.write(expected, record, age).await? {
                return Ok(step.answer);
            }
            // Another write was faster, or is under way. Jitter keeps many from trying in step.
            sleep(pause.mul_f64(rand::random_range(0.5..1.5))).await;
            pause = (pause * 2).min(LAST_PAUSE);
            read = self.read(id).await?;
        }
    }

    /// What a verb makes of a record that was read, and how old that record was; `None` if it has to
    /// be read again.
    async fn judge<T>(
        &self,
        kept: &Kept,
        time: Time,
        verb: &impl Fn(Record, Duration) -> Step<T>,
        absent: &impl Fn(Duration) -> Step<T>,
    ) -> Result<Option<(Duration, Step<T>)>, StoreError> {
        if time == Time::Lately
            && let Some(now) = self.leader.now_at_most()
        {
            let age = now.saturating_sub(kept.written);
            if is_settled(&kept.record, age) {
                self.saw(kept, age);
                return Ok(Some((age, verb(kept.record.clone(), age))));
            }
        }
        let now = self.leader.now(&self.stream).await?;
        let age = now.saturating_sub(kept.written);
        // R8, ST8: past its retention it is as good as absent, swept or not.
        let step = match kept.record.is_expired(age) {
            true => absent(age),
            false => verb(kept.record.clone(), age),
        };
        // A write is checked by the server. An answer that the passing of time has changed is true
        // only if nobody renewed the lease between the reading and the question for the time.
        if step.write.is_none() && !is_settled(&kept.record, age) {
            let again = self.read(&kept.record.id).await?;
            if again.is_none_or(|again| again.sequence != kept.sequence) {
                return Ok(None);
            }
        }
        Ok(Some((age, step)))
    }

    /// Reads a record from the leader. What contradicts what this handle knows to be stored is
    /// looked into: a leader that was deposed and does not know it yet answers from its past.
    pub(crate) async fn read(&self, id: &OperationId) -> Result<Option<Kept>, StoreError> {
        let kept = self.stream.read(id).await?;
        let sequence = kept.as_ref().map_or(0, |kept| kept.sequence);
        self.leader.heard_of(sequence);
        if let Some(known) = self.seen.get(id)
            && known.sequence > sequence
        {
            self.leader.now(&self.stream).await.map_err(StoreError::after_an_answer)?;
            self.seen.forget(id, known.sequence);
        }
        Ok(kept)
    }

    /// Writes a record if the last message of its subject is the expected one.
    ///
    /// Dropping the future, or an error of an ambiguous kind, leaves it written or not. Either way
    /// what this handle has seen is out of date at worst, and the next write is refused and reads.
    pub(crate) async fn write(
        &self,
        expected: u64,
        record: Record,
        age: Duration,
    ) -> Result<Written, StoreError> {
        let record = counted_from(record, age);
        let id = record.id;
        let written = Instant::now();
        let answer = self.stream.write(expected, &record).await?;
        if let Written::Stored(sequence) = answer {
            self.leader.heard_of(sequence);
            match record.phase {
                // Payloads are not held on to.
                Phase::Finished { .. } => self.seen.forget(&id, sequence),
                _ => self.seen.keep(Sighting { sequence, record, written }),
            }
        }
        Ok(answer)
    }

    fn saw(&self, kept: &Kept, age: Duration) {
        if !matches!(kept.record.phase, Phase::Finished { .. })
            && let Some(written) = Instant::now().checked_sub(age)
        {
            let (sequence, record) = (kept.sequence, kept.record.clone());
            self.seen.keep(Sighting { sequence, record, written });
        }
    }

    /// A verb that needs the lease. One request where this handle wrote the record last.
    async fn held(
        &self,
        id: &OperationId,
        verb: impl Fn(Record, Duration) -> Step<Held>,
    ) -> Result<Held, StoreError> {
        if let Some(seen) = self.seen.get(id) {
            let age = seen.age_at_most();
            if !seen.record.is_expired(age)
                && let Step { answer, write: Some(record) } = verb(seen.record, age)
                && let Written::Stored(_) = self.write(seen.sequence, record, age).await?
            {
                return Ok(answer);
            }
        }
        let free = |_| Step { answer: Held::Lost(Found::Free), write: None };
        self.act(id, Time::Lately, verb, free).await
    }

    async fn begin(&self, claim: &Claim) -> Result<Begin, StoreError> {
        let id = &claim.id;
        let first = |now| Record::first(claim, now);
        let begin = |record: Record, age| record.begin(claim, age);
        if self.leader.is_nearly_full(&self.stream).await? {
            return self.act(id, Time::Lately, begin, first).await;
        }
        let (mut expected, mut age) = (0, Duration::ZERO);
        let mut step = first(age);
        // A free key in the first round. A second, if the record that is there is one that this
        // handle has seen, and the server has just said that it is still the last.
        while let Some(record) = step.write {
            let last = match self.write(expected, record, age).await {
                Ok(Written::Stored(_)) => return Ok(step.answer),
                Ok(Written::Refused(last)) => last,
                Err(error) if expected == 0 => return Err(error),
                Err(error) => return Err(error.after_an_answer()),
            };
            let seen = self.seen.get(id).filter(|seen| Some(seen.sequence) == last);
            let Some(seen) = seen.filter(|seen| seen.sequence != expected) else { break };
            (expected, age) = (seen.sequence, seen.age_at_most());
            if !is_settled(&seen.record, age) {
                break;
            }
            step = seen.record.begin(claim, age);
            if step.write.is_none() {
                return Ok(step.answer);
            }
        }
        // The first write was refused, so there is a record.
        let acted = self.act(id, Time::Lately, begin, first).await;
        acted.map_err(StoreError::after_an_answer)
    }

    /// How long attempt `seen` still holds a live lease; `None` if it does not.
    async fn lease_left(
        &self,
        id: &OperationId,
        seen: u32,
    ) -> Result<Option<Duration>, StoreError> {
        let left = |record: Record, age| {
            let left = record.lease_left(age).filter(|_| record.attempt() == seen);
            Step { answer: left, write: None }
        };
        self.within(self.act(id, Time::Lately, left, |_| Step { answer: None, write: None })).await
    }

    /// Waits until the attempt no longer holds a live lease.
    async fn changed(&self, id: &OperationId, seen: u32) -> Result<(), StoreError> {
        // Listening before looking: what is stored in between is heard. A driver that reconnects
        // subscribes again.
        let subject = self.stream.subjects.changed(id);
        let heard = self.stream.client().subscribe(subject).await.map_err(|error| {
            let problem = format!("NATS stream `{}`: cannot subscribe", self.stream.name);
            StoreError::with_source(StoreErrorKind::Unreachable, problem, error)
        })?;
        let mut heard = pin!(heard);
        let Some(mut left) = self.lease_left(id, seen).await? else {
            return Ok(());
        };
        // What happened while a server did not yet know of our subscription, or while we were not
        // connected, is not heard: ask, soon at first.
        let mut poll = FIRST_POLL.min(self.poll_interval);
        loop {
            let pause = poll.mul_f64(rand::random_range(0.5..1.5)).min(left);
            if let Ok(None) = timeout(pause, heard.next()).await {
                // The client was closed.
                sleep(pause).await;
            }
            poll = (poll * 2).min(self.poll_interval);
            match self.lease_left(id, seen).await {
                Ok(Some(still)) => left = still,
                Ok(None) => return Ok(()),
                // It may come back before the wait is over.
                Err(error) if error.is_ambiguous() => {}
                Err(error) if error.kind() == StoreErrorKind::Unreachable => {}
                Err(error) => return Err(error),
            }
        }
    }

    pub(crate) fn check_size(&self, payload: &Bytes) -> Result<(), StoreError> {
        let (is, most) = (payload.len(), self.max_payload);
        if is <= most {
            return Ok(());
        }
        Err(StoreError::new(
            StoreErrorKind::TooLarge,
            format!("a payload of {is} bytes is over the {most} that the NATS servers take"),
        ))
    }

    fn full(&self) -> StoreError {
        StoreError::new(
            StoreErrorKind::Full,
            format!(
                "NATS stream `{}` is nearly full: what room is left is kept for the outcomes of what \
                 is under way; raise its limit",
                self.stream.name
            ),
        )
    }
}

/// Whether the passing of time has changed nothing yet: the record is not expired, and its lease, if
/// it is one that ends by itself, is live.
fn is_settled(record: &Record, age: Duration) -> bool {
    let lapses = matches!(record.phase, Phase::InFlight { .. });
    !record.is_expired(age) && (!lapses || record.lease_left(age).is_some())
}

impl Store for NatsStore {
    fn about(&self) -> About {
        About { engine: "nats", max_payload: self.shared.max_payload }
    }

    async fn begin(&self, claim: &Claim) -> Result<Begin, StoreError> {
        self.shared.within(self.shared.begin(claim)).await
    }

    async fn renew(&self, lease: &Lease, lease_for: Duration) -> Result<Held, StoreError> {
        let renew = |record: Record, age| record.renew(lease, lease_for, age);
        self.shared.within(self.shared.held(&lease.id, renew)).await
    }

    async fn complete(
        &self,
        lease: &Lease,
        fingerprint: &Fingerprint,
        payload: Bytes,
        retention: Duration,
    ) -> Result<Held, StoreError> {
        self.shared.check_size(&payload)?;
        let complete =
            |record: Record, age| record.complete(lease, fingerprint, &payload, retention, age);
        let completed = async {
            // What is left is for outcomes without their response, which are kept by all means.
            if payload.len() > SMALL_OUTCOME
                && self.shared.leader.is_nearly_full(&self.shared.stream).await?
            {
                return Err(self.shared.full());
            }
            self.shared.held(&lease.id, complete).await
        };
        self.shared.within(completed).await
    }

    async fn release(
        &self,
        lease: &Lease,
        keep_counters_for: Duration,
    ) -> Result<Held, StoreError> {
        let release = |record: Record, age| record.release(lease, keep_counters_for, age);
        self.shared.within(self.shared.held(&lease.id, release)).await
    }

    async fn changed(
        &self,
        id: &OperationId,
        seen: u32,
        within: Duration,
    ) -> Result<(), StoreError> {
        timeout(within, self.shared.changed(id, seen)).await.unwrap_or(Ok(()))
    }

    /// Nothing to do, and no request: the server removes each message when its time to live is over,
    /// which is a few seconds after the record has expired.
    async fn sweep(&self, _limit: usize) -> Result<Swept, StoreError> {
        Ok(Swept::default())
    }
}

impl fmt::Debug for NatsStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsStore")
            .field("servers", &self.shared.servers)
            .field("stream", &self.shared.stream.name)
            .finish_non_exhaustive()
    }
}
