//! The ledger, and its audit.

use std::{collections::HashMap, fmt};

use crate::{
    client::{ACCOUNTS, Asked},
    database::{Ledger, Slip},
    processor::Charge,
};

/// What is on each account at first.
pub(crate) const BALANCE: i64 = 1000;

/// What was found in the end.
#[derive(Debug)]
pub(crate) struct Audit {
    pub(crate) kills: u32,
    /// What clients were told has happened.
    pub(crate) transfers: usize,
    /// Of these, and of what they were told has not, how many happened once too often: in the ledger,
    /// or on the card.
    pub(crate) doubled: usize,
    /// What clients were told has happened, and did not, or not on the card; or is told otherwise now.
    pub(crate) lost: usize,
    /// Whether the balances are what the slips say; and the charges, too.
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
/// in the end; and against the charges of the card processor, where transfers have any.
pub(crate) fn audit(
    ledger: &Ledger,
    charges: Option<&[Charge]>,
    asked: &[Asked],
    differing: usize,
    kills: u32,
) -> Audit {
    let (mut slips, mut charged) = (HashMap::<&str, Vec<&Slip>>::new(), HashMap::new());
    let mut balances = vec![BALANCE; ACCOUNTS as usize];
    for slip in &ledger.slips {
        slips.entry(&*slip.request).or_default().push(slip);
        balances[slip.payer as usize] -= slip.amount;
        balances[slip.payee as usize] += slip.amount;
    }
    for charge in charges.unwrap_or_default() {
        *charged.entry(&*charge.request).or_insert(0_usize) += 1;
    }
    let total: i64 = ledger.balances.iter().sum();
    let (mut transfers, mut doubled, mut lost) = (0, 0, differing);
    for asked in asked {
        let expected = usize::from(asked.answer.status == 201);
        transfers += expected;
        let slips = slips.remove(&*asked.key).unwrap_or_default();
        let charged = charges.map(|_| charged.remove(&*asked.key).unwrap_or(0));
        let most = slips.len().max(charged.unwrap_or(0));
        doubled += most.saturating_sub(expected);
        let is_there = slips.iter().any(|slip| slip.answer() == asked.answer.body);
        lost += usize::from(expected == 1 && (!is_there || charged == Some(0)));
    }
    // What nobody asked for.
    doubled += slips.len() + charged.len();
    let is_charged = charges.is_none_or(|charges| is_charged(&ledger.slips, charges));
    let balance_ok = ledger.balances == balances && total == BALANCE * ACCOUNTS && is_charged;
    Audit { kills, transfers, doubled, lost, balance_ok }
}

/// Whether each slip has its charge, and each charge its slip.
fn is_charged(slips: &[Slip], charges: &[Charge]) -> bool {
    let mut of_slips: Vec<_> =
        slips.iter().map(|slip| (slip.charge, &*slip.request, slip.amount)).collect();
    let mut of_processor: Vec<_> =
        charges.iter().map(|it| (Some(it.number), &*it.request, it.amount)).collect();
    of_slips.sort_unstable();
    of_processor.sort_unstable();
    of_slips == of_processor
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Answer;

    /// One transfer from the first account to the second, told to have this status.
    fn audited(status: u16, slips: &[Option<i64>], charges: &[i64]) -> Audit {
        let slip = |(number, charge): (usize, &Option<i64>)| Slip {
            number: number as i64,
            request: "one".to_owned(),
            payer: 0,
            payee: 1,
            amount: 5,
            charge: *charge,
        };
        let slips: Vec<_> = slips.iter().enumerate().map(slip).collect();
        let mut balances = vec![BALANCE; ACCOUNTS as usize];
        balances[0] -= 5 * slips.len() as i64;
        balances[1] += 5 * slips.len() as i64;
        let charge =
            |number: &i64| Charge { number: *number, request: "one".to_owned(), amount: 5 };
        let charges: Vec<_> = charges.iter().map(charge).collect();
        let body = slips.first().map_or("not enough".to_owned(), Slip::answer);
        let answer = Answer { status, body };
        let asked = Asked { key: "one".to_owned(), body: "0 1 5".to_owned(), answer };
        audit(&Ledger { balances, slips }, Some(&charges), &[asked], 0, 0)
    }

    #[test]
    fn an_audit_sees_what_is_charged_twice_or_not_at_all() {
        let counts = |audit: &Audit| (audit.doubled, audit.lost, audit.balance_ok);
        assert_eq!(counts(&audited(201, &[Some(7)], &[7])), (0, 0, true));
        assert_eq!(counts(&audited(422, &[], &[])), (0, 0, true));
        assert_eq!(counts(&audited(201, &[Some(7)], &[7, 8])), (1, 0, false));
        assert_eq!(counts(&audited(201, &[Some(7), Some(8)], &[7, 8])), (1, 0, true));
        assert_eq!(counts(&audited(201, &[Some(7)], &[])), (0, 1, false));
        assert_eq!(counts(&audited(201, &[Some(7)], &[8])), (0, 0, false));
        assert_eq!(counts(&audited(201, &[], &[7])), (0, 1, false));
        assert_eq!(counts(&audited(422, &[], &[7])), (1, 0, false));
    }
}
