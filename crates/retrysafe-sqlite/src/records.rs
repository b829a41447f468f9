//! The table: every verb of the contract as one step inside the writer's transaction.

use std::{cell::RefCell, time::Duration};

use bytes::Bytes;
use retrysafe_core::{
    Abandoned, Begin, Claim, Clock, Counts, Entry, Fingerprint, Found, Held, Lease, Operated,
    OperationId, Owner, Resolution, StoreError, StoreErrorKind, Swept,
    lifecycle::{Phase, Record, Step, attempt_of, whole_milliseconds},
};
use rusqlite::{Connection, OptionalExtension as _, Row, params, types::ValueRef};

use crate::table::Table;

/// `PRAGMA application_id` of our files: the letters `rsaf`.
pub(crate) const APPLICATION_ID: i64 = i32::from_be_bytes(*b"rsaf") as i64;

/// `PRAGMA user_version`: the layout below. A file with a higher one is not touched (ST10).
pub(crate) const SCHEMA_VERSION: i64 = 1;

const IN_FLIGHT: i64 = 0;
const FINISHED: i64 = 1;
const RELEASED: i64 = 2;
const GIVEN_UP: i64 = 3;

/// Why a verb has no answer.
pub(crate) enum Failure {
    /// This verb's own failure. Nothing was written for it, and others in its turn go on.
    Refused(StoreError),
    /// SQLite's failure. What becomes of the transaction is not known.
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

type Answer<T> = Result<T, Failure>;

/// The records of a file, seen through one connection for the length of one turn.
pub(crate) struct Records<'c> {
    connection: &'c Connection,
    clock: &'c dyn Clock,
    table: &'static Table,
    /// What others may be waiting for: told to them once it is committed.
    touched: RefCell<Vec<OperationId>>,
}

impl<'c> Records<'c> {
    pub(crate) fn new(
        connection: &'c Connection,
        clock: &'c dyn Clock,
        table: &'static Table,
    ) -> Self {
        Self { connection, clock, table, touched: RefCell::default() }
    }

    pub(crate) fn into_touched(self) -> Vec<OperationId> {
        self.touched.into_inner()
    }

    /// ST10: a newer process may have changed the layout under us since we opened the file.
    pub(crate) fn check_version(&self) -> Answer<()> {
        if self.table.with_work {
            // The version is the user's own.
            return Ok(());
        }
        let version: i64 = self
            .connection
            .prepare_cached("PRAGMA user_version")?
            .query_row([], |row| row.get(0))?;
        if version <= SCHEMA_VERSION {
            return Ok(());
        }
        Err(Failure::Refused(StoreError::new(
            StoreErrorKind::Unreadable,
            format!(
                "the SQLite file was changed to version {version} while it was open, and this \
                 build reads up to {SCHEMA_VERSION}: run the newer build everywhere"
            ),
        )))
    }

    pub(crate) fn begin(&self, claim: &Claim) -> Answer<Begin> {
        let now = self.clock.wall();
        let Step { answer, write: first } = Record::first(claim, now);
        // Most claims are the first of their operation: that takes one way through the table, not two.
        if self.write_first(self.table.insert, first.as_ref())? {
            return Ok(answer);
        }
        match self.find(&claim.id, now)? {
            Some(record) => self.finish(self.judge(record, claim, now)?),
            // It is past its retention, and nothing of it stays.
            None => {
                self.write_first(self.table.put, first.as_ref())?;
                Ok(answer)
            }
        }
    }

    /// What a claim comes to, if nothing has to be written for that.
    pub(crate) fn look(&self, claim: &Claim) -> Answer<Option<Begin>> {
        let now = self.clock.wall();
        let Some(record) = self.find(&claim.id, now)? else { return Ok(None) };
        let Step { answer, write } = self.judge(record, claim, now)?;
        Ok(Some(answer).filter(|_| write.is_none()))
    }

    fn judge(&self, mut record: Record, claim: &Claim, now: Duration) -> Answer<Step<Begin>> {
        let is_unknown = matches!(record.phase, Phase::InFlight { .. } | Phase::GivenUp)
            && record.lease_left(now).is_none()
            && record.owner != Some(claim.owner);
        if self.table.with_work && is_unknown && self.points(&record.id)?.is_none() {
            // Nothing of it was committed, so there is nothing unknown: it is as good as released.
            record.phase = Phase::Released;
        }
        Ok(record.begin(claim, now))
    }

    /// Whether this is the live attempt.
    pub(crate) fn is_held(&self, lease: &Lease) -> Answer<bool> {
        let (id, owner) = (lease.id.as_bytes(), lease.owner.to_bytes());
        let held = params![id.as_slice(), owner.as_slice(), milliseconds(self.clock.wall())];
        Ok(self.connection.prepare_cached(self.table.held)?.exists(held)?)
    }

    /// What became of an attempt that has been completed before (ST4).
    pub(crate) fn outcome_of(&self, lease: &Lease) -> Answer<Held> {
        let now = self.clock.wall();
        match self.find(&lease.id, now)? {
            Some(record)
                if matches!(record.phase, Phase::InFlight { .. })
                    && record.owner == Some(lease.owner) =>
            {
                let context = "the work of this attempt was undone, or is another process's";
                let error = StoreError::new(StoreErrorKind::Unavailable, context);
                Err(Failure::Refused(error))
            }
            // It has ended, or is another's: this changes nothing.
            Some(record) => {
                let fingerprint = record.fingerprint.clone();
                Ok(record.complete(lease, &fingerprint, &Bytes::new(), Duration::ZERO, now).answer)
            }
            None => Ok(Held::Lost(Found::Free)),
        }
    }

    /// What the phases of an unfinished operation have kept.
    pub(crate) fn points(&self, id: &OperationId) -> Answer<Option<Bytes>> {
        let mut points = self.connection.prepare_cached(self.table.points)?;
        let points = points
            .query_row(params![id.as_bytes().as_slice()], |row| row.get::<_, Option<Vec<u8>>>(0));
        Ok(points.optional()?.flatten().map(Bytes::from))
    }

    pub(crate) fn abandoned(
        &self,
        after: Option<&OperationId>,
        limit: usize,
    ) -> Answer<Vec<Abandoned>> {
        let now = milliseconds(self.clock.wall());
        let after = after.map_or(&[][..], |id| id.as_bytes());
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut statement = self.connection.prepare_cached(self.table.abandoned)?;
        let mut rows = statement.query(params![after, now, limit])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let id = blob(row, 0)?.and_then(|bytes| bytes.try_into().ok());
            let id = id.ok_or_else(|| unreadable("a record", "id"))?;
            found.push(Abandoned {
                id: OperationId::from_bytes(id),
                attempt: attempt_of(row.get::<_, i64>(1)?.unsigned_abs()),
                points: row.get::<_, Vec<u8>>(2)?.into(),
            });
        }
        Ok(found)
    }

    /// Keeps what the phases have come to so far, if this is the live attempt.
    pub(crate) fn keep(&self, lease: &Lease, points: &Bytes, lease_for: Duration) -> Answer<Held> {
        let held = self.renew(lease, lease_for)?;
        if held == Held::Applied {
            let (id, points) = (lease.id.as_bytes().as_slice(), &points[..]);
            self.connection.prepare_cached(self.table.keep)?.execute(params![id, points])?;
        }
        Ok(held)
    }

    /// Ends an attempt whose transaction was undone: the key is free, unless phases were kept. Then
    /// the next attempt goes on from there.
    pub(crate) fn give_back(&self, lease: &Lease, keep_counters_for: Duration) -> Answer<Held> {
        match self.points(&lease.id)? {
            Some(_) => self.renew(lease, Duration::ZERO),
            None => self.release(lease, keep_counters_for),
        }
    }

    /// Touches the table and both of its indexes, so that what is missing is known at open.
    pub(crate) fn check_tables(
        connection: &Connection,
        table: &'static Table,
    ) -> rusqlite::Result<()> {
        let Table { find, page, insert, put, live, sweep, left, count, held, points, .. } = table;
        let Table { keep, abandoned, .. } = table;
        for statement in [page, insert, put, live, sweep, count, held, points, keep, abandoned] {
            connection.prepare_cached(statement)?;
        }
        connection.prepare_cached(find)?.exists(params![[0_u8; 32].as_slice()])?;
        connection.prepare_cached(left)?.exists(params![0_i64])?;
        Ok(())
    }

    pub(crate) fn renew(&self, lease: &Lease, lease_for: Duration) -> Answer<Held> {
        self.held(lease, |record, now| record.renew(lease, lease_for, now))
    }

    pub(crate) fn complete(
        &self,
        lease: &Lease,
        fingerprint: &Fingerprint,
        payload: &Bytes,
        retention: Duration,
    ) -> Answer<Held> {
        self.held(lease, |record, now| record.complete(lease, fingerprint, payload, retention, now))
    }

    pub(crate) fn release(&self, lease: &Lease, keep_counters_for: Duration) -> Answer<Held> {
        self.held(lease, |record, now| record.release(lease, keep_counters_for, now))
    }

    /// The attempt that holds a live lease, and how long it has left.
    pub(crate) fn live(&self, id: &OperationId) -> Answer<Option<(u32, Duration)>> {
        let now = self.clock.wall();
        let live = self
            .connection
            .prepare_cached(self.table.live)?
            .query_row(params![id.as_bytes().as_slice(), milliseconds(now)], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
            })
            .optional()?;
        Ok(live.map(|(fence, end)| {
            let end = Duration::from_millis(end.unsigned_abs());
            (attempt_of(fence.unsigned_abs()), end.saturating_sub(now))
        }))
    }

    pub(crate) fn sweep(&self, limit: usize) -> Answer<Swept> {
        let now = milliseconds(self.clock.wall());
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let removed =
            self.connection.prepare_cached(self.table.sweep)?.execute(params![now, limit])?;
        let more = self
            .connection
            .prepare_cached(self.table.left)?
            .query_row(params![now], |row| row.get(0))?;
        Ok(Swept { removed, more })
    }

    pub(crate) fn get(&self, id: &OperationId) -> Answer<Option<Entry>> {
        let now = self.clock.wall();
        Ok(self.find(id, now)?.map(|record| record.entry(now)))
    }

    pub(crate) fn page(&self, after: Option<&OperationId>, limit: usize) -> Answer<Vec<Entry>> {
        let now = self.clock.wall();
        let after = after.map_or(&[][..], |id| id.as_bytes());
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut statement = self.connection.prepare_cached(self.table.page)?;
        let mut rows = statement.query(params![after, milliseconds(now), limit])?;
        let mut page = Vec::new();
        while let Some(row) = rows.next()? {
            page.push(read(row)?.entry(now));
        }
        Ok(page)
    }

    pub(crate) fn count(&self) -> Answer<Counts> {
        let now = milliseconds(self.clock.wall());
        let mut counts = Counts::default();
        let mut statement = self.connection.prepare_cached(self.table.count)?;
        let mut rows = statement.query(params![now])?;
        while let Some(row) = rows.next()? {
            let (state, live): (i64, bool) = (row.get(0)?, row.get(1)?);
            let tally = match (state, live) {
                (IN_FLIGHT, true) => &mut counts.in_flight,
                (IN_FLIGHT | GIVEN_UP, _) => &mut counts.lapsed,
                (FINISHED, _) => &mut counts.finished,
                (RELEASED, _) => &mut counts.released,
                _ => return Err(unreadable("some records", "state")),
            };
            *tally += row.get::<_, i64>(2)?.unsigned_abs();
        }
        Ok(counts)
    }

    pub(crate) fn forget(&self, id: &OperationId) -> Answer<Operated> {
        let now = self.clock.wall();
        match self.find(id, now)? {
            Some(record) => self.finish(record.forget(now)),
            None => Ok(Operated::NotFound),
        }
    }

    pub(crate) fn resolve(
        &self,
        id: &OperationId,
        seen: u32,
        resolution: &Resolution,
    ) -> Answer<Operated> {
        let now = self.clock.wall();
        match self.find(id, now)? {
            Some(record) => self.finish(record.resolve(seen, resolution, now)),
            None => Ok(Operated::NotFound),
        }
    }

    fn held(
        &self,
        lease: &Lease,
        verb: impl FnOnce(Record, Duration) -> Step<Held>,
    ) -> Answer<Held> {
        let now = self.clock.wall();
        match self.find(&lease.id, now)? {
            Some(record) => self.finish(verb(record, now)),
            None => Ok(Held::Lost(Found::Free)),
        }
    }

    fn find(&self, id: &OperationId, now: Duration) -> Answer<Option<Record>> {
        let mut statement = self.connection.prepare_cached(self.table.find)?;
        let mut rows = statement.query(params![id.as_bytes().as_slice()])?;
        let Some(row) = rows.next()? else {
            return Ok(None);
        };
        // ST10: read before it is judged expired, so that nothing unreadable is ever overwritten.
        let record = read(row)?;
        Ok(Some(record).filter(|record| !record.is_expired(now)))
    }

    fn finish<T>(&self, step: Step<T>) -> Answer<T> {
        if let Some(record) = step.write {
            self.write(self.table.put, &record, Payload::of(&record.phase))?;
            self.touched.borrow_mut().push(record.id);
        }
        Ok(step.answer)
    }

    /// Writes the record of a first attempt, and says whether the statement did.
    fn write_first(&self, statement: &str, first: Option<&Record>) -> Answer<bool> {
        let Some(first) = first else { return Ok(false) };
        let written = self.write(statement, first, Payload::Replaced)? == 1;
        if written {
            self.touched.borrow_mut().push(first.id);
        }
        Ok(written)
    }

    /// Says how many rows that has changed.
    fn write(&self, statement: &str, record: &Record, was: Payload) -> rusqlite::Result<usize> {
        let owner = record.owner.map(Owner::to_bytes);
        let (state, lease, payload) = match &record.phase {
            Phase::InFlight { lease_end, retention } => {
                (IN_FLIGHT, Some((*lease_end, *retention)), None)
            }
            Phase::Finished { payload } => (FINISHED, None, Some(&payload[..])),
            Phase::Released => (RELEASED, None, None),
            Phase::GivenUp => (GIVEN_UP, None, None),
        };
        self.connection.prepare_cached(statement)?.execute(params![
            record.id.as_bytes().as_slice(),
            owner.as_ref().map(<[u8; 16]>::as_slice),
            record.fence.cast_signed(),
            record.previous_vanished,
            state,
            record.fingerprint.encode(),
            lease.map(|(end, _)| kept(end)),
            lease.map(|(_, retention)| kept(retention)),
            kept(record.expires),
            payload,
            matches!(was, Payload::Stays),
        ])
    }
}

/// What becomes of the payload that a row has.
enum Payload {
    Replaced,
    /// What phases have kept outlives renewals and attempts, until the operation is finished or free.
    Stays,
}

impl Payload {
    fn of(phase: &Phase) -> Self {
        match phase {
            Phase::InFlight { .. } | Phase::GivenUp => Self::Stays,
            Phase::Finished { .. } | Phase::Released => Self::Replaced,
        }
    }
}

/// A time since 1970, or a length of time, as the file keeps it.
fn kept(time: Duration) -> i64 {
    whole_milliseconds(time).cast_signed()
}

/// The clock's time as SQL compares it. Every kept moment is a whole millisecond, so cutting `now`
/// off changes no comparison.
fn milliseconds(now: Duration) -> i64 {
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

/// Reads a row of a record.
fn read(row: &Row<'_>) -> Answer<Record> {
    let id = blob(row, 0)?
        .and_then(|bytes| bytes.try_into().ok())
        .map(OperationId::from_bytes)
        .ok_or_else(|| unreadable("a record", "id"))?;
    let bad = |column| unreadable(&id.to_string(), column);
    let number = |column, name| number(row, column)?.ok_or_else(|| bad(name));

    let owner = match blob(row, 1)? {
        None => None,
        Some(bytes) => Some(bytes.try_into().map(Owner::from_bytes).map_err(|_| bad("owner"))?),
    };
    let fingerprint =
        blob(row, 5)?.and_then(Fingerprint::decode).ok_or_else(|| bad("fingerprint"))?;
    let phase = match number(4, "state")?.cast_signed() {
        IN_FLIGHT => Phase::InFlight {
            lease_end: Duration::from_millis(number(6, "lease")?),
            retention: Duration::from_millis(number(7, "retention")?),
        },
        FINISHED => Phase::Finished {
            payload: blob(row, 9)?.map(Bytes::copy_from_slice).ok_or_else(|| bad("payload"))?,
        },
        RELEASED => Phase::Released,
        GIVEN_UP => Phase::GivenUp,
        _ => return Err(bad("state")),
    };
    Ok(Record {
        id,
        owner,
        fence: number(2, "fence")?,
        previous_vanished: number(3, "previous_vanished")? != 0,
        fingerprint,
        expires: Duration::from_millis(number(8, "expiry")?),
        phase,
    })
}

fn blob<'r>(row: &'r Row<'_>, column: usize) -> Answer<Option<&'r [u8]>> {
    match row.get_ref(column)? {
        ValueRef::Blob(bytes) => Ok(Some(bytes)),
        _ => Ok(None),
    }
}

fn number(row: &Row<'_>, column: usize) -> Answer<Option<u64>> {
    match row.get_ref(column)? {
        ValueRef::Integer(number) => Ok(u64::try_from(number).ok()),
        _ => Ok(None),
    }
}

fn unreadable(what: &str, column: &str) -> Failure {
    Failure::Refused(StoreError::new(
        StoreErrorKind::Unreadable,
        format!(
            "{what} in the SQLite file can't be read: this build does not understand its {column}; \
             a newer build may have written it"
        ),
    ))
}
