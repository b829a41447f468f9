//! A record as a statement shows it.
//!
//! What a verb may do with it is [`lifecycle`]'s to say. Its times are what was left of them when
//! the statement began, so for all of it *now* is [`NOW`].
//!
//! [`lifecycle`]: retrysafe_core::lifecycle

use std::time::Duration;

use retrysafe_core::{
    Fingerprint, OperationId, Owner, StoreError, StoreErrorKind,
    lifecycle::{Phase, Record},
};
use sqlx::{
    ColumnIndex, Decode, Postgres, Row as _, Type,
    postgres::{PgRow, types::PgInterval},
};

use super::statements::{FINISHED, GIVEN_UP, IN_FLIGHT, LAYOUT, RELEASED};

/// When the statement that showed a record began (ST7).
pub(crate) const NOW: Duration = Duration::ZERO;

/// A length of time as the server reckons with it. Rounded up to its microseconds: a lease never
/// ends before the time that its owner was promised.
pub(crate) fn interval(time: Duration) -> PgInterval {
    /// 200,000 years: *for ever*, and still a time that the server can write.
    const LONGEST: u128 = 200_000 * 365 * 24 * 60 * 60 * 1_000_000;
    let microseconds = time.as_nanos().div_ceil(1_000).min(LONGEST);
    let microseconds = i64::try_from(microseconds).unwrap_or(i64::MAX);
    PgInterval { months: 0, days: 0, microseconds }
}

/// A length of time that the server worked out between two moments; zero if the second was first.
fn length(interval: PgInterval) -> Duration {
    const DAY: i128 = 24 * 60 * 60 * 1_000_000;
    let microseconds = i128::from(interval.days) * DAY + i128::from(interval.microseconds);
    Duration::from_micros(u64::try_from(microseconds).unwrap_or(0))
}

/// Reads a row.
///
/// ST10: whatever this build does not understand is an error, expired or not.
pub(crate) fn read(row: &PgRow) -> Result<Record, StoreError> {
    let id = column::<Vec<u8>>(row, "id")
        .and_then(|bytes| bytes.try_into().ok())
        .map(OperationId::from_bytes)
        .ok_or_else(|| unreadable("a record", "id"))?;
    let bad = |column| unreadable(&id.to_string(), column);

    if column::<i16>(row, "layout") != Some(LAYOUT) {
        return Err(bad("layout"));
    }
    let owner = match column::<Option<Vec<u8>>>(row, "owner").ok_or_else(|| bad("owner"))? {
        None => None,
        Some(bytes) => Some(bytes.try_into().map(Owner::from_bytes).map_err(|_| bad("owner"))?),
    };
    let fence = column::<i64>(row, "fence").and_then(|fence| u64::try_from(fence).ok());
    let fingerprint = column::<&[u8]>(row, "fingerprint").and_then(Fingerprint::decode);
    let time = |name| column(row, name).map(length);
    let phase = match column(row, "state") {
        Some(IN_FLIGHT) => Phase::InFlight {
            lease_end: NOW + time("lease_left").ok_or_else(|| bad("lease"))?,
            retention: time("retention").ok_or_else(|| bad("retention"))?,
        },
        Some(GIVEN_UP) => Phase::GivenUp,
        Some(FINISHED) => Phase::Finished {
            payload: column::<Vec<u8>>(row, "payload").ok_or_else(|| bad("payload"))?.into(),
        },
        Some(RELEASED) => Phase::Released,
        _ => return Err(bad("state")),
    };
    Ok(Record {
        id,
        owner,
        fence: fence.filter(|fence| *fence > 0).ok_or_else(|| bad("fence"))?,
        previous_vanished: column(row, "previous_vanished")
            .ok_or_else(|| bad("previous_vanished"))?,
        fingerprint: fingerprint.ok_or_else(|| bad("fingerprint"))?,
        expires: NOW + time("expires_in").ok_or_else(|| bad("expiry"))?,
        phase,
    })
}

/// The state as the table keeps it.
pub(crate) fn state(record: &Record) -> i16 {
    match record.phase {
        Phase::InFlight { .. } => IN_FLIGHT,
        Phase::Finished { .. } => FINISHED,
        Phase::Released => RELEASED,
        Phase::GivenUp => GIVEN_UP,
    }
}

pub(crate) fn owner(record: &Record) -> Option<Vec<u8>> {
    record.owner.map(|owner| owner.to_bytes().to_vec())
}

/// What is left of a live lease; `None` if that row does not say.
pub(crate) fn lease_left(row: &PgRow) -> Option<Duration> {
    column(row, "lease_left").map(length).filter(|left| !left.is_zero())
}

/// A value that is there and of the type that it should be.
pub(crate) fn column<'r, T>(row: &'r PgRow, name: &str) -> Option<T>
where
    T: Decode<'r, Postgres> + Type<Postgres>,
    for<'n> &'n str: ColumnIndex<PgRow>,
{
    row.try_get(name).ok()
}

pub(crate) fn unreadable(what: &str, column: &str) -> StoreError {
    StoreError::new(
        StoreErrorKind::Unreadable,
        format!(
            "{what} in PostgreSQL can't be read: this build does not understand its {column}; a \
             newer build may have written it"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn st7_a_lease_never_ends_early() {
        assert_eq!(interval(Duration::from_nanos(1_001)).microseconds, 2);
        assert_eq!(interval(Duration::from_nanos(1_000)).microseconds, 1);
    }

    #[test]
    fn st7_no_duration_overflows() {
        let forever = interval(Duration::MAX);
        assert_eq!(length(forever), Duration::from_secs(200_000 * 365 * 24 * 60 * 60));
    }

    #[test]
    fn st7_what_is_left_is_never_negative() {
        let days = PgInterval { months: 0, days: 2, microseconds: -1 };
        assert_eq!(length(days), Duration::from_micros(2 * 86_400_000_000 - 1));
        let past = PgInterval { months: 0, days: 0, microseconds: -1 };
        assert_eq!(length(past), Duration::ZERO);
    }
}
