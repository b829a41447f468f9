//! Several primaries in one URL.

use std::fmt;

use retrysafe_core::ConfigError;

/// One primary of a URL that names several. `Debug` shows no password.
#[derive(Clone, PartialEq, Eq)]
pub struct Host {
    /// Its name among the [`Primaries`](crate::Primaries): the host and the port, as they were
    /// written.
    pub name: String,
    /// Whether it comes or goes.
    pub role: Role,
    /// The URL of this one alone.
    pub url: String,
}

/// Whether a primary stays, or is the one by which the list changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// In the list before and after.
    Staying,
    /// Not in the list of before.
    Joining,
    /// Not in the list of after.
    Leaving,
}

/// Takes a URL that names several primaries apart: `postgres://USER:PASSWORD@a,b:5433,c/DATABASE`.
///
/// Before a host, `+` says that it is joining, and `-` that it is leaving. A name is what is written
/// there, so it must not be written in another way later: `a` and `a:5432` are two names.
///
/// ```
/// use retrysafe_sqlx::{Role, hosts};
///
/// let hosts = hosts("postgres://orders:secret@a,b:5433,+c/orders?sslmode=require")?;
/// assert_eq!(hosts[1].url, "postgres://orders:secret@b:5433/orders?sslmode=require");
/// assert_eq!((hosts[2].name.as_str(), hosts[2].role), ("c", Role::Joining));
/// # Ok::<(), retrysafe_core::ConfigError>(())
/// ```
///
/// # Errors
///
/// If it has no hosts, or an empty one.
pub fn hosts(url: &str) -> Result<Vec<Host>, ConfigError> {
    // The URL holds a password, so the errors don't quote it.
    let wrong = |problem: &str| ConfigError::new("store", problem);
    let start = url.find("://").ok_or_else(|| wrong("not a URL"))? + "://".len();
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    let authority = &url[start..end];
    let list = start + authority.rfind('@').map_or(0, |at| at + 1);
    let (before, after) = (&url[..list], &url[end..]);
    url[list..end]
        .split(',')
        .map(|written| {
            let (role, name) = match written.split_at_checked(1) {
                Some(("+", name)) => (Role::Joining, name),
                Some(("-", name)) => (Role::Leaving, name),
                _ => (Role::Staying, written),
            };
            if name.is_empty() || name.starts_with(':') {
                return Err(wrong("a host of the list is empty"));
            }
            Ok(Host { name: name.to_owned(), role, url: format!("{before}{name}{after}") })
        })
        .collect()
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("name", &self.name)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_taken_apart() {
        let list = hosts("postgres://u:p,w%40@a,-[::1]:5433/d").unwrap();
        let urls: Vec<_> = list.iter().map(|host| host.url.as_str()).collect();
        assert_eq!(urls, ["postgres://u:p,w%40@a/d", "postgres://u:p,w%40@[::1]:5433/d"]);
        assert_eq!((list[1].name.as_str(), list[1].role), ("[::1]:5433", Role::Leaving));
        let one = hosts("postgres://only").unwrap();
        assert_eq!((one.len(), one[0].url.as_str()), (1, "postgres://only"));
    }

    #[test]
    fn s3_a_bad_list_is_refused_without_showing_the_password() {
        for bad in ["a,b", "postgres://u:secret@a,,b/d", "postgres://u:secret@+/d", "x://:1"] {
            let error = hosts(bad).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
        let shown = format!("{:?}", hosts("postgres://u:secret@a/d").unwrap());
        assert!(!shown.contains("secret"), "{shown}");
    }
}
