//! How a sweep leaves the server to the claims (ST12).

use tokio::time::{Instant, sleep};

/// How long a sweep pauses after each batch, in times of what the batch took: on a server that is
/// slow because it is busy, the pause is longer.
const PAUSE: u32 = 2;

/// Pauses after a batch that was begun then. After the last one of a call too, when there is more to
/// remove: the engine asks again at once.
pub(crate) async fn after_batch(begun: Instant) {
    sleep(begun.elapsed() * PAUSE).await;
}
