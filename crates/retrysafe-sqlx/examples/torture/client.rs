//! Clients that ask until they have an answer, sometimes twice at once, and remember what they heard.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use retrysafe_core::failpoint;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    time::{sleep, timeout},
};

pub(crate) const ACCOUNTS: i64 = 8;
const KEY: &str = "transfer";

/// Where services listen at the moment.
pub(crate) type Services = Arc<Mutex<Vec<Option<SocketAddr>>>>;

/// What a client asked for, and the answer that it got.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) key: String,
    pub(crate) body: String,
    pub(crate) answer: Answer,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// Makes transfers until it is told to stop; the last one is seen through.
pub(crate) async fn transfers(
    client: usize,
    services: Services,
    stop: watch::Receiver<bool>,
) -> Vec<Asked> {
    let mut asked = Vec::new();
    let mut number = 0;
    while !*stop.borrow() {
        number += 1;
        let key = format!("{KEY}-{client}-{number}");
        let from = rand::random_range(0..ACCOUNTS);
        let to = (from + rand::random_range(1..ACCOUNTS)) % ACCOUNTS;
        // Now and then more than there is.
        let amount = if rand::random_ratio(1, 5) { 100_000 } else { rand::random_range(1..20) };
        let body = format!("{from} {to} {amount}");
        let answer = if rand::random_ratio(1, 3) {
            let (one, two) = tokio::join!(ask(&services, &key, &body), ask(&services, &key, &body));
            assert_eq!(one, two, "two requests with one key got two answers");
            one
        } else {
            ask(&services, &key, &body).await
        };
        asked.push(Asked { key, body, answer });
    }
    asked
}

/// Asks one service or another until there is an answer that says what has happened.
pub(crate) async fn ask(services: &Services, key: &str, body: &str) -> Answer {
    loop {
        let service = {
            let services = services.lock().unwrap();
            services[rand::random_range(0..services.len())]
        };
        if let Some(service) = service
            && let Ok(Some(answer)) =
                timeout(Duration::from_secs(20), request(service, "/transfers", key, body)).await
        {
            match answer.status {
                201 | 422 => return answer,
                409 | 500 | 503 => {}
                _ => panic!("{answer:?}"),
            }
        }
        sleep(Duration::from_millis(rand::random_range(5..30))).await;
    }
}

/// One request on a connection of its own; `None` if there was no whole answer. Services ask the card
/// processor by it, too.
pub(crate) async fn request(
    service: SocketAddr,
    path: &str,
    key: &str,
    body: &str,
) -> Option<Answer> {
    let mut connection = TcpStream::connect(service).await.ok()?;
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {service}\r\nConnection: close\r\n\
         Idempotency-Key: {key}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    connection.write_all(request.as_bytes()).await.ok()?;
    failpoint::reached("during the call");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().ok())?
    })?;
    (body.len() == length).then(|| Answer { status, body: body.to_owned() })
}
