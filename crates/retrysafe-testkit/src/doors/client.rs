//! A client that sends exactly what it is told, on a connection of its own.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// A request as it is sent.
#[derive(Clone, Debug)]
pub struct Sent {
    method: Method,
    path: &'static str,
    keys: Vec<&'static [u8]>,
    headers: Vec<(&'static str, &'static str)>,
    body: Bytes,
}

impl Sent {
    /// A request to a path below the case's own.
    pub fn new(method: Method, path: &'static str) -> Self {
        Self { method, path, keys: Vec::new(), headers: Vec::new(), body: "an order".into() }
    }

    /// Adds a line `Idempotency-Key`; `$` becomes the name of the case, so that no other has it.
    pub fn key(mut self, key: &'static [u8]) -> Self {
        self.keys.push(key);
        self
    }

    /// Says how the service answers, if it runs: see [`Service`](super::Service).
    pub fn answered(self, how: &'static str) -> Self {
        self.header("x-answer", how)
    }

    /// Adds a header.
    pub fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Sends another body.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Sends it below the path of a case, and answers when the response's head has come.
    pub(super) async fn open(&self, case: &str, address: SocketAddr) -> http::Response<Incoming> {
        let stream = TcpStream::connect(address).await.expect("the door listens");
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.expect("a new connection");
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(format!("/{case}{}", self.path))
            .header("host", "shop.example");
        if self.headers.iter().all(|(name, _)| *name != "content-type") {
            request = request.header("content-type", "text/plain");
        }
        for key in &self.keys {
            let parts: Vec<_> = key.split(|byte| *byte == b'$').collect();
            let key = parts.join(case.as_bytes());
            let key = HeaderValue::from_bytes(&key).expect("a key that HTTP can carry");
            request = request.header("idempotency-key", key);
        }
        for (name, value) in &self.headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(self.body.clone())).expect("a request");
        sender.send_request(request).await.expect("an answer")
    }

    /// Sends it, and reads the answer to its end.
    pub(super) async fn send(&self, case: &str, address: SocketAddr) -> Answer {
        Answer::read(self.open(case, address).await).await
    }
}

/// An answer that has been read to its end.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    pub(super) async fn read(response: http::Response<Incoming>) -> Self {
        let (head, body) = response.into_parts();
        let body = body.collect().await.expect("a body with an end").to_bytes();
        Self { status: head.status, headers: head.headers, body }
    }

    pub(super) fn is_replay(&self) -> bool {
        self.headers.contains_key("idempotent-replayed")
    }

    /// The code of a problem.
    pub(super) fn code(&self) -> Option<String> {
        (self.headers.get("content-type")? == "application/problem+json").then_some(())?;
        let problem: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        Some(problem["code"].as_str()?.to_owned())
    }
}
