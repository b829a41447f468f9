//! What is different between a service in this process, one of gRPC and one behind the proxy: how it
//! is told of the attempt (E3), how it overrules the outcome (E4), and where its outcome stands.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Response, header, request::Parts};
use retrysafe_core::{
    Attempt, Code, OutcomeOverrule, Overrule,
    headers::{
        HTTP2_SETTINGS, IDEMPOTENCY_ATTEMPT, IDEMPOTENCY_FENCE, IDEMPOTENCY_OUTCOME,
        IDEMPOTENCY_PREVIOUS, VANISHED, strip_what_only_the_proxy_says,
    },
};

/// Where the inner service runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Door {
    /// In this process: extensions of the request and the response.
    #[default]
    Service,
    /// In this process, speaking gRPC: the outcome is in the trailers (G4).
    Grpc,
    /// Behind the proxy: headers.
    Upstream,
}

impl Door {
    /// Takes away what must not reach the inner service of a covered request.
    pub(crate) fn strip(self, parts: &mut Parts) {
        // K7: an upgrade bypasses nothing.
        if parts.headers.remove(header::UPGRADE).is_some() {
            parts.headers.remove(&HTTP2_SETTINGS);
            drop_connection_options(&mut parts.headers, &["upgrade", "http2-settings"]);
        }
        if self == Self::Upstream {
            strip_what_only_the_proxy_says(&mut parts.headers);
        }
    }

    /// Tells the inner service of the attempt.
    pub(crate) fn introduce(self, parts: &mut Parts, attempt: Attempt) {
        if self == Self::Upstream {
            let headers = &mut parts.headers;
            headers.insert(&IDEMPOTENCY_ATTEMPT, attempt.number().into());
            headers.insert(&IDEMPOTENCY_FENCE, attempt.fence().into());
            if attempt.previous_vanished() {
                headers.insert(&IDEMPOTENCY_PREVIOUS, HeaderValue::from_static(VANISHED));
            }
        }
        parts.extensions.insert(attempt);
    }

    /// What the inner service says of the outcome, taken out of its response.
    pub(crate) fn take_overrule<R>(self, response: &mut Response<R>) -> Overrule {
        match self {
            Self::Service | Self::Grpc => response.extensions_mut().remove().unwrap_or_default(),
            Self::Upstream => {
                let value = response.headers_mut().remove(&IDEMPOTENCY_OUTCOME);
                value.map(|value| read_overrule(&value)).unwrap_or_default()
            }
        }
    }

    /// What is answered when the response's body broke off before any of it was passed on.
    pub(crate) fn broken_body(self) -> Code {
        match self {
            Self::Service | Self::Grpc => Code::HandlerFailed,
            Self::Upstream => Code::UpstreamFailed,
        }
    }
}

/// Reads `Idempotency-Outcome`: one of `store`, `release`, `unknown` and `omit_body`, or nothing,
/// and an optional parameter `retention` in seconds: `store; retention=3600`. What can't be read
/// overrules nothing, and is logged.
fn read_overrule(value: &HeaderValue) -> Overrule {
    let read = || {
        let mut parts = value.to_str().ok()?.split(';').map(str::trim);
        let outcome = match parts.next()? {
            "" => None,
            "store" => Some(OutcomeOverrule::Store),
            "release" => Some(OutcomeOverrule::Release),
            "unknown" => Some(OutcomeOverrule::Unknown),
            "omit_body" => Some(OutcomeOverrule::OmitBody),
            _ => return None,
        };
        let mut retention = None;
        for part in parts {
            let seconds = part.strip_prefix("retention=")?.parse().ok()?;
            retention = Some(Duration::from_secs(seconds));
        }
        Some(Overrule { outcome, retention })
    };
    read().unwrap_or_else(|| {
        tracing::warn!("the service sent an {IDEMPOTENCY_OUTCOME} header that can't be read");
        Overrule::default()
    })
}

fn drop_connection_options(headers: &mut HeaderMap, options: &[&str]) {
    let lines: Vec<_> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|option| !options.iter().any(|it| option.eq_ignore_ascii_case(it)))
        .filter_map(|option| HeaderValue::from_str(option).ok())
        .collect();
    headers.remove(header::CONNECTION);
    for line in lines {
        headers.append(header::CONNECTION, line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overrule(value: &'static str) -> Overrule {
        read_overrule(&HeaderValue::from_static(value))
    }

    #[test]
    fn e4_the_header_of_a_service_behind_the_proxy() {
        assert_eq!(overrule("release").outcome, Some(OutcomeOverrule::Release));
        assert_eq!(
            overrule("store; retention=60"),
            Overrule {
                outcome: Some(OutcomeOverrule::Store),
                retention: Some(Duration::from_secs(60))
            }
        );
        assert_eq!(overrule("; retention=60").retention, Some(Duration::from_secs(60)));
        for bad in ["keep", "store; retention=soon", "store; other=1"] {
            assert_eq!(overrule(bad), Overrule::default(), "{bad}");
        }
    }

    #[test]
    fn k7_an_upgrade_is_not_passed_on() {
        let (mut parts, ()) = http::Request::builder()
            .header("connection", "Upgrade, HTTP2-Settings, keep-alive")
            .header("upgrade", "h2c")
            .header("http2-settings", "AAMAAABk")
            .body(())
            .unwrap()
            .into_parts();
        Door::Service.strip(&mut parts);
        assert!(!parts.headers.contains_key("upgrade"));
        assert!(!parts.headers.contains_key("http2-settings"));
        assert_eq!(parts.headers["connection"], "keep-alive");
    }
}
