//! What a handler says of its own response.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, Responder};
use retrysafe::OutcomeOverrule;

/// Overrules the outcome policy for one response (E4).
///
/// ```
/// use actix_web::{HttpResponse, Responder};
/// use retrysafe_actix::Overrule;
///
/// async fn reserve() -> impl Responder {
///     # let free_at_the_next_try = true;
///     if free_at_the_next_try {
///         // By the default policy a 404 would be the answer to every retry.
///         return Overrule::release().of(HttpResponse::NotFound());
///     }
///     Overrule::default().of(HttpResponse::Created())
/// }
/// ```
///
/// It is an extension of the response: `response.extensions_mut().insert(Overrule::release())` says
/// the same of an [`HttpResponse`] that is already there. Without a middleware, or for a request
/// without a key, it says nothing to anybody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "an overrule acts as a part of the response that it is returned with"]
pub struct Overrule(pub(crate) retrysafe::Overrule);

impl Overrule {
    /// Keeps the response: every retry gets it.
    pub fn store() -> Self {
        Self::outcome(OutcomeOverrule::Store)
    }

    /// Frees the key: the next try runs. Only if this one had no effect.
    pub fn release() -> Self {
        Self::outcome(OutcomeOverrule::Release)
    }

    /// Says that nobody knows what this attempt did. What follows is the middleware's
    /// [`OnUnknownOutcome`](crate::OnUnknownOutcome).
    pub fn unknown() -> Self {
        Self::outcome(OutcomeOverrule::Unknown)
    }

    /// Finishes the operation without keeping the response: a retry learns that it was done.
    pub fn omit_body() -> Self {
        Self::outcome(OutcomeOverrule::OmitBody)
    }

    /// How long the record answers retries, instead of the middleware's retention.
    /// `Overrule::default().retention(..)` leaves the outcome to the policy.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.0.retention = Some(retention);
        self
    }

    /// The response that it is said of.
    pub fn of<R: Responder>(self, responder: R) -> Marked<R, Self> {
        Marked { responder, mark: self }
    }

    fn outcome(outcome: OutcomeOverrule) -> Self {
        Self(retrysafe::Overrule { outcome: Some(outcome), retention: None })
    }
}

impl From<retrysafe::Overrule> for Overrule {
    fn from(overrule: retrysafe::Overrule) -> Self {
        Self(overrule)
    }
}

/// Marks a response as a stream (R5): it goes out while it is being made, and its record is
/// finished at its clean end. `text/event-stream` and `application/x-ndjson` need no mark.
///
/// ```
/// use actix_web::{HttpResponse, Responder};
/// use retrysafe_actix::StreamedResponse;
///
/// async fn export() -> impl Responder {
///     # let lines = futures_util::stream::empty::<Result<_, std::io::Error>>();
///     StreamedResponse.of(HttpResponse::Ok().content_type("text/csv").streaming(lines))
/// }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamedResponse;

impl StreamedResponse {
    /// The response that is a stream.
    pub fn of<R: Responder>(self, responder: R) -> Marked<R, Self> {
        Marked { responder, mark: self }
    }
}

/// A response, and what the handler says of it.
#[derive(Debug)]
pub struct Marked<R, M> {
    responder: R,
    mark: M,
}

impl<R: Responder, M: 'static> Responder for Marked<R, M> {
    type Body = R::Body;

    fn respond_to(self, request: &HttpRequest) -> HttpResponse<R::Body> {
        let mut response = self.responder.respond_to(request);
        response.extensions_mut().insert(self.mark);
        response
    }
}
