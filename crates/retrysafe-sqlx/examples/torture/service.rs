//! The service that is killed: `POST /transfers` with `FROM TO AMOUNT`.

mod mysql;
mod phases;
mod postgres;
mod sqlite;

use std::{env, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::Request,
    http::{HeaderMap, StatusCode},
    middleware::{self, Next},
    response::Response,
};
use futures_util::stream;
use retrysafe_core::failpoint;
use tokio::net::TcpListener;

use crate::{
    Mode,
    database::{Engine, transferred},
};

pub(crate) const MODE: &str = "RETRYSAFE_TORTURE_MODE";
pub(crate) const ENGINE: &str = "RETRYSAFE_TORTURE_ENGINE";
pub(crate) const URL: &str = "RETRYSAFE_TORTURE_URL";
/// Where the card processor listens.
pub(crate) const PROCESSOR: &str = "RETRYSAFE_TORTURE_PROCESSOR";
/// What it says first; the test harness talks on the same pipe.
pub(crate) const LISTENS: &str = "torture listens on ";

const CONNECTIONS: u32 = 6;
/// Where the claim is committed before the work: what was killed is taken over soon.
pub(crate) const LEASE: Duration = Duration::from_millis(500);

/// The points of each mode, in the order of a request.
pub(crate) fn points(mode: Mode, engine: Engine) -> Vec<&'static str> {
    const BEGIN: [&str; 3] = ["before the claim", "after BEGIN", "after the claim"];
    /// Of what SQLite's writer does for many at once, a claim for one.
    const TURN: [&str; 2] = ["before the end of a turn", "after the end of a turn"];
    /// A step, the call, and what is kept of both.
    const PHASES: [&str; 7] = [
        "before the point",
        "after the point",
        "between step and phase",
        "before the call",
        "during the call",
        "after the call",
        "after the phase",
    ];
    const WORK: [&str; 2] = ["during the work", "after the work"];
    const END: [&str; 4] = [
        "before the outcome",
        "before the commit",
        "after the commit",
        "between rollback and refusal",
    ];
    const ANSWER: [&str; 3] = ["before the answer", "during the answer", "after the answer"];
    const BETWEEN: &str = "between the commits";

    let turn = if engine == Engine::Sqlite { &TURN[..] } else { &[] };
    match mode {
        Mode::Transactional => [&BEGIN, turn, &WORK, &END, &ANSWER].concat(),
        Mode::Phases => [&BEGIN, turn, &PHASES, &WORK, &END, &ANSWER].concat(),
        Mode::Layer => {
            let others = [&WORK[..], &ANSWER].concat();
            others.into_iter().flat_map(|point| [BETWEEN, point]).collect()
        }
    }
}

pub(crate) fn is_wanted() -> bool {
    env::var(MODE).is_ok()
}

pub(crate) async fn serve() {
    let mode = Mode::parse(&env::var(MODE).unwrap()).unwrap();
    let url = env::var(URL).unwrap();
    let processor = env::var(PROCESSOR).unwrap().parse().unwrap();
    let router = match Engine::parse(&env::var(ENGINE).unwrap()).unwrap() {
        Engine::Postgres => postgres::router(mode, &url, processor).await,
        Engine::MySql => mysql::router(mode, &url, processor).await,
        Engine::Sqlite => sqlite::router(mode, &url, processor),
    };
    let router = router.layer(middleware::from_fn(answer));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("\n{LISTENS}{}", listener.local_addr().unwrap());
    axum::serve(listener, router).await.unwrap();
}

/// What a client asks for.
#[derive(Clone)]
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

/// How a service answers; an error is a status, and not kept.
type Answered = Result<(StatusCode, String), StatusCode>;

/// By what came of it: the number of its slip, unless there was not enough.
fn answered<E>(came: Result<Option<i64>, E>) -> Answered {
    match came {
        Ok(Some(number)) => Ok((StatusCode::CREATED, transferred(number, None))),
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
