//! retrysafe for actix-web: an operation that names itself with an `Idempotency-Key` runs once, and
//! every retry gets the same answer.
//!
//! This crate is [`retrysafe`] with Actix's own types; everything of it is re-exported here, so this
//! is the only one to depend on. A middleware is a store, where the scope comes from, and what you
//! want otherwise than by default:
//!
//! ```
//! use actix_web::{App, Error, HttpMessage, HttpResponse, middleware::{Next, from_fn}, web};
//! use actix_web::{body::MessageBody, dev::{ServiceRequest, ServiceResponse}};
//! use retrysafe_actix::{CurrentAttempt, Idempotency, MemoryStore, ScopeFrom};
//! # use actix_web::test;
//! # use serde_json::{Value, json};
//!
//! #[derive(Clone)]
//! struct User { id: String }
//!
//! /// Your authentication: whatever it is, it says who the caller is.
//! async fn authenticate<B: MessageBody>(
//!     request: ServiceRequest,
//!     next: Next<B>,
//! ) -> Result<ServiceResponse<B>, Error> {
//!     request.extensions_mut().insert(User { id: "alice".to_owned() });
//!     next.call(request).await
//! }
//!
//! async fn create_order(
//!     user: web::ReqData<User>,
//!     attempt: CurrentAttempt,
//!     order: web::Json<Value>,
//! ) -> HttpResponse {
//!     // The same in every attempt of this order, so the card processor charges once.
//!     let processor_key = attempt.derive_key("charge");
//!     # let _ = (&user.id, processor_key);
//!     HttpResponse::Created().json(order)
//! }
//!
//! # #[actix_web::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let scope = ScopeFrom::extension(|user: &User| user.id.clone());
//! // Once, for all workers: what is in the closure that `HttpServer::new` takes is made for each.
//! let idempotency = Idempotency::builder(MemoryStore::new(), scope).build()?;
//! let app = move || {
//!     App::new()
//!         .route("/orders", web::post().to(create_order))
//!         .wrap(idempotency.clone())
//!         .wrap(from_fn(authenticate)) // outside, because the scope comes from it
//! };
//!
//! # let app = test::init_service(app()).await;
//! # let request = || {
//! #     test::TestRequest::post()
//! #         .uri("/orders")
//! #         .insert_header(("idempotency-key", "8e03978e-40d5-43e8-bc93-6894a57f9324"))
//! #         .set_json(json!({ "item": "book" }))
//! #         .to_request()
//! # };
//! let first = test::call_service(&app, request()).await;
//! let retry = test::call_service(&app, request()).await;
//! assert_eq!(first.status(), 201);
//! assert_eq!(retry.status(), 201);
//! assert_eq!(retry.headers().get("idempotent-replayed").unwrap(), "true");
//! # Ok(())
//! # }
//! ```
//!
//! # Where the middleware goes
//!
//! *Inside* what says who the caller is (the scope is taken from there), what limits its rate, and
//! what compresses; *outside* of everything that acts. Actix applies middlewares from the inside
//! out: what is wrapped later is further outside.
//!
//! | to guard | write |
//! |---|---|
//! | a whole app | `App::new()`…`.wrap(idempotency.clone())` |
//! | the resources of a scope | `web::scope("/payments")`…`.wrap(idempotency.clone())` |
//! | the methods of one resource | `web::resource("/orders")`…`.wrap(idempotency.clone())` |
//! | one route | `web::post().to(create).wrap(idempotency.clone())` |
//!
//! Actix does not change a path when scopes are nested, so a key is bound to the path as the client
//! sent it, wherever the middleware is.
//!
//! # In a handler
//!
//! - [`Key`] is the key. A request without one is refused, middleware or not; [`OptionalKey`] takes
//!   both.
//! - [`CurrentAttempt`] is the attempt: its number, its fence, whether an earlier one vanished, and
//!   [`derive_key`](Attempt::derive_key) for calls to other services.
//! - [`Overrule::of`] a response says what becomes of its record, whatever the policy says.
//! - [`StreamedResponse::of`] a response says that it is a stream; server-sent events need no mark.
//!
//! An `Err` of a handler, or of a middleware inside, is the response that Actix renders it to: its
//! status decides what is kept of it.
//!
//! # Threads
//!
//! A worker of Actix is one thread, and nothing of a request leaves it: a handler goes on there when
//! its client has hung up. What must not depend on that thread, in case the handler blocks it, is
//! elsewhere: leases are renewed on the [`background`] thread, what could not be recorded is written
//! again there, and the connections that the store opens live there.
//!
//! # At shutdown
//!
//! A worker ends with its last connection, and what still runs without one ends with it. So wait
//! for that before you stop the server, and let nothing new come meanwhile:
//!
//! ```
//! # use actix_web::{App, HttpServer};
//! # async fn serve<S: retrysafe_actix::Store>(
//! #     idempotency: retrysafe_actix::Idempotency<S>,
//! #     stop: impl Future<Output = ()>,
//! # ) -> std::io::Result<()> {
//! # let guarded = idempotency.clone();
//! # let app = move || App::new().wrap(guarded.clone());
//! let server = HttpServer::new(app).disable_signals().bind("127.0.0.1:3000")?.run();
//! let handle = server.handle();
//! let running = actix_web::rt::spawn(server);
//! stop.await; // SIGTERM, as a rule
//! handle.pause().await; // no more connections
//! idempotency.engine().drain().await;
//! handle.stop(true).await;
//! running.await?
//! # }
//! ```
//!
//! What is cut off all the same (a request that comes over an open connection after the drain, and
//! whose client hangs up) is an unknown outcome, as if the process had been killed.
//!
//! # Names
//!
//! Some types are this crate's own, under the names that they have in [`retrysafe`]: [`ScopeFrom`],
//! because extensions are Actix's here, [`IdempotencyService`] with its [`ResponseFuture`] and
//! [`ResponseBody`], and [`Overrule`] and [`StreamedResponse`], because they are extensions of
//! Actix's responses. To follow a request: [`Idempotency`], [`IdempotencyService`], `request.rs`
//! (into the engine), `handler.rs` (out of it to the handler), `response.rs` (and back).

mod aside;
mod background;
mod extract;
mod future;
mod handler;
mod head;
mod middleware;
mod request;
mod respond;
mod response;
mod scope;
mod service;

#[doc(inline)]
pub use retrysafe::*;

pub use self::{
    background::background,
    extract::{CurrentAttempt, Key, OptionalKey, Rejection},
    future::ResponseFuture,
    middleware::Idempotency,
    respond::{Marked, Overrule, StreamedResponse},
    response::ResponseBody,
    scope::ScopeFrom,
    service::IdempotencyService,
};

/// The guide's Rust code compiles.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/guides/actix.md")]
struct Guide;
