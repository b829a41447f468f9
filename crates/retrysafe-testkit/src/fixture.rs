//! What the suite needs to know of a store under test.

use std::{future::Future, time::Duration};

use retrysafe_core::{Inspect, OperationId, Store};

/// A store under test: how to open handles on it, and how its time passes.
///
/// The data of one fixture is its own: nobody else writes to it while a rule runs. Every method has
/// to be written, so that nothing is skipped by default; what a store can't have it says with
/// `None` or `false`.
pub trait Fixture: Send + Sync + 'static {
    /// The store.
    type Store: Store + Inspect;

    /// A new handle on the same data, as another process would open it.
    fn handle(&self) -> impl Future<Output = Self::Store> + Send;

    /// Lets time pass for the store: advances the clock that it was given, or really waits.
    fn pass(&self, time: Duration) -> impl Future<Output = ()> + Send;

    /// The shortest time that the store and its clock tell apart with ease, and the length of the
    /// suite's short leases. With a clock that stands still this can be short; in real time it must
    /// be long enough for a few calls (300 ms, say).
    fn tick(&self) -> Duration;

    /// How often each race is run. A thousand, where a store is fast enough.
    fn rounds(&self) -> usize;

    /// A store of its own, on the same clock, that holds at most so many records; `None` if the
    /// store has no limit of its own.
    fn small(&self, records: usize) -> impl Future<Output = Option<Self::Store>> + Send;

    /// Makes a record unreadable where it is kept, as one of a newer version would be; `false` if
    /// nothing is kept outside the process that could become so.
    fn spoil(&self, id: &OperationId) -> impl Future<Output = bool> + Send;
}
