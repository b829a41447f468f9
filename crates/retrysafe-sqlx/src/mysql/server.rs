//! What the server and the table are, and whether they can keep the contract.

use std::collections::HashMap;

use sqlx::{Executor as _, MySqlConnection, Row as _, mysql::MySqlRow};

use super::{
    error::{number, open_error},
    records::Records,
};
use crate::{OpenError, OpenErrorKind, table::TableName};

const SETTINGS: &str = "
    SHOW GLOBAL VARIABLES WHERE Variable_name IN ('version', 'read_only', 'super_read_only',
        'innodb_read_only', 'max_allowed_packet', 'innodb_flush_log_at_trx_commit', 'log_bin',
        'sync_binlog', 'binlog_format', 'wsrep_on', 'group_replication_group_name',
        'group_replication_single_primary_mode')";

const CLUSTER_SIZE: &str = "SHOW GLOBAL STATUS LIKE 'wsrep_cluster_size'";

const ENGINE: &str = "
    SELECT ENGINE FROM information_schema.TABLES
    WHERE TABLE_SCHEMA = COALESCE(?, DATABASE()) AND TABLE_NAME = ?";

const UNIQUE: &str = "
    SELECT COLUMN_NAME, CAST(COALESCE(SUB_PART, 0) AS CHAR) FROM information_schema.STATISTICS
    WHERE TABLE_SCHEMA = COALESCE(?, DATABASE()) AND TABLE_NAME = ? AND NON_UNIQUE = 0";

const COLUMNS: &str = "
    SELECT COLUMN_NAME, DATA_TYPE,
        CAST(COALESCE(CHARACTER_MAXIMUM_LENGTH, DATETIME_PRECISION, 0) AS CHAR)
    FROM information_schema.COLUMNS
    WHERE TABLE_SCHEMA = COALESCE(?, DATABASE()) AND TABLE_NAME = ?";

/// The columns in which another type or length would bend what is written: ids that compare without
/// case, times in whole seconds.
const EXPECTED: [(&str, &str, u64); 6] = [
    ("id", "binary", 32),
    ("owner", "binary", 16),
    ("fingerprint", "varbinary", 77),
    ("lease_until", "datetime", 6),
    ("expires_at", "datetime", 6),
    ("payload", "longblob", 4_294_967_295),
];

/// What a statement takes besides its payload, of the largest packet: 137 bytes of values, and the
/// protocol's.
const BESIDES_PAYLOAD: usize = 1024;

/// What was learnt of a server.
pub(super) struct Server<'a> {
    place: &'a str,
    settings: HashMap<String, String>,
}

impl<'a> Server<'a> {
    /// Asks the server what it is.
    pub(super) async fn ask(
        place: &'a str,
        connection: &mut MySqlConnection,
    ) -> Result<Self, OpenError> {
        let mut settings = HashMap::new();
        for query in [SETTINGS, CLUSTER_SIZE] {
            let rows = sqlx::raw_sql(query).fetch_all(&mut *connection).await;
            for row in rows.map_err(|error| open_error(place, error))? {
                settings.insert(text(&row, 0), text(&row, 1));
            }
        }
        Ok(Self { place, settings })
    }

    /// Refuses what would break the contract, and warns of what weakens it.
    pub(super) fn check(&self) -> Result<(), OpenError> {
        let version = self.setting("version");
        if !is_new_enough(version) {
            return self.unsuitable(format!(
                "it is version {version}; MySQL 8.0 or MariaDB 10.6 is the oldest"
            ));
        }
        for name in ["read_only", "super_read_only", "innodb_read_only"] {
            if !matches!(self.setting(name), "" | "OFF" | "0") {
                return self.unsuitable(format!(
                    "it may not be written ({name} is on): name the primary, not a replica"
                ));
            }
        }
        let nodes: u32 = self.setting("wsrep_cluster_size").parse().unwrap_or(0);
        if self.setting("wsrep_on") == "ON" && nodes > 1 {
            return self.unsuitable(format!(
                "it is one of {nodes} nodes of a Galera cluster that all take writes, so that two \
                 claims of one key could both be granted for a moment; use a server with replicas"
            ));
        }
        if !self.setting("group_replication_group_name").is_empty()
            && self.setting("group_replication_single_primary_mode") == "OFF"
        {
            return self.unsuitable(
                "it is in a replication group with several primaries; use single-primary mode",
            );
        }
        if self.setting("log_bin") == "ON" && self.setting("binlog_format") == "STATEMENT" {
            return self.unsuitable(
                "its binary log takes statements, which it refuses at the isolation level that is \
                 needed here; set binlog_format to ROW or MIXED",
            );
        }
        for weakness in self.weaknesses() {
            tracing::warn!(server = self.place, "{weakness}, and an operation may then run again");
        }
        Ok(())
    }

    /// What makes an acknowledgement worth less than the documentation says (ST9).
    fn weaknesses(&self) -> Vec<&'static str> {
        let mut weaknesses = Vec::new();
        if self.setting("innodb_flush_log_at_trx_commit") != "1" {
            weaknesses.push(
                "innodb_flush_log_at_trx_commit is not 1: a crash loses the last moments, claims \
                 included",
            );
        }
        if self.setting("log_bin") == "ON" && self.setting("sync_binlog") != "1" {
            weaknesses.push(
                "sync_binlog is not 1: what the binary log has not kept when the power is lost is \
                 undone, claims included",
            );
        }
        weaknesses
    }

    /// Whether the server shows to others what it has not acknowledged, and may lose it again.
    ///
    /// InnoDB shows a commit before it flushes it (seen in MariaDB 10.11: with `fdatasync` delayed by
    /// four seconds, others read the change ten seconds before it was acknowledged). With a binary log
    /// that is synchronous a commit is kept by that before InnoDB shows it.
    pub(super) fn shows_what_may_be_lost(&self) -> bool {
        !(self.setting("log_bin") == "ON" && self.setting("sync_binlog") == "1")
    }

    /// The largest payload that one packet can carry, to the server and back.
    pub(super) fn max_payload(&self) -> usize {
        let packet: usize = self.setting("max_allowed_packet").parse().unwrap_or(1 << 20);
        packet.saturating_sub(BESIDES_PAYLOAD)
    }

    fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map_or("", String::as_str)
    }

    fn unsuitable(&self, problem: impl Into<String>) -> Result<(), OpenError> {
        Err(OpenError::new(self.place, OpenErrorKind::Unsuitable, problem))
    }
}

/// Refuses a table that is missing, is not the one that we describe, or may not be used.
pub(super) async fn check_table(
    place: &str,
    table: &TableName,
    records: &Records,
    connection: &mut MySqlConnection,
) -> Result<(), OpenError> {
    let name = table.quoted('`');
    let failed = |error| open_error(place, error);
    let unsuitable = |problem: String| {
        let problem = format!(
            "the table {name} {problem}; choose another table, or let migrate() create one"
        );
        OpenError::new(place, OpenErrorKind::Unsuitable, problem)
    };
    // The server checks tables, columns and rights when it prepares a statement, and answers with
    // its own words for what is missing.
    let mut missing = None;
    for statement in records.statements() {
        match connection.prepare(statement).await {
            Ok(_) => {}
            // A column or an index is not there. It may be one that is looked at below.
            Err(error) if matches!(number(&error), Some(1054 | 1176)) => missing = Some(error),
            Err(error) => return Err(failed(error)),
        }
    }
    let ask = |query: &'static str| sqlx::query(query).bind(table.schema()).bind(table.bare());
    let engines = ask(ENGINE).fetch_all(&mut *connection).await.map_err(failed)?;
    let engine = engines.first().map(|row| text(row, 0)).unwrap_or_default();
    if !engine.eq_ignore_ascii_case("InnoDB") {
        return Err(unsuitable(format!("is of the engine {engine:?}, not InnoDB")));
    }
    let columns = ask(COLUMNS).fetch_all(&mut *connection).await.map_err(failed)?;
    let columns: HashMap<_, _> = columns
        .iter()
        .map(|row| (text(row, 0), (text(row, 1).to_ascii_lowercase(), text(row, 2))))
        .collect();
    for (column, kind, length) in EXPECTED {
        if columns.get(column) != Some(&(kind.to_owned(), length.to_string())) {
            return Err(unsuitable(format!("has no column {column} {kind}({length})")));
        }
    }
    // ST1: one claim wins because the key is unique. Another unique index would refuse claims of
    // keys that are free.
    let unique = ask(UNIQUE).fetch_all(&mut *connection).await.map_err(failed)?;
    let unique: Vec<_> = unique.iter().map(|row| (text(row, 0), text(row, 1))).collect();
    if unique != [("id".to_owned(), "0".to_owned())] {
        return Err(unsuitable("should have one unique index, on the whole of id".to_owned()));
    }
    missing.map_or(Ok(()), |error| Err(failed(error)))
}

/// A column as text, whatever the server calls its type: `SHOW` and the information schema differ
/// between versions.
fn text(row: &MySqlRow, column: usize) -> String {
    if let Ok(bytes) = row.try_get_unchecked::<&[u8], _>(column)
        && let Ok(text) = std::str::from_utf8(bytes)
    {
        return text.to_owned();
    }
    String::new()
}

/// Whether this is MySQL 8.0 or MariaDB 10.6, or a later one.
fn is_new_enough(version: &str) -> bool {
    let number = version.strip_prefix("5.5.5-").unwrap_or(version);
    let mut parts = number.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (parts.next(), parts.next()) else { return false };
    let oldest = if version.contains("MariaDB") { (10, 6) } else { (8, 0) };
    (major, minor) >= oldest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(settings: &[(&str, &str)]) -> Server<'static> {
        let good = [
            ("version", "8.4.3"),
            ("read_only", "OFF"),
            ("max_allowed_packet", "67108864"),
            ("innodb_flush_log_at_trx_commit", "1"),
        ];
        let settings = good.iter().chain(settings);
        let settings = settings.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Server { place: "here", settings: settings.collect() }
    }

    #[test]
    fn versions_are_told_apart() {
        for good in ["8.0.36", "8.4.3-cluster", "9.1.0", "8.0.mysql_aurora.3.05.2"] {
            assert!(is_new_enough(good), "{good}");
        }
        for good in ["10.6.0-MariaDB", "5.5.5-10.11.19-MariaDB-0+deb12u1", "11.4.2-MariaDB-log"] {
            assert!(is_new_enough(good), "{good}");
        }
        for old in ["5.7.44-log", "10.5.29-MariaDB", "5.5.5-10.3.39-MariaDB", "", "TiDB"] {
            assert!(!is_new_enough(old), "{old}");
        }
    }

    #[test]
    fn several_primaries_are_refused() {
        assert!(server(&[]).check().is_ok());
        assert!(server(&[("wsrep_on", "ON"), ("wsrep_cluster_size", "1")]).check().is_ok());
        let galera = server(&[("wsrep_on", "ON"), ("wsrep_cluster_size", "3")]);
        assert!(galera.check().unwrap_err().to_string().contains("one of 3 nodes"));
        let group = [
            ("group_replication_group_name", "aaaa"),
            ("group_replication_single_primary_mode", "OFF"),
        ];
        assert!(server(&group).check().unwrap_err().to_string().contains("several primaries"));
    }

    #[test]
    fn what_may_not_be_written_is_refused() {
        for name in ["read_only", "super_read_only", "innodb_read_only"] {
            let refused = server(&[(name, "ON")]).check().unwrap_err();
            assert_eq!(refused.kind(), OpenErrorKind::Unsuitable);
        }
    }

    #[test]
    fn st9_a_synchronous_binary_log_is_asked_for_by_name() {
        assert!(server(&[("log_bin", "OFF"), ("sync_binlog", "1")]).shows_what_may_be_lost());
        assert!(server(&[("log_bin", "ON"), ("sync_binlog", "1000")]).shows_what_may_be_lost());
        assert!(!server(&[("log_bin", "ON"), ("sync_binlog", "1")]).shows_what_may_be_lost());
    }

    #[test]
    fn st9_what_weakens_an_acknowledgement_is_named() {
        assert!(server(&[]).weaknesses().is_empty());
        let weak = server(&[("innodb_flush_log_at_trx_commit", "2")]).weaknesses();
        assert!(weak.len() == 1 && weak[0].contains("innodb_flush_log_at_trx_commit"), "{weak:?}");
        let weak = server(&[("log_bin", "ON"), ("sync_binlog", "0")]).weaknesses();
        assert!(weak.len() == 1 && weak[0].contains("sync_binlog"), "{weak:?}");
        assert!(server(&[("log_bin", "ON"), ("sync_binlog", "1")]).weaknesses().is_empty());
        assert!(server(&[("log_bin", "OFF"), ("sync_binlog", "0")]).weaknesses().is_empty());
    }
}
