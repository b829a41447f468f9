//! The name of the table.

use retrysafe_core::ConfigError;

/// What the table is called unless somebody says otherwise.
pub(crate) const DEFAULT: &str = "retrysafe_record";

/// A table's name that is safe to write into a statement: `table` or `schema.table`, each of
/// lower-case letters, digits and underscores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TableName {
    schema: Option<String>,
    table: String,
}

impl TableName {
    /// Leaves room for the name of an index within the 63 bytes of PostgreSQL and 64 of MySQL.
    const LONGEST: usize = 50;

    pub(crate) fn parse(name: &str) -> Result<Self, ConfigError> {
        let (schema, table) = match name.split_once('.') {
            Some((schema, table)) => (Some(schema), table),
            None => (None, name),
        };
        if [schema, Some(table)].into_iter().flatten().all(is_plain) {
            return Ok(Self { schema: schema.map(str::to_owned), table: table.to_owned() });
        }
        Err(ConfigError::new(
            "table",
            format!(
                "{name:?} is not a name of lower-case letters, digits and underscores, at most {} \
                 long, with or without a schema before a dot",
                Self::LONGEST
            ),
        ))
    }

    /// The whole name, each part between two of these.
    pub(crate) fn quoted(&self, quote: char) -> String {
        match &self.schema {
            Some(schema) => format!("{quote}{schema}{quote}.{quote}{}{quote}", self.table),
            None => format!("{quote}{}{quote}", self.table),
        }
    }

    /// The schema, which MySQL calls a database, if the name says one.
    #[cfg(feature = "mysql")]
    pub(crate) fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// The name without its schema.
    pub(crate) fn bare(&self) -> &str {
        &self.table
    }
}

fn is_plain(name: &str) -> bool {
    name.len() <= TableName::LONGEST
        && name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_checked_before_it_is_written_into_a_statement() {
        for good in ["t", "retrysafe_record", "app.records_2", "_x"] {
            assert!(TableName::parse(good).is_ok(), "{good}");
        }
        let long = "a".repeat(51);
        for bad in ["", ".", "a.", ".a", "a.b.c", "A", "a b", "a\"b", "a;--", "1a", "é", &long] {
            let error = TableName::parse(bad).unwrap_err();
            assert_eq!(error.setting(), "table", "{bad}");
        }
    }

    #[test]
    fn every_part_is_quoted() {
        let name = TableName::parse("app.user").unwrap();
        assert_eq!(name.quoted('"'), r#""app"."user""#);
        assert_eq!(name.bare(), "user");
    }
}
