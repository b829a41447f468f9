//! The store contract, a function for each rule.
//!
//! Every function takes a [`Fixture`] and panics where the store breaks the rule that it is named
//! after; the rules themselves are in [`retrysafe_core::store`]. A function that is named after a
//! mistake that a released system made keeps it from being made again.
//!
//! [`contract_tests!`](crate::contract_tests) makes a test of each, [`all`] runs them in turn.
//!
//! Where the rules leave a question open, this is the answer:
//!
//! - A call is judged by its owner alone. `attempt` and `fence` of a [`Lease`] may be wrong: who
//!   never got the answer to its claim does not know them, and must be able to release it.
//! - The attempt of an owner that gave up is over: its `complete` and `release` are `Lost`, its
//!   `begin` finds `Lapsed` even with `take_over`. An attempt whose lease only lapsed is not over:
//!   its `begin` is `Acquired` as before, its `renew` and `complete` apply.
//! - What was applied stays as it was: a repeated `complete` does not replace the payload or the
//!   fingerprint, a repeated `release` does not keep the counters longer.
//! - A released record is claimed with any fingerprint; the claim's becomes the record's, as it
//!   does in a take-over.
//! - `previous_vanished` is cleared by an outcome, and outlives a release.
//! - What an operator freed belongs to nobody: every call of its last owner is `Lost`.
//! - No time is too long: a lease or a retention beyond what the store can write means *for ever*.

mod claims;
mod lessons;
mod operators;
mod payloads;
mod races;
mod random;
mod times;
mod waiting;

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use retrysafe_core::{
    Acquired, Algorithm, Begin, BodyPart, Claim, Entropy as _, Extent, Fingerprint, Found, Held,
    Inspect as _, Lease, OperationId, Owner, State, Store as _, SystemEntropy,
};

pub use self::{
    claims::*, lessons::*, operators::*, payloads::*, races::*, random::*, times::*, waiting::*,
};
use crate::{Fixture, Verb};

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(60 * 60);

/// The verbs that need the lease.
const WITH_LEASE: [Verb; 4] = [Verb::Renew, Verb::GiveUp, Verb::Complete, Verb::Release];

/// Hands the names of all rules to a macro: the one list of them.
#[doc(hidden)]
#[macro_export]
macro_rules! __each_rule {
    ($then:ident! { $($with:tt)* }) => {
        $crate::$then! {
            { $($with)* }
            {
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
                st12_sweep_is_bounded
                st12_sweep_leaves_what_answers
                changed_returns_at_once_if_there_is_nothing_to_wait_for
                changed_is_woken
                changed_ends_with_the_lease
                changed_ends_within
                inspect_shows_every_state
                inspect_pages_in_order
                inspect_counts_by_state
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
                random_histories_are_linearizable
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
    };
}

/// Makes one test of each rule. The expression makes a fixture and is evaluated anew for each, in
/// an async block.
///
/// ```
/// mod my_store {
///     # use std::{sync::Arc, time::Duration};
///     # use retrysafe_core::{MemoryStore, OperationId};
///     # use retrysafe_testkit::{Fixture, ManualClock};
///     # pub struct MyFixture;
///     # impl Fixture for MyFixture {
///     #     type Store = MemoryStore;
///     #     async fn handle(&self) -> MemoryStore { MemoryStore::new() }
///     #     async fn pass(&self, _: Duration) {}
///     #     fn tick(&self) -> Duration { Duration::from_secs(1) }
///     #     fn rounds(&self) -> usize { 10 }
///     #     async fn small(&self, _: usize) -> Option<MemoryStore> { None }
///     #     async fn spoil(&self, _: &OperationId) -> bool { false }
///     # }
///     retrysafe_testkit::contract_tests!(MyFixture);
/// }
/// ```
#[macro_export]
macro_rules! contract_tests {
    ($fixture:expr) => {
        $crate::__each_rule!(__contract_tests! { $fixture });
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __contract_tests {
    ({ $fixture:expr } { $($rule:ident)* }) => {
        $(
            #[test]
            fn $rule() {
                $crate::contract::run(async { $crate::contract::$rule(&$fixture).await });
            }
        )*
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __run_rules {
    ({ $fixture:expr } { $($rule:ident)* }) => {
        { $( $crate::contract::$rule($fixture).await; )* }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __name_rules {
    ({} { $($rule:ident)* }) => {
        &[ $( stringify!($rule) ),* ]
    };
}

/// The names of all rules.
pub const RULES: &[&str] = __each_rule!(__name_rules! {});

/// Runs every rule in turn.
///
/// # Panics
///
/// Where the store breaks one.
pub async fn all<F: Fixture>(fixture: &F) {
    __each_rule!(__run_rules! { fixture });
}

/// Runs a test on a runtime of its own, with more workers than there may be processors.
///
/// # Panics
///
/// If the test does, or if there can be no runtime.
pub fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .expect("a runtime for the test")
        .block_on(test);
}

/// Asserts that a value has a form, and shows it if not.
macro_rules! assert_is {
    ($value:expr, $form:pat $(if $guard:expr)?, $rule:expr) => {
        match $value {
            $form $(if $guard)? => {}
            other => panic!("{}: {other:?}", $rule),
        }
    };
}
pub(crate) use assert_is;

/// One operation that a rule is about, and a handle.
pub(crate) struct Case<'a, F: Fixture> {
    pub(crate) fixture: &'a F,
    pub(crate) store: Arc<F::Store>,
    pub(crate) id: OperationId,
}

impl<'a, F: Fixture> Case<'a, F> {
    pub(crate) async fn new(fixture: &'a F) -> Self {
        Self { fixture, store: Arc::new(fixture.handle().await), id: operation() }
    }

    /// The same on another operation.
    pub(crate) fn another(&self) -> Self {
        Self { fixture: self.fixture, store: self.store.clone(), id: operation() }
    }

    /// A claim by a new owner that nothing lapses or expires of by itself.
    pub(crate) fn claim(&self) -> Claim {
        claim(self.id)
    }

    /// A claim by a new owner whose lease lapses when [`lapse`](Self::lapse) passes.
    pub(crate) fn short_claim(&self) -> Claim {
        Claim { lease: self.fixture.tick(), ..self.claim() }
    }

    /// A claim by a new owner that may take over.
    pub(crate) fn take_over(&self) -> Claim {
        Claim { take_over: true, ..self.claim() }
    }

    /// Lets time pass until whatever lasts one tick is over.
    pub(crate) async fn lapse(&self) {
        self.ticks(2).await;
    }

    pub(crate) async fn ticks(&self, ticks: u32) {
        self.fixture.pass(self.fixture.tick() * ticks).await;
    }

    pub(crate) async fn begin(&self, claim: &Claim) -> Begin {
        self.store.begin(claim).await.expect("begin")
    }

    pub(crate) async fn acquired(&self, claim: &Claim) -> Acquired {
        match self.begin(claim).await {
            Begin::Acquired(acquired) => acquired,
            found => panic!("the claim should have been granted: {found:?}"),
        }
    }

    pub(crate) async fn acquire(&self, claim: &Claim) -> Lease {
        lease(claim, self.acquired(claim).await)
    }

    pub(crate) async fn found(&self, claim: &Claim) -> Found {
        match self.begin(claim).await {
            Begin::Found(found) => found,
            acquired => panic!("the claim should not have been granted: {acquired:?}"),
        }
    }

    pub(crate) async fn renew(&self, lease: &Lease, lease_for: Duration) -> Held {
        self.store.renew(lease, lease_for).await.expect("renew")
    }

    pub(crate) async fn give_up(&self, lease: &Lease) -> Held {
        self.renew(lease, Duration::ZERO).await
    }

    pub(crate) async fn complete(&self, lease: &Lease, payload: impl Into<Bytes>) -> Held {
        self.store.complete(lease, &fingerprint(1), payload.into(), LONG).await.expect("complete")
    }

    pub(crate) async fn release(&self, lease: &Lease) -> Held {
        self.store.release(lease, LONG).await.expect("release")
    }

    /// One of the verbs that need the lease.
    pub(crate) async fn held(&self, verb: Verb, lease: &Lease) -> Held {
        match verb {
            Verb::Renew => self.renew(lease, LONG).await,
            Verb::GiveUp => self.give_up(lease).await,
            Verb::Complete => self.complete(lease, "late").await,
            Verb::Release => self.release(lease).await,
            Verb::Begin | Verb::Changed | Verb::Sweep => panic!("{verb:?} needs no lease"),
        }
    }

    pub(crate) async fn state(&self) -> Option<State> {
        self.store.get(&self.id).await.expect("get").map(|entry| entry.state)
    }

    pub(crate) async fn assert_finished_with(&self, payload: &str, rule: &str) {
        assert_is!(
            self.found(&self.take_over()).await,
            Found::Finished { payload: kept, .. } if kept == payload.as_bytes(),
            rule
        );
    }
}

/// An operation that no other test knows.
pub(crate) fn operation() -> OperationId {
    let mut id = [0; 32];
    id[..16].copy_from_slice(&SystemEntropy.next_u128().to_be_bytes());
    id[16..].copy_from_slice(&SystemEntropy.next_u128().to_be_bytes());
    OperationId::from_bytes(id)
}

pub(crate) fn claim(id: OperationId) -> Claim {
    Claim {
        id,
        owner: Owner::new(&SystemEntropy),
        fingerprint: fingerprint(1),
        lease: LONG,
        retention: LONG,
        take_over: false,
    }
}

pub(crate) fn lease(claim: &Claim, acquired: Acquired) -> Lease {
    Lease { id: claim.id, owner: claim.owner, attempt: acquired.attempt, fence: acquired.fence }
}

/// The fingerprint of one of several requests, bodies included.
pub(crate) fn fingerprint(request: u8) -> Fingerprint {
    Fingerprint {
        algorithm: Algorithm::from_u32(1),
        head: [request; 32],
        body: Some(BodyPart { digest: [request; 32], length: 17, extent: Extent::Whole }),
    }
}
