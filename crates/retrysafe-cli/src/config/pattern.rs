//! Path patterns of `[[route]]` tables.

use std::{borrow::Cow, str::FromStr};

use percent_encoding::percent_decode_str;

use super::text::BadText;

/// Which paths a route is for.
///
/// - A pattern is compared segment by segment with the whole path; the query is not looked at.
/// - `/orders` matches `/orders` and neither `/orders/` nor `/orders/7`.
/// - `{name}` stands for exactly one segment that is not empty: `/orders/{id}/refund`.
/// - `*` as the last segment stands for all that follows, if anything does: `/v1/*` matches
///   `/v1/`, `/v1/orders` and `/v1/orders/7`, but not `/v1`.
/// - Case counts. Percent-encoded characters are the characters they stand for, except that an
///   encoded slash never separates segments. Dots and doubled slashes are not resolved.
///
/// Of several routes the first of the file that matches path and method is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    text: String,
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Literal(String),
    Any,
    Rest,
}

impl Pattern {
    /// Whether a request's path matches.
    pub(crate) fn matches(&self, path: &str) -> bool {
        let Some(path) = path.strip_prefix('/') else {
            return false;
        };
        let mut segments = path.split('/');
        for expected in &self.segments {
            let Some(segment) = segments.next() else {
                return false;
            };
            match expected {
                Segment::Rest => return true,
                Segment::Any if segment.is_empty() => return false,
                Segment::Any => {}
                Segment::Literal(literal) if decoded(segment) == literal.as_str() => {}
                Segment::Literal(_) => return false,
            }
        }
        segments.next().is_none()
    }

    /// The pattern as it was written: the route's name in metrics.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Pattern {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Self, BadText> {
        let Some(path) = text.strip_prefix('/') else {
            return Err(BadText::new(format!("the path `{text}` does not start with `/`")));
        };
        let count = path.split('/').count();
        let mut segments = Vec::with_capacity(count);
        for (position, segment) in path.split('/').enumerate() {
            segments.push(match segment {
                "*" if position + 1 == count => Segment::Rest,
                _ if segment.len() > 2 && segment.starts_with('{') && segment.ends_with('}') => {
                    Segment::Any
                }
                _ if segment.contains(['*', '{', '}', '?', '#']) => {
                    return Err(BadText::new(format!(
                        "the path `{text}` is no pattern: `{{name}}` is a whole segment, and `*` is the last one"
                    )));
                }
                literal => Segment::Literal(decoded(literal).into_owned()),
            });
        }
        Ok(Self { text: text.to_owned(), segments })
    }
}

fn decoded(segment: &str) -> Cow<'_, str> {
    percent_decode_str(segment).decode_utf8().unwrap_or(Cow::Borrowed(segment))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn matches(pattern: &str, path: &str) -> bool {
        pattern.parse::<Pattern>().unwrap().matches(path)
    }

    #[test]
    fn a_pattern_matches_the_whole_path() {
        assert!(matches("/orders", "/orders"));
        assert!(!matches("/orders", "/orders/"));
        assert!(!matches("/orders", "/orders/7"));
        assert!(!matches("/orders", "/Orders"));
        assert!(matches("/", "/") && !matches("/", "/a") && !matches("/", "*"));
        assert!(matches("/orders/{id}/refund", "/orders/7/refund"));
        assert!(!matches("/orders/{id}/refund", "/orders//refund"));
        assert!(matches("/v1/*", "/v1/") && matches("/v1/*", "/v1/a/b"));
        assert!(!matches("/v1/*", "/v1") && matches("/*", "/"));
    }

    #[test]
    fn an_encoded_path_takes_the_same_route() {
        assert!(matches("/orders", "/%6frders"));
        assert!(!matches("/a/b", "/a%2Fb"));
        assert!(matches("/caf%C3%A9", "/café"));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for bad in ["", "orders", "/a*", "/*/b", "/{id", "/x{id}", "/{}", "/a?b"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }
}
