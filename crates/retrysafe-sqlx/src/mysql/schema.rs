//! The table as SQL.

use crate::table::{self, TableName};

const SCHEMA: &str = include_str!("../../schema/mysql.sql");

/// The statement that creates a table of this name.
pub(super) fn schema(table: &TableName) -> String {
    let default = format!("`{}`", table::DEFAULT);
    SCHEMA.replace(&default, &table.quoted('`'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_the_named_one() {
        let schema = schema(&TableName::parse("app.retries").unwrap());
        assert!(schema.contains("CREATE TABLE IF NOT EXISTS `app`.`retries` ("), "{schema}");
        assert!(!schema.contains(table::DEFAULT), "{schema}");
    }
}
