//! A wire fails as it was told to, and only then. Redis' protocol is plain enough to see it by hand.

use std::{io, time::Duration};

use retrysafe_testkit::servers::{RedisServer, Wire};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// See `servers.rs`.
const A_WHILE: Duration = Duration::from_millis(300);

struct Client(TcpStream);

impl Client {
    async fn of(wire: &Wire) -> Self {
        Self(TcpStream::connect(wire.addr()).await.expect("the wire takes it"))
    }

    /// An inline command, and its answer of one line.
    async fn ask(&mut self, command: &str) -> io::Result<String> {
        self.0.write_all(format!("{command}\r\n").as_bytes()).await?;
        self.answer().await
    }

    async fn answer(&mut self) -> io::Result<String> {
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n") {
            answer.push(self.0.read_u8().await?);
        }
        Ok(String::from_utf8_lossy(&answer).trim_end().to_owned())
    }
}

async fn wire() -> (RedisServer, Wire) {
    let redis = RedisServer::start().await;
    let wire = Wire::to(redis.addr()).await;
    (redis, wire)
}

fn is_reset(answer: io::Result<String>) -> bool {
    answer.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
}

#[tokio::test]
async fn round_trips_are_counted() {
    let (_redis, wire) = wire().await;
    let mut client = Client::of(&wire).await;
    assert_eq!(client.ask("PING").await.unwrap(), "+PONG");
    assert_eq!(client.ask("PING\r\nPING").await.unwrap(), "+PONG");
    assert_eq!(client.answer().await.unwrap(), "+PONG");
    assert_eq!((wire.round_trips(), wire.connections()), (2, 1));
}

#[tokio::test]
async fn cut_before_the_server_has_seen_nothing() {
    let (redis, wire) = wire().await;
    let mut client = Client::of(&wire).await;
    assert_eq!(client.ask("INCR cut_before").await.unwrap(), ":1");
    wire.cut_before();
    assert!(wire.awaits_cut());
    assert!(is_reset(client.ask("INCR cut_before").await));
    assert!(!wire.awaits_cut());
    assert_eq!(redis.command(&["GET", "cut_before"]).await, "1");
    // Once only.
    assert_eq!(Client::of(&wire).await.ask("INCR cut_before").await.unwrap(), ":2");
}

#[tokio::test]
async fn cut_after_the_server_has_done_it() {
    let (redis, wire) = wire().await;
    let mut client = Client::of(&wire).await;
    wire.cut_after();
    assert!(is_reset(client.ask("INCR cut_after").await));
    assert_eq!(redis.command(&["GET", "cut_after"]).await, "1");
    assert_eq!(wire.round_trips(), 0);
}

#[tokio::test]
async fn cut_within_the_answer() {
    let (redis, wire) = wire().await;
    let mut client = Client::of(&wire).await;
    wire.cut_within();
    assert!(is_reset(client.ask("INCR cut_within").await), "a part of an answer is none");
    assert_eq!(redis.command(&["GET", "cut_within"]).await, "1");
}

#[tokio::test]
async fn a_cut_waits_for_the_request_that_is_meant() {
    let (redis, wire) = wire().await;
    let mut client = Client::of(&wire).await;
    wire.cut_before_one_with(b"meant 2");
    assert_eq!(client.ask("SET meant 1").await.unwrap(), "+OK");
    // In two pieces.
    client.0.write_all(b"SET mea").await.unwrap();
    while redis.command(&["CLIENT", "LIST"]).await.matches("qbuf=7").count() == 0 {}
    assert!(is_reset(client.ask("nt 2").await));
    assert_eq!(redis.command(&["GET", "meant"]).await, "1");

    let mut client = Client::of(&wire).await;
    wire.cut_after_one_with(b"meant 3");
    assert_eq!(client.ask("SET meant 2").await.unwrap(), "+OK");
    assert!(is_reset(client.ask("SET meant 3").await));
    assert_eq!(redis.command(&["GET", "meant"]).await, "3");
}

#[tokio::test]
async fn what_is_stalled_arrives_later() {
    let (redis, wire) = wire().await;
    let mut client = Client::of(&wire).await;
    assert_eq!(client.ask("PING").await.unwrap(), "+PONG");
    wire.stall();
    assert!(timeout(A_WHILE, client.ask("INCR stalled")).await.is_err());
    assert_eq!(redis.command(&["GET", "stalled"]).await, "");
    wire.unstall();
    assert_eq!(client.answer().await.unwrap(), ":1");

    wire.stall_answers();
    assert!(timeout(A_WHILE, client.ask("INCR stalled")).await.is_err());
    assert_eq!(redis.command(&["GET", "stalled"]).await, "2");
    wire.unstall();
    assert_eq!(client.answer().await.unwrap(), ":2");
}

#[tokio::test]
async fn unplugged_it_looks_like_a_server_that_is_down() {
    let (_redis, wire) = wire().await;
    let mut client = Client::of(&wire).await;
    assert_eq!(client.ask("PING").await.unwrap(), "+PONG");
    wire.refuse().await;
    assert!(client.answer().await.is_err());
    let refused = TcpStream::connect(wire.addr()).await.map_err(|error| error.kind());
    assert_eq!(refused.err(), Some(io::ErrorKind::ConnectionRefused));
    wire.accept().await;
    assert_eq!(Client::of(&wire).await.ask("PING").await.unwrap(), "+PONG");
}

#[tokio::test]
async fn it_switches_to_another_server() {
    let (_redis, wire) = wire().await;
    let other = RedisServer::start().await;
    other.command(&["SET", "here", "yes"]).await;
    let mut client = Client::of(&wire).await;
    assert_eq!(client.ask("EXISTS here").await.unwrap(), ":0");
    wire.switch_to(other.addr()).await;
    assert!(is_reset(client.answer().await));
    assert_eq!(Client::of(&wire).await.ask("EXISTS here").await.unwrap(), ":1");
}

#[tokio::test]
async fn a_url_goes_through_it() {
    let (_redis, wire) = wire().await;
    let addr = wire.addr();
    for (url, through) in [
        ("redis://localhost", format!("redis://{addr}")),
        ("redis://:p@ss@localhost:1/2", format!("redis://:p@ss@{addr}/2")),
        (
            "postgres://u:p@h:1/d?sslmode=disable",
            format!("postgres://u:p@{addr}/d?sslmode=disable"),
        ),
        ("nats://u:p@127.0.0.1:4222", format!("nats://u:p@{addr}")),
    ] {
        assert_eq!(wire.url_for(url), through);
    }
}
