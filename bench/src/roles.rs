//! What this program does when it starts itself as another process.

use std::io::Write as _;

use axum::{
    Router,
    body::Body,
    routing::{get, post},
};
use http::StatusCode;
use http_body_util::BodyExt as _;
use retrysafe_axum::{IdempotencyLayer, IdempotentRouter as _, MemoryStore, Scope};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::Builder,
};

use tower::make::Shared;

use crate::{
    Outcome, actix, in_process, instructions, load,
    orders::{self, Orders},
    process::LISTENING,
    tonic,
};

/// The first argument of a role.
pub(crate) const ROLE: &str = "role";
/// Answers requests without a key in process.
pub(crate) const KEYLESS: &str = "keyless";
/// Answers requests of one variant in process, for a profiler.
pub(crate) const DRIVE: &str = "drive";
/// Serves orders over HTTP.
pub(crate) const SERVE: &str = "serve";
/// Serves uploads over HTTP, guarded.
pub(crate) const UPLOADS: &str = "uploads";
/// The service behind the proxy.
pub(crate) const UPSTREAM: &str = "upstream";

/// The orders service without the layer.
pub(crate) const BARE: &str = "bare";
/// The orders service with the layer.
pub(crate) const GUARDED: &str = "guarded";

/// The doors that are driven.
pub(crate) const TOWER: &str = "tower";
pub(crate) const ACTIX: &str = "actix";
pub(crate) const TONIC: &str = "tonic";

/// Plays a role until it is over or the process is ended.
pub(crate) fn play(arguments: &[String]) -> Outcome<()> {
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [KEYLESS, BARE, requests] => {
            instructions::answer_keyless(orders::bare(), requests.parse()?)
        }
        [KEYLESS, GUARDED, requests] => {
            instructions::answer_keyless(orders::guarded(store()?)?, requests.parse()?)
        }
        [DRIVE, TOWER, variant, requests] => {
            in_process::Services::start()?.drive_many(variant, requests.parse()?)
        }
        [DRIVE, ACTIX, variant, requests] => actix::drive_many(variant, requests.parse()?),
        [DRIVE, TONIC, variant, requests] => tonic::drive_many(variant, requests.parse()?),
        [SERVE, BARE] => block_on(async { serve(orders::bare()).await }),
        [SERVE, GUARDED] => block_on(async { serve(orders::guarded(store()?)?).await }),
        [UPLOADS] => block_on(async { serve(uploads()?).await }),
        [UPSTREAM] => block_on(upstream()),
        _ => Err("an unknown role".into()),
    }
}

/// With room for every order of a run.
fn store() -> Outcome<MemoryStore> {
    Ok(MemoryStore::builder().capacity(10_000_000).build()?)
}

async fn serve(service: impl Orders) -> Outcome<()> {
    Ok(axum::serve(listen().await?, Shared::new(service)).await?)
}

/// As many workers as there are processors to run on.
fn block_on(role: impl Future<Output = Outcome<()>>) -> Outcome<()> {
    Builder::new_multi_thread().enable_all().build()?.block_on(role)
}

async fn listen() -> Outcome<TcpListener> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{LISTENING}{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    Ok(listener)
}

/// A service that reads what is uploaded piece by piece, and says how much memory it has needed.
fn uploads() -> Outcome<Router> {
    let upload = async |body: Body| {
        let (mut body, mut length) = (body, 0);
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return (StatusCode::BAD_REQUEST, String::new()) };
            length += frame.data_ref().map_or(0, |data| data.len());
        }
        (StatusCode::CREATED, format!("{{\"bytes\":{length}}}"))
    };
    let peak = async || std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let layer = IdempotencyLayer::builder(MemoryStore::new(), Scope::shared()).build()?;
    Ok(Router::new().route("/uploads", post(upload)).idempotent(layer).route("/status", get(peak)))
}

/// Answers every request with the same order, as cheaply as it can.
async fn upstream() -> Outcome<()> {
    let listener = listen().await?;
    loop {
        let (connection, _) = listener.accept().await?;
        connection.set_nodelay(true)?;
        tokio::spawn(async move {
            // The proxy hangs up when it likes to.
            let _ = answer_all(connection).await;
        });
    }
}

async fn answer_all(mut connection: TcpStream) -> Outcome<()> {
    let answer = format!(
        "HTTP/1.1 201 Created\r\ncontent-type: application/json\r\nlocation: /orders/1\r\n\
         content-length: {}\r\n\r\n{}",
        orders::ORDER.len(),
        orders::ORDER
    );
    let mut received = Vec::new();
    loop {
        while let Some(length) = load::message_length(&received)? {
            received.drain(..length);
            connection.write_all(answer.as_bytes()).await?;
        }
        if connection.read_buf(&mut received).await? == 0 {
            return Ok(());
        }
    }
}
