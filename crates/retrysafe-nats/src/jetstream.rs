//! The few requests of JetStream that the store makes.

use std::{borrow::Cow, collections::HashMap, time::Duration};

use async_nats::{
    Client, HeaderMap, Request, RequestErrorKind, connection::State as Connection,
    jetstream::stream::Config,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use retrysafe_core::{OperationId, StoreError, StoreErrorKind, lifecycle::Record};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::time::{Instant, sleep};

use crate::{
    error::{Refusal, code, not_connected, request_failed, unexpected},
    record::{decode, encode},
    stream::Subjects,
};

/// How long a message stays after its record has expired: replicas remove it each by a clock of its
/// own, and expiry is judged on reading (R8).
const SLACK: Duration = Duration::from_secs(5);

/// Beyond this the server could not write down when a message expires.
const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// How often a lost connection, or a lost leader, is looked for again.
const GLANCE: Duration = Duration::from_millis(20);

/// A stream, and the connection that it is asked through.
pub(crate) struct Stream {
    client: Client,
    pub(crate) name: String,
    pub(crate) subjects: Subjects,
    /// How long one request waits for its answer.
    pub(crate) timeout: Duration,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// It is stored, by a quorum, with this sequence.
    Stored(u64),
    /// Nothing was stored: the last message of the subject is another one than expected, with this
    /// sequence if the server said so (0: there is none).
    Refused(Option<u64>),
}

/// A record as the stream's leader has it.
#[derive(Clone)]
pub(crate) struct Kept {
    pub(crate) sequence: u64,
    /// Its times are counted from `written`.
    pub(crate) record: Record,
    /// By the clock of the server that was the leader, since 1970.
    pub(crate) written: Duration,
}

/// What a stream says of itself.
pub(crate) struct Info {
    pub(crate) config: Config,
    pub(crate) created: String,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    pub(crate) last_sequence: u64,
    /// How many records there are.
    pub(crate) records: u64,
    /// The leader's clock, since 1970, when it answered.
    pub(crate) now: Duration,
}

#[derive(Deserialize)]
struct Acknowledgement {
    error: Option<Refusal>,
    #[serde(default)]
    seq: u64,
}

#[derive(Deserialize)]
struct MessageAnswer<'a> {
    error: Option<Refusal>,
    #[serde(borrow)]
    message: Option<Message<'a>>,
}

#[derive(Deserialize)]
struct Message<'a> {
    seq: u64,
    #[serde(borrow, default)]
    data: Cow<'a, str>,
    #[serde(borrow)]
    time: Cow<'a, str>,
}

#[derive(Deserialize)]
struct InfoAnswer {
    error: Option<Refusal>,
    config: Option<Config>,
    #[serde(default)]
    created: String,
    state: Option<StreamState>,
    #[serde(default)]
    ts: String,
    #[serde(default)]
    total: usize,
}

#[derive(Deserialize)]
struct StreamState {
    messages: u64,
    bytes: u64,
    last_seq: u64,
    #[serde(default)]
    num_subjects: u64,
    subjects: Option<HashMap<String, u64>>,
}

#[derive(Serialize)]
struct InfoOf<'a> {
    subjects_filter: &'a str,
    offset: usize,
}

#[derive(Serialize)]
struct LastOf<'a> {
    last_by_subj: &'a str,
}

impl Stream {
    pub(crate) fn new(client: Client, name: &str, timeout: Duration) -> Self {
        Self { client, name: name.to_owned(), subjects: Subjects::of(name), timeout }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Writes a record, whose times are counted from now, if the last message of its subject is the
    /// one with this sequence (0: if there is none). One request.
    pub(crate) async fn write(
        &self,
        expected: u64,
        record: &Record,
    ) -> Result<Written, StoreError> {
        let mut headers = HeaderMap::new();
        headers
            .insert(async_nats::header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, expected.to_string());
        headers.insert(async_nats::header::NATS_MESSAGE_TTL, time_to_live(record.expires));
        let subject = self.subjects.record(&record.id);
        let answer = self.send(&subject, Some(headers), encode(record)).await?;
        let answer: Acknowledgement = self.parse(&answer)?;
        match answer.error {
            None if answer.seq > 0 => Ok(Written::Stored(answer.seq)),
            Some(refusal) if refusal.err_code == code::WRONG_LAST_SEQUENCE => {
                let (_, last) = refusal.description.rsplit_once(": ").unwrap_or_default();
                Ok(Written::Refused(last.parse().ok()))
            }
            Some(refusal) if refusal.err_code == code::ANOTHER_WRITE_UNDER_WAY => {
                Ok(Written::Refused(None))
            }
            Some(refusal) => Err(refusal.into_error(&self.name)),
            None => Err(StoreError::new(
                StoreErrorKind::Unavailable,
                format!("NATS stream `{}`: an acknowledgement without a sequence", self.name),
            )),
        }
    }

    /// Reads a record from the stream's leader. One request.
    pub(crate) async fn read(&self, id: &OperationId) -> Result<Option<Kept>, StoreError> {
        let subject = self.subjects.record(id);
        let answer = self.ask("STREAM.MSG.GET", &LastOf { last_by_subj: &subject }).await?;
        let answer: MessageAnswer<'_> =
            serde_json::from_slice(&answer).map_err(|error| unexpected(&self.name, error))?;
        match answer {
            MessageAnswer { message: Some(message), .. } => {
                let unreadable = |what| {
                    let problem = format!("{id} in the NATS stream can't be read: its {what}");
                    StoreError::new(StoreErrorKind::Unreadable, problem)
                };
                let data = STANDARD
                    .decode(message.data.as_bytes())
                    .map_err(|_| unreadable("bytes are not base64"))?;
                let written = moment(&message.time).ok_or_else(|| unreadable("time is none"))?;
                let record = decode(*id, data.into())?;
                Ok(Some(Kept { sequence: message.seq, record, written }))
            }
            MessageAnswer { error: Some(refusal), .. } => match refusal.err_code {
                code::NO_MESSAGE_FOUND => Ok(None),
                _ => Err(refusal.into_error(&self.name)),
            },
            MessageAnswer { message: None, error: None } => Err(StoreError::new(
                StoreErrorKind::Unavailable,
                format!("NATS stream `{}`: neither a message nor an error", self.name),
            )),
        }
    }

    /// What the stream's leader says of it. One request.
    pub(crate) async fn info(&self) -> Result<Info, StoreError> {
        let (info, ..) = self.info_of(None, 0).await?;
        Ok(info)
    }

    /// The ids of the records on these subjects, in their order. One request for each 100,000.
    pub(crate) async fn ids(&self, subjects: &str) -> Result<Vec<OperationId>, StoreError> {
        let (mut ids, mut offset) = (Vec::new(), 0);
        loop {
            let (_, page, total) = self.info_of(Some(subjects), offset).await?;
            offset += page.len();
            let done = page.is_empty() || offset >= total;
            ids.extend(page.keys().filter_map(|subject| self.subjects.id(subject)));
            if done {
                ids.sort_unstable();
                // What is written between two pages may be on both.
                ids.dedup();
                return Ok(ids);
            }
        }
    }

    /// Creates the stream. One that exists with the very same settings is as good.
    pub(crate) async fn create(&self, config: &Config) -> Result<(), StoreError> {
        let answer = self.ask("STREAM.CREATE", config).await?;
        match self.parse::<InfoAnswer>(&answer)?.error {
            // Somebody else was faster; the settings are checked next.
            Some(refusal) if refusal.err_code == code::STREAM_NAME_EXISTS => Ok(()),
            Some(refusal) if refusal.err_code == code::CLUSTER_NOT_AVAILABLE => {
                Err(refusal.into_error(&self.name))
            }
            Some(Refusal { err_code, description }) => Err(StoreError::new(
                StoreErrorKind::Misconfigured,
                format!("NATS stream `{}` can't be created: {description} ({err_code})", self.name),
            )),
            None => Ok(()),
        }
    }

    async fn info_of(
        &self,
        subjects: Option<&str>,
        offset: usize,
    ) -> Result<(Info, HashMap<String, u64>, usize), StoreError> {
        let request = subjects.map(|subjects_filter| InfoOf { subjects_filter, offset });
        let answer = self.ask("STREAM.INFO", &request).await?;
        let answer: InfoAnswer = self.parse(&answer)?;
        if let Some(refusal) = answer.error {
            return Err(refusal.into_error(&self.name));
        }
        match (answer.config, answer.state, moment(&answer.ts)) {
            (Some(config), Some(state), Some(now)) => {
                let info = Info {
                    config,
                    created: answer.created,
                    messages: state.messages,
                    bytes: state.bytes,
                    last_sequence: state.last_seq,
                    records: state.num_subjects,
                    now,
                };
                Ok((info, state.subjects.unwrap_or_default(), answer.total))
            }
            _ => Err(StoreError::new(
                StoreErrorKind::Misconfigured,
                format!(
                    "NATS stream `{}`: its server does not tell the time (2.11 does)",
                    self.name
                ),
            )),
        }
    }

    /// Asks the JetStream API, again if nobody leads: asking changes nothing.
    async fn ask(&self, api: &str, request: &impl Serialize) -> Result<Bytes, StoreError> {
        let payload = serde_json::to_vec(request).map_err(|error| unexpected(&self.name, error))?;
        let (subject, payload) = (format!("$JS.API.{api}.{}", self.name), Bytes::from(payload));
        let patience = Instant::now() + self.timeout / 2;
        loop {
            let answer = self.send(&subject, None, payload.clone()).await?;
            if !is_leaderless(&answer) || Instant::now() >= patience {
                return Ok(answer);
            }
            sleep(GLANCE).await;
        }
    }

    /// Sends a request when there is a connection and somebody to hear it, and waits for the answer.
    ///
    /// Without a connection the driver would keep what it is given and send it when there is one
    /// again, long after who asked has gone. So nothing is given to it. Where nobody hears a request,
    /// because the stream is without a leader for the moment, it can be sent again.
    async fn send(
        &self,
        subject: &str,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<Bytes, StoreError> {
        let patience = Instant::now() + self.timeout / 2;
        loop {
            while self.client.connection_state() != Connection::Connected {
                if Instant::now() >= patience {
                    return Err(not_connected(&self.name));
                }
                sleep(GLANCE).await;
            }
            let request = Request::new().payload(payload.clone()).timeout(Some(self.timeout));
            let request = match &headers {
                Some(headers) => request.headers(headers.clone()),
                None => request,
            };
            match self.client.send_request(subject.to_owned(), request).await {
                Ok(answer) => return Ok(answer.payload),
                Err(error)
                    if error.kind() == RequestErrorKind::NoResponders
                        && self.client.server_info().jetstream
                        && Instant::now() < patience =>
                {
                    sleep(GLANCE).await;
                }
                Err(error) => return Err(request_failed(&self.name, error)),
            }
        }
    }

    fn parse<T: DeserializeOwned>(&self, answer: &[u8]) -> Result<T, StoreError> {
        serde_json::from_slice(answer).map_err(|error| unexpected(&self.name, error))
    }
}

/// Whether this is the error of a cluster without a leader. Errors are short.
fn is_leaderless(answer: &[u8]) -> bool {
    answer.len() < 1024
        && serde_json::from_slice::<Acknowledgement>(answer)
            .ok()
            .and_then(|answer| answer.error)
            .is_some_and(|refusal| refusal.err_code == code::CLUSTER_NOT_AVAILABLE)
}

/// ST8: rounded up, and never before the record expires.
fn time_to_live(expires: Duration) -> String {
    if expires >= CENTURY {
        return "never".to_owned();
    }
    let rounded_up = expires.saturating_add(SLACK + Duration::from_nanos(999_999_999));
    rounded_up.as_secs().to_string()
}

/// A moment since 1970, as the server writes it.
fn moment(text: &str) -> Option<Duration> {
    let time = humantime::parse_rfc3339(text).ok()?;
    time.duration_since(std::time::UNIX_EPOCH).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn st8_a_message_outlives_its_record() {
        for expires in [0, 1, 999, 1_000, 1_001, 86_400_000].map(Duration::from_millis) {
            let seconds: u64 = time_to_live(expires).parse().unwrap();
            assert!(Duration::from_secs(seconds) >= expires + SLACK, "{expires:?}: {seconds}");
            assert!(Duration::from_secs(seconds) < expires + SLACK + Duration::from_secs(1));
        }
        assert_eq!(time_to_live(Duration::MAX), "never");
    }

    #[test]
    fn a_server_tells_the_time_to_the_nanosecond() {
        let at = moment("2026-11-22T05:35:22.669129056Z").unwrap();
        assert_eq!(at.subsec_nanos(), 669_129_056);
        assert_eq!(moment("1970-01-01T00:00:01Z"), Some(Duration::from_secs(1)));
        assert_eq!(moment("0001-01-01T00:00:00Z"), None);
        assert_eq!(moment(""), None);
    }
}
