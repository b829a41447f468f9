//! Free ports, and the address in a URL.

use std::{
    hash::{BuildHasher as _, RandomState},
    net::{Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs as _},
    ops::Range,
};

/// Below the range that systems take the ports of outgoing connections from (and so are these plus
/// 10000, where a Redis cluster listens too): a client that dials a server which is down for a
/// moment would else in time get the server's own port, connect to itself, and keep the server from
/// coming back.
const PORTS: Range<u16> = 10_240..22_000;

/// A port that was free just now.
pub(super) fn free_port() -> u16 {
    let span = u64::from(PORTS.end - PORTS.start);
    let port = || PORTS.start + u16::try_from(random() % span).unwrap_or_default();
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    std::iter::repeat_with(port).take(1000).find(free).expect("a free port on 127.0.0.1")
}

/// A number that is another one every time, in every process.
pub(super) fn random() -> u64 {
    RandomState::new().hash_one(0)
}

/// The part of a URL that says who connects where: `user:password@host:port`.
pub(super) struct Authority<'a> {
    pub(super) before: &'a str,
    pub(super) user: &'a str,
    pub(super) password: &'a str,
    pub(super) host: &'a str,
    pub(super) port: Option<u16>,
    pub(super) after: &'a str,
}

impl<'a> Authority<'a> {
    pub(super) fn of(url: &'a str) -> Self {
        let start = url.find("://").map_or(0, |at| at + 3);
        let end = url[start..].find(['/', '?']).map_or(url.len(), |at| start + at);
        let (who, place) = match url[start..end].rsplit_once('@') {
            Some((who, place)) => (who, place),
            None => ("", &url[start..end]),
        };
        let (user, password) = who.split_once(':').unwrap_or((who, ""));
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().ok()),
            None => (place, None),
        };
        let before = &url[..end - place.len()];
        Self { before, user, password, host, port, after: &url[end..] }
    }

    /// The same server, another database: what follows the host, but for the parameters.
    pub(super) fn with_database(&self, name: &str) -> String {
        let parameters = self.after.find('?').map_or("", |at| &self.after[at..]);
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        format!("{}{}{port}/{name}{parameters}", self.before, self.host)
    }

    /// The same user and database at another address.
    pub(super) fn at(&self, address: SocketAddr) -> String {
        format!("{}{address}{}", self.before, self.after)
    }

    /// Where it is.
    pub(super) fn address(&self, default_port: u16) -> SocketAddr {
        let place = (self.host, self.port.unwrap_or(default_port));
        let found = place.to_socket_addrs().ok().and_then(|mut all| all.next());
        found.unwrap_or_else(|| panic!("no such host: {}", self.host))
    }
}
