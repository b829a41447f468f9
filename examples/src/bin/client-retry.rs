//! A client that posts orders to any `POST /orders` and loses none, whatever happens on the way.
//!
//! ```text
//! client-retry http://127.0.0.1:8080/orders --calls 100 --concurrency 8 --journal orders.journal
//! ```
//!
//! What an earlier run does not know the outcome of is found out first, from the journal.

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use clap::Parser;
use futures_util::{StreamExt as _, stream};
use reqwest::{StatusCode, Url};
use retrysafe_client::{Client, FileJournal, OutcomeUnknown, ResumedOutcome, RetryPolicy};

/// Posts orders, and loses none.
#[derive(Parser)]
struct Arguments {
    /// Where orders are posted: http://HOST:PORT/orders.
    url: Url,

    /// How many orders are placed.
    #[arg(long, default_value_t = 100)]
    calls: u64,

    /// How many of them at a time.
    #[arg(long, default_value_t = 8)]
    concurrency: usize,

    /// How long one order may take, all in all.
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    deadline: Duration,

    /// How long one attempt of it may take.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    attempt: Duration,

    /// How often a request is sent at most.
    #[arg(long, default_value_t = 5)]
    attempts: u32,

    /// Where keys and requests are kept before they are sent.
    #[arg(long)]
    journal: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        // Some failed, or nobody knows what became of them: the last lines say how many.
        Ok(false) => ExitCode::FAILURE,
        Err((code, line)) => {
            eprintln!("client-retry: {line}");
            ExitCode::from(code)
        }
    }
}

/// What became of the orders.
#[derive(Default)]
struct Count {
    succeeded: u64,
    unknown: u64,
    failed: u64,
}

/// Whether every order, and every one of an earlier run, was answered well.
async fn run(arguments: Arguments) -> Result<bool, (u8, String)> {
    if arguments.concurrency == 0 {
        return Err((2, "--concurrency: must be 1 or more".to_owned()));
    }
    let attempts = Attempts::default();
    let mut retries = RetryPolicy::default();
    retries.attempts = arguments.attempts;
    retries.deadline = arguments.deadline;
    retries.attempt_timeout = arguments.attempt;
    // The middleware is inside of the retries, so it sees every attempt.
    let mut builder = Client::builder().retries(retries).with(attempts.clone());
    if let Some(path) = &arguments.journal {
        builder = builder.journal(FileJournal::open(path).map_err(|error| (1, told(&error)))?);
    }
    let client = builder.build().map_err(|error| (2, error.to_string()))?;

    // What an earlier run does not know the outcome of.
    let mut all_resumed = true;
    for resumed in client.resume().await.map_err(|error| (1, told(&error)))? {
        match resumed.outcome() {
            ResumedOutcome::Answered(response) => {
                println!("resumed {}: {}", resumed.operation(), response.status());
            }
            ResumedOutcome::Unknown(unknown) => {
                all_resumed = false;
                println!("still unknown: {unknown}");
            }
            ResumedOutcome::Failed(error) => {
                all_resumed = false;
                println!("not resumed {}: {}", resumed.operation(), told(error));
            }
        }
    }

    let orders =
        stream::iter(0..arguments.calls).map(|number| place(&client, &arguments.url, number));
    let mut orders = orders.buffer_unordered(arguments.concurrency);
    let mut count = Count::default();
    while let Some(placed) = orders.next().await {
        let failure = match placed {
            Ok(status) if status.is_success() => {
                count.succeeded += 1;
                continue;
            }
            Ok(status) => status.to_string(),
            Err(error) => match OutcomeUnknown::of(&error) {
                Some(unknown) => {
                    println!("unknown: {unknown}");
                    count.unknown += 1;
                    continue;
                }
                None => told(&error),
            },
        };
        if count.failed == 0 {
            eprintln!("the first that failed: {failure}");
        }
        count.failed += 1;
    }
    println!(
        "calls={} succeeded={} unknown={} failed={} attempts={}",
        arguments.calls,
        count.succeeded,
        count.unknown,
        count.failed,
        attempts.0.load(Ordering::Relaxed),
    );
    Ok(all_resumed && count.unknown + count.failed == 0)
}

/// Places one order, under a key of its own that all its attempts share. Says how it was answered.
async fn place(client: &Client, url: &Url, number: u64) -> reqwest_middleware::Result<StatusCode> {
    let order = format!(r#"{{"item":"book {number}","amount":{}}}"#, 1_000 + number);
    let request = client.post(url.clone()).header("content-type", "application/json").body(order);
    Ok(request.send().await?.status())
}

/// Counts what is sent.
#[derive(Clone, Default)]
struct Attempts(Arc<AtomicU64>);

#[async_trait::async_trait]
impl reqwest_middleware::Middleware for Attempts {
    async fn handle(
        &self,
        request: reqwest::Request,
        extensions: &mut http::Extensions,
        next: reqwest_middleware::Next<'_>,
    ) -> reqwest_middleware::Result<reqwest::Response> {
        self.0.fetch_add(1, Ordering::Relaxed);
        next.run(request, extensions).await
    }
}

/// An error and its causes, on one line.
fn told(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
