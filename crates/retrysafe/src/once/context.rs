//! What the handler of a call is told (E3).

use std::{fmt, sync::Arc};

use retrysafe_core::{Attempt, Entropy, FromAttempt, NotLent, OperationId};

use crate::Phases;

/// The context of one run of a handler: the attempt that it is, or that nothing protects it.
///
/// A run is unprotected if its call has no key ([`Unnamed::RunUnprotected`](crate::Unnamed)), or if
/// the store could not be reached and that was allowed
/// ([`OnStoreFailure::Bypass`](crate::OnStoreFailure)). What is told here errs on the safe side then.
#[derive(Clone)]
pub struct OnceContext {
    operation: OperationId,
    attempt: Option<Attempt>,
    named: bool,
    /// The call itself, for its phases to keep.
    call: Option<Arc<str>>,
}

impl OnceContext {
    pub(crate) fn named(operation: OperationId, attempt: Option<Attempt>) -> Self {
        Self { operation, attempt, named: true, call: None }
    }

    /// A call without a key is an operation of its own.
    pub(crate) fn unnamed(entropy: &dyn Entropy) -> Self {
        let mut id = [0; 32];
        let (one, other) = id.split_at_mut(16);
        one.copy_from_slice(&entropy.next_u128().to_be_bytes());
        other.copy_from_slice(&entropy.next_u128().to_be_bytes());
        Self { operation: OperationId::from_bytes(id), attempt: None, named: false, call: None }
    }

    /// The same, with the call itself.
    pub(crate) fn with_call(self, call: Option<Arc<str>>) -> Self {
        Self { call, ..self }
    }

    /// The attempt, with key and scope; `None` if nothing protects this run.
    pub fn attempt(&self) -> Option<&Attempt> {
        self.attempt.as_ref()
    }

    /// What the store lends to this attempt: a transaction that commits with the record, where it has
    /// one. What is given back with an `Err` is undone; with an `Ok` it commits.
    ///
    /// # Errors
    ///
    /// [`NotLent`] says why there is none; [`NotLent::Absent`] if nothing protects this run.
    pub fn lent<T: FromAttempt>(&self) -> Result<T, NotLent> {
        T::from_attempt(self.attempt.as_ref().ok_or(NotLent::Absent)?)
    }

    /// The attempt in [phases](Phases). They keep the call itself, too, if it is
    /// [completable](crate::OnceRun::completable).
    ///
    /// # Errors
    ///
    /// As for [`lent`](Self::lent).
    pub fn phases<T: FromAttempt>(&self) -> Result<Phases<T>, NotLent> {
        Ok(self.lent::<Phases<T>>()?.keeping(self.call.clone()))
    }

    /// The operation; shown as it is in logs. A call without a key has one of its own each time.
    pub fn operation(&self) -> &OperationId {
        &self.operation
    }

    /// The number of the attempt, from 1; 0 if nothing protects this run.
    pub fn number(&self) -> u32 {
        self.attempt.as_ref().map_or(0, Attempt::number)
    }

    /// Grows with every attempt of the operation (ST5). It is 0, below every attempt's, if nothing
    /// protects this run.
    pub fn fence(&self) -> u64 {
        self.attempt.as_ref().map_or(0, Attempt::fence)
    }

    /// Whether an earlier attempt may have done it, and nobody knows: look before you act, or use
    /// [`derive_key`](Self::derive_key). True as well if the store could not be asked.
    pub fn previous_vanished(&self) -> bool {
        self.attempt.as_ref().map_or(self.named, Attempt::previous_vanished)
    }

    /// A key for a step of this operation, to hand to another service. It depends on the operation
    /// and the step alone, never on the attempt.
    pub fn derive_key(&self, step: &str) -> String {
        self.operation.derive_key(step)
    }
}

// S3: neither key nor scope is shown.
impl fmt::Debug for OnceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnceContext")
            .field("operation", &self.operation)
            .field("attempt", &self.attempt)
            .finish()
    }
}
