//! One set of checks for every orders service, run as a user runs it: each test file that has this
//! module names its example in `NAME` and `BINARY`.

use std::process::Stdio;

use reqwest::{Client, RequestBuilder, StatusCode, header::HeaderMap};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    task::JoinSet,
};

use crate::{BINARY, NAME};

const KEY: &str = "8e03978e-40d5-43e8-bc93-6894a57f9324";

fn command(listen: &str, store: &str) -> Command {
    let mut command = Command::new(BINARY);
    command.args(["--listen", listen, "--store", store]).kill_on_drop(true);
    command
}

/// A running example.
pub(crate) struct Service {
    process: Child,
    pub(crate) address: String,
    client: Client,
}

impl Service {
    pub(crate) async fn start(store: &str) -> Self {
        let mut process = command("127.0.0.1:0", store).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let line = lines.next_line().await.unwrap().expect("it says where it listens");
        let address = line.strip_prefix("listening on http://").unwrap();
        let address = address.split(',').next().unwrap().to_owned();
        Self { process, address, client: Client::new() }
    }

    fn order(&self, user: &str, key: &str, item: &str) -> RequestBuilder {
        self.client
            .post(format!("http://{}/orders", self.address))
            .header("x-user-id", user)
            .header("idempotency-key", key)
            .json(&json!({ "item": item, "amount": 1999 }))
    }

    async fn count(&self) -> Value {
        let url = format!("http://{}/orders/count", self.address);
        self.client.get(url).send().await.unwrap().json().await.unwrap()
    }

    /// Sends an order, and hangs up as soon as the handler runs.
    async fn order_and_hang_up(&self) {
        let body = json!({ "item": "book", "amount": 1999 }).to_string();
        let mut connection = TcpStream::connect(&self.address).await.unwrap();
        let request = format!(
            "POST /orders HTTP/1.1\r\nHost: {}\r\nX-User-ID: alice\r\nIdempotency-Key: {KEY}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        connection.write_all(request.as_bytes()).await.unwrap();
        while self.count().await["executions"] == 0 {}
    }

    /// Retries for as long as the first is in progress.
    async fn retry_until_answered(&self) -> Answer {
        loop {
            let answer = answer(self.order("alice", KEY, "book")).await;
            if answer.status != StatusCode::CONFLICT {
                return answer;
            }
            assert_eq!(answer.body["code"], "in_progress");
        }
    }

    async fn signal(&self, name: &str) {
        let id = self.process.id().unwrap().to_string();
        let sent = Command::new("kill").args(["-s", name, &id]).status().await.unwrap();
        assert!(sent.success());
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    fn is_replay(&self) -> bool {
        self.headers.contains_key("idempotent-replayed")
    }

    #[track_caller]
    fn replays(&self, first: &Self) {
        assert!(!first.is_replay() && self.is_replay());
        assert_eq!((self.status, &self.body), (first.status, &first.body));
        assert_eq!(self.headers["location"], first.headers["location"]);
    }
}

async fn answer(request: RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let text = response.text().await.unwrap();
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    Answer { status, headers, body }
}

#[tokio::test]
async fn first_retry_and_changed() {
    let service = Service::start("memory:").await;
    let first = answer(service.order("alice", KEY, "book")).await;
    assert_eq!(first.status, StatusCode::CREATED);
    let id = first.body["order_id"].as_str().unwrap();
    assert_eq!(first.headers["location"], format!("/orders/{id}"));
    answer(service.order("alice", KEY, "book")).await.replays(&first);

    let changed = answer(service.order("alice", KEY, "lamp")).await;
    assert_eq!(
        (changed.status, &changed.body["code"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!("key_reused"))
    );

    // The same key of somebody else is another order.
    let other = answer(service.order("bob", KEY, "book")).await;
    assert!(!other.is_replay());
    assert_ne!(other.body["order_id"], first.body["order_id"]);
    assert_eq!(service.count().await, json!({ "executions": 2, "charges": 2 }));

    let url = format!("http://{}/orders/{id}", service.address);
    let shown = answer(service.client.get(url).header("x-user-id", "alice")).await;
    assert_eq!(shown.body, first.body);
}

#[tokio::test]
async fn without_a_user_or_a_key_nothing_runs() {
    let service = Service::start("memory:").await;
    let url = format!("http://{}/orders", service.address);
    let order = json!({ "item": "book", "amount": 1999 });
    let nobody =
        answer(service.client.post(&url).header("idempotency-key", KEY).json(&order)).await;
    assert_eq!(nobody.status, StatusCode::UNAUTHORIZED);
    let keyless = answer(service.client.post(&url).header("x-user-id", "alice").json(&order)).await;
    assert_eq!(
        (keyless.status, &keyless.body["code"]),
        (StatusCode::BAD_REQUEST, &json!("missing_key"))
    );
    assert_eq!(service.count().await["executions"], 0);
}

#[tokio::test]
async fn an_order_without_something_to_pay_is_refused() {
    let service = Service::start("memory:").await;
    for (amount, status) in [
        ("0", StatusCode::UNPROCESSABLE_ENTITY),
        ("-5", StatusCode::UNPROCESSABLE_ENTITY),
        ("", StatusCode::BAD_REQUEST),
    ] {
        let order = format!(r#"{{"item":"book","amount":{amount}}}"#);
        let request = service.order("alice", &format!("pays-{amount}"), "book").body(order);
        let refused = answer(request).await;
        assert_eq!(refused.status, status, "{}", refused.body);
    }
    assert_eq!(service.count().await, json!({ "executions": 0, "charges": 0 }));
}

#[tokio::test]
async fn fifty_at_once_run_once() {
    let service = Service::start("memory:").await;
    let mut requests = JoinSet::new();
    for _ in 0..50 {
        requests.spawn(answer(service.order("alice", KEY, "book")));
    }
    let answers = requests.join_all().await;
    let (created, refused): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| answer.status == StatusCode::CREATED);
    let first: Vec<_> = created.iter().filter(|answer| !answer.is_replay()).collect();
    assert_eq!(first.len(), 1);
    for late in created.iter().filter(|answer| answer.is_replay()) {
        late.replays(first[0]);
    }
    for early in refused {
        assert_eq!(
            (early.status, &early.body["code"]),
            (StatusCode::CONFLICT, &json!("in_progress"))
        );
        assert!(early.headers.contains_key("retry-after"));
    }
    assert_eq!(service.count().await, json!({ "executions": 1, "charges": 1 }));
    answer(service.order("alice", KEY, "book")).await.replays(first[0]);
}

#[tokio::test]
async fn a_client_that_hangs_up_and_comes_back_gets_the_replay() {
    let service = Service::start("memory:").await;
    service.order_and_hang_up().await;
    let answer = service.retry_until_answered().await;
    assert_eq!(answer.status, StatusCode::CREATED);
    assert!(answer.is_replay());
    assert_eq!(service.count().await, json!({ "executions": 1, "charges": 1 }));
}

#[tokio::test]
async fn a_kill_loses_nothing_that_was_answered() {
    let directory = tempfile::tempdir().unwrap();
    let store = format!("sqlite:{}", directory.path().join("orders.db").display());
    let mut service = Service::start(&store).await;
    let first = answer(service.order("alice", KEY, "book")).await;
    assert_eq!(first.status, StatusCode::CREATED);
    service.process.kill().await.unwrap();

    let service = Service::start(&store).await;
    answer(service.order("alice", KEY, "book")).await.replays(&first);
    assert_eq!(service.count().await, json!({ "executions": 0, "charges": 0 }));
}

#[tokio::test]
async fn sigterm_finishes_what_runs() {
    let directory = tempfile::tempdir().unwrap();
    let store = format!("sqlite:{}", directory.path().join("orders.db").display());
    let mut service = Service::start(&store).await;
    service.order_and_hang_up().await;
    service.signal("TERM").await;
    assert!(service.process.wait().await.unwrap().success());

    let service = Service::start(&store).await;
    let retry = answer(service.order("alice", KEY, "book")).await;
    assert!(retry.is_replay() && retry.status == StatusCode::CREATED, "{}", retry.body);
    assert_eq!(service.count().await["executions"], 0);
}

#[tokio::test]
async fn bad_input_is_one_clear_line() {
    let busy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let busy = busy.local_addr().map(|address| (busy, address.to_string())).unwrap();
    for (listen, store, code, says) in [
        ("127.0.0.1:0", "sqllite:orders.db", 2, "`sqllite:`"),
        ("127.0.0.1:0", "sqlite:/no/such/directory/orders.db", 1, "/no/such/directory"),
        ("127.0.0.1:0", "redis://127.0.0.1:1", 1, "127.0.0.1:1"),
        ("127.0.0.1:0", "postgres://u:p@127.0.0.1:1/orders", 1, "127.0.0.1:1"),
        ("127.0.0.1:0", "mysql://u:p@127.0.0.1:1/orders", 1, "127.0.0.1:1"),
        ("127.0.0.1:0", "nats://127.0.0.1:1", 1, "127.0.0.1:1"),
        (&busy.1, "memory:", 1, &busy.1),
    ] {
        let output = command(listen, store).output().await.unwrap();
        let line = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{line}");
        assert!(line.starts_with(&format!("{NAME}: ")) && line.contains(says), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(output.stdout.is_empty());
    }
}
