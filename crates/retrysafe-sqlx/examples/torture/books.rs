//! The ledger, and its audit.

use std::{collections::HashMap, fmt};

use crate::{
    client::{ACCOUNTS, Asked},
    database::Ledger,
};

/// What is on each account at first.
pub(crate) const BALANCE: i64 = 1000;

/// What was found in the end.
#[derive(Debug)]
pub(crate) struct Audit {
    pub(crate) kills: u32,
    /// What clients were told has happened.
    pub(crate) transfers: usize,
    /// Of these, and of what they were told has not, how many happened once too often.
    pub(crate) doubled: usize,
    /// What clients were told has happened, and did not, or is told otherwise now.
    pub(crate) lost: usize,
    pub(crate) balance_ok: bool,
}

impl Audit {
    pub(crate) fn is_clean(&self) -> bool {
        self.doubled == 0 && self.lost == 0 && self.balance_ok
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kills, transfers, doubled, lost, balance_ok } = self;
        write!(
            f,
            "kills={kills} transfers={transfers} doubled={doubled} lost={lost} \
             balance_ok={balance_ok}"
        )
    }
}

/// Holds the ledger against what the clients were told, `differing` of whom were told something else
/// in the end.
pub(crate) fn audit(ledger: &Ledger, asked: &[Asked], differing: usize, kills: u32) -> Audit {
    let mut happened = HashMap::<&str, usize>::new();
    let mut balances = vec![BALANCE; ACCOUNTS as usize];
    for (request, payer, payee, amount) in &ledger.transfers {
        *happened.entry(request).or_default() += 1;
        balances[*payer as usize] -= amount;
        balances[*payee as usize] += amount;
    }
    let total: i64 = ledger.balances.iter().sum();
    let (mut transfers, mut doubled, mut lost) = (0, 0, differing);
    for asked in asked {
        let expected = usize::from(asked.answer.status == 201);
        transfers += expected;
        let is = happened.remove(&*asked.key).unwrap_or(0);
        doubled += is.saturating_sub(expected);
        lost += expected.saturating_sub(is);
    }
    // What nobody asked for.
    doubled += happened.len();
    let balance_ok = ledger.balances == balances && total == BALANCE * ACCOUNTS;
    Audit { kills, transfers, doubled, lost, balance_ok }
}
