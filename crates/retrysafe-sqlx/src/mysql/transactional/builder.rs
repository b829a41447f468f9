//! How a transactional store on MySQL or MariaDB is opened.

use std::sync::Arc;

use sqlx::MySql;

use super::{MySqlSide, TransactionalMySql};
use crate::{
    MySqlStoreBuilder, OpenError,
    transactional::{Core, Engine, TransactionalBuilder},
};

/// Sets up a [`TransactionalMySql`].
pub type TransactionalMySqlBuilder = TransactionalBuilder<MySql>;

impl Engine for MySql {
    type Store = TransactionalMySql;
    type Records = MySqlStoreBuilder;

    fn migrate(records: MySqlStoreBuilder) -> MySqlStoreBuilder {
        records.migrate()
    }

    fn max_payload(records: MySqlStoreBuilder, bytes: usize) -> MySqlStoreBuilder {
        records.max_payload(bytes)
    }

    async fn open(builder: TransactionalMySqlBuilder) -> Result<TransactionalMySql, OpenError> {
        let checked = builder.checked();
        let (name, waiting) =
            checked.map_err(|error| OpenError::setting("a MySQL server", error))?;
        let TransactionalBuilder { pool, records, table, isolation, settings } = builder;
        let records = records.table(table).timeout(settings.timeout).open().await?;
        let side = MySqlSide::new(pool, records, &name, isolation, settings.timeout);
        Ok(TransactionalMySql { core: Arc::new(Core::new(side, settings, waiting)) })
    }
}
