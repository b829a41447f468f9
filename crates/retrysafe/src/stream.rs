//! Responses that go out while they are being made (R5): the execution reads the body, sends it on
//! and copies it aside; the client's connection only takes what is there.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body::{Body, Frame};
use retrysafe_core::Store;
use tokio::sync::{Notify, mpsc};

use crate::{
    body::{BoxError, Collected, Pieces, Trailers, next_frame},
    execution::Execution,
};

/// How far the execution may be ahead of the client once nothing is copied any more.
const AHEAD: usize = 64 * 1024;

enum Piece {
    Frame(Frame<Bytes>),
    End,
    BrokeOff(BoxError),
}

/// The client's end of a live response.
pub(crate) struct Live {
    pieces: mpsc::UnboundedReceiver<Piece>,
    pace: Arc<Pace>,
    over: bool,
}

/// The execution's end of a live response. Dropped without an end, the response breaks off.
pub(crate) struct LiveSender {
    pieces: mpsc::UnboundedSender<Piece>,
    pace: Arc<Pace>,
}

#[derive(Default)]
struct Pace {
    waiting: AtomicUsize,
    moved: Notify,
}

/// A live response, from both ends.
pub(crate) fn live() -> (LiveSender, Live) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let pace = Arc::<Pace>::default();
    let live = Live { pieces: receiver, pace: pace.clone(), over: false };
    (LiveSender { pieces: sender, pace }, live)
}

impl Live {
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.over {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(self.pieces.poll_recv(cx)) {
            Some(Piece::Frame(frame)) => {
                let length = frame.data_ref().map_or(0, Bytes::len);
                self.pace.waiting.fetch_sub(length, Ordering::AcqRel);
                self.pace.moved.notify_one();
                Some(Ok(frame))
            }
            Some(Piece::End) => {
                self.over = true;
                None
            }
            Some(Piece::BrokeOff(error)) => {
                self.over = true;
                Some(Err(error))
            }
            None => {
                self.over = true;
                Some(Err(BrokeOff.into()))
            }
        })
    }
}

impl LiveSender {
    // A client that is gone is nobody's loss: the execution reads on for the record.
    fn send(&self, piece: Piece) {
        if let Piece::Frame(frame) = &piece {
            let length = frame.data_ref().map_or(0, Bytes::len);
            self.pace.waiting.fetch_add(length, Ordering::AcqRel);
        }
        let _ = self.pieces.send(piece);
    }

    /// Ends the response well.
    pub(crate) fn end(self, trailers: Trailers) {
        if let Some(trailers) = trailers {
            self.send(Piece::Frame(Frame::trailers(*trailers)));
        }
        self.send(Piece::End);
    }

    /// Breaks the response off.
    pub(crate) fn break_off(self, error: Option<BoxError>) {
        self.send(Piece::BrokeOff(error.unwrap_or_else(|| BrokeOff.into())));
    }

    /// Waits until the client has taken most of what was sent, or is gone.
    async fn keep_pace(&self) {
        while self.pace.waiting.load(Ordering::Acquire) > AHEAD && !self.pieces.is_closed() {
            tokio::select! {
                () = self.pace.moved.notified() => {}
                () = self.pieces.closed() => {}
            }
        }
    }
}

/// A response body that was read to its end.
pub(crate) struct Whole {
    pub(crate) data: Pieces,
    pub(crate) trailers: Trailers,
}

/// Why a response body was not read to its end.
pub(crate) enum NotWhole {
    /// It is longer than what is kept, or not at hand: the rest of it is still to be read.
    Long { data: Pieces },
    /// It broke off.
    BrokeOff,
    /// It panicked: whoever reads it catches that.
    Panicked,
}

/// Reads a body as long as it may be kept, and, unless it `waits`, as far as it is at hand.
pub(crate) async fn read<B>(
    body: &mut B,
    max_kept_body: usize,
    waits: bool,
) -> Result<Whole, NotWhole>
where
    B: Body<Data = Bytes> + Unpin,
{
    let (mut data, mut length) = (Collected::default(), 0);
    if body.size_hint().lower() > max_kept_body as u64 {
        return Err(NotWhole::Long { data: Pieces::new() });
    }
    while length <= max_kept_body {
        let frame = match waits {
            true => next_frame(body).await,
            false => match next_frame(body).now_or_never() {
                Some(frame) => frame,
                None => break,
            },
        };
        match frame {
            None => return Ok(Whole { data: data.pieces(), trailers: None }),
            Some(Err(_)) => return Err(NotWhole::BrokeOff),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(piece) => {
                    length += piece.len();
                    data.push(piece);
                }
                // Trailers are the last of a body: nobody waits for what is behind them.
                Err(frame) => {
                    let trailers = frame.into_trailers().ok().map(Box::new);
                    return Ok(Whole { data: data.pieces(), trailers });
                }
            },
        }
    }
    Err(NotWhole::Long { data: data.pieces() })
}

/// A live response body that ended well.
pub(crate) struct Streamed {
    /// What was copied aside; `None` if it became longer than what is kept.
    pub(crate) data: Option<Pieces>,
    pub(crate) trailers: Trailers,
}

/// Why a live response did not end well.
pub(crate) enum Broken {
    /// Its body broke off.
    Body,
    /// The lease was lost (E5).
    Lease,
}

/// Reads a body to its end and sends it on, whether or not the client is still there. What has been
/// `read` already goes out first.
///
/// # Errors
///
/// [`Broken`] says why it did not end well. The client's response has been broken off then.
pub(crate) async fn forward<B, S>(
    read: Pieces,
    mut body: B,
    max_kept_body: usize,
    client: LiveSender,
    execution: &Execution<S>,
) -> Result<(LiveSender, Streamed), Broken>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
    S: Store,
{
    let mut copied = Some(Collected::default());
    let mut length = 0;
    let mut copy = |piece: &Bytes, copied: &mut Option<Collected>| {
        length += piece.len();
        if length > max_kept_body {
            *copied = None;
        }
        if let Some(copied) = copied {
            copied.push(piece.clone());
        }
    };
    for piece in read {
        copy(&piece, &mut copied);
        client.send(Piece::Frame(Frame::data(piece)));
    }
    loop {
        let next = async {
            if copied.is_none() {
                client.keep_pace().await;
            }
            next_frame(&mut body).await
        };
        let frame = tokio::select! {
            frame = next => frame,
            () = execution.lost() => {
                client.break_off(None);
                return Err(Broken::Lease);
            }
        };
        let trailers = match frame {
            None => None,
            Some(Err(error)) => {
                client.break_off(Some(error.into()));
                return Err(Broken::Body);
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(piece) => {
                    copy(&piece, &mut copied);
                    client.send(Piece::Frame(Frame::data(piece)));
                    continue;
                }
                // The last of a body, and held back until the outcome is written.
                Err(frame) => frame.into_trailers().ok().map(Box::new),
            },
        };
        let data = copied.map(Collected::pieces);
        return Ok((client, Streamed { data, trailers }));
    }
}

#[derive(Debug)]
struct BrokeOff;

impl fmt::Display for BrokeOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the response broke off: its outcome could not be settled")
    }
}

impl std::error::Error for BrokeOff {}
