//! What the tests share: a handler that counts, and how it is called.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use actix_web::{
    Error, HttpMessage as _, HttpResponse,
    body::{MessageBody, to_bytes},
    dev::{Service, ServiceRequest, ServiceResponse},
    http::{StatusCode, header::HeaderMap},
    middleware::Next,
    test::TestRequest,
    web,
};
use bytes::Bytes;
use retrysafe_actix::{
    About, Begin, Claim, Fingerprint, Held, Idempotency, Lease, MemoryStore, OperationId, Scope,
    Store, StoreError, Swept,
};
use retrysafe_testkit::Verb;
use serde_json::{Value, json};

pub(crate) const KEY: &str = "8e03978e-40d5-43e8-bc93-6894a57f9324";

/// How often handlers have run.
#[derive(Clone, Default)]
pub(crate) struct Runs(Arc<AtomicU32>);

impl Runs {
    /// Counts one more, and says which it is.
    pub(crate) fn count(&self) -> u32 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub(crate) fn so_far(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }

    pub(crate) fn data(&self) -> web::Data<Self> {
        web::Data::new(self.clone())
    }
}

/// Answers 201 with the number of the run.
pub(crate) async fn create(runs: web::Data<Runs>, body: Bytes) -> HttpResponse {
    let run = runs.count();
    HttpResponse::Created()
        .insert_header(("location", format!("/orders/{run}")))
        .json(json!({ "run": run, "received": body.len() }))
}

/// A middleware with the defaults, for one trusted client.
pub(crate) fn idempotency() -> Idempotency<MemoryStore> {
    Idempotency::builder(MemoryStore::new(), Scope::shared()).build().unwrap()
}

/// A POST with a key.
pub(crate) fn post(uri: &str, body: impl Into<Bytes>) -> TestRequest {
    keyless(uri, body).insert_header(("idempotency-key", KEY))
}

/// A POST without one.
pub(crate) fn keyless(uri: &str, body: impl Into<Bytes>) -> TestRequest {
    TestRequest::post().uri(uri).set_payload(body)
}

#[derive(Clone)]
pub(crate) struct User(pub(crate) String);

/// Authentication, as far as a test needs it.
pub(crate) async fn authenticate<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, Error> {
    if let Some(user) = request.headers().get("x-user-id") {
        let user = User(user.to_str().unwrap().to_owned());
        request.extensions_mut().insert(user);
    }
    next.call(request).await
}

/// An answer that has been read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn is_replay(&self) -> bool {
        self.headers.contains_key("idempotent-replayed")
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The code of a problem.
    pub(crate) fn code(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        self.json()["code"].as_str().unwrap().to_owned()
    }

    /// Every line but the marker, by name; the repeats of a name in their order.
    fn lines(&self) -> Vec<(String, Vec<u8>)> {
        let lines = self.headers.iter().filter(|(name, _)| *name != "idempotent-replayed");
        let mut lines: Vec<_> =
            lines.map(|(name, value)| (name.to_string(), value.as_bytes().to_owned())).collect();
        lines.sort_by(|one, other| one.0.cmp(&other.0));
        lines
    }

    /// Holds a replay against the answer that it repeats.
    #[track_caller]
    pub(crate) fn replays(&self, first: &Self) {
        assert!(!first.is_replay(), "{first:?}");
        assert!(self.is_replay(), "{self:?}");
        assert_eq!(self.status, first.status);
        assert_eq!(self.body, first.body);
        assert_eq!(self.lines(), first.lines());
    }
}

pub(crate) async fn read<B: MessageBody>(response: HttpResponse<B>) -> Answer {
    let (head, body) = response.into_parts();
    let Ok(body) = to_bytes(body).await else { panic!("the body broke off") };
    Answer { status: head.status(), headers: head.headers().clone(), body }
}

/// Calls an app, and renders an error as Actix does.
pub(crate) async fn respond<S, R, B>(app: &S, request: R) -> Answer
where
    S: Service<R, Response = ServiceResponse<B>, Error = Error>,
    B: MessageBody,
{
    match app.call(request).await {
        Ok(response) => read(response.into_parts().1).await,
        Err(error) => read(HttpResponse::from_error(error)).await,
    }
}

/// A memory store that asks before each call whether it is to fail.
pub(crate) struct Watched {
    store: MemoryStore,
    watch: Box<dyn Fn(Verb) -> Option<StoreError> + Send + Sync>,
}

impl Watched {
    pub(crate) fn new(watch: impl Fn(Verb) -> Option<StoreError> + Send + Sync + 'static) -> Self {
        Self { store: MemoryStore::new(), watch: Box::new(watch) }
    }

    fn called(&self, verb: Verb) -> Result<(), StoreError> {
        (self.watch)(verb).map_or(Ok(()), Err)
    }
}

impl Store for Watched {
    fn about(&self) -> About {
        self.store.about()
    }

    async fn begin(&self, claim: &Claim) -> Result<Begin, StoreError> {
        self.called(Verb::Begin)?;
        self.store.begin(claim).await
    }

    async fn renew(&self, lease: &Lease, lease_for: Duration) -> Result<Held, StoreError> {
        self.called(Verb::Renew)?;
        self.store.renew(lease, lease_for).await
    }

    async fn complete(
        &self,
        lease: &Lease,
        fingerprint: &Fingerprint,
        payload: Bytes,
        retention: Duration,
    ) -> Result<Held, StoreError> {
        self.called(Verb::Complete)?;
        self.store.complete(lease, fingerprint, payload, retention).await
    }

    async fn release(&self, lease: &Lease, keep_for: Duration) -> Result<Held, StoreError> {
        self.called(Verb::Release)?;
        self.store.release(lease, keep_for).await
    }

    async fn changed(
        &self,
        id: &OperationId,
        seen: u32,
        within: Duration,
    ) -> Result<(), StoreError> {
        self.called(Verb::Changed)?;
        self.store.changed(id, seen, within).await
    }

    async fn sweep(&self, limit: usize) -> Result<Swept, StoreError> {
        self.called(Verb::Sweep)?;
        self.store.sweep(limit).await
    }
}

/// An app for a test, ready to be called.
macro_rules! app {
    ($app:expr) => {
        actix_web::test::init_service($app).await
    };
}

/// The answer of an app to a request.
macro_rules! call {
    ($app:expr, $request:expr) => {
        $crate::support::respond(&$app, $request.to_request()).await
    };
}

pub(crate) use {app, call};
