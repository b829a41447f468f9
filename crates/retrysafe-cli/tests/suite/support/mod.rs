//! What the tests of the binary share: the binary itself, a service whose every byte is scripted,
//! and a client that speaks raw HTTP/1.1. Everything waits for events, never for time to pass.

pub(crate) mod readme;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

/// Long enough for a slow machine, so that a test that hangs fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn retrysafe() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_retrysafe"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("RETRYSAFE_")) {
        command.env_remove(name);
    }
    command.env_remove("RUST_LOG");
    command
}

/// A command that is expected to end: its exit code and what it wrote to standard error.
pub(crate) fn ends(command: &mut Command) -> (i32, String) {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let (send, ended) = mpsc::channel();
    thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).unwrap();
        let _ = send.send(text);
    });
    let Ok(text) = ended.recv_timeout(PATIENCE) else {
        child.kill().unwrap();
        panic!("it goes on instead of ending: {command:?}");
    };
    (child.wait().unwrap().code().unwrap(), text)
}

/// A running `retrysafe`, killed when it is dropped.
pub(crate) struct Running {
    child: Child,
    /// Kept open, so that it can go on printing.
    _stdout: BufReader<ChildStdout>,
    pub(crate) address: SocketAddr,
    pub(crate) admin: Option<SocketAddr>,
}

impl Running {
    /// Starts it and waits until it listens.
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut admin = None;
        let address = loop {
            let mut line = String::new();
            if stdout.read_line(&mut line).unwrap() == 0 {
                let mut stderr = String::new();
                child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
                panic!("retrysafe ended before it listened: {stderr}");
            }
            if let Some(address) = line.trim().strip_prefix("admin on http://") {
                admin = Some(address.parse().unwrap());
            }
            if let Some(address) = line.trim().strip_prefix("listening on http://") {
                break address.parse().unwrap();
            }
        };
        Self { child, _stdout: stdout, address, admin }
    }

    /// A proxy in front of a service.
    pub(crate) fn proxy(upstream: SocketAddr, flags: &[&str]) -> Self {
        let upstream = format!("http://{upstream}");
        Self::start(
            retrysafe()
                .args(["proxy", "--listen", "127.0.0.1:0", "--upstream", &upstream])
                .args(if flags.contains(&"--store") { &[][..] } else { &["--store", "memory:"] })
                .args(flags),
        )
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &id]).status().unwrap().success());
    }

    /// Ends it without a warning.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end: how it ended, and what it wrote to standard error.
    pub(crate) fn ended(mut self) -> (ExitStatus, String) {
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        (self.child.wait().unwrap(), stderr)
    }

    /// Reads its log until it ends. One that logs a lot waits for whoever does not read.
    pub(crate) fn read_log(&mut self) -> thread::JoinHandle<String> {
        let mut stderr = self.child.stderr.take().unwrap();
        thread::spawn(move || {
            let mut log = String::new();
            stderr.read_to_string(&mut log).unwrap();
            log
        })
    }

    /// Lets go of its log, as a log shipper does that has crashed.
    pub(crate) fn hang_up_the_log(&mut self) {
        self.child.stderr.take().unwrap();
    }

    /// Waits for its end, when its log is read elsewhere.
    pub(crate) fn ended_silently(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Waits until a line of its log says something, and answers what was logged until then.
    pub(crate) fn logged(&mut self, text: &str) -> String {
        let stderr = self.child.stderr.as_mut().unwrap();
        let (mut log, mut byte) = (Vec::new(), [0]);
        loop {
            assert_eq!(stderr.read(&mut byte).unwrap(), 1, "it ended without saying `{text}`");
            log.push(byte[0]);
            if byte[0] == b'\n' && String::from_utf8_lossy(&log).contains(text) {
                return String::from_utf8_lossy(&log).into_owned();
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A service that hands its connections to the test.
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    connections: Receiver<Connection>,
}

impl Service {
    pub(crate) fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (send, connections) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if send.send(Connection::of(stream.unwrap())).is_err() {
                    return;
                }
            }
        });
        Self { address, connections }
    }

    /// The next connection that is made.
    pub(crate) fn accept(&self) -> Connection {
        self.connections.recv_timeout(PATIENCE).expect("the proxy did not connect")
    }

    /// Whether another connection was made meanwhile.
    pub(crate) fn was_connected_to(&self) -> bool {
        self.connections.try_recv().is_ok()
    }

    /// Answers every request of every connection, whose bodies are long and all have a
    /// `Content-Length`, forever.
    pub(crate) fn always_to_long_bodies(self, response: &'static str) -> SocketAddr {
        let address = self.address;
        thread::spawn(move || {
            while let Ok(mut connection) = self.connections.recv() {
                thread::spawn(move || {
                    while let Some(head) = connection.head() {
                        let length = header(&head, "content-length").unwrap().parse().unwrap();
                        if connection.skip(length) < length {
                            return;
                        }
                        connection.send(response);
                    }
                });
            }
        });
        address
    }

    /// Answers every request of every connection, forever.
    pub(crate) fn always(self, response: &'static str) -> SocketAddr {
        let address = self.address;
        thread::spawn(move || {
            while let Ok(mut connection) = self.connections.recv() {
                thread::spawn(move || {
                    while connection.request().is_some() {
                        connection.send(response);
                    }
                });
            }
        });
        address
    }
}

/// An address where nobody listens.
pub(crate) fn nowhere() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// One end of a connection.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub(crate) fn of(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub(crate) fn to(address: SocketAddr) -> Self {
        Self::of(TcpStream::connect(address).unwrap())
    }

    pub(crate) fn send(&mut self, text: &str) {
        self.stream.get_mut().write_all(text.as_bytes()).unwrap();
    }

    /// Sends bytes to somebody who may have closed already.
    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// The next message, head and body; `None` if the connection was closed.
    pub(crate) fn request(&mut self) -> Option<String> {
        let mut message = self.head()?;
        let lower = message.to_ascii_lowercase();
        if let Some(length) = header(&lower, "content-length") {
            let mut body = vec![0; length.parse().unwrap()];
            self.stream.read_exact(&mut body).unwrap();
            message.push_str(&String::from_utf8(body).unwrap());
        } else if header(&lower, "transfer-encoding").as_deref() == Some("chunked") {
            loop {
                let mut size = String::new();
                self.stream.read_line(&mut size).unwrap();
                let mut chunk = vec![0; usize::from_str_radix(size.trim(), 16).unwrap() + 2];
                self.stream.read_exact(&mut chunk).unwrap();
                if chunk.len() == 2 {
                    break;
                }
                message.push_str(std::str::from_utf8(&chunk[..chunk.len() - 2]).unwrap());
            }
        }
        Some(message)
    }

    /// The next message's head.
    pub(crate) fn head(&mut self) -> Option<String> {
        let mut head = String::new();
        loop {
            let before = head.len();
            if self.stream.read_line(&mut head).unwrap_or(0) == 0 {
                assert!(head.is_empty(), "cut off: {head}");
                return None;
            }
            if &head[before..] == "\r\n" {
                return Some(head);
            }
        }
    }

    /// Exactly so many bytes.
    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Reads and forgets so many bytes, or fewer if the connection is closed before.
    pub(crate) fn skip(&mut self, count: u64) -> u64 {
        std::io::copy(&mut self.stream.by_ref().take(count), &mut std::io::sink()).unwrap_or(0)
    }

    /// Everything until the other end closes, cleanly or not.
    pub(crate) fn rest(mut self) -> String {
        let mut rest = Vec::new();
        let _ = self.stream.read_to_end(&mut rest);
        String::from_utf8(rest).unwrap()
    }
}

/// The value of a header in a message.
pub(crate) fn header(message: &str, name: &str) -> Option<String> {
    message.lines().take_while(|line| !line.is_empty()).skip(1).find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

/// Sends a request on a connection of its own and answers with the response.
pub(crate) fn exchange(address: SocketAddr, request: &str) -> String {
    let mut connection = Connection::to(address);
    connection.send(request);
    connection.request().expect("the proxy closed the connection without an answer")
}

pub(crate) fn get(address: SocketAddr, path: &str) -> String {
    exchange(address, &format!("GET {path} HTTP/1.1\r\nHost: shop.example\r\n\r\n"))
}

/// A POST; `headers` are whole lines, each with its end.
pub(crate) fn post(path: &str, headers: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: shop.example\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

pub(crate) fn status(response: &str) -> u16 {
    response.split(' ').nth(1).unwrap().parse().unwrap()
}

pub(crate) const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
