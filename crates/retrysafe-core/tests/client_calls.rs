//! What follows when an attempt has ended: C3 to C5, through [`Call`].

#![expect(clippy::unwrap_used, reason = "a test says what failed by where it panics")]

use std::time::Duration;

use http::StatusCode;
use retrysafe_core::{
    Clock, Code, Entropy,
    client::{
        Answer, AttemptEnd, BudgetPolicy, Call, Dialect, Next, Retry, RetryBudget, RetryPolicy,
        Safety, Unknown,
    },
};

/// Draws the half of everything.
struct Half;

impl Entropy for Half {
    fn next_u128(&self) -> u128 {
        1 << 127
    }
}

/// A moment, by both of a clock's hands.
#[derive(Clone, Copy)]
struct Moment {
    monotonic: Duration,
    wall: Duration,
}

impl Clock for Moment {
    fn wall(&self) -> Duration {
        self.wall
    }

    fn monotonic(&self) -> Duration {
        self.monotonic
    }
}

const START: Moment =
    Moment { monotonic: Duration::from_secs(7), wall: Duration::from_secs(1_780_000_000) };

fn later(time: Duration) -> Moment {
    Moment { monotonic: START.monotonic + time, wall: START.wall + time }
}

fn answered(status: u16) -> AttemptEnd {
    AttemptEnd::Answered(Answer::of(StatusCode::from_u16(status).unwrap()))
}

fn in_progress() -> AttemptEnd {
    let mut answer = Answer::of(StatusCode::CONFLICT);
    answer.code = Some(Code::InProgress);
    answer.retry_after = Some(Duration::from_secs(1));
    AttemptEnd::Answered(answer)
}

/// A call and all that it asks.
struct Tried {
    policy: RetryPolicy,
    dialect: Dialect,
    budget: RetryBudget,
}

impl Default for Tried {
    fn default() -> Self {
        Self {
            policy: RetryPolicy::default(),
            dialect: Dialect::draft07(),
            budget: RetryBudget::new(BudgetPolicy::default()),
        }
    }
}

impl Tried {
    fn call(&self, safety: Safety) -> Call<'_> {
        Call::start(&self.policy, &self.dialect, safety, &START)
    }

    fn judge(&self, call: &mut Call<'_>, end: &AttemptEnd) -> Next {
        self.judge_at(call, end, START)
    }

    fn judge_at(&self, call: &mut Call<'_>, end: &AttemptEnd, now: Moment) -> Next {
        call.judge(end, &self.budget, &now, &Half)
    }

    /// What follows each of these ends, one after the other.
    fn all(&self, safety: Safety, ends: &[AttemptEnd]) -> Vec<Next> {
        let mut call = self.call(safety);
        ends.iter().map(|end| self.judge(&mut call, end)).collect()
    }
}

fn again(retry: Retry, milliseconds: u64) -> Next {
    Next::Again { after: Duration::from_millis(milliseconds), retry }
}

#[test]
fn c3_three_attempts_and_then_it_is_unknown() {
    let tried = Tried::default();
    let broken = AttemptEnd::Broken;
    assert_eq!(
        tried.all(Safety::Keyed, &[broken.clone(), broken.clone(), broken]),
        [
            again(Retry::Transient, 25),
            again(Retry::Transient, 50),
            Next::Unknown(Unknown::Attempts)
        ]
    );
    assert_eq!(
        tried.all(Safety::Keyed, &[answered(500), answered(201)]),
        [again(Retry::Transient, 25), Next::Answer]
    );
}

#[test]
fn c3_the_pauses_grow_from_their_base() {
    let mut tried = Tried::default();
    tried.policy.attempts = 20;
    let pauses = |end| {
        let mut call = tried.call(Safety::Keyed);
        let mut pauses = Vec::new();
        while let Next::Again { after, .. } = tried.judge(&mut call, &end) {
            pauses.push(after.as_millis());
        }
        pauses
    };
    assert_eq!(
        pauses(answered(503)),
        [25, 50, 100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000, 10_000, 10_000, 10_000]
            .into_iter()
            .chain([10_000; 5])
            .collect::<Vec<_>>()
    );
    assert_eq!(pauses(answered(429))[..7], [500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000]);
}

#[test]
fn c3_waiting_uses_no_attempt_and_no_token() {
    let tried = Tried::default();
    let mut call = tried.call(Safety::Keyed);
    for second in 0..100 {
        let now = later(Duration::from_secs(second));
        // `Retry-After: 1`, and a little more, so that those who wait don't come all at once.
        assert_eq!(tried.judge_at(&mut call, &in_progress(), now), again(Retry::InProgress, 1025));
    }
    assert_eq!(tried.budget.tokens(), 500);
    // Its attempts are still there.
    let now = later(Duration::from_secs(100));
    for _ in 0..2 {
        let next = tried.judge_at(&mut call, &AttemptEnd::NotSent, now);
        assert!(matches!(next, Next::Again { .. }), "{next:?}");
    }
    let next = tried.judge_at(&mut call, &in_progress(), later(Duration::from_secs(119)));
    assert_eq!(next, Next::Unknown(Unknown::Deadline));
}

#[test]
fn c4_what_can_never_be_sent_is_not_tried_again() {
    let tried = Tried::default();
    for safety in [Safety::Keyed, Safety::NamedOnly, Safety::Idempotent, Safety::Bare] {
        let mut call = tried.call(safety);
        assert_eq!(tried.judge(&mut call, &AttemptEnd::Unsendable), Next::Failed, "{safety:?}");
        assert!(call.surely_not_done());
    }
    // C5: one that may have been received is enough.
    let ends = [AttemptEnd::Broken, AttemptEnd::Unsendable];
    assert_eq!(tried.all(Safety::Keyed, &ends)[1], Next::Unknown(Unknown::Unsendable));
    assert_eq!(tried.budget.tokens(), 500 - 14);
}

#[test]
fn c3_retry_after_is_honoured_up_to_a_minute_and_never_past_the_deadline() {
    let tried = Tried::default();
    for (told, waits) in [(0, 500), (7, 7_500), (60, 60_500), (3_600, 60_500)] {
        let mut answer = Answer::of(StatusCode::TOO_MANY_REQUESTS);
        answer.retry_after = Some(Duration::from_secs(told));
        let end = AttemptEnd::Answered(answer);
        let mut call = tried.call(Safety::Keyed);
        assert_eq!(tried.judge(&mut call, &end), again(Retry::Throttled, waits), "{told}");
        // Refused is refused: it is the answer once there is no more time.
        let mut call = tried.call(Safety::Keyed);
        let next = tried.judge_at(&mut call, &end, later(Duration::from_millis(119_600)));
        assert_eq!(next, Next::Answer);
    }
}

#[test]
fn c5_what_was_surely_not_done_is_no_unknown_outcome() {
    let tried = Tried::default();
    let three = |end: AttemptEnd| tried.all(Safety::Keyed, &[end.clone(), end.clone(), end])[2];
    assert_eq!(three(AttemptEnd::NotSent), Next::Failed);
    assert_eq!(three(answered(429)), Next::Answer);
    assert_eq!(three(answered(529)), Next::Answer);
    assert_eq!(three(answered(503)), Next::Unknown(Unknown::Attempts));
    // One that may have been received is enough.
    let ends = [AttemptEnd::Broken, answered(429), AttemptEnd::NotSent];
    assert_eq!(tried.all(Safety::Keyed, &ends)[2], Next::Unknown(Unknown::Attempts));
}

#[test]
fn c4_never_retried() {
    let tried = Tried::default();
    let coded = |status: u16, code| {
        let mut answer = Answer::of(StatusCode::from_u16(status).unwrap());
        answer.code = Some(code);
        AttemptEnd::Answered(answer)
    };
    let first = |end: AttemptEnd| tried.all(Safety::Keyed, &[end])[0];
    assert_eq!(first(coded(422, Code::KeyReused)), Next::Answer);
    assert_eq!(first(coded(409, Code::ResponseUnavailable)), Next::Answer);
    assert_eq!(first(coded(409, Code::OutcomeUnknown)), Next::Unknown(Unknown::Reported));
    assert_eq!(first(answered(400)), Next::Answer);
    let mut replayed = Answer::of(StatusCode::INTERNAL_SERVER_ERROR);
    replayed.replayed = true;
    assert_eq!(first(AttemptEnd::Answered(replayed)), Next::Answer);
}

#[test]
fn client_retries_keyless_post() {
    // The lesson: a POST without a key was retried on 500.
    let tried = Tried::default();
    let first = |end: AttemptEnd| tried.all(Safety::Bare, &[end])[0];
    for status in [408, 425, 429, 500, 502, 503, 504, 529] {
        assert_eq!(first(answered(status)), Next::Answer, "{status}");
    }
    assert_eq!(first(in_progress()), Next::Answer);
    assert_eq!(first(AttemptEnd::Broken), Next::Failed);
    assert_eq!(first(AttemptEnd::NotSent), again(Retry::Transient, 25));
    // A GET is safe to repeat, and has no outcome to find out.
    let ends = [answered(500), AttemptEnd::Broken, answered(500)];
    assert_eq!(tried.all(Safety::Idempotent, &ends)[2], Next::Answer);
}

#[test]
fn c4_a_server_that_keeps_no_keys_is_asked_again_only_if_it_did_nothing() {
    let tried = Tried { dialect: Dialect::openai_compatible(), ..Tried::default() };
    let first = |end: AttemptEnd| tried.all(Safety::NamedOnly, &[end])[0];
    assert_eq!(first(answered(429)), again(Retry::Throttled, 500));
    assert_eq!(first(AttemptEnd::NotSent), again(Retry::Transient, 25));
    assert_eq!(first(AttemptEnd::Broken), Next::Unknown(Unknown::NoKeysKept));
    assert_eq!(first(answered(500)), Next::Unknown(Unknown::NoKeysKept));
}

#[test]
fn c4_what_such_a_server_may_have_executed_is_not_resumed() {
    let tried = Tried { dialect: Dialect::openai_compatible(), ..Tried::default() };
    for safety in [Safety::NamedOnly, Safety::Bare] {
        let call = tried.call(safety);
        assert_eq!(call.may_begin(&START), Ok(()));
        let resumed = call.resumed(START.wall);
        assert_eq!(resumed.may_begin(&START), Err(Unknown::NoKeysKept));
    }
}

#[test]
fn c5_who_is_refused_at_the_door_has_done_nothing() {
    let tried = Tried::default();
    for (status, nothing_done) in
        [(401, true), (407, true), (426, true), (403, false), (422, false)]
    {
        let mut call = tried.call(Safety::Keyed);
        assert_eq!(tried.judge(&mut call, &answered(status)), Next::Answer);
        assert_eq!(call.surely_not_done(), nothing_done, "{status}");
    }
}

#[test]
fn c4_a_body_that_can_not_be_sent_again_is_not() {
    let tried = Tried::default();
    let first = |end: AttemptEnd| {
        let mut call = tried.call(Safety::Keyed).unrepeatable();
        tried.judge(&mut call, &end)
    };
    assert_eq!(first(AttemptEnd::Broken), Next::Unknown(Unknown::Unrepeatable));
    assert_eq!(first(AttemptEnd::NotSent), Next::Failed);
    assert_eq!(first(answered(429)), Next::Answer);
    assert_eq!(first(answered(201)), Next::Answer);
}

#[test]
fn c5_retrying_stops_before_the_server_forgets() {
    let tried = Tried::default();
    let day = Duration::from_secs(24 * 3600);
    let resumed = |ago: Duration| tried.call(Safety::Keyed).resumed(START.wall - ago);
    assert_eq!(resumed(day / 2).may_begin(&START), Ok(()));
    // The attempt itself may take 30 s.
    let soon = day - Duration::from_secs(30);
    assert_eq!(resumed(soon).may_begin(&START), Err(Unknown::Retention));
    let mut call = resumed(soon - Duration::from_millis(20));
    assert_eq!(call.may_begin(&START), Ok(()));
    let next = tried.judge(&mut call, &AttemptEnd::NotSent);
    assert_eq!(next, Next::Unknown(Unknown::Retention));
}

#[test]
fn c5_a_later_attempt_that_is_refused_says_nothing_of_the_first() {
    let tried = Tried::default();
    for status in [401, 403, 407, 426] {
        let ends = [AttemptEnd::Broken, answered(status)];
        assert_eq!(tried.all(Safety::Keyed, &ends)[1], Next::Unknown(Unknown::Refused));
        assert_eq!(tried.all(Safety::Keyed, &[answered(status)])[0], Next::Answer);
    }
    let ends = [AttemptEnd::Broken, answered(404)];
    assert_eq!(tried.all(Safety::Keyed, &ends)[1], Next::Answer);
}

#[test]
fn c3_a_spent_budget_ends_retries() {
    let tried = Tried::default();
    let mut retries = 0;
    for _ in 0..1_000 {
        let mut call = tried.call(Safety::Keyed);
        while let Next::Again { .. } = tried.judge(&mut call, &answered(500)) {
            retries += 1;
        }
    }
    assert_eq!(retries, 500 / 14, "and not one more, however many calls there are");
    let next = tried.all(Safety::Keyed, &[answered(500)])[0];
    assert_eq!(next, Next::Unknown(Unknown::Budget));
    // Success brings retries back, one for fourteen.
    for _ in 0..14 {
        tried.all(Safety::Keyed, &[answered(201)]);
    }
    let next = tried.all(Safety::Keyed, &[answered(500), answered(201)]);
    assert_eq!(next[1], Next::Answer);
}

#[test]
fn c3_an_attempt_ends_with_the_deadline() {
    let tried = Tried::default();
    let call = tried.call(Safety::Keyed);
    assert_eq!(call.attempt_timeout(&START), Duration::from_secs(30));
    assert_eq!(call.attempt_timeout(&later(Duration::from_secs(110))), Duration::from_secs(10));
    let call = tried.call(Safety::Keyed).within(Duration::from_secs(3), &START);
    assert_eq!(call.attempt_timeout(&START), Duration::from_secs(3));
}
