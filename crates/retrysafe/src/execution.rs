//! An attempt that this process owns, from its claim to its end.
//!
//! An [`Execution`] can end once, because ending consumes it. One that is dropped before its
//! handler has started is released (D5: nothing ran); one that is dropped later is abandoned, and
//! its lease runs out: nobody knows what it did.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use retrysafe_core::{Comparison, Fingerprint, Found, Held, Lease, Settings, Store, StoreError};
use tokio::time::Instant;

use crate::{
    engine::{Engine, Pause},
    keeper::Hold,
    observe,
    waiting::Turn,
};

pub(crate) struct Execution<S: Store>(Option<Attempted<S>>);

struct Attempted<S: Store> {
    engine: Engine<S>,
    settings: Arc<Settings>,
    lease: Lease,
    /// As it was claimed; the body part may be missing.
    fingerprint: Fingerprint,
    hold: Hold,
    started: bool,
    /// The turn of the duplicates that wait in this process: they go on when this attempt ends.
    turn: Option<Turn>,
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
#[derive(Clone, Debug)]
enum End {
    Complete { fingerprint: Fingerprint, payload: Bytes, retention: Duration },
    Release,
    GiveUp,
}

impl<S: Store> Execution<S> {
    pub(crate) fn new(
        engine: Engine<S>,
        settings: Arc<Settings>,
        lease: Lease,
        fingerprint: Fingerprint,
        sent: Instant,
    ) -> Self {
        observe::in_flight(1.0);
        let hold = engine.keeper().hold(&engine, &lease, &settings, sent);
        Self(Some(Attempted {
            engine,
            settings,
            lease,
            fingerprint,
            hold,
            started: false,
            turn: None,
        }))
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

    pub(crate) fn fingerprint(&self) -> &Fingerprint {
        &self.attempted().fingerprint
    }

    /// Waits until a renewal has found that the lease is lost.
    pub(crate) async fn lost(&self) {
        self.attempted().hold.lost().await;
    }

    /// Keeps the outcome.
    pub(crate) async fn complete(
        self,
        fingerprint: Fingerprint,
        payload: Bytes,
        retention: Duration,
    ) -> Ended {
        self.end(End::Complete { fingerprint, payload, retention }).await
    }

    /// Frees the key for the next try.
    pub(crate) async fn release(self) -> Ended {
        self.end(End::Release).await
    }

    /// Says that the outcome is unknown and the work is over.
    pub(crate) async fn give_up(self) -> Ended {
        self.end(End::GiveUp).await
    }

    /// Says nothing: the work may go on, so the lease runs out by itself.
    pub(crate) fn abandon(mut self) {
        self.0 = None;
        observe::in_flight(-1.0);
    }

    async fn end(mut self, end: End) -> Ended {
        let Some(mut attempted) = self.0.take() else { unreachable!("an execution ends once") };
        observe::in_flight(-1.0);
        attempted.hold.ending();
        match attempted.tell(&end).await {
            Ok(Held::Applied) => {
                if let (End::Complete { fingerprint, payload, .. }, Some(turn)) =
                    (end, attempted.turn.take())
                {
                    turn.publish(Found::Finished { fingerprint, payload });
                }
                Ended::Recorded
            }
            Ok(Held::Lost(found)) => {
                observe::lease_lost(&attempted.lease.id, attempted.lease.attempt);
                let ours = match &end {
                    End::Complete { fingerprint, .. } => fingerprint,
                    End::Release | End::GiveUp => &attempted.fingerprint,
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
            Err(_) => {
                let fresh = attempted.hold.is_fresh();
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

impl<S: Store> Attempted<S> {
    async fn tell(&self, end: &End) -> Result<Held, StoreError> {
        let deadline = self.settings.store_deadline;
        match end {
            End::Complete { fingerprint, payload, retention } => {
                self.engine
                    .complete(&self.lease, fingerprint, payload.clone(), *retention, deadline)
                    .await
            }
            End::Release => self.engine.release(&self.lease, &self.settings).await,
            End::GiveUp => self.engine.renew(&self.lease, Duration::ZERO, deadline).await,
        }
    }

    /// R7: the write is retried with the same owner. Meanwhile the lease goes on being renewed, so
    /// that nobody runs again what has been done. It never deletes the record.
    async fn tell_again(self, end: End) {
        let mut pause = Pause::new(self.settings.max_execution);
        while pause.again().await {
            match self.tell(&end).await {
                Ok(Held::Applied) => return,
                Ok(Held::Lost(_)) => break,
                Err(_) => {}
            }
        }
        if let End::Complete { .. } = end {
            observe::unrecorded(&self.lease.id, self.lease.attempt);
        }
    }
}

impl<S: Store> Drop for Execution<S> {
    fn drop(&mut self) {
        let Some(attempted) = self.0.take() else { return };
        observe::in_flight(-1.0);
        if !attempted.started {
            let Attempted { engine, lease, settings, .. } = attempted;
            engine.release_in_background(lease, settings);
        }
    }
}
