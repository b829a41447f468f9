//! The service whose transfers charge a card, between two commits: the handler of every engine.

use std::{error::Error, future::Future, net::SocketAddr, time::Duration};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};
use retrysafe_axum::{FromAttempt, PhaseError, Phases, ProblemStyle, Transaction};
use retrysafe_core::failpoint;
use tokio::time::timeout;

use super::Order;
use crate::{client, database::transferred};

/// The transaction of one engine, and what a transfer does in it. Each of these commits by itself.
pub(super) trait Accounts: FromAttempt + Send + 'static {
    /// Writes the slip, and takes the money from the payer. Answers the number of the slip; if there is
    /// not enough, there may be something to undo.
    fn reserve(self, order: Order) -> impl Future<Output = Result<Option<i64>, Failed>> + Send;

    /// Takes back what was reserved.
    fn give_back(
        self,
        order: Order,
        number: i64,
    ) -> impl Future<Output = Result<(), Failed>> + Send;

    /// Gives the payee the money, and notes the charge.
    fn book(
        self,
        order: Order,
        number: i64,
        charge: i64,
    ) -> impl Future<Output = Result<(), Failed>> + Send;
}

/// Why a part was not done.
#[derive(Debug)]
pub(super) enum Failed {
    NotEnough,
    /// The database, or the card processor.
    Elsewhere,
}

impl<E: Error> From<E> for Failed {
    fn from(_: E) -> Self {
        Self::Elsewhere
    }
}

/// What came of it.
enum Came {
    Transferred { number: i64, charge: i64 },
    NotEnough,
    Declined,
}

pub(super) async fn transfer<T: Accounts>(
    State(processor): State<SocketAddr>,
    Transaction(phases): Transaction<Phases<T>>,
    headers: HeaderMap,
    body: String,
) -> Response {
    let order = match Order::read(&headers, &body) {
        Ok(order) => order,
        Err(status) => return status.into_response(),
    };
    let refused = StatusCode::UNPROCESSABLE_ENTITY;
    match in_phases(phases, processor, &order).await {
        Ok(Came::Transferred { number, charge }) => {
            (StatusCode::CREATED, transferred(number, Some(charge))).into_response()
        }
        Ok(Came::NotEnough) => (refused, "not enough").into_response(),
        Ok(Came::Declined) => (refused, "declined").into_response(),
        // The next try goes on.
        Err(error) => ProblemStyle::default().render(&error.to_problem()).map(Body::from),
    }
}

/// A transfer that is refused has no slip and no charge: whether there is enough is decided before the
/// card is charged, and a card that is declined is not charged. What was reserved for it then is given
/// back by a step, as no refusal undoes one.
async fn in_phases<T: Accounts>(
    mut phases: Phases<T>,
    processor: SocketAddr,
    order: &Order,
) -> Result<Came, PhaseError<Failed>> {
    let reserved = phases.step("reserve", |transaction: T| async {
        let number = transaction.reserve(order.clone()).await?;
        number.ok_or(Failed::NotEnough)
    });
    let number = match reserved.await {
        // The step is undone.
        Err(PhaseError::Failed(Failed::NotEnough)) => return Ok(Came::NotEnough),
        reserved => reserved?,
    };
    failpoint::reached("between step and phase");
    let charged = phases.phase("charge", |key| charge(processor, key, order)).await?;
    failpoint::reached("after the phase");
    let Some(charge) = charged else {
        let given_back =
            phases.step("give back", |transaction: T| transaction.give_back(order.clone(), number));
        given_back.await?;
        return Ok(Came::Declined);
    };
    let transaction = phases.transaction().await.map_err(PhaseError::or_failed)?;
    let booked = transaction.book(order.clone(), number, charge).await;
    booked.map_err(PhaseError::Failed)?;
    failpoint::reached("after the work");
    Ok(Came::Transferred { number, charge })
}

/// At the processor, which charges once for each key; nothing if it declines.
async fn charge(processor: SocketAddr, key: String, order: &Order) -> Result<Option<i64>, Failed> {
    const PATIENCE: Duration = Duration::from_secs(5);
    failpoint::reached("before the call");
    let body = format!("{} {}", order.request, order.amount);
    let answer = timeout(PATIENCE, client::request(processor, "/charges", &key, &body)).await?;
    failpoint::reached("after the call");
    // Without an answer it is charged or not: the next try finds out.
    let answer = answer.ok_or(Failed::Elsewhere)?;
    match answer.status {
        201 => Ok(Some(answer.body.parse()?)),
        402 => Ok(None),
        _ => Err(Failed::Elsewhere),
    }
}
