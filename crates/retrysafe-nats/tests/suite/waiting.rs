//! Who waits is told, and not only by asking again and again.

use std::time::Duration;

use futures_util::StreamExt as _;
use retrysafe_core::Store as _;
use retrysafe_nats::NatsStore;
use retrysafe_testkit::servers::{NatsServer, Wire};
use tokio::time::timeout;

use crate::{LONG, PATIENCE, acquire, claim, complete, operation, patient, raw, stream, until};

#[tokio::test]
async fn changed_is_told_by_the_server_after_it_has_stored() {
    let server = NatsServer::shared().await;
    let name = stream();
    let store = patient(server.url()).stream(&name).open().await.unwrap();
    let client = raw::connect(&server.url()).await;
    let mut told = client.subscribe(format!("{name}.changed.*.*")).await.unwrap();
    // An answer on the same connection: the server has heard of the subscription.
    client.request("$JS.API.INFO", "".into()).await.unwrap();
    let owned = claim(operation());
    let lease = acquire(&store, &owned).await;
    complete(&store, &owned, &lease, "secret").await;
    for sequence in 1..=2_u64 {
        let message = timeout(LONG, told.next()).await.unwrap().unwrap();
        assert!(message.payload.is_empty(), "S3: only its head");
        let said = message.headers.unwrap().get("Nats-Sequence").unwrap().to_string();
        assert_eq!(said, sequence.to_string());
        let (_, last) = raw::last(&client, &name, &owned.id).await;
        assert!(last >= sequence, "what is told can be read");
    }
}

#[tokio::test]
async fn changed_outlives_a_lost_connection() {
    let server = NatsServer::shared().await;
    let wire = Wire::to(server.addr()).await;
    let name = stream();
    let there = patient(server.url()).stream(&name).open().await.unwrap();
    // A question that a lost connection took along is never answered: it is asked again after this.
    let here = NatsStore::builder(wire.url_for(&server.url())).timeout(Duration::from_secs(1));
    let here = here.stream(&name).open().await.unwrap();
    let owned = claim(operation());
    let lease = acquire(&there, &owned).await;
    let id = owned.id;
    let mut asked = wire.round_trips();
    let waiting = tokio::spawn(async move { here.changed(&id, 1, LONG).await });
    for lost in 0..=3 {
        if lost > 0 {
            wire.reset().await;
            asked = wire.round_trips() + 1; // connecting is one
        }
        until("it asks", async || (wire.round_trips() > asked).then_some(())).await;
    }
    assert!(!waiting.is_finished(), "nothing has changed");
    complete(&there, &owned, &lease, "done").await;
    timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap();
}
