//! A race for every verb that changes a record: 64 callers on several handles, one winner.

use std::{future::Future, sync::Arc, time::Duration};

use retrysafe_core::{
    Acquired, Begin, Claim, Found, Held, Inspect as _, Lease, Operated, OperationId, Resolution,
    State, Store as _,
};
use tokio::{sync::Barrier, task::JoinSet};

use super::{Case, LONG, assert_is, claim, fingerprint, lease, operation};
use crate::Fixture;

/// How many callers take part in a race.
pub const CALLERS: usize = 64;

/// How many handles they are spread over.
const HANDLES: usize = 4;

/// Calls many times at once, and collects the answers by caller.
pub(crate) async fn race<S, T, C>(
    handles: &[Arc<S>],
    callers: usize,
    call: impl Fn(usize, Arc<S>) -> C,
) -> Vec<T>
where
    T: Send + 'static,
    C: Future<Output = T> + Send + 'static,
{
    let start = Arc::new(Barrier::new(callers));
    let mut running = JoinSet::new();
    for caller in 0..callers {
        let start = start.clone();
        let call = call(caller, handles[caller % handles.len()].clone());
        running.spawn(async move {
            start.wait().await;
            (caller, call.await)
        });
    }
    let mut answers = running.join_all().await;
    answers.sort_unstable_by_key(|(caller, _)| *caller);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

/// The handles and the operations of one race.
struct Track<'a, F: Fixture> {
    case: Case<'a, F>,
    handles: Vec<Arc<F::Store>>,
}

impl<'a, F: Fixture> Track<'a, F> {
    async fn new(fixture: &'a F) -> Self {
        let case = Case::new(fixture).await;
        let mut handles = vec![case.store.clone()];
        while handles.len() < HANDLES {
            handles.push(Arc::new(fixture.handle().await));
        }
        Self { case, handles }
    }

    /// Operations with a first attempt whose lease has lapsed by time, one for each round.
    async fn lapsed(&self) -> Vec<Lease> {
        let mut lapsed = Vec::new();
        for _ in 0..self.case.fixture.rounds() {
            let case = self.case.another();
            lapsed.push(case.acquire(&case.short_claim()).await);
        }
        self.case.lapse().await;
        lapsed
    }

    async fn race<T, C>(&self, call: impl Fn(usize, Arc<F::Store>) -> C) -> Vec<T>
    where
        T: Send + 'static,
        C: Future<Output = T> + Send + 'static,
    {
        race(&self.handles, CALLERS, call).await
    }

    /// Caller 0 does what the owner does; the others try to take over.
    async fn against_take_over<T, C>(
        &self,
        id: OperationId,
        owner: impl Fn(Arc<F::Store>) -> C,
    ) -> (T, Vec<Begin>)
    where
        T: Send + 'static,
        C: Future<Output = T> + Send + 'static,
    {
        let answers = self
            .race(|caller, store| {
                let owner = (caller == 0).then(|| owner(store.clone()));
                async move {
                    match owner {
                        Some(call) => (Some(call.await), None),
                        None => {
                            let claim = Claim { take_over: true, ..claim(id) };
                            (None, Some(store.begin(&claim).await.expect("begin")))
                        }
                    }
                }
            })
            .await;
        let mut owner = None;
        let mut begun = Vec::new();
        for (did, begin) in answers {
            owner = owner.or(did);
            begun.extend(begin);
        }
        (owner.expect("caller 0 is the owner"), begun)
    }
}

fn granted(begun: &[Begin]) -> Vec<Acquired> {
    let acquired = |begun: &Begin| match begun {
        Begin::Acquired(acquired) => Some(*acquired),
        Begin::Found(_) => None,
    };
    begun.iter().filter_map(acquired).collect()
}

/// Exactly one claim was granted, and the others found it.
fn assert_one_winner(begun: &[Begin], attempt: u32, vanished: bool, rule: &str) {
    let granted = granted(begun);
    assert_eq!(granted.len(), 1, "{rule}: {} of {} claims won", granted.len(), begun.len());
    let previous_vanished = granted[0].previous_vanished;
    assert_eq!((granted[0].attempt, previous_vanished), (attempt, vanished), "{rule}");
    for begun in begun {
        if let Begin::Found(found) = begun {
            assert_is!(
                found,
                Found::InFlight { attempt: seen, .. } if *seen == attempt,
                format!("{rule}: a loser finds the winner")
            );
        }
    }
}

/// ST1: one claim wins a key that has no record.
pub async fn race_begin_of_a_free_key<F: Fixture>(fixture: &F) {
    let track = Track::new(fixture).await;
    for _ in 0..fixture.rounds() {
        let id = operation();
        let begun = track
            .race(|_, store| async move { store.begin(&claim(id)).await.expect("begin") })
            .await;
        assert_one_winner(&begun, 1, false, "ST1");
    }
}

/// ST1, ST5: one claim wins a key that was released, and the fence goes on.
pub async fn race_begin_of_a_released_key<F: Fixture>(fixture: &F) {
    let track = Track::new(fixture).await;
    for _ in 0..fixture.rounds() {
        let case = track.case.another();
        let first = case.acquire(&case.claim()).await;
        assert_eq!(case.release(&first).await, Held::Applied);
        let id = case.id;
        let begun = track
            .race(|_, store| async move { store.begin(&claim(id)).await.expect("begin") })
            .await;
        assert_one_winner(&begun, 2, false, "ST1");
        assert!(granted(&begun)[0].fence > first.fence, "ST5");
    }
}

/// ST1, ST8: one claim wins a key whose outcome is past its retention and was not swept.
pub async fn race_begin_of_an_expired_key<F: Fixture>(fixture: &F) {
    let track = Track::new(fixture).await;
    let mut expired = Vec::new();
    for _ in 0..fixture.rounds() {
        let case = track.case.another();
        let owner = case.acquire(&case.claim()).await;
        let brief = fixture.tick();
        let held = case.store.complete(&owner, &fingerprint(1), "old".into(), brief).await;
        assert_eq!(held.expect("complete"), Held::Applied);
        expired.push(case.id);
    }
    track.case.lapse().await;
    for id in expired {
        let begun = track
            .race(|_, store| async move { store.begin(&claim(id)).await.expect("begin") })
            .await;
        assert_one_winner(&begun, 1, false, "ST1");
    }
}

/// ST4: a claim that is sent many times at once is one claim.
pub async fn race_begin_of_one_owner<F: Fixture>(fixture: &F) {
    let track = Track::new(fixture).await;
    for _ in 0..fixture.rounds() {
        let one = claim(operation());
        let begun = track
            .race(|_, store| {
                let one = one.clone();
                async move { store.begin(&one).await.expect("begin") }
            })
            .await;
        let granted = granted(&begun);
        assert_eq!(granted.len(), begun.len(), "ST4: every copy is granted");
        assert!(granted.iter().all(|each| *each == granted[0]), "ST4: as the same attempt");
    }
}

/// ST6: one claim takes over a lapsed lease.
pub async fn race_take_over_of_a_lapsed_lease<F: Fixture>(fixture: &F) {
    let track = Track::new(fixture).await;
    for first in track.lapsed().await {
        let begun = track
            .race(|_, store| async move {
                let claim = Claim { take_over: true, ..claim(first.id) };
                store.begin(&claim).await.expect("begin")
            })
            .await;
        assert_one_winner(&begun, 2, true, "ST6");
        assert!(granted(&begun)[0].fence > first.fence, "ST5");
    }
}

/// ST3, ST6: the owner of a lapsed lease completes, or one claim takes over; never both.
pub async fn race_complete_against_take_over<F: Fixture>(fixture: &F) {
    let track = Track::new(fixture).await;
    for first in track.lapsed().await {
        let (held, begun) = track
            .against_take_over(first.id, |store| {
                let first = first.clone();
                async move { store.complete(&first, &fingerprint(1), "done".into(), LONG).await }
            })
            .await;
        let after = track.case.store.get(&first.id).await.expect("get").map(|entry| entry.state);
        match held.expect("complete") {
            Held::Applied => {
                assert!(granted(&begun).is_empty(), "ST6: completed, and run again");
                assert_is!(after, Some(State::Finished { .. }), "ST6: the outcome stays");
            }
            Held::Lost(now) => {
                assert_is!(now, Found::InFlight { attempt: 2, .. }, "ST3");
                assert_one_winner(&begun, 2, true, "ST6");
                assert_is!(after, Some(State::InFlight { .. }), "ST3: nothing changed");
            }
        }
    }
}

/// ST3, ST6: the owner of a lapsed lease releases, or one claim takes over; one claim wins.
pub async fn race_release_against_take_over<F: Fixture>(fixture: &F) {
    let track = Track::new(fixture).await;
    for first in track.lapsed().await {
        let (held, begun) = track
            .against_take_over(first.id, |store| {
                let first = first.clone();
                async move { store.release(&first, LONG).await }
            })
            .await;
        match held.expect("release") {
            Held::Applied => assert_one_winner(&begun, 2, false, "ST1: released"),
            Held::Lost(now) => {
                assert_is!(now, Found::InFlight { attempt: 2, .. }, "ST3");
                assert_one_winner(&begun, 2, true, "ST6");
            }
        }
    }
}

/// ST3, ST6: the owner of a lapsed lease renews it, or one claim takes over; never both.
pub async fn race_renew_against_take_over<F: Fixture>(fixture: &F) {
    let track = Track::new(fixture).await;
    for first in track.lapsed().await {
        let (held, begun) = track
            .against_take_over(first.id, |store| {
                let first = first.clone();
                async move { store.renew(&first, LONG).await }
            })
            .await;
        match held.expect("renew") {
            Held::Applied => {
                assert!(granted(&begun).is_empty(), "ST6: renewed, and taken over");
                assert_is!(
                    track.case.store.begin(&claim(first.id)).await,
                    Ok(Begin::Found(Found::InFlight { attempt: 1, .. })),
                    "ST3: it is live again"
                );
            }
            Held::Lost(now) => {
                assert_is!(now, Found::InFlight { attempt: 2, .. }, "ST3");
                assert_one_winner(&begun, 2, true, "ST6");
            }
        }
    }
}

/// ST3, ST6: the owner of a live lease gives up while others try to take over; at most one does.
pub async fn race_give_up_against_take_over<F: Fixture>(fixture: &F) {
    let track = Track::new(fixture).await;
    for _ in 0..fixture.rounds() {
        let case = track.case.another();
        let first = case.acquire(&case.claim()).await;
        let (held, begun) = track
            .against_take_over(first.id, |store| {
                let first = first.clone();
                async move { store.renew(&first, Duration::ZERO).await }
            })
            .await;
        assert_eq!(held.expect("give up"), Held::Applied, "ST3: its lease was live");
        let granted = granted(&begun);
        assert!(granted.len() <= 1, "ST6: {} took over", granted.len());
        if granted.is_empty() {
            let last = case.acquired(&case.take_over()).await;
            assert_is!(last, Acquired { attempt: 2, .. }, "ST6");
        }
    }
}

/// An operator resolves an unknown outcome, or one claim takes over; never both.
pub async fn race_resolve_against_take_over<F: Fixture>(fixture: &F) {
    let track = Track::new(fixture).await;
    for first in track.lapsed().await {
        let id = first.id;
        let (operated, begun) = track
            .against_take_over(id, |store| async move {
                let happened = Resolution::Happened { payload: "it did".into(), retention: LONG };
                store.resolve(&id, 1, happened).await
            })
            .await;
        match operated.expect("resolve") {
            Operated::Applied => assert!(granted(&begun).is_empty(), "resolved, and run again"),
            Operated::Refused => assert_one_winner(&begun, 2, true, "ST6"),
            Operated::NotFound => panic!("the record is there"),
        }
    }
}

/// ST8, ST12: sweeping an expired record while it is claimed anew never removes the claim.
pub async fn race_sweep_against_claims<F: Fixture>(fixture: &F) {
    let track = Track::new(fixture).await;
    let mut expired = Vec::new();
    for _ in 0..fixture.rounds() {
        let case = track.case.another();
        let brief = Claim { retention: fixture.tick(), ..case.short_claim() };
        case.acquire(&brief).await;
        expired.push(case.id);
    }
    track.case.lapse().await;
    for id in expired {
        let begun = track
            .race(|caller, store| async move {
                if caller % 8 == 0 {
                    store.sweep(10).await.expect("sweep");
                    return None;
                }
                let claim = claim(id);
                let begun = store.begin(&claim).await.expect("begin");
                store.sweep(10).await.expect("sweep");
                Some((claim, begun))
            })
            .await;
        let (claims, begun): (Vec<_>, Vec<_>) = begun.into_iter().flatten().unzip();
        assert_one_winner(&begun, 1, false, "ST8");
        let winner = begun.iter().zip(&claims).find_map(|(begun, claim)| match begun {
            Begin::Acquired(acquired) => Some(lease(claim, *acquired)),
            Begin::Found(_) => None,
        });
        let winner = winner.expect("there is one");
        let held = track.case.store.renew(&winner, LONG).await.expect("renew");
        assert_eq!(held, Held::Applied, "ST8: the claim is still there");
    }
}

/// An outcome is forgotten once, and then one claim wins.
pub async fn race_forget_against_claims<F: Fixture>(fixture: &F) {
    let track = Track::new(fixture).await;
    for _ in 0..fixture.rounds() {
        let case = track.case.another();
        let owner = case.acquire(&case.claim()).await;
        assert_eq!(case.complete(&owner, "done").await, Held::Applied);
        let id = case.id;
        let answers = track
            .race(|caller, store| async move {
                if caller % 2 == 0 {
                    (Some(store.forget(&id).await.expect("forget")), None)
                } else {
                    (None, Some(store.begin(&claim(id)).await.expect("begin")))
                }
            })
            .await;
        let (forgot, begun): (Vec<_>, Vec<_>) = answers.into_iter().unzip();
        let applied = forgot.into_iter().flatten().filter(|each| *each == Operated::Applied);
        assert_eq!(applied.count(), 1, "it is forgotten once");
        let begun: Vec<_> = begun.into_iter().flatten().collect();
        let granted = granted(&begun);
        assert!(granted.len() <= 1, "ST1: {} claims won", granted.len());
        assert!(granted.iter().all(|each| each.fence > owner.fence), "ST5");
    }
}
