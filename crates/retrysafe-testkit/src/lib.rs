//! The store contract of retrysafe as a test suite, with a history checker, fault injection and
//! broken stores.
//!
//! # A store under test
//!
//! The rules are written above the [`Store`](retrysafe_core::Store) trait, as ST1 to ST12. Here each
//! is a function that panics where a store breaks it ([`contract`]). A [`Fixture`] says how to open
//! handles on the store and how its time passes, and [`contract_tests!`] makes a test of every rule:
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use retrysafe_core::{MemoryStore, OperationId};
//! use retrysafe_testkit::{Fixture, ManualClock};
//!
//! struct Memory { clock: ManualClock, store: MemoryStore }
//!
//! impl Memory {
//!     fn new() -> Self {
//!         let clock = ManualClock::new();
//!         let store = MemoryStore::builder().clock(Arc::new(clock.clone()));
//!         Self { clock, store: store.max_payload(1 << 20).build().expect("valid settings") }
//!     }
//! }
//!
//! impl Fixture for Memory {
//!     type Store = MemoryStore;
//!     // Clones of a memory store are handles on the same data.
//!     async fn handle(&self) -> MemoryStore { self.store.clone() }
//!     async fn pass(&self, time: Duration) { self.clock.advance(time) }
//!     fn tick(&self) -> Duration { Duration::from_millis(100) }
//!     fn rounds(&self) -> usize { 3 }
//!     async fn small(&self, records: usize) -> Option<MemoryStore> {
//!         let clock = Arc::new(self.clock.clone());
//!         MemoryStore::builder().capacity(records).clock(clock).build().ok()
//!     }
//!     // What is only in this process is never of a newer version.
//!     async fn spoil(&self, _: &OperationId) -> bool { false }
//! }
//!
//! // In a test crate: retrysafe_testkit::contract_tests!(Memory::new());
//! # #[tokio::main]
//! # async fn main() {
//! retrysafe_testkit::contract::all(&Memory::new()).await;
//! # }
//! ```
//!
//! # How the suite is tested
//!
//! [`SmallStore`] is correct and passes; with a [`Flaw`] it is wrong in one way, and for each flaw
//! there is a test that the suite catches it. The [`Model`] is the contract as a sequential machine:
//! random walks and the [`History`] checker judge by it.
//!
//! # A front door under test
//!
//! [`Faulty`] puts faults between an engine and its store: failures and silence before and after the
//! effect, delays, copies that arrive late. Its [`Script`] holds calls at a point, waits for them and
//! counts them, so that a test of an engine waits for events and not for time. [`ManualClock`],
//! [`TokioClock`] and [`SeededEntropy`] are the inputs that everything else takes from the machine.
//!
//! The feature `doors` adds the module `doors`: one HTTP case table for every front door, what goes
//! in, what must come out, and how often the handler ran.
//!
//! # A store on a real server
//!
//! The feature `servers` adds the module `servers`: private Redis,
//! PostgreSQL, MariaDB and NATS servers that a test starts, kills, pauses and restarts, clusters of
//! them, and a wire that can be cut before and after the effect of a request.

mod clock;
pub mod contract;
#[cfg(feature = "doors")]
pub mod doors;
mod entropy;
mod faulty;
mod fixture;
mod history;
mod model;
#[cfg(feature = "servers")]
pub mod servers;
mod small;
mod walk;

pub use self::{
    clock::{ManualClock, TokioClock},
    entropy::SeededEntropy,
    faulty::{Fault, Faulty, Hold, Point, Script, Verb},
    fixture::Fixture,
    history::{History, NotLinearizable},
    model::{Answer, Call, Model},
    small::{Flaw, SmallStore},
    walk::{Step, walk},
};
