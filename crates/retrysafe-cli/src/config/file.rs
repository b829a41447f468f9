//! The TOML file. An unknown key or a bad value is named with its line.

use std::{borrow::Cow, fs, ops::Range, path::Path};

use serde::Deserialize;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{ConfigError, pattern::Pattern, process::ProcessOverrides, settings::Overrides};

/// What the file says.
#[derive(Debug, Default)]
pub(crate) struct File {
    pub(crate) process: ProcessOverrides,
    pub(crate) default: Overrides,
    /// Where it says what of these two.
    pub(crate) lines: Lines,
    pub(crate) routes: Vec<RouteTable>,
}

/// One `[[route]]`.
#[derive(Debug)]
pub(crate) struct RouteTable {
    pub(crate) path: Pattern,
    pub(crate) overrides: Overrides,
    /// Where it says what.
    pub(crate) lines: Lines,
}

/// The lines of a table.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// Where the table begins.
    pub(crate) table: usize,
    keys: Vec<(String, usize)>,
}

impl Lines {
    /// The line of the key that a problem is about: of the setting that it begins with, or else of
    /// another that it names, such as the lease that a retention is too short for. Keys that were
    /// said `elsewhere`, where that counts for more, are not meant.
    pub(crate) fn of(&self, problem: &str, elsewhere: impl Fn(&str) -> bool) -> Option<usize> {
        let mut words = problem.split(|it: char| it != '_' && !it.is_ascii_alphanumeric());
        words.find_map(|word| {
            let (name, line) = self.keys.iter().find(|(name, _)| name == word)?;
            (!elsewhere(name)).then_some(*line)
        })
    }

    fn add(&mut self, text: &str, key: &Spanned<Cow<'_, str>>) {
        self.keys.push((key.get_ref().to_string(), line_of(text, key.span().start)));
    }
}

#[derive(Deserialize)]
struct PathOnly {
    path: Pattern,
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: serde::Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        String::deserialize(reader)?.parse().map_err(serde::de::Error::custom)
    }
}

impl File {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// If it can't be read, is no TOML, or has an unknown key or a bad value: which, and the line.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|error| {
            ConfigError::new(format!("the file {} can't be read: {error}", path.display()))
        })?;
        Self::parse(&text).map_err(|fault| {
            ConfigError::new(format!("{}:{}: {}", path.display(), fault.line, fault.message))
        })
    }

    fn parse(text: &str) -> Result<Self, Fault> {
        let fault = |error: &toml::de::Error| Fault::new(text, error);
        let document = DeTable::parse(text).map_err(|error| fault(&error))?;
        let (everything, mut default) = (document.span(), DeTable::new());
        let (mut process, mut routes) = (DeTable::new(), None);
        let mut lines = Lines::default();
        for (key, value) in document.into_inner() {
            lines.add(text, &key);
            match key.get_ref().as_ref() {
                "route" => routes = Some(value),
                name if ProcessOverrides::KEYS.contains(&name) => {
                    process.insert(key, value);
                }
                _ => {
                    default.insert(key, value);
                }
            }
        }
        Ok(Self {
            process: read(process, everything.clone()).map_err(|error| fault(&error))?,
            default: read(default, everything)
                .map_err(|error| fault(&error).with_process_keys())?,
            lines,
            routes: routes.map_or(Ok(Vec::new()), |routes| read_routes(text, routes))?,
        })
    }
}

fn read_routes(text: &str, routes: Spanned<DeValue<'_>>) -> Result<Vec<RouteTable>, Fault> {
    let at = |span: &Range<usize>, message: &str| Fault {
        line: line_of(text, span.start),
        message: message.to_owned(),
    };
    let span = routes.span();
    let DeValue::Array(tables) = routes.into_inner() else {
        return Err(at(&span, "routes are written as [[route]] tables"));
    };
    let mut read_tables = Vec::new();
    for table in tables {
        let span = table.span();
        let DeValue::Table(table) = table.into_inner() else {
            return Err(at(&span, "routes are written as [[route]] tables"));
        };
        let (mut head, mut overrides) = (DeTable::new(), DeTable::new());
        let mut lines = Lines { table: line_of(text, span.start), keys: Vec::new() };
        for (key, value) in table {
            lines.add(text, &key);
            match key.get_ref().as_ref() {
                "path" => head.insert(key, value),
                name if ProcessOverrides::KEYS.contains(&name) => {
                    let message = format!(
                        "`{name}` is not a setting of a route: it goes above the first [[route]]"
                    );
                    return Err(at(&key.span(), &message));
                }
                _ => overrides.insert(key, value),
            };
        }
        if head.is_empty() {
            return Err(at(&span, "a [[route]] needs a `path`"));
        }
        read_tables.push(RouteTable {
            path: read::<PathOnly>(head, span.clone())
                .map_err(|error| Fault::new(text, &error))?
                .path,
            overrides: read(overrides, span.clone()).map_err(|error| Fault::new(text, &error))?,
            lines,
        });
    }
    Ok(read_tables)
}

fn read<T: for<'de> Deserialize<'de>>(
    table: DeTable<'_>,
    span: Range<usize>,
) -> Result<T, toml::de::Error> {
    T::deserialize(toml::de::Deserializer::from(Spanned::new(span, table)))
}

/// What is wrong, and where.
#[derive(Debug)]
struct Fault {
    line: usize,
    message: String,
}

impl Fault {
    fn new(text: &str, error: &toml::de::Error) -> Self {
        let span = error.span().unwrap_or(0..0);
        let line = line_of(text, span.start);
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        // A bad value is named by its key. The value itself may be a secret.
        let start = text[..span.start.min(text.len())].rfind('\n').map_or(0, |end| end + 1);
        let key = text[start..span.start.min(text.len())].split_once('=');
        Self {
            line,
            message: match key {
                Some((key, _)) => format!("{}: {message}", key.trim()),
                None => message,
            },
        }
    }
}

impl Fault {
    /// The top of the file has more keys than the reader of the rest knows.
    fn with_process_keys(mut self) -> Self {
        if self.message.starts_with("unknown field") {
            let keys = ProcessOverrides::KEYS.map(|key| format!("`{key}`")).join(", ");
            self.message = format!("{}, {keys}, `[[route]]`", self.message);
        }
        self
    }
}

fn line_of(text: &str, position: usize) -> usize {
    text.as_bytes().iter().take(position).filter(|byte| **byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn fault(text: &str) -> (usize, String) {
        let fault = File::parse(text).unwrap_err();
        (fault.line, fault.message)
    }

    #[test]
    fn every_fault_names_its_line() {
        let (line, message) = fault("lease = \"30s\"\nleese = \"30s\"\n");
        assert_eq!(line, 2);
        assert!(message.contains("leese"), "{message}");
        assert!(message.contains("`lease`") && message.contains("`listen`"), "{message}");

        let (line, message) = fault("\n\nretention = \"60\"\n");
        assert_eq!(line, 3);
        assert!(message.starts_with("retention: `60` is not a duration"), "{message}");

        let (line, message) = fault("lease = 30s\n");
        assert_eq!((line, message.is_empty()), (1, false));

        let (line, message) = fault("[[route]]\npath = \"/a\"\nlisten = \"127.0.0.1:1\"\n");
        assert_eq!(line, 3);
        assert!(message.contains("listen"), "{message}");

        let (line, message) = fault("lease = \"1s\"\n[[route]]\nprotect = false\n");
        assert_eq!(line, 2);
        assert!(message.contains("path"), "{message}");

        let (line, _) = fault("[[route]]\npath = \"/a\"\n[[route]]\npath = \"/b\"\nmethods = []\n");
        assert_eq!(line, 5);

        let (line, message) = fault("[[route]]\npath = \"a\"\n");
        assert_eq!(line, 2);
        assert!(message.starts_with("path: "), "{message}");
    }

    #[test]
    fn a_secret_in_a_bad_value_is_not_shown() {
        let (_, message) = fault("upstream = \"http://user:hunter2@host\"\n");
        assert!(!message.contains("hunter2"), "{message}");
    }

    #[test]
    fn process_keys_are_what_the_process_reads() {
        for key in ProcessOverrides::KEYS {
            let (line, message) = fault(&format!("{key} = {{ wrong = true }}\n"));
            assert_eq!(line, 1);
            assert!(!message.contains("unknown field"), "{key}: {message}");
        }
    }

    #[test]
    fn lists_and_numbers_need_no_quotes() {
        let file = File::parse(
            "methods = [\"PUT\"]\ninline_body = 1024\nmax_in_flight = 8\nkey_reused_status = 409\n",
        )
        .unwrap();
        assert_eq!(file.default.methods().unwrap(), [http::Method::PUT]);
    }
}
