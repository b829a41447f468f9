//! The case table on the proxy: a process of its own, in front of a service that knows nothing of it.

use std::{convert::Infallible, net::SocketAddr, sync::Mutex};

use crate::support::Running;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use retrysafe_testkit::doors::{self, Door, Place, Profile, Service};
use tokio::{net::TcpListener, task::block_in_place};

#[derive(Default)]
struct Proxy(Mutex<Vec<Running>>);

impl Door for Proxy {
    const PLACE: Place = Place::BehindAWire;

    async fn open(&self, service: Service, profile: Profile) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service.clone();
                let answer = service_fn(move |request| {
                    let service = service.clone();
                    async move { Ok::<_, Infallible>(service.answer(request).await) }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
            }
        });
        let flags = [&["--scope", "shared"], profile.flags()].concat();
        let proxy = block_in_place(|| Running::proxy(upstream, &flags));
        let address = proxy.address;
        self.0.lock().unwrap().push(proxy);
        address
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_case_table() {
    doors::all(&Proxy::default()).await;
}
