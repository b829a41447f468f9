//! The future of [`IdempotencyService`](crate::IdempotencyService).

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use actix_web::{
    Error,
    body::{EitherBody, MessageBody},
    dev::ServiceResponse,
};
use fragile::Fragile;
use pin_project_lite::pin_project;

use crate::{
    aside::Aside,
    handler::Handling,
    response::{self, HandlerBody, ResponseBody},
};

type Guarded<F> = retrysafe::ResponseFuture<Handling<F>, HandlerBody, Fragile<Error>>;

pin_project! {
    /// A response that is on its way. One that is not guarded is the inner future, unboxed.
    pub struct ResponseFuture<F> {
        #[pin]
        kind: Kind<F>,
    }
}

pin_project! {
    #[project = KindProject]
    enum Kind<F> {
        Passed { #[pin] future: F },
        Guarded { #[pin] answer: Guarded<F>, aside: Aside },
        Refused { error: Option<Error> },
    }
}

impl<F> ResponseFuture<F> {
    pub(crate) fn passed(future: F) -> Self {
        Self { kind: Kind::Passed { future } }
    }

    pub(crate) fn guarded(answer: Guarded<F>, aside: Aside) -> Self {
        Self { kind: Kind::Guarded { answer, aside } }
    }

    pub(crate) fn refused(error: Error) -> Self {
        Self { kind: Kind::Refused { error: Some(error) } }
    }
}

impl<F, B> Future for ResponseFuture<F>
where
    F: Future<Output = Result<ServiceResponse<B>, Error>>,
    B: MessageBody + 'static,
{
    type Output = Result<ServiceResponse<EitherBody<B, ResponseBody>>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().kind.project() {
            KindProject::Passed { future } => {
                future.poll(cx).map(|it| it.map(ServiceResponse::map_into_left_body))
            }
            KindProject::Guarded { answer, aside } => Poll::Ready(match ready!(answer.poll(cx)) {
                Ok(response) => response::outgoing(response, aside),
                Err(error) => Err(error.into_inner()),
            }),
            KindProject::Refused { error } => match error.take() {
                Some(error) => Poll::Ready(Err(error)),
                None => unreachable!("a future is over once"),
            },
        }
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
