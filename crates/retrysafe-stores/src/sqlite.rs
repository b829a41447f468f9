//! `sqlite:PATH`

use std::path::{Path, PathBuf};

use retrysafe_sqlite::{SqliteStore, Synchronous};
use tokio::task::spawn_blocking;

use crate::{
    OpenError, OpenStore,
    opened::Absent,
    parameters::{Parameters, decode},
};

pub(crate) async fn open(rest: &str, absent: Absent) -> Result<OpenStore, OpenError> {
    let url = SqliteUrl::parse(rest)?;
    let shown = url.shown();
    let SqliteUrl { path, synchronous } = url;
    // Files are opened by blocking calls, which may wait for another process.
    let opening = spawn_blocking(move || {
        if absent == Absent::Refuse && !path.exists() {
            return Err(OpenError::missing(format!("there is no store at {}", path.display())));
        }
        let open = SqliteStore::builder(path).synchronous(synchronous).open();
        open.map_err(|error| OpenError::store(false, error))
    });
    let store = opening.await.map_err(|stopped| OpenError::store(false, stopped))??;
    Ok(OpenStore::new(store, shown))
}

#[derive(Debug, PartialEq)]
struct SqliteUrl {
    path: PathBuf,
    synchronous: Synchronous,
}

impl SqliteUrl {
    /// Reads what follows the colon.
    fn parse(rest: &str) -> Result<Self, OpenError> {
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = decode(path.strip_prefix("//").unwrap_or(path))?;
        if path.is_empty() || path == ":memory:" {
            return Err(OpenError::url(
                "the store `sqlite:` needs the path of a file: sqlite:retrysafe.db; for a store \
                 that is gone with the process use memory:",
            ));
        }
        let mut parameters = Parameters::of("sqlite", query)?;
        let synchronous = parameters.value("synchronous", "full or normal", |said| match said {
            "full" => Some(Synchronous::Full),
            "normal" => Some(Synchronous::Normal),
            _ => None,
        })?;
        parameters.nothing_else(", and a `?` in a path is written %3F")?;
        Ok(Self { path: path.into(), synchronous: synchronous.unwrap_or(Synchronous::Full) })
    }

    /// Read again, it names the same file.
    fn shown(&self) -> String {
        let path = escaped(&self.path);
        let normal = matches!(self.synchronous, Synchronous::Normal);
        format!("sqlite:{path}{}", if normal { "?synchronous=normal" } else { "" })
    }
}

fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace('%', "%25").replace('?', "%3F")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(path: &str, synchronous: Synchronous) -> SqliteUrl {
        SqliteUrl { path: path.into(), synchronous }
    }

    #[test]
    fn every_spelling_is_understood() {
        use Synchronous::{Full, Normal};
        for (text, expected) in [
            ("retrysafe.db", url("retrysafe.db", Full)),
            ("//data/retrysafe.db", url("data/retrysafe.db", Full)),
            ("/var/lib/a.db", url("/var/lib/a.db", Full)),
            ("///var/lib/a.db", url("/var/lib/a.db", Full)),
            ("a.db?synchronous=full", url("a.db", Full)),
            ("a.db?synchronous=normal", url("a.db", Normal)),
            ("a%20%3f%25b.db", url("a ?%b.db", Full)),
            ("C:/data/a.db", url("C:/data/a.db", Full)),
        ] {
            let parsed = SqliteUrl::parse(text).unwrap();
            assert_eq!(parsed, expected, "{text}");
            let shown = parsed.shown();
            assert_eq!(SqliteUrl::parse(&shown["sqlite:".len()..]).unwrap(), expected, "{shown}");
        }
    }

    #[test]
    fn every_mistake_is_one_line_that_says_what_to_do() {
        for (text, says) in [
            ("", "path"),
            (":memory:", "memory:"),
            ("a.db?mode=ro", "`mode`"),
            ("a.db?synchronous=off", "full or normal"),
            ("a.db?synchronous=full&synchronous=normal", "twice"),
            ("a%2", "%25"),
            ("a%00", "%25"),
            ("a%+1", "%25"),
        ] {
            let error = SqliteUrl::parse(text).unwrap_err();
            let line = error.to_string();
            assert!(error.is_config() && line.contains(says), "{text}: {line}");
            assert!(!line.contains('\n'), "{text}: {line}");
        }
    }
}
