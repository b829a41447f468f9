//! Unary calls that the journal keeps.

use std::{fmt, sync::Arc, time::Duration};

use bytes::{Buf as _, BufMut as _, Bytes};
use futures_util::{StreamExt as _, future::ready, stream};
use http::{Extensions, uri::PathAndQuery};
use prost::Message;
use retrysafe_core::{IdempotencyKey, OperationId};
use tonic::{
    IntoRequest, Request, Response, Status,
    body::Body,
    client::{Grpc, GrpcService},
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataMap,
};

use super::{About, UnaryClient};
use crate::{BoxError, Error, journal::Entry, journaling::Journaling};

/// How many are asked for at a time.
const AT_ONCE: usize = 16;

/// Makes unary calls whose key, path, metadata and message are in the journal before they are sent, so
/// that [`resume`](Self::resume) can find out what became of them after a crash. Made by
/// [`ClientBuilder::journaled_unary`](crate::ClientBuilder::journaled_unary).
///
/// It sends by a channel, or by what is around one: an interceptor that adds credentials belongs there,
/// for the journal keeps no `authorization`.
///
/// ```no_run
/// use retrysafe_client::{Client, FileJournal};
/// use tonic::client::GrpcService;
/// # use tonic::body::Body;
///
/// # async fn run<C>(channel: C) -> Result<(), Box<dyn std::error::Error>>
/// # where C: GrpcService<Body, Future: Send, Error: Send, ResponseBody: Send + 'static> + Clone + Send + Sync,
/// #       <C::ResponseBody as http_body::Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send {
/// # type Order = (); type Placed = ();
/// let journal = FileJournal::open("orders.journal")?;
/// let orders = Client::builder().journal(journal).journaled_unary("orders.example:443", channel)?;
/// // What an earlier run of this program does not know the outcome of.
/// for resumed in orders.resume().await? {
///     println!("{}: {:?}", resumed.operation(), resumed.outcome());
/// }
/// // The path is the one that the generated client asks for.
/// let order = Order::default();
/// let placed = orders.call::<Order, Placed>("/shop.Orders/Place", order).await?;
/// # drop(placed);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct JournaledUnaryClient<C> {
    unary: UnaryClient,
    channel: C,
}

/// A call whose outcome was unknown, and what became of it.
pub struct ResumedCall {
    entry: Arc<Entry>,
    outcome: Result<Response<Bytes>, Error>,
}

impl ResumedCall {
    /// The key.
    pub fn key(&self) -> &IdempotencyKey {
        &self.entry.key
    }

    /// The digest of the origin and the key.
    pub fn operation(&self) -> &OperationId {
        &self.entry.operation
    }

    /// The call as it was kept: the URL ends in its path, the body is its message.
    pub fn request(&self) -> &Entry {
        &self.entry
    }

    /// What became of it: the message that answers it, still encoded; or the error that it ends with,
    /// which may be that it is still unknown ([`OutcomeUnknown`](crate::OutcomeUnknown)).
    pub fn outcome(&self) -> Result<&Response<Bytes>, &Error> {
        self.outcome.as_ref()
    }

    /// The same, to be used up.
    ///
    /// # Errors
    ///
    /// What the call ended with, if that is no answer.
    pub fn into_outcome(self) -> Result<Response<Bytes>, Error> {
        self.outcome
    }
}

// S3: the answer is not shown.
impl fmt::Debug for ResumedCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = self.outcome.as_ref().map(|_| "answered");
        let mut call = f.debug_struct("ResumedCall");
        call.field("operation", &self.entry.operation).field("outcome", &outcome).finish()
    }
}

impl<C> JournaledUnaryClient<C> {
    pub(crate) fn new(unary: UnaryClient, channel: C) -> Self {
        Self { unary, channel }
    }
}

impl<C> JournaledUnaryClient<C>
where
    C: GrpcService<Body, Future: Send, Error: Send> + Clone + Send + Sync,
    C::ResponseBody: Send + 'static,
    <C::ResponseBody as http_body::Body>::Error: Into<BoxError> + Send,
{
    /// Makes a call to a path such as `/shop.Orders/Place`.
    ///
    /// # Errors
    ///
    /// As [`UnaryClient::call`]; also if the path is none, the journal can't keep the call, or the
    /// answer can't be decoded.
    ///
    /// # Cancel safety
    ///
    /// What was sent is not taken back. It is resumed later.
    pub async fn call<M, R>(
        &self,
        path: &str,
        request: impl IntoRequest<M>,
    ) -> Result<Response<R>, Error>
    where
        M: Message,
        R: Message + Default,
    {
        let request = request.into_request().map(|message| Bytes::from(message.encode_to_vec()));
        let (metadata, message, extensions) = self.send(path, request, None).await?.into_parts();
        let message = R::decode(message).map_err(Error::inner)?;
        Ok(Response::from_parts(metadata, message, extensions))
    }

    /// Asks what became of every call to this authority that the journal does not know the outcome of:
    /// sends each again, with its key, as it was. It does as [`Client::resume`](crate::Client::resume)
    /// does, which in turn leaves gRPC calls alone.
    ///
    /// # Errors
    ///
    /// If the journal can't be read.
    ///
    /// # Cancel safety
    ///
    /// What has not been asked for stays in the journal.
    pub async fn resume(&self) -> Result<Vec<ResumedCall>, Error> {
        let Some(journaling) = &self.unary.calls.journaling else { return Ok(Vec::new()) };
        let unknown = journaling.journal.unknown().await?;
        let unknown = unknown.into_iter().filter_map(|entry| {
            let path = entry.url.strip_prefix(&*self.unary.origin)?;
            path.starts_with('/').then(|| path.to_owned()).map(|path| (entry, path))
        });
        let resumed = stream::iter(unknown)
            .map(|(entry, path)| async move { self.resume_one(journaling, entry, &path).await });
        Ok(resumed.buffered(AT_ONCE).filter_map(ready).collect().await)
    }

    async fn resume_one(
        &self,
        journaling: &Journaling,
        entry: Arc<Entry>,
        path: &str,
    ) -> Option<ResumedCall> {
        let outcome = match journaling.still_unknown(&entry.operation).await {
            Ok(false) => return None,
            Ok(true) => {
                let metadata = MetadataMap::from_headers(entry.headers.clone());
                let mut request =
                    Request::from_parts(metadata, Extensions::new(), entry.body.clone());
                request.extensions_mut().insert(entry.key.clone());
                self.send(path, request, Some(entry.first_sent)).await
            }
            Err(error) => Err(error),
        };
        Some(ResumedCall { entry, outcome })
    }

    async fn send(
        &self,
        path: &str,
        request: Request<Bytes>,
        resumed: Option<Duration>,
    ) -> Result<Response<Bytes>, Error> {
        let target = path.parse().ok().filter(|it: &PathAndQuery| it.path().starts_with('/'));
        let Some(target) = target else {
            return Err(Error::inner(format!("`{path}` is not the path of a gRPC method")));
        };
        let url = format!("{}{target}", self.unary.origin);
        let message = request.get_ref().clone();
        let about = About { url: &url, message: &message, resumed };
        let attempt = |request| {
            let (mut grpc, target) = (Grpc::new(self.channel.clone()), target.clone());
            async move {
                grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
                grpc.unary(request, target, Encoded).await
            }
        };
        self.unary.make(about, request, attempt).await
    }
}

impl<C> fmt::Debug for JournaledUnaryClient<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JournaledUnaryClient").field("unary", &self.unary).finish_non_exhaustive()
    }
}

/// Messages that are encoded already, and answers that stay so.
struct Encoded;

impl Codec for Encoded {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(message);
        Ok(())
    }
}

impl Decoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
