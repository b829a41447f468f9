//! Sees to it that a request which should have a key has one, before anything is sent (C1).

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use retrysafe_core::{
    IdempotencyKey,
    client::{KeyPlacement, KeySource, NoKey, Operation, Placed},
};

use crate::{
    calls::Calls,
    observe::{self, CallOutcome},
};

/// A request, before it is known what its key is.
pub(crate) struct Unkeyed<'a> {
    pub(crate) method: &'a Method,
    pub(crate) url: &'a str,
    pub(crate) headers: &'a HeaderMap,
    /// None if it is a stream.
    pub(crate) body: Option<&'a [u8]>,
    /// The key that the caller has put beside the request.
    pub(crate) named: Option<&'a IdempotencyKey>,
}

/// What the key of a request is, and what has to be changed for it.
pub(crate) enum Keyed {
    /// It needs none.
    No,
    /// The caller's own is in its place.
    Own(IdempotencyKey),
    Header(IdempotencyKey, HeaderName, HeaderValue),
    /// The body with the key in it.
    Body(IdempotencyKey, Vec<u8>),
}

impl Keyed {
    /// Whether it was made from what the request says, and by nobody else.
    pub(crate) fn is_of_content(&self, calls: &Calls, named: Option<&IdempotencyKey>) -> bool {
        let made = named.is_none() && !matches!(self, Self::Own(_));
        made && matches!(calls.settings.keys, KeySource::Content(_))
    }
}

impl Calls {
    pub(crate) fn key(&self, request: &Unkeyed<'_>) -> Result<Keyed, NoKey> {
        self.find_key(request).inspect_err(|_| observe::call_ended(CallOutcome::Refused, 0))
    }

    fn find_key(&self, request: &Unkeyed<'_>) -> Result<Keyed, NoKey> {
        let dialect = &self.settings.dialect;
        // On a request of any method.
        if let Some(own) = dialect.own_key(request.headers)? {
            return Ok(Keyed::Own(own));
        }
        if request.named.is_none() && !dialect.methods.cover(request.method) {
            return Ok(Keyed::No);
        }
        match &dialect.placement {
            KeyPlacement::Header(name) => {
                let key = self.make_key(request)?;
                let value = key.to_header_value(dialect.quoting);
                Ok(Keyed::Header(key, name.clone(), value))
            }
            KeyPlacement::Body(pointer) => {
                let body = request.body.ok_or(NoKey::StreamedBody)?;
                match dialect.place_in_body(pointer, body, || self.make_key(request))? {
                    (key, Placed::Own(_)) => Ok(Keyed::Own(key)),
                    (key, Placed::Put(body)) => Ok(Keyed::Body(key, body)),
                }
            }
            _ => Err(NoKey::NotAnObject),
        }
    }

    fn make_key(&self, request: &Unkeyed<'_>) -> Result<IdempotencyKey, NoKey> {
        if let Some(named) = request.named {
            self.settings.dialect.check(named)?;
            return Ok(named.clone());
        }
        let operation = Operation {
            method: request.method.as_str(),
            url: request.url,
            content_type: request.headers.get(header::CONTENT_TYPE),
            body: request.body,
        };
        self.settings.keys.key(&operation, || self.clock.wall(), &*self.entropy)
    }
}
