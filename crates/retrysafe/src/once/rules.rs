//! What becomes of a handler's result: how it is kept, and how it is read again (O2, O3).

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use retrysafe_core::{
    Disposition, OutcomeOverrule, Overrule, Problem, headers::IDEMPOTENCY_STATUS,
};
use serde::{
    Serialize,
    de::{self, DeserializeOwned},
};

use super::{Done, OnceError};
use crate::guard::Answer;

/// The status with which an error is kept. A value is kept with 200.
pub(crate) const KEPT_ERROR: StatusCode = StatusCode::UNPROCESSABLE_ENTITY;

type Predicate<E> = Arc<dyn Fn(&E) -> bool + Send + Sync>;

/// What becomes of a handler's errors, and for how long an outcome is kept.
pub(crate) struct ErrorRules<E> {
    release: Option<Predicate<E>>,
    keep: Option<Keep<E>>,
    pub(crate) retention: Option<Duration>,
}

/// Errors that can be kept, because their type can be written and read.
struct Keep<E> {
    when: Predicate<E>,
    round_trip: fn(E) -> (Option<Bytes>, E),
    decode: fn(&[u8]) -> serde_json::Result<E>,
}

/// What the handler gave, on its way to the caller beside the response that is kept. Only the
/// handler's own response carries it: a lost lease answers with somebody else's (E5).
struct Given<T, E> {
    result: Arc<Mutex<Option<Judged<T, E>>>>,
    attempt: Option<u32>,
}

/// A handler's result, and what becomes of the operation if it is an error.
type Judged<T, E> = Result<T, (E, Disposition)>;

impl<T, E> Clone for Given<T, E> {
    fn clone(&self) -> Self {
        Self { result: self.result.clone(), attempt: self.attempt }
    }
}

impl<E: Send + 'static> ErrorRules<E> {
    pub(crate) fn release_if(&mut self, when: impl Fn(&E) -> bool + Send + Sync + 'static) {
        self.release = Some(Arc::new(when));
    }

    pub(crate) fn keep_if(&mut self, when: impl Fn(&E) -> bool + Send + Sync + 'static)
    where
        E: Serialize + DeserializeOwned,
    {
        let decode = |bytes: &[u8]| serde_json::from_slice(bytes);
        self.keep = Some(Keep { when: Arc::new(when), round_trip, decode });
    }

    /// What an error says of the outcome. Keeping comes first: it never runs again.
    pub(crate) fn disposition(&self, error: &E) -> Disposition {
        match (&self.keep, &self.release) {
            (Some(keep), _) if (keep.when)(error) => Disposition::Keep,
            (_, Some(release)) if release(error) => Disposition::Release,
            _ => Disposition::GiveUp,
        }
    }

    /// The result of a run that nothing protects.
    pub(crate) fn unprotected<T>(&self, result: Result<T, E>) -> Result<Done<T>, OnceError<E>> {
        match result {
            Ok(value) => Ok(Done { value, replayed: false, attempt: None, recorded: false }),
            Err(error) => {
                let disposition = self.disposition(&error);
                Err(OnceError::Failed { error, disposition, replayed: false, recorded: false })
            }
        }
    }

    /// The handler's result as the response that the engine keeps. An ambiguous error is the inner
    /// service's own.
    pub(crate) fn answer<T>(
        &self,
        result: Result<T, E>,
        attempt: Option<u32>,
    ) -> Result<Response<Full<Bytes>>, E>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
    {
        let (status, kept, result) = match result {
            Ok(value) => {
                let (kept, value) = round_trip(value);
                (StatusCode::OK, kept, Ok(value))
            }
            Err(error) => match (self.disposition(&error), &self.keep) {
                (Disposition::Keep, Some(keep)) => {
                    let (kept, error) = (keep.round_trip)(error);
                    (KEPT_ERROR, kept, Err((error, Disposition::Keep)))
                }
                (Disposition::Release, _) => {
                    let given = Given::<T, E>::new(Err((error, Disposition::Release)), attempt);
                    let mut response = Response::new(Full::default());
                    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                    return Ok(self.with(response, OutcomeOverrule::Release, given));
                }
                _ => return Err(error),
            },
        };
        // What can't be written is done all the same, and never runs again (`oversize_reruns`).
        let outcome = match kept {
            Some(_) => OutcomeOverrule::Store,
            None => OutcomeOverrule::OmitBody,
        };
        let mut response = Response::new(Full::from(kept.unwrap_or_default()));
        *response.status_mut() = status;
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        Ok(self.with(response, outcome, Given::new(result, attempt)))
    }

    fn with<T: Send + 'static>(
        &self,
        mut response: Response<Full<Bytes>>,
        outcome: OutcomeOverrule,
        given: Given<T, E>,
    ) -> Response<Full<Bytes>> {
        let overrule = Overrule { outcome: Some(outcome), retention: self.retention };
        response.extensions_mut().insert(overrule);
        response.extensions_mut().insert(given);
        response
    }

    /// What the engine answered, as the caller gets it.
    pub(crate) async fn read<T>(
        &self,
        answer: Result<Answer<Full<Bytes>>, E>,
        replay_marker: &HeaderName,
    ) -> Result<Done<T>, OnceError<E>>
    where
        T: DeserializeOwned + Send + 'static,
    {
        let mut response = answer.map_err(OnceError::ambiguous)?;
        if let Some(problem) = response.extensions_mut().remove::<Problem>() {
            return Err(OnceError::Problem(problem));
        }
        let recorded = !response.headers().contains_key(&IDEMPOTENCY_STATUS);
        if let Some(Given { result, attempt }) = response.extensions_mut().remove::<Given<T, E>>()
            && let Some(result) = result.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            return match result {
                Ok(value) => Ok(Done { value, replayed: false, attempt, recorded }),
                Err((error, disposition)) => {
                    let recorded = recorded && disposition == Disposition::Keep;
                    Err(OnceError::Failed { error, disposition, replayed: false, recorded })
                }
            };
        }
        let replayed = response.headers().contains_key(replay_marker);
        let (head, body) = response.into_parts();
        // The body of a record is at hand: reading it can't fail.
        let body = body.collect().await.map(|it| it.to_bytes()).unwrap_or_default();
        match (head.status, &self.keep) {
            (KEPT_ERROR, Some(keep)) => {
                let error = caught(|| (keep.decode)(&body)).map_err(OnceError::Undecodable)?;
                Err(OnceError::Failed { error, disposition: Disposition::Keep, replayed, recorded })
            }
            // It was kept by a build that could read it.
            (KEPT_ERROR, None) => Err(OnceError::Undecodable(de::Error::custom(
                "it is an error of the handler, and `keep_if` is not set",
            ))),
            _ => {
                let value = caught(|| serde_json::from_slice(&body));
                let value = value.map_err(OnceError::Undecodable)?;
                Ok(Done { value, replayed, attempt: None, recorded })
            }
        }
    }
}

impl<E> OnceError<E> {
    pub(crate) fn ambiguous(error: E) -> Self {
        let disposition = Disposition::GiveUp;
        Self::Failed { error, disposition, replayed: false, recorded: false }
    }
}

impl<T, E> Given<T, E> {
    fn new(result: Judged<T, E>, attempt: Option<u32>) -> Self {
        Self { result: Arc::new(Mutex::new(Some(result))), attempt }
    }
}

impl<E> Default for ErrorRules<E> {
    fn default() -> Self {
        Self { release: None, keep: None, retention: None }
    }
}

impl<E> Clone for ErrorRules<E> {
    fn clone(&self) -> Self {
        let keep = self.keep.as_ref().map(|keep| Keep { when: keep.when.clone(), ..*keep });
        Self { release: self.release.clone(), keep, retention: self.retention }
    }
}

/// A value as it is kept, and as every retry reads it: the first caller gets no other. It is not
/// kept if it can't be written, or can't be read again.
fn round_trip<T: Serialize + DeserializeOwned>(value: T) -> (Option<Bytes>, T) {
    let kept = caught(|| {
        let bytes = serde_json::to_vec(&value)?;
        let read = serde_json::from_slice(&bytes)?;
        Ok((Bytes::from(bytes), read))
    });
    match kept {
        Ok((bytes, read)) => (Some(bytes), read),
        Err(error) => {
            // S3: the error's text may quote the value.
            let category = error.classify();
            tracing::error!(?category, "a result can't be kept: a retry learns that it was done");
            (None, value)
        }
    }
}

/// What was to be read or written is of a type of the user's, whose code may panic: by then the work is
/// done, so that is no more than a value that can't be read.
fn caught<T>(read: impl FnOnce() -> serde_json::Result<T>) -> serde_json::Result<T> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err(de::Error::custom("it panicked")))
}
