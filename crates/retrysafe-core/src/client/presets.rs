//! What is out there: a dialect for each of the well-known APIs. Each name, status and limit has its
//! source beside it; what no source says is our own default, and says so.

use std::time::Duration;

use http::{HeaderName, Method};

use super::{Conflict, Dialect, KeyPlacement};
use crate::{IdempotencyKey, Methods, Quoting, headers};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

impl Dialect {
    /// draft-ietf-httpapi-idempotency-key-header-07, and retrysafe itself. The sections are the draft's.
    pub fn draft07() -> Self {
        Self {
            name: "draft07",
            // Section 2: the header field Idempotency-Key.
            placement: KeyPlacement::Header(headers::IDEMPOTENCY_KEY.clone()),
            // Section 2.1 asks for a quoted String; most servers know only bare keys, and retrysafe
            // reads both. PROTOCOL C1: bare unless asked.
            quoting: Quoting::WhenNeeded,
            // Section 1: POST and PATCH, the methods that are not idempotent.
            methods: Methods::default(),
            // Section 2.2 leaves the format to the server, and names no limit: retrysafe's (PROTOCOL K3).
            max_key_length: IdempotencyKey::MAX_LENGTH,
            // Section 2.3 leaves it to the server; this is retrysafe's default (PROTOCOL R8).
            retention: DAY,
            // Not of the draft: Stripe's name for it, and retrysafe's (PROTOCOL R2).
            replay_marker: Some(headers::IDEMPOTENT_REPLAYED.clone()),
            // The draft has no such header.
            advice: None,
            // Section 2.7: 409 while the first request is being processed. Applications answer 409 for
            // reasons of their own as well, so that one has to be told.
            conflict: Conflict::InProgressIfToldWhen,
            // Section 2.7, the example of a problem.
            in_progress: &[("/title", "A request is outstanding for this Idempotency-Key")],
            // Section 2.6: a retry gets the result of the first.
            keeps_keys: true,
        }
    }

    /// Stripe.
    pub fn stripe() -> Self {
        Self {
            name: "stripe",
            // docs.stripe.com/api/idempotent_requests: Idempotency-Key, "all POST requests accept" it; "up
            // to 255 characters long"; removed "after they're at least 24 hours old".
            placement: KeyPlacement::Header(headers::IDEMPOTENCY_KEY.clone()),
            methods: Methods::from_iter([Method::POST]),
            max_key_length: 255,
            retention: DAY,
            // docs.stripe.com/error-low-level, "Sending idempotency keys": Idempotent-Replayed: true marks
            // a response that is replayed. "The Stripe-Should-Retry header": true or false.
            replay_marker: Some(headers::IDEMPOTENT_REPLAYED.clone()),
            advice: Some(HeaderName::from_static("stripe-should-retry")),
            // The same page, "HTTP status code reference": 409 where "the request conflicts with another
            // request (perhaps due to using the same idempotent key)", and it says nothing of when to come
            // back. docs.stripe.com/error-codes: idempotency_key_in_use.
            conflict: Conflict::InProgress,
            in_progress: &[("/error/code", "idempotency_key_in_use")],
            ..Self::draft07()
        }
    }

    /// Adyen.
    pub fn adyen() -> Self {
        Self {
            name: "adyen",
            // docs.adyen.com/development-resources/api-idempotency: Idempotency-Key, on POST requests, "with
            // a maximum of 64 characters".
            placement: KeyPlacement::Header(headers::IDEMPOTENCY_KEY.clone()),
            methods: Methods::from_iter([Method::POST]),
            max_key_length: 64,
            // The same page, "Key scope and validity time": at least 31 days after the first submission,
            // in the versions that we have seen. Nobody retries for so long: ours, to be safe if it changes.
            retention: 7 * DAY,
            // The same page: the Idempotency-Key comes back as a header of the response. That it is there
            // says nothing of a replay, so it is no marker.
            replay_marker: None,
            // The same page, "Error handling": transient errors are marked by Transient-Error: true.
            advice: Some(HeaderName::from_static("transient-error")),
            // The same page names no status for a key that is in use: Transient-Error says it.
            conflict: Conflict::InProgressIfToldWhen,
            in_progress: &[],
            ..Self::draft07()
        }
    }

    /// PayPal's REST APIs.
    pub fn paypal() -> Self {
        Self {
            name: "paypal",
            // developer.paypal.com/api/rest/reference/idempotency: PayPal-Request-Id, on "REST API POST
            // calls", and "not all APIs support this header".
            placement: KeyPlacement::Header(HeaderName::from_static("paypal-request-id")),
            methods: Methods::from_iter([Method::POST]),
            // The parameter paypal_request_id in PayPal's own SDKs (VaultController of its server SDKs):
            // "minimum length 1, maximum length 108".
            max_key_length: 108,
            // The same parameter: "the server stores keys for" 3 hours (payment tokens), 6 hours
            // (orders), 72 hours (plans), 45 days (payments). The least of them.
            retention: 3 * HOUR,
            // The page on idempotency names no marker. Of two requests at once it says that PayPal
            // "processes the first request and might fail the second", and not how.
            replay_marker: None,
            conflict: Conflict::InProgressIfToldWhen,
            in_progress: &[],
            ..Self::draft07()
        }
    }

    /// Square: the key is a member of the body.
    pub fn square() -> Self {
        Self {
            name: "square",
            // developer.squareup.com/reference/square/payments-api/create-payment: idempotency_key, 1
            // to 45 characters.
            placement: body_member("/idempotency_key"),
            methods: Methods::from_iter([Method::POST]),
            max_key_length: 45,
            // developer.squareup.com/docs/build-basics/common-api-patterns/idempotency names no time, and
            // developer.squareup.com/forums/t/28303 says: "we do not publish a retention period". Ours.
            retention: DAY,
            // Neither page names a marker or a status for a key that is in use.
            replay_marker: None,
            conflict: Conflict::Final,
            in_progress: &[],
            ..Self::draft07()
        }
    }

    /// Google's AIP-155: the key is a member of the body.
    pub fn aip155() -> Self {
        Self {
            name: "aip155",
            // google.aip.dev/155: request_id, "restricted to 36 ASCII characters. A random UUID is
            // recommended." APIs may take no other format than a UUID of version 4.
            placement: body_member("/request_id"),
            methods: Methods::default(),
            max_key_length: 36,
            // AIP-155: "any reasonable timeframe". Google's own APIs (DeleteJobRequest of Batch, for one)
            // guarantee it "for at least 60 minutes after the first request".
            retention: HOUR,
            // AIP-155 names neither a marker nor a status.
            replay_marker: None,
            conflict: Conflict::InProgressIfToldWhen,
            in_progress: &[],
            ..Self::draft07()
        }
    }

    /// An LLM API of OpenAI's shape. It is not known to keep keys, so that a request that may have been
    /// received is not sent again: a prompt costs money each time. Behind the retrysafe proxy, or
    /// another server that keeps keys, use [`draft07`](Self::draft07).
    pub fn openai_compatible() -> Self {
        Self {
            name: "openai_compatible",
            // openai-python, _base_client.py, and openai-node, client.ts: both make a key for requests that
            // are not GET, and send it only under a header name that neither sets. So no key is known to be
            // kept; this name is the draft's, for gateways in front that do. Both obey x-should-retry.
            placement: KeyPlacement::Header(headers::IDEMPOTENCY_KEY.clone()),
            methods: Methods::from_iter([Method::POST]),
            advice: Some(HeaderName::from_static("x-should-retry")),
            replay_marker: None,
            conflict: Conflict::Final,
            in_progress: &[],
            keeps_keys: false,
            ..Self::draft07()
        }
    }

    /// A dialect by its name in a configuration.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::presets().find(|it| it.name == name)
    }

    /// All dialects that have a name.
    pub fn presets() -> impl Iterator<Item = Self> {
        [
            Self::draft07,
            Self::stripe,
            Self::adyen,
            Self::paypal,
            Self::square,
            Self::aip155,
            Self::openai_compatible,
        ]
        .into_iter()
        .map(|dialect| dialect())
    }
}

fn body_member(pointer: &str) -> KeyPlacement {
    match pointer.parse() {
        Ok(pointer) => KeyPlacement::Body(pointer),
        Err(_) => unreachable!("the pointers above are well-formed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_found_by_its_name_and_takes_uuids() {
        for name in
            ["draft07", "stripe", "adyen", "paypal", "square", "aip155", "openai_compatible"]
        {
            let dialect = Dialect::by_name(name).unwrap();
            assert_eq!(dialect.name, name);
            assert!(dialect.validate(36).is_ok(), "{name}");
        }
        assert!(Dialect::by_name("braintree").is_none());
    }
}
