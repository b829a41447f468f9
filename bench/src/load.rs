//! A load generator that costs as little as possible, so that the server is what is measured:
//! connections that are kept alive on one thread, requests that were written beforehand.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use hdrhistogram::Histogram;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    runtime::{Builder, Runtime},
    task::yield_now,
};

use crate::{
    Outcome,
    orders::{Wire, fresh_key},
};

const CONNECTIONS: usize = 32;

/// Which operations are asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Every request for another one.
    First,
    /// Every request for one of those that [`Load::new`] has finished.
    Again,
}

/// Clients of one path of one server.
pub(crate) struct Load {
    runtime: Runtime,
    clients: Vec<Client>,
    ask: Ask,
}

struct Client {
    connection: TcpStream,
    received: Vec<u8>,
    wire: Wire,
    finished: String,
}

impl Load {
    /// Connects.
    pub(crate) fn new(address: SocketAddr, path: &str, ask: Ask) -> Outcome<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let clients = runtime.block_on(async {
            let mut clients = Vec::new();
            for _ in 0..CONNECTIONS {
                let connection = TcpStream::connect(address).await?;
                connection.set_nodelay(true)?;
                let (received, wire, finished) =
                    (Vec::with_capacity(4096), Wire::new(path), fresh_key());
                let mut client = Client { connection, received, wire, finished };
                if ask == Ask::Again {
                    client.order(Ask::First, Some(client.finished.clone())).await?;
                }
                clients.push(client);
            }
            Outcome::Ok(clients)
        })?;
        Ok(Self { runtime, clients, ask })
    }

    /// Requests per second with every connection busy all the time.
    pub(crate) fn throughput(&mut self, window: Duration) -> Outcome<f64> {
        let ask = self.ask;
        let started = Instant::now();
        let clients = self.clients.iter_mut().map(async |client| {
            let mut answered = 0;
            while started.elapsed() < window {
                client.order(ask, None).await?;
                answered += 1;
            }
            Outcome::Ok(answered)
        });
        let answered: u64 =
            self.runtime.block_on(join_all(clients)).into_iter().sum::<Outcome<u64>>()?;
        Ok(answered as f64 / started.elapsed().as_secs_f64())
    }

    /// Latencies in nanoseconds at a rate that does not depend on how fast the answers come.
    ///
    /// Each counts from when its request was due, not from when a connection was free to send it:
    /// a server that stalls is charged for everything that was due meanwhile.
    pub(crate) fn latency(&mut self, rate: f64, window: Duration) -> Outcome<Histogram<u64>> {
        let ask = self.ask;
        let next = &AtomicU64::new(0);
        let started = Instant::now();
        let clients = self.clients.iter_mut().map(async |client| {
            let mut latencies = Histogram::new_with_bounds(1, 60_000_000_000, 3)?;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let due = Duration::from_secs_f64(number as f64 / rate);
                if due >= window {
                    return Outcome::Ok(latencies);
                }
                // Timers wake up to a millisecond late; this thread has nothing else to do.
                while started.elapsed() < due {
                    yield_now().await;
                }
                client.order(ask, None).await?;
                let latency = started.elapsed().saturating_sub(due);
                latencies.saturating_record(u64::try_from(latency.as_nanos())?);
            }
        });
        let mut all = Histogram::new_with_bounds(1, 60_000_000_000, 3)?;
        for latencies in self.runtime.block_on(join_all(clients)) {
            all.add(latencies?)?;
        }
        Ok(all)
    }
}

impl Client {
    /// Sends an order and reads the answer.
    async fn order(&mut self, ask: Ask, key: Option<String>) -> Outcome<()> {
        let fresh;
        let key = match (key, ask) {
            (Some(key), _) => {
                fresh = key;
                &fresh
            }
            (None, Ask::Again) => &self.finished,
            (None, Ask::First) => {
                fresh = fresh_key();
                &fresh
            }
        };
        self.connection.write_all(self.wire.with_key(key)).await?;
        self.received.clear();
        loop {
            if self.connection.read_buf(&mut self.received).await? == 0 {
                return Err("the server hung up".into());
            }
            if message_length(&self.received)?.is_some() {
                break;
            }
        }
        let head = String::from_utf8_lossy(&self.received);
        let replayed = head.contains("idempotent-replayed: true\r\n");
        if !head.starts_with("HTTP/1.1 201 ") || replayed != (ask == Ask::Again) {
            return Err(format!("an unexpected answer: {head}").into());
        }
        Ok(())
    }
}

/// The length of the message that `received` begins with, if it is there as a whole. Only messages
/// that say their length are understood.
pub(crate) fn message_length(received: &[u8]) -> Outcome<Option<usize>> {
    let Some(head) = received.windows(4).position(|it| it == b"\r\n\r\n") else { return Ok(None) };
    let length = received[..head]
        .split(|byte| *byte == b'\n')
        .find_map(|line| {
            let (name, value) = line.split_at_checked("content-length:".len())?;
            name.eq_ignore_ascii_case(b"content-length:").then_some(value)
        })
        .ok_or("a message without a content-length")?;
    let length: usize = str::from_utf8(length)?.trim().parse()?;
    let whole = head + 4 + length;
    Ok((received.len() >= whole).then_some(whole))
}
