//! Asks an LLM of OpenAI's shape one question, streams the answer, and never pays twice for it.
//!
//! ```text
//! llm-call http://127.0.0.1:8080/v1/chat/completions --prompt 'What is six times seven?'
//! ```
//!
//! The key is made of the request, so that the same prompt is the same operation, in this run and in the
//! next. The server has to keep keys; in front of one that does not, put the retrysafe proxy. A stream
//! that breaks off is asked for again under its key: what was printed already is skipped, because the
//! answer is replayed, not made again.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use retrysafe_client::{Client, ContentKey, Dialect, KeySource, RetryPolicy};
use serde_json::{Value, json};

/// Asks an LLM one question, and never pays twice for it.
#[derive(Parser)]
struct Arguments {
    /// The chat completions of an API of OpenAI's shape.
    url: reqwest::Url,

    /// The question.
    #[arg(long)]
    prompt: String,

    /// The model.
    #[arg(long, default_value = "gpt-4o-mini")]
    model: String,

    /// What tells this question from the same question that is meant to be answered anew.
    #[arg(long, default_value = "")]
    conversation: String,

    /// How long the whole of it may take.
    #[arg(long, default_value = "2m", value_parser = humantime::parse_duration)]
    deadline: Duration,
}

/// How often a stream that breaks off is asked for again.
const STREAMS: usize = 10;

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => {
            eprintln!("llm-call: {line}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), String> {
    let content = ContentKey::builder().salt(&arguments.conversation).build();
    let mut retries = RetryPolicy::default();
    retries.attempts = 5;
    retries.deadline = arguments.deadline;
    let client = Client::builder()
        // Not `openai_compatible`: behind the proxy keys are kept, so that retrying is safe.
        .dialect(Dialect::draft07())
        .keys(KeySource::Content(content.map_err(|error| error.to_string())?))
        .retries(retries)
        .build()
        .map_err(|error| error.to_string())?;
    let question = json!({
        "model": arguments.model,
        "messages": [{ "role": "user", "content": arguments.prompt }],
        "stream": true,
    });

    let mut printed = 0;
    for _ in 0..STREAMS {
        let mut request =
            client.post(arguments.url.clone()).header("content-type", "application/json");
        if let Ok(token) = std::env::var("OPENAI_API_KEY") {
            request = request.bearer_auth(token);
        }
        let response = request.body(question.to_string()).send().await;
        let response = response.map_err(|error| told(&error))?;
        if !response.status().is_success() {
            let status = response.status();
            return Err(format!("{status}: {}", response.text().await.unwrap_or_default()));
        }
        if print_answer(response, &mut printed).await {
            println!();
            return Ok(());
        }
    }
    Err(format!("the stream broke off {STREAMS} times; ask again, it is paid for"))
}

/// Prints what has not been printed yet. Says whether the stream came to its end.
async fn print_answer(mut response: reqwest::Response, printed: &mut usize) -> bool {
    let (mut seen, mut lines) = (0, Vec::new());
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => lines.extend_from_slice(&chunk),
            Ok(None) | Err(_) => return false,
        }
        while let Some(end) = lines.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = lines.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let Some(data) = line.trim_end().strip_prefix("data: ") else { continue };
            if data == "[DONE]" {
                return true;
            }
            let event: Value = serde_json::from_str(data).unwrap_or_default();
            let text = event["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
            for char in text.chars() {
                seen += 1;
                if seen > *printed {
                    print!("{char}");
                    *printed = seen;
                }
            }
            let _ = io::stdout().flush();
        }
    }
}

/// An error and its causes, on one line.
fn told(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
