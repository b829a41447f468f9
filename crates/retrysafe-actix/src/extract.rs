//! What a handler asks of its request.

use std::{
    fmt,
    future::{Ready, ready},
    ops::Deref,
    time::Duration,
};

use actix_web::{
    FromRequest, HttpMessage as _, HttpRequest, HttpResponse, ResponseError, body::BoxBody,
    dev::Payload, http::StatusCode, web,
};
use retrysafe::{Attempt, IdempotencyKey, KeyRules, Problem, ProblemStyle};

use crate::head;

/// The key of the request. Without one the handler does not run, and the answer is the problem
/// `missing_key`. A key that can't be read is always refused (K3).
///
/// Behind a middleware it is the key that the middleware found, wherever that was. Without one it is
/// read from the header by the default [`KeyRules`], for handlers that hand it on or keep it
/// themselves. For a handler that runs without a key too there is [`OptionalKey`].
///
/// ```
/// use actix_web::{App, web};
/// use retrysafe_actix::Key;
///
/// async fn create_order(Key(key): Key) -> String {
///     format!("{} characters", key.as_str().len())
/// }
/// let app = App::new().route("/", web::post().to(create_order));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(pub IdempotencyKey);

impl FromRequest for Key {
    type Error = Rejection;
    type Future = Ready<Result<Self, Rejection>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(match key_of(request) {
            Ok(Some(key)) => Ok(Self(key)),
            Ok(None) => Err(missing_key(request)),
            Err(rejection) => Err(rejection),
        })
    }
}

/// The key of the request, if it has one. One that can't be read is refused (K3): Actix's own
/// `Option<Key>` would be `None` then.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OptionalKey(pub Option<IdempotencyKey>);

impl FromRequest for OptionalKey {
    type Error = Rejection;
    type Future = Ready<Result<Self, Rejection>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(key_of(request).map(Self))
    }
}

/// The attempt that the handler runs for (E3).
///
/// A request without a key has none: it is answered with the problem `missing_key`, and an
/// `Option<CurrentAttempt>` is `None`. For one *with* a key a missing attempt means that no
/// middleware guards this handler, which is answered with `handler_failed`, or that the middleware has
/// let it through because the store can't be reached
/// ([`OnStoreFailure::Bypass`](retrysafe::OnStoreFailure)), which is answered with
/// `store_unavailable`. Both are logged as an error.
///
/// ```
/// use actix_web::{App, web};
/// use retrysafe_actix::CurrentAttempt;
///
/// async fn pay(attempt: CurrentAttempt) -> String {
///     if attempt.previous_vanished() {
///         // An earlier attempt ended and nobody knows what it did: look before you act.
///     }
///     attempt.derive_key("charge")
/// }
/// let app = App::new().route("/", web::post().to(pay));
/// ```
#[derive(Clone, Debug)]
pub struct CurrentAttempt(pub Attempt);

impl Deref for CurrentAttempt {
    type Target = Attempt;

    fn deref(&self) -> &Attempt {
        &self.0
    }
}

impl FromRequest for CurrentAttempt {
    type Error = Rejection;
    type Future = Ready<Result<Self, Rejection>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(attempt_of(request).map(Self))
    }
}

/// Why a request has no [`Key`] or no [`CurrentAttempt`]. As a response it is a problem, rendered by
/// the [`ProblemStyle`] in the app's data if there is one:
///
/// ```
/// use actix_web::App;
/// use retrysafe_actix::ProblemStyle;
///
/// let style = ProblemStyle::default().base("https://api.example/problems/");
/// let app = App::new().app_data(style);
/// ```
pub struct Rejection(Box<Inner>);

struct Inner {
    problem: Problem,
    style: ProblemStyle,
}

impl Rejection {
    fn new(request: &HttpRequest, problem: Problem) -> Self {
        let style = request
            .app_data::<ProblemStyle>()
            .or_else(|| request.app_data::<web::Data<ProblemStyle>>().map(|style| &***style));
        Self(Box::new(Inner { problem, style: style.cloned().unwrap_or_default() }))
    }

    /// What went wrong, for a handler that answers by itself.
    pub fn problem(&self) -> &Problem {
        &self.0.problem
    }
}

impl ResponseError for Rejection {
    fn status_code(&self) -> StatusCode {
        head::status(self.0.style.render(&self.0.problem).status())
    }

    fn error_response(&self) -> HttpResponse<BoxBody> {
        let (parts, body) = self.0.style.render(&self.0.problem).into_parts();
        let mut response = HttpResponse::with_body(head::status(parts.status), BoxBody::new(body));
        head::set_headers(response.headers_mut(), &parts.headers);
        response
    }
}

impl fmt::Debug for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Rejection").field(&self.0.problem.code).finish()
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.problem.detail)
    }
}

impl std::error::Error for Rejection {}

fn key_of(request: &HttpRequest) -> Result<Option<IdempotencyKey>, Rejection> {
    let extensions = request.extensions();
    if let Some(attempt) = extensions.get::<Attempt>() {
        return Ok(Some(attempt.key().clone()));
    }
    // What the middleware found, of a request that it let through unprotected (D4).
    if let Some(key) = extensions.get::<IdempotencyKey>() {
        return Ok(Some(key.clone()));
    }
    // By the default rules a key has no age, so the time does not matter.
    KeyRules::default()
        .read(&head::headers(request.headers()), || Duration::ZERO)
        .map_err(|error| Rejection::new(request, error.into()))
}

fn attempt_of(request: &HttpRequest) -> Result<Attempt, Rejection> {
    if let Some(attempt) = request.extensions().get::<Attempt>() {
        return Ok(attempt.clone());
    }
    if key_of(request)?.is_none() {
        return Err(missing_key(request));
    }
    let problem = Problem::no_attempt(request.extensions().get());
    tracing::error!(
        path = request.path(),
        "a handler asks for its attempt, and there is none: {}",
        problem.detail
    );
    Err(Rejection::new(request, problem))
}

fn missing_key(request: &HttpRequest) -> Rejection {
    Rejection::new(request, Problem::missing_key())
}
