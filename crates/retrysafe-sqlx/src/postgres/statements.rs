//! The statements, for a table of some name.
//!
//! Each verb is one statement, and each statement its own transaction (ST2). Time is the server's,
//! read once per statement (ST7). What a statement reads is as of its beginning, while a write waits
//! for others and judges the newest row: so every write states its whole condition, and where the
//! two disagree the verb is run again.

use std::sync::Arc;

use sqlx::{AssertSqlSafe, SqlSafeStr as _, SqlStr};

use crate::table::TableName;

/// The meaning of the rows that this build reads and writes (ST10).
pub(crate) const LAYOUT: i16 = 1;

/// The states as the table keeps them.
pub(crate) const IN_FLIGHT: i16 = 0;
pub(crate) const FINISHED: i16 = 1;
pub(crate) const RELEASED: i16 = 2;
pub(crate) const GIVEN_UP: i16 = 3;

/// What every statement that shows a record returns, after whether the verb was done.
const RECORD: &str = "r.id, r.owner, r.fence, r.layout, r.state, r.previous_vanished, \
    r.fingerprint, r.lease_until - clock.now AS lease_left, r.retention, \
    r.expires_at - clock.now AS expires_in, r.payload";

/// The same, of a verb that was done.
const DONE: &str = "true AS done, NULL::bytea AS id, NULL::bytea AS owner, NULL::bigint AS fence, \
    NULL::smallint AS layout, NULL::smallint AS state, NULL::boolean AS previous_vanished, \
    NULL::bytea AS fingerprint, NULL::interval AS lease_left, NULL::interval AS retention, \
    NULL::interval AS expires_in, NULL::bytea AS payload";

const CLOCK: &str = "clock AS MATERIALIZED (SELECT clock_timestamp() AS now)";

/// The live attempt of an owner, by whose leave a verb applies (ST3). The lease may have lapsed.
const HELD: &str = "r.id = $1 AND r.owner = $2 AND r.layout = 1 AND r.state = 0 \
    AND r.expires_at > clock.now";

/// The exact record that was observed, if no live lease stands against it (ST6). A renewal leaves
/// owner, fence and state as they are, so the lease is judged again.
const OBSERVED: &str = "r.id = $1 AND r.fence = $2 AND r.state = $3 \
    AND r.owner IS NOT DISTINCT FROM $4 AND r.layout = 1 \
    AND (r.state <> 0 OR r.lease_until <= clock.now) AND r.expires_at > clock.now";

/// What may be overwritten or removed: past its retention (ST8), and of a kind that this build
/// knows (ST10).
///
/// Of a condition inside `coalesce` the planner assumes that many rows meet it, so that a sweep walks
/// the index and stops at its limit. Of the bare one it assumes that hardly any does, and reads and
/// sorts all that has expired for every batch: with a million, a second instead of ten milliseconds.
const OVER: &str = "coalesce(r.layout = 1 AND r.state BETWEEN 0 AND 3, false) AND r.expires_at <= ";

pub(crate) struct Statements {
    /// `$1` id, `$2` owner, `$3` fingerprint, `$4` lease, `$5` retention. No row: run it again.
    pub(crate) begin: SqlStr,
    /// `$1` to `$4` the record observed, `$5` owner, `$6` fingerprint, `$7` lease, `$8` retention.
    pub(crate) begin_again: SqlStr,
    /// `$1` id, `$2` owner, `$3` fence, `$4` state.
    pub(crate) confirm: SqlStr,
    /// `$1` id, `$2` owner, `$3` lease.
    pub(crate) renew: SqlStr,
    /// `$1` id, `$2` owner.
    pub(crate) give_up: SqlStr,
    /// `$1` id, `$2` owner, `$3` fingerprint, `$4` payload, `$5` retention.
    pub(crate) complete: SqlStr,
    /// `$1` id, `$2` owner, `$3` how long the counters are kept.
    pub(crate) release: SqlStr,
    /// `$1` id, `$2` fence.
    pub(crate) live: SqlStr,
    /// `$1` limit.
    pub(crate) sweep: SqlStr,
    pub(crate) left: SqlStr,
    /// `$1` id.
    pub(crate) get: SqlStr,
    /// `$1` id, `$2` limit.
    pub(crate) page: SqlStr,
    pub(crate) count: SqlStr,
    /// `$1` to `$4` the record observed.
    pub(crate) free: SqlStr,
    /// `$1` to `$4` the record observed, `$5` payload, `$6` retention.
    pub(crate) resolve: SqlStr,
}

/// A claim of a record that stands and can be claimed. What the phases of an unfinished operation have
/// kept is its payload, and stays: `$5` owner, `$6` fingerprint, `$7` lease, `$8`
/// retention.
const CLAIM_AGAIN: &str = "owner = $5, fence = r.fence + 1, state = 0,
    previous_vanished = r.previous_vanished OR r.state <> 2, fingerprint = $6,
    lease_until = clock.now + $7, retention = $8,
    expires_at = clock.now + greatest($7, $8),
    payload = CASE WHEN r.state IN (0, 3) THEN r.payload END";

/// Gives the session's `lock_timeout` back, which the transaction has noted before it set its own.
const UNBOUND: &str =
    "set_config('lock_timeout', current_setting('retrysafe.lock_timeout'), true) AS lock_timeout";

/// Replays lock no row and write nothing: the insert is tried only where no record stands. One that
/// another claim has written meanwhile is in the way of the insert and not among what was read: no
/// row.
fn claimed(table: &str) -> String {
    format!(
        "WITH {CLOCK}, standing AS MATERIALIZED (
            SELECT {RECORD} FROM {table} r, clock
            WHERE r.id = $1 AND NOT ({OVER} clock.now)
        ), granted AS (
            INSERT INTO {table} AS r (id, owner, fence, layout, state, previous_vanished,
                fingerprint, lease_until, retention, expires_at)
            SELECT $1, $2, 1, 1, 0, false, $3, now + $4, $5, now + greatest($4, $5)
            FROM clock WHERE NOT EXISTS (SELECT FROM standing)
            ON CONFLICT (id) DO UPDATE SET owner = excluded.owner, fence = 1,
                state = 0, previous_vanished = false, fingerprint = excluded.fingerprint,
                lease_until = excluded.lease_until, retention = excluded.retention,
                expires_at = excluded.expires_at, payload = NULL
            WHERE {OVER} (SELECT now FROM clock)
            RETURNING 1
        )"
    )
}

fn answered() -> String {
    format!("SELECT {DONE} FROM granted UNION ALL SELECT false, r.* FROM standing r")
}

/// `begin` of an operation without any row, within a transaction that goes on: the usual case, and
/// the least that a claim can be. No row: there is one after all. See [`UNBOUND`].
pub(crate) fn claim_first(table: &str) -> String {
    format!(
        "INSERT INTO {table} AS r (id, owner, fence, layout, state, previous_vanished, fingerprint,
            lease_until, retention, expires_at)
        SELECT $1, $2, 1, 1, 0, false, $3, now + $4, $5, now + greatest($4, $5)
        FROM clock_timestamp() AS now
        ON CONFLICT (id) DO NOTHING RETURNING {UNBOUND}"
    )
}

/// `begin`, within a transaction that goes on: see [`UNBOUND`].
pub(crate) fn claim(table: &str) -> String {
    let answered = answered();
    format!(
        "{} SELECT answered.*, granted.lock_timeout FROM ({answered}) answered
        LEFT JOIN LATERAL (SELECT {UNBOUND} WHERE answered.done) granted ON true",
        claimed(table)
    )
}

/// A renewal, as the first statement of a transaction that goes on: `$1` id, `$2` owner, `$3` lease. No
/// row: this is not the live attempt. See [`UNBOUND`].
pub(crate) fn reopen(table: &str) -> String {
    format!(
        "WITH {CLOCK} UPDATE {table} r SET lease_until = clock.now + $3,
            expires_at = clock.now + greatest(r.retention, $3)
        FROM clock WHERE {HELD} RETURNING {UNBOUND}"
    )
}

/// Operations of which phases have kept something, and that nobody works on: `$1` id, `$2` limit.
pub(crate) fn abandoned(table: &str) -> String {
    format!(
        "WITH {CLOCK} SELECT r.id, r.fence, r.payload FROM {table} r, clock
        WHERE r.id > $1 AND r.expires_at > clock.now AND r.layout = 1 AND r.payload IS NOT NULL
            AND (r.state = 3 OR r.state = 0 AND r.lease_until <= clock.now)
        ORDER BY r.id LIMIT $2"
    )
}

/// `begin_again`, within a transaction that goes on.
pub(crate) fn claim_again(table: &str) -> String {
    format!("{}, {UNBOUND}", observed(table, CLAIM_AGAIN))
}

fn observed(table: &str, set: &str) -> String {
    format!(
        "WITH {CLOCK} UPDATE {table} r SET {set} FROM clock WHERE {OBSERVED}
        RETURNING r.fence, r.previous_vanished"
    )
}

impl Statements {
    pub(crate) fn new(table: &TableName) -> Self {
        let table = table.quoted('"');
        // Safe to assert: of all that is written into them only the table's name is not ours, and it
        // was checked. Behind an `Arc`, because each call clones one.
        let sql = |text: String| AssertSqlSafe(Arc::<str>::from(text)).into_sql_str();

        // A verb that needs the lease: one conditional write, and what is true if it did not apply.
        let held = |set: &str| {
            sql(format!(
                "WITH {CLOCK}, applied AS (
                    UPDATE {table} r SET {set} FROM clock WHERE {HELD} RETURNING 1
                )
                SELECT {DONE} FROM applied
                UNION ALL
                SELECT false, {RECORD} FROM {table} r, clock
                WHERE r.id = $1 AND NOT EXISTS (SELECT FROM applied)"
            ))
        };
        let observed = |set: &str| sql(observed(&table, set));

        Self {
            begin: sql(format!("{} {}", claimed(&table), answered())),
            begin_again: observed(CLAIM_AGAIN),
            confirm: sql(format!(
                "UPDATE {table} r SET owner = r.owner
                WHERE r.id = $1 AND r.owner = $2 AND r.fence = $3 AND r.state = $4 AND r.layout = 1
                RETURNING r.fence, r.previous_vanished"
            )),
            renew: held(
                "lease_until = clock.now + $3,
                expires_at = clock.now + greatest(r.retention, $3)",
            ),
            give_up: held(
                "state = 3, lease_until = NULL, retention = NULL,
                expires_at = clock.now + r.retention",
            ),
            complete: held(
                "state = 1, lease_until = NULL, retention = NULL, previous_vanished = false,
                fingerprint = $3, payload = $4, expires_at = clock.now + $5",
            ),
            release: held(
                "state = 2, lease_until = NULL, retention = NULL, expires_at = clock.now + $3",
            ),
            live: sql(format!(
                "WITH {CLOCK} SELECT r.lease_until - clock.now AS lease_left
                FROM {table} r, clock
                WHERE r.id = $1 AND r.fence = $2 AND r.layout = 1 AND r.state = 0
                    AND r.lease_until > clock.now"
            )),
            // ST12: a record that somebody claims at this moment is passed over, not waited for.
            sweep: sql(format!(
                "WITH {CLOCK}, swept AS MATERIALIZED (
                    SELECT r.id FROM {table} r
                    WHERE {OVER} (SELECT now FROM clock)
                    ORDER BY r.expires_at LIMIT $1 FOR UPDATE SKIP LOCKED
                )
                DELETE FROM {table} r USING swept WHERE r.id = swept.id RETURNING 1"
            )),
            left: sql(format!(
                "WITH {CLOCK}, oldest AS (
                    SELECT FROM {table} r WHERE {OVER} (SELECT now FROM clock)
                    ORDER BY r.expires_at LIMIT 1
                )
                SELECT EXISTS (SELECT FROM oldest) AS more"
            )),
            get: sql(format!(
                "WITH {CLOCK} SELECT false AS done, {RECORD} FROM {table} r, clock WHERE r.id = $1"
            )),
            page: sql(format!(
                "WITH {CLOCK} SELECT false AS done, {RECORD} FROM {table} r, clock
                WHERE r.id > $1 AND r.expires_at > clock.now ORDER BY r.id LIMIT $2"
            )),
            count: sql(format!(
                "WITH {CLOCK} SELECT r.layout, r.state,
                    coalesce(r.state = 0 AND r.lease_until > clock.now, false) AS live,
                    count(*) AS records
                FROM {table} r, clock WHERE r.expires_at > clock.now GROUP BY 1, 2, 3"
            )),
            free: observed(
                "owner = NULL, state = 2, lease_until = NULL, retention = NULL, payload = NULL",
            ),
            resolve: observed(
                "owner = NULL, state = 1, lease_until = NULL, retention = NULL,
                previous_vanished = false, payload = $5, expires_at = clock.now + $6",
            ),
        }
    }
}
