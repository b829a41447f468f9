//! The adapter through its public door: a `Router` that is called, and one that is served.

#![expect(clippy::unwrap_used, reason = "a test says what failed by where it panics")]

mod connection;
mod extractors;
mod layers;
mod overrule;
mod placement;
mod replay;
mod streams;
mod support;
