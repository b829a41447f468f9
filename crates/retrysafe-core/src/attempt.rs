//! What a handler is told about the attempt that it runs for (E3).

use std::{any::Any, fmt, sync::Arc};

use crate::{Acquired, IdempotencyKey, OperationId, Points, Scope, Unit};

/// The context of one attempt: put into the request's extensions for the handler.
///
/// ```
/// # use retrysafe_core::Attempt;
/// fn charge(attempt: &Attempt) {
///     // The same in every attempt of this operation, so the processor charges once.
///     let processor_key = attempt.derive_key("charge");
///     // Grows with every attempt: a database that remembers the highest can refuse older ones.
///     let fence = attempt.fence();
/// }
/// ```
#[derive(Clone)]
pub struct Attempt {
    id: OperationId,
    key: IdempotencyKey,
    scope: Scope,
    acquired: Acquired,
    store: Option<&'static str>,
    unit: Option<Arc<dyn Unit>>,
}

impl Attempt {
    /// The context of an attempt that was acquired.
    pub fn new(id: OperationId, key: IdempotencyKey, scope: Scope, acquired: Acquired) -> Self {
        Self { id, key, scope, acquired, store: None, unit: None }
    }

    /// The same, of an attempt that was claimed in a store of this engine ([`About::engine`]).
    ///
    /// [`About::engine`]: crate::About::engine
    pub fn claimed_in(mut self, engine: &'static str) -> Self {
        self.store = Some(engine);
        self
    }

    /// Whether this attempt is the claim of an operation in a store of this engine. A layer inside
    /// that would claim it once more would meet its own request; one on another kind of store keeps
    /// what the layer outside does not.
    pub fn is_claim_of(&self, operation: &OperationId, engine: &str) -> bool {
        self.id == *operation && self.store.is_none_or(|store| store == engine)
    }

    /// The same, of an attempt that the store has lent something to ([`Store::unit`]).
    ///
    /// [`Store::unit`]: crate::Store::unit
    pub fn with_unit(mut self, unit: Option<Arc<dyn Unit>>) -> Self {
        self.unit = unit;
        self
    }

    /// What the store has lent to this attempt, if it is of this type.
    pub fn unit<U: Unit>(&self) -> Option<Arc<U>> {
        let unit: Arc<dyn Any + Send + Sync> = self.unit.clone()?;
        unit.downcast().ok()
    }

    /// Where parts of the work can be committed before the outcome, if the store lends that.
    pub fn points(&self) -> Option<Arc<dyn Points>> {
        self.unit.clone()?.points()
    }

    /// The operation; shown as it is in logs.
    pub fn operation(&self) -> &OperationId {
        &self.id
    }

    /// The client's key.
    pub fn key(&self) -> &IdempotencyKey {
        &self.key
    }

    /// Who the key belongs to.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The number of the attempt, from 1.
    pub fn number(&self) -> u32 {
        self.acquired.attempt
    }

    /// Grows with every attempt of the operation (ST5).
    pub fn fence(&self) -> u64 {
        self.acquired.fence
    }

    /// Whether an earlier attempt ended and nobody knows what it did: look before you act, or use
    /// [`derive_key`](Self::derive_key).
    pub fn previous_vanished(&self) -> bool {
        self.acquired.previous_vanished
    }

    /// A key for a step of this operation, to hand to another service. It depends on the operation
    /// and the step alone, never on the attempt.
    pub fn derive_key(&self, step: &str) -> String {
        self.id.derive_key(step)
    }
}

// S3: neither key nor scope is shown.
impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt")
            .field("operation", &self.id)
            .field("number", &self.number())
            .field("fence", &self.fence())
            .field("previous_vanished", &self.previous_vanished())
            .finish()
    }
}
