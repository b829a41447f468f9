//! How an attempt ends: keep, release or ambiguous (PROTOCOL 5).

use std::{fmt, sync::Arc, time::Duration};

use http::{HeaderMap, StatusCode};

use crate::grpc::{self, GRPC_STATUS};

/// What becomes of work that commits with its record ([`Unit`](crate::Unit)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// It commits with the record.
    Stays,
    /// It is undone; the record alone is kept.
    Undone,
}

/// What an attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The handler answered with this status.
    Answered(StatusCode),
    /// The handler panicked or its service failed, or the request's body broke off.
    Failed,
    /// The upstream broke or timed out after the whole request was sent, or the response's body
    /// broke off. The work may go on.
    BrokeOff,
    /// The upstream could not be connected to: provably nothing was done.
    NeverStarted,
}

/// What becomes of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// The response becomes the record.
    Keep,
    /// The key is free for the next try.
    Release,
    /// It may have had an effect, and it is over: the lease is given up at once.
    GiveUp,
    /// It may have had an effect, and may still be going on: the lease runs out by itself.
    Abandon,
}

/// The head of a response, for a policy of one's own.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead<'a> {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The trailers, as far as they are known by now: of a body that was read to its end.
    pub trailers: Option<&'a HeaderMap>,
}

impl ResponseHead<'_> {
    /// What becomes of the handler's work when this is kept: a refusal has no effect.
    pub fn work(&self) -> Work {
        let is_grpc = self.headers.contains_key(&GRPC_STATUS)
            || self.trailers.is_some_and(|it| it.contains_key(&GRPC_STATUS));
        let refused = is_grpc && grpc::Status::of(*self) != Some(grpc::Status::Ok);
        if self.status.as_u16() >= 400 || refused { Work::Undone } else { Work::Stays }
    }
}

/// Which responses are kept, by the columns of PROTOCOL 5.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum OutcomePolicy {
    /// Keeps 2xx, 3xx and most 4xx; releases 401, 407, 409, 421, 423, 425, 426 and 429; a 408 or
    /// 5xx is ambiguous.
    #[default]
    Standard,
    /// Keeps everything but 401, 407, 425, 426 and 429, server errors included, as Stripe does.
    Stripe,
    /// Keeps 2xx only; releases every other answer but 408 and 5xx, which are ambiguous.
    SuccessOnly,
    /// Asks a predicate on the response's head. See [`OutcomePolicy::custom`].
    #[doc(hidden)]
    Custom(Arc<dyn Fn(ResponseHead<'_>) -> Disposition + Send + Sync>),
}

impl OutcomePolicy {
    /// A policy of one's own, for answers of the handler. How an attempt ends that did not answer
    /// is not a matter of policy.
    pub fn custom(judge: impl Fn(ResponseHead<'_>) -> Disposition + Send + Sync + 'static) -> Self {
        Self::Custom(Arc::new(judge))
    }

    /// What becomes of the record when the handler answered with this head. A 1xx is no answer, and
    /// never kept.
    pub fn judge(&self, head: ResponseHead<'_>) -> Disposition {
        let status = head.status.as_u16();
        match (self, status) {
            (_, ..200) => Disposition::GiveUp,
            (Self::Custom(judge), _) => judge(head),
            (_, 401 | 407 | 425 | 426 | 429) => Disposition::Release,
            (_, 200..=299) | (Self::Stripe, _) => Disposition::Keep,
            (_, 408 | 500..) => Disposition::GiveUp,
            (Self::Standard, 409 | 421 | 423) | (Self::SuccessOnly, _) => Disposition::Release,
            (Self::Standard, _) => Disposition::Keep,
        }
    }
}

impl fmt::Debug for OutcomePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Standard => "Standard",
            Self::Stripe => "Stripe",
            Self::SuccessOnly => "SuccessOnly",
            Self::Custom(_) => "Custom(..)",
        })
    }
}

/// Overrules the outcome policy for one response (E4): a handler puts it into the response's
/// extensions, a service behind the proxy sends `Idempotency-Outcome`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overrule {
    /// What becomes of the record, instead of what the policy says.
    pub outcome: Option<OutcomeOverrule>,
    /// How long the record answers retries, instead of the layer's retention.
    pub retention: Option<Duration>,
}

/// What a handler can say becomes of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutcomeOverrule {
    /// Keep the response.
    Store,
    /// Free the key.
    Release,
    /// The outcome is unknown: give the lease up.
    Unknown,
    /// Finish the operation without keeping the response (decision *unavailable*).
    OmitBody,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_that_is_kept_has_no_effect() {
        let plain = HeaderMap::new();
        let work = |status, headers: &HeaderMap, trailers| {
            let status = StatusCode::from_u16(status).unwrap();
            ResponseHead { status, headers, trailers }.work()
        };
        for (status, becomes) in
            [(200, Work::Stays), (303, Work::Stays), (404, Work::Undone), (500, Work::Undone)]
        {
            assert_eq!(work(status, &plain, None), becomes, "{status}");
        }
        // G4: gRPC's status is in the trailers, or in the headers if there is nothing else.
        let refused =
            HeaderMap::from_iter([("grpc-status".parse().unwrap(), "5".parse().unwrap())]);
        let done = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
        assert_eq!(work(200, &plain, Some(&refused)), Work::Undone);
        assert_eq!(work(200, &refused, None), Work::Undone);
        assert_eq!(work(200, &plain, Some(&done)), Work::Stays);
    }
}
