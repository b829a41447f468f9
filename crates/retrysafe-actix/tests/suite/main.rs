//! The adapter through its public door: an `App` that is called, and one that is served.

#![expect(clippy::unwrap_used, reason = "a test says what failed by where it panics")]

mod bodies;
mod connection;
mod extractors;
mod lessons;
mod overrule;
mod placement;
mod replay;
mod server;
mod streams;
mod support;
mod workers;
