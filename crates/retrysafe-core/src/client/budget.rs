//! The retry budget: what keeps retries from becoming the load that a server dies of (C3).

use std::sync::atomic::{AtomicU32, Ordering};

use super::Retry;
use crate::ConfigError;

/// What a retry costs, and what gives it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetPolicy {
    /// How many tokens there are at most, and at first. 500.
    pub capacity: u32,
    /// What a retry after a transient failure costs. 14.
    pub transient: u32,
    /// What a retry after a refusal for load costs. 5.
    pub throttled: u32,
    /// What a call earns that succeeds at its first attempt. 1.
    pub first_try: u32,
}

impl Default for BudgetPolicy {
    fn default() -> Self {
        Self { capacity: 500, transient: 14, throttled: 5, first_try: 1 }
    }
}

impl BudgetPolicy {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.transient == 0 || self.throttled == 0 {
            return Err(ConfigError::new(
                "retry_budget",
                "a retry that costs nothing has no bound",
            ));
        }
        Ok(())
    }
}

/// The tokens that all calls of one client to one authority share.
///
/// A retry takes tokens out; without enough of them there is no retry. A call that succeeds after a
/// retry puts back what its last retry took, and one that succeeds at once puts in one more. So where
/// everything fails, retries end, and where some fail, their number is bound to that of successes.
#[derive(Debug)]
pub struct RetryBudget {
    policy: BudgetPolicy,
    tokens: AtomicU32,
}

impl RetryBudget {
    /// A full budget.
    pub fn new(policy: BudgetPolicy) -> Self {
        Self { policy, tokens: AtomicU32::new(policy.capacity) }
    }

    /// How many tokens are left.
    pub fn tokens(&self) -> u32 {
        self.tokens.load(Ordering::Relaxed)
    }

    /// Takes out what a retry costs, and says how much that was; `None` if there is not enough.
    pub(super) fn spend(&self, retry: Retry) -> Option<u32> {
        let cost = match retry {
            Retry::Transient => self.policy.transient,
            Retry::Throttled => self.policy.throttled,
            // C3: waiting for another attempt's answer costs nothing but time.
            Retry::InProgress => return Some(0),
        };
        let taken = |tokens: u32| tokens.checked_sub(cost);
        self.tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).ok().map(|_| cost)
    }

    /// Puts tokens back: what the last retry of a successful call took, or, if it had none, what a
    /// first try earns.
    pub(super) fn succeeded(&self, spent: Option<u32>) {
        let earned = spent.unwrap_or(self.policy.first_try);
        // A full budget is the common case, and is left alone: no processor has to own its line.
        if self.tokens() >= self.policy.capacity {
            return;
        }
        let put = |tokens: u32| Some(tokens.saturating_add(earned).min(self.policy.capacity));
        let _ = self.tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, put);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c3_the_published_constants() {
        let budget = RetryBudget::new(BudgetPolicy::default());
        assert_eq!(budget.tokens(), 500);
        assert_eq!(budget.spend(Retry::Transient), Some(14));
        assert_eq!(budget.spend(Retry::Throttled), Some(5));
        assert_eq!(budget.spend(Retry::InProgress), Some(0));
        assert_eq!(budget.tokens(), 481);
        budget.succeeded(None);
        assert_eq!(budget.tokens(), 482);
        budget.succeeded(Some(14));
        assert_eq!(budget.tokens(), 496);
        budget.succeeded(Some(14));
        assert_eq!(budget.tokens(), 500, "never more than its capacity");
    }

    #[test]
    fn c3_an_empty_budget_refuses() {
        let budget = RetryBudget::new(BudgetPolicy { capacity: 30, ..BudgetPolicy::default() });
        assert_eq!(budget.spend(Retry::Transient), Some(14));
        assert_eq!(budget.spend(Retry::Transient), Some(14));
        assert_eq!(budget.spend(Retry::Transient), None);
        assert_eq!(budget.spend(Retry::Throttled), None);
        assert_eq!(budget.tokens(), 2);
        for _ in 0..3 {
            budget.succeeded(None);
        }
        assert_eq!(budget.spend(Retry::Throttled), Some(5));
    }
}
