//! What a handler asks of its request.

use std::{convert::Infallible, fmt, ops::Deref, time::Duration};

use axum::{
    body::Body,
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use http::request::Parts;
use retrysafe::{
    Attempt, Code, FromAttempt, IdempotencyKey, KeyRules, NotLent, Problem, ProblemStyle,
};

/// The key of the request. Without one the handler does not run, and the answer is the problem
/// `missing_key`; an `Option<Key>` is `None` then. A key that can't be read is always refused (K3).
///
/// Behind a layer it is the key that the layer found, wherever that was. Without one it is read
/// from the header by the default [`KeyRules`], for handlers that hand it on or keep it themselves.
///
/// ```
/// use retrysafe_axum::Key;
///
/// async fn create_order(Key(key): Key) -> String {
///     format!("{} characters", key.as_str().len())
/// }
/// # let app: axum::Router = axum::Router::new().route("/", axum::routing::post(create_order));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(pub IdempotencyKey);

impl<S: Send + Sync> FromRequestParts<S> for Key {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        match key_of(parts)? {
            Some(key) => Ok(Self(key)),
            None => Err(missing_key(parts)),
        }
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for Key {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Rejection> {
        Ok(key_of(parts)?.map(Self))
    }
}

/// The attempt that the handler runs for (E3).
///
/// A request without a key has none: it is answered with the problem `missing_key`, and an
/// `Option<CurrentAttempt>` is `None`. For one *with* a key a missing attempt means that no layer
/// guards this handler, which is answered with `handler_failed`, or that the layer has let it through
/// because the store can't be reached ([`OnStoreFailure::Bypass`](retrysafe::OnStoreFailure)), which
/// is answered with `store_unavailable`. Both are logged as an error.
///
/// ```
/// use retrysafe_axum::CurrentAttempt;
///
/// async fn pay(attempt: CurrentAttempt) -> String {
///     if attempt.previous_vanished() {
///         // An earlier attempt ended and nobody knows what it did: look before you act.
///     }
///     attempt.derive_key("charge")
/// }
/// # let app: axum::Router = axum::Router::new().route("/", axum::routing::post(pay));
/// ```
#[derive(Clone, Debug)]
pub struct CurrentAttempt(pub Attempt);

impl Deref for CurrentAttempt {
    type Target = Attempt;

    fn deref(&self) -> &Attempt {
        &self.0
    }
}

impl<S: Send + Sync> FromRequestParts<S> for CurrentAttempt {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        if let Some(attempt) = parts.extensions.get::<Attempt>() {
            return Ok(Self(attempt.clone()));
        }
        if key_of(parts)?.is_none() {
            return Err(missing_key(parts));
        }
        let problem = Problem::no_attempt(parts.extensions.get());
        tracing::error!(
            path = parts.uri.path(),
            "a handler asks for its attempt, and there is none: {}",
            problem.detail
        );
        Err(Rejection::new(parts, problem))
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for CurrentAttempt {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(parts.extensions.get::<Attempt>().cloned().map(Self))
    }
}

/// The transaction that commits with the record, where the layer's store lends one: `T` is that
/// store's, such as `PostgresTransaction` of `retrysafe-sqlx`, or [`Phases`](retrysafe::Phases) of it, for
/// a handler that calls other services in between.
///
/// It is lent until the value is dropped, to one at a time. A request without an attempt has none, and
/// is answered as [`CurrentAttempt`] does. One whose store lends no `T`, or that has lent it to
/// somebody else, is answered with `handler_failed` and logged as an error.
///
/// ```
/// use retrysafe_axum::{Attempt, FromAttempt, NotLent, Transaction};
///
/// # struct PostgresTransaction;
/// # impl FromAttempt for PostgresTransaction {
/// #     fn from_attempt(_: &Attempt) -> Result<Self, NotLent> { Err(NotLent::Absent) }
/// # }
/// async fn transfer(Transaction(transaction): Transaction<PostgresTransaction>) {
///     // Statements on `&mut *transaction`: they commit with the record, or not at all.
/// }
/// # let app: axum::Router = axum::Router::new().route("/", axum::routing::post(transfer));
/// ```
#[derive(Debug)]
pub struct Transaction<T>(pub T);

impl<S: Send + Sync, T: FromAttempt> FromRequestParts<S> for Transaction<T> {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Rejection> {
        let attempt = <CurrentAttempt as FromRequestParts<S>>::from_request_parts(parts, state);
        let CurrentAttempt(attempt) = attempt.await?;
        T::from_attempt(&attempt).map(Self).map_err(|why| {
            tracing::error!(
                path = parts.uri.path(),
                "a handler asks for its transaction, and there is none: {why}"
            );
            let detail = match why {
                NotLent::InUse => "The transaction of this operation is in use.",
                NotLent::Unread => {
                    "The request is too long to be done in phases. Nothing was done."
                }
                _ => "This operation has no transaction. Nothing was done.",
            };
            Rejection::new(parts, Problem::new(Code::HandlerFailed, detail))
        })
    }
}

/// Why a request has no [`Key`], no [`CurrentAttempt`] or no [`Transaction`]. As a response it is a problem, rendered by
/// the [`ProblemStyle`] in the request's extensions if there is one:
///
/// ```
/// use axum::{Extension, Router};
/// use retrysafe_axum::ProblemStyle;
///
/// let style = ProblemStyle::default().base("https://api.example/problems/");
/// let app: Router = Router::new().layer(Extension(style));
/// ```
pub struct Rejection(Box<Inner>);

struct Inner {
    problem: Problem,
    style: ProblemStyle,
}

impl Rejection {
    fn new(parts: &Parts, problem: Problem) -> Self {
        let style = parts.extensions.get::<ProblemStyle>().cloned().unwrap_or_default();
        Self(Box::new(Inner { problem, style }))
    }

    /// What went wrong, for a handler that answers by itself.
    pub fn problem(&self) -> &Problem {
        &self.0.problem
    }
}

impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        self.0.style.render(&self.0.problem).map(Body::from)
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

fn key_of(parts: &Parts) -> Result<Option<IdempotencyKey>, Rejection> {
    if let Some(attempt) = parts.extensions.get::<Attempt>() {
        return Ok(Some(attempt.key().clone()));
    }
    // What the layer found, of a request that it let through unprotected (D4).
    if let Some(key) = parts.extensions.get::<IdempotencyKey>() {
        return Ok(Some(key.clone()));
    }
    // By the default rules a key has no age, so the time does not matter.
    KeyRules::default()
        .read(&parts.headers, || Duration::ZERO)
        .map_err(|error| Rejection::new(parts, error.into()))
}

fn missing_key(parts: &Parts) -> Rejection {
    Rejection::new(parts, Problem::missing_key())
}
