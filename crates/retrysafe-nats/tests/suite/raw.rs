//! What the tests know of the stream behind the store's back.
//!
//! A cluster on a busy machine changes its leaders now and then, and has none meanwhile: what the
//! server refuses is asked again.

use std::time::Duration;

use async_nats::{
    Client, ConnectOptions,
    jetstream::{
        self,
        message::PublishMessage,
        stream::{Config, LastRawMessageErrorKind, Stream},
    },
};
use futures_util::TryStreamExt as _;
use retrysafe_core::OperationId;

use crate::{PATIENCE, until};

/// A client of the driver's own, for a URL with user and password.
pub(crate) async fn connect(url: &str) -> Client {
    let address: async_nats::ServerAddr = url.split(',').next().unwrap().parse().unwrap();
    let user = address.username().unwrap_or_default().to_owned();
    let password = address.password().unwrap_or_default().to_owned();
    let options = ConnectOptions::with_user_and_password(user, password);
    let options = options.connection_timeout(PATIENCE).request_timeout(Some(PATIENCE));
    options.connect(&address).await.unwrap()
}

pub(crate) fn subject(stream: &str, id: &OperationId) -> String {
    let digits: String = id.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{stream}.{}.{}", &digits[..2], &digits[2..])
}

/// The bytes of the last message, and its sequence.
pub(crate) async fn last(client: &Client, stream: &str, id: &OperationId) -> (Vec<u8>, u64) {
    let records = records(client, stream).await;
    let subject = &subject(stream, id);
    let ask = || async { records.get_last_raw_message_by_subject(subject).await.ok() };
    let message = until("the last message", ask).await;
    (message.payload.to_vec(), message.sequence)
}

/// Writes bytes where a record is kept.
pub(crate) async fn put(client: &Client, stream: &str, id: &OperationId, bytes: Vec<u8>) {
    let message = PublishMessage::build().payload(bytes.into());
    let subject = &subject(stream, id);
    until("a message is stored", || send(client, subject, message.clone())).await;
}

/// Makes a record one that a newer version has written.
pub(crate) async fn spoil(client: &Client, stream: &str, id: &OperationId) {
    let (mut bytes, _) = last(client, stream, id).await;
    bytes[0] = 99;
    put(client, stream, id, bytes).await;
}

/// Makes every record of a stream so much older.
pub(crate) async fn age(client: &Client, stream: &str, time: Duration) {
    let records = &records(client, stream).await;
    let all = &format!("{stream}.*.*");
    let ask = || async { records.info_with_subjects(all).await.ok()?.try_collect().await.ok() };
    let subjects: Vec<(String, usize)> = until("the stream's subjects", ask).await;
    for (subject, _) in &subjects {
        until("an older record", || async {
            let message = match records.get_last_raw_message_by_subject(subject).await {
                Ok(message) => message,
                // The server may have removed what had expired.
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                    return Some(());
                }
                Err(_) => return None,
            };
            let Some(older) = older(&message.payload, time) else { return Some(()) };
            let older = PublishMessage::build().payload(older.into());
            send(client, subject, older.expected_last_subject_sequence(message.sequence)).await
        })
        .await;
    }
}

/// None if it is no record that can be read.
fn older(record: &[u8], time: Duration) -> Option<Vec<u8>> {
    const READABLE: u8 = 1;
    const STATE: u8 = 0x0f;
    const IN_FLIGHT: u8 = 0;
    let less = |field: &mut [u8]| {
        let left = u64::from_be_bytes(field.try_into().unwrap());
        let left = left.saturating_sub(time.as_millis() as u64);
        field.copy_from_slice(&left.to_be_bytes());
    };
    if record[0] != READABLE {
        return None;
    }
    let mut record = record.to_vec();
    less(&mut record[10..18]);
    if record[1] & STATE == IN_FLIGHT {
        less(&mut record[18..26]);
    }
    Some(record)
}

/// None if it was not acknowledged.
async fn send(client: &Client, subject: &str, message: PublishMessage) -> Option<()> {
    let context = jetstream::new(client.clone());
    let sent = context.send_publish(subject.to_owned(), message).await.ok()?;
    sent.await.ok().map(drop)
}

async fn records(client: &Client, stream: &str) -> Stream {
    let context = &jetstream::new(client.clone());
    until("the stream", || async { context.get_stream(stream).await.ok() }).await
}

/// Creates a stream as somebody else would.
pub(crate) async fn create(client: &Client, config: Config) {
    jetstream::new(client.clone()).create_stream(config).await.unwrap();
}

/// The settings of a stream.
pub(crate) async fn config(client: &Client, stream: &str) -> Config {
    records(client, stream).await.cached_info().config.clone()
}

/// How many messages a stream holds.
pub(crate) async fn messages(client: &Client, stream: &str) -> u64 {
    records(client, stream).await.cached_info().state.messages
}
