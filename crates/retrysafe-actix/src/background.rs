//! The thread that renews leases.

use std::{
    future::pending,
    sync::{Mutex, PoisonError},
    thread,
};

use retrysafe::ConfigError;
use tokio::runtime::{Builder, Handle};

/// A runtime on a thread of its own, for [`EngineBuilder::renew_on`](crate::EngineBuilder::renew_on).
/// It is started by the first who asks, serves all engines of the process, and ends with the process.
///
/// A worker of Actix is one thread. A handler that blocks it would stop the renewal of every lease
/// that is kept there, and another process would run what is still running (E2).
///
/// [`Idempotency::builder`](crate::Idempotency::builder) does this by itself. It is for engines that
/// you build, to set a bound or to share them:
///
/// ```
/// use retrysafe_actix::{Engine, Idempotency, MemoryStore, Scope, background};
///
/// let engine = Engine::builder(MemoryStore::new())
///     .renew_on(background()?)
///     .max_in_flight(1024)
///     .build()?;
/// let orders = Idempotency::sharing(&engine, Scope::shared()).namespace("orders").build()?;
/// let refunds = Idempotency::sharing(&engine, Scope::shared()).namespace("refunds").build()?;
/// # Ok::<(), retrysafe_actix::ConfigError>(())
/// ```
///
/// # Errors
///
/// [`ConfigError`] if the operating system has no thread for it.
pub fn background() -> Result<Handle, ConfigError> {
    static STARTED: Mutex<Option<Handle>> = Mutex::new(None);
    // Nothing is left half done under this lock.
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = &*started {
        return Ok(handle.clone());
    }
    let failed = |error| ConfigError::new("engine", format!("no thread to renew on: {error}"));
    let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let handle = runtime.handle().clone();
    thread::Builder::new()
        .name("retrysafe".to_owned())
        .spawn(move || runtime.block_on(pending::<()>()))
        .map_err(failed)?;
    Ok(started.insert(handle).clone())
}
