//! The idempotency engine and its Tower layer: an operation that names itself with an
//! `Idempotency-Key` runs once, and every retry gets the same answer.
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use retrysafe::{BoxError, IdempotencyLayer, MemoryStore, RequestBody, Scope};
//! use tower::{Layer, Service, ServiceExt};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let charge = tower::service_fn(|_: Request<RequestBody<Full<Bytes>>>| async {
//!     Ok::<_, BoxError>(Response::builder().status(201).body(Full::from("charged"))?)
//! });
//! let layer = IdempotencyLayer::builder(MemoryStore::new(), Scope::shared()).build()?;
//! let mut service = layer.layer(charge);
//!
//! let request = || {
//!     Request::post("/charges").header("Idempotency-Key", "one").body(Full::from("100 EUR"))
//! };
//! let first = service.ready().await?.call(request()?).await?;
//! let retry = service.ready().await?.call(request()?).await?;
//! assert_eq!(first.status(), 201);
//! assert_eq!(retry.status(), 201);
//! assert_eq!(retry.headers()["Idempotent-Replayed"], "true");
//! # Ok(())
//! # }
//! ```
//!
//! For Axum use `retrysafe-axum`, which re-exports this crate.
//!
//! # What is promised
//!
//! - Of any number of requests with one key, one runs the handler at a time, in all processes that
//!   share the store; a finished one answers all the others.
//! - A handler that has to wait goes on as a task of its own. A client that hangs up changes nothing:
//!   the outcome is kept, and the retry gets it.
//! - The record is durable (as the store's page says) before the first byte of the answer leaves.
//! - An attempt that lost its lease never answers with its own result.
//!
//! And what is not: by default an operation whose outcome is unknown (a crash, a 5xx) **runs again**
//! on the next retry. The handler is told ([`Attempt::previous_vanished`]), and
//! [`Attempt::derive_key`] gives it the same key for another service in every attempt. Where that is
//! not enough, [`OnUnknownOutcome::Refuse`] runs at most once, and
//! [`OnUnknownOutcome::reconcile`] looks first.
//!
//! # How a request flows
//!
//! ```text
//! request -> key -> scope -> (small body read, fingerprint) -> store.begin -> decide
//!    execute  -> task { handler(request + context), renew each lease/3 }
//!                -> outcome policy -> store.complete -> response
//!    replay   -> response from the record + marker        conflict, mismatch, unknown -> problem
//!    in flight + wait -> one watch per key and process -> decide again
//! ```
//!
//! To follow it in the code: [`IdempotencyService`] (which requests are guarded), `guard.rs` (key,
//! scope, body and fingerprint), `settle.rs` (from the claim to the decision), `run.rs` (from the
//! handler to the record), [`Engine`] (every call to the store), and [`store`] (what a store does).
//!
//! # Any function
//!
//! [`Once`] does the same for what is no request: a consumer, a job, a webhook's work. It goes the same
//! way from `settle.rs` on, with the operation's name in the place of method and path. A [`Batch`] is
//! many of them.
//!
//! # Exactly once
//!
//! A store in the service's own database can commit its record with the work: it lends the handler a
//! transaction ([`FromAttempt`]). A handler that calls other services is cut into [`Phases`], which are
//! kept between the calls; a [`Completer`] goes on with what was abandoned there.
//!
//! # Order of layers
//!
//! Put the layer inside of authentication (it needs to know who calls), inside of rate limits and
//! CORS, and outside of whatever makes the response part of the operation. A time-out layer outside
//! only ends the client's wait; inside, it drops the handler half done, which is why 408 is an
//! unknown outcome.
//!
//! # Shutdown
//!
//! Stop accepting, then [`Engine::drain`]. What a killed process was running is found again when
//! its lease is over.

mod answers;
mod batch;
mod body;
mod completer;
mod door;
mod engine;
mod execution;
mod future;
mod guard;
mod keeper;
mod layer;
mod observe;
mod once;
mod phases;
mod run;
mod scope;
mod service;
mod settle;
mod stream;
mod waiting;

pub use retrysafe_core::*;

pub use self::{
    batch::{Batch, BatchItem, BatchProgress, BatchReport},
    body::{BoxError, RequestBody, ResponseBody},
    completer::{Completed, Completer, KeptCall},
    engine::{Engine, EngineBuilder},
    future::ResponseFuture,
    layer::{IdempotencyLayer, IdempotencyLayerBuilder},
    once::{Done, Once, OnceBuilder, OnceContext, OnceError, OnceRun, Unnamed},
    phases::{PhaseError, Phases},
    run::StreamedResponse,
    scope::ScopeFrom,
    service::IdempotencyService,
};

/// The guide's Rust code compiles.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/guides/tower.md")]
struct Guide;
