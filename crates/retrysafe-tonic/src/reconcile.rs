//! What a reconciling function answers with (D3).

use http::{HeaderValue, Response, header};
use prost::Message;
use retrysafe::Reconciled;

use crate::message::framed;

/// It happened, and this is the message that it is answered with: what a function of
/// [`OnUnknownOutcome::reconcile`](crate::OnUnknownOutcome::reconcile) gives.
///
/// ```
/// use retrysafe_tonic::{OnUnknownOutcome, Reconciled, Unknown};
/// # mod ledger { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/ledger.v1.rs")); }
/// # use ledger::TransferReply;
/// # async fn find_booking(key: &str) -> Result<Option<TransferReply>, std::io::Error> { Ok(None) }
///
/// let look = OnUnknownOutcome::reconcile(|unknown: Unknown| async move {
///     match find_booking(&unknown.context.derive_key("book")).await {
///         Ok(Some(reply)) => retrysafe_tonic::happened(&reply),
///         Ok(None) => Reconciled::DidNotHappen,
///         Err(_) => Reconciled::StillUnknown,
///     }
/// });
/// ```
///
/// What came to another status than OK is given without it:
/// `Reconciled::Happened(Status::not_found("no such account").into_http())`.
pub fn happened(message: &impl Message) -> Reconciled {
    let mut response = Response::new(framed(&message.encode_to_vec()));
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, grpc);
    Reconciled::Happened(response)
}
