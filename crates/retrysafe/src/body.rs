//! The bodies that pass through a guarded service.
//!
//! A request that is not guarded keeps its own body, untouched. A guarded one has been read ahead;
//! what is longer than `inline_body` is hashed on its way to the handler, in constant memory (F4).

use std::{
    error::Error,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use retrysafe_core::{BodyHasher, BodyPart, Extent};
use smallvec::SmallVec;

use crate::stream::Live;

/// Any error of a body.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// A body in its pieces. Most have one, which allocates nothing.
pub(crate) type Pieces = SmallVec<[Bytes; 1]>;

/// The trailers of a body. Few have any, so those that have none carry no room for them.
pub(crate) type Trailers = Option<Box<HeaderMap>>;

/// Pieces that come one by one. Small ones are copied together: each of them would hold on to the
/// whole buffer that it was read into, which is a hundred times what a stream of tokens weighs.
#[derive(Default)]
pub(crate) struct Collected {
    pieces: Pieces,
    small: BytesMut,
}

impl Collected {
    const SMALL: usize = 4096;

    pub(crate) fn push(&mut self, piece: Bytes) {
        let first = self.pieces.is_empty() && self.small.is_empty();
        if piece.len() < Self::SMALL && !first {
            self.small.extend_from_slice(&piece);
        } else {
            self.set_small();
            self.pieces.push(piece);
        }
    }

    pub(crate) fn pieces(mut self) -> Pieces {
        self.set_small();
        self.pieces
    }

    fn set_small(&mut self) {
        if !self.small.is_empty() {
            self.pieces.push(self.small.split().freeze());
        }
    }
}

/// Pieces that are being handed out.
type Left = smallvec::IntoIter<[Bytes; 1]>;

pin_project! {
    /// The body of a request, as the inner service is given it.
    pub struct RequestBody<B> {
        #[pin]
        kind: RequestKind<B>,
    }
}

pin_project! {
    #[project = RequestKindProject]
    enum RequestKind<B> {
        Passed { #[pin] body: B },
        Read { data: Option<Bytes>, trailers: Trailers },
        Streamed { read: Left, rest: B, tap: Arc<Tap> },
    }
}

impl<B> RequestBody<B> {
    pub(crate) fn passed(body: B) -> Self {
        Self { kind: RequestKind::Passed { body } }
    }

    /// The body that came, if this request was not guarded: adapters hand it on as it is.
    ///
    /// # Errors
    ///
    /// This body itself, if it has been read ahead.
    pub fn into_passed(self) -> Result<B, Self> {
        match self.kind {
            RequestKind::Passed { body } => Ok(body),
            kind => Err(Self { kind }),
        }
    }
}

impl<B> Body for RequestBody<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().kind.project() {
            RequestKindProject::Passed { body } => {
                body.poll_frame(cx).map(|frame| frame.map(|it| it.map_err(Into::into)))
            }
            RequestKindProject::Read { data, trailers } => Poll::Ready(
                data.take()
                    .filter(|data| !data.is_empty())
                    .map(Frame::data)
                    .or_else(|| trailers.take().map(|it| Frame::trailers(*it)))
                    .map(Ok),
            ),
            RequestKindProject::Streamed { read, rest, tap } => {
                if let Some(data) = read.next() {
                    tap.saw(&data);
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                let frame = ready!(Pin::new(rest).poll_frame(cx));
                Poll::Ready(match frame {
                    Some(Ok(frame)) => {
                        if let Some(data) = frame.data_ref() {
                            tap.saw(data);
                        }
                        Some(Ok(frame))
                    }
                    Some(Err(error)) => {
                        tap.broke_off();
                        Some(Err(error.into()))
                    }
                    None if tap.ended() => None,
                    None => Some(Err(IncompleteBody.into())),
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            RequestKind::Passed { body } => body.is_end_stream(),
            RequestKind::Read { data, trailers } => {
                trailers.is_none() && data.as_ref().is_none_or(Bytes::is_empty)
            }
            // Only polling to the end says that it ended well.
            RequestKind::Streamed { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            RequestKind::Passed { body } => body.size_hint(),
            RequestKind::Read { data, trailers } => {
                exactly(data.as_ref().map_or(0, |data| data.len() as u64), trailers)
            }
            RequestKind::Streamed { read, rest, .. } => after(read, rest.size_hint()),
        }
    }
}

impl<B> fmt::Debug for RequestBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestBody").finish_non_exhaustive()
    }
}

/// A request body that ended before its end.
#[derive(Debug)]
pub(crate) struct IncompleteBody;

impl fmt::Display for IncompleteBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request body ended early")
    }
}

impl Error for IncompleteBody {}

/// A request body of which the beginning is read ahead.
pub(crate) struct ReadAhead<B> {
    frames: Pieces,
    trailers: Trailers,
    /// What has not been read yet; `None` if the body ended within `inline_body`.
    rest: Option<B>,
    content_length: Option<u64>,
}

impl<B> ReadAhead<B> {
    /// A body of which nothing has been read.
    pub(crate) fn unread(body: B) -> Self {
        Self { frames: Pieces::new(), trailers: None, rest: Some(body), content_length: None }
    }

    /// A body that is at hand.
    pub(crate) fn known(body: Bytes) -> Self {
        Self { frames: [body].into(), trailers: None, rest: None, content_length: None }
    }

    /// The whole body, if it ended within `inline_body`.
    pub(crate) fn whole(&self) -> Option<&Bytes> {
        self.frames.first().filter(|_| self.rest.is_none())
    }
}

impl<B: Body<Data = Bytes> + Unpin> ReadAhead<B> {
    /// Reads until the end, or until more than `inline_body` bytes have come. Called again, it goes on.
    ///
    /// # Errors
    ///
    /// [`IncompleteBody`] if the body breaks off, or ends before its `Content-Length`.
    pub(crate) async fn read(
        &mut self,
        headers: &HeaderMap,
        inline_body: usize,
    ) -> Result<(), IncompleteBody> {
        self.content_length = headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let mut frames = Collected::default();
        let mut length = 0;
        for data in std::mem::take(&mut self.frames) {
            length += data.len() as u64;
            frames.push(data);
        }
        while length <= inline_body as u64
            && let Some(rest) = &mut self.rest
        {
            let Some(frame) = next_frame(rest).await else {
                if self.content_length.is_some_and(|expected| expected != length) {
                    return Err(IncompleteBody);
                }
                self.frames.push(joined(frames.pieces(), length as usize));
                self.rest = None;
                return Ok(());
            };
            match frame.map_err(|_| IncompleteBody)?.into_data() {
                Ok(data) => {
                    length += data.len() as u64;
                    frames.push(data);
                }
                Err(frame) => self.trailers = frame.into_trailers().ok().map(Box::new),
            }
        }
        self.frames = frames.pieces();
        Ok(())
    }

    /// The body for the handler, and what sees how a long one goes by.
    pub(crate) fn into_body(
        self,
        hasher: impl FnOnce() -> BodyHasher,
    ) -> (RequestBody<B>, Option<Arc<Tap>>) {
        match self.rest {
            None => {
                let (data, trailers) = (self.frames.into_iter().next(), self.trailers);
                (RequestBody { kind: RequestKind::Read { data, trailers } }, None)
            }
            Some(rest) => {
                let tap = Arc::new(Tap::new(hasher(), self.content_length));
                let kind =
                    RequestKind::Streamed { read: self.frames.into_iter(), rest, tap: tap.clone() };
                (RequestBody { kind }, Some(tap))
            }
        }
    }

    /// Hashes this body the way a record's was, over the record's length, and discards it (F4). It is
    /// read to its end where that says more: what it is compared with was whole, or a count must match.
    ///
    /// # Errors
    ///
    /// [`IncompleteBody`] if it breaks off.
    pub(crate) async fn matches(
        mut self,
        mut hasher: BodyHasher,
        kept: &BodyPart,
    ) -> Result<bool, IncompleteBody> {
        let mut seen = 0;
        let mut left = kept.length;
        let prefix = kept.extent == Extent::Prefix;
        let mut frames = self.frames.into_iter();
        loop {
            let data = match frames.next() {
                Some(data) => data,
                None => match &mut self.rest {
                    None => break,
                    // What the handler was not given is not compared. A body that announces no
                    // length may stay open for as long as there is no answer.
                    Some(_) if left == 0 && prefix && self.content_length.is_none() => break,
                    Some(rest) => match next_frame(rest).await {
                        None => break,
                        Some(frame) => match frame.map_err(|_| IncompleteBody)?.into_data() {
                            Ok(data) => data,
                            Err(_) => continue,
                        },
                    },
                },
            };
            seen += data.len() as u64;
            let covered = data.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            hasher.update(&data[..covered]);
            left -= covered as u64;
            if covered < data.len() && !prefix {
                return Ok(false);
            }
        }
        if self.content_length.is_some_and(|expected| expected != seen) {
            return Err(IncompleteBody);
        }
        Ok(left == 0 && hasher.so_far(kept.extent).agrees_with(kept))
    }
}

/// Whether a whole body agrees with a record's part, over the record's length.
pub(crate) fn covers(body: &[u8], mut hasher: BodyHasher, kept: &BodyPart) -> bool {
    let covered = usize::try_from(kept.length).unwrap_or(usize::MAX);
    let Some(covered) = body.get(..covered) else { return false };
    if covered.len() < body.len() && kept.extent == Extent::Whole {
        return false;
    }
    hasher.update(covered);
    hasher.so_far(kept.extent).agrees_with(kept)
}

fn joined(frames: Pieces, length: usize) -> Bytes {
    let mut frames = frames.into_iter();
    match frames.next() {
        None => Bytes::new(),
        Some(only) if frames.as_slice().is_empty() => only,
        Some(first) => {
            let mut whole = BytesMut::with_capacity(length);
            whole.extend_from_slice(&first);
            frames.for_each(|data| whole.extend_from_slice(&data));
            whole.freeze()
        }
    }
}

pub(crate) async fn next_frame<B: Body + Unpin>(
    body: &mut B,
) -> Option<Result<Frame<B::Data>, B::Error>> {
    std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
}

/// Sees a long request body go by to the handler.
pub(crate) struct Tap(Mutex<Seen>);

struct Seen {
    hasher: BodyHasher,
    length: u64,
    content_length: Option<u64>,
    extent: Extent,
    broke_off: bool,
}

impl Tap {
    fn new(hasher: BodyHasher, content_length: Option<u64>) -> Self {
        let extent = Extent::Prefix;
        Self(Mutex::new(Seen { hasher, length: 0, content_length, extent, broke_off: false }))
    }

    fn saw(&self, data: &[u8]) {
        let mut seen = self.seen();
        seen.hasher.update(data);
        seen.length += data.len() as u64;
    }

    fn broke_off(&self) {
        self.seen().broke_off = true;
    }

    /// The body ended; `false` if it had announced more.
    fn ended(&self) -> bool {
        let mut seen = self.seen();
        let whole = seen.content_length.is_none_or(|expected| expected == seen.length);
        if whole {
            seen.extent = Extent::Whole;
        } else {
            seen.broke_off = true;
        }
        whole
    }

    /// The part of the body that the handler has been given so far, or `None` if it broke off.
    pub(crate) fn part(&self) -> Option<BodyPart> {
        let seen = self.seen();
        // Who was given all that was announced has no reason to ask for more: an HTTP/1.1 client
        // does not, and then only the count says that this was the whole.
        let announced = seen.content_length == Some(seen.length);
        let extent = if announced { Extent::Whole } else { seen.extent };
        (!seen.broke_off).then(|| seen.hasher.so_far(extent))
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pin_project! {
    /// The body of a response, as a guarded service gives it.
    pub struct ResponseBody<B> {
        #[pin]
        kind: ResponseKind<B>,
    }
}

pin_project! {
    #[project = ResponseKindProject]
    enum ResponseKind<B> {
        Passed { #[pin] body: B },
        Kept { data: Left, trailers: Trailers },
        Resumed { data: Left, rest: B },
        Live { live: Live },
    }
}

impl<B> ResponseBody<B> {
    pub(crate) fn passed(body: B) -> Self {
        Self { kind: ResponseKind::Passed { body } }
    }

    pub(crate) fn kept(data: impl Into<Pieces>, trailers: Trailers) -> Self {
        let data = data.into().into_iter();
        Self { kind: ResponseKind::Kept { data, trailers } }
    }

    pub(crate) fn live(live: Live) -> Self {
        Self { kind: ResponseKind::Live { live } }
    }

    pub(crate) fn resumed(data: Pieces, rest: B) -> Self {
        Self { kind: ResponseKind::Resumed { data: data.into_iter(), rest } }
    }

    /// The body that the inner service gave, if this response was not guarded: adapters hand it on
    /// as it is.
    ///
    /// # Errors
    ///
    /// This body itself, if it is anything else.
    pub fn into_passed(self) -> Result<B, Self> {
        match self.kind {
            ResponseKind::Passed { body } => Ok(body),
            kind => Err(Self { kind }),
        }
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().kind.project() {
            ResponseKindProject::Passed { body } => {
                body.poll_frame(cx).map(|frame| frame.map(|it| it.map_err(Into::into)))
            }
            ResponseKindProject::Kept { data, trailers } => Poll::Ready(
                next_data(data)
                    .map(Frame::data)
                    .or_else(|| trailers.take().map(|it| Frame::trailers(*it)))
                    .map(Ok),
            ),
            ResponseKindProject::Resumed { data, rest } => match next_data(data) {
                Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
                None => Pin::new(rest)
                    .poll_frame(cx)
                    .map(|frame| frame.map(|it| it.map_err(Into::into))),
            },
            ResponseKindProject::Live { live } => live.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            ResponseKind::Passed { body } => body.is_end_stream(),
            ResponseKind::Kept { data, trailers } => {
                trailers.is_none() && data.as_slice().iter().all(Bytes::is_empty)
            }
            ResponseKind::Resumed { data, rest } => {
                data.as_slice().is_empty() && rest.is_end_stream()
            }
            // Only polling to the end says that it ended well.
            ResponseKind::Live { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            ResponseKind::Passed { body } => body.size_hint(),
            ResponseKind::Kept { data, trailers } => exactly(length_of(data), trailers),
            ResponseKind::Resumed { data, rest } => after(data, rest.size_hint()),
            ResponseKind::Live { .. } => SizeHint::default(),
        }
    }
}

impl<B> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}

/// The size of a body that is at hand. HTTP/1.1 sends trailers after a chunked body only (R6), so
/// one with trailers must not say how long it is.
fn exactly(length: u64, trailers: &Trailers) -> SizeHint {
    if trailers.is_none() {
        return SizeHint::with_exact(length);
    }
    let mut hint = SizeHint::new();
    hint.set_lower(length);
    hint
}

/// The size of a body of which `read` has been read already.
fn after(read: &Left, rest: SizeHint) -> SizeHint {
    let read = length_of(read);
    let mut hint = SizeHint::new();
    hint.set_lower(rest.lower().saturating_add(read));
    if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(read)) {
        hint.set_upper(upper);
    }
    hint
}

fn length_of(data: &Left) -> u64 {
    data.as_slice().iter().map(|data| data.len() as u64).sum()
}

fn next_data(data: &mut Left) -> Option<Bytes> {
    data.find(|data| !data.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collected(lengths: impl IntoIterator<Item = usize>) -> (Pieces, Vec<u8>) {
        let (mut collected, mut whole) = (Collected::default(), Vec::new());
        for (number, length) in lengths.into_iter().enumerate() {
            let piece = vec![(number % 251) as u8; length];
            whole.extend_from_slice(&piece);
            collected.push(piece.into());
        }
        (collected.pieces(), whole)
    }

    #[test]
    fn r5_small_pieces_are_copied_together() {
        let (pieces, whole) = collected([5; 10_000]);
        assert!(pieces.len() <= 2, "{} pieces", pieces.len());
        assert_eq!(pieces.concat(), whole);
    }

    #[test]
    fn r5_pieces_keep_their_order() {
        let large = Collected::SMALL;
        let (pieces, whole) = collected([1, 2, large, 3, 0, 4, large + 1, large - 1, 5]);
        let lengths: Vec<_> = pieces.iter().map(Bytes::len).collect();
        assert_eq!(lengths, [1, 2, large, 7, large + 1, large + 4]);
        assert_eq!(pieces.concat(), whole);
    }

    #[test]
    fn a_large_piece_is_not_copied() {
        let large = Bytes::from(vec![7; Collected::SMALL]);
        let mut collected = Collected::default();
        collected.push(Bytes::from_static(b"a"));
        collected.push(large.clone());
        assert_eq!(collected.pieces()[1].as_ptr(), large.as_ptr());
    }
}
