//! Requests that stay open: a unary one ends with its message.

use std::{
    error::Error,
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes};
use http::{Uri, uri::PathAndQuery};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::body::Body;

use crate::message::{PREFIX, length_of};

/// How long a request may stay open between two messages while it is being read ahead.
const PATIENCE: Duration = Duration::from_secs(10);

/// The body of a request that has to end.
///
/// The engine reads it ahead, and a listed method that streams both ways would wait for ever: the
/// client for an answer, we for the client. Such a request breaks off here, before it is claimed.
/// One that is longer than what is read ahead is the handler's to wait for.
pub(crate) struct Closing {
    body: Body,
    method: Option<PathAndQuery>,
    /// What is still read ahead.
    ahead: usize,
    place: Place,
    waited: Option<Pin<Box<Sleep>>>,
}

/// Where in its messages a body is.
#[derive(Default)]
struct Place {
    prefix: [u8; PREFIX],
    /// How much of the prefix has come.
    come: usize,
    /// How much of the message is missing.
    missing: usize,
}

impl Closing {
    pub(crate) fn new(body: Body, uri: &Uri, inline_body: usize) -> Self {
        let (ahead, place) = (inline_body.saturating_add(1), Place::default());
        let method = uri.path_and_query().cloned();
        Self { body, method, ahead, place, waited: None }
    }

    pub(crate) fn into_inner(self) -> Body {
        self.body
    }
}

impl Place {
    fn advance(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.missing > 0 {
                let skipped = self.missing.min(data.len());
                self.missing -= skipped;
                data.advance(skipped);
                continue;
            }
            let taken = (PREFIX - self.come).min(data.len());
            data.copy_to_slice(&mut self.prefix[self.come..][..taken]);
            self.come += taken;
            if self.come == PREFIX {
                (self.come, self.missing) = (0, length_of(&self.prefix));
            }
        }
    }

    fn is_between_messages(&self) -> bool {
        self.come == 0 && self.missing == 0
    }
}

impl HttpBody for Closing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                this.waited = None;
                if let Some(data) = frame.as_ref().and_then(|it| it.as_ref().ok()?.data_ref()) {
                    this.ahead = this.ahead.saturating_sub(data.len());
                    this.place.advance(data);
                }
                Poll::Ready(frame.map(|it| it.map_err(Into::into)))
            }
            Poll::Pending if this.ahead > 0 && this.place.is_between_messages() => {
                let waited = this.waited.get_or_insert_with(|| Box::pin(sleep(PATIENCE)));
                waited.as_mut().poll(cx).map(|()| {
                    tracing::warn!(
                        method = this.method.as_ref().map(PathAndQuery::path),
                        "a request stays open: is it really a unary method that is listed?",
                    );
                    Some(Err(StaysOpen.into()))
                })
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

type BoxError = Box<dyn Error + Send + Sync>;

#[derive(Debug)]
struct StaysOpen;

impl fmt::Display for StaysOpen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request stays open after its message")
    }
}

impl Error for StaysOpen {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g1_the_place_is_known_however_the_body_is_cut() {
        let body =
            [&[0, 0, 0, 0, 3][..], b"abc", &[0, 0, 0, 0, 0], &[1, 0, 0, 0, 1], b"d"].concat();
        for size in 1..=body.len() {
            let mut place = Place::default();
            let mut seen = 0;
            for piece in body.chunks(size) {
                place.advance(piece);
                seen += piece.len();
                let between = [8, 13, 19].contains(&seen);
                assert_eq!(place.is_between_messages(), between, "{seen} bytes in {size}s");
            }
        }
    }
}
