//! The suite catches every broken store, and passes the same store without a flaw.

use std::{sync::Arc, time::Duration};

use retrysafe_core::OperationId;
use retrysafe_testkit::{Fixture, Flaw, ManualClock, SmallStore, contract};

struct Small {
    clock: ManualClock,
    flaw: Option<Flaw>,
    store: SmallStore,
}

impl Small {
    fn new(flaw: Option<Flaw>) -> Self {
        let clock = ManualClock::new();
        Self { store: open(&clock, 1_000_000, flaw), clock, flaw }
    }
}

fn open(clock: &ManualClock, capacity: usize, flaw: Option<Flaw>) -> SmallStore {
    let clock = Arc::new(clock.clone());
    match flaw {
        None => SmallStore::new(clock, capacity),
        Some(flaw) => SmallStore::with_flaw(clock, capacity, flaw),
    }
}

impl Fixture for Small {
    type Store = SmallStore;

    async fn handle(&self) -> SmallStore {
        self.store.clone()
    }

    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }

    fn tick(&self) -> Duration {
        Duration::from_millis(100)
    }

    fn rounds(&self) -> usize {
        60
    }

    async fn small(&self, records: usize) -> Option<SmallStore> {
        Some(open(&self.clock, records, self.flaw))
    }

    async fn spoil(&self, id: &OperationId) -> bool {
        self.store.spoil(id);
        true
    }
}

mod without_a_flaw {
    retrysafe_testkit::contract_tests!(super::Small::new(None));
}

/// Makes a test of each flaw: the rule that is named must not hold.
macro_rules! caught {
    ($($test:ident: $flaw:ident by $($rule:ident),+;)*) => {
        $(
            #[test]
            fn $test() {
                $({
                    // The panic is expected; what it says is not part of the test.
                    let caught = std::panic::catch_unwind(|| {
                        contract::run(async {
                            contract::$rule(&Small::new(Some(Flaw::$flaw))).await;
                        });
                    });
                    let rule = stringify!($rule);
                    assert!(caught.is_err(), "{:?} was not caught by {rule}", Flaw::$flaw);
                })+
            }
        )*
    };
}

caught! {
    catches_check_then_set: CheckThenSet by check_then_set, race_begin_of_a_free_key,
        race_begin_of_a_released_key, race_begin_of_an_expired_key,
        race_take_over_of_a_lapsed_lease, random_histories_are_linearizable;
    catches_stale_take_over: StaleTakeOver by race_complete_against_take_over,
        race_renew_against_take_over, race_resolve_against_take_over;
    catches_take_over_of_finished: TakesOverFinished by stale_takeover;
    catches_take_over_of_live: TakesOverLive by st6_a_live_lease_is_never_taken_over,
        race_renew_against_take_over;
    catches_take_over_by_any_request: TakesOverAnyRequest by
        st6_a_take_over_must_be_of_the_same_request;
    catches_loser_frees_owner: LoserFreesOwner by loser_frees_owner, st3_only_the_owner_holds;
    catches_unfenced_complete: UnfencedComplete by unfenced_complete, st3_only_the_owner_holds;
    catches_missing_deadline: MissingDeadline by missing_deadline;
    catches_counters_forgotten: ReleaseForgetsCounters by st5_the_fence_grows,
        st8_counters_last_as_long_as_asked, race_begin_of_a_released_key;
    catches_fence_restarting: FenceRestarts by st5_the_fence_grows,
        random_histories_are_linearizable;
    catches_lease_from_the_expired: LeaseFromExpired by st8_a_claim_of_an_expired_record_is_whole;
    catches_claim_lost_to_itself: RepeatedBeginLosesClaim by st4_same_owner_reclaims,
        race_begin_of_one_owner, st11_a_dropped_begin_can_be_repeated;
    catches_lease_extended_by_begin: RepeatedBeginExtendsLease by st4_same_owner_reclaims;
    catches_late_begin: LateBeginReacquires by st4_a_late_begin_changes_nothing,
        random_histories_are_linearizable;
    catches_overwritten_outcome: RepeatedCompleteOverwrites by
        st4_a_repeated_complete_changes_nothing;
    catches_lost_repetition: RepeatedCompleteLoses by st4_a_repeated_complete_changes_nothing,
        st11_a_dropped_complete_can_be_repeated;
    catches_completion_after_giving_up: GivenUpCompletes by st3_an_attempt_that_gave_up_is_over;
    catches_forgotten_vanishing: ForgetsVanished by
        st6_a_vanished_attempt_is_remembered_until_one_completes;
    catches_expired_answers: ExpiredAnswers by expired_answers_409,
        st8_expired_is_free_before_it_is_swept, random_walks_agree_with_the_model;
    catches_wedged_keys: LapsedForEver by crash_wedges, random_walks_agree_with_the_model;
    catches_retention_from_the_claim: RetentionFromClaim by
        st8_an_unfinished_record_is_kept_from_its_last_renewal,
        random_walks_agree_with_the_model;
    catches_swept_claims: SweepsLive by st8_a_live_claim_outlives_its_retention;
    catches_unbounded_sweeps: SweepsAll by st12_sweep_is_bounded;
    catches_evicted_claims: EvictsLive by capacity_evicts,
        st8_a_full_store_removes_only_what_expired;
    catches_lossy_payloads: LossyPayload by binary_body_lost, st10_payloads_come_back_exactly;
    catches_unwritten_fingerprints: KeepsClaimsFingerprint by
        st10_fingerprints_come_back_exactly;
    catches_unreadable_as_absent: UnreadableIsAbsent by undecodable_deleted;
    catches_forgotten_live_claims: ForgetsLive by inspect_forget_frees_what_is_over;
    catches_resolving_unseen_attempts: ResolvesAnyAttempt by
        inspect_resolve_needs_an_unknown_outcome;
    catches_late_owners_of_the_resolved: ResolvedIsStillOwned by
        inspect_resolve_keeps_what_happened, inspect_resolve_frees_what_did_not_happen;
    catches_waiters_left_waiting: NobodyIsWoken by changed_is_woken;
}
