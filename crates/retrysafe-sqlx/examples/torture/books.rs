//! The ledger, and its audit.

use std::{collections::HashMap, fmt};

use sqlx::{Connection as _, PgConnection, Row as _};

use crate::client::{ACCOUNTS, Asked};

const BALANCE: i64 = 1000;

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

pub(crate) async fn open(url: &str) {
    let ledger = format!(
        "CREATE TABLE account (id bigint PRIMARY KEY, balance bigint NOT NULL);
        INSERT INTO account SELECT id, {BALANCE} FROM generate_series(0, {ACCOUNTS} - 1) AS id;
        CREATE TABLE transfer (number bigint GENERATED ALWAYS AS IDENTITY, key text NOT NULL,
            payer bigint NOT NULL, payee bigint NOT NULL, amount bigint NOT NULL)"
    );
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(ledger)).execute(&mut connection).await.unwrap();
}

/// Holds the ledger against what the clients were told, `differing` of whom were told something else
/// in the end.
pub(crate) async fn audit(url: &str, asked: &[Asked], differing: usize, kills: u32) -> Audit {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let mut happened = HashMap::<String, usize>::new();
    let mut balances = vec![BALANCE; ACCOUNTS as usize];
    let rows = sqlx::query("SELECT key, payer, payee, amount FROM transfer");
    for row in rows.fetch_all(&mut connection).await.unwrap() {
        *happened.entry(row.get(0)).or_default() += 1;
        let (payer, payee, amount): (i64, i64, i64) = (row.get(1), row.get(2), row.get(3));
        balances[payer as usize] -= amount;
        balances[payee as usize] += amount;
    }
    let accounts = sqlx::query_scalar("SELECT balance FROM account ORDER BY id");
    let accounts: Vec<i64> = accounts.fetch_all(&mut connection).await.unwrap();
    let total: i64 = accounts.iter().sum();
    let (mut transfers, mut doubled, mut lost) = (0, 0, differing);
    for asked in asked {
        let expected = usize::from(asked.answer.status == 201);
        transfers += expected;
        let is = happened.remove(&asked.key).unwrap_or(0);
        doubled += is.saturating_sub(expected);
        lost += expected.saturating_sub(is);
    }
    // What nobody asked for.
    doubled += happened.len();
    let balance_ok = accounts == balances && total == BALANCE * ACCOUNTS;
    Audit { kills, transfers, doubled, lost, balance_ok }
}
