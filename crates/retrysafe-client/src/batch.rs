//! Batches: many operations under one name, of which those that are done are not sent again.

use std::{collections::HashSet, fmt};

use futures_util::{StreamExt as _, stream};
use http::{Extensions, StatusCode};
use reqwest::{Request, Response};
use retrysafe_core::{ConfigError, IdempotencyKey, client::business_key};

use crate::{
    Client, Error, OutcomeUnknown,
    calls::{operation_id, origin_of},
    journal::Known,
};

/// A batch. Its name and an item's id make the item's key, so that the same batch in another process,
/// after a crash say, names the same operations.
///
/// ```no_run
/// use retrysafe_client::{Client, FileJournal, ItemOutcome};
///
/// # async fn run(payouts: Vec<(String, reqwest::Request)>) -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::builder().journal(FileJournal::open("payouts.journal")?).build()?;
/// for item in client.batch("payouts-2026-11")?.send(payouts).await? {
///     match item.outcome {
///         ItemOutcome::Done(status) => println!("{}: {status}", item.id),
///         ItemOutcome::DoneBefore(status) => println!("{}: {status}, earlier", item.id),
///         ItemOutcome::Refused(response) => println!("{}: {}", item.id, response.status()),
///         ItemOutcome::Unknown(unknown) => println!("{}: {unknown}", item.id),
///         ItemOutcome::Failed(error) => println!("{}: {error}", item.id),
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub struct Batch {
    client: Client,
    name: String,
    at_once: usize,
}

/// An item of a batch, and what became of it.
#[derive(Debug)]
pub struct BatchItem {
    /// Its id.
    pub id: String,
    /// Its key.
    pub key: IdempotencyKey,
    /// What became of it.
    pub outcome: ItemOutcome,
}

/// What became of an item.
#[derive(Debug)]
pub enum ItemOutcome {
    /// It was sent, and the answer is a success (2xx).
    Done(StatusCode),
    /// An earlier run of this batch had the answer. It was not sent.
    DoneBefore(StatusCode),
    /// The answer is no success. The next run sends it again, under its key, for as long as the server
    /// remembers that. After it, and at once where the server keeps no keys, the item is
    /// [unknown](Self::Unknown): put what is to be tried anew into a batch of another name.
    Refused(Response),
    /// Nobody knows. The next run, or [`Client::resume`], asks again under its key.
    Unknown(OutcomeUnknown),
    /// It was not executed. The next run sends it again.
    Failed(reqwest_middleware::Error),
}

impl Client {
    /// A batch of this name.
    ///
    /// # Errors
    ///
    /// If the client has no journal: what is done could not be remembered.
    pub fn batch(&self, name: impl Into<String>) -> Result<Batch, ConfigError> {
        if self.calls.journaling.is_none() {
            let problem = "a batch needs one, to remember what is done";
            return Err(ConfigError::new("journal", problem));
        }
        Ok(Batch { client: self.clone(), name: name.into(), at_once: 16 })
    }
}

impl Batch {
    /// How many items are sent at a time. 16.
    pub fn at_once(mut self, items: usize) -> Self {
        self.at_once = items.max(1);
        self
    }

    /// Sends the items that are not done, and says what became of each, in their order. Of two items
    /// with one id the second is not sent: it gets what the journal says of the first.
    ///
    /// Build each request as the run before did: under its key a server accepts no other.
    ///
    /// What is done is remembered for 400 days. **A batch that is run again after that is executed again**,
    /// and so is one that is run with another journal once its server has forgotten the keys.
    ///
    /// # Errors
    ///
    /// If the journal can't be read.
    ///
    /// # Cancel safety
    ///
    /// What is done is remembered, and what was sent is resumed or sent again under its key.
    pub async fn send<I: Into<String>>(
        &self,
        items: impl IntoIterator<Item = (I, Request)>,
    ) -> Result<Vec<BatchItem>, Error> {
        let mut seen = HashSet::new();
        let (mut firsts, mut seconds) = (Vec::new(), Vec::new());
        for (place, (id, request)) in items.into_iter().enumerate() {
            let id = id.into();
            let list = if seen.insert(id.clone()) { &mut firsts } else { &mut seconds };
            list.push((place, id, request));
        }
        let mut done = Vec::new();
        for items in [firsts, seconds] {
            let sent = stream::iter(items).map(|(place, id, request)| async move {
                Ok::<_, Error>((place, self.send_one(id, request).await?))
            });
            let mut sent = sent.buffer_unordered(self.at_once);
            while let Some(item) = sent.next().await {
                done.push(item?);
            }
        }
        done.sort_by_key(|(place, _)| *place);
        Ok(done.into_iter().map(|(_, item)| item).collect())
    }

    async fn send_one(&self, id: String, request: Request) -> Result<BatchItem, Error> {
        let key = business_key(&self.name, &id);
        let operation = operation_id(origin_of(request.url().as_str()), &key);
        if let Some(journaling) = &self.client.calls.journaling
            && let Some(Known::Answered(status)) = journaling.journal.find(operation).await?
            && status.is_success()
        {
            return Ok(BatchItem { id, key, outcome: ItemOutcome::DoneBefore(status) });
        }
        let mut extensions = Extensions::new();
        extensions.insert(key.clone());
        let sent = self.client.http.execute_with_extensions(request, &mut extensions).await;
        let outcome = match sent {
            Ok(response) if response.status().is_success() => ItemOutcome::Done(response.status()),
            Ok(response) => ItemOutcome::Refused(response),
            Err(error) => match OutcomeUnknown::from_error(error) {
                Ok(unknown) => ItemOutcome::Unknown(unknown),
                Err(error) => ItemOutcome::Failed(error),
            },
        };
        Ok(BatchItem { id, key, outcome })
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("name", &self.name).finish_non_exhaustive()
    }
}
