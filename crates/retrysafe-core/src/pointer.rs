//! JSON Pointers (RFC 6901): names of places in a body.

use std::{fmt, str::FromStr, sync::Arc};

use crate::{ConfigError, InvalidKey, KeyReason, json};

/// A place in a JSON text (RFC 6901). Cloning it is cheap.
///
/// ```
/// use retrysafe_core::JsonPointer;
///
/// let pointer: JsonPointer = "/order/request_id".parse()?;
/// let body = br#"{ "order": { "request_id": "r-17", "amount": 1999 } }"#;
/// assert_eq!(pointer.key_text(body).unwrap().as_deref(), Some("r-17"));
/// # Ok::<(), retrysafe_core::ConfigError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct JsonPointer(Arc<[String]>);

impl JsonPointer {
    /// Whether this names the whole text.
    pub fn is_whole(&self) -> bool {
        self.0.is_empty()
    }

    /// The string that is there, or the number as it was written: a key that the client put into
    /// its body (K8). `None` if the body is empty, or nothing or `null` is there.
    ///
    /// # Errors
    ///
    /// If the body is not JSON or has two members of one name, so that nobody can tell whether it
    /// has a key, or if something else is there: a bad key is never ignored (K3).
    pub fn key_text(&self, body: &[u8]) -> Result<Option<String>, InvalidKey> {
        let invalid = |detail| InvalidKey::new(KeyReason::Syntax, detail);
        if body.is_empty() {
            return Ok(None);
        }
        let found = json::find(body, self).ok_or_else(|| {
            invalid("The key is a member of the body, and the body is not well-formed JSON.")
        })?;
        match found.map(|token| (token, token.as_bytes()[0])) {
            None | Some(("null", _)) => Ok(None),
            Some((token, b'"')) => json::unescape(token)
                .map(Some)
                .ok_or_else(|| invalid("The key must be a well-formed string.")),
            Some((token, b'-' | b'0'..=b'9')) => Ok(Some(token.to_owned())),
            Some(_) => Err(invalid("The key must be a string or a number.")),
        }
    }

    pub(crate) fn tokens(&self) -> &[String] {
        &self.0
    }
}

impl FromStr for JsonPointer {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        if text.is_empty() {
            return Ok(Self(Arc::default()));
        }
        let tokens = text.strip_prefix('/').ok_or_else(|| {
            ConfigError::new("json_pointer", format!("{text:?} must start with a slash"))
        })?;
        tokens
            .split('/')
            .map(|token| {
                unescape(token).ok_or_else(|| {
                    let problem = format!("in {text:?} a tilde must be followed by 0 or 1");
                    ConfigError::new("json_pointer", problem)
                })
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl fmt::Display for JsonPointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|token| write!(f, "/{}", token.replace('~', "~0").replace('/', "~1")))
    }
}

fn unescape(token: &str) -> Option<String> {
    let mut parts = token.split('~');
    let mut unescaped = parts.next()?.to_owned();
    for part in parts {
        let (char, rest) = match part.as_bytes().first()? {
            b'0' => ('~', &part[1..]),
            b'1' => ('/', &part[1..]),
            _ => return None,
        };
        unescaped.push(char);
        unescaped.push_str(rest);
    }
    Some(unescaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointer(text: &str) -> JsonPointer {
        text.parse().unwrap()
    }

    #[test]
    fn rfc_6901_examples() {
        let document = r#"{
            "foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4, "i\\j": 5,
            "k\"l": 6, " ": 7, "m~n": 8
        }"#;
        for (text, expected) in [
            ("/foo/0", "bar"),
            ("/", "0"),
            ("/a~1b", "1"),
            ("/c%d", "2"),
            ("/e^f", "3"),
            ("/g|h", "4"),
            ("/i\\j", "5"),
            ("/k\"l", "6"),
            ("/ ", "7"),
            ("/m~0n", "8"),
        ] {
            let pointer = pointer(text);
            assert_eq!(pointer.to_string(), text);
            assert_eq!(pointer.key_text(document.as_bytes()).unwrap().as_deref(), Some(expected));
        }
    }

    #[test]
    fn escapes_are_read_once() {
        assert_eq!(pointer("/~01").tokens(), ["~1"]);
        assert_eq!(pointer("/~01").to_string(), "/~01");
        assert!(pointer("").is_whole() && !pointer("/").is_whole());
        for bad in ["a", "a/b", "/~", "/a~2", "/a~/b", "#/a"] {
            assert!(bad.parse::<JsonPointer>().is_err(), "{bad}");
        }
    }

    #[test]
    fn k8_a_key_is_read_as_it_was_written() {
        let text = |body: &str| pointer("/id").key_text(body.as_bytes());
        assert_eq!(text(r#"{"id":"a\u0062\n"}"#).unwrap().as_deref(), Some("ab\n"));
        assert_eq!(
            text(r#"{"id": 9007199254740993 }"#).unwrap().as_deref(),
            Some("9007199254740993")
        );
        // What else the body says is none of the key's business.
        assert_eq!(text(r#"{"amount":9007199254740993,"id":"a"}"#).unwrap().as_deref(), Some("a"));
        for absent in ["", "{}", "[]", "1", r#"{"id":null}"#, r#"{"a":{"id":1}}"#] {
            assert_eq!(text(absent), Ok(None), "{absent}");
        }
    }

    #[test]
    fn k3_a_bad_key_in_a_body_is_never_ignored() {
        for bad in [
            "{",
            "id=1",
            r#"{"id":"a","id":"b"}"#,
            r#"{"id":{}}"#,
            r#"{"id":[1]}"#,
            r#"{"id":true}"#,
        ] {
            let refused = pointer("/id").key_text(bad.as_bytes()).unwrap_err();
            assert_eq!(refused.reason(), KeyReason::Syntax, "{bad}");
        }
    }
}
