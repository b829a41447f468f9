//! NATS JetStream: the store beside its driver.

use std::future::Future;

use async_nats::{Client, ConnectOptions, HeaderMap, Request, ServerAddr};
use bytes::Bytes;
use retrysafe_nats::NatsStore;
use retrysafe_testkit::servers::NatsServer;
use serde::Deserialize;

use super::{
    CALLERS, PATIENCE, RETENTION, beside,
    callers::{OfStore, Side},
    runtime,
};
use crate::{Outcome, measure::Effort, report::Row, size};

/// What a first claim writes.
const RECORD: usize = 121;

pub(crate) fn beside_its_driver(effort: Effort) -> Outcome<Vec<Row>> {
    let payload = size::payload()?;
    let runtime = runtime()?;
    let server = runtime.block_on(NatsServer::start());
    let store = runtime.block_on(NatsStore::builder(server.url()).timeout(PATIENCE).open())?;
    let client = runtime.block_on(connect(&server.url()))?;
    let driver = |_| Driver { client: client.clone(), payload: payload.clone() };
    let drivers = (0..CALLERS).map(driver).collect();
    let store = OfStore::callers(&store, &payload, CALLERS);
    // Each message is flushed by itself, so it takes long enough.
    beside(&runtime, effort, "NATS", 4, store, drivers)
}

async fn connect(url: &str) -> Outcome<Client> {
    let server: ServerAddr = url.parse()?;
    let (user, password) =
        server.username().zip(server.password()).ok_or("a URL without a user")?;
    let options = ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned());
    Ok(options.connect(server).await?)
}

/// Messages to the store's stream, which expect what the store's expect.
struct Driver {
    client: Client,
    payload: Bytes,
}

#[derive(Deserialize)]
struct Acknowledgement {
    seq: u64,
}

impl Driver {
    fn publish(
        &self,
        subject: &str,
        expected: u64,
        message: Bytes,
    ) -> impl Future<Output = Outcome<u64>> + Send {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", expected.to_string());
        headers.insert("Nats-TTL", RETENTION.as_secs().to_string());
        let request = Request::new().timeout(Some(PATIENCE)).headers(headers).payload(message);
        let (client, subject) = (self.client.clone(), subject.to_owned());
        async move {
            let answer = client.send_request(subject, request).await?;
            Ok(serde_json::from_slice::<Acknowledgement>(&answer.payload)?.seq)
        }
    }
}

impl Side for Driver {
    type Operation = (String, Bytes);
    type Held = u64;

    fn operation(&self) -> Self::Operation {
        let id = size::claim().id;
        let digits: String = id.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let (first, rest) = digits.split_at(2);
        let record = id.as_bytes().iter().copied().cycle().take(RECORD).collect();
        (format!("retrysafe.{first}.{rest}"), record)
    }

    async fn begin(&mut self, (subject, record): &Self::Operation) -> Outcome<u64> {
        self.publish(subject, 0, record.clone()).await
    }

    async fn complete(&mut self, (subject, _): &Self::Operation, held: u64) -> Outcome<()> {
        self.publish(subject, held, self.payload.clone()).await.map(drop)
    }
}
