//! The case table itself: a door that protects nothing does not get through it.

use std::{convert::Infallible, net::SocketAddr};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use retrysafe_testkit::doors::{self, Door, Place, Profile, Service};
use tokio::net::TcpListener;

struct NoDoor;

impl Door for NoDoor {
    const PLACE: Place = Place::InProcess;

    async fn open(&self, service: Service, _: Profile) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        // The races would wait for what never comes.
        for path in [
            "check_then_set",
            "d2_fifty_that_wait",
            "disconnect_frees",
            "r5_events",
            "reader_guard_across_sleep",
            "waiters_eat_pool",
        ] {
            service.open(&format!("/{path}"));
        }
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
        address
    }
}

#[tokio::test(flavor = "multi_thread")]
#[should_panic(expected = "r2_a_retry_gets_the_same_answer, k6_a_key_is_required")]
async fn a_door_that_protects_nothing() {
    doors::all(&NoDoor).await;
}
