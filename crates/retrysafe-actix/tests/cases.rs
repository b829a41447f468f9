//! The case table on an Actix server with two workers.

use std::net::SocketAddr;

use actix_web::{App, HttpRequest, HttpResponse, HttpResponseBuilder, HttpServer, http, web};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use retrysafe_actix::{Idempotency, MemoryStore, Overrule, Scope};
use retrysafe_testkit::doors::{self, Door, Place, Profile, Service, ServiceBody};

struct Actix;

impl Door for Actix {
    const PLACE: Place = Place::InProcess;

    async fn open(&self, service: Service, profile: Profile) -> SocketAddr {
        let idempotency: Idempotency<_> = Idempotency::builder(MemoryStore::new(), Scope::shared())
            .settings(|settings| profile.change(settings))
            .build()
            .expect("the settings of a profile fit together");
        let server = HttpServer::new(move || {
            // Nested: Actix leaves the path as the client sent it.
            let case = web::scope("/{case}").default_service(web::to(answer));
            App::new()
                .app_data(web::Data::new(service.clone()))
                .app_data(web::PayloadConfig::new(64 << 20))
                .service(case.wrap(idempotency.clone()))
        })
        .workers(2)
        .disable_signals()
        .bind(("127.0.0.1", 0))
        .expect("a free port");
        let address = server.addrs()[0];
        tokio::spawn(server.run());
        address
    }
}

/// The service, which speaks another version of `http`.
async fn answer(service: web::Data<Service>, request: HttpRequest, body: Bytes) -> HttpResponse {
    let mut ours = ::http::Request::new(Full::new(body));
    *ours.uri_mut() = request.uri().to_string().parse().expect("a path");
    if let Some(how) = request.headers().get("x-answer") {
        let how = how.to_str().expect("a word").parse().expect("a value");
        ours.headers_mut().insert("x-answer", how);
    }
    let (head, body) = service.answer(ours).await.into_parts();
    let status = http::StatusCode::from_u16(head.status.as_u16()).expect("a status");
    let mut response = HttpResponseBuilder::new(status);
    for (name, value) in &head.headers {
        response.append_header((name.as_str(), value.as_bytes()));
    }
    let mut response = match body {
        ServiceBody::Whole(data) => response.body(data),
        live => response.streaming(live.into_data_stream()),
    };
    if let Some(overrule) = head.extensions.get::<retrysafe::Overrule>() {
        response.extensions_mut().insert(Overrule::from(*overrule));
    }
    response
}

#[tokio::test(flavor = "multi_thread")]
async fn the_case_table() {
    doors::all(&Actix).await;
}
