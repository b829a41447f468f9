//! How often, how long and after which pauses a call is tried (C3).

use std::time::Duration;

use super::{BudgetPolicy, Retry};
use crate::{ConfigError, Entropy};

/// How often, how long and after which pauses a call is tried.
///
/// The constants are the ones that the AWS SDKs publish for their standard mode: three attempts,
/// full jitter over `min(20 s, base * 2^n)`, 500 tokens.
///
/// ```
/// use std::time::Duration;
/// use retrysafe_core::client::RetryPolicy;
///
/// let mut patient = RetryPolicy::default();
/// patient.attempts = 6;
/// patient.deadline = Duration::from_secs(600);
/// patient.validate()?;
/// # Ok::<(), retrysafe_core::ConfigError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// How often a request is sent at most. Waiting for an attempt that is in progress does not
    /// count. 3.
    pub attempts: u32,
    /// How long the whole call may take: attempts, pauses and waiting. 2 min.
    pub deadline: Duration,
    /// How long one attempt may take, from connecting to the end of the answer; for a stream, to its
    /// beginning. 30 s.
    pub attempt_timeout: Duration,
    /// The pauses between attempts.
    pub backoff: Backoff,
    /// The longest `Retry-After` that is honoured; a longer one counts as this long. 60 s.
    pub max_retry_after: Duration,
    /// What retries may cost.
    pub budget: BudgetPolicy,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 3,
            deadline: Duration::from_secs(120),
            attempt_timeout: Duration::from_secs(30),
            backoff: Backoff::default(),
            max_retry_after: Duration::from_secs(60),
            budget: BudgetPolicy::default(),
        }
    }
}

impl RetryPolicy {
    /// Checks that the settings fit together.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first setting that can't be used.
    pub fn validate(&self) -> Result<(), ConfigError> {
        const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
        let error = |setting, problem| Err(ConfigError::new(setting, problem));
        if self.attempts == 0 {
            return error("attempts", "must be 1 or more");
        }
        if self.deadline.is_zero() || self.deadline > LONGEST {
            return error("deadline", "must be longer than zero and at most a year");
        }
        if self.attempt_timeout.is_zero() {
            return error("attempt_timeout", "must be longer than zero");
        }
        if self.backoff.cap > LONGEST {
            return error("backoff_cap", "must not be longer than a year");
        }
        if self.max_retry_after > LONGEST {
            return error("max_retry_after", "must not be longer than a year");
        }
        self.budget.validate()
    }
}

/// The pauses between attempts: full jitter, `U(0,1) * min(cap, base * 2^n)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The base after a transient failure, and for asking again for what is in progress. 50 ms.
    pub transient: Duration,
    /// The base after a refusal for load. 1 s.
    pub throttled: Duration,
    /// No pause is longer, but for a `Retry-After`. 20 s.
    pub cap: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            transient: Duration::from_millis(50),
            throttled: Duration::from_secs(1),
            cap: Duration::from_secs(20),
        }
    }
}

impl Backoff {
    /// What the pause before retry `n` (from 0) is drawn from: its upper end.
    pub fn bound(&self, retry: Retry, n: u32) -> Duration {
        let base = match retry {
            Retry::Transient | Retry::InProgress => self.transient,
            Retry::Throttled => self.throttled,
        };
        base.saturating_mul(1_u32.checked_shl(n).unwrap_or(u32::MAX)).min(self.cap)
    }

    /// The pause before retry `n` (from 0).
    pub fn pause(&self, retry: Retry, n: u32, entropy: &dyn Entropy) -> Duration {
        self.bound(retry, n).mul_f64(fraction(entropy))
    }
}

/// A number drawn from 0 (with) to 1 (without).
fn fraction(entropy: &dyn Entropy) -> f64 {
    // As many bits as a double can tell apart.
    let bits = (entropy.next_u128() >> (128 - 53)) as u64;
    bits as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(u128);

    impl Entropy for Fixed {
        fn next_u128(&self) -> u128 {
            self.0
        }
    }

    #[test]
    fn c3_the_schedule_against_the_published_constants() {
        let backoff = Backoff::default();
        let bounds =
            |retry| (0..12).map(|n| backoff.bound(retry, n).as_millis()).collect::<Vec<_>>();
        let transient =
            [50, 100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 20_000, 20_000, 20_000];
        let throttled = [1_000, 2_000, 4_000, 8_000, 16_000];
        assert_eq!(bounds(Retry::Transient), transient);
        assert_eq!(bounds(Retry::InProgress), transient);
        assert_eq!(bounds(Retry::Throttled)[..5], throttled);
        assert!(bounds(Retry::Throttled)[5..].iter().all(|it| *it == 20_000));
        assert_eq!(backoff.bound(Retry::Transient, 4_000), backoff.cap);
    }

    #[test]
    fn c3_full_jitter_is_drawn_from_zero_to_the_bound() {
        let backoff = Backoff::default();
        for (drawn, pause) in [
            (0, Duration::ZERO),
            (1 << 126, Duration::from_secs(1)),
            (1 << 127, Duration::from_secs(2)),
            (3 << 126, Duration::from_secs(3)),
        ] {
            assert_eq!(backoff.pause(Retry::Throttled, 2, &Fixed(drawn)), pause);
        }
        let longest = backoff.pause(Retry::Throttled, 2, &Fixed(u128::MAX));
        assert!(longest <= Duration::from_secs(4) && longest > Duration::from_millis(3_999));
    }

    #[test]
    fn what_can_not_be_used_is_named() {
        let refused = |change: fn(&mut RetryPolicy)| {
            let mut policy = RetryPolicy::default();
            change(&mut policy);
            policy.validate().unwrap_err().setting()
        };
        assert_eq!(refused(|it| it.attempts = 0), "attempts");
        assert_eq!(refused(|it| it.deadline = Duration::ZERO), "deadline");
        assert_eq!(refused(|it| it.attempt_timeout = Duration::ZERO), "attempt_timeout");
        assert_eq!(refused(|it| it.backoff.cap = Duration::MAX), "backoff_cap");
        assert_eq!(refused(|it| it.max_retry_after = Duration::MAX), "max_retry_after");
        assert_eq!(refused(|it| it.budget.transient = 0), "retry_budget");
        assert!(RetryPolicy::default().validate().is_ok());
    }
}
