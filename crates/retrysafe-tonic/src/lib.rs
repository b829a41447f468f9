//! retrysafe for Tonic: a unary method whose call names itself with an `idempotency-key` runs once,
//! and every retry gets the same answer.
//!
//! This crate is [`retrysafe`] for gRPC; everything of it is re-exported here, so this is the only
//! one to depend on. A layer is a store, where the scope comes from, and the list of methods:
//!
//! ```
//! use retrysafe_tonic::{
//!     IdempotencyLayer, IdempotentRequest, KeyInterceptor, MemoryStore, Scope, UnaryMethods,
//! };
//! use tonic::{Request, Response, Status};
//! use tower::Layer;
//! # mod ledger { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/ledger.v1.rs")); }
//! # use ledger::{
//! #     CountReply, CountRequest, TransferReply, TransferRequest, WatchRequest,
//! #     ledger_client::LedgerClient, ledger_server::{Ledger, LedgerServer},
//! # };
//!
//! struct Bank;
//!
//! #[tonic::async_trait]
//! impl Ledger for Bank {
//!     async fn transfer(
//!         &self,
//!         request: Request<TransferRequest>,
//!     ) -> Result<Response<TransferReply>, Status> {
//!         // The same in every attempt of this transfer, so the bank books it once.
//!         let transfer_id = request.attempt()?.derive_key("book");
//!         Ok(Response::new(TransferReply { transfer_id }))
//!     }
//!     // ...
//! #     async fn count(&self, _: Request<CountRequest>) -> Result<Response<CountReply>, Status> {
//! #         Err(Status::unimplemented(""))
//! #     }
//! #     type WatchStream = tokio_stream::Empty<Result<TransferReply, Status>>;
//! #     async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
//! #         Err(Status::unimplemented(""))
//! #     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let methods = UnaryMethods::of::<LedgerServer<Bank>>(["Transfer"])?;
//! let idempotency = IdempotencyLayer::builder(MemoryStore::new(), Scope::shared(), methods)
//!     .require_key()
//!     .build()?;
//! // Around one service, as here, or around all: Server::builder().layer(idempotency)
//! let service = idempotency.layer(LedgerServer::new(Bank));
//!
//! # let channel = service; // a client may call a service in its own process
//! let mut client = LedgerClient::with_interceptor(channel, KeyInterceptor::required());
//! let key = retrysafe_tonic::IdempotencyKey::new("8e03978e-40d5-43e8-bc93-6894a57f9324")?;
//! let call = || Request::new(TransferRequest::default()).with_key(&key);
//! let first = client.transfer(call()).await?;
//! let retry = client.transfer(call()).await?;
//! assert_eq!(first.get_ref(), retry.get_ref());
//! assert_eq!(retry.metadata().get("idempotent-replayed").unwrap(), "true");
//! # Ok(())
//! # }
//! ```
//!
//! # Which methods
//!
//! Those on the list, [`UnaryMethods`]; everything else passes through, unboxed (G1). From a
//! descriptor set the list is checked: a method that it does not know, or that streams, is an error.
//!
//! A key is in the metadata `idempotency-key`, or also in a field of the request
//! ([`UnaryMethods::key_field`], [`UnaryMethods::key_from`]); two that are not equal are refused (G2).
//! The fingerprint is of the method and of the message's bytes: metadata, `grpc-timeout` among it,
//! may differ between a call and its retry.
//!
//! # What is kept
//!
//! That is decided by `grpc-status`, in the trailers or, Trailers-Only, in the headers (G4):
//!
//! | status | |
//! |---|---|
//! | OK, INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION, OUT_OF_RANGE | kept: every retry gets it |
//! | UNAUTHENTICATED, PERMISSION_DENIED, RESOURCE_EXHAUSTED, ABORTED, UNIMPLEMENTED | the key is free again |
//! | CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, UNAVAILABLE, INTERNAL, DATA_LOSS, none | unknown: [`OnUnknownOutcome`] decides, and by default the next try runs |
//!
//! A handler overrules that for one answer with [`Overruled::overruled`]. Trailers, binary metadata
//! and error details come back as they were. The handler is asked for uncompressed messages, because
//! the next client may not understand what this one does.
//!
//! # What is answered instead
//!
//! A status with `google.rpc.ErrorInfo`, whose reason is the code in upper case (G3); [`to_status`]
//! makes it. Clients with a retry policy are told when to come back, or not to, by
//! `grpc-retry-pushback-ms`.
//!
//! # Where the layer goes
//!
//! *Inside* what says who the caller is ([`ScopeFrom::extension`] finds what an interceptor has put
//! into the extensions), and of gRPC-Web; *outside* of everything that acts. With
//! `Server::builder().layer(..)` what is added first is outside. Tonic's own time-outs, of the server
//! and of `grpc-timeout`, are outside of any layer: they end the client's wait, and the handler goes
//! on (E1).
//!
//! # At shutdown
//!
//! A handler goes on when its client has hung up, and so may outlive the server. Wait for it:
//!
//! ```
//! # async fn serve<S: retrysafe_tonic::Store>(
//! #     router: tonic::transport::server::Router,
//! #     address: std::net::SocketAddr,
//! #     idempotency: retrysafe_tonic::IdempotencyLayer<S>,
//! #     stop: impl Future<Output = ()> + Send + 'static,
//! # ) -> Result<(), tonic::transport::Error> {
//! router.serve_with_shutdown(address, stop).await?;
//! idempotency.engine().drain().await;
//! # Ok(())
//! # }
//! ```

mod future;
mod handler;
mod interceptor;
mod layer;
mod message;
mod methods;
mod open;
mod reconcile;
mod service;
mod status;

#[doc(inline)]
pub use retrysafe::*;

pub use self::{
    future::ResponseFuture,
    handler::{IdempotentRequest, Overruled},
    interceptor::KeyInterceptor,
    layer::IdempotencyLayer,
    methods::UnaryMethods,
    reconcile::happened,
    service::IdempotencyService,
    status::to_status,
};
