//! How a transactional store on PostgreSQL is opened.

use std::sync::Arc;

use sqlx::Postgres;

use super::{PostgresSide, TransactionalPostgres};
use crate::{
    OpenError, PostgresStoreBuilder,
    transactional::{Core, Engine, TransactionalBuilder},
};

/// Sets up a [`TransactionalPostgres`].
pub type TransactionalPostgresBuilder = TransactionalBuilder<Postgres>;

impl Engine for Postgres {
    type Store = TransactionalPostgres;
    type Records = PostgresStoreBuilder;

    fn migrate(records: PostgresStoreBuilder) -> PostgresStoreBuilder {
        records.migrate()
    }

    fn max_payload(records: PostgresStoreBuilder, bytes: usize) -> PostgresStoreBuilder {
        records.max_payload(bytes)
    }

    async fn open(
        builder: TransactionalPostgresBuilder,
    ) -> Result<TransactionalPostgres, OpenError> {
        let checked = builder.checked();
        let (name, waiting) = checked.map_err(|error| OpenError::setting("PostgreSQL", error))?;
        let TransactionalBuilder { pool, records, table, isolation, settings } = builder;
        let records = records.table(table).timeout(settings.timeout).open().await?;
        let side = PostgresSide::new(pool, records, &name, isolation);
        Ok(TransactionalPostgres { core: Arc::new(Core::new(side, settings, waiting)) })
    }
}
