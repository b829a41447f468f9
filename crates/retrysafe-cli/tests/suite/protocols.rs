//! HTTP/2 in front and behind, and a service behind TLS.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::support::{OK, Running, Service, exchange, header, post, retrysafe, status};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Version, header::HOST};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    net::TcpListener,
    sync::{Notify, Semaphore},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self,
        pki_types::{CertificateDer, PrivateKeyDer},
    },
};

/// A service that answers with what it saw: the version, the host and how long the body was.
#[derive(Clone)]
struct Seen {
    requests: Arc<AtomicUsize>,
    /// Of the last request.
    headers: Arc<Mutex<HeaderMap>>,
    arrived: Arc<Notify>,
    /// It reads a body and answers while it has a permit.
    may_go_on: Arc<Semaphore>,
}

impl Seen {
    fn at_once() -> Self {
        Self::when_told(Semaphore::MAX_PERMITS)
    }

    fn when_told(permits: usize) -> Self {
        Self {
            requests: Arc::default(),
            headers: Arc::default(),
            arrived: Arc::default(),
            may_go_on: Arc::new(Semaphore::new(permits)),
        }
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    async fn answer(self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        self.requests.fetch_add(1, Ordering::SeqCst);
        *self.headers.lock().unwrap() = request.headers().clone();
        self.arrived.notify_one();
        let _permit = self.may_go_on.acquire().await.unwrap();
        let version = request.version();
        let host = match request.uri().authority() {
            Some(authority) => authority.to_string(),
            None => request.headers()[HOST].to_str().unwrap().to_owned(),
        };
        assert!(request.headers().contains_key("idempotency-attempt"));
        let length = request.into_body().collect().await.unwrap().to_bytes().len();
        let text = format!("{version:?} {host} {length}");
        Response::builder().status(StatusCode::CREATED).body(Full::new(text.into())).unwrap()
    }

    async fn serve<C>(self, connection: C)
    where
        C: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let answer = service_fn(move |request| {
            let seen = self.clone();
            async move { Ok::<_, Infallible>(seen.answer(request).await) }
        });
        let server = auto::Builder::new(TokioExecutor::new());
        let _ = server.serve_connection(TokioIo::new(connection), answer).await;
    }
}

/// Listens, with TLS if there is a certificate.
async fn listen(seen: Seen, tls: Option<TlsAcceptor>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (seen, tls) = (seen.clone(), tls.clone());
            tokio::spawn(async move {
                match tls {
                    None => seen.serve(stream).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            seen.serve(stream).await;
                        }
                    }
                }
            });
        }
    });
    address
}

/// A certificate for this machine that nobody has signed, written to `path` for those who trust it.
fn certificate(path: &Path, protocols: &[&str]) -> TlsAcceptor {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(path, made.cert.pem()).unwrap();
    let chain = vec![CertificateDer::from(made.cert.der().to_vec())];
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = rustls::crypto::ring::default_provider();
    let mut config = rustls::ServerConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

/// A proxy, started where it may block.
async fn proxy(upstream: String, flags: &'static [&'static str], trust: Option<&Path>) -> Running {
    let mut command = retrysafe();
    command.args(["proxy", "--listen", "127.0.0.1:0", "--store", "memory:"]);
    command.args(["--upstream", &upstream]).args(flags);
    command.env_remove("SSL_CERT_DIR").env_remove("SSL_CERT_FILE");
    if let Some(trust) = trust {
        command.env("SSL_CERT_FILE", trust);
    }
    tokio::task::spawn_blocking(move || Running::start(&mut command)).await.unwrap()
}

/// A POST with a key over HTTP/1.1: the status, the marker of a replay, and the body.
async fn send(proxy: &Running) -> (u16, Option<String>, String) {
    let address = proxy.address;
    let exchanged = tokio::task::spawn_blocking(move || {
        exchange(address, &post("/orders", "Idempotency-Key: k-1\r\n", "{}"))
    });
    let response = exchanged.await.unwrap();
    let (_, body) = response.split_once("\r\n\r\n").unwrap();
    (status(&response), header(&response, "idempotent-replayed"), body.to_owned())
}

/// Sends all of its requests on one connection.
fn h2_client() -> Client<HttpConnector, Full<Bytes>> {
    Client::builder(TokioExecutor::new()).http2_only(true).build_http()
}

fn upload(proxy: &Running, body: Vec<u8>) -> Request<Full<Bytes>> {
    Request::post(format!("http://{}/orders", proxy.address))
        .header("idempotency-key", "k-1")
        .body(Full::new(body.into()))
        .unwrap()
}

#[tokio::test]
async fn cookies_that_http_2_splits_are_one_line_behind() {
    let service = Service::listen();
    let proxy = proxy(format!("http://{}", service.address), &[], None).await;
    let served = tokio::task::spawn_blocking(move || {
        let mut connection = service.accept();
        let request = connection.request().unwrap();
        connection.send(OK);
        request
    });
    let request = Request::post(format!("http://{}/orders", proxy.address));
    let request = request.header("cookie", "a=b; c=d").header("cookie", "session=1");
    let response = h2_client().request(request.body(Full::default()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    let request = served.await.unwrap();
    let cookies: Vec<_> = request.lines().filter(|line| line.starts_with("cookie: ")).collect();
    assert_eq!(cookies, ["cookie: a=b; c=d; session=1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_in_front() {
    let seen = Seen::at_once();
    let service = listen(seen.clone(), None).await;
    let proxy = proxy(format!("http://{service}"), &[], None).await;
    let client = h2_client();
    let send = |body: Vec<u8>| client.request(upload(&proxy, body));
    let long = vec![b'a'; 300_000];
    let first = send(long.clone()).await.unwrap();
    assert_eq!((first.status(), first.version()), (StatusCode::CREATED, Version::HTTP_2));
    assert!(!first.headers().contains_key("idempotent-replayed"));
    let body = first.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, format!("HTTP/1.1 {} 300000", proxy.address));
    let retry = send(long.clone()).await.unwrap();
    assert_eq!(retry.headers()["idempotent-replayed"], "true");
    assert_eq!(retry.into_body().collect().await.unwrap().to_bytes(), body);
    let longer = send([long, vec![b'a']].concat()).await.unwrap();
    assert_eq!(longer.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(seen.requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn f4_duplicates_of_an_upload_do_not_stall_it_on_one_connection() {
    // What is not looked at is not read either.
    const WAITS: &[&str] = &["--on-in-flight", "wait:1h"];
    const IGNORES: &[&str] = &["--on-in-flight", "wait:1h", "--fingerprint", "no-body"];
    for flags in [WAITS, IGNORES] {
        let seen = Seen::when_told(0);
        let service = listen(seen.clone(), None).await;
        let proxy = proxy(format!("http://{service}"), flags, None).await;
        let client = h2_client();
        let long = vec![b'a'; 4 * 1024 * 1024];
        let first = tokio::spawn(client.request(upload(&proxy, long.clone())));
        seen.arrived.notified().await;
        // Together they are many times the window of the connection.
        for _ in 0..8 {
            let duplicate = client.request(upload(&proxy, long.clone())).await.unwrap();
            assert_eq!(duplicate.status(), StatusCode::CONFLICT, "{flags:?}");
        }
        seen.may_go_on.add_permits(1);
        assert_eq!(first.await.unwrap().unwrap().status(), StatusCode::CREATED);
        assert_eq!(seen.requests(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn disconnect_frees_not_when_a_stream_is_cancelled() {
    let seen = Seen::when_told(0);
    let service = listen(seen.clone(), None).await;
    let proxy = proxy(format!("http://{service}"), &["--on-in-flight", "wait:1h"], None).await;
    let client = h2_client();
    let first = tokio::spawn(client.request(upload(&proxy, vec![b'a'])));
    seen.arrived.notified().await;
    first.abort();
    let retry = tokio::spawn(client.request(upload(&proxy, vec![b'a'])));
    seen.may_go_on.add_permits(1);
    let retry = retry.await.unwrap().unwrap();
    assert_eq!(retry.headers()["idempotent-replayed"], "true");
    assert_eq!(seen.requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_behind_without_tls() {
    let seen = Seen::at_once();
    let service = listen(seen.clone(), None).await;
    let proxy = proxy(format!("http://{service}"), &["--upstream-h2c"], None).await;
    let answer = "HTTP/2.0 shop.example 2".to_owned();
    assert_eq!(send(&proxy).await, (201, None, answer.clone()));
    assert_eq!(send(&proxy).await, (201, Some("true".to_owned()), answer));
    assert_eq!(seen.requests(), 1);
}

/// A gRPC server may refuse what does not say so.
#[tokio::test(flavor = "multi_thread")]
async fn who_takes_trailers_says_so_behind() {
    for (flags, connection) in [(&["--upstream-h2c"][..], None), (&[], Some("te"))] {
        let seen = Seen::at_once();
        let service = listen(seen.clone(), None).await;
        let proxy = proxy(format!("http://{service}"), flags, None).await;
        let mut request = upload(&proxy, vec![b'a']);
        request.headers_mut().insert("te", "trailers".parse().unwrap());
        assert_eq!(h2_client().request(request).await.unwrap().status(), StatusCode::CREATED);
        let headers = seen.headers.lock().unwrap();
        assert_eq!(headers["te"], "trailers", "{flags:?}");
        assert_eq!(headers.get("connection").map(|it| it.to_str().unwrap()), connection);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_behind_tls() {
    let folder = tempfile::tempdir().unwrap();
    let trust = folder.path().join("trusted.pem");
    for (protocols, answer) in [
        (&["http/1.1"][..], "HTTP/1.1 shop.example 2"),
        (&["h2", "http/1.1"], "HTTP/2.0 shop.example 2"),
    ] {
        let seen = Seen::at_once();
        let service = listen(seen.clone(), Some(certificate(&trust, protocols))).await;
        let upstream = format!("https://localhost:{}", service.port());
        let proxy = proxy(upstream, &[], Some(&trust)).await;
        assert_eq!(send(&proxy).await, (201, None, answer.to_owned()));
        assert_eq!(send(&proxy).await, (201, Some("true".to_owned()), answer.to_owned()));
        assert_eq!(seen.requests(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_nobody_trusts_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let seen = Seen::at_once();
    let acceptor = certificate(&folder.path().join("untrusted.pem"), &["h2", "http/1.1"]);
    let service = listen(seen.clone(), Some(acceptor)).await;
    let mut proxy = proxy(format!("https://localhost:{}", service.port()), &[], None).await;
    // Provably nothing was done, so the key is free for the next try.
    for _ in 0..2 {
        let (status, _, body) = send(&proxy).await;
        assert_eq!(status, 502);
        assert!(body.contains("\"code\":\"upstream_unreachable\""), "{body}");
    }
    proxy.logged("invalid peer certificate");
    assert_eq!(seen.requests(), 0);
}
