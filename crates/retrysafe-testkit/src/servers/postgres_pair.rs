//! PostgreSQL: a primary and its synchronous standby.

use super::{
    address::Authority,
    postgres::{Postgres, PostgresServer},
    process::until,
    server::Server,
    wire::Wire,
};

/// A primary that acknowledges a commit when its standby has it on disk too, and the standby, on a
/// link that can be cut.
///
/// ```no_run
/// use retrysafe_testkit::servers::PostgresPair;
///
/// # async fn test() {
/// let mut pair = PostgresPair::start().await;
/// let url = pair.primary.fresh_database().await;
/// pair.primary.kill().await;
/// pair.promote().await;
/// let url = pair.on_standby(&url); // everything that was acknowledged is there
/// # }
/// ```
#[derive(Debug)]
pub struct PostgresPair {
    /// Takes writes.
    pub primary: PostgresServer,
    /// Takes none, until it is promoted.
    pub standby: PostgresServer,
    link: Wire,
}

impl PostgresPair {
    /// Starts both; returns when the standby is synchronous.
    ///
    /// # Panics
    ///
    /// As [`PostgresServer::start`].
    pub async fn start() -> Self {
        // Kept for a standby that was cut off for a while.
        let settings = ["synchronous_standby_names=standby", "wal_keep_size=256MB"];
        let primary = PostgresServer::with(&settings).await;
        let link = Wire::to(primary.addr()).await;
        let standby = Postgres::standby("standby", link.url_for(&primary.url()));
        let standby = Server::launch(standby).await;
        let pair = Self { primary, standby, link };
        pair.is_synchronous().await;
        pair
    }

    /// The URL of the primary.
    pub fn url(&self) -> String {
        self.primary.url()
    }

    /// The same database on the standby.
    pub fn on_standby(&self, url: &str) -> String {
        Authority::of(url).at(self.standby.addr())
    }

    /// Returns when all that the primary has written can be seen on the standby, which has it on its disk
    /// a little earlier.
    ///
    /// # Panics
    ///
    /// If that takes too long.
    pub async fn standby_has_replayed(&self) {
        let written = self.primary.query("SELECT pg_current_wal_lsn()").await;
        let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
        let seen = async || self.standby.query(&replayed).await == "t";
        until("the standby has replayed what was written", seen).await;
    }

    /// Makes the standby a primary that waits for nobody. Returns when it takes writes.
    ///
    /// # Panics
    ///
    /// If it isn't promoted.
    pub async fn promote(&self) {
        let promoted = self.standby.query("SELECT pg_promote(true, 60)").await;
        assert_eq!(promoted, "t", "the standby is promoted");
    }

    /// Cuts the standby off. The primary goes on writing, and acknowledges nothing.
    pub async fn cut_link(&self) {
        self.link.refuse().await;
    }

    /// Mends the link; returns when the standby is synchronous again.
    ///
    /// # Panics
    ///
    /// If it was promoted.
    pub async fn mend_link(&self) {
        self.link.accept().await;
        self.is_synchronous().await;
    }

    async fn is_synchronous(&self) {
        let sync = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        until("the standby is synchronous", async || self.primary.query(sync).await == "1").await;
    }
}
