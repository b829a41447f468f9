//! What a message's headers become on their way through the proxy.

use std::net::SocketAddr;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
        TE, TRANSFER_ENCODING, UPGRADE, VIA,
    },
    request, response,
};
use retrysafe::{Attempt, headers};

/// Where a request came from; the server puts it into the request's extensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) SocketAddr);

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Makes a client's request the proxy's own, for a service that may be spoken to in HTTP/2. Answers
/// the protocol that the client wants to switch to, if that is passed on.
pub(crate) fn request(parts: &mut request::Parts, may_be_h2: bool) -> Option<HeaderValue> {
    let guarded = parts.extensions.get::<Attempt>().is_some();
    let upgrade = wanted_upgrade(parts).filter(|_| !guarded);
    let wants_trailers = has_token(&parts.headers, &TE, "trailers");
    let map = &mut parts.headers;
    // `Host` is passed on as it came; over HTTP/2, and in a target that is a whole URL, it came as
    // the authority, and that outranks the header (RFC 9112, section 3.2.2).
    if let Some(authority) = parts.uri.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        map.insert(HOST, host);
    }
    // HTTP/2 may split cookies over lines; HTTP/1.1 has one (RFC 9113, section 8.2.3).
    if parts.version == Version::HTTP_2 && map.get_all(COOKIE).iter().nth(1).is_some() {
        join(map, COOKIE, b"; ", None);
    }
    strip_hop_by_hop(map);
    // The server has asked the client for the body already.
    map.remove(EXPECT);
    strip_ours(map);
    if !guarded {
        // E3: else they are the layer's, which has stripped the client's.
        headers::strip_what_only_the_proxy_says(map);
    }
    map.remove(&headers::IDEMPOTENCY_OUTCOME);
    if wants_trailers {
        map.insert(TE, HeaderValue::from_static("trailers"));
        // RFC 9110, section 10.1.4. Over HTTP/2, what `Connection` names would be taken away.
        if !may_be_h2 {
            map.append(CONNECTION, HeaderValue::from_static("te"));
        }
    }
    if let Some(protocol) = &upgrade {
        map.insert(UPGRADE, protocol.clone());
        map.append(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    if let Some(Peer(peer)) = parts.extensions.get::<Peer>() {
        append_to_list(map, X_FORWARDED_FOR, &peer.ip().to_canonical().to_string());
    }
    // A gateway in front knows better what the client saw.
    if !map.contains_key(X_FORWARDED_PROTO) {
        map.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if !map.contains_key(X_FORWARDED_HOST)
        && let Some(host) = map.get(HOST).cloned()
    {
        map.insert(X_FORWARDED_HOST, host);
    }
    append_to_list(map, VIA, via(parts.version));
    upgrade
}

/// Makes the service's response the proxy's own. `guarded`: the request was an attempt, whose
/// outcome the service may overrule.
pub(crate) fn response(
    parts: &mut response::Parts,
    arrived: Version,
    upgraded: bool,
    guarded: bool,
) {
    let map = &mut parts.headers;
    let via_version = via(parts.version);
    let protocol = map.get(UPGRADE).cloned().filter(|_| upgraded);
    strip_hop_by_hop(map);
    if let Some(protocol) = protocol {
        map.insert(UPGRADE, protocol);
        map.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    strip_ours(map);
    if !guarded {
        // E4: else the layer reads and strips it.
        map.remove(&headers::IDEMPOTENCY_OUTCOME);
    }
    append_to_list(map, VIA, via_version);
    parts.version = arrived;
}

/// `Idempotency-Status` and the marker of a replay are only ever ours to set.
fn strip_ours(map: &mut HeaderMap) {
    map.remove(&headers::IDEMPOTENCY_STATUS);
    map.remove(&headers::IDEMPOTENT_REPLAYED);
}

/// The protocol that a GET wants to switch to (K7). HTTP/2 and TLS are not switched to: requests in
/// such a tunnel would pass unprotected.
fn wanted_upgrade(parts: &request::Parts) -> Option<HeaderValue> {
    let wanted = parts.headers.get(UPGRADE)?;
    let is_http = wanted.to_str().ok()?.split(',').any(|protocol| {
        let name = protocol.trim().split('/').next().unwrap_or_default();
        ["h2c", "h2", "http", "tls"].iter().any(|http| name.eq_ignore_ascii_case(http))
    });
    let may = parts.method == Method::GET
        && parts.version == Version::HTTP_11
        && has_token(&parts.headers, &CONNECTION, "upgrade")
        && !is_http;
    may.then(|| wanted.clone())
}

/// RFC 9110, section 7.6.1. `Trailer` stays: it announces what comes.
fn strip_hop_by_hop(map: &mut HeaderMap) {
    // The coding outranks the length, which says something else to others (RFC 9112, section 6.3).
    if map.contains_key(TRANSFER_ENCODING) {
        map.remove(CONTENT_LENGTH);
    }
    let named: Vec<HeaderName> = tokens(map, &CONNECTION)
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        // What frames or routes a message can't be taken from it by naming it, nor what is said
        // between the layer and the service (E3, E4).
        .filter(|name| name != CONTENT_LENGTH && name != HOST)
        .filter(|name| !headers::from_the_proxy_only().contains(&name))
        .filter(|name| name != headers::IDEMPOTENCY_OUTCOME)
        .collect();
    for name in named {
        map.remove(name);
    }
    for name in [
        &CONNECTION,
        &KEEP_ALIVE,
        &PROXY_CONNECTION,
        &PROXY_AUTHENTICATE,
        &PROXY_AUTHORIZATION,
        &TE,
        &TRANSFER_ENCODING,
        &UPGRADE,
        &headers::HTTP2_SETTINGS,
    ] {
        map.remove(name);
    }
}

fn tokens<'a>(map: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    map.get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .map(str::trim)
}

fn has_token(map: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    tokens(map, name)
        .any(|token| token.split(';').next().is_some_and(|it| it.eq_ignore_ascii_case(wanted)))
}

/// Adds to a list in one line, after what is there.
fn append_to_list(map: &mut HeaderMap, name: HeaderName, item: &str) {
    join(map, name, b", ", Some(item));
}

/// Makes one line of all, and of an item more.
fn join(map: &mut HeaderMap, name: HeaderName, separator: &[u8], item: Option<&str>) {
    let values = map.get_all(&name).iter().map(HeaderValue::as_bytes);
    let joined = values.chain(item.map(str::as_bytes)).collect::<Vec<_>>().join(separator);
    if let Ok(value) = HeaderValue::from_bytes(&joined) {
        map.insert(name, value);
    }
}

fn via(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0 retrysafe",
        Version::HTTP_2 => "2 retrysafe",
        _ => "1.1 retrysafe",
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn forwarded(request: request::Builder) -> HeaderMap {
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        parts.extensions.insert(Peer(SocketAddr::from(([192, 0, 2, 7], 4_000))));
        super::request(&mut parts, false);
        parts.headers
    }

    #[test]
    fn hop_by_hop_headers_stay_behind() {
        let map = forwarded(
            Request::post("/")
                .header("host", "shop.example")
                .header("connection", "close, X-Hop, Host")
                .header("x-hop", "1")
                .header("keep-alive", "timeout=5")
                .header("te", "gzip")
                .header("transfer-encoding", "chunked")
                .header("x-kept", "1"),
        );
        for name in ["connection", "x-hop", "keep-alive", "te", "transfer-encoding"] {
            assert!(!map.contains_key(name), "{name}");
        }
        assert_eq!(map["host"], "shop.example");
        assert_eq!(map["x-kept"], "1");
        assert_eq!(map["x-forwarded-for"], "192.0.2.7");
        assert_eq!(map["x-forwarded-host"], "shop.example");
        assert_eq!(map["x-forwarded-proto"], "http");
        assert_eq!(map["via"], "1.1 retrysafe");
    }

    #[test]
    fn lists_of_proxies_go_on() {
        let map = forwarded(
            Request::get("/")
                .header("x-forwarded-for", "198.51.100.1")
                .header("x-forwarded-for", "198.51.100.2")
                .header("x-forwarded-proto", "https")
                .header("via", "1.1 edge"),
        );
        assert_eq!(map["x-forwarded-for"], "198.51.100.1, 198.51.100.2, 192.0.2.7");
        assert_eq!(map["x-forwarded-proto"], "https");
        assert_eq!(map["via"], "1.1 edge, 1.1 retrysafe");
    }

    #[test]
    fn e3_a_client_can_not_pretend_to_be_the_proxy() {
        let map = forwarded(
            Request::post("/")
                .header("idempotency-attempt", "7")
                .header("idempotency-fence", "7")
                .header("idempotency-previous", "vanished")
                .header("idempotency-status", "bypassed")
                .header("idempotent-replayed", "true")
                .header("idempotency-key", "k"),
        );
        let ours: Vec<_> = map.keys().filter(|name| name.as_str().starts_with("idem")).collect();
        assert_eq!(ours, ["idempotency-key"]);
    }

    #[test]
    fn e3_a_client_can_not_have_what_the_layer_says_taken_out() {
        let mut request = Request::post("/")
            .header("connection", "close, Idempotency-Previous")
            .header("idempotency-previous", "vanished")
            .body(())
            .unwrap();
        strip_hop_by_hop(request.headers_mut());
        assert_eq!(request.headers()["idempotency-previous"], "vanished");
    }

    #[test]
    fn the_authority_outranks_the_host_header() {
        let map = forwarded(Request::get("http://shop.example/").header("host", "other.example"));
        assert_eq!(map["host"], "shop.example");
        assert_eq!(map["x-forwarded-host"], "shop.example");
    }

    #[test]
    fn k7_only_a_get_switches_protocols_and_never_to_http() {
        let upgrade = |method, protocol| {
            let request = Request::builder()
                .method(method)
                .header("connection", "Upgrade, HTTP2-Settings")
                .header("upgrade", protocol)
                .header("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA");
            forwarded(request).get(UPGRADE).cloned()
        };
        assert_eq!(upgrade("GET", "websocket").unwrap(), "websocket");
        assert_eq!(upgrade("POST", "websocket"), None);
        assert_eq!(upgrade("GET", "h2c"), None);
        assert_eq!(upgrade("GET", "websocket, h2c"), None);
        assert_eq!(upgrade("POST", "h2c"), None);
    }
}
