//! A record as the bytes of one message.
//!
//! A message carries the server's time of its writing, so the bytes hold lengths of time counted
//! from there, never moments: who writes need not know what time it is.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version, 1 |
//! | 1 | state in the low four bits; `0x10` an earlier attempt vanished; `0x20` there is an owner |
//! | 8 | fence |
//! | 8 | how long the record answers, in milliseconds |
//! | 8 + 8 | in flight only: how long the lease lasts, and the retention that a renewal restarts |
//! | 16 | the owner, if there is one |
//! | 1 + n | the fingerprint, its length first |
//! | rest | finished only: the payload |
//!
//! Numbers are big-endian.

use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use retrysafe_core::{
    Fingerprint, OperationId, Owner, StoreError, StoreErrorKind,
    lifecycle::{Phase, Record, whole_milliseconds},
};

/// What a message may hold beside the payload: the longest head, the subject's and the headers'
/// share included.
pub(crate) const MOST_HEAD: usize = 512;

const VERSION: u8 = 1;

const IN_FLIGHT: u8 = 0;
const FINISHED: u8 = 1;
const RELEASED: u8 = 2;
const GIVEN_UP: u8 = 3;

const STATE: u8 = 0x0f;
const VANISHED: u8 = 0x10;
const OWNED: u8 = 0x20;

/// The same record with its times counted from `now` on, which becomes the time of its writing.
pub(crate) fn counted_from(mut record: Record, now: Duration) -> Record {
    record.expires = record.expires.saturating_sub(now);
    if let Phase::InFlight { lease_end, .. } = &mut record.phase {
        *lease_end = lease_end.saturating_sub(now);
    }
    record
}

/// The bytes of a record whose times are counted from its writing. Rounded up: nothing ends early.
pub(crate) fn encode(record: &Record) -> Bytes {
    let fingerprint = record.fingerprint.encode();
    let (state, payload) = match &record.phase {
        Phase::InFlight { .. } => (IN_FLIGHT, &[][..]),
        Phase::Finished { payload } => (FINISHED, &payload[..]),
        Phase::Released => (RELEASED, &[][..]),
        Phase::GivenUp => (GIVEN_UP, &[][..]),
    };
    let mut flags = state;
    if record.previous_vanished {
        flags |= VANISHED;
    }
    if record.owner.is_some() {
        flags |= OWNED;
    }
    let mut bytes = BytesMut::with_capacity(51 + fingerprint.len() + payload.len());
    bytes.put_u8(VERSION);
    bytes.put_u8(flags);
    bytes.put_u64(record.fence);
    bytes.put_u64(whole_milliseconds(record.expires));
    if let Phase::InFlight { lease_end, retention } = record.phase {
        bytes.put_u64(whole_milliseconds(lease_end));
        bytes.put_u64(whole_milliseconds(retention));
    }
    if let Some(owner) = record.owner {
        bytes.put_slice(&owner.to_bytes());
    }
    // At most `Fingerprint::MAX_ENCODED`, 77.
    bytes.put_u8(fingerprint.len() as u8);
    bytes.put_slice(&fingerprint);
    bytes.put_slice(payload);
    bytes.freeze()
}

/// Reads what [`encode`] wrote.
///
/// # Errors
///
/// [`StoreErrorKind::Unreadable`] for anything else (ST10).
pub(crate) fn decode(id: OperationId, mut bytes: Bytes) -> Result<Record, StoreError> {
    let version = bytes.first().copied();
    if version != Some(VERSION) {
        let version = version.map_or_else(|| "none".to_owned(), |version| version.to_string());
        return Err(StoreError::new(
            StoreErrorKind::Unreadable,
            format!(
                "{id} in the NATS stream has version {version} and this build reads {VERSION}: run \
                 the newer build everywhere"
            ),
        ));
    }
    bytes.advance(1);
    read(id, &mut bytes).filter(|_| bytes.is_empty()).ok_or_else(|| {
        StoreError::new(
            StoreErrorKind::Unreadable,
            format!("{id} in the NATS stream can't be read: it is damaged, or not ours"),
        )
    })
}

fn read(id: OperationId, bytes: &mut Bytes) -> Option<Record> {
    let flags = bytes.try_get_u8().ok()?;
    let fence = bytes.try_get_u64().ok()?;
    let expires = Duration::from_millis(bytes.try_get_u64().ok()?);
    let in_flight = match flags & STATE {
        IN_FLIGHT => Some(Phase::InFlight {
            lease_end: Duration::from_millis(bytes.try_get_u64().ok()?),
            retention: Duration::from_millis(bytes.try_get_u64().ok()?),
        }),
        _ => None,
    };
    let owner = match flags & OWNED {
        0 => None,
        _ => Some(Owner::from_bytes(take(bytes, 16)?[..].try_into().ok()?)),
    };
    let length = bytes.try_get_u8().ok()?;
    let fingerprint = Fingerprint::decode(&take(bytes, length.into())?)?;
    let phase = match (flags & STATE, in_flight) {
        (_, Some(in_flight)) => in_flight,
        (FINISHED, None) => Phase::Finished { payload: bytes.split_off(0) },
        (RELEASED, None) => Phase::Released,
        (GIVEN_UP, None) => Phase::GivenUp,
        _ => return None,
    };
    (flags & !(STATE | VANISHED | OWNED) == 0).then_some(())?;
    let previous_vanished = flags & VANISHED != 0;
    Some(Record { id, owner, fence, previous_vanished, fingerprint, expires, phase })
}

fn take(bytes: &mut Bytes, length: usize) -> Option<Bytes> {
    (bytes.len() >= length).then(|| bytes.split_to(length))
}

#[cfg(test)]
mod tests {
    use retrysafe_core::{Algorithm, BodyPart, Entropy as _, Extent, SystemEntropy};

    use super::*;

    fn records() -> Vec<Record> {
        let phases = [
            Phase::InFlight {
                lease_end: Duration::from_secs(30),
                retention: Duration::from_millis(86_400_000),
            },
            Phase::GivenUp,
            Phase::Finished { payload: Bytes::from_static(b"\x00\xffpayload") },
            Phase::Finished { payload: Bytes::new() },
            Phase::Released,
        ];
        let mut records = Vec::new();
        for (n, phase) in phases.into_iter().enumerate() {
            let owner = Owner::from_bytes(SystemEntropy.next_u128().to_be_bytes());
            let body = BodyPart { digest: [7; 32], length: 9, extent: Extent::Whole };
            records.push(Record {
                id: OperationId::from_bytes([9; 32]),
                owner: (n % 2 == 0).then_some(owner),
                fence: u64::MAX - n as u64,
                previous_vanished: n % 3 == 0,
                fingerprint: Fingerprint {
                    algorithm: Algorithm::from_u32(1),
                    head: [3; 32],
                    body: (n % 2 == 1).then_some(body),
                },
                expires: Duration::from_millis(86_400_001),
                phase,
            });
        }
        records
    }

    #[test]
    fn st10_reads_back_what_was_kept() {
        for record in records() {
            assert_eq!(decode(record.id, encode(&record)).unwrap(), record);
        }
    }

    #[test]
    fn st10_what_was_cut_grew_or_is_newer_is_unreadable() {
        for record in records() {
            let bytes = encode(&record);
            let finished = matches!(record.phase, Phase::Finished { .. });
            let head = bytes.len()
                - match &record.phase {
                    Phase::Finished { payload } => payload.len(),
                    _ => 0,
                };
            for cut in 0..head {
                assert!(decode(record.id, bytes.slice(..cut)).is_err(), "cut at {cut}");
            }
            let longer = Bytes::from([&bytes[..], b"x"].concat());
            assert_eq!(decode(record.id, longer).is_ok(), finished);
            for (at, flipped) in [(0, 2), (1, 0x40), (1, 0x0f)] {
                let mut spoiled = bytes.to_vec();
                spoiled[at] = if at == 0 { flipped } else { spoiled[at] | flipped };
                let error = decode(record.id, spoiled.into()).unwrap_err();
                assert_eq!(error.kind(), StoreErrorKind::Unreadable);
            }
        }
    }

    #[test]
    fn st7_no_time_ends_early_for_being_written() {
        let mut record = records().remove(0);
        record.expires = Duration::from_nanos(1_000_001);
        let record = decode(record.id, encode(&record)).unwrap();
        assert_eq!(record.expires, Duration::from_millis(2));
        let later = counted_from(record.clone(), Duration::from_millis(1));
        assert_eq!(later.expires, Duration::from_millis(1));
        assert_eq!(later.lease_left(Duration::ZERO), Some(Duration::from_millis(29_999)));
    }

    #[test]
    fn p9_a_head_fits_into_its_share() {
        let longest = records().iter().map(|record| encode(record).len()).max().unwrap();
        // With the subject's 64 hex digits and the two headers.
        assert!(longest + 200 < MOST_HEAD, "{longest}");
    }
}
