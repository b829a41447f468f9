//! The case table on the Tower layer, served by hyper alone.

use std::{convert::Infallible, net::SocketAddr};

use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use retrysafe::{IdempotencyLayer, MemoryStore, RequestBody, Scope};
use retrysafe_testkit::doors::{self, Door, Place, Profile, Service, ServiceBody};
use tokio::net::TcpListener;
use tower::{Layer as _, service_fn};

struct Tower;

impl Door for Tower {
    const PLACE: Place = Place::InProcess;

    async fn open(&self, service: Service, profile: Profile) -> SocketAddr {
        let layer = IdempotencyLayer::builder(MemoryStore::new(), Scope::shared())
            .settings(|settings| profile.change(settings))
            .build()
            .expect("the settings of a profile fit together");
        let guarded = layer.layer(service_fn(move |request: Request<RequestBody<Incoming>>| {
            let service = service.clone();
            async move { Ok::<Response<ServiceBody>, Infallible>(service.answer(request).await) }
        }));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let served = TowerToHyperService::new(guarded.clone());
                let connection =
                    http1::Builder::new().serve_connection(TokioIo::new(stream), served);
                tokio::spawn(connection.with_upgrades());
            }
        });
        address
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_case_table() {
    doors::all(&Tower).await;
}
