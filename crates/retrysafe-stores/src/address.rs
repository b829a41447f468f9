//! Where a server is: `scheme://USER:PASSWORD@HOST,HOST/PATH?name=value`.
#![allow(dead_code, reason = "no store needs all of this, and not every store is built in")]

use crate::{OpenError, parameters::Parameters};

/// One server, or a list of them. User and password are in no message and never shown.
pub(crate) struct Address<'a> {
    /// In lower case.
    scheme: &'a str,
    /// With the `@` at its end, or empty.
    user: &'a str,
    hosts: &'a str,
    /// With the slash at its start, or empty.
    path: &'a str,
    query: &'a str,
}

impl<'a> Address<'a> {
    /// Takes apart what follows the colon.
    pub(crate) fn parse(scheme: &'a str, rest: &'a str) -> Result<Self, OpenError> {
        let rest = rest
            .strip_prefix("//")
            .ok_or_else(|| OpenError::url(format!("the store `{scheme}:` is `{scheme}://HOST`")))?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, after) = rest.split_at(end);
        // What follows may be the rest of a password. It is not shown.
        if after.contains(['@', '#']) {
            return Err(OpenError::url(format!(
                "in the URL of the store `{scheme}:` special characters of user and password are \
                 percent-encoded: `/` is %2F, `?` is %3F, `#` is %23, `@` is %40"
            )));
        }
        let host = authority.rfind('@').map_or(0, |at| at + 1);
        let (user, hosts) = authority.split_at(host);
        if hosts.split(',').any(|host| host.is_empty() || host.starts_with(':')) {
            return Err(OpenError::url(format!(
                "the URL of the store `{scheme}:` lacks a host: {scheme}://HOST:PORT"
            )));
        }
        let (path, query) = after.split_once('?').unwrap_or((after, ""));
        Ok(Self { scheme, user, hosts, path, query })
    }

    /// What is said behind the `?`.
    pub(crate) fn parameters(&self) -> Result<Parameters<'a>, OpenError> {
        Parameters::of(self.scheme, self.query)
    }

    /// The URL for the driver, without what is said behind the `?`.
    pub(crate) fn url(&self) -> String {
        format!("{}://{}{}{}", self.scheme, self.user, self.hosts, self.path)
    }

    /// The URL as it may be shown: without user and password.
    pub(crate) fn shown(&self) -> String {
        let mark = if self.query.is_empty() { "" } else { "?" };
        format!("{}://{}{}{mark}{}", self.scheme, self.hosts, self.path, self.query)
    }

    pub(crate) fn hosts(&self) -> impl Iterator<Item = &'a str> {
        self.hosts.split(',')
    }

    /// Refuses a list. `else_what` says where one belongs.
    pub(crate) fn one_host(&self, else_what: &str) -> Result<(), OpenError> {
        match self.hosts().nth(1) {
            None => Ok(()),
            Some(_) => {
                let scheme = self.scheme;
                Err(OpenError::url(format!("the store `{scheme}:` is one server{else_what}")))
            }
        }
    }

    /// With the `@` at its end, or empty.
    pub(crate) fn user(&self) -> &'a str {
        self.user
    }

    /// Whether something follows the hosts.
    pub(crate) fn has_path(&self) -> bool {
        self.path.len() > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s3_what_may_be_shown_has_no_user_and_no_password() {
        let rest = "//orders:sec,ret%40@a:1,+b/shop?table=t";
        let address = Address::parse("postgres", rest).unwrap();
        assert_eq!(address.url(), "postgres://orders:sec,ret%40@a:1,+b/shop");
        assert_eq!(address.shown(), "postgres://a:1,+b/shop?table=t");
        assert_eq!(address.hosts().collect::<Vec<_>>(), ["a:1", "+b"]);
        // A password with an `@` in it ends at the last one.
        assert_eq!(Address::parse("redis", "//:p@ss@a/1").unwrap().shown(), "redis://a/1");
    }

    #[test]
    fn s3_a_mistake_is_one_line_without_the_password() {
        for (rest, says) in [
            ("u:secret@a", "redis://HOST"),
            ("", "redis://HOST"),
            ("//", "lacks a host"),
            ("//u:secret@", "lacks a host"),
            ("//u:secret@:6379", "lacks a host"),
            ("//a,,b", "lacks a host"),
            ("//u:se/cret@a", "%2F"),
            ("//u:12/secret@a", "%2F"),
            ("//u:se?secret=1@a", "%3F"),
            ("//u:se#secret@a", "%23"),
        ] {
            let error = Address::parse("redis", rest).err().unwrap();
            let line = error.to_string();
            assert!(error.is_config() && line.contains(says), "{rest}: {line}");
            assert!(!line.contains("cret") && !line.contains('\n'), "{rest}: {line}");
        }
    }
}
