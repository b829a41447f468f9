//! From text to what is to be opened.

use std::{fmt, path::PathBuf};

use crate::OpenError;

/// What this release knows how to open, whether it was built in or not.
const ACCEPTED: &str = "memory: or sqlite:PATH";

/// What is announced, and gets an answer of its own.
const LATER: [&str; 8] =
    ["redis", "rediss", "redis-cluster", "postgres", "postgresql", "mysql", "mariadb", "nats"];

/// A store, named by a URL that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StoreUrl {
    Memory,
    Sqlite { path: PathBuf, normal: bool },
}

impl StoreUrl {
    pub(crate) fn parse(text: &str) -> Result<Self, OpenError> {
        // The text after the scheme is never shown: it may hold a password.
        let Some((scheme, rest)) = text.split_once(':') else {
            return Err(OpenError::url(format!("a store's URL begins with its kind: {ACCEPTED}")));
        };
        match scheme.to_ascii_lowercase().as_str() {
            "memory" if rest.is_empty() || rest == "//" => Ok(Self::Memory),
            "memory" => Err(OpenError::url("the store `memory:` takes nothing after the colon")),
            "sqlite" => Self::parse_sqlite(rest),
            later if LATER.contains(&later) => Err(OpenError::url(format!(
                "the store `{later}:` is not built into this release; use {ACCEPTED}"
            ))),
            _ => Err(OpenError::url(format!(
                "there is no store of the kind `{}:`; use {ACCEPTED}",
                shown(scheme)
            ))),
        }
    }

    fn parse_sqlite(rest: &str) -> Result<Self, OpenError> {
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, query),
            None => (rest, ""),
        };
        let path = decode(path.strip_prefix("//").unwrap_or(path))?;
        if path.is_empty() || path == ":memory:" {
            return Err(OpenError::url(
                "the store `sqlite:` needs the path of a file: sqlite:retrysafe.db; for a store \
                 that is gone with the process use memory:",
            ));
        }
        let mut normal = false;
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            normal = match parameter.split_once('=') {
                Some(("synchronous", "full")) => false,
                Some(("synchronous", "normal")) => true,
                Some(("synchronous", other)) => {
                    return Err(OpenError::url(format!(
                        "synchronous={other} in the store's URL: it is full or normal"
                    )));
                }
                _ => {
                    let name = parameter.split('=').next().unwrap_or_default();
                    return Err(OpenError::url(format!(
                        "the store `sqlite:` has no setting `{name}`; it has \
                         synchronous=full|normal, and a `?` in a path is written %3F"
                    )));
                }
            };
        }
        Ok(Self::Sqlite { path: path.into(), normal })
    }
}

/// The URL as it may be logged, without secrets. Read again, it names the same store.
impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory:"),
            Self::Sqlite { path, normal } => {
                f.write_str("sqlite:")?;
                for character in path.to_string_lossy().chars() {
                    match character {
                        '%' => f.write_str("%25")?,
                        '?' => f.write_str("%3F")?,
                        other => write!(f, "{other}")?,
                    }
                }
                f.write_str(if *normal { "?synchronous=normal" } else { "" })
            }
        }
    }
}

/// Decodes `%XX`.
fn decode(text: &str) -> Result<String, OpenError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split('%');
    bytes.extend_from_slice(parts.next().unwrap_or_default().as_bytes());
    for part in parts {
        let byte = part
            .get(..2)
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
            .filter(|byte| *byte != 0)
            .ok_or_else(|| {
                OpenError::url("a `%` in a store's URL is followed by two hex digits, and is itself written %25")
            })?;
        bytes.push(byte);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).map_err(|_| OpenError::url("the path in the store's URL is not UTF-8"))
}

/// A scheme with a typo is shown; what is no scheme may be anything, a password included.
fn shown(scheme: &str) -> &str {
    let is_scheme = scheme.len() <= 16
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    if is_scheme { scheme } else { "..." }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sqlite(path: &str, normal: bool) -> StoreUrl {
        StoreUrl::Sqlite { path: path.into(), normal }
    }

    #[test]
    fn every_spelling_is_understood() {
        for (text, url) in [
            ("memory:", StoreUrl::Memory),
            ("memory://", StoreUrl::Memory),
            ("MEMORY:", StoreUrl::Memory),
            ("sqlite:retrysafe.db", sqlite("retrysafe.db", false)),
            ("sqlite://data/retrysafe.db", sqlite("data/retrysafe.db", false)),
            ("sqlite:/var/lib/a.db", sqlite("/var/lib/a.db", false)),
            ("sqlite:///var/lib/a.db", sqlite("/var/lib/a.db", false)),
            ("sqlite:a.db?synchronous=full", sqlite("a.db", false)),
            ("sqlite:a.db?synchronous=normal", sqlite("a.db", true)),
            ("sqlite:a%20%3f%25b.db", sqlite("a ?%b.db", false)),
            ("sqlite:C:/data/a.db", sqlite("C:/data/a.db", false)),
        ] {
            let parsed = StoreUrl::parse(text).unwrap();
            assert_eq!(parsed, url, "{text}");
            assert_eq!(StoreUrl::parse(&parsed.to_string()).unwrap(), url, "{parsed}");
        }
    }

    #[test]
    fn every_mistake_is_one_line_that_says_what_to_do() {
        for (text, says) in [
            ("", "memory: or sqlite:PATH"),
            ("retrysafe.db", "memory: or sqlite:PATH"),
            ("sqllite:a.db", "`sqllite:`"),
            ("memory:a", "nothing"),
            ("sqlite:", "path"),
            ("sqlite::memory:", "memory:"),
            ("sqlite:a.db?mode=ro", "`mode`"),
            ("sqlite:a.db?synchronous=off", "full or normal"),
            ("sqlite:a%2", "%25"),
            ("sqlite:a%00", "%25"),
            ("sqlite:a%+1", "%25"),
            ("redis://u:secret@h", "not built into this release"),
            ("rediss://u:secret@h", "not built into this release"),
            ("redis-cluster://h1,h2", "not built into this release"),
            ("postgres://u:secret@h/d", "not built into this release"),
            ("mysql://u:secret@h/d", "not built into this release"),
            ("nats://u:secret@h", "not built into this release"),
            ("http://u:secret@h", "`http:`"),
            ("u/secret@h:1", "`...:`"),
        ] {
            let error = StoreUrl::parse(text).unwrap_err();
            let line = error.to_string();
            assert!(error.is_config() && line.contains(says), "{text}: {line}");
            assert!(!line.contains('\n') && !line.contains("secret"), "{text}: {line}");
        }
    }
}
