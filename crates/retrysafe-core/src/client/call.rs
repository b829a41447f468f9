//! One logical call: what follows when an attempt has ended (C3 to C5).

use std::{fmt, time::Duration};

use super::{AttemptEnd, Dialect, RetryBudget, RetryPolicy, answer::Meaning};
use crate::{Clock, Entropy};

/// What makes it safe to send a request again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Safety {
    /// It has a key, and the server keeps keys.
    Keyed,
    /// It has a key, but this server is not known to keep any: it is sent again only if nothing was
    /// sent, or the server said that it refused.
    NamedOnly,
    /// Its method is idempotent by itself (RFC 9110).
    Idempotent,
    /// Nothing does: it is sent again only if nothing was sent (C4).
    Bare,
}

/// Why a request is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// Something failed that may work the next time.
    Transient,
    /// The server has too much to do.
    Throttled,
    /// Another attempt of the same operation is in progress.
    InProgress,
}

impl Retry {
    /// The word for it in metrics and traces.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Throttled => "throttled",
            Self::InProgress => "in_progress",
        }
    }
}

/// What follows the end of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// This is the answer; the caller gets it as it is.
    Answer,
    /// There is no answer, and nothing that has to be found out; the caller gets the error as it is.
    Failed,
    /// The same request again, with the same key.
    Again {
        /// After this pause.
        after: Duration,
        /// Why.
        retry: Retry,
    },
    /// Nobody knows what became of the operation, and this call does not ask again. The caller gets
    /// an error that names the key.
    Unknown(Unknown),
}

/// Why the outcome of a call stayed unknown (C5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unknown {
    /// All attempts were made.
    Attempts,
    /// The deadline came.
    Deadline,
    /// The retry budget was spent.
    Budget,
    /// The server forgets the key before another attempt could end.
    Retention,
    /// The body was a stream, and can't be sent again.
    Unrepeatable,
    /// The server is not known to keep keys, so that a retry could execute again.
    NoKeysKept,
    /// The server said that it does not know.
    Reported,
    /// A later attempt was refused for something else, such as credentials that had expired.
    Refused,
    /// The call that others of this process waited for was given up by its caller.
    Abandoned,
    /// The server asked not to be asked again.
    Stopped,
    /// This client can't send the request that an earlier one sent.
    Unsendable,
}

impl Unknown {
    /// The word for it in metrics and traces.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Attempts => "attempts",
            Self::Deadline => "deadline",
            Self::Budget => "budget",
            Self::Retention => "retention",
            Self::Unrepeatable => "unrepeatable",
            Self::NoKeysKept => "no_keys_kept",
            Self::Reported => "reported",
            Self::Refused => "refused",
            Self::Abandoned => "abandoned",
            Self::Stopped => "stopped",
            Self::Unsendable => "unsendable",
        }
    }
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Attempts => "all attempts were made",
            Self::Deadline => "the deadline came",
            Self::Budget => "the retry budget is spent",
            Self::Retention => "the server would forget the key meanwhile",
            Self::Unrepeatable => "the body can't be sent again",
            Self::NoKeysKept => "the server keeps no keys, so that a retry could execute again",
            Self::Reported => "the server does not know it either",
            Self::Refused => "a later attempt was refused",
            Self::Abandoned => "the call that was waited for was given up",
            Self::Stopped => "the server asked not to be asked again",
            Self::Unsendable => "this client can't send the request",
        })
    }
}

/// One logical call, from before its first attempt to its end. It is told how each attempt ended and
/// says what is next; it sends nothing and waits for nothing.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    policy: &'a RetryPolicy,
    dialect: &'a Dialect,
    safety: Safety,
    repeatable: bool,
    /// Monotonic.
    deadline: Duration,
    /// By the wall clock, because it may have been in another process.
    first_sent: Duration,
    attempts: u32,
    waits: u32,
    retries: u32,
    /// A request of this operation may have been executed.
    maybe_done: bool,
    spent: Option<u32>,
    budget_refused: bool,
    /// The last answer is about the operation, and not about trying again.
    settled: bool,
}

impl<'a> Call<'a> {
    /// A call that begins now.
    pub fn start(
        policy: &'a RetryPolicy,
        dialect: &'a Dialect,
        safety: Safety,
        clock: &dyn Clock,
    ) -> Self {
        Self {
            policy,
            dialect,
            safety,
            repeatable: true,
            deadline: clock.monotonic().saturating_add(policy.deadline),
            first_sent: clock.wall(),
            attempts: 0,
            waits: 0,
            retries: 0,
            maybe_done: false,
            spent: None,
            budget_refused: false,
            settled: false,
        }
    }

    /// The body is a stream: it can be sent once.
    pub fn unrepeatable(mut self) -> Self {
        self.repeatable = false;
        self
    }

    /// The whole call may take so long, whatever the policy says.
    pub fn within(mut self, deadline: Duration, clock: &dyn Clock) -> Self {
        self.deadline = clock.monotonic().saturating_add(deadline);
        self
    }

    /// An earlier call of this operation was first sent at this wall-clock time, and its outcome is
    /// unknown.
    pub fn resumed(mut self, first_sent: Duration) -> Self {
        self.first_sent = self.first_sent.min(first_sent);
        self.maybe_done = true;
        self
    }

    /// How many requests have been sent, those included that met another attempt in progress.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Whether the budget refused a retry.
    pub fn budget_refused(&self) -> bool {
        self.budget_refused
    }

    /// Whether the operation was surely not executed: nothing was sent, or every attempt was refused.
    pub fn surely_not_done(&self) -> bool {
        !self.maybe_done && !self.settled
    }

    /// How long the next attempt may take.
    pub fn attempt_timeout(&self, clock: &dyn Clock) -> Duration {
        self.policy.attempt_timeout.min(self.deadline.saturating_sub(clock.monotonic()))
    }

    /// Whether the operation may be sent at all. A resumed call whose key the server keeps not at all
    /// (C4), or forgets too soon (C5), may not: it could execute again.
    ///
    /// # Errors
    ///
    /// Why it may not.
    pub fn may_begin(&self, clock: &dyn Clock) -> Result<(), Unknown> {
        match self.safety {
            _ if !self.maybe_done => Ok(()),
            Safety::NamedOnly | Safety::Bare => Err(Unknown::NoKeysKept),
            _ if self.forgotten_after(Duration::ZERO, clock) => Err(Unknown::Retention),
            Safety::Keyed | Safety::Idempotent => Ok(()),
        }
    }

    /// What follows the end of an attempt.
    pub fn judge(
        &mut self,
        end: &AttemptEnd,
        budget: &RetryBudget,
        clock: &dyn Clock,
        entropy: &dyn Entropy,
    ) -> Next {
        self.attempts += 1;
        self.maybe_done |= matches!(end, AttemptEnd::Answered(answer) if answer.of_another);
        let (retry, done) = match end.meaning(self.dialect) {
            Meaning::Final => return self.end_with(end, budget),
            Meaning::Unknown if self.has_key() => return Next::Unknown(Unknown::Reported),
            Meaning::Unknown => return Next::Answer,
            Meaning::Again { retry, done } => (retry, done),
        };
        self.maybe_done |= done;
        if retry == Retry::InProgress {
            self.waits += 1;
        }
        match self.pause(end, retry, budget, clock, entropy) {
            Ok(after) => {
                self.retries += 1;
                Next::Again { after, retry }
            }
            Err(why) if self.maybe_done && self.has_key() => Next::Unknown(why),
            Err(_) if matches!(end, AttemptEnd::Answered(_)) => Next::Answer,
            Err(_) => Next::Failed,
        }
    }

    fn has_key(&self) -> bool {
        matches!(self.safety, Safety::Keyed | Safety::NamedOnly)
    }

    fn end_with(&mut self, end: &AttemptEnd, budget: &RetryBudget) -> Next {
        let AttemptEnd::Answered(answer) = end else {
            // C5: this one was not sent, but an earlier one may have been received.
            let unknown = self.maybe_done && self.has_key();
            return if unknown { Next::Unknown(Unknown::Unsendable) } else { Next::Failed };
        };
        // Who may not ask is not told what became of the earlier attempt.
        if self.maybe_done && self.has_key() && answer.is_at_the_door() {
            return Next::Unknown(Unknown::Refused);
        }
        // PROTOCOL 5 releases these in every column: nothing was done, and the same key may come again.
        self.settled = answer.replayed || !matches!(answer.status.as_u16(), 401 | 407 | 426);
        if !answer.status.is_server_error() {
            budget.succeeded(self.spent);
        }
        Next::Answer
    }

    /// How long to wait before the next attempt, or why there is none.
    fn pause(
        &mut self,
        end: &AttemptEnd,
        retry: Retry,
        budget: &RetryBudget,
        clock: &dyn Clock,
        entropy: &dyn Entropy,
    ) -> Result<Duration, Unknown> {
        if matches!(end, AttemptEnd::Answered(answer) if answer.stop) {
            return Err(Unknown::Stopped);
        }
        if !self.repeatable {
            return Err(Unknown::Unrepeatable);
        }
        match self.safety {
            Safety::Keyed | Safety::Idempotent => {}
            Safety::NamedOnly if !self.maybe_done => {}
            Safety::NamedOnly => return Err(Unknown::NoKeysKept),
            // client_retries_keyless_post
            Safety::Bare if *end == AttemptEnd::NotSent => {}
            Safety::Bare => return Err(Unknown::NoKeysKept),
        }
        if retry != Retry::InProgress && self.attempts - self.waits >= self.policy.attempts {
            return Err(Unknown::Attempts);
        }
        let mut after = self.policy.backoff.pause(retry, self.retries, entropy);
        if let AttemptEnd::Answered(answer) = end
            && let Some(told) = answer.retry_after
        {
            // Everybody was told the same moment: those who were refused together must not come
            // back together.
            let spread = self.policy.backoff.pause(retry, 0, entropy);
            after = told.min(self.policy.max_retry_after).saturating_add(spread);
        }
        if clock.monotonic().saturating_add(after) >= self.deadline {
            return Err(Unknown::Deadline);
        }
        if self.maybe_done && self.forgotten_after(after, clock) {
            return Err(Unknown::Retention);
        }
        // Last, so that nothing is spent on a retry that is not made.
        let Some(spent) = budget.spend(retry) else {
            self.budget_refused = true;
            return Err(Unknown::Budget);
        };
        if retry != Retry::InProgress {
            self.spent = Some(spent);
        }
        Ok(after)
    }

    /// C5: whether the server could forget the key before an attempt that begins then has ended.
    fn forgotten_after(&self, pause: Duration, clock: &dyn Clock) -> bool {
        let ends = clock.wall().saturating_add(pause).saturating_add(self.policy.attempt_timeout);
        ends >= self.first_sent.saturating_add(self.dialect.retention)
    }
}
