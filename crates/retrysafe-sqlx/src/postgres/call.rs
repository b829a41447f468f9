//! One call of a verb: its statements, its deadline, and the store that they are run for.

use std::time::Duration;

use bytes::Bytes;
use retrysafe_core::{StoreError, StoreErrorKind};
use sqlx::{
    Postgres, SqlStr,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use tokio::{
    sync::OnceCell,
    time::{Instant, sleep, timeout_at},
};

use super::{
    builder::Settings,
    connections::{Connections, Lent},
    failure::{self, Failure, Place},
    server,
    statements::Statements,
};
use crate::{OpenError, OpenErrorKind, table::TableName, watch::Watches};

/// How long opening waits for a server, unless a verb may take longer.
const OPENING: Duration = Duration::from_secs(10);

pub(crate) type Statement = Query<'static, Postgres, PgArguments>;

/// What the handles of a store share.
pub(crate) struct Shared {
    connections: Connections,
    pub(crate) place: Place,
    table: TableName,
    pub(crate) statements: Statements,
    /// Whether the server was found fit. No verb is sent before.
    prepared: OnceCell<()>,
    pub(crate) watches: Watches,
    pub(crate) settings: Settings,
}

impl Shared {
    pub(crate) fn new(
        connections: Connections,
        place: Place,
        table: TableName,
        settings: Settings,
    ) -> Self {
        Self {
            connections,
            place,
            statements: Statements::new(&table),
            table,
            prepared: OnceCell::new(),
            watches: Watches::default(),
            settings,
        }
    }

    /// The table's name as messages show it.
    pub(crate) fn table_name(&self) -> String {
        self.table.quoted('"')
    }

    pub(crate) async fn prepare(&self) -> Result<(), OpenError> {
        self.lend(Instant::now() + self.settings.timeout.max(OPENING)).await.map(drop)
    }

    pub(crate) fn call(&self) -> Call<'_> {
        Call::new(self, self.settings.timeout)
    }

    /// A call that may be about millions of records, and that no request waits for.
    pub(crate) fn long_call(&self) -> Call<'_> {
        Call::new(self, self.settings.long_timeout())
    }

    pub(crate) fn check_size(&self, payload: &Bytes) -> Result<(), StoreError> {
        let (is, most) = (payload.len(), self.settings.max_payload);
        if is <= most {
            return Ok(());
        }
        Err(StoreError::new(
            StoreErrorKind::TooLarge,
            format!("a payload of {is} bytes is over the PostgreSQL store's {most}"),
        ))
    }

    /// A connection to a server that was found fit.
    async fn lend(&self, until: Instant) -> Result<Lent, OpenError> {
        let mut lent = self.connections.lend(&self.place, until).await?;
        if !self.prepared.initialized() {
            let prepared = self.prepared.get_or_try_init(async || {
                let connection =
                    lent.connection().map_err(|error| failure::open(&self.place, error))?;
                let (table, migrate) = (&self.table, self.settings.migrate);
                server::prepare(connection, &self.place, table, &self.statements, migrate).await?;
                lent.answered(None);
                Ok(())
            });
            let late = |_| {
                let problem = "it did not answer in time";
                OpenError::new(self.place.as_str(), OpenErrorKind::Unreachable, problem)
            };
            timeout_at(until, prepared).await.map_err(late)??;
        }
        Ok(lent)
    }
}

/// One call of a verb.
pub(crate) struct Call<'s> {
    shared: &'s Shared,
    until: Instant,
    conflicts: u32,
    /// Whether one of its statements was answered.
    answered: bool,
}

impl<'s> Call<'s> {
    fn new(shared: &'s Shared, within: Duration) -> Self {
        Self { shared, until: Instant::now() + within, conflicts: 0, answered: false }
    }

    /// Runs one statement, and again for as long as the server undoes it because of others.
    ///
    /// An error of kind `Unreachable` means that nothing was sent, and nothing before it was answered.
    pub(crate) async fn ask(
        &mut self,
        statement: impl Fn() -> Statement,
    ) -> Result<Vec<PgRow>, StoreError> {
        loop {
            match self.run(statement()).await {
                Ok(rows) => return Ok(rows),
                Err(Failure::Store(error)) => return Err(error),
                Err(Failure::Conflict) => self.again().await?,
            }
        }
    }

    async fn run(&mut self, statement: Statement) -> Result<Vec<PgRow>, Failure> {
        let shared = self.shared;
        let lend_until = (Instant::now() + shared.settings.timeout / 2).min(self.until);
        let lent = shared.lend(lend_until).await.map_err(StoreError::from);
        let lent = match self.answered {
            true => lent.map_err(StoreError::after_an_answer)?,
            false => lent?,
        };
        match timeout_at(self.until, lent.run(statement)).await {
            Ok(answer) => {
                self.answered = true;
                answer.map_err(|error| {
                    failure::statement(&shared.place, &shared.table.quoted('"'), error)
                })
            }
            // It was sent, and may yet be done.
            Err(_) => Err(self.late("did not answer in time").into()),
        }
    }

    /// Before a verb is run again because others were faster. Each time somebody got ahead, so this
    /// ends; at the latest at the deadline.
    pub(crate) async fn again(&mut self) -> Result<(), StoreError> {
        self.conflicts += 1;
        if Instant::now() >= self.until {
            return Err(self.late("let others go first every time"));
        }
        if self.conflicts > 2 {
            sleep(Duration::from_millis(1).mul_f64(rand::random_range(0.5..5.0))).await;
        }
        Ok(())
    }

    fn late(&self, what: &str) -> StoreError {
        StoreError::new(StoreErrorKind::Timeout, format!("{} {what}", self.shared.place))
    }
}

/// A statement, to bind its parameters to.
pub(crate) fn statement(sql: &SqlStr) -> Statement {
    sqlx::query(sql.clone())
}
