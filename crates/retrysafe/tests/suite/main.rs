//! The engine and the Tower layer, through the public door: a layer around a service, on the memory
//! store behind injected faults. Every test is named after the rule of PROTOCOL.md or the row of
//! LESSONS.md that it keeps.

#![expect(clippy::unwrap_used, reason = "a test that can't go on says where")]

mod batch;
mod bodies;
mod common;
mod decisions;
mod dropped;
mod executions;
mod keys;
mod lessons;
mod once;
mod once_lessons;
mod once_runs;
mod outcomes;
mod privacy;
mod recording;
mod scopes;
mod settings;
mod streams;
mod unknown;
mod waiting;
