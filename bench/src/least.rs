//! The least that any layer of this kind does in process, written out by hand: it reads the request,
//! hashes it, looks into a map, runs the handler, and keeps the response in one piece of memory.
//! There is no lease, no task, no wait, no scope, and one kind of error; nobody should use it. It
//! shows how much of what a layer adds could be saved at all (P13).

use std::{
    collections::{HashMap, hash_map::Entry},
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use axum::{Router, body::Body, response::Response};
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use sha2::{Digest as _, Sha256};
use tower::Service;

#[derive(Clone)]
pub(crate) struct Least {
    inner: Router,
    kept: Arc<Mutex<HashMap<[u8; 32], Kept>>>,
}

struct Kept {
    fingerprint: [u8; 32],
    /// Headers and body; `None` while the handler runs.
    outcome: Option<Vec<u8>>,
}

impl Least {
    pub(crate) fn new(inner: Router) -> Self {
        Self { inner, kept: Arc::default() }
    }
}

impl Service<Request<Body>> for Least {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Self { mut inner, kept } = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let Ok(body) = body.collect().await else { return Ok(refused()) };
            let body = body.to_bytes();
            let Some(key) = parts.headers.get("idempotency-key") else { return Ok(refused()) };
            let id: [u8; 32] = Sha256::digest(key.as_bytes()).into();
            let fingerprint: [u8; 32] = Sha256::new()
                .chain_update(parts.method.as_str())
                .chain_update(parts.uri.path())
                .chain_update(&body)
                .finalize()
                .into();
            match kept.lock().unwrap_or_else(PoisonError::into_inner).entry(id) {
                Entry::Vacant(place) => {
                    place.insert(Kept { fingerprint, outcome: None });
                }
                Entry::Occupied(found) => {
                    let Kept { fingerprint: of_first, outcome } = found.get();
                    let _ = (*of_first == fingerprint, outcome);
                    return Ok(refused());
                }
            }
            let response = inner.call(Request::from_parts(parts, Body::from(body))).await?;
            let (head, body) = response.into_parts();
            let Ok(body) = body.collect().await else { return Ok(refused()) };
            let body = body.to_bytes();
            let headers = || head.headers.iter();
            let length: usize =
                headers().map(|(name, value)| name.as_str().len() + value.len()).sum();
            let mut outcome = Vec::with_capacity(length + body.len());
            for (name, value) in headers() {
                outcome.extend_from_slice(name.as_str().as_bytes());
                outcome.extend_from_slice(value.as_bytes());
            }
            outcome.extend_from_slice(&body);
            if let Some(it) = kept.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&id) {
                it.outcome = Some(outcome);
            }
            Ok(Response::from_parts(head, Body::from(body)))
        })
    }
}

fn refused() -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::CONFLICT;
    response
}
