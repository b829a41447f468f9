//! The head part of a fingerprint: everything but the body.

use std::fmt;

use http::{
    HeaderMap, HeaderName,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
};

use crate::preimage::Preimage;

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
    pub(super) fn put(&self, preimage: &mut Preimage, chosen: &[HeaderName]) {
        preimage.part(self.method.as_bytes());
        preimage.part(self.target.as_bytes());
        self.put_lines(preimage, &CONTENT_TYPE, |line, it| it.lower_case_part(essence(line)));
        self.put_lines(preimage, &CONTENT_ENCODING, |line, it| it.lower_case_part(line));
        for name in chosen {
            preimage.part(name.as_str().as_bytes());
            self.put_lines(preimage, name, |line, it| it.part(line));
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

    fn put_lines(
        &self,
        preimage: &mut Preimage,
        name: &HeaderName,
        put: impl Fn(&[u8], &mut Preimage),
    ) {
        let lines = self.headers.get_all(name);
        preimage.number(lines.iter().count());
        lines.iter().for_each(|line| put(line.as_bytes(), preimage));
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
