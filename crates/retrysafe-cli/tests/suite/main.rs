//! The binary, as a process of its own, from where its users stand.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod cases;
mod client;
mod config;
mod demo;
mod files;
mod guarded;
mod privacy;
mod protocols;
mod proxy;
mod readme;
mod stores;
mod support;
mod uploads;
