//! CLIENT: what the client adds to a call that succeeds at once, beside the bare `reqwest` call.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    thread,
};

use retrysafe_client::Client;
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Builder;

use crate::{
    Outcome,
    measure::{Effort, in_turn},
    orders::ORDER,
    process::{MEASURED, Pinned},
    report::{Number, Row},
};

const BARE: usize = 0;
const OURS: usize = 1;

/// How many calls are timed at a stretch.
const BATCH: usize = 200;

pub(crate) fn measure(effort: Effort) -> Outcome<Vec<Row>> {
    // Both ends on one processor: to wake another one costs 30 µs in a virtual machine, and which of
    // the two connections has to is chance.
    let _pinned = Pinned::to(MEASURED);
    let url = format!("http://{}/orders", serve()?);
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let (bare, ours) = (reqwest::Client::new(), Client::builder().build()?);
    let rounds = in_turn::<2>(effort.rounds(200), |variant| {
        runtime.block_on(async {
            let started = processor_time()?;
            for _ in 0..BATCH {
                let answer = match variant {
                    BARE => {
                        let request = bare.post(&url).header("content-type", "application/json");
                        request.body(ORDER).send().await?.bytes().await?
                    }
                    _ => {
                        let request = ours.post(&url).header("content-type", "application/json");
                        request.body(ORDER).send().await?.bytes().await?
                    }
                };
                if answer.len() != ORDER.len() {
                    return Err("an unexpected answer".into());
                }
            }
            Ok((processor_time()? - started) * 1e6 / BATCH as f64)
        })
    })?;
    let micros = |value| Number::of(value, 2, "µs");
    Ok(vec![
        Row::at_most(
            "CLIENT",
            "a call that succeeds at once: added to the bare `reqwest` call",
            micros(rounds.median(|it| it[OURS] - it[BARE])),
            5.0,
        ),
        Row::shown("CLIENT", "the bare call", micros(rounds.median(|it| it[BARE]))),
    ])
}

/// Answers orders on a thread of its own, as fast as can be.
fn serve() -> Outcome<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let answer = format!(
        "HTTP/1.1 201 Created\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{ORDER}",
        ORDER.len()
    );
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (mut stream, answer) = (stream, answer.clone());
            thread::spawn(move || {
                let (mut received, mut buffer) = (Vec::new(), [0; 4096]);
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    received.extend_from_slice(&buffer[..length]);
                    // Every request ends with the order.
                    if received.ends_with(ORDER.as_bytes()) {
                        received.clear();
                        if stream.write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    Ok(address)
}

/// In seconds. Only this thread's: the server is not charged for.
fn processor_time() -> Outcome<f64> {
    let time: std::time::Duration = clock_gettime(ClockId::ThreadCPUTime).try_into()?;
    Ok(time.as_secs_f64())
}
