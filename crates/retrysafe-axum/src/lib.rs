//! retrysafe for Axum: an operation that names itself with an `Idempotency-Key` runs once, and every
//! retry gets the same answer.
//!
//! This crate is [`retrysafe`] with Axum's own types; everything of it is re-exported here, so this is
//! the only one to depend on. A layer is a store, where the scope comes from, and what you want
//! otherwise than by default:
//!
//! ```
//! use axum::{Extension, Json, Router, extract::Request, http::StatusCode};
//! use axum::{middleware::{self, Next}, response::Response, routing::post};
//! use retrysafe_axum::{CurrentAttempt, IdempotencyLayer, IdempotentRouter, MemoryStore, ScopeFrom};
//! # use axum::{body::Body, response::IntoResponse};
//! # use serde_json::{Value, json};
//! # use tower::ServiceExt as _;
//!
//! #[derive(Clone)]
//! struct User { id: String }
//!
//! /// Your authentication: whatever it is, it says who the caller is.
//! async fn authenticate(mut request: Request, next: Next) -> Response {
//!     request.extensions_mut().insert(User { id: "alice".to_owned() });
//!     next.run(request).await
//! }
//!
//! async fn create_order(
//!     Extension(user): Extension<User>,
//!     attempt: CurrentAttempt,
//!     Json(order): Json<Value>,
//! ) -> (StatusCode, Json<Value>) {
//!     // The same in every attempt of this order, so the card processor charges once.
//!     let processor_key = attempt.derive_key("charge");
//!     # let _ = (user.id, processor_key);
//!     (StatusCode::CREATED, Json(order))
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let scope = ScopeFrom::extension(|user: &User| user.id.clone());
//! let idempotency = IdempotencyLayer::builder(MemoryStore::new(), scope).build()?;
//! let app = Router::new()
//!     .route("/orders", post(create_order))
//!     .idempotent(idempotency)
//!     .layer(middleware::from_fn(authenticate)); // outside, because the scope comes from it
//!
//! # let request = || {
//! #     axum::http::Request::post("/orders")
//! #         .header("content-type", "application/json")
//! #         .header("idempotency-key", "8e03978e-40d5-43e8-bc93-6894a57f9324")
//! #         .body(Body::from(json!({ "item": "book" }).to_string()))
//! # };
//! let first = app.clone().oneshot(request()?).await?;
//! let retry = app.clone().oneshot(request()?).await?;
//! assert_eq!(first.status(), StatusCode::CREATED);
//! assert_eq!(retry.status(), StatusCode::CREATED);
//! assert_eq!(retry.headers()["idempotent-replayed"], "true");
//! # Ok(())
//! # }
//! ```
//!
//! # Where the layer goes
//!
//! *Inside* what says who the caller is (the scope is taken from there), what limits its rate, and
//! what gives up on slow answers; *outside* of everything that acts. Axum applies layers from the
//! inside out: what is added later is further outside.
//!
//! | to guard | write | a request without a key costs |
//! |---|---|---|
//! | the routes of a [`Router`](axum::Router) | [`router.idempotent(layer)`](IdempotentRouter::idempotent) | what any layer on a `Router` costs: Axum boxes it |
//! | the methods of one route | [`post(create).idempotent(layer)`](IdempotentRouter::idempotent) | the same |
//! | one handler | [`post(create.layer(layer))`](axum::handler::Handler::layer) | no allocation |
//! | a whole service | [`layer.layer(router)`](tower_layer::Layer::layer), served as it is | no allocation |
//!
//! Under nested routers Axum takes the prefix off the path; a key is still bound to the path as the
//! client sent it, wherever the layer is.
//!
//! # In a handler
//!
//! - [`Key`] is the key. A request without one is refused, layer or not.
//! - [`CurrentAttempt`] is the attempt: its number, its fence, whether an earlier one vanished, and
//!   [`derive_key`](Attempt::derive_key) for calls to other services.
//! - [`Overrule`] in a response says what becomes of its record, whatever the policy says.
//! - [`StreamedResponse`] in a response says that it is a stream; server-sent events need no mark.
//!
//! # Without a layer
//!
//! A handler can keep its own response, in one line: [`Once::respond`]. It decides itself what the
//! operation is called, whose key it is and what is compared; [`Key`] reads the key.
//!
//! ```
//! use axum::{Json, Router, extract::State, response::IntoResponse, routing::post};
//! use retrysafe_axum::{Key, MemoryStore, Once, Scope};
//! use serde_json::{Value, json};
//!
//! async fn create_order(
//!     State(once): State<Once<MemoryStore>>,
//!     Key(key): Key,
//!     Json(order): Json<Value>,
//! ) -> impl IntoResponse {
//!     let reply = json!({ "ordered": order["item"] });
//!     once.respond("create_order", &Scope::shared(), key.as_str(), &order, |_context| async move {
//!         Json(reply).into_response() // whatever has to happen once happens here
//!     })
//!     .await
//! }
//!
//! let once = Once::builder(MemoryStore::new()).build()?;
//! let app: Router = Router::new().route("/orders", post(create_order)).with_state(once);
//! # Ok::<(), retrysafe_axum::ConfigError>(())
//! ```
//!
//! An endpoint that takes many items, each with a key of its own, answers with a [`MultiStatus`].
//!
//! # At shutdown
//!
//! A handler goes on when its client has hung up, and so may outlive the server. Wait for it:
//!
//! ```
//! # async fn serve<S: retrysafe_axum::Store>(
//! #     listener: tokio::net::TcpListener,
//! #     app: axum::Router,
//! #     idempotency: retrysafe_axum::IdempotencyLayer<S>,
//! #     stop: impl Future<Output = ()> + Send + 'static,
//! # ) -> std::io::Result<()> {
//! axum::serve(listener, app).with_graceful_shutdown(stop).await?;
//! idempotency.engine().drain().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Names
//!
//! Some types are this crate's own, under the names that they have in [`retrysafe`]:
//! [`IdempotencyLayer`] with its [`IdempotencyService`] and [`ResponseFuture`], because the original
//! URI is Axum's to know and a body that Axum has boxed should not be boxed again, and [`Overrule`]
//! and [`StreamedResponse`], because they are parts of responses here.

mod extract;
mod future;
mod layer;
mod multi_status;
mod respond;
mod router;
mod service;

#[doc(inline)]
pub use retrysafe::*;

pub use self::{
    extract::{CurrentAttempt, Key, Rejection, Transaction},
    future::ResponseFuture,
    layer::IdempotencyLayer,
    multi_status::MultiStatus,
    respond::{Overrule, StreamedResponse},
    router::IdempotentRouter,
    service::IdempotencyService,
};

/// The README's Rust code compiles.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

/// So does that of the guides.
#[cfg(doctest)]
mod guides {
    #[doc = include_str!("../../../docs/guides/axum.md")]
    struct Axum;
    #[doc = include_str!("../../../docs/guides/batches.md")]
    struct Batches;
    #[doc = include_str!("../../../docs/guides/moving-from-a-redis-middleware.md")]
    struct MovingFromARedisMiddleware;
    #[doc = include_str!("../../../docs/guides/once.md")]
    struct Once;
}
