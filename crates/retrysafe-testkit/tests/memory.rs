//! The memory store keeps the contract.

use std::{sync::Arc, time::Duration};

use proptest::prelude::*;
use retrysafe_core::{MemoryStore, OperationId};
use retrysafe_testkit::{Fixture, ManualClock, Step, contract, walk};

struct Memory {
    clock: ManualClock,
    store: MemoryStore,
}

impl Memory {
    fn new() -> Self {
        let clock = ManualClock::new();
        let settings = MemoryStore::builder().clock(Arc::new(clock.clone()));
        Self { clock, store: settings.max_payload(1 << 20).build().expect("valid settings") }
    }
}

impl Fixture for Memory {
    type Store = MemoryStore;

    async fn handle(&self) -> MemoryStore {
        self.store.clone()
    }

    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }

    fn tick(&self) -> Duration {
        Duration::from_millis(100)
    }

    fn rounds(&self) -> usize {
        1000
    }

    async fn small(&self, records: usize) -> Option<MemoryStore> {
        let settings = MemoryStore::builder().clock(Arc::new(self.clock.clone()));
        Some(settings.capacity(records).build().expect("valid settings"))
    }

    async fn spoil(&self, _: &OperationId) -> bool {
        false
    }
}

retrysafe_testkit::contract_tests!(Memory::new());

fn step() -> impl Strategy<Value = Step> {
    any::<[u8; 6]>().prop_map(|[verb, operation, owner, what, lease, retention]| Step {
        verb,
        operation,
        owner,
        what,
        lease,
        retention,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_sequence_of_verbs_agrees_with_the_model(steps in prop::collection::vec(step(), 1..60)) {
        let fixture = Memory::new();
        contract::run(async { walk(&fixture, &fixture.handle().await, &steps).await });
    }
}
