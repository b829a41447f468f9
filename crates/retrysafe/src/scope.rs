//! Where the scope of a request comes from (S1).

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use http::{HeaderMap, HeaderName, header, request::Parts};
use retrysafe_core::{Code, ConfigError, Problem, Scope};

type Found = Result<Scope, Problem>;
type Finder = dyn Fn(&Parts) -> Found + Send + Sync;
type AsyncFinder =
    dyn Fn(&Parts) -> Pin<Box<dyn Future<Output = Option<Scope>> + Send>> + Send + Sync;

/// Where the scope of a request comes from: who its key belongs to.
///
/// A layer can't be built without one. Prefer a principal that the service's own authentication
/// has put into the request's extensions: a token's digest is a new scope whenever the token is
/// refreshed, and it goes on answering replays after access was revoked (S4).
///
/// ```
/// use retrysafe::{Scope, ScopeFrom};
///
/// #[derive(Clone)]
/// struct User { id: String }
///
/// let per_user = ScopeFrom::extension(|user: &User| user.id.clone());
/// let one_trusted_client = ScopeFrom::from(Scope::shared());
/// ```
#[derive(Clone)]
pub struct ScopeFrom(Source);

#[derive(Clone)]
enum Source {
    Fixed(Scope),
    Finder(Arc<Finder>),
    AsyncFinder(Arc<AsyncFinder>),
}

impl ScopeFrom {
    /// From what an authentication layer outside has put into the request's extensions. A request
    /// without it is refused with `missing_scope`.
    pub fn extension<T, R>(name: impl Fn(&T) -> R + Send + Sync + 'static) -> Self
    where
        T: Send + Sync + 'static,
        R: AsRef<[u8]>,
    {
        Self(Source::Finder(Arc::new(move |parts| match parts.extensions.get::<T>() {
            Some(value) => Ok(Scope::from_bytes(name(value))),
            None => {
                tracing::warn!(
                    extension = std::any::type_name::<T>(),
                    "the request carries no such extension: is the layer that sets it outside?",
                );
                Err(nobody("The request is not authenticated."))
            }
        })))
    }

    /// From the digest of a header that a gateway in front overwrites. Never use a header that a
    /// client can set at will.
    ///
    /// # Errors
    ///
    /// If the name is not a header's.
    pub fn header(name: &str) -> Result<Self, ConfigError> {
        let name: HeaderName = name
            .parse()
            .map_err(|_| ConfigError::new("scope", format!("`{name}` is not a header name")))?;
        Ok(Self(Source::Finder(Arc::new(move |parts| {
            one_line(&parts.headers, &name)
                .map(Scope::digest_of)
                .ok_or_else(|| nobody(format!("One `{name}` header is needed.")))
        }))))
    }

    /// From the digest of a cookie.
    ///
    /// # Errors
    ///
    /// If the name is not a cookie's.
    pub fn cookie(name: &str) -> Result<Self, ConfigError> {
        let token = |b: u8| b.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}".contains(&b);
        if name.is_empty() || !name.bytes().all(token) {
            return Err(ConfigError::new("scope", format!("`{name}` is not a cookie name")));
        }
        let name = name.to_owned();
        Ok(Self(Source::Finder(Arc::new(move |parts| {
            cookie(&parts.headers, &name)
                .map(Scope::digest_of)
                .ok_or_else(|| nobody(format!("One `{name}` cookie is needed.")))
        }))))
    }

    /// From the digest of the `Authorization` header: one line of scheme Basic or Bearer. A request
    /// that shows no credential at all has the one anonymous scope; one that shows another kind (a
    /// signature per request, a cookie, an API key) identifies nobody and is refused.
    pub fn credentials() -> Self {
        Self(Source::Finder(Arc::new(|parts| credentials(&parts.headers))))
    }

    /// From the user's own function of the request's head.
    pub fn function(find: impl Fn(&Parts) -> Option<Scope> + Send + Sync + 'static) -> Self {
        Self(Source::Finder(Arc::new(move |parts| find(parts).ok_or_else(unidentified))))
    }

    /// From the user's own async function. It is given the head and must not borrow from it.
    pub fn async_function<F, R>(find: F) -> Self
    where
        F: Fn(&Parts) -> R + Send + Sync + 'static,
        R: Future<Output = Option<Scope>> + Send + 'static,
    {
        Self(Source::AsyncFinder(Arc::new(move |parts| Box::pin(find(parts)))))
    }

    pub(crate) async fn find(&self, parts: &Parts) -> Found {
        match &self.0 {
            Source::Fixed(scope) => Ok(scope.clone()),
            Source::Finder(find) => find(parts),
            Source::AsyncFinder(find) => find(parts).await.ok_or_else(unidentified),
        }
    }
}

impl From<Scope> for ScopeFrom {
    fn from(scope: Scope) -> Self {
        Self(Source::Fixed(scope))
    }
}

impl fmt::Debug for ScopeFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScopeFrom(..)")
    }
}

fn nobody(detail: impl Into<std::borrow::Cow<'static, str>>) -> Problem {
    Problem::new(Code::MissingScope, detail)
}

fn unidentified() -> Problem {
    nobody("The request does not say whose it is.")
}

fn one_line<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut lines = headers.get_all(name).iter();
    let line = lines.next().filter(|line| !line.is_empty())?;
    lines.next().is_none().then(|| line.as_bytes())
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let mut values = headers
        .get_all(header::COOKIE)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b';'))
        .filter_map(|pair| pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="));
    let value = values.next().filter(|value| !value.is_empty())?;
    values.next().is_none().then_some(value)
}

/// Headers that carry a credential other than `Authorization`: a key or a session, a signature of
/// this request (RFC 9421, and GitHub's), a proof of a key that is held (RFC 9449), or the
/// certificate that a gateway has seen (RFC 9440, and Envoy's).
const OTHER_CREDENTIALS: [&str; 15] = [
    "cookie",
    "x-api-key",
    "api-key",
    "apikey",
    "x-authorization",
    "x-goog-api-key",
    "x-functions-key",
    "ocp-apim-subscription-key",
    "signature",
    "signature-input",
    "x-hub-signature-256",
    "dpop",
    "client-cert",
    "client-cert-chain",
    "x-forwarded-client-cert",
];

/// How the names of such headers end, whoever invented them.
const CREDENTIAL_ENDINGS: [&str; 6] =
    ["-token", "-api-key", "-auth-key", "-access-key", "-secret", "-signature"];

fn carries_a_credential(name: &HeaderName) -> bool {
    let name = name.as_str();
    OTHER_CREDENTIALS.contains(&name) || CREDENTIAL_ENDINGS.iter().any(|it| name.ends_with(it))
}

fn credentials(headers: &HeaderMap) -> Found {
    const USE_ANOTHER: &str = "The caller can't be told from this request's credentials. Set \
        `--scope header:NAME` or `--scope cookie:NAME` to what identifies it.";
    if !headers.contains_key(header::AUTHORIZATION) {
        let shown = headers.keys().any(carries_a_credential);
        return if shown { Err(nobody(USE_ANOTHER)) } else { Ok(Scope::anonymous()) };
    }
    let line = one_line(headers, &header::AUTHORIZATION).map(<[u8]>::trim_ascii);
    let Some((scheme, secret)) =
        line.and_then(|line| line.split_at_checked(line.iter().position(|byte| *byte == b' ')?))
    else {
        return Err(nobody(USE_ANOTHER));
    };
    let secret = secret.trim_ascii();
    let scheme = scheme.to_ascii_lowercase();
    if secret.is_empty() || !matches!(&scheme[..], b"basic" | b"bearer") {
        return Err(nobody(USE_ANOTHER));
    }
    // The scheme's spelling does not make another caller (RFC 9110, section 11.1).
    Ok(Scope::digest_of([&scheme, &b" "[..], secret].concat()))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut request = Request::builder();
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0.headers
    }

    #[test]
    fn s1_credentials() {
        let scope = |lines: &[_]| credentials(&headers(lines)).map_err(|it| it.code);
        assert_eq!(scope(&[]), Ok(Scope::anonymous()));
        let one = scope(&[("authorization", "Bearer one")]);
        assert!(one.is_ok());
        assert_eq!(one, scope(&[("authorization", "bearer  one ")]));
        assert_eq!(one, scope(&[("authorization", "Bearer one"), ("cookie", "session=1")]));
        assert_ne!(one, scope(&[("authorization", "Bearer two")]));
        assert_ne!(one, scope(&[("authorization", "Basic one")]));
        for nobody in [
            &[("authorization", "Signature abc")][..],
            &[("authorization", "Bearer")],
            &[("authorization", "")],
            &[("authorization", "Bearer one"), ("authorization", "Bearer two")],
            &[("cookie", "session=1")],
            &[("x-api-key", "1")],
            &[("x-vault-token", "1")],
        ] {
            assert_eq!(scope(nobody), Err(Code::MissingScope), "{nobody:?}");
        }
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        let lines = headers(&[("cookie", "a=1; session=xyz"), ("cookie", "sessions=2")]);
        assert_eq!(cookie(&lines, "session"), Some(&b"xyz"[..]));
        assert_eq!(cookie(&lines, "none"), None);
        let twice = headers(&[("cookie", "session=1; session=2")]);
        assert_eq!(cookie(&twice, "session"), None);
    }

    #[test]
    fn bad_names_are_refused() {
        assert!(ScopeFrom::header("not a name").is_err());
        assert!(ScopeFrom::cookie("a=b").is_err());
        assert!(ScopeFrom::cookie("session").is_ok());
    }
}
