//! The listening side: HTTP/1.1 and HTTP/2 without TLS, until told to stop.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Buf;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use pin_project_lite::pin_project;
use retrysafe::BoxError;
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::forward::Peer;

/// How long a client may take to send a request's head, the first included, and how long an idle connection is kept:
/// longer than load balancers keep theirs (60 s), so that they close first.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// How long to wait before accepting again when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A port that is listened on.
#[derive(Debug)]
pub(crate) struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Starts to listen. Port 0 takes a free one.
    ///
    /// # Errors
    ///
    /// If the address can't be listened on: it is in use, not ours, or not allowed.
    pub(crate) async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            let advice = match error.kind() {
                io::ErrorKind::AddrInUse => "another process listens there",
                io::ErrorKind::AddrNotAvailable => "this machine has no such address",
                io::ErrorKind::PermissionDenied => "this user may not use that port",
                _ => {
                    return io::Error::new(
                        error.kind(),
                        format!("can't listen on {address}: {error}"),
                    );
                }
            };
            io::Error::new(error.kind(), format!("can't listen on {address}: {advice}"))
        })?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// Where it listens, with the port that was taken.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`, then finishes the requests that run, for as long as the caller waits.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves connections that are still served to the runtime.
    pub(crate) async fn serve<F, R, B>(self, answer: F, running: Running, stop: CancellationToken)
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response<B>> + Send + 'static,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let connections = GracefulShutdown::new();
        let mut server = auto::Builder::new(TokioExecutor::new());
        server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
        server
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(20));
        let server = Arc::new(server);
        while let Some((stream, peer)) = self.accept(&stop).await {
            let (answer, running) = (answer.clone(), running.clone());
            let asked = Arc::new(AtomicBool::new(false));
            let asks = asked.clone();
            let service = service_fn(move |mut request: Request<Incoming>| {
                asks.store(true, Ordering::Relaxed);
                request.extensions_mut().insert(Peer(peer));
                let guard = running.enter();
                let answer = answer(request);
                async move {
                    let counted = answer.await.map(|body| Counted { body, _guard: guard });
                    Ok::<_, Infallible>(counted)
                }
            });
            let connection =
                server.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
            let connection = connections.watch(connection);
            tokio::spawn(async move {
                let mut connection = pin!(connection);
                // hyper's own limit counts from the first bytes.
                let ended = match timeout(HEAD_TIMEOUT, connection.as_mut()).await {
                    Ok(ended) => ended,
                    Err(_) if asked.load(Ordering::Relaxed) => connection.await,
                    Err(_) => return,
                };
                if let Err(error) = ended {
                    tracing::debug!(%peer, error = &*error, "a client's connection ended with an error");
                }
            });
        }
        // Nothing is accepted any more: who connects now is refused and goes elsewhere.
        drop(self.listener);
        connections.shutdown().await;
    }

    async fn accept(&self, stop: &CancellationToken) -> Option<(TcpStream, SocketAddr)> {
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let _ = stream.set_nodelay(true);
                    return Some((stream, peer));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// How many requests are being answered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Running(Arc<AtomicUsize>);

impl Running {
    /// How many there are now.
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn enter(&self) -> Guard {
        self.0.fetch_add(1, Ordering::Relaxed);
        Guard(self.clone())
    }
}

struct Guard(Running);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

pin_project! {
    /// A response's body; the request counts as running until it is gone.
    struct Counted<B> {
        #[pin]
        body: B,
        _guard: Guard,
    }
}

impl<B: Body<Data: Buf>> Body for Counted<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().body.poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt as _, time::Instant};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_connects_and_says_nothing_is_let_go() {
        let listener = Listener::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.address();
        let answer = |_| async { Response::new(String::new()) };
        tokio::spawn(listener.serve(answer, Running::default(), CancellationToken::new()));
        let since = Instant::now();
        let mut silent = TcpStream::connect(address).await.unwrap();
        assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
        assert!(since.elapsed() >= HEAD_TIMEOUT);
    }
}
