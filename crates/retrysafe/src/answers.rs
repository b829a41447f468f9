//! What is answered without running anything: replays, and the problems of PROTOCOL 6.

use std::time::Duration;

use http::{HeaderValue, Response, header};
use retrysafe_core::{
    Begin, Code, Decision, Found, Kept, Likeness, OperationId, Problem, Record, RecordError, Store,
    Trace, decide,
};

use crate::{
    body::{Pieces, ResponseBody},
    door::Door,
    guard::{Answer, Guard},
    observe::{self, RequestOutcome},
};

impl<S: Store> Guard<S> {
    /// Answers by what the store holds, without running anything, and counts it.
    pub(crate) fn answer_found<R>(
        &self,
        id: &OperationId,
        found: Found,
        likeness: Likeness,
        trace: Option<Trace>,
    ) -> Answer<R> {
        let Told { answer, outcome, attempt, first } = self.told(id, found, likeness);
        self.decided(outcome, Some(id), attempt, trace, first);
        answer
    }

    /// What the store holds, as an answer.
    pub(crate) fn told<R>(&self, id: &OperationId, found: Found, likeness: Likeness) -> Told<R> {
        let kept = match &found {
            Found::Finished { payload, .. } => Record::kept(payload),
            _ => Ok(Kept::Response),
        };
        let decision = match kept {
            Ok(kept) => decide(Begin::Found(found), likeness, kept),
            Err(error) => return self.unreadable(id, error),
        };
        let told = |outcome, attempt, problem: &Problem| {
            let answer = self.problem(problem);
            Told { answer, outcome, attempt, first: None }
        };
        match decision {
            Decision::Replay(payload) => match Record::decode(payload) {
                Ok(record) => {
                    let (outcome, first) = (RequestOutcome::Replayed, record.trace);
                    Told { answer: self.replay(record), outcome, attempt: None, first }
                }
                Err(error) => self.unreadable(id, error),
            },
            Decision::Unavailable(payload) => match Record::decode(payload) {
                Ok(record) => {
                    let mut problem = Problem::new(
                        Code::ResponseUnavailable,
                        "The operation was done. Its response was too large, or not to be kept; \
                         it will not run again.",
                    );
                    problem.original_status = Some(record.status);
                    told(RequestOutcome::ResponseUnavailable, None, &problem)
                }
                Err(error) => self.unreadable(id, error),
            },
            Decision::Mismatch => {
                let problem = Problem::new(
                    Code::KeyReused,
                    "The key belongs to another request. Send a retry exactly as the original \
                     was, and a new operation with a new key.",
                );
                told(RequestOutcome::KeyReused, None, &problem)
            }
            Decision::InFlight { attempt, .. } => {
                told(RequestOutcome::InProgress, Some(attempt), &in_progress())
            }
            Decision::OutcomeUnknown { attempt } => {
                told(RequestOutcome::OutcomeUnknown, Some(attempt), &outcome_unknown(attempt))
            }
            // Nothing was granted to this request, so nothing runs for it.
            Decision::Execute(_) | Decision::Superseded => {
                told(RequestOutcome::Rejected, None, &store_unavailable())
            }
        }
    }

    fn replay<R>(&self, record: Record) -> Answer<R> {
        let Record { status, mut headers, body, trailers, .. } = record;
        headers.insert(&self.settings.replay_marker, HeaderValue::from_static("true"));
        // R6: HTTP/1.1 sends only trailers that it has announced. Over HTTP/2, gRPC's go unannounced.
        if let Some(trailers) = &trailers
            && self.door != Door::Grpc
        {
            let names: Vec<_> = trailers.keys().map(|name| name.as_str()).collect();
            if let Ok(names) = HeaderValue::from_str(&names.join(", ")) {
                headers.insert(header::TRAILER, names);
            }
        }
        let mut response =
            Response::new(ResponseBody::kept(Pieces::from_iter(body), trailers.map(Box::new)));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }

    pub(crate) fn in_progress<R>(&self, id: &OperationId, attempt: u32) -> Answer<R> {
        self.refuse(&in_progress(), RequestOutcome::InProgress, Some(id), Some(attempt))
    }

    pub(crate) fn outcome_unknown<R>(&self, id: &OperationId, attempt: u32) -> Answer<R> {
        let problem = outcome_unknown(attempt);
        self.refuse(&problem, RequestOutcome::OutcomeUnknown, Some(id), Some(attempt))
    }

    // ST10: a record that can't be read is an error, never a free key.
    fn unreadable<R>(&self, id: &OperationId, error: RecordError) -> Told<R> {
        tracing::error!(operation = %id, %error, "a kept record can't be read");
        let answer = self.problem(&store_unavailable());
        Told { answer, outcome: RequestOutcome::Rejected, attempt: None, first: None }
    }

    /// Answers with a problem, and counts it.
    pub(crate) fn refuse<R>(
        &self,
        problem: &Problem,
        outcome: RequestOutcome,
        id: Option<&OperationId>,
        attempt: Option<u32>,
    ) -> Answer<R> {
        self.decided(outcome, id, attempt, None, None);
        self.problem(problem)
    }

    pub(crate) fn problem<R>(&self, problem: &Problem) -> Answer<R> {
        self.settings.problems.render(problem).map(|body| ResponseBody::kept([body], None))
    }

    pub(crate) fn decided(
        &self,
        outcome: RequestOutcome,
        id: Option<&OperationId>,
        attempt: Option<u32>,
        trace: Option<Trace>,
        first: Option<Trace>,
    ) {
        self.requests.count(outcome);
        observe::decided(&self.settings, outcome, id, attempt, trace, first);
    }
}

/// An answer that runs nothing, and what it is counted as.
pub(crate) struct Told<R> {
    pub(crate) answer: Answer<R>,
    outcome: RequestOutcome,
    attempt: Option<u32>,
    first: Option<Trace>,
}

pub(crate) fn incomplete_body() -> Problem {
    Problem::new(Code::IncompleteBody, "The body ended before its end. Nothing was done.")
}

pub(crate) fn in_progress() -> Problem {
    Problem::new(
        Code::InProgress,
        "The first request with this key has not been answered yet. Try again with the same key.",
    )
    .retry_after(Duration::from_secs(1))
}

fn outcome_unknown(attempt: u32) -> Problem {
    let mut problem = Problem::new(
        Code::OutcomeUnknown,
        "An earlier attempt ended and nobody knows what it did. It will not run again until an \
         operator has resolved it.",
    );
    problem.attempt = Some(attempt);
    problem
}

pub(crate) fn store_unavailable() -> Problem {
    Problem::new(
        Code::StoreUnavailable,
        "No handler ran for this request. Try again with the same key.",
    )
    .retry_after(Duration::from_secs(1))
}

/// The work and its record commit together, and nobody has said that they did.
pub(crate) fn undone() -> Problem {
    Problem::new(
        Code::StoreUnavailable,
        "The outcome could not be written, and what was done stands only with it. Try again with \
         the same key.",
    )
    .retry_after(Duration::from_secs(1))
}

pub(crate) fn escaped() -> Problem {
    Problem::new(
        Code::HandlerFailed,
        "The handler did not leave its transaction to the layer. A retry with the same key finds \
         out more.",
    )
}

pub(crate) fn overloaded() -> Problem {
    Problem::new(Code::Overloaded, "No handler ran for this request. Try again with the same key.")
        .retry_after(Duration::from_secs(1))
}
