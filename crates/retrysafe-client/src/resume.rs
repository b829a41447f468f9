//! What became of the operations that the journal does not know the outcome of.

use std::{fmt, sync::Arc};

use futures_util::{StreamExt as _, future::ready, stream};
use http::Extensions;
use reqwest::{Body, Request, Response, Url};
use retrysafe_core::{IdempotencyKey, OperationId};

use crate::{
    BoxError, Client, Error, OutcomeUnknown, calls::GRPC, journal::Entry, journaling::Journaling,
    middleware::Resumed as Mark,
};

/// How many are asked for at a time.
const AT_ONCE: usize = 16;

/// An operation whose outcome was unknown, and what became of it.
pub struct Resumed {
    entry: Arc<Entry>,
    outcome: ResumedOutcome,
}

/// What became of it.
#[derive(Debug)]
pub enum ResumedOutcome {
    /// There is an answer: the original one, or that of an execution just now. It is settled.
    Answered(Response),
    /// It is still unknown, and stays in the journal.
    Unknown(OutcomeUnknown),
    /// It could not be asked for, and stays in the journal.
    Failed(reqwest_middleware::Error),
}

impl Resumed {
    /// The key.
    pub fn key(&self) -> &IdempotencyKey {
        &self.entry.key
    }

    /// The digest of the origin and the key.
    pub fn operation(&self) -> &OperationId {
        &self.entry.operation
    }

    /// The request, as it was kept.
    pub fn request(&self) -> &Entry {
        &self.entry
    }

    /// What became of it.
    pub fn outcome(&self) -> &ResumedOutcome {
        &self.outcome
    }

    /// What became of it, to be used up: a response has to be owned to be read.
    pub fn into_outcome(self) -> ResumedOutcome {
        self.outcome
    }
}

impl fmt::Debug for Resumed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resumed")
            .field("operation", &self.entry.operation)
            .field("outcome", &self.outcome)
            .finish()
    }
}

impl Client {
    /// Asks what became of every operation that the journal does not know the outcome of: sends each
    /// request again, with its key, as it was. Operations that this process is in the middle of are left
    /// alone, and so are those whose key the server may have forgotten: they come back as unknown
    /// ([`Unknown::Retention`](retrysafe_core::client::Unknown)), because asking could execute them
    /// again.
    ///
    /// An operation that never reached the server is executed now: the program meant it to be when it
    /// wrote it down.
    ///
    /// # Errors
    ///
    /// If the journal can't be read. Without a journal there is nothing to resume.
    ///
    /// # Cancel safety
    ///
    /// What has not been asked for stays in the journal.
    pub async fn resume(&self) -> Result<Vec<Resumed>, Error> {
        let Some(journaling) = &self.calls.journaling else { return Ok(Vec::new()) };
        let unknown = journaling.journal.unknown().await?;
        // Those of gRPC are for its client to resume.
        let unknown = unknown.into_iter().filter(|it| !it.url.starts_with(GRPC));
        let resumed = stream::iter(unknown).map(|entry| self.resume_one(journaling, entry));
        Ok(resumed.buffered(AT_ONCE).filter_map(ready).collect().await)
    }

    async fn resume_one(&self, journaling: &Journaling, entry: Arc<Entry>) -> Option<Resumed> {
        let sent = match journaling.still_unknown(&entry.operation).await {
            Ok(false) => return None,
            Ok(true) => self.send_again(&entry).await,
            Err(error) => Err(reqwest_middleware::Error::middleware(error)),
        };
        let outcome = match sent {
            Ok(response) => ResumedOutcome::Answered(response),
            Err(error) => match OutcomeUnknown::from_error(error) {
                Ok(unknown) => ResumedOutcome::Unknown(unknown),
                Err(error) => ResumedOutcome::Failed(error),
            },
        };
        Some(Resumed { entry, outcome })
    }

    async fn send_again(&self, entry: &Entry) -> reqwest_middleware::Result<Response> {
        let url = Url::parse(&entry.url).map_err(|error| {
            let error: BoxError = error.into();
            reqwest_middleware::Error::middleware(Error::inner(error))
        })?;
        let mut request = Request::new(entry.method.clone(), url);
        request.headers_mut().clone_from(&entry.headers);
        if !entry.body.is_empty() {
            *request.body_mut() = Some(Body::from(entry.body.clone()));
        }
        if let Some(change) = &self.before_resuming {
            change(&mut request);
        }
        let mut extensions = Extensions::new();
        extensions.insert(entry.key.clone());
        extensions.insert(Mark { first_sent: entry.first_sent });
        self.http.execute_with_extensions(request, &mut extensions).await
    }
}
