//! The example `payments-postgres`, run as a user runs it, and killed as nobody would.

#![allow(clippy::unwrap_used, reason = "all of this is tests")]

use std::process::Stdio;

use reqwest::{Client, StatusCode};
use retrysafe_testkit::servers::PostgresServer;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

struct Process {
    child: Child,
    url: String,
}

impl Process {
    async fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_payments-postgres"))
            .args(arguments)
            .args(["--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.next_line().await.unwrap().expect("it says where it listens");
        let url = line.strip_prefix("listening on ").unwrap().to_owned();
        Self { child, url }
    }

    async fn get(&self, path: &str) -> Value {
        reqwest::get(format!("{}{path}", self.url)).await.unwrap().json().await.unwrap()
    }

    async fn post(&self, path: &str, key: &str, body: &Value) -> reqwest::Result<Answer> {
        let request = Client::new().post(format!("{}{path}", self.url)).json(body);
        let response = request.header("idempotency-key", key).send().await?;
        let replayed = response.headers().contains_key("idempotent-replayed");
        Ok(Answer { status: response.status(), replayed, body: response.text().await? })
    }

    /// Retries for as long as the answer is *try again*.
    async fn retry(&self, path: &str, key: &str, body: &Value) -> Answer {
        loop {
            let answer = self.post(path, key, body).await.unwrap();
            let in_progress = answer.body.contains("in_progress");
            if !answer.status.is_server_error() && !in_progress {
                return answer;
            }
        }
    }
}

struct Answer {
    status: StatusCode,
    replayed: bool,
    body: String,
}

#[tokio::test]
async fn a_transfer_happens_once_and_a_refusal_not_at_all() {
    let database = PostgresServer::shared().await.fresh_database().await;
    let bank = Process::start(&["serve", "--database", &database]).await;
    let transfer = json!({ "from": "alice", "to": "bob", "amount": 1250 });
    let first = bank.post("/transfers", "one", &transfer).await.unwrap();
    assert_eq!((first.status, first.replayed), (StatusCode::CREATED, false));
    let retry = bank.post("/transfers", "one", &transfer).await.unwrap();
    assert_eq!((retry.status, retry.replayed, &retry.body), (first.status, true, &first.body));
    assert_eq!(bank.get("/accounts").await, json!({ "alice": 8750, "bob": 1250 }));

    // Refused after the other half was posted, which is undone.
    let nobody = json!({ "from": "alice", "to": "nobody", "amount": 5 });
    for replayed in [false, true] {
        let refused = bank.post("/transfers", "two", &nobody).await.unwrap();
        assert_eq!((refused.status, refused.replayed), (StatusCode::NOT_FOUND, replayed));
    }
    let nobodys = json!({ "from": "nobody", "to": "bob", "amount": 5 });
    let refused = bank.post("/transfers", "three", &nobodys).await.unwrap();
    assert_eq!((refused.status, &*refused.body), (StatusCode::NOT_FOUND, "no such account"));
    assert_eq!(bank.get("/accounts").await, json!({ "alice": 8750, "bob": 1250 }));
}

#[tokio::test]
async fn what_can_not_be_used_is_one_clear_line() {
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("postgres://pay:secret@{nowhere}/ledger");
    for (database, code, says) in [
        ("ledger", 2, "--database is postgres://"),
        ("mysql://pay:secret@localhost/ledger", 2, "--database is postgres://"),
        (&url, 1, &*nowhere.to_string()),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_payments-postgres"))
            .args(["serve", "--listen", "127.0.0.1:0", "--database", database])
            .output();
        let output = output.await.unwrap();
        let line = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{line}");
        assert!(line.lines().count() == 1 && line.contains(says), "{line}");
        assert!(!line.contains("secret"), "{line}");
    }
}

#[tokio::test]
async fn sigterm_ends_it_well() {
    let mut processor = Process::start(&["processor"]).await;
    let id = processor.child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-s", "TERM", &id]).status().await.unwrap().success());
    assert!(processor.child.wait().await.unwrap().success());
}

#[tokio::test]
async fn a_card_is_charged_once_though_the_ledger_is_killed_over_it() {
    let database = PostgresServer::shared().await.fresh_database().await;
    let processor = Process::start(&["processor"]).await;
    let serve = ["serve", "--database", &database, "--processor", &processor.url];
    let mut bank = Process::start(&serve).await;
    let deposit = json!({ "account": "bob", "amount": 500, "card": "4242" });
    let killed = async {
        // The card has been charged, and the ledger does not know it yet.
        while processor.get("/charges").await["charges"] == 0 {}
        bank.child.start_kill().unwrap();
    };
    let url = format!("{}/deposits", bank.url);
    let request = Client::new().post(url).header("idempotency-key", "one").json(&deposit).send();
    let (lost, ()) = tokio::join!(request, killed);
    assert!(lost.is_err(), "the client got no answer");
    bank.child.wait().await.unwrap();

    let bank = Process::start(&serve).await;
    assert_eq!(bank.get("/accounts").await, json!({ "alice": 10000, "bob": 0 }));
    let retry = bank.retry("/deposits", "one", &deposit).await;
    assert_eq!((retry.status, retry.replayed), (StatusCode::CREATED, false));
    assert!(bank.retry("/deposits", "one", &deposit).await.replayed);
    assert_eq!(bank.get("/accounts").await, json!({ "alice": 10000, "bob": 500 }));
    assert_eq!(processor.get("/charges").await, json!({ "charges": 1, "amount": 500 }));

    let declined = json!({ "account": "bob", "amount": 500, "card": "declined" });
    for replayed in [false, true] {
        let refused = bank.post("/deposits", "two", &declined).await.unwrap();
        assert_eq!((refused.status, refused.replayed), (StatusCode::PAYMENT_REQUIRED, replayed));
    }
    assert_eq!(bank.get("/accounts").await, json!({ "alice": 10000, "bob": 500 }));
}
