//! A server that does what a test says, down to the bytes.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use retrysafe_client::{Backoff, Client, ClientBuilder, OutcomeUnknown, RetryPolicy};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn key(&self) -> &str {
        self.header("idempotency-key").expect("a key")
    }
}

/// What the server does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Answer {
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: String,
    },
    /// Half of an answer, and then a reset.
    Truncated,
    /// The whole request was read, and nothing is answered.
    Reset,
    /// Neither an answer nor an end.
    Silence,
    /// This, as soon as it is true.
    Once(watch::Receiver<bool>, Box<Reply>),
}

pub(crate) fn answer(status: u16) -> Reply {
    Reply::Answer { status, headers: Vec::new(), body: String::from("done") }
}

impl Reply {
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        if let Self::Answer { headers, .. } = &mut self {
            headers.push((name, value.into()));
        }
        self
    }

    pub(crate) fn saying(mut self, text: impl Into<String>) -> Self {
        if let Self::Answer { body, .. } = &mut self {
            *body = text.into();
        }
        self
    }
}

/// A problem as retrysafe answers it.
pub(crate) fn problem(status: u16, code: &str) -> Reply {
    let text = format!(r#"{{"code":"{code}","status":{status}}}"#);
    answer(status).with("content-type", "application/problem+json").saying(text)
}

type Script = dyn Fn(usize, &Seen) -> Reply + Send + Sync;

/// A server of one connection for each request.
pub(crate) struct Server {
    address: SocketAddr,
    seen: watch::Sender<Vec<Seen>>,
    listening: JoinHandle<()>,
}

impl Server {
    /// Answers as the script says; it is told the number of the request, from 0, and what it is.
    pub(crate) async fn start(
        script: impl Fn(usize, &Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, script): (_, Arc<Script>) = (watch::Sender::default(), Arc::new(script));
        let shared = seen.clone();
        let listening = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                tokio::spawn(serve(stream, shared.clone(), script.clone()));
            }
        });
        Self { address, seen, listening }
    }

    /// Gives these replies, and the last of them for ever.
    pub(crate) async fn replying(replies: Vec<Reply>) -> Self {
        Self::start(move |number, _| replies[number.min(replies.len() - 1)].clone()).await
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.borrow().clone()
    }

    pub(crate) fn asked(&self) -> usize {
        self.seen.borrow().len()
    }

    /// Waits for the first request.
    pub(crate) async fn is_asked(&self) {
        self.is_asked_times(1).await;
    }

    /// Waits for so many requests.
    pub(crate) async fn is_asked_times(&self, times: usize) {
        self.seen.subscribe().wait_for(|seen| seen.len() >= times).await.unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn serve(mut stream: TcpStream, seen: watch::Sender<Vec<Seen>>, script: Arc<Script>) {
    let Some(request) = read(&mut stream).await else { return };
    let mut number = 0;
    seen.send_modify(|seen| {
        number = seen.len();
        seen.push(request.clone());
    });
    let mut reply = script(number, &request);
    while let Reply::Once(mut now, then) = reply {
        let _ = now.wait_for(|now| *now).await;
        reply = *then;
    }
    match reply {
        Reply::Answer { status, headers, body } => {
            let headers: String =
                headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let length = body.len();
            let text = format!(
                "HTTP/1.1 {status} -\r\ncontent-length: {length}\r\nconnection: close\r\n\
                 {headers}\r\n{body}"
            );
            let _ = stream.write_all(text.as_bytes()).await;
        }
        Reply::Truncated => {
            let text = "HTTP/1.1 201 Created\r\ncontent-length: 100\r\n\r\nhalf of it";
            let _ = stream.write_all(text.as_bytes()).await;
        }
        Reply::Reset => _ = stream.set_zero_linger(),
        Reply::Silence | Reply::Once(..) => _ = stream.read(&mut [0]).await,
    }
}

pub(crate) async fn read(stream: &mut TcpStream) -> Option<Seen> {
    let mut bytes = Vec::new();
    loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let mut lines = head.lines();
        let mut first = lines.next()?.split(' ');
        let headers: Vec<_> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let seen = Seen {
            method: first.next()?.to_owned(),
            path: first.next()?.to_owned(),
            headers,
            body: body.to_owned(),
        };
        let chunked = seen.header("transfer-encoding") == Some("chunked");
        let length = seen.header("content-length").map_or(0, |it| it.parse().unwrap());
        if if chunked { body.ends_with("0\r\n\r\n") } else { body.len() >= length } {
            return Some(seen);
        }
    }
}

/// Retries without pauses worth waiting for.
pub(crate) fn impatient() -> RetryPolicy {
    let mut policy = RetryPolicy::default();
    policy.backoff = Backoff {
        transient: Duration::from_millis(1),
        throttled: Duration::from_millis(1),
        ..Backoff::default()
    };
    policy
}

pub(crate) fn builder() -> ClientBuilder {
    Client::builder().retries(impatient())
}

pub(crate) fn client() -> Client {
    builder().build().unwrap()
}

/// What is unknown, of a call that ended so.
pub(crate) fn unknown(result: reqwest_middleware::Result<reqwest::Response>) -> OutcomeUnknown {
    match result {
        Ok(response) => panic!("it was answered: {}", response.status()),
        Err(error) => OutcomeUnknown::from_error(error).unwrap(),
    }
}

/// An address that nobody listens on.
pub(crate) async fn closed() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}/", listener.local_addr().unwrap())
}
