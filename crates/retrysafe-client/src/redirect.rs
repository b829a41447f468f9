//! Redirects: the key stays with the origin that it was made for (C6).

use std::{cell::Cell, future::Future};

use reqwest::{
    StatusCode,
    redirect::{Attempt, Policy},
};

/// How many redirects are followed: as many as reqwest does by itself.
const MOST: usize = 10;

/// Follows redirects within one origin. A redirect to another comes back as the answer: following it
/// would tell a stranger the key, and without the key the operation would be a new one.
///
/// [`Client`](crate::Client) has this policy; give it to the `reqwest::Client` below an
/// [`IdempotencyMiddleware`](crate::IdempotencyMiddleware) of your own.
pub fn same_origin_redirects() -> Policy {
    Policy::custom(|attempt: Attempt<'_>| {
        // A client without our middleware has nobody to tell.
        let elsewhere = [StatusCode::TEMPORARY_REDIRECT, StatusCode::PERMANENT_REDIRECT];
        let answered = !elsewhere.contains(&attempt.status());
        let _ = REDIRECTED.try_with(|it| {
            it.set(Redirected { at_all: true, answered: it.get().answered || answered });
        });
        let Some(first) = attempt.previous().first() else { return attempt.stop() };
        if attempt.url().origin() != first.origin() {
            return attempt.stop();
        }
        if attempt.previous().len() > MOST {
            return attempt.error("too many redirects");
        }
        attempt.follow()
    })
}

tokio::task_local! {
    /// How the request that this task is sending was redirected.
    static REDIRECTED: Cell<Redirected>;
}

/// How a request was redirected. It was received then, however it ended. (reqwest's error names the URL
/// that was asked for first.)
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Redirected {
    pub(crate) at_all: bool,
    /// To what is asked for by another method (301, 302, 303): so the request itself was answered.
    pub(crate) answered: bool,
}

/// Sends, and says what redirects were among the answers.
pub(crate) async fn watched<T>(sending: impl Future<Output = T>) -> (T, Redirected) {
    let watching = async {
        let sent = sending.await;
        (sent, REDIRECTED.with(Cell::get))
    };
    REDIRECTED.scope(Cell::default(), watching).await
}
