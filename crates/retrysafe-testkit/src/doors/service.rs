//! The service behind every door.

use std::{
    collections::HashMap,
    convert::Infallible,
    fmt::Debug,
    mem,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use retrysafe_core::{OutcomeOverrule, Overrule, headers::IDEMPOTENCY_OUTCOME};
use tokio::sync::watch;

use super::Place;

/// A service that counts how often it ran for each path, and answers as the request's `X-Answer`
/// says:
///
/// | `X-Answer` | the answer |
/// |---|---|
/// | none | 201, `Location`, `order N` for the Nth run of this path |
/// | a status | that status, the same otherwise |
/// | `panic` | none: the handler panics |
/// | `gate` | waits until the test opens the gate of the path |
/// | `headers` | repeated and binary headers, and a body that is no text |
/// | `secrets` | `Set-Cookie` and `Cache-Control: no-store` |
/// | `marked` | a marker that is not the service's to set |
/// | `large` | 5 MiB |
/// | `events` | server-sent events; all after the first wait at the gate |
/// | `store`, `release`, `unknown`, `omit_body` | 500, and what becomes of the record, by the service's own word |
#[derive(Clone)]
pub struct Service {
    place: Place,
    paths: Arc<Mutex<HashMap<String, Seen>>>,
}

struct Seen {
    runs: watch::Sender<u32>,
    gate: watch::Sender<bool>,
}

impl Default for Seen {
    fn default() -> Self {
        Self { runs: watch::Sender::new(0), gate: watch::Sender::new(false) }
    }
}

/// A body of the service.
pub enum ServiceBody {
    /// All there is.
    Whole(Bytes),
    /// One that is still being made.
    Live(Pin<Box<dyn Stream<Item = Bytes> + Send>>),
}

/// More bytes than are kept.
pub(super) const LARGE: usize = 5 << 20;

/// A test that hangs fails.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

impl Body for ServiceBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = match &mut *self {
            Self::Whole(data) => Some(mem::take(data)).filter(|data| !data.is_empty()),
            Self::Live(events) => ready!(events.poll_next_unpin(cx)),
        };
        Poll::Ready(data.map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(data) if data.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(data) => SizeHint::with_exact(data.len() as u64),
            Self::Live(_) => SizeHint::new(),
        }
    }
}

impl Service {
    pub(super) fn new(place: Place) -> Self {
        Self { place, paths: Arc::default() }
    }

    /// Answers a request, after it has read its body.
    ///
    /// # Panics
    ///
    /// If it is asked to, or if the body breaks off.
    pub async fn answer<B>(&self, request: Request<B>) -> Response<ServiceBody>
    where
        B: Body<Error: Debug>,
    {
        let (request, body) = request.into_parts();
        body.collect().await.expect("a body with an end");
        let path = request.uri.path().to_owned();
        let run = self.seen(&path, |seen| {
            seen.runs.send_modify(|runs| *runs += 1);
            *seen.runs.borrow()
        });
        let how = request.headers.get("x-answer").and_then(|how| how.to_str().ok()).unwrap_or("");
        let mut response = Response::new(ServiceBody::Whole(format!("order {run}").into()));
        *response.status_mut() = StatusCode::CREATED;
        let headers = response.headers_mut();
        headers.insert("content-type", HeaderValue::from_static("text/plain"));
        let location = HeaderValue::try_from(format!("/orders/{run}"));
        headers.insert("location", location.expect("digits"));
        if let Ok(status) = how.parse() {
            *response.status_mut() = status;
            if matches!(status.as_u16(), 204 | 304) {
                *response.body_mut() = ServiceBody::Whole(Bytes::new());
            }
            return response;
        }
        match how {
            "panic" => panic!("a handler that panics, as it was asked to"),
            "gate" => self.pass(&path).await,
            "headers" => {
                for part in [&b"one"[..], b"two", b"\xfe\xff"] {
                    let part = HeaderValue::from_bytes(part).expect("bytes that HTTP can carry");
                    headers.append("x-part", part);
                }
                headers.insert("etag", HeaderValue::from_static("\"1\""));
                *response.body_mut() = ServiceBody::Whole(Bytes::from_static(b"\x00\xff\xfe\r\n"));
            }
            "secrets" => {
                headers.insert("set-cookie", HeaderValue::from_static("session=1"));
                headers.insert("cache-control", HeaderValue::from_static("no-store"));
            }
            "marked" => {
                headers.insert("idempotent-replayed", HeaderValue::from_static("true"));
                headers.insert("idempotency-status", HeaderValue::from_static("bypassed"));
            }
            "large" => *response.body_mut() = ServiceBody::Whole(vec![b'.'; LARGE].into()),
            "events" => {
                headers.insert("content-type", HeaderValue::from_static("text/event-stream"));
                let (service, path) = (self.clone(), path.clone());
                let rest = async move {
                    service.pass(&path).await;
                    Bytes::from_static(b"data: last\n\n")
                };
                let first = stream::iter([Bytes::from_static(b"data: first\n\n")]);
                let events = first.chain(stream::once(rest));
                *response.body_mut() = ServiceBody::Live(Box::pin(events));
            }
            "store" => self.overrule(&mut response, how, OutcomeOverrule::Store),
            "release" => self.overrule(&mut response, how, OutcomeOverrule::Release),
            "unknown" => self.overrule(&mut response, how, OutcomeOverrule::Unknown),
            "omit_body" => self.overrule(&mut response, how, OutcomeOverrule::OmitBody),
            "" => {}
            other => panic!("nobody knows the answer `{other}`"),
        }
        response
    }

    fn overrule(&self, response: &mut Response<ServiceBody>, how: &str, outcome: OutcomeOverrule) {
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        match self.place {
            Place::InProcess => {
                let overrule = Overrule { outcome: Some(outcome), retention: None };
                response.extensions_mut().insert(overrule);
            }
            Place::BehindAWire => {
                let name: &HeaderName = &IDEMPOTENCY_OUTCOME;
                response.headers_mut().insert(name, how.parse().expect("a word"));
            }
        }
    }

    /// How often it ran for the paths of a case.
    pub(super) fn runs(&self, case: &str) -> u32 {
        let paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        let of_case = |path: &str| path.trim_start_matches('/').split('/').next() == Some(case);
        paths.iter().filter(|(path, _)| of_case(path)).map(|(_, seen)| *seen.runs.borrow()).sum()
    }

    /// Waits until it has run for a path.
    pub(super) async fn ran(&self, path: &str) {
        let mut runs = self.seen(path, |seen| seen.runs.subscribe());
        let ran = tokio::time::timeout(PATIENCE, runs.wait_for(|runs| *runs > 0)).await;
        ran.expect("the service did not run").expect("a sender that stays");
    }

    /// Opens the gate of a path.
    pub fn open(&self, path: &str) {
        self.seen(path, |seen| seen.gate.send_replace(true));
    }

    async fn pass(&self, path: &str) {
        let mut gate = self.seen(path, |seen| seen.gate.subscribe());
        let _ = gate.wait_for(|open| *open).await;
    }

    fn seen<T>(&self, path: &str, of: impl FnOnce(&mut Seen) -> T) -> T {
        let mut paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        of(paths.entry(path.to_owned()).or_default())
    }
}
