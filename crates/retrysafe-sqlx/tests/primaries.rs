//! Several primaries, as one store that keeps the contract: with a list that stands, and while every
//! key moves.

#![expect(clippy::unwrap_used, reason = "a test says what failed by where it panics")]

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use retrysafe_core::{
    Acquired, Algorithm, Begin, Claim, Entropy as _, Fingerprint, Found, Held, Inspect as _, Lease,
    MemoryStore, OperationId, Owner, State, Store, StoreErrorKind, SystemEntropy,
};
use retrysafe_sqlx::{Primaries, Role};
use retrysafe_testkit::{Fault, Faulty, Fixture, ManualClock, Verb, contract};
use tokio::task::JoinSet;

const LONG: Duration = Duration::from_secs(60 * 60);

struct Memories {
    clock: ManualClock,
    list: Primaries<MemoryStore>,
}

impl Memories {
    fn new(roles: &[Role]) -> Self {
        let clock = ManualClock::new();
        let list = roles.iter().enumerate().fold(Primaries::builder(), |list, (n, role)| {
            let store = MemoryStore::builder().clock(Arc::new(clock.clone()));
            list.member(format!("primary-{n}"), *role, store.max_payload(1 << 20).build().unwrap())
        });
        Self { clock, list: list.build().unwrap() }
    }
}

impl Fixture for Memories {
    type Store = Primaries<MemoryStore>;

    async fn handle(&self) -> Self::Store {
        self.list.clone()
    }

    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }

    fn tick(&self) -> Duration {
        Duration::from_millis(100)
    }

    fn rounds(&self) -> usize {
        50
    }

    async fn small(&self, _records: usize) -> Option<Self::Store> {
        None
    }

    async fn spoil(&self, _: &OperationId) -> bool {
        false
    }
}

mod a_list_that_stands {
    use retrysafe_sqlx::Role::Staying;
    retrysafe_testkit::contract_tests!(crate::Memories::new(&[Staying, Staying, Staying]));
}

/// Every rule but those that a key in two places can't keep: its two rows are counted and swept as
/// two, and what one owner does twice at the same time may be seen half done.
mod every_key_moves {
    use retrysafe_sqlx::Role::{Joining, Leaving};

    macro_rules! rules {
        ($($rule:ident)*) => {
            pub(crate) const KEPT: &[&str] = &[$(stringify!($rule)),*];
            $(
                #[test]
                fn $rule() {
                    crate::contract::run(async {
                        crate::contract::$rule(&crate::Memories::new(&[Leaving, Joining])).await;
                    });
                }
            )*
        };
    }

    rules! {
        st1_a_free_key_is_granted
        st3_only_the_owner_holds
        st3_a_lapsed_attempt_is_still_its_owners
        st3_an_attempt_that_gave_up_is_over
        st3_what_is_not_there_is_lost
        st4_same_owner_reclaims
        st4_a_repeated_complete_changes_nothing
        st4_a_repeated_release_changes_nothing
        st4_a_repeated_give_up_changes_nothing
        st4_a_late_begin_changes_nothing
        st4_a_late_renew_changes_nothing
        st4_a_claim_without_an_answer_can_be_released
        st5_the_fence_grows
        st6_a_take_over_must_be_allowed
        st6_a_take_over_must_be_of_the_same_request
        st6_a_live_lease_is_never_taken_over
        st6_a_vanished_attempt_is_remembered_until_one_completes
        st7_every_handle_judges_alike
        st7_a_renewal_counts_from_now
        st8_expired_is_free_before_it_is_swept
        st8_a_claim_of_an_expired_record_is_whole
        st8_a_live_claim_outlives_its_retention
        st8_counters_last_as_long_as_asked
        st8_an_unfinished_record_is_kept_from_its_last_renewal
        st8_a_full_store_removes_only_what_expired
        st9_every_handle_sees_an_outcome
        st10_payloads_come_back_exactly
        st10_fingerprints_come_back_exactly
        st10_too_large_changes_nothing
        st11_a_dropped_begin_can_be_repeated
        st11_a_dropped_complete_can_be_repeated
        st12_sweep_leaves_what_answers
        changed_returns_at_once_if_there_is_nothing_to_wait_for
        changed_is_woken
        changed_ends_with_the_lease
        changed_ends_within
        inspect_shows_every_state
        inspect_pages_in_order
        inspect_forget_frees_what_is_over
        inspect_resolve_frees_what_did_not_happen
        inspect_resolve_keeps_what_happened
        inspect_resolve_needs_an_unknown_outcome
        race_begin_of_a_free_key
        race_begin_of_a_released_key
        race_begin_of_an_expired_key
        race_begin_of_one_owner
        race_take_over_of_a_lapsed_lease
        race_complete_against_take_over
        race_release_against_take_over
        race_renew_against_take_over
        race_give_up_against_take_over
        race_resolve_against_take_over
        race_sweep_against_claims
        race_forget_against_claims
        random_walks_agree_with_the_model
        check_then_set
        stale_takeover
        loser_frees_owner
        unfenced_complete
        missing_deadline
        crash_wedges
        capacity_evicts
        expired_answers_409
        undecodable_deleted
        binary_body_lost
    }
}

#[test]
fn no_rule_is_forgotten() {
    let kept: HashSet<_> = every_key_moves::KEPT.iter().collect();
    let left: Vec<_> = contract::RULES.iter().filter(|rule| !kept.contains(rule)).collect();
    let not_kept =
        ["st12_sweep_is_bounded", "inspect_counts_by_state", "random_histories_are_linearizable"];
    assert_eq!(left, not_kept.iter().collect::<Vec<_>>());
}

fn claim(id: OperationId) -> Claim {
    Claim {
        id,
        owner: Owner::new(&SystemEntropy),
        fingerprint: Fingerprint { algorithm: Algorithm::from_u32(1), head: [1; 32], body: None },
        lease: LONG,
        retention: LONG,
        take_over: false,
    }
}

fn operation() -> OperationId {
    let half = SystemEntropy.next_u128().to_be_bytes();
    OperationId::from_bytes([half, half].concat().try_into().unwrap())
}

async fn acquire(store: &impl Store, claim: &Claim) -> Lease {
    match store.begin(claim).await.unwrap() {
        Begin::Acquired(Acquired { attempt, fence, .. }) => {
            Lease { id: claim.id, owner: claim.owner, attempt, fence }
        }
        found => panic!("the claim should have been granted: {found:?}"),
    }
}

async fn complete(store: &impl Store, lease: &Lease, payload: &str) -> Held {
    let fingerprint = claim(lease.id).fingerprint;
    store.complete(lease, &fingerprint, payload.to_owned().into(), LONG).await.unwrap()
}

/// One primary, `old`, is replaced by another, `new`: every key moves.
struct Change {
    clock: ManualClock,
    old: Faulty<MemoryStore>,
    new: Faulty<MemoryStore>,
}

type List = Primaries<Faulty<MemoryStore>>;

impl Change {
    fn new() -> Self {
        let clock = ManualClock::new();
        let store = || {
            let store = MemoryStore::builder().clock(Arc::new(clock.clone()));
            Faulty::new(store.build().unwrap())
        };
        let (old, new) = (store(), store());
        Self { clock, old, new }
    }

    fn before(&self) -> List {
        Primaries::builder().primary("old", self.old.clone()).build().unwrap()
    }

    fn moving(&self) -> List {
        let list = Primaries::builder().leaving("old", self.old.clone());
        list.joining("new", self.new.clone()).build().unwrap()
    }

    fn after(&self) -> List {
        Primaries::builder().primary("new", self.new.clone()).build().unwrap()
    }
}

/// What a client does who wants an answer: run it if nobody has, else wait for who does.
async fn answer(store: &impl Store, id: OperationId, runs: &AtomicUsize, mine: String) -> Bytes {
    loop {
        let claim = claim(id);
        match store.begin(&claim).await.unwrap() {
            Begin::Acquired(Acquired { attempt, fence, .. }) => {
                runs.fetch_add(1, SeqCst);
                tokio::task::yield_now().await;
                let lease = Lease { id, owner: claim.owner, attempt, fence };
                assert_eq!(complete(store, &lease, &mine).await, Held::Applied);
                return mine.into();
            }
            Begin::Found(Found::Finished { payload, .. }) => return payload,
            Begin::Found(Found::InFlight { attempt, .. }) => {
                store.changed(&id, attempt, LONG).await.unwrap();
            }
            Begin::Found(found) => panic!("nobody gave up: {found:?}"),
        }
    }
}

/// Processes with two lists side by side: each operation runs once, and all get its answer.
async fn runs_once(one: List, other: List) {
    for _ in 0..200 {
        let (id, runs) = (operation(), Arc::new(AtomicUsize::new(0)));
        let mut clients = JoinSet::new();
        for client in 0..16 {
            let store = if client % 2 == 0 { one.clone() } else { other.clone() };
            let runs = runs.clone();
            clients.spawn(async move { answer(&store, id, &runs, client.to_string()).await });
        }
        let answers: HashSet<_> = clients.join_all().await.into_iter().collect();
        assert_eq!((runs.load(SeqCst), answers.len()), (1, 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn st1_the_list_of_before_meets_the_moving_one() {
    let change = Change::new();
    runs_once(change.before(), change.moving()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn st1_the_moving_list_meets_the_final_one() {
    let change = Change::new();
    runs_once(change.moving(), change.after()).await;
}

#[tokio::test]
async fn an_outcome_of_before_is_replayed_and_moves_along() {
    let change = Change::new();
    let id = operation();
    let lease = acquire(&change.before(), &claim(id)).await;
    assert_eq!(complete(&change.before(), &lease, "done").await, Held::Applied);
    for list in [change.moving(), change.moving(), change.after()] {
        let found = list.begin(&claim(id)).await.unwrap();
        assert!(
            matches!(found, Begin::Found(Found::Finished { payload, .. }) if payload == "done")
        );
    }
}

#[tokio::test]
async fn an_attempt_of_before_is_waited_for() {
    let change = Change::new();
    let id = operation();
    let lease = acquire(&change.before(), &claim(id)).await;
    let found = change.moving().begin(&claim(id)).await.unwrap();
    assert!(matches!(found, Begin::Found(Found::InFlight { attempt: 1, .. })), "{found:?}");
    assert!(change.new.inner().get(&id).await.unwrap().is_none(), "nothing was claimed for it");
    assert_eq!(complete(&change.before(), &lease, "done").await, Held::Applied);
}

#[tokio::test]
async fn st5_the_fence_goes_on_in_the_new_place() {
    let change = Change::new();
    let id = operation();
    let mut highest = 0;
    for list in [change.before(), change.before(), change.moving(), change.moving(), change.after()]
    {
        let lease = acquire(&list, &claim(id)).await;
        assert!(lease.fence > highest, "{} after {highest}", lease.fence);
        highest = lease.fence;
        assert_eq!(list.release(&lease, LONG).await.unwrap(), Held::Applied);
    }
    assert_eq!(highest, 5);
}

#[tokio::test]
async fn who_dies_between_the_two_places_is_finished_by_the_next() {
    let change = Change::new();
    let id = operation();
    let moving = change.moving();
    let brief = Claim { lease: Duration::from_secs(1), ..claim(id) };
    let lease = acquire(&moving, &brief).await;
    change.new.script().next(Verb::Complete, Fault::FailBefore);
    let failed = moving.complete(&lease, &brief.fingerprint, "done".into(), LONG).await;
    assert_eq!(failed.unwrap_err().kind(), StoreErrorKind::Unavailable);

    // Finished in one place only: not given out while its owner may still be at it.
    let found = moving.begin(&claim(id)).await.unwrap();
    assert!(matches!(found, Begin::Found(Found::InFlight { .. })), "{found:?}");
    change.clock.advance(Duration::from_secs(2));
    let take_over = Claim { take_over: true, ..claim(id) };
    for list in [moving, change.after()] {
        let found = list.begin(&take_over).await.unwrap();
        assert!(
            matches!(found, Begin::Found(Found::Finished { payload, .. }) if payload == "done")
        );
    }
}

#[tokio::test]
async fn st3_who_lost_the_new_place_has_lost() {
    let change = Change::new();
    let id = operation();
    let moving = change.moving();
    let lease = acquire(&moving, &Claim { lease: Duration::from_secs(1), ..claim(id) }).await;
    change.clock.advance(Duration::from_secs(2));
    let winner = Claim { take_over: true, ..claim(id) };
    let winner = acquire(&change.after(), &winner).await;

    let late = complete(&moving, &lease, "late").await;
    assert!(matches!(late, Held::Lost(Found::InFlight { attempt: 2, .. })), "{late:?}");
    assert_eq!(complete(&change.after(), &winner, "winner").await, Held::Applied);
    // The old place has the loser's outcome. The new one is right.
    for list in [moving, change.after()] {
        let found = list.begin(&claim(id)).await.unwrap();
        let Begin::Found(Found::Finished { payload, .. }) = found else { panic!("{found:?}") };
        assert_eq!(payload, "winner");
        let Some(entry) = list.get(&id).await.unwrap() else { panic!("it is there") };
        assert!(matches!(entry.state, State::Finished { payload } if payload == "winner"));
    }
}
