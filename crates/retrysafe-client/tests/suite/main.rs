//! The client through its public door, against real sockets.

#![expect(clippy::unwrap_used, reason = "a test says what failed by where it panics")]

mod batches;
mod bodies;
mod budget;
mod config;
mod faults;
mod journals;
mod keys;
mod lessons;
mod observing;
mod redirects;
mod retries;
mod sharing;
mod support;
mod tower_layer;
#[cfg(feature = "tonic")]
mod unary;
