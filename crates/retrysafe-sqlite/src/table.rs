//! The table of records, in a file of its own or among the user's tables: every statement.

/// A table of records: what is said to SQLite about it.
pub(crate) struct Table {
    pub(crate) schema: &'static str,
    /// In the user's own database, where records commit with the work.
    pub(crate) with_work: bool,
    pub(crate) find: &'static str,
    pub(crate) page: &'static str,
    pub(crate) insert: &'static str,
    pub(crate) put: &'static str,
    pub(crate) live: &'static str,
    pub(crate) sweep: &'static str,
    pub(crate) left: &'static str,
    pub(crate) count: &'static str,
    pub(crate) held: &'static str,
    pub(crate) points: &'static str,
    pub(crate) keep: &'static str,
    pub(crate) abandoned: &'static str,
}

macro_rules! table {
    ($table:literal, with_work: $with_work:literal) => {
        Table {
            with_work: $with_work,
            // A payload can be megabytes long, so the table keeps its rowid: the index on `id` stays
            // small, a completion rewrites a row near the table's end, and no lookup walks over
            // payloads. `payload` is last so that the other columns are read without it; of an
            // attempt in flight it is what its phases have kept. Absent values and 0 and 1 take no
            // bytes (P9).
            schema: concat!(
                "CREATE TABLE IF NOT EXISTS ", $table, " (
                    id BLOB NOT NULL UNIQUE,
                    owner BLOB,
                    fence INTEGER NOT NULL,
                    previous_vanished INTEGER NOT NULL,
                    state INTEGER NOT NULL,
                    fingerprint BLOB NOT NULL,
                    lease_until INTEGER,
                    retention INTEGER,
                    expires_at INTEGER NOT NULL,
                    payload BLOB
                ) STRICT;
                CREATE INDEX IF NOT EXISTS ", $table, "_by_expiry ON ", $table, " (expires_at);"
            ),
            find: concat!(
                "SELECT id, owner, fence, previous_vanished, state, fingerprint, lease_until,
                    retention, expires_at, payload
                FROM ", $table, " WHERE id = ?1"
            ),
            page: concat!(
                "SELECT id, owner, fence, previous_vanished, state, fingerprint, lease_until,
                    retention, expires_at, payload
                FROM ", $table, " WHERE id > ?1 AND expires_at > ?2 ORDER BY id LIMIT ?3"
            ),
            insert: concat!(
                "INSERT INTO ", $table, " (id, owner, fence, previous_vanished, state, fingerprint,
                    lease_until, retention, expires_at, payload)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, iif(?11, NULL, ?10))
                ON CONFLICT (id) DO NOTHING"
            ),
            put: concat!(
                "INSERT INTO ", $table, " (id, owner, fence, previous_vanished, state, fingerprint,
                    lease_until, retention, expires_at, payload)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
                ON CONFLICT (id) DO UPDATE SET owner = ?2, fence = ?3, previous_vanished = ?4,
                    state = ?5, fingerprint = ?6, lease_until = ?7, retention = ?8,
                    expires_at = ?9, payload = iif(?11, payload, ?10)"
            ),
            live: concat!(
                "SELECT fence, lease_until FROM ", $table,
                " WHERE id = ?1 AND state = 0 AND lease_until > ?2"
            ),
            // ST10: what this version can't read it does not delete either.
            sweep: concat!(
                "DELETE FROM ", $table, " WHERE rowid IN (
                    SELECT rowid FROM ", $table, "
                    WHERE expires_at <= ?1 AND state BETWEEN 0 AND 3
                        AND length(fingerprint) IN (36, 77)
                    LIMIT ?2)"
            ),
            left: concat!(
                "SELECT EXISTS (
                    SELECT 1 FROM ", $table, "
                    WHERE expires_at <= ?1 AND state BETWEEN 0 AND 3
                        AND length(fingerprint) IN (36, 77))"
            ),
            count: concat!(
                "SELECT state, coalesce(state = 0 AND lease_until > ?1, 0), count(*)
                FROM ", $table, " WHERE expires_at > ?1 GROUP BY 1, 2"
            ),
            held: concat!(
                "SELECT 1 FROM ", $table,
                " WHERE id = ?1 AND owner = ?2 AND state = 0 AND expires_at > ?3"
            ),
            points: concat!("SELECT payload FROM ", $table, " WHERE id = ?1 AND state IN (0, 3)"),
            abandoned: concat!(
                "SELECT id, fence, payload FROM ", $table, "
                WHERE id > ?1 AND expires_at > ?2 AND payload IS NOT NULL
                    AND (state = 3 OR state = 0 AND lease_until <= ?2)
                ORDER BY id LIMIT ?3"
            ),
            keep: concat!("UPDATE ", $table, " SET payload = ?2 WHERE id = ?1"),
        }
    };
}
/// The table of a file that is the store's alone.
pub(crate) const OWN_FILE: Table = table!("record", with_work: false);

/// The table among the user's own.
pub(crate) const USERS_FILE: Table = table!("retrysafe_record", with_work: true);
