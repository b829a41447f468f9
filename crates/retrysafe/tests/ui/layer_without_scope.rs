use retrysafe::{IdempotencyLayer, MemoryStore};

fn main() {
    let _ = IdempotencyLayer::builder(MemoryStore::new()).build();
}
