//! A store whose payloads are compressed and encrypted keeps the contract.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use retrysafe_core::{
    Begin, Claim, Encoded, Encryption, EncryptionKeys, Held, Inspect as _, Lease, MemoryStore,
    Operated, OperationId, Owner, Store as _, SystemEntropy,
};
use retrysafe_testkit::{Fixture, ManualClock};

struct EncodedMemory {
    clock: ManualClock,
    /// What is inside, as another program with access to the store sees it.
    raw: MemoryStore,
}

impl EncodedMemory {
    fn new() -> Self {
        let clock = ManualClock::new();
        let settings = MemoryStore::builder().clock(Arc::new(clock.clone()));
        Self { clock, raw: settings.max_payload(1 << 18).build().expect("valid settings") }
    }
}

fn encoded(raw: MemoryStore) -> Encoded<MemoryStore> {
    let keys = EncryptionKeys::new(1, &[7; 32]).expect("a valid ring");
    Encoded::new(raw).with_compression().with_encryption(Encryption::new(keys))
}

impl Fixture for EncodedMemory {
    type Store = Encoded<MemoryStore>;

    async fn handle(&self) -> Self::Store {
        encoded(self.raw.clone())
    }

    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }

    fn tick(&self) -> Duration {
        Duration::from_millis(100)
    }

    fn rounds(&self) -> usize {
        200
    }

    async fn small(&self, records: usize) -> Option<Self::Store> {
        let settings = MemoryStore::builder().clock(Arc::new(self.clock.clone()));
        Some(encoded(settings.capacity(records).build().expect("valid settings")))
    }

    /// Puts a payload in the record's place that is marked as one of a newer version.
    async fn spoil(&self, id: &OperationId) -> bool {
        let entry = self.raw.get(id).await.expect("get").expect("a record");
        assert_eq!(self.raw.forget(id).await.expect("forget"), Operated::Applied);
        let claim = Claim {
            id: *id,
            owner: Owner::new(&SystemEntropy),
            fingerprint: entry.fingerprint,
            lease: entry.expires_in,
            retention: entry.expires_in,
            take_over: false,
        };
        let Begin::Acquired(acquired) = self.raw.begin(&claim).await.expect("begin") else {
            panic!("it was forgotten");
        };
        let Claim { id, owner, fingerprint, retention, .. } = claim;
        let lease = Lease { id, owner, attempt: acquired.attempt, fence: acquired.fence };
        let newer = Bytes::from_static(&[0xff]);
        let held = self.raw.complete(&lease, &fingerprint, newer, retention).await;
        assert_eq!(held.expect("complete"), Held::Applied);
        true
    }
}

retrysafe_testkit::contract_tests!(EncodedMemory::new());
