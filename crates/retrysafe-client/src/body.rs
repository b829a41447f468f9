//! Bodies that have been read, and bodies that tell when they have ended.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use pin_project_lite::pin_project;

use crate::transport::OnEnd;

pin_project! {
    /// A body of which the beginning has been read, or of whose end somebody wants to know.
    pub(crate) struct EndingBody<B> {
        read: Option<Bytes>,
        #[pin]
        rest: B,
        tell: Option<OnEnd>,
    }
}

impl<B> EndingBody<B> {
    pub(crate) fn after(read: Bytes, rest: B) -> Self {
        Self { read: Some(read), rest, tell: None }
    }

    pub(crate) fn telling(rest: B, tell: OnEnd) -> Self {
        Self { read: None, rest, tell: Some(tell) }
    }
}

impl<B: Body<Data = Bytes>> Body for EndingBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        if let Some(read) = this.read.take() {
            return Poll::Ready(Some(Ok(Frame::data(read))));
        }
        let frame = ready!(this.rest.as_mut().poll_frame(cx));
        let ended = match &frame {
            None => true,
            Some(Ok(_)) => this.rest.is_end_stream(),
            Some(Err(_)) => {
                *this.tell = None;
                false
            }
        };
        if ended && let Some(tell) = this.tell.take() {
            tell();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.rest.size_hint();
        let read = self.read.as_ref().map_or(0, |it| it.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(read));
        }
        hint.set_lower(hint.lower().saturating_add(read));
        hint
    }
}

pin_project! {
    /// The body of a request, or of an answer, after the layer has read what it had to.
    pub struct ReadBody<B> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = Projected]
    enum Kind<B> {
        Whole { #[pin] body: Full<Bytes> },
        Rest { #[pin] body: EndingBody<B> },
        Untouched { #[pin] body: B },
    }
}

impl<B> ReadBody<B> {
    pub(crate) fn whole(bytes: Bytes) -> Self {
        Self { kind: Kind::Whole { body: Full::new(bytes) } }
    }

    pub(crate) fn untouched(body: B) -> Self {
        Self { kind: Kind::Untouched { body } }
    }

    /// The body that was given, if nothing was done with it.
    pub(crate) fn given(&mut self) -> Option<&mut B> {
        match &mut self.kind {
            Kind::Untouched { body } => Some(body),
            Kind::Whole { .. } | Kind::Rest { .. } => None,
        }
    }

    /// The body that was given, as it was before so much was read of it.
    pub(crate) fn unread(self, read: Bytes) -> Self {
        match self.kind {
            Kind::Untouched { body } if !read.is_empty() => {
                Self { kind: Kind::Rest { body: EndingBody::after(read, body) } }
            }
            kind => Self { kind },
        }
    }

    /// Has somebody told when it has ended as it should.
    pub(crate) fn telling(self, tell: OnEnd) -> Self {
        match self.kind {
            Kind::Untouched { body } => {
                Self { kind: Kind::Rest { body: EndingBody::telling(body, tell) } }
            }
            Kind::Rest { body } => {
                Self { kind: Kind::Rest { body: EndingBody { tell: Some(tell), ..body } } }
            }
            Kind::Whole { body } => {
                tell();
                Self { kind: Kind::Whole { body } }
            }
        }
    }
}

impl<B: Body<Data = Bytes>> Body for ReadBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().kind.project() {
            Projected::Whole { body } => {
                body.poll_frame(cx).map(|frame| frame.map(|it| it.map_err(|never| match never {})))
            }
            Projected::Rest { body } => body.poll_frame(cx),
            Projected::Untouched { body } => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Whole { body } => body.is_end_stream(),
            Kind::Rest { body } => body.is_end_stream(),
            Kind::Untouched { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Whole { body } => body.size_hint(),
            Kind::Rest { body } => body.size_hint(),
            Kind::Untouched { body } => body.size_hint(),
        }
    }
}

// S3: what is in it is not shown.
impl<B> fmt::Debug for ReadBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReadBody(..)")
    }
}
