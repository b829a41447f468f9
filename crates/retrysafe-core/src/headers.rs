//! Every header name that the protocol knows, and which response headers a record keeps (R3).

use std::sync::Arc;

use http::{HeaderMap, HeaderName, header};

/// The client's name for one logical operation (K1, the default).
pub static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Marks a replay (R2, the default name).
pub static IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// Says that a response is not what the key promises: [`BYPASSED`] (D4) or [`NOT_RECORDED`] (R7).
pub static IDEMPOTENCY_STATUS: HeaderName = HeaderName::from_static("idempotency-status");
/// The number of the attempt, for a service behind the proxy (E3).
pub static IDEMPOTENCY_ATTEMPT: HeaderName = HeaderName::from_static("idempotency-attempt");
/// The fence of the attempt, for a service behind the proxy (E3).
pub static IDEMPOTENCY_FENCE: HeaderName = HeaderName::from_static("idempotency-fence");
/// [`VANISHED`] if an earlier attempt's outcome is unknown, for a service behind the proxy (E3).
pub static IDEMPOTENCY_PREVIOUS: HeaderName = HeaderName::from_static("idempotency-previous");
/// Overrules the outcome policy for one response, from a service behind the proxy (E4).
pub static IDEMPOTENCY_OUTCOME: HeaderName = HeaderName::from_static("idempotency-outcome");
/// The settings of an HTTP/2 upgrade, dropped with `Upgrade` on a covered method (K7).
pub static HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
/// The trace that a request belongs to (W3C Trace Context).
pub static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// `Idempotency-Status` of a response that ran unprotected because the store was unreachable.
pub const BYPASSED: &str = "bypassed";
/// `Idempotency-Status` of a response that could not be written to the store.
pub const NOT_RECORDED: &str = "not-recorded";
/// `Idempotency-Previous` when an earlier attempt's outcome is unknown.
pub const VANISHED: &str = "vanished";

/// Names that only the proxy sets towards the service: a client's are stripped (E3).
pub fn from_the_proxy_only() -> [&'static HeaderName; 3] {
    [&IDEMPOTENCY_ATTEMPT, &IDEMPOTENCY_FENCE, &IDEMPOTENCY_PREVIOUS]
}

/// Takes away what only the proxy says to the service (E3), as it is spelt and as one who reads
/// headers from variables (CGI, WSGI) would take it: `_` and `-` are one there.
pub fn strip_what_only_the_proxy_says(headers: &mut HeaderMap) {
    for name in from_the_proxy_only() {
        headers.remove(name);
    }
    let is_one = |name: &HeaderName| {
        let dashed = name.as_str().replace('_', "-");
        from_the_proxy_only().iter().any(|it| it.as_str() == dashed)
    };
    let spelt = |name: &&HeaderName| name.as_str().contains('_') && is_one(name);
    let others: Vec<_> = headers.keys().filter(spelt).cloned().collect();
    for name in others {
        headers.remove(name);
    }
}

/// What is never kept, whoever changes the list: hop-by-hop, recomputed, or ours.
fn is_about_the_connection(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "content-length"
            | "idempotency-outcome"
            | "idempotency-status"
            | "idempotent-replayed"
            | "keep-alive"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// What belongs to one moment or one caller, unless it was asked for.
fn is_left_out(name: &str) -> bool {
    matches!(
        name,
        "age"
            | "alt-svc"
            | "authentication-info"
            | "clear-site-data"
            | "date"
            | "retry-after"
            | "server"
            | "server-timing"
            | "set-cookie"
            | "traceparent"
            | "tracestate"
            | "via"
            | "www-authenticate"
            | "x-request-id"
    ) || ["proxy-", "ratelimit", "x-ratelimit-"].iter().any(|it| name.starts_with(it))
}

/// Which response headers a record keeps (R3).
///
/// The default leaves out what belongs to one connection, one moment or one caller. A name can be
/// kept ([`keep`](Self::keep): `Set-Cookie` has to be asked for by name) or left out
/// ([`leave_out`](Self::leave_out)); the headers that frame a message can't be kept.
#[derive(Clone, Debug, Default)]
pub struct KeptHeaders {
    changes: Arc<Vec<(HeaderName, bool)>>,
}

impl KeptHeaders {
    /// Keeps a header that the default leaves out.
    pub fn keep(self, name: HeaderName) -> Self {
        self.change(name, true)
    }

    /// Leaves out a header that the default keeps.
    pub fn leave_out(self, name: HeaderName) -> Self {
        self.change(name, false)
    }

    fn change(mut self, name: HeaderName, kept: bool) -> Self {
        let changes = Arc::make_mut(&mut self.changes);
        changes.retain(|(changed, _)| *changed != name);
        changes.push((name, kept));
        self
    }

    fn keeps(&self, name: &HeaderName) -> bool {
        let text = name.as_str();
        if is_about_the_connection(text) {
            return false;
        }
        if let Some((_, kept)) = self.changes.iter().find(|(changed, _)| changed == name) {
            return *kept;
        }
        !is_left_out(text)
    }

    /// The headers of a response that are kept, in their order, repeats included.
    pub(crate) fn select<'a>(
        &'a self,
        headers: &'a HeaderMap,
    ) -> impl Iterator<Item = (&'a HeaderName, &'a http::HeaderValue)> {
        let any_named = headers.contains_key(header::CONNECTION);
        headers
            .iter()
            .filter(move |(name, _)| self.keeps(name) && !(any_named && named(headers, name)))
    }
}

/// Whether `Connection` names this header: it belongs to the connection then.
fn named(headers: &HeaderMap, name: &HeaderName) -> bool {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|token| token.trim().eq_ignore_ascii_case(name.as_str()))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn kept(filter: &KeptHeaders, headers: &[(&'static str, &'static str)]) -> Vec<String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        filter
            .select(&map)
            .map(|(name, value)| format!("{name}={}", value.to_str().unwrap()))
            .collect()
    }

    #[test]
    fn r3_leaves_out_what_belongs_to_one_connection_moment_or_caller() {
        let headers = [
            ("connection", "close, X-Hop"),
            ("x-hop", "1"),
            ("proxy-authenticate", "x"),
            ("content-length", "3"),
            ("date", "now"),
            ("set-cookie", "a=b"),
            ("ratelimit-policy", "1"),
            ("x-ratelimit-remaining", "1"),
            ("idempotent-replayed", "true"),
            ("location", "/orders/1"),
            ("link", "<a>"),
            ("link", "<b>"),
            ("etag", "\"1\""),
            ("cache-control", "no-store"),
        ];
        assert_eq!(
            kept(&KeptHeaders::default(), &headers),
            ["location=/orders/1", "link=<a>", "link=<b>", "etag=\"1\"", "cache-control=no-store"]
        );
    }

    #[test]
    fn r3_the_list_can_be_changed_by_name() {
        let filter = KeptHeaders::default()
            .keep(header::SET_COOKIE)
            .keep(header::CONTENT_LENGTH)
            .leave_out(header::ETAG);
        let headers =
            [("set-cookie", "a"), ("set-cookie", "b"), ("etag", "1"), ("content-length", "1")];
        assert_eq!(kept(&filter, &headers), ["set-cookie=a", "set-cookie=b"]);
    }
}
