//! What a call asks for, in the form of a request that never was HTTP.

use bytes::Bytes;
use http::{Method, Request, Uri};
use http_body_util::Full;
use retrysafe_core::{OperationId, Problem, Scope, Store};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::{
    body::ReadAhead,
    guard::{Guard, Place, Prepared, Received},
};

/// A call that can be claimed.
pub(crate) type Asked = Box<Prepared<Full<Bytes>>>;

/// Why a call can't be.
pub(crate) enum Unasked {
    /// Its key is missing or invalid.
    Problem(Box<Problem>),
    /// Its input can't be serialised.
    Input(serde_json::Error),
}

impl From<Problem> for Unasked {
    fn from(problem: Problem) -> Self {
        Self::Problem(Box::new(problem))
    }
}

/// What the handler gives. A record of one kind is never read as the other: the fingerprints differ.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Value,
    Response,
}

impl Kind {
    fn method(self) -> Method {
        let name = match self {
            Self::Value => "RUN",
            Self::Response => "RESPOND",
        };
        name.parse().unwrap_or_else(|_| unreachable!("both are tokens"))
    }
}

impl<S: Store> Guard<S> {
    /// O1: the operation's name takes the place of method and path. `None` if there is no key, and a
    /// call without one may run.
    pub(crate) fn ask<I: Serialize + ?Sized>(
        &self,
        kind: Kind,
        operation: &str,
        scope: &Scope,
        key: Option<&str>,
        input: &I,
    ) -> Result<Option<Asked>, Unasked> {
        let settings = &*self.settings;
        let key = match key {
            Some(text) => {
                let now = || self.engine.clock().wall();
                settings.key.check(text, now).map_err(Problem::from)?
            }
            None if settings.require_key => return Err(Problem::missing_key().into()),
            None => return Ok(None),
        };
        let input = serde_json::to_vec(input).map_err(Unasked::Input)?;
        let (mut parts, ()) = Request::new(()).into_parts();
        parts.method = kind.method();
        parts.uri = target(operation);
        let body = ReadAhead::known(input.into());
        let fingerprint = self.fingerprint(&settings.fingerprinter, &parts, &body);
        let id = OperationId::new(&settings.namespace, scope, &key);
        let scope = scope.clone();
        let received = Box::new(Received { parts, body });
        let (trace, place) = (None, Place::Free);
        Ok(Some(Box::new(Prepared { received, key, scope, id, fingerprint, trace, place })))
    }
}

/// A path that stands for a name: which operation it is, for whoever keeps a call. The name
/// may be any text of any length.
pub(crate) fn target(operation: &str) -> Uri {
    let digest = Sha256::digest(operation.as_bytes());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("/{hex}").parse().unwrap_or_else(|_| unreachable!("a slash and hex digits are a path"))
}
