//! ST10: what is not a record is an error and never a panic, and what is one survives being written
//! again.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use retrysafe_core::{Kept, KeptHeaders, Outcome, Record};

fuzz_target!(|payload: &[u8]| {
    let payload = Bytes::copy_from_slice(payload);
    let Ok(record) = Record::decode(payload.clone()) else {
        return;
    };
    let kept = match record.body {
        Some(_) => Kept::Response,
        None => Kept::OutcomeOnly,
    };
    assert_eq!(Record::kept(&payload).ok(), Some(kept));

    let written = Outcome {
        status: record.status,
        headers: &record.headers,
        body: record.body.as_ref().map(std::slice::from_ref),
        trailers: record.trailers.as_ref(),
        stream: record.stream,
        trailers_only: record.trailers_only,
        recorded: record.recorded,
        trace: record.trace,
    }
    .encode(&KeptHeaders::default());
    let again = Record::decode(written).expect("what was written can be read");
    assert_eq!(
        (again.status, &again.body, again.stream, again.trailers_only, again.recorded),
        (record.status, &record.body, record.stream, record.trailers_only, record.recorded),
    );
    assert_eq!(again.trailers.is_some(), record.trailers.is_some());
});
