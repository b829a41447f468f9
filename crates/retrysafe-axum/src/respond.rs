//! What a handler says of its own response.

use std::{convert::Infallible, time::Duration};

use axum::response::{IntoResponseParts, ResponseParts};
use retrysafe::OutcomeOverrule;

/// Overrules the outcome policy for one response (E4).
///
/// ```
/// use axum::{http::StatusCode, response::{IntoResponse, Response}};
/// use retrysafe_axum::Overrule;
///
/// async fn reserve() -> Response {
///     # let free_at_the_next_try = true;
///     if free_at_the_next_try {
///         // By the default policy a 404 would be the answer to every retry.
///         return (Overrule::release(), StatusCode::NOT_FOUND).into_response();
///     }
///     StatusCode::CREATED.into_response()
/// }
/// ```
///
/// Without a layer, or for a request without a key, it says nothing to anybody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "an overrule acts as a part of the response that it is returned in"]
pub struct Overrule(retrysafe::Overrule);

impl Overrule {
    /// Keeps the response: every retry gets it.
    pub fn store() -> Self {
        Self::outcome(OutcomeOverrule::Store)
    }

    /// Frees the key: the next try runs. Only if this one had no effect.
    pub fn release() -> Self {
        Self::outcome(OutcomeOverrule::Release)
    }

    /// Says that nobody knows what this attempt did. What follows is the layer's
    /// [`OnUnknownOutcome`](crate::OnUnknownOutcome).
    pub fn unknown() -> Self {
        Self::outcome(OutcomeOverrule::Unknown)
    }

    /// Finishes the operation without keeping the response: a retry learns that it was done.
    pub fn omit_body() -> Self {
        Self::outcome(OutcomeOverrule::OmitBody)
    }

    /// How long the record answers retries, instead of the layer's retention.
    /// `Overrule::default().retention(..)` leaves the outcome to the policy.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.0.retention = Some(retention);
        self
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

impl IntoResponseParts for Overrule {
    type Error = Infallible;

    fn into_response_parts(self, mut response: ResponseParts) -> Result<ResponseParts, Infallible> {
        response.extensions_mut().insert(self.0);
        Ok(response)
    }
}

/// Marks a response as a stream (R5): it goes out while it is being made, and its record is
/// finished at its clean end. `text/event-stream` and `application/x-ndjson` need no mark.
///
/// ```
/// use axum::{body::Body, response::IntoResponse};
/// use retrysafe_axum::StreamedResponse;
///
/// async fn export() -> impl IntoResponse {
///     # let lines = futures_util::stream::empty::<Result<String, std::io::Error>>();
///     (StreamedResponse, [("content-type", "text/csv")], Body::from_stream(lines))
/// }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamedResponse;

impl IntoResponseParts for StreamedResponse {
    type Error = Infallible;

    fn into_response_parts(self, mut response: ResponseParts) -> Result<ResponseParts, Infallible> {
        response.extensions_mut().insert(retrysafe::StreamedResponse);
        Ok(response)
    }
}
