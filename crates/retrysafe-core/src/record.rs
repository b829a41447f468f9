//! What is kept of a finished operation: the payload that a store holds.
//!
//! # Format
//!
//! All lengths and counts are unsigned LEB128.
//!
//! ```text
//! version   1 byte    1
//! flags     1 byte    1 body omitted · 2 stream · 4 gRPC trailers-only · 8 trace · 16 trailers
//! status    2 bytes   big-endian
//! recorded  8 bytes   milliseconds since 1970, big-endian; for people, never judged by
//! trace    24 bytes   trace id and span id, if flagged
//! headers   count, then for each: name length, name, value length, value
//! trailers  the same, if flagged
//! body      length, bytes; nothing if omitted
//! ```
//!
//! The state, the owner, the counters, the fingerprint and the times that are judged by belong to
//! the store's own record, around this. A record of a newer version is an error, never "absent"
//! (ST10).

use std::{fmt, time::Duration};

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use smallvec::SmallVec;

use crate::{KeptHeaders, decide::Kept};

const VERSION: u8 = 1;
const BODY_OMITTED: u8 = 1;
const STREAM: u8 = 2;
const TRAILERS_ONLY: u8 = 4;
const TRACE: u8 = 8;
const TRAILERS: u8 = 16;

/// A response on its way into a record.
#[derive(Clone, Copy)]
pub struct Outcome<'a> {
    /// The status, as the handler gave it.
    pub status: StatusCode,
    /// The headers, of which [`Outcome::encode`] takes those that are kept.
    pub headers: &'a HeaderMap,
    /// The body in its pieces, or `None` if it is not kept (R4).
    pub body: Option<&'a [Bytes]>,
    /// The trailers, apart from the headers (R6).
    pub trailers: Option<&'a HeaderMap>,
    /// Whether the body went out as a stream (R5).
    pub stream: bool,
    /// Whether a gRPC status came in the headers instead of the trailers (G4).
    pub trailers_only: bool,
    /// When it was recorded, for people: since 1970.
    pub recorded: Duration,
    /// The trace that first ran.
    pub trace: Option<Trace>,
}

impl Outcome<'_> {
    /// The payload that a store keeps.
    pub fn encode(&self, kept: &KeptHeaders) -> Bytes {
        let headers = Chosen::of(self.headers, kept);
        // Trailers of which none is kept are no trailers.
        let trailers =
            self.trailers.map(|it| Chosen::of(it, kept)).filter(|it| !it.headers.is_empty());
        let body_length: usize = self.body.iter().flat_map(|it| it.iter()).map(Bytes::len).sum();
        // Exactly as long as it becomes: every spare byte would be kept as long as the record (P9).
        let mut length = 12 + self.trace.map_or(0, |trace| trace.0.len());
        length += headers.length();
        length += trailers.as_ref().map_or(0, Chosen::length);
        length += self.body.map_or(0, |_| length_length(body_length) + body_length);
        let mut out = Vec::with_capacity(length);
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        out.push(VERSION);
        out.push(
            flag(self.body.is_none(), BODY_OMITTED)
                | flag(self.stream, STREAM)
                | flag(self.trailers_only, TRAILERS_ONLY)
                | flag(self.trace.is_some(), TRACE)
                | flag(trailers.is_some(), TRAILERS),
        );
        out.extend_from_slice(&self.status.as_u16().to_be_bytes());
        let millis = u64::try_from(self.recorded.as_millis()).unwrap_or(u64::MAX);
        out.extend_from_slice(&millis.to_be_bytes());
        if let Some(trace) = self.trace {
            out.extend_from_slice(&trace.0);
        }
        headers.put(&mut out);
        if let Some(trailers) = trailers {
            trailers.put(&mut out);
        }
        if let Some(pieces) = self.body {
            put_length(&mut out, body_length);
            for piece in pieces {
                out.extend_from_slice(piece);
            }
        }
        debug_assert_eq!(out.len(), length);
        Bytes::from(out)
    }
}

/// A response as it was kept.
#[derive(Clone)]
pub struct Record {
    /// The status.
    pub status: StatusCode,
    /// The kept headers, repeats of a name in their order.
    pub headers: HeaderMap,
    /// The body, a view into the payload; `None` if it was not kept (R4).
    pub body: Option<Bytes>,
    /// The trailers, if there were any (R6).
    pub trailers: Option<HeaderMap>,
    /// Whether the body went out as a stream (R5).
    pub stream: bool,
    /// Whether a gRPC status came in the headers instead of the trailers (G4).
    pub trailers_only: bool,
    /// When it was recorded, since 1970.
    pub recorded: Duration,
    /// The trace that first ran.
    pub trace: Option<Trace>,
}

impl Record {
    /// Reads a payload. The body is a view into it: nothing is copied.
    ///
    /// # Errors
    ///
    /// [`RecordError`] if it was written by a newer version or is not a record at all. The key MUST
    /// NOT be treated as free then (ST10).
    pub fn decode(payload: Bytes) -> Result<Self, RecordError> {
        let flags = flags_of(&payload)?;
        let mut rest = payload;
        rest.advance(2);
        let has = |flag: u8| flags & flag != 0;
        let status = StatusCode::from_u16(u16::from_be_bytes(take_array(&mut rest)?))
            .map_err(|_| RecordError::Malformed)?;
        let recorded = Duration::from_millis(u64::from_be_bytes(take_array(&mut rest)?));
        let trace = if has(TRACE) { Some(Trace(take_array(&mut rest)?)) } else { None };
        let headers = take_headers(&mut rest)?;
        let trailers = if has(TRAILERS) { Some(take_headers(&mut rest)?) } else { None };
        let body = if has(BODY_OMITTED) {
            None
        } else {
            let length = take_length(&mut rest)?;
            Some(take(&mut rest, length)?)
        };
        if !rest.is_empty() {
            return Err(RecordError::Malformed);
        }
        Ok(Self {
            status,
            headers,
            body,
            trailers,
            stream: has(STREAM),
            trailers_only: has(TRAILERS_ONLY),
            recorded,
            trace,
        })
    }

    /// What is left of a payload when its response can't be kept: that the operation finished, and
    /// with which status (R4).
    ///
    /// # Errors
    ///
    /// [`RecordError`] if it was written by a newer version or is not a record at all.
    pub fn outcome_only(payload: &Bytes) -> Result<Bytes, RecordError> {
        let record = Self::decode(payload.clone())?;
        Ok(Outcome {
            status: record.status,
            headers: &HeaderMap::new(),
            body: None,
            trailers: None,
            stream: record.stream,
            trailers_only: record.trailers_only,
            recorded: record.recorded,
            trace: record.trace,
        }
        .encode(&KeptHeaders::default()))
    }

    /// What a payload holds, without reading the whole of it.
    ///
    /// # Errors
    ///
    /// [`RecordError`] if it was written by a newer version or is not a record at all.
    pub fn kept(payload: &Bytes) -> Result<Kept, RecordError> {
        let flags = flags_of(payload)?;
        Ok(if flags & BODY_OMITTED == 0 { Kept::Response } else { Kept::OutcomeOnly })
    }
}

// S3: neither header values nor the body are shown.
impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record").field("status", &self.status).finish_non_exhaustive()
    }
}

/// Why a payload could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It was written by a newer version of retrysafe.
    #[error("the record has version {0}, this release reads up to 1: upgrade it")]
    Newer(u8),
    /// It is not a record.
    #[error("the record can't be read: it is damaged, or something else wrote it")]
    Malformed,
}

/// The trace and span that a request belonged to, from `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace([u8; 24]);

impl Trace {
    /// Reads a `traceparent` header (W3C Trace Context): `00-<32 hex>-<16 hex>-<2 hex>`.
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get(&crate::headers::TRACEPARENT)?.to_str().ok()?;
        let mut parts = text.split('-');
        let (_, trace, span) = (parts.next()?, parts.next()?, parts.next()?);
        if trace.len() != 32 || span.len() != 16 {
            return None;
        }
        let mut bytes = [0; 24];
        bytes[..16].copy_from_slice(&u128::from_str_radix(trace, 16).ok()?.to_be_bytes());
        bytes[16..].copy_from_slice(&u64::from_str_radix(span, 16).ok()?.to_be_bytes());
        Some(Self(bytes))
    }

    /// The trace id, as 32 hex digits.
    pub fn trace_id(&self) -> impl fmt::Display + '_ {
        let mut id = [0; 16];
        id.copy_from_slice(&self.0[..16]);
        let id = u128::from_be_bytes(id);
        fmt::from_fn(move |f| write!(f, "{id:032x}"))
    }
}

/// What a payload begins with: the version, and the flags.
fn flags_of(payload: &[u8]) -> Result<u8, RecordError> {
    match *payload {
        [VERSION, flags, ..] => Ok(flags),
        [] | [0, ..] | [VERSION] => Err(RecordError::Malformed),
        [newer, ..] => Err(RecordError::Newer(newer)),
    }
}

fn put_length(out: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        out.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

/// How many bytes [`put_length`] puts.
fn length_length(length: usize) -> usize {
    (length.checked_ilog2().unwrap_or(0) / 7 + 1) as usize
}

/// The headers of a map that are kept, in their order.
struct Chosen<'a> {
    headers: SmallVec<[(&'a HeaderName, &'a HeaderValue); 8]>,
}

impl<'a> Chosen<'a> {
    fn of(headers: &'a HeaderMap, kept: &'a KeptHeaders) -> Self {
        Self { headers: kept.select(headers).collect() }
    }

    /// How many bytes [`put`](Self::put) puts.
    fn length(&self) -> usize {
        let header = |&(name, value): &(&HeaderName, &HeaderValue)| {
            let (name, value) = (name.as_str().len(), value.len());
            length_length(name) + name + length_length(value) + value
        };
        length_length(self.headers.len()) + self.headers.iter().map(header).sum::<usize>()
    }

    fn put(&self, out: &mut Vec<u8>) {
        put_length(out, self.headers.len());
        for (name, value) in &self.headers {
            put_length(out, name.as_str().len());
            out.extend_from_slice(name.as_str().as_bytes());
            put_length(out, value.len());
            out.extend_from_slice(value.as_bytes());
        }
    }
}

/// What is read here and now; a [`take`] would share the payload for it, which is not free.
fn take_array<const N: usize>(rest: &mut Bytes) -> Result<[u8; N], RecordError> {
    let array = *rest.first_chunk().ok_or(RecordError::Malformed)?;
    rest.advance(N);
    Ok(array)
}

fn take(rest: &mut Bytes, length: usize) -> Result<Bytes, RecordError> {
    if rest.len() < length {
        return Err(RecordError::Malformed);
    }
    Ok(rest.split_to(length))
}

fn take_length(rest: &mut Bytes) -> Result<usize, RecordError> {
    let mut length: u64 = 0;
    for shift in (0..63).step_by(7) {
        let [byte] = take_array(rest)?;
        length |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return usize::try_from(length).map_err(|_| RecordError::Malformed);
        }
    }
    Err(RecordError::Malformed)
}

fn take_headers(rest: &mut Bytes) -> Result<HeaderMap, RecordError> {
    let count = take_length(rest)?;
    // Each header takes two bytes at least: a lying count can't make us reserve more than that.
    // And one more comes: what marks a replay.
    let mut headers = HeaderMap::try_with_capacity(count.min(rest.len() / 2) + 1)
        .map_err(|_| RecordError::Malformed)?;
    for _ in 0..count {
        let length = take_length(rest)?;
        let name = HeaderName::from_bytes(rest.get(..length).ok_or(RecordError::Malformed)?);
        rest.advance(length);
        let length = take_length(rest)?;
        let value = HeaderValue::from_maybe_shared(take(rest, length)?);
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(RecordError::Malformed);
        };
        headers.try_append(name, value).map_err(|_| RecordError::Malformed)?;
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Bytes {
        let mut headers = HeaderMap::new();
        headers.append("content-type", HeaderValue::from_static("application/json"));
        headers.append("link", HeaderValue::from_static("<a>"));
        headers.append("link", HeaderValue::from_bytes(b"\xff\x80").unwrap());
        headers.append("set-cookie", HeaderValue::from_static("secret"));
        let mut trailers = HeaderMap::new();
        trailers.append("x-checksum", HeaderValue::from_static("7"));
        let mut request = HeaderMap::new();
        request.append(
            "traceparent",
            HeaderValue::from_static("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        );
        Outcome {
            status: StatusCode::CREATED,
            headers: &headers,
            body: Some(&[Bytes::from_static(b"\x00one"), Bytes::from_static(b"two\xff")]),
            trailers: Some(&trailers),
            stream: true,
            trailers_only: false,
            recorded: Duration::from_millis(1_700_000_000_123),
            trace: Trace::from_headers(&request),
        }
        .encode(&KeptHeaders::default())
    }

    #[test]
    fn reads_back_what_was_kept() {
        let record = Record::decode(sample()).unwrap();
        assert_eq!(record.status, StatusCode::CREATED);
        let links: Vec<_> = record.headers.get_all("link").iter().map(|it| it.as_bytes()).collect();
        assert_eq!(links, [&b"<a>"[..], b"\xff\x80"]);
        assert!(!record.headers.contains_key("set-cookie"));
        assert_eq!(record.body.as_deref(), Some(&b"\x00onetwo\xff"[..]));
        assert_eq!(record.trailers.unwrap()["x-checksum"], "7");
        assert!(record.stream && !record.trailers_only);
        assert_eq!(record.recorded, Duration::from_millis(1_700_000_000_123));
        assert_eq!(
            record.trace.unwrap().trace_id().to_string(),
            "0af7651916cd43dd8448eb211c80319c"
        );
    }

    #[test]
    fn st10_the_golden_record_of_version_1_is_still_read() {
        // Written by the first release. A later version MUST go on reading it: never write it anew.
        let golden = Bytes::from_static(include_bytes!("../tests/golden/record-v1.bin"));
        assert_eq!(golden, sample());
        assert_eq!(Record::decode(golden).unwrap().status, StatusCode::CREATED);
    }

    #[test]
    fn st10_newer_cut_or_foreign_records_are_errors() {
        let sample = sample();
        for cut in 0..sample.len() {
            assert!(Record::decode(sample.slice(..cut)).is_err(), "cut at {cut}");
        }
        let mut newer = sample.to_vec();
        newer[0] = 2;
        assert_eq!(Record::decode(newer.clone().into()).unwrap_err(), RecordError::Newer(2));
        assert_eq!(Record::kept(&newer.into()).unwrap_err(), RecordError::Newer(2));
        assert!(Record::decode(Bytes::from_static(b"{\"status\":200}")).is_err());
    }

    #[test]
    fn p9_a_record_is_small() {
        let mut headers = HeaderMap::new();
        headers.append("location", HeaderValue::from_static("/orders/1"));
        let outcome = Outcome {
            status: StatusCode::CREATED,
            headers: &headers,
            body: Some(&[Bytes::from_static(b"{}")]),
            trailers: None,
            stream: false,
            trailers_only: false,
            recorded: Duration::ZERO,
            trace: None,
        };
        let head_and_body = "location/orders/1{}".len();
        assert_eq!(outcome.encode(&KeptHeaders::default()).len() - head_and_body, 16);
    }
}
