//! The table: every statement, and how a row is read.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use retrysafe_core::{
    Abandoned, Counts, Fingerprint, Lease, OperationId, Owner, StoreError, StoreErrorKind,
    lifecycle::{Phase, Record, attempt_of},
};
use sqlx::{
    AssertSqlSafe, MySqlConnection, Row as _, SqlSafeStr as _, SqlStr, mysql::MySqlRow, query,
};

use super::{
    call::{Call, Inserted, Sent},
    error,
};
use crate::table::TableName;

/// The epoch of a record's times is the moment at which the server showed it (ST7): they are what was
/// left of them.
pub(super) const NOW: Duration = Duration::ZERO;

/// How this build writes a row. A row with a higher one is not touched (ST10).
const LAYOUT: u8 = 1;

const IN_FLIGHT: u8 = 0;
const FINISHED: u8 = 1;
const RELEASED: u8 = 2;
const GIVEN_UP: u8 = 3;

/// How many expired records one statement removes: what it locks, claims of the same records wait
/// for, and nothing else (ST12).
pub(super) const SWEEP_BATCH: usize = 100;

/// The statements for one table. `{now}` is the server's clock at the statement's begin (ST7); it
/// depends on no time zone.
///
/// A change says in its `WHERE` clause what has to be true for it, and is judged by the rows that
/// matched. `expires_at > {now}` is ST8: past its retention a record is as good as absent.
pub(super) struct Records {
    table: String,
    insert: SqlStr,
    find: SqlStr,
    replace: SqlStr,
    confirm: SqlStr,
    renew: SqlStr,
    give_up: SqlStr,
    complete: SqlStr,
    complete_in: SqlStr,
    keep_in: SqlStr,
    kept: SqlStr,
    abandoned: SqlStr,
    release: SqlStr,
    live: SqlStr,
    expired: SqlStr,
    remove: SqlStr,
    page: SqlStr,
    count: SqlStr,
}

/// A change by the live attempt's owner.
pub(super) enum Change<'a> {
    Renew(Duration),
    GiveUp,
    Complete(&'a Fingerprint, &'a Bytes, Duration),
    Release(Duration),
}

/// The live attempt's row, or nothing.
const HELD: &str = "id = ? AND owner = ? AND layout = 1 AND state = 0 AND expires_at > {now}";

/// The row in the state in which it was shown.
const AS_SHOWN: &str = "id = ? AND layout = 1 AND state = ? AND fence = ? AND owner <=> ?";

const COLUMNS: &str = "id, layout, state, owner, fence, previous_vanished, fingerprint,
    TIMESTAMPDIFF(MICROSECOND, {now}, lease_until), retention,
    TIMESTAMPDIFF(MICROSECOND, {now}, expires_at), payload";

impl Records {
    pub(super) fn new(table: &TableName) -> Self {
        let table = table.quoted('`');
        let statement = |text: &str| {
            let text = text
                .replace("{held}", HELD)
                .replace("{as shown}", AS_SHOWN)
                .replace("{columns}", COLUMNS)
                .replace("{table}", &table)
                .replace("{now}", "UTC_TIMESTAMP(6)");
            // The table's name was checked, and every value is bound.
            AssertSqlSafe(Arc::<str>::from(text)).into_sql_str()
        };
        Self {
            insert: statement(
                "INSERT INTO {table} (owner, fence, previous_vanished, state, fingerprint,
                    lease_until, retention, expires_at, payload, layout, id)
                VALUES (?, ?, ?, ?, ?, {now} + INTERVAL ? MICROSECOND, ?,
                    {now} + INTERVAL ? MICROSECOND, ?, 1, ?)",
            ),
            find: statement("SELECT {columns} FROM {table} WHERE id = ?"),
            // What the phases of an unfinished operation have kept is its payload, and stays.
            // ST6: neither live meanwhile nor, if it was not, expired. A renewal changes neither state
            // nor owner nor fence, so the lease is judged again.
            replace: statement(
                "UPDATE {table} SET owner = ?, fence = ?, previous_vanished = ?, state = ?,
                    fingerprint = ?, lease_until = {now} + INTERVAL ? MICROSECOND, retention = ?,
                    expires_at = {now} + INTERVAL ? MICROSECOND,
                    payload = COALESCE(?, IF(?, payload, NULL))
                WHERE {as shown} AND (lease_until IS NULL OR lease_until <= {now})
                    AND (expires_at <= {now}) = ?",
            ),
            confirm: statement("UPDATE {table} SET confirmed = 1 - confirmed WHERE {as shown}"),
            renew: statement(
                "UPDATE {table} SET lease_until = {now} + INTERVAL ? MICROSECOND,
                    expires_at = {now} + INTERVAL GREATEST(retention, ?) MICROSECOND
                WHERE {held}",
            ),
            give_up: statement(
                "UPDATE {table} SET state = 3, expires_at = {now} + INTERVAL retention MICROSECOND,
                    lease_until = NULL
                WHERE {held}",
            ),
            complete: statement(
                "UPDATE {table} SET state = 1, fingerprint = ?, payload = ?, lease_until = NULL,
                    retention = NULL, previous_vanished = 0,
                    expires_at = {now} + INTERVAL ? MICROSECOND
                WHERE {held}",
            ),
            // Of a transaction that holds the row: nobody else judges its times meanwhile.
            complete_in: statement(
                "UPDATE {table} SET state = 1, fingerprint = ?, payload = ?, lease_until = NULL,
                    retention = NULL, previous_vanished = 0,
                    expires_at = {now} + INTERVAL ? MICROSECOND
                WHERE id = ? AND owner = ? AND layout = 1 AND state = 0",
            ),
            keep_in: statement(
                "UPDATE {table} SET lease_until = {now} + INTERVAL ? MICROSECOND,
                    expires_at = {now} + INTERVAL GREATEST(retention, ?) MICROSECOND,
                    payload = COALESCE(?, payload)
                WHERE id = ? AND owner = ? AND layout = 1 AND state = 0",
            ),
            abandoned: statement(
                "SELECT id, fence, payload FROM {table}
                WHERE id > ? AND expires_at > {now} AND layout = 1 AND payload IS NOT NULL
                    AND (state = 3 OR state = 0 AND lease_until <= {now})
                ORDER BY id LIMIT ?",
            ),
            kept: statement("SELECT payload FROM {table} WHERE id = ? AND owner = ? AND state = 0"),
            release: statement(
                "UPDATE {table} SET state = 2, lease_until = NULL, retention = NULL,
                    expires_at = {now} + INTERVAL ? MICROSECOND
                WHERE {held}",
            ),
            live: statement(
                "SELECT fence, TIMESTAMPDIFF(MICROSECOND, {now}, lease_until) FROM {table}
                WHERE id = ? AND layout = 1 AND state = 0 AND lease_until > {now}",
            ),
            // ST10: what this build can't read it does not delete either.
            expired: statement(
                "SELECT id FROM {table} FORCE INDEX (by_expiry)
                WHERE expires_at <= {now} AND layout = 1 AND state <= 3
                ORDER BY expires_at LIMIT ?",
            ),
            // By the primary key, whatever the optimizer thinks: then only these rows are locked,
            // and in the same order as every claim locks them.
            remove: statement(&format!(
                "DELETE record FROM {{table}} AS record FORCE INDEX (PRIMARY)
                WHERE record.id IN ({}) AND record.layout = 1 AND record.expires_at <= {{now}}",
                vec!["?"; SWEEP_BATCH].join(", ")
            )),
            page: statement(
                "SELECT {columns} FROM {table} WHERE id > ? AND expires_at > {now}
                ORDER BY id LIMIT ?",
            ),
            count: statement(
                "SELECT layout, state, COALESCE(lease_until > {now}, 0), COUNT(*) FROM {table}
                WHERE expires_at > {now} GROUP BY 1, 2, 3",
            ),
            table,
        }
    }

    /// Every statement, for the server to look at before the first is needed.
    pub(super) fn statements(&self) -> impl Iterator<Item = SqlStr> {
        [
            &self.insert,
            &self.find,
            &self.replace,
            &self.confirm,
            &self.renew,
            &self.give_up,
            &self.complete,
            &self.complete_in,
            &self.keep_in,
            &self.kept,
            &self.abandoned,
            &self.release,
            &self.live,
            &self.expired,
            &self.remove,
            &self.page,
            &self.count,
        ]
        .into_iter()
        .cloned()
    }

    /// Gives the operation this record, if it has none.
    pub(super) async fn insert(&self, call: &Call<'_>, record: &Record) -> Answer<Inserted> {
        let fingerprint = record.fingerprint.encode();
        let id = &record.id.as_bytes()[..];
        let insert = || bind_columns(query(self.insert.clone()), record, &fingerprint).bind(id);
        call.insert(insert).await
    }

    /// Whether the record was still as it was shown, and is this one now.
    pub(super) async fn replace(
        &self,
        call: &Call<'_>,
        shown: &Shown,
        record: &Record,
    ) -> Answer<bool> {
        let fingerprint = record.fingerprint.encode();
        let matched = call.write(|| {
            let replace = bind_columns(query(self.replace.clone()), record, &fingerprint);
            let replace = replace.bind(shown.keeps_points(record));
            shown.bind(replace).bind(shown.is_expired)
        });
        Ok(matched.await? > 0)
    }

    /// Whether the record is still as it was shown. If so, it is on the disk now: a commit is
    /// acknowledged once it and all before it are.
    pub(super) async fn confirm(&self, call: &Call<'_>, shown: &Shown) -> Answer<bool> {
        Ok(call.write(|| shown.bind(query(self.confirm.clone()))).await? > 0)
    }

    /// Whether the change applied: whether this owner's is the live attempt.
    pub(super) async fn change(
        &self,
        call: &Call<'_>,
        lease: &Lease,
        change: &Change<'_>,
    ) -> Answer<bool> {
        let (id, owner) = (lease.id.as_bytes(), lease.owner.to_bytes());
        let matched = call.write(|| {
            let change = match *change {
                Change::Renew(lease) => {
                    let lease = microseconds(lease);
                    query(self.renew.clone()).bind(lease).bind(lease)
                }
                Change::GiveUp => query(self.give_up.clone()),
                Change::Complete(fingerprint, payload, retention) => query(self.complete.clone())
                    .bind(fingerprint.encode())
                    .bind(&payload[..])
                    .bind(microseconds(retention)),
                Change::Release(keep) => query(self.release.clone()).bind(microseconds(keep)),
            };
            change.bind(&id[..]).bind(&owner[..])
        });
        Ok(matched.await? > 0)
    }

    /// [`insert`](Self::insert), in a transaction.
    pub(super) async fn insert_in(
        &self,
        transaction: &mut MySqlConnection,
        record: &Record,
    ) -> sqlx::Result<bool> {
        let fingerprint = record.fingerprint.encode();
        let insert = bind_columns(query(self.insert.clone()), record, &fingerprint);
        match insert.bind(&record.id.as_bytes()[..]).execute(transaction).await {
            Ok(_) => Ok(true),
            Err(error) if error::number(&error) == Some(error::DUPLICATE) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// [`replace`](Self::replace), in a transaction.
    pub(super) async fn replace_in(
        &self,
        transaction: &mut MySqlConnection,
        shown: &Shown,
        record: &Record,
    ) -> sqlx::Result<bool> {
        let fingerprint = record.fingerprint.encode();
        let replace = bind_columns(query(self.replace.clone()), record, &fingerprint);
        let replace = replace.bind(shown.keeps_points(record));
        let replace = shown.bind(replace).bind(shown.is_expired);
        Ok(replace.execute(transaction).await?.rows_affected() > 0)
    }

    /// Writes an outcome in the transaction that has claimed.
    pub(super) async fn complete_in(
        &self,
        transaction: &mut MySqlConnection,
        lease: &Lease,
        fingerprint: &Fingerprint,
        payload: &Bytes,
        retention: Duration,
    ) -> sqlx::Result<bool> {
        let complete = query(self.complete_in.clone())
            .bind(fingerprint.encode())
            .bind(&payload[..])
            .bind(microseconds(retention))
            .bind(lease.id.as_bytes().to_vec())
            .bind(lease.owner.to_bytes().to_vec());
        Ok(complete.execute(transaction).await?.rows_affected() > 0)
    }

    /// Renews in a transaction that begins with it; `false` if this is not the live attempt.
    pub(super) async fn renew_in(
        &self,
        transaction: &mut MySqlConnection,
        lease: &Lease,
        lease_for: Duration,
    ) -> sqlx::Result<bool> {
        let (id, owner) = (lease.id.as_bytes().to_vec(), lease.owner.to_bytes().to_vec());
        let lease = microseconds(lease_for);
        let renew = query(self.renew.clone()).bind(lease).bind(lease).bind(id).bind(owner);
        Ok(renew.execute(transaction).await?.rows_affected() > 0)
    }

    /// Writes what phases have come to, in a transaction that holds the row.
    pub(super) async fn keep_in(
        &self,
        transaction: &mut MySqlConnection,
        lease: &Lease,
        lease_for: Duration,
        points: Option<&Bytes>,
    ) -> sqlx::Result<bool> {
        let (id, owner) = (lease.id.as_bytes().to_vec(), lease.owner.to_bytes().to_vec());
        let lease = microseconds(lease_for);
        let keep = query(self.keep_in.clone())
            .bind(lease)
            .bind(lease)
            .bind(points.map(|points| points.to_vec()))
            .bind(id)
            .bind(owner);
        Ok(keep.execute(transaction).await?.rows_affected() > 0)
    }

    /// What phases have come to before.
    pub(super) async fn kept(
        &self,
        transaction: &mut MySqlConnection,
        lease: &Lease,
    ) -> sqlx::Result<Option<Bytes>> {
        let (id, owner) = (lease.id.as_bytes().to_vec(), lease.owner.to_bytes().to_vec());
        let kept = query(self.kept.clone()).bind(id).bind(owner);
        let Some(row) = kept.fetch_optional(transaction).await? else { return Ok(None) };
        Ok(row.try_get::<Option<Vec<u8>>, _>(0)?.map(Bytes::from))
    }

    /// Whether another transaction is at the row, seen or not.
    pub(super) async fn is_locked(
        &self,
        call: &Call<'_>,
        probe: &SqlStr,
        id: &OperationId,
    ) -> Answer<bool> {
        call.probe(|| query(probe.clone()).bind(&id.as_bytes()[..])).await
    }

    pub(super) async fn find(&self, call: &Call<'_>, id: &OperationId) -> Answer<Option<Record>> {
        let rows = call.read(|| query(self.find.clone()).bind(&id.as_bytes()[..])).await?;
        rows.first().map(|row| self.record(row)).transpose()
    }

    /// The attempt that holds a live lease, and how long it has left.
    pub(super) async fn live(
        &self,
        call: &Call<'_>,
        id: &OperationId,
    ) -> Answer<Option<(u32, Duration)>> {
        let rows = call.read(|| query(self.live.clone()).bind(&id.as_bytes()[..])).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let fence = self.column::<u64>(row, 0, id, "fence")?;
        let left = self.column::<i64>(row, 1, id, "lease")?;
        Ok(Some((attempt_of(fence), left_of(left))))
    }

    /// The ids of records past their retention, the oldest first.
    pub(super) async fn expired(&self, call: &Call<'_>, most: usize) -> Answer<Vec<OperationId>> {
        let rows = call.read(|| query(self.expired.clone()).bind(limit(most))).await?;
        rows.iter().map(|row| self.id(row)).collect()
    }

    /// How many of these were removed: those that are still past their retention.
    pub(super) async fn remove(&self, call: &Call<'_>, ids: &[OperationId]) -> Answer<usize> {
        let removed = call.write(|| {
            // One statement for every number of ids: the last fills it up.
            let ids = ids.iter().chain(std::iter::repeat(&ids[ids.len() - 1])).take(SWEEP_BATCH);
            ids.fold(query(self.remove.clone()), |remove, id| remove.bind(&id.as_bytes()[..]))
        });
        Ok(usize::try_from(removed.await?).unwrap_or(usize::MAX))
    }

    pub(super) async fn page(
        &self,
        call: &Call<'_>,
        after: Option<&OperationId>,
        most: usize,
    ) -> Answer<Vec<Record>> {
        // The empty string comes before every id.
        let after = after.map_or(&[][..], |id| id.as_bytes());
        let rows = call.read(|| query(self.page.clone()).bind(after).bind(limit(most))).await?;
        rows.iter().map(|row| self.record(row)).collect()
    }

    pub(super) async fn abandoned(
        &self,
        call: &Call<'_>,
        after: Option<&OperationId>,
        most: usize,
    ) -> Answer<Vec<Abandoned>> {
        let after = after.map_or(&[][..], |id| id.as_bytes());
        let abandoned = || query(self.abandoned.clone()).bind(after).bind(limit(most));
        let read = |row: &MySqlRow| {
            let id = self.id(row)?;
            let attempt = attempt_of(self.column::<u64>(row, 1, &id, "fence")?);
            let points = self.column::<Vec<u8>>(row, 2, &id, "payload")?.into();
            Ok(Abandoned { id, attempt, points })
        };
        call.read(abandoned).await?.iter().map(read).collect()
    }

    pub(super) async fn count(&self, call: &Call<'_>) -> Answer<Counts> {
        let mut counts = Counts::default();
        for row in call.read(|| query(self.count.clone())).await? {
            let get = || -> sqlx::Result<(u8, u8, i64, i64)> {
                Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?))
            };
            let (layout, state, live, count) = get().map_err(|error| self.foreign(&error))?;
            let tally = match (layout, state, live != 0) {
                (LAYOUT, IN_FLIGHT, true) => &mut counts.in_flight,
                (LAYOUT, IN_FLIGHT | GIVEN_UP, _) => &mut counts.lapsed,
                (LAYOUT, FINISHED, _) => &mut counts.finished,
                (LAYOUT, RELEASED, _) => &mut counts.released,
                _ => return Err(self.unreadable("some records", "layout")),
            };
            *tally += count.unsigned_abs();
        }
        Ok(counts)
    }

    /// Reads a row of [`COLUMNS`].
    fn record(&self, row: &MySqlRow) -> Answer<Record> {
        let id = self.id(row)?;
        let bad = |column| self.unreadable(&id.to_string(), column);
        let layout = self.column::<u8>(row, 1, &id, "layout")?;
        if layout != LAYOUT {
            return Err(bad("layout"));
        }
        let owner = match self.column::<Option<&[u8]>>(row, 3, &id, "owner")? {
            None => None,
            Some(bytes) => Some(bytes.try_into().map(Owner::from_bytes).map_err(|_| bad("owner"))?),
        };
        let fingerprint = Fingerprint::decode(self.column(row, 6, &id, "fingerprint")?)
            .ok_or_else(|| bad("fingerprint"))?;
        let phase = match self.column::<u8>(row, 2, &id, "state")? {
            IN_FLIGHT => Phase::InFlight {
                lease_end: left_of(self.column(row, 7, &id, "lease")?),
                retention: left_of(self.column(row, 8, &id, "retention")?),
            },
            FINISHED => Phase::Finished {
                payload: Bytes::copy_from_slice(self.column(row, 10, &id, "payload")?),
            },
            RELEASED => Phase::Released,
            GIVEN_UP => Phase::GivenUp,
            _ => return Err(bad("state")),
        };
        Ok(Record {
            id,
            owner,
            fence: self.column(row, 4, &id, "fence")?,
            previous_vanished: self.column::<u8>(row, 5, &id, "previous_vanished")? != 0,
            fingerprint,
            expires: left_of(self.column(row, 9, &id, "expiry")?),
            phase,
        })
    }

    fn id(&self, row: &MySqlRow) -> Answer<OperationId> {
        let bytes: &[u8] = row.try_get(0).map_err(|error| self.foreign(&error))?;
        let bytes = bytes.try_into().map_err(|_| self.unreadable("a record", "id"))?;
        Ok(OperationId::from_bytes(bytes))
    }

    fn column<'r, T>(
        &self,
        row: &'r MySqlRow,
        index: usize,
        id: &OperationId,
        name: &str,
    ) -> Answer<T>
    where
        T: sqlx::Decode<'r, sqlx::MySql> + sqlx::Type<sqlx::MySql>,
    {
        row.try_get(index).map_err(|_| self.unreadable(&id.to_string(), name))
    }

    fn unreadable(&self, what: &str, column: &str) -> StoreError {
        StoreError::new(
            StoreErrorKind::Unreadable,
            format!(
                "{what} in the table {} can't be read: this build does not understand its \
                 {column}; a newer build may have written it",
                self.table
            ),
        )
    }

    fn foreign(&self, error: &sqlx::Error) -> StoreError {
        StoreError::new(
            StoreErrorKind::Unreadable,
            format!("the table {} can't be read: {error}", self.table),
        )
    }
}

type Answer<T> = Result<T, StoreError>;

/// What a change is made against: the exact record that was shown (ST6).
pub(super) struct Shown {
    id: OperationId,
    state: u8,
    fence: u64,
    owner: Option<Owner>,
    is_expired: bool,
}

impl From<&Record> for Shown {
    fn from(record: &Record) -> Self {
        Self {
            id: record.id,
            state: state_of(&record.phase),
            fence: record.fence,
            owner: record.owner,
            is_expired: record.is_expired(NOW),
        }
    }
}

impl Shown {
    /// Whether what phases have kept outlives the change to this record.
    fn keeps_points(&self, record: &Record) -> bool {
        let unfinished = matches!(self.state, IN_FLIGHT | GIVEN_UP) && !self.is_expired;
        unfinished && matches!(record.phase, Phase::InFlight { .. })
    }

    /// What [`AS_SHOWN`] asks for.
    fn bind<'q>(&self, change: Sent<'q>) -> Sent<'q> {
        let owner = self.owner.map(Owner::to_bytes);
        change
            .bind(&self.id.as_bytes()[..])
            .bind(self.state)
            .bind(self.fence)
            .bind(owner.as_ref().map(<[u8; 16]>::as_slice))
    }
}

/// A record in the order of `insert` and `replace`.
fn bind_columns<'q>(change: Sent<'q>, record: &Record, fingerprint: &[u8]) -> Sent<'q> {
    let (lease, retention) = match record.phase {
        Phase::InFlight { lease_end, retention } => (Some(lease_end), Some(retention)),
        _ => (None, None),
    };
    let payload = match &record.phase {
        Phase::Finished { payload } => Some(&payload[..]),
        _ => None,
    };
    let owner = record.owner.map(Owner::to_bytes);
    change
        .bind(owner.as_ref().map(<[u8; 16]>::as_slice))
        .bind(record.fence)
        .bind(record.previous_vanished)
        .bind(state_of(&record.phase))
        .bind(fingerprint)
        .bind(lease.map(microseconds))
        .bind(retention.map(microseconds))
        .bind(microseconds(record.expires))
        .bind(payload)
}

fn state_of(phase: &Phase) -> u8 {
    match phase {
        Phase::InFlight { .. } => IN_FLIGHT,
        Phase::Finished { .. } => FINISHED,
        Phase::Released => RELEASED,
        Phase::GivenUp => GIVEN_UP,
    }
}

/// A length of time as the table keeps it. Rounded up: a lease never ends before the time that its
/// owner was promised. A time that is too long for the server's calendar, which ends with the year
/// 9999, is three thousand years.
fn microseconds(duration: Duration) -> i64 {
    const FOR_EVER: i64 = 3_000 * 365 * 24 * 60 * 60 * 1_000_000;
    let whole = duration.as_nanos().div_ceil(1_000);
    i64::try_from(whole).unwrap_or(FOR_EVER).min(FOR_EVER)
}

/// What is left of a time; nothing once it is over.
fn left_of(microseconds: i64) -> Duration {
    Duration::from_micros(u64::try_from(microseconds).unwrap_or(0))
}

fn limit(most: usize) -> u64 {
    most.try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn st7_a_lease_never_ends_early() {
        assert_eq!(microseconds(Duration::from_nanos(1)), 1);
        assert_eq!(microseconds(Duration::from_nanos(1_500_001)), 1_501);
        assert_eq!(microseconds(Duration::ZERO), 0);
    }

    #[test]
    fn st7_no_duration_is_too_long() {
        let ever = microseconds(Duration::MAX);
        assert!(Duration::from_micros(ever.unsigned_abs()) > Duration::from_secs(86_400 * 365_000));
        assert_eq!(microseconds(Duration::from_secs(i64::MAX as u64)), ever);
    }
}
