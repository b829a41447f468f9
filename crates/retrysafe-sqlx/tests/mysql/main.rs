//! What only a store in MySQL or MariaDB has to prove; the rest is the contract's. On real servers.

#![expect(clippy::unwrap_used, reason = "a test says what failed by where it panics")]

mod contract;
mod drills;
mod open;
mod processes;
mod requests;
mod sessions;
mod sweep;
mod waiting;

use std::time::Duration;

use retrysafe_core::{
    Acquired, Algorithm, Begin, Claim, Entropy as _, Fingerprint, Lease, OperationId, Owner, Store,
    StoreError, SystemEntropy,
};
use retrysafe_sqlx::{MySqlStore, MySqlStoreBuilder};
use retrysafe_testkit::servers::MariadbServer;
use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection, mysql::MySqlRow};
use tokio::sync::OnceCell;

const LONG: Duration = Duration::from_secs(60 * 60);

/// Longer than a machine that is busy with other things stands still.
const PATIENCE: Duration = Duration::from_secs(150);

/// A table of its own in the database that the tests of this process share.
#[derive(Clone)]
struct Table {
    url: String,
    name: String,
}

impl Table {
    async fn new() -> Self {
        static DATABASE: OnceCell<String> = OnceCell::const_new();
        let url =
            DATABASE.get_or_init(async || MariadbServer::shared().await.fresh_database().await);
        Self::at(url.await)
    }

    fn at(url: &str) -> Self {
        let name = format!("record_{:016x}", SystemEntropy.next_u128() >> 64);
        Self { url: url.to_owned(), name }
    }

    fn builder(&self) -> MySqlStoreBuilder {
        let builder = MySqlStore::builder(&self.url).table(&self.name).migrate();
        builder.max_connections(4).timeout(PATIENCE)
    }

    async fn open(&self) -> MySqlStore {
        self.builder().open().await.unwrap()
    }

    /// For another process: [`at_address`](Self::at_address) is this table again.
    fn address(&self) -> String {
        format!("{} {}", self.url, self.name)
    }

    fn at_address(address: &str) -> Self {
        let (url, name) = address.split_once(' ').unwrap();
        Self { url: url.to_owned(), name: name.to_owned() }
    }

    /// Runs a statement in which `{table}` is this one, as anybody could.
    async fn run(&self, sql: &str) -> Vec<MySqlRow> {
        run(&self.url, &sql.replace("{table}", &self.name)).await
    }
}

async fn run(url: &str, sql: &str) -> Vec<MySqlRow> {
    let mut connection = MySqlConnection::connect(url).await.unwrap();
    let sql = format!("SET autocommit = 1; {sql}");
    let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    rows
}

fn claim(id: OperationId) -> Claim {
    Claim {
        id,
        owner: Owner::new(&SystemEntropy),
        fingerprint: Fingerprint { algorithm: Algorithm::from_u32(1), head: [1; 32], body: None },
        lease: LONG,
        retention: LONG * 24,
        take_over: false,
    }
}

/// The operation with this number.
fn numbered(number: u64) -> OperationId {
    let mut id = [7; 32];
    id[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    id[8..16].copy_from_slice(&number.to_be_bytes());
    OperationId::from_bytes(id)
}

fn operation() -> OperationId {
    let half = SystemEntropy.next_u128().to_be_bytes();
    OperationId::from_bytes([half, half].concat().try_into().unwrap())
}

/// An operation's id as SQL writes it.
fn literal(id: &OperationId) -> String {
    let digits: String = id.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("x'{digits}'")
}

fn lease(claim: &Claim, acquired: Acquired) -> Lease {
    Lease { id: claim.id, owner: claim.owner, attempt: acquired.attempt, fence: acquired.fence }
}

async fn acquire(store: &impl Store, claim: &Claim) -> Lease {
    match store.begin(claim).await.unwrap() {
        Begin::Acquired(acquired) => lease(claim, acquired),
        found => panic!("the claim should have been granted: {found:?}"),
    }
}

/// Calls until there is an answer: how a caller gets over a server that comes back.
async fn until_answered<T>(call: impl AsyncFn() -> Result<T, StoreError>) -> T {
    let answered = async {
        loop {
            match call().await {
                Ok(answer) => return answer,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, answered).await.expect("the server is back")
}
