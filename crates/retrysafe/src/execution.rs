//! An attempt that this process owns, from its claim to its end.
//!
//! An [`Execution`] can end once, because ending consumes it. One that is dropped before its
//! handler has started is released (D5: nothing ran); one that is dropped later is abandoned, and
//! its lease runs out: nobody knows what it did.

use std::time::Duration;

use bytes::Bytes;
use retrysafe_core::{
    Comparison, Fingerprint, Found, Held, Record, Store, StoreError, StoreErrorKind,
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
    turn: Option<Turn>,
    /// Given back when nothing of the attempt is left to do, in the background neither (E6).
    permit: Permit,
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
}

/// How an attempt ends, towards the store.
enum End {
    Complete { fingerprint: Fingerprint, payload: Bytes, retention: Duration },
    Release,
    GiveUp,
}

impl<S: Store> Execution<S> {
    pub(crate) fn new(
        engine: Engine<S>,
        hold: Hold,
        previous_vanished: bool,
        permit: Permit,
    ) -> Self {
        observe::in_flight(1.0);
        let (started, turn) = (false, None);
        Self(Some(Attempted { engine, hold, previous_vanished, started, turn, permit }))
    }

    /// Lets the duplicates that wait in this process wait for this attempt.
    pub(crate) fn carry(&mut self, turn: Option<Turn>) {
        self.attempted_mut().turn = turn;
    }

    /// The handler starts now. `false` if the lease may be over already, because the store took
    /// that long to grant it: nothing may run then.
    #[must_use]
    pub(crate) async fn start(&mut self) -> bool {
        let attempted = self.attempted_mut();
        attempted.hold.noticed().await;
        attempted.started = attempted.hold.is_fresh();
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

    /// Waits until a renewal has found that the lease is lost.
    pub(crate) async fn lost(&self) {
        self.attempted().hold.lost().await;
    }

    /// Keeps the outcome.
    pub(crate) fn complete(
        self,
        fingerprint: Fingerprint,
        payload: Bytes,
        retention: Duration,
    ) -> impl Future<Output = Ended> {
        self.end(End::Complete { fingerprint, payload, retention })
    }

    /// Frees the key for the next try.
    pub(crate) fn release(self) -> impl Future<Output = Ended> {
        self.end(End::Release)
    }

    /// Says that the outcome is unknown and the work is over.
    pub(crate) fn give_up(self) -> impl Future<Output = Ended> {
        self.end(End::GiveUp)
    }

    /// Says nothing: the work may go on, so the lease runs out by itself.
    pub(crate) fn abandon(mut self) {
        self.0 = None;
        observe::in_flight(-1.0);
    }

    async fn end(mut self, mut end: End) -> Ended {
        let Some(mut attempted) = self.0.take() else { unreachable!("an execution ends once") };
        observe::in_flight(-1.0);
        attempted.hold.ending();
        let mut told = attempted.tell(&end).await;
        if let Err(error) = &told
            && matches!(error.kind(), StoreErrorKind::Full | StoreErrorKind::TooLarge)
            && end.shrink()
        {
            // R4: what does not fit is finished without its response, and never runs again.
            told = attempted.tell(&end).await;
        }
        match told {
            Ok(Held::Applied) => {
                if let (End::Complete { fingerprint, payload, .. }, Some(turn)) =
                    (end, attempted.turn.take())
                {
                    turn.publish(Found::Finished { fingerprint, payload });
                }
                Ended::Recorded
            }
            Ok(Held::Lost(found)) => {
                let lease = attempted.hold.lease();
                observe::lease_lost(&lease.id, lease.attempt);
                let ours = match &end {
                    End::Complete { fingerprint, .. } => fingerprint,
                    End::Release | End::GiveUp => attempted.hold.fingerprint(),
                };
                match &found {
                    // E5: the key may have been freed meanwhile, and used for another request.
                    Found::Finished { fingerprint, .. }
                        if ours.compare(fingerprint) != Comparison::Same =>
                    {
                        Ended::Stale
                    }
                    _ => Ended::Lost(found),
                }
            }
            Err(error) => {
                // A record that can't be read is not ours to answer for (E5).
                let fresh = attempted.hold.is_fresh() && error.kind() != StoreErrorKind::Unreadable;
                attempted.turn = None;
                let engine = attempted.engine.clone();
                engine.detach(attempted.tell_again(end));
                if fresh { Ended::NotRecorded } else { Ended::Stale }
            }
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
    /// Leaves the response out of what is to be kept; `false` if there is none in it.
    fn shrink(&mut self) -> bool {
        let Self::Complete { payload, .. } = self else { return false };
        match Record::outcome_only(payload) {
            Ok(shorter) if shorter.len() < payload.len() => {
                *payload = shorter;
                true
            }
            _ => false,
        }
    }
}

impl<S: Store> Attempted<S> {
    async fn tell(&self, end: &End) -> Result<Held, StoreError> {
        let (lease, settings) = (self.hold.lease(), self.hold.settings());
        let deadline = settings.store_deadline;
        match end {
            End::Complete { fingerprint, payload, retention } => {
                let payload = payload.clone();
                self.engine.complete(lease, fingerprint, payload, *retention, deadline).await
            }
            End::Release => {
                let keep_counters_for = self.keep_counters_for();
                self.engine.release(lease, settings, keep_counters_for).await
            }
            End::GiveUp => self.engine.renew(lease, Duration::ZERO, deadline).await,
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
    async fn tell_again(self, end: End) {
        let mut pause = Pause::new(self.hold.settings().max_execution);
        while pause.again().await {
            match self.tell(&end).await {
                Ok(Held::Applied) => return,
                Ok(Held::Lost(_)) => break,
                Err(_) => {}
            }
        }
        if let End::Complete { .. } = end {
            let lease = self.hold.lease();
            observe::unrecorded(&lease.id, lease.attempt);
        }
    }
}

impl<S: Store> Drop for Execution<S> {
    fn drop(&mut self) {
        let Some(attempted) = self.0.take() else { return };
        observe::in_flight(-1.0);
        if !attempted.started {
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
