//! Heads between Actix's version of the `http` crate and ours: names and values by their bytes,
//! repeats in their order.

use actix_web::http::{
    Method as ActixMethod, StatusCode as ActixStatusCode, Uri as ActixUri, Version as ActixVersion,
    header::{
        HeaderMap as ActixHeaderMap, HeaderName as ActixHeaderName, HeaderValue as ActixHeaderValue,
    },
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version,
    uri::{InvalidUri, PathAndQuery},
};

/// Methods that are not in the standard have the same rules on both sides.
pub(crate) fn method(method: &ActixMethod) -> Option<Method> {
    Method::from_bytes(method.as_str().as_bytes()).ok()
}

/// # Errors
///
/// If our `http` refuses what Actix's has accepted.
pub(crate) fn uri(uri: &ActixUri) -> Result<Uri, InvalidUri> {
    match uri.path_and_query() {
        // As HTTP/1.1 clients send it.
        Some(target) if uri.authority().is_none() => {
            Ok(Uri::from(PathAndQuery::try_from(target.as_str())?))
        }
        _ => Uri::try_from(uri.to_string()),
    }
}

pub(crate) fn version(version: ActixVersion) -> Version {
    match version {
        ActixVersion::HTTP_09 => Version::HTTP_09,
        ActixVersion::HTTP_10 => Version::HTTP_10,
        ActixVersion::HTTP_2 => Version::HTTP_2,
        ActixVersion::HTTP_3 => Version::HTTP_3,
        _ => Version::HTTP_11,
    }
}

/// Both versions have the same numbers.
pub(crate) fn status(status: StatusCode) -> ActixStatusCode {
    ActixStatusCode::from_u16(status.as_u16()).unwrap_or(ActixStatusCode::INTERNAL_SERVER_ERROR)
}

pub(crate) fn headers(from: &ActixHeaderMap) -> HeaderMap {
    // One piece of memory for all values, instead of one for each.
    let mut values = Vec::with_capacity(from.iter().map(|(_, value)| value.len()).sum());
    from.iter().for_each(|(_, value)| values.extend_from_slice(value.as_bytes()));
    let mut values = Bytes::from(values);
    let mut headers = HeaderMap::with_capacity(from.len());
    for (name, value) in from {
        let value = values.split_to(value.len());
        // Both versions accept the same bytes.
        if let Ok(name) = HeaderName::from_bytes(name.as_str().as_bytes())
            && let Ok(value) = HeaderValue::from_maybe_shared(value)
        {
            headers.append(name, value);
        }
    }
    headers
}

/// Makes `to` what `from` is. Mostly it is already: what was made by [`headers`] is in the same order
/// for as long as nobody changes it.
pub(crate) fn set_headers(to: &mut ActixHeaderMap, from: &HeaderMap) {
    if same(to, from) {
        return;
    }
    to.clear();
    for (name, value) in from {
        if let Ok(name) = ActixHeaderName::from_bytes(name.as_str().as_bytes())
            && let Ok(value) = ActixHeaderValue::from_bytes(value.as_bytes())
        {
            to.append(name, value);
        }
    }
}

/// Whether two maps are the same, in the same order.
pub(crate) fn same(one: &ActixHeaderMap, other: &HeaderMap) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).all(|((name, value), (other_name, other_value))| {
            name.as_str() == other_name.as_str() && value.as_bytes() == other_value.as_bytes()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_headers_lost() {
        let mut sent = ActixHeaderMap::new();
        for (name, value) in [("x-a", &b"1"[..]), ("link", b"</a>"), ("x-a", b"\xff\x80 2")] {
            sent.append(name.parse().unwrap(), ActixHeaderValue::from_bytes(value).unwrap());
        }
        let ours = headers(&sent);
        assert_eq!(ours.len(), 3);
        assert!(ours.get_all("x-a").iter().eq(["1".as_bytes(), b"\xff\x80 2"]));
        let mut back = ActixHeaderMap::new();
        set_headers(&mut back, &ours);
        let lines: Vec<_> = back.get_all("x-a").map(ActixHeaderValue::as_bytes).collect();
        assert_eq!(lines, [&b"1"[..], b"\xff\x80 2"]);
        assert_eq!(back.len(), 3);
    }

    #[test]
    fn what_has_not_changed_is_the_same() {
        let mut sent = ActixHeaderMap::new();
        for name in ["host", "accept", "x-a", "content-type", "x-b", "x-a"] {
            sent.append(name.parse().unwrap(), ActixHeaderValue::from_static("1"));
        }
        let mut ours = headers(&sent);
        assert!(same(&sent, &ours));
        ours.remove("accept");
        assert!(!same(&sent, &ours));
        set_headers(&mut sent, &ours);
        assert!(!sent.contains_key("accept") && sent.len() == 5);
    }

    #[test]
    fn a_target_is_taken_as_it_was_sent() {
        // Every byte that Actix's version takes in a path or a query is taken by ours.
        let every = (1..=255).filter_map(|byte| String::from_utf8(vec![byte]).ok());
        let every = every.flat_map(|it| [format!("/a{it}b"), format!("/a?b{it}c")]);
        let every = every.filter(|it| it.parse::<ActixUri>().is_ok()).collect::<Vec<_>>();
        assert!(every.len() > 150, "{}", every.len());
        for target in
            ["/", "/a%2fb?c=%7B|d", "*", "/a?"].into_iter().chain(every.iter().map(|it| &**it))
        {
            let sent: ActixUri = target.parse().unwrap();
            let ours = uri(&sent).unwrap();
            let as_sent = sent.path_and_query().unwrap().as_str();
            assert_eq!(ours.path_and_query().unwrap().as_str(), as_sent);
        }
        let sent: ActixUri = "http://orders.example:8080/a?b".parse().unwrap();
        assert_eq!(uri(&sent).unwrap().to_string(), "http://orders.example:8080/a?b");
    }
}
