//! Values as people write them: the same text is accepted by a flag, an environment variable and
//! the file. Lists may be arrays in the file, numbers need no quotes there.

use std::{fmt, net::SocketAddr, str::FromStr, time::Duration};

use http::{HeaderName, Method, StatusCode, Uri, uri::Scheme};
use retrysafe::{Fingerprinter, JsonPointer, KeyFormat, KeySource, Scope, ScopeFrom};
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};

/// A text that is not a value: what was expected instead.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadText(String);

impl BadText {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl From<retrysafe::ConfigError> for BadText {
    fn from(error: retrysafe::ConfigError) -> Self {
        Self(error.to_string())
    }
}

/// Reads a value of the file as the text that a flag would have been given.
struct AsText;

impl<'de> Visitor<'de> for AsText {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a number or a list of texts")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<String, E> {
        Ok(number.to_string())
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<String, E> {
        Ok(number.to_string())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<String, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = list.next_element::<String>()? {
            texts.push(text);
        }
        Ok(texts.join(","))
    }
}

macro_rules! read_as_text {
    ($($value:ty),* $(,)?) => {$(
        impl<'de> Deserialize<'de> for $value {
            fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
                reader.deserialize_any(AsText)?.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

read_as_text!(
    Span,
    Size,
    Methods,
    Header,
    Headers,
    Status,
    AdminAddress,
    ListenAddress,
    Upstream,
    Sweep,
    ScopeText,
    KeyFrom,
    KeyShape,
    FingerprintMode,
    InFlightPolicy,
    ProblemBase,
);

/// A duration of at most 100 years: `250ms`, `60s`, `10m`, `1h 30m`, `24h`, `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl FromStr for Span {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
        match humantime::parse_duration(text.trim()) {
            Ok(span) if span <= CENTURY => Ok(Self(span)),
            Ok(_) => Err(BadText(format!("`{text}` is longer than 100 years"))),
            Err(_) => Err(BadText(format!(
                "`{text}` is not a duration: write a number and a unit, such as `60s`"
            ))),
        }
    }
}

/// A number of bytes: `512`, `64KiB`, `4MiB`, `1GiB`, or in powers of ten `4MB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl Size {
    /// As a size that fits into memory.
    pub(crate) fn in_memory(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for Size {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        let bad =
            || BadText(format!("`{text}` is not a size: write bytes or a unit, such as `4MiB`"));
        let trimmed = text.trim();
        let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = trimmed.split_at(digits);
        let factor: u64 = match unit.trim_start().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "kib" => 1 << 10,
            "mib" => 1 << 20,
            "gib" => 1 << 30,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            _ => return Err(bad()),
        };
        let number: u64 = number.parse().map_err(|_| bad())?;
        number.checked_mul(factor).map(Self).ok_or_else(bad)
    }
}

/// Methods, separated by commas; `all-unsafe`, or `all_unsafe`, stands for POST, PATCH, PUT and
/// DELETE (K5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Methods(pub(crate) Vec<Method>);

impl FromStr for Methods {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        let mut methods = Vec::new();
        for name in items(text) {
            let method = name.to_ascii_uppercase();
            if method == "ALL-UNSAFE" || method == "ALL_UNSAFE" {
                methods.extend([Method::POST, Method::PATCH, Method::PUT, Method::DELETE]);
                continue;
            }
            // HTTP would take `*` or `POST|PATCH` for a method, too. No request would ever have it,
            // and all would run unprotected. K7: CONNECT has no request to protect.
            let method = Method::from_bytes(method.as_bytes())
                .ok()
                .filter(|_| method.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-'))
                .filter(|method| method != Method::CONNECT)
                .ok_or_else(|| BadText(format!("`{name}` is not a method that can be covered")))?;
            methods.push(method);
        }
        // K5: an empty list is a configuration error.
        if methods.is_empty() {
            return Err(BadText::new(
                "at least one method must be named; `protect = false` is off",
            ));
        }
        Ok(Self(methods))
    }
}

/// One header name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header(pub(crate) HeaderName);

impl FromStr for Header {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        text.trim().parse().map(Self).map_err(|_| BadText(format!("`{text}` is not a header name")))
    }
}

/// Header names, separated by commas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Headers(pub(crate) Vec<HeaderName>);

impl FromStr for Headers {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        items(text)
            .map(|name| name.parse::<Header>().map(|header| header.0))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

/// A status that answers a refused request: 400 to 499.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status(pub(crate) StatusCode);

impl FromStr for Status {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        text.parse()
            .ok()
            .filter(StatusCode::is_client_error)
            .map(Self)
            .ok_or_else(|| BadText(format!("`{text}` is not a status from 400 to 499")))
    }
}

/// Where the service is: `http://host:port` or `https://host`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Upstream(pub(crate) Uri);

impl FromStr for Upstream {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        // The text is not repeated: it may hold a password.
        let bad = |what| {
            BadText(format!("the upstream {what}: write `http://host:port` or `https://host`"))
        };
        let uri: Uri = text.parse().map_err(|_| bad("is not a URL"))?;
        if uri.scheme() != Some(&Scheme::HTTP) && uri.scheme() != Some(&Scheme::HTTPS) {
            return Err(bad("has no scheme that can be spoken"));
        }
        if uri.authority().is_none_or(|authority| authority.as_str().contains('@')) {
            return Err(bad("has a user name in it"));
        }
        // A port that is too large would be taken for none at all.
        let port = uri.authority().and_then(|it| it.as_str().rsplit_once(':'));
        if port.is_some_and(|(_, port)| !port.ends_with(']')) && uri.port_u16().is_none() {
            return Err(bad("has a port that is none"));
        }
        if uri.path_and_query().is_some_and(|path| path != "/") {
            return Err(bad("has a path, but paths are passed on as they come"));
        }
        Ok(Self(uri))
    }
}

/// How often expired records are swept: a duration, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sweep(pub(crate) Option<Duration>);

/// Where operators connect to, if anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AdminAddress(pub(crate) Option<SocketAddr>);

impl FromStr for AdminAddress {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        match text {
            "off" => Ok(Self(None)),
            _ => text
                .parse()
                .map(|address| Self(Some(address)))
                .map_err(|_| BadText::new("expected an address such as 127.0.0.1:9090, or `off`")),
        }
    }
}

/// Where clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ListenAddress(pub(crate) SocketAddr);

impl FromStr for ListenAddress {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        let port = text.trim_start_matches(':');
        text.parse().map(Self).map_err(|_| match port.parse::<u16>() {
            Ok(port) => BadText(format!(
                "an address is needed too: 127.0.0.1:{port} for this machine, 0.0.0.0:{port} for all"
            )),
            Err(_) => BadText::new("expected an address such as 127.0.0.1:8080"),
        })
    }
}

impl FromStr for Sweep {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        match text {
            "off" => Ok(Self(None)),
            _ => match text.parse::<Span>()?.0 {
                Duration::ZERO => {
                    Err(BadText::new("to sweep without a pause is not possible: `off` is off"))
                }
                every => Ok(Self(Some(every))),
            },
        }
    }
}

/// Who a key belongs to (S1): `credentials`, `shared`, `header:NAME` or `cookie:NAME`.
#[derive(Clone, Debug)]
pub(crate) struct ScopeText(pub(crate) ScopeFrom);

impl FromStr for ScopeText {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        match text.split_once(':') {
            None if text == "credentials" => Ok(Self(ScopeFrom::credentials())),
            None if text == "shared" => Ok(Self(Scope::shared().into())),
            Some(("header", name)) => Ok(Self(ScopeFrom::header(name)?)),
            Some(("cookie", name)) => Ok(Self(ScopeFrom::cookie(name)?)),
            _ => Err(BadText(format!(
                "`{text}` is not a scope: `credentials`, `shared`, `header:NAME` or `cookie:NAME`"
            ))),
        }
    }
}

/// Where a key comes from (K1, K8): `header`, `content` or `json:/POINTER`.
#[derive(Clone, Debug)]
pub(crate) struct KeyFrom(pub(crate) KeySource);

impl FromStr for KeyFrom {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        match text.split_once(':') {
            None if text == "header" => Ok(Self(KeySource::Header)),
            None if text == "content" => Ok(Self(KeySource::Content)),
            Some(("json", pointer)) if !pointer.is_empty() => {
                Ok(Self(KeySource::Json(pointer.parse()?)))
            }
            _ => Err(BadText(format!(
                "`{text}` is not where a key comes from: `header`, `content` or `json:/POINTER`"
            ))),
        }
    }
}

/// What keys have to look like (K4): `any`, `uuid`, `uuid-v4`, `uuid-v7:24h` (or
/// `uuid-v7:24h:30s`, with how far ahead a client's clock may be), or `prefixed:idem_`.
#[derive(Clone, Debug)]
pub(crate) struct KeyShape(pub(crate) KeyFormat);

impl FromStr for KeyShape {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        match text.split_once(':') {
            None if text == "any" => Ok(Self(KeyFormat::Any)),
            None if text == "uuid" => Ok(Self(KeyFormat::Uuid)),
            None if text == "uuid-v4" => Ok(Self(KeyFormat::UuidV4)),
            Some(("uuid-v7", ages)) => {
                let (max_age, skew) = ages.split_once(':').unwrap_or((ages, "30s"));
                let (max_age, skew) = (max_age.parse::<Span>()?.0, skew.parse::<Span>()?.0);
                Ok(Self(KeyFormat::UuidV7 { max_age, skew }))
            }
            Some(("prefixed", prefix)) if !prefix.is_empty() => {
                Ok(Self(KeyFormat::Prefixed { prefix: prefix.to_owned() }))
            }
            _ => Err(BadText(format!(
                "`{text}` is not a key format: `any`, `uuid`, `uuid-v4`, `uuid-v7:24h` or `prefixed:idem_`"
            ))),
        }
    }
}

/// What is compared to tell a retry from a reuse (F1, F2): `raw`, `json`, `json-without:/A,/B`,
/// `form`, `multipart` or `no-body`.
#[derive(Clone, Debug)]
pub(crate) struct FingerprintMode(pub(crate) Fingerprinter);

impl FromStr for FingerprintMode {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        match text.split_once(':') {
            None if text == "raw" => Ok(Self(Fingerprinter::raw())),
            None if text == "json" => Ok(Self(Fingerprinter::json())),
            None if text == "form" => Ok(Self(Fingerprinter::form())),
            None if text == "multipart" => Ok(Self(Fingerprinter::multipart())),
            None if text == "no-body" => Ok(Self(Fingerprinter::body_ignored())),
            Some(("json-without", pointers)) if items(pointers).next().is_some() => {
                let pointers: Result<Vec<JsonPointer>, _> =
                    items(pointers).map(str::parse).collect();
                Ok(Self(Fingerprinter::json_without(pointers?)?))
            }
            _ => Err(BadText(format!(
                "`{text}` is not a fingerprint: `raw`, `json`, `json-without:/A,/B`, `form`, `multipart` or `no-body`"
            ))),
        }
    }
}

/// What a retry gets while the first is running (D2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InFlightPolicy {
    /// `reject`: 409 at once.
    Reject,
    /// `wait:10s`: the outcome, if it comes in time.
    Wait(Duration),
}

impl FromStr for InFlightPolicy {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        match text.split_once(':') {
            None if text == "reject" => Ok(Self::Reject),
            Some(("wait", timeout)) => Ok(Self::Wait(timeout.parse::<Span>()?.0)),
            _ => Err(BadText(format!("`{text}` is neither `reject` nor `wait:10s`"))),
        }
    }
}

/// What a problem's `type` starts with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProblemBase(pub(crate) String);

impl FromStr for ProblemBase {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        // RFC 3986. Not `http::Uri`, which knows no `urn:`, although PROTOCOL's own base is one.
        let is_legal =
            |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&byte);
        match !text.is_empty() && text.bytes().all(is_legal) {
            true => Ok(Self(text.to_owned())),
            false => Err(BadText(format!("`{text}` is not a URI"))),
        }
    }
}

fn items(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|item| !item.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_read_as_written() {
        assert_eq!("4MiB".parse::<Size>().unwrap().0, 4 << 20);
        assert_eq!("4 mb".parse::<Size>().unwrap().0, 4_000_000);
        assert_eq!("512".parse::<Size>().unwrap().0, 512);
        for bad in ["", "MiB", "4.5MiB", "-1", "4 apples", "99999999999GiB"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
        assert_eq!("1h 30m".parse::<Span>().unwrap().0, Duration::from_secs(5_400));
        assert!("60".parse::<Span>().is_err());
        assert!("101y".parse::<Span>().unwrap_err().to_string().contains("100 years"));
    }

    #[test]
    fn k5_an_empty_list_of_methods_is_refused() {
        assert!("".parse::<Methods>().is_err());
        assert!("CONNECT".parse::<Methods>().is_err());
        assert_eq!("post, patch".parse::<Methods>().unwrap().0, [Method::POST, Method::PATCH]);
        let all = [Method::POST, Method::PATCH, Method::PUT, Method::DELETE];
        for said in ["all-unsafe", "all_unsafe", "ALL-UNSAFE"] {
            assert_eq!(said.parse::<Methods>().unwrap().0, all, "{said}");
        }
    }

    #[test]
    fn an_upstream_is_a_scheme_and_an_authority() {
        assert!("http://127.0.0.1:3000".parse::<Upstream>().is_ok());
        assert!("https://orders.example/".parse::<Upstream>().is_ok());
        for bad in ["127.0.0.1:3000", "ftp://host", "http://u:p@host", "http://host/base", ""] {
            let message = bad.parse::<Upstream>().unwrap_err().to_string();
            assert!(!message.contains("u:p"), "{message}");
        }
    }

    #[test]
    fn settings_with_parameters() {
        let KeyFormat::UuidV7 { max_age, skew } = "uuid-v7:24h".parse::<KeyShape>().unwrap().0
        else {
            panic!("another format");
        };
        assert_eq!((max_age.as_secs(), skew.as_secs()), (86_400, 30));
        assert_eq!(
            "wait:10s".parse::<InFlightPolicy>().unwrap(),
            InFlightPolicy::Wait(Duration::from_secs(10))
        );
        assert!("json-without:/a,/b/c".parse::<FingerprintMode>().is_ok());
        for bad in ["json-without:", "json-without:a", "jsn"] {
            assert!(bad.parse::<FingerprintMode>().is_err(), "{bad}");
        }
        for bad in ["header:", "header:a b", "cookie:", "tenant", "shared:x"] {
            assert!(bad.parse::<ScopeText>().is_err(), "{bad}");
        }
        for bad in ["json:", "json:a", "body"] {
            assert!(bad.parse::<KeyFrom>().is_err(), "{bad}");
        }
    }
}
