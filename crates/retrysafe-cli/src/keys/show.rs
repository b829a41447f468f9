//! Records as text and as JSON. Keys, bodies and digests are not shown (S3).

use std::{
    fmt::Write as _,
    time::{Duration, UNIX_EPOCH},
};

use http::HeaderMap;
use retrysafe::{Entry, OperationId, Record, State};
use serde_json::{Value, json};

use super::StateName;

/// One line of a list.
pub(super) fn in_a_line(entry: &Entry, json: bool) -> String {
    if json {
        return as_json(entry).to_string();
    }
    format!(
        "{}  {:<9}  attempt {}  fence {}  expires in {}",
        entry.id,
        StateName::of(&entry.state).as_str(),
        entry.attempt,
        entry.fence,
        span(entry.expires_in),
    )
}

/// Everything that may be shown of a record.
pub(super) fn in_full(entry: &Entry, json: bool) -> String {
    if json {
        let mut object = as_json(entry);
        if let State::Finished { payload } = &entry.state {
            object["response"] = match Record::decode(payload.clone()) {
                Ok(record) => response_as_json(&record),
                Err(error) => json!({ "error": error.to_string() }),
            };
        }
        return object.to_string();
    }
    let mut text = String::new();
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(text, "{:<18}{value}", format!("{name}:"));
    };
    line("operation", &entry.id);
    line("full id", &hex(&entry.id));
    line("state", &StateName::of(&entry.state).as_str());
    line("attempt", &entry.attempt);
    line("fence", &entry.fence);
    line("earlier vanished", if entry.previous_vanished { &"yes" } else { &"no" });
    if let State::InFlight { lease_left } = &entry.state {
        line("lease left", &span(*lease_left));
    }
    line("expires in", &span(entry.expires_in));
    if let State::Finished { payload } = &entry.state {
        match Record::decode(payload.clone()) {
            Ok(record) => {
                line("status", &record.status);
                for (name, value) in &record.headers {
                    line("header", &format!("{name}: {}", readable(value)));
                }
                match &record.body {
                    Some(body) => line("body", &format!("{} bytes", body.len())),
                    None => line("body", &"not kept"),
                }
                for (name, value) in record.trailers.iter().flatten() {
                    line("trailer", &format!("{name}: {}", readable(value)));
                }
                line("recorded", &humantime::format_rfc3339_seconds(UNIX_EPOCH + record.recorded));
                if let Some(trace) = &record.trace {
                    line("trace", &trace.trace_id());
                }
            }
            Err(error) => line("response", &error),
        }
    }
    text.truncate(text.trim_end().len());
    text
}

/// All digits of an id.
pub(super) fn hex(id: &OperationId) -> String {
    id.as_bytes().iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn as_json(entry: &Entry) -> Value {
    let mut object = json!({
        "operation": entry.id.to_string(),
        "id": hex(&entry.id),
        "state": StateName::of(&entry.state).as_str(),
        "attempt": entry.attempt,
        "fence": entry.fence,
        "previous_vanished": entry.previous_vanished,
        "expires_in_seconds": entry.expires_in.as_secs(),
    });
    if let State::InFlight { lease_left } = &entry.state {
        object["lease_left_seconds"] = lease_left.as_secs_f64().into();
    }
    object
}

fn response_as_json(record: &Record) -> Value {
    let lines = |map: &HeaderMap| -> Vec<_> {
        map.iter().map(|(name, value)| json!([name.as_str(), readable(value)])).collect()
    };
    json!({
        "status": record.status.as_u16(),
        "headers": lines(&record.headers),
        "body_bytes": record.body.as_ref().map(bytes::Bytes::len),
        "trailers": record.trailers.as_ref().map(lines),
        "recorded": humantime::format_rfc3339_seconds(UNIX_EPOCH + record.recorded).to_string(),
        "stream": record.stream,
        "trace": record.trace.as_ref().map(|trace| trace.trace_id().to_string()),
    })
}

fn readable(value: &http::HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// Whole seconds are enough for people.
fn span(span: Duration) -> String {
    match span.as_secs() {
        0 => "less than a second".to_owned(),
        seconds => humantime::format_duration(Duration::from_secs(seconds)).to_string(),
    }
}
