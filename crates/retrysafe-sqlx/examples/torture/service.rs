//! The service that is killed: `POST /transfers` with `FROM TO AMOUNT`.

mod mysql;
mod postgres;

use std::{env, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::Request,
    http::{HeaderMap, StatusCode},
    middleware::{self, Next},
    response::Response,
};
use futures_util::stream;
use retrysafe_sqlx::failpoint;
use tokio::net::TcpListener;

use crate::{Mode, database::Engine};

pub(crate) const MODE: &str = "RETRYSAFE_TORTURE_MODE";
pub(crate) const ENGINE: &str = "RETRYSAFE_TORTURE_ENGINE";
pub(crate) const URL: &str = "RETRYSAFE_TORTURE_URL";
/// What it says first; the test harness talks on the same pipe.
pub(crate) const LISTENS: &str = "torture listens on ";

const CONNECTIONS: u32 = 6;
/// Of the ordinary layer: what was killed is taken over soon.
const LEASE: Duration = Duration::from_millis(500);

/// The points of each mode, in the order of a request.
pub(crate) fn points(mode: Mode) -> &'static [&'static str] {
    match mode {
        Mode::Transactional => &[
            "before the claim",
            "after BEGIN",
            "after the claim",
            "during the work",
            "after the work",
            "before the outcome",
            "before the commit",
            "after the commit",
            "between rollback and refusal",
            "before the answer",
            "during the answer",
            "after the answer",
        ],
        Mode::Layer => &[
            "between the commits",
            "during the work",
            "between the commits",
            "after the work",
            "between the commits",
            "before the answer",
            "during the answer",
            "after the answer",
        ],
    }
}

pub(crate) fn is_wanted() -> bool {
    env::var(MODE).is_ok()
}

pub(crate) async fn serve() {
    let mode = Mode::parse(&env::var(MODE).unwrap()).unwrap();
    let url = env::var(URL).unwrap();
    let router = match Engine::parse(&env::var(ENGINE).unwrap()).unwrap() {
        Engine::Postgres => postgres::router(mode, &url).await,
        Engine::MySql => mysql::router(mode, &url).await,
    };
    let router = router.layer(middleware::from_fn(answer));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("\n{LISTENS}{}", listener.local_addr().unwrap());
    axum::serve(listener, router).await.unwrap();
}

/// What a client asks for.
struct Order {
    /// Its key.
    request: String,
    from: i64,
    to: i64,
    amount: i64,
}

impl Order {
    fn read(headers: &HeaderMap, body: &str) -> Result<Self, StatusCode> {
        let numbers: Vec<i64> = body.split(' ').filter_map(|it| it.parse().ok()).collect();
        let [from, to, amount] = numbers[..] else { return Err(StatusCode::BAD_REQUEST) };
        let request = headers["idempotency-key"].to_str().unwrap().to_owned();
        Ok(Self { request, from, to, amount })
    }

    /// In the order of the accounts, so that no two transfers wait for each other.
    fn changes(&self) -> [(i64, i64); 2] {
        let mut changes = [(self.from, -self.amount), (self.to, self.amount)];
        changes.sort();
        changes
    }
}

/// What came of it: the number of its slip, unless there was not enough.
type Transferred = sqlx::Result<Option<i64>>;

/// How a service answers; an error is a status, and not kept.
type Answered = Result<(StatusCode, String), StatusCode>;

fn answered(transferred: Transferred) -> Answered {
    match transferred {
        Ok(Some(number)) => Ok((StatusCode::CREATED, format!("transfer {number}"))),
        Ok(None) => Ok((StatusCode::UNPROCESSABLE_ENTITY, "not enough".to_owned())),
        Err(_) => Err(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

/// Outside of the layer: what it answers goes out in two pieces.
async fn answer(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    failpoint::reached("before the answer");
    let (mut head, body) = response.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let middle = body.len() / 2;
    let pieces = [body.slice(..middle), body.slice(middle..)];
    let pieces = stream::unfold((pieces, 0, Sent), |(pieces, next, sent)| async move {
        if next == 1 {
            // The first has left by now, as far as it will.
            tokio::task::yield_now().await;
            failpoint::reached("during the answer");
        }
        let piece: Bytes = pieces.get(next)?.clone();
        Some((Ok::<_, std::io::Error>(piece), (pieces, next + 1, sent)))
    });
    // Its length is said, so that half an answer is not taken for one.
    head.headers.insert("content-length", body.len().into());
    Response::from_parts(head, Body::from_stream(pieces))
}

/// Dropped when the server has no more use for an answer: whoever knows its length does not ask for
/// what comes after the last piece.
struct Sent;

impl Drop for Sent {
    fn drop(&mut self) {
        failpoint::reached("after the answer");
    }
}
