//! An attempt that this process owns, from its claim to its end.
//!
//! An [`Execution`] can end once, because ending consumes it. One that is dropped before its
//! handler has started is released (D5: nothing ran); one that is dropped later is abandoned, and
//! its lease runs out: nobody knows what it did. Where the store has lent a unit of work, nothing was
//! done until it commits, so then whatever does not complete is released.

use std::{mem, sync::Arc, time::Duration};

use bytes::Bytes;
use retrysafe_core::{
    Comparison, Fingerprint, Found, Held, Record, Store, StoreError, StoreErrorKind, Unit,
};

use crate::{
    engine::{Engine, Pause, Permit, Unrun},
    keeper::Hold,
    observe,
    waiting::Turn,
};

pub(crate) struct Execution<S: Store>(Option<Attempted<S>>);

struct Attempted<S: Store> {
    engine: Engine<S>,
    hold: Hold,
    previous_vanished: bool,
    started: bool,
    /// The turn of the duplicates that wait in this process: they go on when this attempt ends.
    turn: Option<Box<Turn>>,
    /// Given back when nothing of the attempt is left to do, in the background neither (E6).
    permit: Permit,
    /// What the store has lent to the handler: work that commits with the record.
    unit: Option<Arc<dyn Unit>>,
}

/// What the store said to the end of an attempt.
#[derive(Debug)]
pub(crate) enum Ended {
    /// It is written.
    Recorded,
    /// It could not be written, and nobody can have taken over: the answer is still ours to give.
    /// The write is retried in the background (R7).
    NotRecorded,
    /// Somebody has taken over, or may have (R7), and what came of it is not known to be about the
    /// same request.
    Stale,
    /// Somebody has: this is what is true now (E5).
    Lost(Found),
    /// It could not be written, and its work stands and falls with it: nothing of it is known to
    /// stand. A retry finds out.
    Undone,
    /// The handler did not leave its unit of work to the store: nobody knows what it did.
    Escaped,
}

/// How an attempt ends, towards the store.
pub(crate) enum End {
    /// The outcome is kept.
    Complete(Completion),
    /// The key is free for the next try.
    Release,
    /// The outcome is unknown and the work is over.
    GiveUp,
    /// The store is told nothing: the work may go on, so the lease runs out by itself.
    Abandon,
}

/// What is kept of an attempt.
pub(crate) struct Completion {
    /// As it is known by now, if the claim's lacked the body part.
    pub(crate) fingerprint: Option<Box<Fingerprint>>,
    pub(crate) payload: Bytes,
    pub(crate) retention: Duration,
}

impl<S: Store> Execution<S> {
    pub(crate) fn new(
        engine: Engine<S>,
        hold: Hold,
        previous_vanished: bool,
        permit: Permit,
        unit: Option<Arc<dyn Unit>>,
    ) -> Self {
        observe::in_flight(1.0);
        let (started, turn) = (false, None);
        Self(Some(Attempted { engine, hold, previous_vanished, started, turn, permit, unit }))
    }

    /// Lets the duplicates that wait in this process wait for this attempt.
    pub(crate) fn carry(&mut self, turn: Option<Box<Turn>>) {
        self.attempted_mut().turn = turn;
    }

    /// The handler starts now. `false` if the lease may be over already, because the store took
    /// that long to grant it: nothing may run then.
    #[must_use]
    pub(crate) async fn start(&mut self) -> bool {
        let attempted = self.attempted_mut();
        attempted.started = attempted.hold.noticed().await;
        attempted.started
    }

    /// Whether nobody can have taken over yet (R7).
    pub(crate) fn is_fresh(&self) -> bool {
        self.attempted().hold.is_fresh()
    }

    /// As it was claimed; the body part may be missing.
    pub(crate) fn fingerprint(&self) -> &Fingerprint {
        self.attempted().hold.fingerprint()
    }

    /// What the store has lent to the handler.
    pub(crate) fn unit(&self) -> Option<Arc<dyn Unit>> {
        self.attempted().unit.clone()
    }

    /// The record will be kept and the work will not, if they commit together. Not asked if they
    /// don't: most stores lend nothing.
    pub(crate) fn undo_work_if(&self, refused: impl FnOnce() -> bool) {
        if let Some(unit) = &self.attempted().unit
            && refused()
        {
            unit.undo();
        }
    }

    /// Waits until a renewal has found that the lease is lost.
    pub(crate) async fn lost(&self) {
        self.attempted().hold.lost().await;
    }

    /// Ends without a word to the store, like [`End::Abandon`].
    pub(crate) fn abandon(self) {
        drop(self);
    }

    /// Tells the store how the attempt ended.
    pub(crate) fn end(self, end: End) -> impl Future<Output = Ended> {
        self.end_with(end, Bytes::new)
    }

    /// The same; `again` makes the payload once more if the store did not take it. So the store
    /// gets the only handle to it: a second one would be an allocation that is kept as long as the
    /// record. (Not an `async fn`: that would carry what it is given twice.)
    pub(crate) fn end_with(
        mut self,
        mut end: End,
        again: impl Fn() -> Bytes,
    ) -> impl Future<Output = Ended> {
        let Some(mut attempted) = self.0.take() else { unreachable!("an execution ends once") };
        observe::in_flight(-1.0);
        attempted.hold.ending();
        async move {
            let told = match &mut end {
                End::Complete(Completion { fingerprint, payload, retention })
                    if attempted.turn.is_none() =>
                {
                    let fingerprint =
                        fingerprint.as_deref().unwrap_or_else(|| attempted.hold.fingerprint());
                    let given = mem::take(payload);
                    let told = attempted.complete(fingerprint, given, *retention).await;
                    if let Ok(Held::Applied) = told {
                        attempted.turn = attempted.waited_for();
                    }
                    if told.is_err() || attempted.turn.is_some() {
                        *payload = again();
                    }
                    told
                }
                // Boxed, as all that is rare: there is room for the usual way only.
                end => Box::pin(attempted.tell(end)).await,
            };
            let told = match end.shrink_to_fit(&told) {
                None => told,
                Some(whole) => Box::pin(attempted.tell_shorter(&mut end, whole)).await,
            };
            attempted.told(end, told)
        }
    }

    fn attempted(&self) -> &Attempted<S> {
        self.0.as_ref().unwrap_or_else(|| unreachable!("ending consumes the execution"))
    }

    fn attempted_mut(&mut self) -> &mut Attempted<S> {
        self.0.as_mut().unwrap_or_else(|| unreachable!("ending consumes the execution"))
    }
}

impl End {
    /// If the store said that the payload does not fit, and there is less to say: leaves the response
    /// out of it, and answers what it was.
    fn shrink_to_fit(&mut self, told: &Result<Held, StoreError>) -> Option<Bytes> {
        let too_large = told.as_ref().is_err_and(|error| {
            matches!(error.kind(), StoreErrorKind::Full | StoreErrorKind::TooLarge)
        });
        if too_large
            && let Self::Complete(Completion { payload, .. }) = self
            && let Ok(shorter) = Record::outcome_only(payload)
            && shorter.len() < payload.len()
        {
            return Some(mem::replace(payload, shorter));
        }
        None
    }
}

impl<S: Store> Attempted<S> {
    async fn tell(&self, end: &End) -> Result<Held, StoreError> {
        let (lease, settings) = (self.hold.lease(), self.hold.settings());
        let deadline = settings.store_deadline;
        match end {
            End::Complete(Completion { payload, retention, .. }) => {
                self.complete(self.fingerprint(end), payload.clone(), *retention).await
            }
            // What was done in a unit is undone, so there is no doubt to leave behind.
            End::Abandon if self.unit.is_none() => Ok(Held::Applied),
            End::Release | End::Abandon => {
                let keep_counters_for = self.keep_counters_for();
                self.engine.release(lease, keep_counters_for, deadline).await
            }
            End::GiveUp => self.engine.renew(lease, Duration::ZERO, deadline).await,
        }
    }

    /// R4: what does not fit is finished without its response, and never runs again. If the store
    /// does not take that either, it is told the whole the next time: there may be room again.
    async fn tell_shorter(&self, end: &mut End, whole: Bytes) -> Result<Held, StoreError> {
        let told = self.tell(end).await;
        if told.is_err()
            && let End::Complete(Completion { payload, .. }) = end
        {
            *payload = whole;
        }
        told
    }

    /// What the outcome is published by, if duplicates have come to wait for it in this process.
    fn waited_for(&self) -> Option<Box<Turn>> {
        self.engine.room().told(self.hold.lease().id).map(Box::new)
    }

    fn complete(
        &self,
        fingerprint: &Fingerprint,
        payload: Bytes,
        retention: Duration,
    ) -> impl Future<Output = Result<Held, StoreError>> + Send {
        let deadline = self.hold.settings().store_deadline;
        self.engine.complete(self.hold.lease(), fingerprint, payload, retention, deadline)
    }

    /// What the store said to the end, and what there is left to do.
    fn told(mut self, end: End, told: Result<Held, StoreError>) -> Ended {
        match told {
            Ok(Held::Applied) => {
                if let Some(turn) = self.turn.take()
                    && let End::Complete(Completion { fingerprint, payload, .. }) = end
                {
                    let fingerprint = match fingerprint {
                        Some(fingerprint) => *fingerprint,
                        None => self.hold.fingerprint().clone(),
                    };
                    turn.publish(Found::Finished { fingerprint, payload });
                }
                Ended::Recorded
            }
            Ok(Held::Lost(found)) => {
                self.hold.lost_now();
                match &found {
                    // E5: the key may have been freed meanwhile, and used for another request.
                    Found::Finished { fingerprint, .. }
                        if self.fingerprint(&end).compare(fingerprint) != Comparison::Same =>
                    {
                        Ended::Stale
                    }
                    _ => Ended::Lost(found),
                }
            }
            Err(error) if self.unit.is_some() => {
                self.turn = None;
                match (error.kind(), end) {
                    (StoreErrorKind::Escaped, _) => {
                        let lease = self.hold.lease();
                        observe::escaped(&lease.id, lease.attempt);
                        Ended::Escaped
                    }
                    // R7 would be a lie: what is not recorded has not happened. Nor is there
                    // anything to write again.
                    (_, End::Complete(_)) => Ended::Undone,
                    // It undoes itself.
                    (_, End::Release | End::GiveUp | End::Abandon) => Ended::Recorded,
                }
            }
            Err(error) => {
                // A record that can't be read is not ours to answer for (E5).
                let fresh = self.hold.is_fresh() && error.kind() != StoreErrorKind::Unreadable;
                self.turn = None;
                let engine = self.engine.clone();
                engine.in_background(self.tell_again(end));
                if fresh { Ended::NotRecorded } else { Ended::Stale }
            }
        }
    }

    /// What the client asked for, as far as it is known at the end.
    fn fingerprint<'a>(&'a self, end: &'a End) -> &'a Fingerprint {
        match end {
            End::Complete(Completion { fingerprint: Some(fingerprint), .. }) => fingerprint,
            _ => self.hold.fingerprint(),
        }
    }

    fn keep_counters_for(&self) -> Duration {
        let settings = self.hold.settings();
        match self.previous_vanished {
            true => settings.keep_doubt_for(),
            false => settings.keep_counters_for(),
        }
    }

    /// R7: the write is retried with the same owner. Meanwhile the lease goes on being renewed, so
    /// that nobody runs again what has been done. It never deletes the record.
    async fn tell_again(self, mut end: End) {
        let mut pause = Pause::new(self.hold.settings().max_execution);
        while pause.again().await {
            let told = self.tell(&end).await;
            let told = match end.shrink_to_fit(&told) {
                None => told,
                Some(whole) => self.tell_shorter(&mut end, whole).await,
            };
            match told {
                Ok(Held::Applied) => return,
                Ok(Held::Lost(_)) => break,
                Err(_) => {}
            }
        }
        if let End::Complete(_) = end {
            let lease = self.hold.lease();
            observe::unrecorded(&lease.id, lease.attempt);
        }
    }
}

impl<S: Store> Drop for Execution<S> {
    fn drop(&mut self) {
        let Some(attempted) = self.0.take() else { return };
        observe::in_flight(-1.0);
        if !attempted.started || attempted.unit.is_some() {
            let unrun = Unrun {
                lease: attempted.hold.lease().clone(),
                settings: attempted.hold.settings().clone(),
                keep_counters_for: attempted.keep_counters_for(),
                answered: true,
            };
            attempted.engine.release_in_background(unrun, attempted.permit);
        }
    }
}
