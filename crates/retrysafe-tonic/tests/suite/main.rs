//! The adapter through its public door: generated clients that call a guarded ledger, in process, over
//! a connection, and from Python.

#![expect(clippy::unwrap_used, reason = "a test says what failed by where it panics")]

mod client;
mod connection;
mod executions;
mod keys;
mod lessons;
mod methods;
mod outcomes;
mod placement;
mod problems;
mod python;
mod streams;
mod support;
