//! One retry budget for each authority (C3).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use retrysafe_core::client::{BudgetPolicy, RetryBudget};

use crate::calls::lock;

/// After so many authorities the others share one budget, so that this stays bounded.
const MOST: usize = 1024;

pub(crate) struct Budgets {
    policy: BudgetPolicy,
    known: Mutex<HashMap<Box<str>, Arc<RetryBudget>>>,
    others: Arc<RetryBudget>,
}

impl Budgets {
    pub(crate) fn new(policy: BudgetPolicy) -> Self {
        Self { policy, known: Mutex::default(), others: Arc::new(RetryBudget::new(policy)) }
    }

    pub(crate) fn of(&self, authority: &str) -> Arc<RetryBudget> {
        let mut known = lock(&self.known);
        if let Some(budget) = known.get(authority) {
            return budget.clone();
        }
        if known.len() >= MOST {
            return self.others.clone();
        }
        let budget = Arc::new(RetryBudget::new(self.policy));
        known.insert(authority.into(), budget.clone());
        budget
    }
}
