//! Which headers say who is asking.

use http::{HeaderName, HeaderValue, header};

/// Names of keys; an idempotency key is none of them.
const KEYS: [&str; 6] =
    ["api-key", "access-key", "auth-key", "subscription-key", "functions-key", "apikey"];

/// Whether a header is a credential: by its value's mark, or by its name (`Authorization`, `x-api-key`,
/// `x-auth-token`, ...).
pub(crate) fn is_secret(name: &HeaderName, value: &HeaderValue) -> bool {
    let known = [header::AUTHORIZATION, header::COOKIE, header::PROXY_AUTHORIZATION];
    let words = || name.as_str().split(['-', '_']);
    let speaks_of = |end| words().any(|word| word.ends_with(end));
    value.is_sensitive()
        || known.contains(name)
        || KEYS.iter().any(|key| name.as_str().contains(key))
        || ["token", "secret", "password"].into_iter().any(speaks_of)
}
