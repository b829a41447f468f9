//! What the tests know of the stream behind the store's back.

use std::time::Duration;

use async_nats::{Client, ConnectOptions, jetstream::stream::Config};
use futures_util::TryStreamExt as _;
use retrysafe_core::OperationId;

use crate::PATIENCE;

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
    let context = async_nats::jetstream::new(client.clone());
    let stream_handle = context.get_stream(stream).await.unwrap();
    let message =
        stream_handle.get_last_raw_message_by_subject(&subject(stream, id)).await.unwrap();
    (message.payload.to_vec(), message.sequence)
}

/// Writes bytes where a record is kept.
pub(crate) async fn put(client: &Client, stream: &str, id: &OperationId, bytes: Vec<u8>) {
    let context = async_nats::jetstream::new(client.clone());
    let acknowledged = context.publish(subject(stream, id), bytes.into()).await.unwrap();
    acknowledged.await.unwrap();
}

/// Makes a record one that a newer version has written.
pub(crate) async fn spoil(client: &Client, stream: &str, id: &OperationId) {
    let (mut bytes, _) = last(client, stream, id).await;
    bytes[0] = 99;
    put(client, stream, id, bytes).await;
}

/// Makes every record of a stream so much older.
pub(crate) async fn age(client: &Client, stream: &str, time: Duration) {
    const READABLE: u8 = 1;
    const STATE: u8 = 0x0f;
    const IN_FLIGHT: u8 = 0;
    let less = |field: &mut [u8]| {
        let left = u64::from_be_bytes(field.try_into().unwrap());
        let left = left.saturating_sub(time.as_millis() as u64);
        field.copy_from_slice(&left.to_be_bytes());
    };
    let context = async_nats::jetstream::new(client.clone());
    let records = context.get_stream(stream).await.unwrap();
    let subjects = records.info_with_subjects(format!("{stream}.*.*")).await.unwrap();
    let subjects: Vec<(String, usize)> = subjects.try_collect().await.unwrap();
    for (subject, _) in subjects {
        // The server may have removed what had expired.
        let Ok(message) = records.get_last_raw_message_by_subject(&subject).await else { continue };
        let mut bytes = message.payload.to_vec();
        if bytes[0] != READABLE {
            continue;
        }
        less(&mut bytes[10..18]);
        if bytes[1] & STATE == IN_FLIGHT {
            less(&mut bytes[18..26]);
        }
        context.publish(subject, bytes.into()).await.unwrap().await.unwrap();
    }
}

/// Creates a stream as somebody else would.
pub(crate) async fn create(client: &Client, config: Config) {
    async_nats::jetstream::new(client.clone()).create_stream(config).await.unwrap();
}

/// The settings of a stream.
pub(crate) async fn config(client: &Client, stream: &str) -> Config {
    let context = async_nats::jetstream::new(client.clone());
    context.get_stream(stream).await.unwrap().cached_info().config.clone()
}

/// How many messages a stream holds.
pub(crate) async fn messages(client: &Client, stream: &str) -> u64 {
    let context = async_nats::jetstream::new(client.clone());
    context.get_stream(stream).await.unwrap().cached_info().state.messages
}
