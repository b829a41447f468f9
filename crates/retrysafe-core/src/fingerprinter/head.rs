//! The head part of a fingerprint: everything but the body.

use std::fmt;

use http::{
    HeaderMap, HeaderName,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
};

use super::keyring::Hash;

/// What of a request is known before its body.
///
/// `Debug` shows the method only: paths, queries and headers carry secrets (S3).
#[derive(Clone, Copy)]
pub struct RequestHead<'a> {
    /// The method; for `Once`, the operation's name.
    pub method: &'a str,
    /// Path and query as the client sent them, under nested routers too.
    pub target: &'a str,
    /// The headers.
    pub headers: &'a HeaderMap,
}

impl RequestHead<'_> {
    pub(super) fn digest(&self, hash: &mut Hash, chosen: &[HeaderName]) {
        hash.part(self.method.as_bytes());
        hash.part(self.target.as_bytes());
        self.digest_lines(hash, &CONTENT_TYPE, |line, hash| hash.lower_case_part(essence(line)));
        self.digest_lines(hash, &CONTENT_ENCODING, |line, hash| hash.lower_case_part(line));
        for name in chosen {
            hash.part(name.as_str().as_bytes());
            self.digest_lines(hash, name, |line, hash| hash.part(line));
        }
    }

    /// The value of the only `Content-Type`, if it has this essence.
    pub(super) fn content_type(&self, matches: impl Fn(&[u8]) -> bool) -> Option<&[u8]> {
        let mut lines = self.headers.get_all(CONTENT_TYPE).iter();
        let line = lines.next()?.as_bytes();
        (lines.next().is_none() && matches(essence(line))).then_some(line)
    }

    /// Whether the body's bytes are not what its `Content-Type` says, but an encoding of it.
    pub(super) fn is_encoded(&self) -> bool {
        self.headers.contains_key(CONTENT_ENCODING)
    }

    fn digest_lines(&self, hash: &mut Hash, name: &HeaderName, digest: impl Fn(&[u8], &mut Hash)) {
        let lines = self.headers.get_all(name);
        hash.update(&(lines.iter().count() as u64).to_be_bytes());
        lines.iter().for_each(|line| digest(line.as_bytes(), hash));
    }
}

impl fmt::Debug for RequestHead<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestHead").field("method", &self.method).finish_non_exhaustive()
    }
}

/// A media type without its parameters.
fn essence(content_type: &[u8]) -> &[u8] {
    content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii()
}
